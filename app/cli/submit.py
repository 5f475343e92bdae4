"""`penstock submit`: prompts in, texts out. Standard output has results only; progress and errors go to standard error."""

import asyncio
import json
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app.cli.errors import CommandFailed, one_line
from app.cli.http import Api, Target, describe_error, tokens_of
from app.client import ENDED, MAX_WAIT_S, Job, PenstockError, texts
from app.ids import new_id
from app.jobs.refusals import refusal
from app.jobs.request import JobRequest

CONCURRENCY = 16
_MOST_NAMED = 20  # jobs that go on after Ctrl-C
PAUSE_S = 0.5


@dataclass(slots=True)
class Submission:
    """One job to hand in, where it was read, and what became of it."""

    place: str  # "" for the only prompt, else "file:line"
    body: dict[str, Any]
    key: str = field(default_factory=lambda: new_id().hex)
    job: Job | None = None
    error: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is to be waited for."""
        return self.error is not None or (self.job is not None and self.job.get("status") in ENDED)

    @property
    def succeeded(self) -> bool:
        """Whether there is a result."""
        return self.error is None and self.job is not None and self.job.get("status") == "succeeded"


def from_prompt(prompt: str, options: dict[str, Any], *, chat: bool = False) -> list[Submission]:
    """One job; `-` reads the prompt from standard input. With `chat` it is asked rather than continued.

    Raises:
        CommandFailed: the prompt or an option isn't valid.
    """
    if prompt == "-":
        prompt = sys.stdin.read().rstrip("\n")
    return _checked([Submission("", options | _asked(prompt, chat))])


def from_prompts(path: Path, options: dict[str, Any], *, chat: bool = False) -> list[Submission]:
    """A job for each line that isn't blank.

    Raises:
        CommandFailed: the file can't be read, or lines aren't valid: all of them are named.
    """
    return _checked([Submission(place, options | _asked(line, chat)) for place, line in _lines(path)])


def from_jsonl(path: Path, options: dict[str, Any]) -> list[Submission]:
    """A job for each line that isn't blank: an object as the body of POST /v1/jobs; `options` are defaults.

    Raises:
        CommandFailed: the file can't be read, or lines aren't valid: all of them are named.
    """
    found, wrong = [], []
    for place, line in _lines(path):
        try:
            body = json.loads(line)
        except ValueError as error:
            wrong.append(f"{place}: not JSON: {error}")
            continue
        if isinstance(body, dict):
            found.append(Submission(place, options | body))
        else:
            wrong.append(f'{place}: must be a JSON object, such as {{"prompt": "Once upon a time"}}')
    return _checked(found, wrong)


def structured(
    json_schema: Path | None, regex: str | None, choice: list[str] | None, grammar: Path | None
) -> dict[str, Any] | None:
    """What the options say about the output's form, as the API takes it.

    Raises:
        CommandFailed: a file can't be read, or isn't JSON.
    """
    schema = None
    if json_schema is not None:
        try:
            schema = json.loads(_text_of(json_schema))
        except ValueError as error:
            raise CommandFailed(f"{json_schema}: not JSON: {error}") from error
    given = {
        "json": schema,
        "regex": regex,
        "choice": choice or None,
        "grammar": None if grammar is None else _text_of(grammar),
    }
    return {name: value for name, value in given.items() if value is not None} or None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{path}: {error}") from error


def submit(target: Target, submissions: list[Submission], *, wait: bool, as_json: bool) -> bool:
    """Hand all in, wait for their ends if `wait`, print what came of them in their order; return whether all went well."""
    return asyncio.run(_submit(target, submissions, wait=wait, as_json=as_json))


async def _submit(target: Target, submissions: list[Submission], *, wait: bool, as_json: bool) -> bool:
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[tokens]} tokens"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal or len(submissions) == 1,
        transient=True,
        # Results must reach standard output as they are, be it a file or a pipe; in a terminal the bar steps aside for them.
        redirect_stdout=sys.stdout.isatty(),
    )
    printer = _Printer(submissions, wait=wait, as_json=as_json)
    with progress:
        bar = progress.add_task("jobs" if wait else "handed in", total=len(submissions), tokens=0)

        def moved(done: int) -> None:
            progress.update(bar, completed=done, tokens=sum(tokens_of(each.job or {}) for each in submissions))
            printer.print_what_is_ready()

        try:
            async with Api(target, connections=2 * CONCURRENCY) as api:
                await _Runner(api, submissions, wait=wait, moved=moved).run()
        except asyncio.CancelledError:  # Ctrl-C
            _tell_what_goes_on([each.job["id"] for each in submissions if each.job and not each.has_ended])
            raise
    return all(each.error is None and (each.succeeded or not wait) for each in submissions)


def _tell_what_goes_on(names: list[str]) -> None:
    """That these jobs were handed in, and how to end them."""
    if names:
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        verb = "goes" if len(names) == 1 else "go"
        told = f"{' '.join(names[:_MOST_NAMED])}{more} {verb} on: `penstock jobs cancel ID...` ends what isn't wanted any more"
        print(f"penstock: {told}", file=sys.stderr, flush=True)


class _Runner:
    """Hands in and waits side by side, each with a bounded number of requests: who waits doesn't keep others from the queue."""

    def __init__(self, api: Api, submissions: list[Submission], *, wait: bool, moved: Any) -> None:
        self._api = api
        self._submissions = submissions
        self._wait = wait
        self._moved = moved
        self._to_hand_in = deque(submissions)
        self._to_wait_for: asyncio.Queue[Submission] = asyncio.Queue()
        self._done = 0

    async def run(self) -> None:
        """Until all are handed in, and have ended if they shall be waited for.

        Raises:
            OSError: results can't be printed, such as to a pipe that nobody reads any more. Jobs that were handed in run on.
        """
        width = min(CONCURRENCY, len(self._submissions))
        try:
            # One group: where a result can't be printed, none of its tasks waits for the others.
            async with asyncio.TaskGroup() as group:
                waiters = [group.create_task(self._wait_for_ends()) for _ in range(width)]
                await asyncio.gather(*[group.create_task(self._hand_in()) for _ in range(width)])
                # A waiter that is done with a job says so: task_done comes when it ended, not when it was looked at.
                await self._to_wait_for.join()
                for waiter in waiters:
                    waiter.cancel()
        except ExceptionGroup as several:
            raise several.exceptions[0] from None

    async def _hand_in(self) -> None:
        while self._to_hand_in:
            each = self._to_hand_in.popleft()
            try:
                each.job = await self._api.submit(idempotency_key=each.key, **each.body)
            except PenstockError as error:
                each.error = one_line(error)
            if self._wait and not each.has_ended:
                self._to_wait_for.put_nowait(each)
            else:
                self._count()

    async def _wait_for_ends(self) -> None:
        """Always the job that was looked at longest ago; the API answers as soon as it ends."""
        while True:
            each = await self._to_wait_for.get()
            assert each.job is not None
            asked_at = monotonic()
            try:
                each.job = await self._api.get(each.job, wait_s=MAX_WAIT_S)
            except PenstockError as error:
                each.error = f"{each.job['id']}: {one_line(error)}"
            if each.has_ended:
                self._count()
            else:
                # An API with too many who wait answers at once.
                await asyncio.sleep(max(0.0, PAUSE_S - (monotonic() - asked_at)))
                self._to_wait_for.put_nowait(each)
            self._to_wait_for.task_done()

    def _count(self) -> None:
        self._done += 1
        self._moved(self._done)


_ADVICE = " (a prompt is continued; --chat asks it as a question)"


class _Printer:
    """Prints results in the order of the input, each as soon as all before it are there."""

    def __init__(self, submissions: list[Submission], *, wait: bool, as_json: bool) -> None:
        self._submissions = submissions
        self._wait = wait
        self._as_json = as_json
        self._next = 0

    def print_what_is_ready(self) -> None:
        """All that can be printed now."""
        while self._next < len(self._submissions):
            each = self._submissions[self._next]
            if not (each.has_ended or (each.job is not None and not self._wait)):
                return
            self._next += 1
            self._print(each)

    def _print(self, each: Submission) -> None:
        where = f"{each.place}: " if each.place else ""
        if each.error is not None:
            print(f"penstock: {where}{each.error}", file=sys.stderr, flush=True)
            return
        job = each.job
        assert job is not None
        if self._as_json:
            print(json.dumps(job, ensure_ascii=False), flush=True)
        elif not self._wait:
            print(job["id"], flush=True)
        elif each.succeeded:
            self._print_texts(each, job)
        if self._wait and not each.succeeded:
            print(f"penstock: {where}{job['id']} {describe_error(job)}", file=sys.stderr, flush=True)

    def _print_texts(self, each: Submission, job: Job) -> None:
        written = texts(job)
        for number, text in enumerate(written, start=1):
            if len(self._submissions) > 1 or len(written) > 1:
                choice = f", choice {number}" if len(written) > 1 else ""
                print(f"--- {each.place or job['id']}{choice}")
            print(text, flush=True)
            if not text:
                print(
                    f"penstock: {job['id']}: the model ended at once, without text{_ADVICE}",
                    file=sys.stderr,
                    flush=True,
                )


def _asked(prompt: str, chat: bool) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, line) for each line that isn't blank; places are counted from 1."""
    name = "stdin" if str(path) == "-" else str(path)
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise CommandFailed(f"{name}:{line}: not UTF-8") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{name}:{number}", line.rstrip("\r")


def _checked(submissions: list[Submission], wrong: list[str] | None = None) -> list[Submission]:
    """All of them, or an error that names each wrong line: then nothing was handed in, and the file can be mended."""
    wrong = wrong or []
    for each in submissions:
        try:
            JobRequest.model_validate(each.body)
        except ValidationError as error:
            wrong += [f"{each.place}: {reason}".removeprefix(": ") for reason in _reasons(error)]
    if wrong:
        wrong.sort(key=_line_number)
        also = "" if len(wrong) == 1 else f"\nnothing was handed in: {len(wrong)} things to mend"
        raise CommandFailed("\n".join(wrong) + also)
    if not submissions:
        raise CommandFailed("there is no prompt in it")
    return submissions


def _reasons(error: ValidationError) -> list[str]:
    rules = refusal(error).extra["errors"]
    return [f"{each['field']}: {each['message']}".removeprefix("body: ") for each in rules]


def _line_number(reason: str) -> int:
    parts = reason.split(":", 2)
    return int(parts[1]) if len(parts) > 2 and parts[1].isdigit() else 0
