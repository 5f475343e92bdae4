"""`python -m app.cli.health [URL]`: does a process of ours answer? For health checks of containers, which have no curl.

Without a URL it asks this container's /healthz: on the probe's port where there is one, else on the API's.
"""

import os
import sys
import urllib.error
import urllib.request

_TIMEOUT_S = 4.0


def own_url() -> str:
    """Where the process that runs by this environment answers."""
    port = os.environ.get("PENSTOCK_PROBE_PORT") or os.environ.get("PENSTOCK_API_PORT") or "8000"
    return f"http://127.0.0.1:{port}/healthz"


def main(arguments: list[str]) -> int:
    """Exit status 0 if the answer is a 200; else 1, with the reason on stdout, where Docker keeps it."""
    url = arguments[0] if arguments else own_url()
    if not url.startswith("http://"):
        print(f"{url}: must begin with http://")
        return 1
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            return 0 if answer.status == 200 else 1
    except (urllib.error.URLError, OSError) as error:
        print(f"{url}: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
