"""`penstock up`: the whole stack in the foreground, until Ctrl-C drains it."""

import asyncio
import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

from app.cli.board import Board
from app.cli.stack import Access, Stack
from app.settings import Settings


def up(settings: Settings, *, num_workers: int) -> None:
    """Run until SIGINT or SIGTERM.

    Raises:
        PenstockError: it can't start, or a part doesn't stay up.
    """
    asyncio.run(_up(settings, num_workers))


async def _up(settings: Settings, num_workers: int) -> None:
    console = SteadyConsole()
    board = Board(console, "Penstock starts")
    stack = Stack(settings, board.show, num_workers=num_workers)
    began = monotonic()
    stack.prepare()

    async def live() -> None:
        with board:
            access = await stack.start()
        _welcome(console, stack, access, monotonic() - began)
        await stack.watch()

    was_stopped = False
    try:
        was_stopped = await until_signal(live(), stack)
    finally:
        if was_stopped:
            _say(console, "\nDraining: running jobs may end. Ctrl-C again gives them back and stops at once.")
        await stack.stop()
    _say(console, "Stopped.")


async def until_signal(body: Coroutine[Any, Any, None], stack: Stack) -> bool:
    """Run `body` until it ends, or until SIGINT or SIGTERM cancels it; return whether it was cancelled.

    A second signal hurries the stack's stop, which comes after this.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(body)

    def take(act: Callable[[], object]) -> None:
        if task.done() or task.cancelling():
            stack.hurry()
        else:
            act()

    # A closed terminal (SIGHUP) is no reason to drop running jobs.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, take, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


class SteadyConsole(Console):
    """One that outlives its reader: `up | tee log` gets its Ctrl-C together with tee, and must drain all the same."""

    def on_broken_pipe(self) -> None:
        """Go on in silence."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def example_call(access: Access, *, can_chat: bool) -> str:
    """A curl line to paste; the seed makes its answer the same each time."""
    question = {"messages": [{"role": "user", "content": "Tell me a story about a fox."}]}
    body = json.dumps((question if can_chat else {"prompt": "Once upon a time"}) | {"max_tokens": 120, "seed": 7})
    return (
        f"curl -s {access.url}/v1/jobs -H 'Authorization: Bearer {access.api_key}' "
        f"-H 'Content-Type: application/json' -H 'Prefer: wait=30' -d '{body}'"
    )


def _welcome(console: Console, stack: Stack, access: Access, seconds: float) -> None:
    _say(console, f"\nPenstock is up after {seconds:.1f} s.\n")
    for name, value in {
        "API": f"{access.url}/v1",
        "Docs": f"{access.url}/docs",
        "Admin": access.dashboard_url,
        "Model": stack.model_name,
        "Key": access.api_key,
        "Data": f"{stack.folder.path} (logs in {stack.folder.logs.name}/)",
    }.items():
        _say(console, f"  {name:<6} {value}")
        if name == "Admin" and "/link/" in access.dashboard_url:
            _say(console, "         (a link for the owner, to choose a password: it works once, for 15 minutes)")
    is_bundled = stack.settings.model is None  # another model may have no chat template
    _say(console, f"\nTry it:\n\n{example_call(access, can_chat=is_bundled)}\n")
    options = " --chat" if is_bundled else ""
    if stack.settings.data_dir != type(stack.settings).model_fields["data_dir"].default:
        options += f" --data-dir {shlex.quote(str(stack.settings.data_dir))}"
    _say(console, f"or: {called_as()} submit{options} 'Tell me a story about a fox.'\n\nCtrl-C drains and stops.")


def called_as() -> str:
    """How to call this command again from here: by its name where it is on the PATH, else by its path."""
    mine = Path(sys.argv[0])
    found = shutil.which("penstock")
    if mine.name != "penstock" or (found and Path(found).resolve() == mine.resolve()):
        return "penstock"
    near = os.path.relpath(mine)
    return shlex.quote(near if len(near) < len(str(mine)) else str(mine))


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)
