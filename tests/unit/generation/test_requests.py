"""Does each parameter that a job may name reach the engine?"""

from typing import Any

import msgspec

from app.ids import new_id
from app.jobs.store import StartedJob
from app.settings import Settings
from tests.support.jobs import prepared
from workers.engine.protocol import Grammar, SamplingParams
from workers.generation.claimer import request_of

SETTINGS = Settings(_env_file=None)
BODY: dict[str, Any] = {
    "max_tokens": 9,
    "min_tokens": 2,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 7,
    "min_p": 0.1,
    "presence_penalty": 0.2,
    "frequency_penalty": -0.3,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": 1.5},
    "logprobs": 3,
    "seed": 11,
    "ignore_eos": True,
    "stop_repeating": 4,
    "speculate": False,
}


def sampling_of(**body: Any) -> SamplingParams:
    job = prepared(SETTINGS, **body)
    stored = msgspec.json.decode(msgspec.json.encode(job.sampling))  # as Postgres gives it back
    started = StartedJob(
        new_id(), 1, 1, "acme", "standard", "normal", job.request.n, job.prompt_ids, "hash", job.request.canonical(), stored, None, False
    )  # fmt: skip
    return request_of(started).sampling


def test_every_parameter_reaches_the_engine() -> None:
    got = msgspec.structs.asdict(sampling_of(**BODY))
    assert got == BODY | {"logit_bias": {5: 1.5}, "grammar": None}
    assert set(got) == set(SamplingParams.__struct_fields__)


def test_what_a_job_leaves_out_is_the_engines_default() -> None:
    plain = SamplingParams(max_tokens=9)
    assert msgspec.structs.replace(sampling_of(max_tokens=9), seed=0) == plain


def test_a_structure_reaches_the_engine_as_a_grammar() -> None:
    assert sampling_of(structured_outputs={"choice": ["a", "b"]}).grammar == Grammar("choice", '["a","b"]')
    assert sampling_of(response_format={"type": "json_object"}).grammar == Grammar("json_object", "")
