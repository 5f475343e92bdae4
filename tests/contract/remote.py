"""An engine in another interpreter, with the protocol's face: what the worker's loop does, for a test that isn't async."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from workers.engine.config import EngineConfig
from workers.engine.process import EngineProcess
from workers.engine.protocol import EngineInfo, EngineStats, Request, StepOutput


class ChildEngine:
    """`EngineProcess` behind the `Engine` protocol. What is unfinished is counted here, as the worker counts its hand."""

    def __init__(self, process: EngineProcess, loop: asyncio.AbstractEventLoop) -> None:
        self.process = process
        self._loop = loop
        self._outputs: Queue[StepOutput | BaseException] = Queue()
        self._open: dict[str, set[int]] = {}
        self._stats = EngineStats()
        asyncio.run_coroutine_threadsafe(self._read(), loop)

    @classmethod
    @contextmanager
    def running(cls, config: EngineConfig, python: Path, log: Path) -> Iterator["ChildEngine"]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()

        def run(work: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(work, loop).result()

        process = run(EngineProcess.start(config, log, timeout_s=900, python=python))
        try:
            yield cls(process, loop)
        finally:
            returncode = run(process.stop())
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
            assert returncode == 0

    @property
    def info(self) -> EngineInfo:
        return self.process.info

    def add(self, request: Request) -> None:
        self._open[request.id] = set(range(max(1, request.n)))
        self._run(self.process.add(request))

    def abort(self, request_id: str, choice: int | None = None) -> None:
        left = self._open.get(request_id, set())
        left -= left.copy() if choice is None else {choice}
        if not left:
            self._open.pop(request_id, None)
        self._run(self.process.abort(request_id, choice))

    def has_work(self) -> bool:
        return bool(self._open)

    def step(self) -> StepOutput:
        try:
            output = self._outputs.get(timeout=120)
        except Empty:
            raise AssertionError("no step for two minutes") from None
        if isinstance(output, BaseException):
            raise output
        self._stats = output.stats
        for failed in output.failed:
            self._open.pop(failed.request_id, None)
        for delta in output.deltas:
            left = self._open.get(delta.request_id, set())
            if delta.finish_reason is not None:
                left.discard(delta.choice)
                if not left:
                    self._open.pop(delta.request_id, None)
        return output

    def stats(self) -> EngineStats:
        return self._stats

    def close(self) -> None: ...

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _read(self) -> None:
        try:
            async for output in self.process:
                self._outputs.put(output)
        except BaseException as error:
            self._outputs.put(error)
            raise
