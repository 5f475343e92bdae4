"""A job whose worker dies after any of its tokens ends as if nothing had happened: text, tokens, ends, logprobs."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from tokenizers import Tokenizer

from app.ids import new_id
from app.jobs.store import StartedJob
from app.queue.checkpoints import assemble
from app.queue.events import EventPlace, JobEvent, StoredEvent
from workers.engine.config import EngineConfig
from workers.engine.load import LoadedEngine, load_engine
from workers.generation.claimer import add, request_of
from workers.generation.hand import RunningJob
from workers.models import BROOK

_SCHEMA = '{"type":"object","properties":{"name":{"type":"string","maxLength":12},"age":{"type":"integer"}},"required":["name","age"]}'
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.9, "top_p": 0.95, "seed": 5, "frequency_penalty": 0.3, "repetition_penalty": 1.1},
    "two choices": {"temperature": 0.8, "seed": 7, "n": 2, "logprobs": 2},
    "stop string": {"temperature": 0.7, "seed": 1, "stop": [" and", "er the", ". "]},
    "JSON schema": {"temperature": 0.8, "seed": 3, "grammar": {"kind": "json_schema", "text": _SCHEMA}},
}
_SUBJECTS = ("fox", "mill", "river", "heron", "old bridge", "winter", "baker", "lantern", "kite", "garden")
_TASKS = (
    "Write a short story about the {}.",
    "Tell me about the {}.",
    "Write a poem about the {}.",
    "Say hello to the {}.",
    "List three things near the {}.",
)
PROMPTS = [task.format(subject) for task in _TASKS for subject in _SUBJECTS]
FEW = PROMPTS[::17]


@pytest.fixture(scope="module")
def brook() -> LoadedEngine:
    return load_engine(EngineConfig(model=str(BROOK), threads=1, max_num_seqs=64, kv_cache_bytes=1 << 28))


def started_job(brook: LoadedEngine, prompt: str, mode: dict[str, Any], attempt: int = 1) -> StartedJob:
    tokenizer = Tokenizer.from_str(brook.tokenizer.tokenizer_json)
    ids = tokenizer.encode(f"<|user|>{prompt}<|end|><|assistant|>").ids
    sampling: dict[str, Any] = {"max_tokens": 40} | {key: value for key, value in mode.items() if key != "n"}
    request = {"messages": [{"role": "user", "content": prompt}]}
    return StartedJob(
        new_id(),
        attempt,
        attempt,
        "acme",
        "standard",
        "normal",
        mode.get("n", 1),
        ids,
        "hash",
        request,
        sampling,
        None,
        False,
    )


class Hand:
    """Jobs in an engine of this process, by the worker's own functions."""

    def __init__(self, brook: LoadedEngine) -> None:
        self._engine = brook.engine
        self.tokenizer = Tokenizer.from_str(brook.tokenizer.tokenizer_json)
        self.jobs: dict[str, RunningJob] = {}
        self.events: dict[str, list[StoredEvent]] = {}
        self.engine = SimpleNamespace(add=self._add, abort=self._abort)

    async def _add(self, request: Any) -> None:
        self._engine.add(request)

    async def _abort(self, request_id: str, choice: int | None = None) -> None:
        self._engine.abort(request_id, choice)

    async def take(self, job: RunningJob) -> None:
        self.jobs[job.request_id] = job
        self.events[job.request_id] = []
        if not job.is_complete:
            await add(cast("Any", self), job, request_of(job.started))

    def run(self) -> None:
        while self._engine.has_work():
            output = self._engine.step()
            assert not output.failed, output.failed
            for delta in output.deltas:
                job = self.jobs[delta.request_id]
                if job.take(delta):
                    self._engine.abort(delta.request_id, delta.choice)
                event = JobEvent(kind="tokens", attempt=1, deltas=job.take_unpublished())
                place = EventPlace(1, job.num_generated, 1, 2)
                stored = msgspec.json.decode(msgspec.json.encode(event), type=JobEvent)
                self.events[delta.request_id].append(StoredEvent(place, stored))


async def died_everywhere(brook: LoadedEngine, prompts: list[str], mode: dict[str, Any]) -> int:
    """Run undisturbed, then once from after each event; compare. Returns the number of deaths."""
    whole = Hand(brook)
    for prompt in prompts:
        await whole.take(RunningJob(started_job(brook, prompt, mode), whole.tokenizer, 0.0))
    whole.run()
    first = StoredEvent(EventPlace(1, 0, 1, 1), JobEvent(kind="started", attempt=1, made_by="us"))
    again = Hand(brook)
    expected: dict[str, Any] = {}
    for name, job in whole.jobs.items():
        assert job.is_complete
        for num_events in range(1, len(whole.events[name]) + 1):
            checkpoint = assemble([first, *whole.events[name][:num_events]], job.started.n)
            assert checkpoint is not None
            # The second attempt, of another job each, so that all can run at once.
            second = RunningJob(replace(job.started, job_id=new_id(), attempt=2, gen=2), again.tokenizer, 0.0)
            second.resume(checkpoint)
            await again.take(second)
            expected[second.request_id] = job
    again.run()
    for name, job in again.jobs.items():
        first_job = expected[name]
        assert job.is_complete
        assert _shown(job, again) == _shown(first_job, whole)
        assert [choice.token_ids for choice in job.choices] == [choice.token_ids for choice in first_job.choices]
        assert job.used().completion_tokens == first_job.used().completion_tokens
    return len(expected)


def _shown(job: RunningJob, hand: Hand) -> list[dict[str, Any]]:
    return [choice.result(hand.tokenizer) for choice in job.choices]


@pytest.mark.parametrize("mode", MODES)
async def test_killed_after_every_token(brook: LoadedEngine, mode: str) -> None:
    assert await died_everywhere(brook, FEW, MODES[mode]) > 20


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
async def test_killed_after_every_token_of_50_prompts(brook: LoadedEngine, mode: str) -> None:
    assert len(PROMPTS) == 50
    assert await died_everywhere(brook, PROMPTS, MODES[mode]) > 500
