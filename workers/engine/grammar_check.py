"""Can a grammar be compiled at all, in a bounded time and memory? Tried in a process of its own, which can be killed.

llguidance stops most of what explodes by its own limits, but not all of it: a schema's `multipleOf` of nine digits keeps
it busy for minutes, and nothing can interrupt it. So each grammar is first compiled, and followed for some tokens, in a
process whose processor time and memory the kernel limits. The engine's process compiles only what came back from there.

`python -m workers.engine.grammar_check` is that process: lines of JSON, a `_Setup`, then a `Grammar` a line, each
answered by a `_Verdict`. It ends with its standard input, or when nobody has asked for a while.
"""

import contextlib
import ctypes
import math
import os
import random
import resource
import select
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import IO

import msgspec
from llguidance import LLMatcher, LLTokenizer

from workers.engine.grammar_source import (
    GrammarInvalid,
    GrammarTooComplex,
    compile_grammar,
    reason_of,
    tokenizer_of,
)
from workers.engine.protocol import Grammar

_ROOT = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1
_IDLE_S = 120.0
_START_TIMEOUT_S = 120.0
_PATIENCE = 40  # a busy machine, whose engine comes first, may take so many times longer than the processor time that a grammar is given
_MEMORY_BYTES = 1 << 30  # beyond what the process has when it is ready
_NUM_STEPS = 16  # tokens that a grammar is followed for
_OVERWHELMED = {-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, 1}  # how Rust and Python run out of memory or stack
_NICENESS = 10  # the forward pass comes first


class CheckFailed(RuntimeError):
    """A check came to no verdict, which says nothing about the grammar."""


class _Setup(msgspec.Struct, frozen=True):
    tokenizer_json: str
    vocab_size: int
    eos_token_ids: list[int]
    limit_s: int


class _Verdict(msgspec.Struct, frozen=True):
    fault: str = ""  # why it can't be used; empty = it can


class GrammarChecker:
    """A process that checks one grammar at a time; started when it is first needed, and again after each that killed it."""

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_ids: list[int], *, limit_s: int) -> None:
        """`limit_s` is processor time for one grammar, in whole seconds."""
        self._setup = _Setup(tokenizer_json, vocab_size, eos_token_ids, limit_s)
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, grammar: Grammar) -> None:
        """Compile a grammar elsewhere. Blocks: call it in a thread, one at a time.

        Raises:
            GrammarInvalid: it doesn't compile.
            GrammarTooComplex: it took all of its time or memory.
            CheckFailed: there is no verdict.
        """
        limit_s = self._setup.limit_s
        for _ in range(2):  # an idle process may just be ending
            process = self._ready_process()
            line = _ask(process, msgspec.json.encode(grammar), limit_s * _PATIENCE)
            if line:
                fault = msgspec.json.decode(line, type=_Verdict).fault
                if fault:
                    raise GrammarInvalid(fault)
                return
            _end(process)
            if process.returncode != 0:
                break
        if process.returncode == -signal.SIGXCPU:
            raise GrammarTooComplex(f"it takes more than {limit_s} s to compile; make it simpler")
        if process.returncode in _OVERWHELMED:
            raise GrammarTooComplex(
                f"it takes more than {_MEMORY_BYTES >> 20} MiB or too deep a stack; make it simpler"
            )
        raise CheckFailed(f"the process that checks grammars ended with exit status {process.returncode}")

    def _ready_process(self) -> "subprocess.Popen[bytes]":
        process = self._process
        if process is not None and process.poll() is None:
            return process
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workers.engine.grammar_check"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a panic's trace could quote the grammar
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))},
        )
        self._process = process
        weakref.finalize(self, _end, process)
        if not _ask(process, msgspec.json.encode(self._setup), _START_TIMEOUT_S):
            _end(process)
            raise CheckFailed("the process that checks grammars doesn't start")
        return process


def _ask(process: "subprocess.Popen[bytes]", line: bytes, timeout_s: float) -> bytes:
    """The line that answers, or nothing if the process ended; it is killed when the time is over."""
    assert process.stdin is not None
    assert process.stdout is not None
    timer = threading.Timer(timeout_s, process.kill)
    timer.daemon = True
    timer.start()
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            return process.stdout.readline()
        return b""
    finally:
        timer.cancel()


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.0 if process.poll() is not None else 0.2)  # one that closed its pipes may still be dying
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()


def main() -> int:
    """The process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # Of the thread that started it, which lives as long as the engine. An end of standard input is seen only between two grammars.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, target = sys.stdin.buffer, sys.stdout.buffer
    setup = msgspec.json.decode(source.readline(), type=_Setup)
    tokenizer = tokenizer_of(setup.tokenizer_json, setup.vocab_size, setup.eos_token_ids)
    _limit_memory()
    _answer(target, _Verdict())
    while select.select([source], [], [], _IDLE_S)[0] and (line := source.readline()):
        usage = resource.getrusage(resource.RUSAGE_SELF)
        used_s = usage.ru_utime + usage.ru_stime
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used_s) + setup.limit_s, most))
        try:
            _follow(compile_grammar(tokenizer, msgspec.json.decode(line, type=Grammar)), tokenizer)
            verdict = _Verdict()
        except GrammarInvalid as error:
            verdict = _Verdict(str(error))
        _answer(target, verdict)
    return 0


def _limit_memory() -> None:
    status = Path("/proc/self/statm")
    if status.is_file():  # elsewhere llguidance's own limits must do
        used = int(status.read_text().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, most))


def _follow(matcher: LLMatcher, tokenizer: LLTokenizer) -> None:
    """Go some tokens along the grammar: much of what it costs comes up only then. Raises GrammarInvalid if there is no first one."""
    draw = random.Random(0)  # noqa: S311
    for step in range(_NUM_STEPS):
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            if step == 0:
                raise GrammarInvalid(reason_of(matcher))
            return  # a limit that this path has run into; others need not
        allowed = int.from_bytes(mask, "little")
        for eos_token in tokenizer.eos_tokens:
            allowed &= ~(1 << eos_token)
        if allowed == 0:
            return
        start = draw.randrange(allowed.bit_length())
        rest = allowed >> start
        token = start + ((rest & -rest).bit_length() - 1)
        if not matcher.consume_token(token):
            return


def _answer(target: IO[bytes], verdict: _Verdict) -> None:
    target.write(msgspec.json.encode(verdict) + b"\n")
    target.flush()


if __name__ == "__main__":
    sys.exit(main())
