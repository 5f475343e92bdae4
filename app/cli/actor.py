"""Who acts on the command line? The account that runs it, for the log of operators' acts."""

import getpass


def actor() -> str:
    """`cli:` and the account's name."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return "cli"
