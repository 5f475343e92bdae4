"""How does an operator change a job before it is requeued? In their editor, as JSON, until it is right."""

import asyncio
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from app.cli.errors import CommandFailed
from app.errors import InvalidRequest
from app.jobs.dead.edit import Edit

MAX_TRIES = 10
_HEAD = """# {name}: change what shall be different, save and close. Lines that begin with # don't count.
# deadline_s counts from the requeue. Save an empty file to leave everything as it is.
"""


async def edited(name: str, shown: dict[str, Any], check: Callable[[dict[str, Any]], Awaitable[Edit]]) -> Edit:
    """The job with what the operator changed; the editor opens again, with the reason, while `check` refuses it.

    Raises:
        CommandFailed: there is no editor, it failed, or the file was emptied.
    """
    text = json.dumps(shown, indent=2, ensure_ascii=False)
    complaint = ""
    for _ in range(MAX_TRIES):
        text = await asyncio.to_thread(_in_the_editor, _HEAD.format(name=name) + complaint, text)
        if not text.strip():
            raise CommandFailed("the file was emptied: nothing is requeued")
        try:
            return await check(_changes(text, shown))
        except (ValueError, InvalidRequest) as error:
            reason = error.detail if isinstance(error, InvalidRequest) else f"it isn't JSON: {error}"
            print(f"penstock: {reason}", file=sys.stderr)
            complaint = f"# NOT ACCEPTED: {reason}\n"
    raise CommandFailed(f"not accepted after {MAX_TRIES} tries: nothing is requeued")


def _changes(text: str, shown: dict[str, Any]) -> dict[str, Any]:
    wanted = json.loads(text)
    if not isinstance(wanted, dict):
        raise InvalidRequest("it must be a JSON object")
    return {field: value for field, value in wanted.items() if field not in shown or value != shown[field]}


def _in_the_editor(head: str, text: str) -> str:
    """What is left of the file after the editor, without comments."""
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="penstock-edit-") as folder:
        path = Path(folder) / "job.json"
        path.write_text(f"{head}{text}\n", encoding="utf-8")
        try:
            status = subprocess.run([*shlex.split(command), str(path)], check=False).returncode
        except (OSError, ValueError) as error:
            raise CommandFailed(f"the editor {command!r} can't be run ({error}): set EDITOR") from error
        if status:
            raise CommandFailed(f"the editor {command!r} ended with exit status {status}: nothing is requeued")
        lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))
