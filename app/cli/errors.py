"""What does an error look like to a person? One line on standard error, and what to do about it."""

import re
import sys
from typing import Any, NoReturn
from urllib.parse import urlsplit

from app.errors import PenstockError

_PASSWORD = re.compile(r"([?&]password=)[^&#]*")  # the other place where drivers take one from


class CommandFailed(PenstockError):
    """A command can't do what it was asked for; the message says why and what to do."""

    code = "command_failed"
    retryable = False


def fail(error: BaseException) -> NoReturn:
    """End the process with exit status 1 and one line, or with the error itself where nobody expected it."""
    line = one_line(error)
    if line is None:
        raise error
    print(f"penstock: {line}", file=sys.stderr)
    raise SystemExit(1)


def fail_usage(error: Any) -> NoReturn:
    """End the process as typer does where it was called wrongly, in one line; where nothing was said, with the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "penstock"
        message = error.format_message().rstrip(".").replace("\n", " ").replace("Value error, ", "")
        print(f"{command}: {message[:1].lower() + message[1:]}; `{command} --help` shows how", file=sys.stderr)
    raise SystemExit(error.exit_code)


def one_line(error: BaseException) -> str | None:
    """The error in words; None where it is none that we know: then it is a bug, and its traceback is wanted."""
    if isinstance(error, PenstockError):
        return error.detail
    if type(error).__module__ == "app.client":
        return _api_error(error)
    package = type(error).__module__.partition(".")[0]
    if package.startswith("pydantic"):
        return _settings_error(error)
    if package == "sqlalchemy":
        return _database_error(error)
    if package == "redis":
        return f"Redis doesn't do it: {_first_line(error)}; check REDIS_URL, `penstock doctor` says more"
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    return None


def _api_error(error: BaseException) -> str:
    """What the API said, with the code to look up."""
    from app.client import NoAnswer, Refused

    if isinstance(error, NoAnswer):
        return f"{error}: is `penstock up` running?"
    return f"{error} ({error.code})" if isinstance(error, Refused) else str(error)


def _settings_error(error: Any) -> str | None:
    """Each wrong setting by the variable that sets it, with its bound and what it was."""
    if getattr(error, "title", None) != "Settings":
        return None
    wrong = []
    for each in error.errors():
        message = each["msg"].removeprefix("Value error, ")
        if not message.startswith("PENSTOCK_"):
            message = message[:1].lower() + message[1:]
        if not each["loc"]:  # how several of them fit together; its input would be all settings, with their secrets
            wrong.append(message)
            continue
        name = str(each["loc"][0])
        variable = name if name.isupper() else f"PENSTOCK_{name.upper()}"
        secret = any(word in name.lower() for word in ("pepper", "url", "key", "secret"))
        wrong.append(f"{variable}: {message}" + ("" if secret else f" (it is {each['input']!r})"))
    return "; ".join(wrong)


def _database_error(error: BaseException) -> str | None:
    original = getattr(error, "orig", None)
    if original is None:
        return f"Postgres: {_first_line(error)}"
    name = type(original).__name__
    if name == "UndefinedTable":
        return "the database has no tables yet: run `penstock migrate`"
    if name in {"OperationalError", "ConnectionTimeout"}:
        return f"Postgres doesn't answer: {_first_line(original)}; check DATABASE_URL, `penstock doctor` says more"
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def without_password(url: str) -> str:
    """`url` as it may be shown."""
    url = _PASSWORD.sub(r"\1***", url)
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username or ''}:***@{host}").geturl()
