"""`penstock up`: the whole stack in the foreground, until Ctrl-C drains it."""

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine
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
    console = Console()
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

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, take, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


def example_call(access: Access) -> str:
    """A curl line to paste."""
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 80})
    return (
        f"curl -s {access.url}/v1/jobs -H 'Authorization: Bearer {access.api_key}' "
        f"-H 'Content-Type: application/json' -H 'Prefer: wait=30' -d '{body}'"
    )


def _welcome(console: Console, stack: Stack, access: Access, seconds: float) -> None:
    _say(console, f"\nPenstock is up after {seconds:.1f} s.\n")
    for name, value in {
        "API": f"{access.url}/v1",
        "Docs": f"{access.url}/docs",
        "Model": stack.model_name,
        "Key": access.api_key,
        "Data": f"{stack.folder.path} (logs in {stack.folder.logs.name}/)",
    }.items():
        _say(console, f"  {name:<6} {value}")
    _say(console, f"\nTry it:\n\n{example_call(access)}\n")
    _say(console, "or: penstock submit 'Tell me a story about a fox.'\n\nCtrl-C drains and stops.")


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)
