"""Where does a step's time go? An engine that writes a torch profile of some of its steps, once it is warm."""

import os
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from workers.engine.config import EngineConfig
from workers.engine.errors import EngineConfigError
from workers.engine.flight import Recorder
from workers.engine.protocol import Engine, EngineInfo, EngineStats, Request, StepOutput


class ProfiledEngine:
    """The `Engine` protocol over another engine; after the profile nothing but a comparison a step is left of it.

    The file is a Chrome trace (chrome://tracing, https://ui.perfetto.dev): operators with the shapes of what they worked on, no tokens.
    """

    def __init__(self, engine: Engine, config: EngineConfig) -> None:
        """Steps are counted that bring anything: `profile_after_steps` of them pass, then `profile_steps` are recorded.

        Raises:
            EngineConfigError: the folder can't be written to.
        """
        self._engine = engine
        self._folder = Path(config.profile_dir)
        self._first = config.profile_after_steps
        self._last = config.profile_after_steps + config.profile_steps
        self._num_steps = 0
        self._profile: Any = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineConfigError(f"profile_dir: {self._folder} can't be made: {error.strerror}") from error
        if not os.access(self._folder, os.W_OK):
            raise EngineConfigError(f"profile_dir: {self._folder} can't be written to")

    @property
    def recorder(self) -> Recorder:
        """Of the engine beneath."""
        return self._engine.recorder

    @recorder.setter
    def recorder(self, recorder: Recorder) -> None:
        self._engine.recorder = recorder

    @property
    def info(self) -> EngineInfo:
        """Of the engine beneath."""
        return self._engine.info

    def add(self, request: Request) -> None:
        """As the engine beneath."""
        self._engine.add(request)

    def abort(self, request_id: str, choice: int | None = None) -> None:
        """As the engine beneath."""
        self._engine.abort(request_id, choice)

    def has_work(self) -> bool:
        """As the engine beneath."""
        return self._engine.has_work()

    def stats(self) -> EngineStats:
        """As the engine beneath."""
        return self._engine.stats()

    def step(self) -> StepOutput:
        """As the engine beneath; `profile` names the file with the step that completes it."""
        if self._num_steps > self._last:
            return self._engine.step()
        if self._num_steps == self._first and self._profile is None:
            self._profile = _start()
        if self._profile is None:
            output = self._engine.step()
        else:
            with record_function(f"engine step {self._num_steps - self._first}"):
                output = self._engine.step()
        self._num_steps += bool(output.deltas)
        if self._num_steps < self._last:
            return output
        return msgspec.structs.replace(output, profile=self._write())

    def close(self) -> None:
        """Write what there is, if it isn't written yet, and close the engine beneath."""
        if self._profile is not None:
            self._write()
        self._engine.close()

    def _write(self) -> str:
        path = self._folder / f"penstock-{os.getpid()}-{self._num_steps - self._first}-steps.trace.json.gz"
        self._profile.stop()
        self._profile.export_chrome_trace(str(path))
        self._profile = None
        self._num_steps = self._last + 1
        return str(path)


def _start() -> Any:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    found = profile(activities=activities, record_shapes=True)
    found.start()
    return found
