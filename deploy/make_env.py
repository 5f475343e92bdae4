"""Draws the secrets of a compose.yaml installation: `python3 deploy/make_env.py` writes deploy/env/*.env, readable by their owner only.

It never overwrites one: another pepper makes all API keys invalid, and Postgres keeps the password that it was made with.
"""

import os
import secrets
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "env"


def files() -> dict[str, str]:
    """What each service gets to know, and no more; drawn anew at each call."""
    postgres, redis = secrets.token_hex(24), secrets.token_hex(24)
    return {
        "penstock.env": f"DATABASE_URL=postgresql://penstock:{postgres}@postgres:5432/penstock\n"
        f"REDIS_URL=redis://:{redis}@redis:6379/0\n"
        f"PENSTOCK_KEY_PEPPER={secrets.token_urlsafe(32)}\n",
        "postgres.env": f"POSTGRES_USER=penstock\nPOSTGRES_DB=penstock\nPOSTGRES_PASSWORD={postgres}\n",
        "redis.env": f"REDIS_PASSWORD={redis}\n",
        "grafana.env": f"GF_SECURITY_ADMIN_PASSWORD={secrets.token_urlsafe(18)}\n",
    }


def main(folder: Path = FOLDER) -> int:
    """Exit status 1, and nothing written, if one of them is there."""
    drawn = files()
    if present := [name for name in drawn if (folder / name).exists()]:
        print(f"{folder / present[0]} is there already: nothing was written", file=sys.stderr)
        return 1
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in drawn.items():
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        print(folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
