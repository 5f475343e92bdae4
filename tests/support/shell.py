"""How is a page run, and what does it print? Its snippets are one session of a shell, against a real stack."""

import os
import re
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "@@@ line"
FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
# What differs from run to run: how often was looked, how tokens were gathered, times, keys, ids, figures, and how far columns stand apart.
VARYING = (
    (re.compile(r"^(job_[0-9a-f]{32} (running|queued)[^\n]*\n)+", re.MULTILINE), ""),
    (re.compile(r"(id: \d+\nevent: tokens\ndata: [^\n]*\n\n)+"), "TOKENS\n\n"),
    (re.compile(r"^date: .*", re.MULTILINE), "date"),
    (re.compile(r"\"((?:start|finish)_p\d\d)\":(?:null|\"[^\"]*\")"), r"\1"),
    (re.compile(r"\d+ [hm] \d+ [ms]\b"), "# s"),
    (re.compile(r"pk_[0-9a-f]{12}_[\w-]*…?"), "KEY"),
    (re.compile(r"\b(job|wd|we|evt)_[0-9a-f]{32}"), r"\1_ID"),
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b[0-9a-f]{32}\b|\b[0-9a-f]{16}\b"), "ID"),
    (re.compile(r"\d[\d.,:]*"), "#"),
    (re.compile(r"[ \t]+"), " "),
)


@dataclass(frozen=True)
class Block:
    """A snippet of a page, or what the one before it must print."""

    line: int
    language: str
    marks: frozenset[str]
    code: str

    @property
    def runs(self) -> bool:
        return "run" in self.marks

    @property
    def needs(self) -> set[str]:
        return {mark.removeprefix("needs:") for mark in self.marks if mark.startswith("needs:")}

    @property
    def script(self) -> str:
        """What a shell does with it."""
        (name,) = [mark.removeprefix("file=") for mark in self.marks if mark.startswith("file=")] or [None]
        if self.language == "bash":
            return self.code
        assert self.language == "python"
        to = "python -" if name is None else f"cat > {name}"
        return f"{to} <<'END_OF_SNIPPET'\n{self.code}END_OF_SNIPPET\n"


@dataclass(frozen=True)
class Command:
    """A line of a transcript, and what the page says that it printed."""

    block: Block
    wanted: str


def blocks_of(text: str) -> list[Block]:
    found = []
    for each in FENCE.finditer(text):
        language, *marks = each["info"].split() or [""]
        found.append(Block(text[: each.start()].count("\n") + 1, language, frozenset(marks), each["code"]))
    return found


def commands_of(block: Block) -> list[Command]:
    """The commands of a `console` fence, each behind `$ `, with what stands below."""
    found: list[Command] = []
    for number, line in enumerate(block.code.splitlines(), block.line + 1):
        if line.startswith("$ "):
            code = f"{{ {line[2:]}\n}} 2>&1 || true\n"  # a shell goes on; what it printed is looked at
            found.append(Command(Block(number, "bash", block.marks, code), ""))
        else:
            last = found[-1]
            found[-1] = Command(last.block, f"{last.wanted}{line}\n")
    return found


def run_session(
    blocks: list[Block], folder: Path, environment: dict[str, str], timeout_s: float = 150.0
) -> tuple[int, dict[int, str]]:
    """The shell's exit status, and what each snippet printed, by its line; `errors.txt` has standard error. It stops at the first that fails."""
    parts = ["set -euo pipefail", "exec 2> ../errors.txt", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    parts += [f"echo '{MARK} {block.line}'\n{block.script}" for block in blocks]
    (folder / "session.sh").write_text("\n".join(parts), encoding="utf-8")
    work = folder / "work"
    work.mkdir(exist_ok=True)
    shell = subprocess.Popen(
        ["bash", folder / "session.sh"], cwd=work, env=environment, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, start_new_session=True, errors="replace",
    )  # fmt: skip
    try:
        out, _ = shell.communicate(timeout=timeout_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    printed = {}
    for part in out.split(f"{MARK} ")[1:]:
        line, _, said = part.partition("\n")
        printed[int(line)] = said
    return shell.returncode, printed


def fits(printed: str, wanted: str) -> bool:
    """Whether it is what the page says, `…` standing for anything."""
    pattern = re.escape(wanted.rstrip("\n")).replace("…", ".*")
    return re.fullmatch(pattern, printed.rstrip("\n"), re.DOTALL) is not None


def fits_but_for_figures(printed: str, wanted: str) -> bool:
    """Whether it is what the page says, but for what differs from run to run."""
    return fits(_without_figures(printed), _without_figures(wanted))


def _without_figures(text: str) -> str:
    for pattern, name in VARYING:
        text = pattern.sub(name, text)
    # A list has blanks in a terminal, as on the page, and tabs in a pipe.
    return "\n".join(re.sub(r"\t| {2,}", "  ", line.rstrip()) for line in text.strip().splitlines())
