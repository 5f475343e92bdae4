"""Do the small rules hold: backoff, ids, requests, pool keys?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.ids import job_name, new_id, parse_job_name
from app.jobs.request import JobRequest
from app.jobs.rescue import Backoff
from app.jobs.tokenizing import PromptEncoder
from app.queue.keys import PoolKeys
from workers.engine.tokenizer import byte_bundle


@given(attempt=st.integers(1, 5000), draw=st.floats(0, 1, exclude_max=True))
def test_backoff_is_jittered_doubled_and_capped(attempt: int, draw: float) -> None:
    delay = Backoff(1.0, 300.0).delay_s(attempt, draw)
    assert 0 <= delay <= min(300.0, 2.0 ** min(attempt - 1, 20))


def test_ids_are_ordered_in_time_and_round_trip() -> None:
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(ids)
    assert all(parse_job_name(job_name(each)) == each for each in ids)


@pytest.mark.parametrize(
    "name", ["", "job_", "job_xyz", "job_" + "0" * 31, "job_" + "A" * 32, "0" * 32, "job_" + "0" * 33]
)
def test_what_is_no_id_is_none(name: str) -> None:
    assert parse_job_name(name) is None


def test_all_keys_of_a_pool_share_its_hash_tag() -> None:
    keys = PoolKeys("brook")
    names = [
        keys.idx,
        keys.depth,
        keys.tiers,
        keys.bell("any"),
        keys.ahead("batch"),
        keys.epoch,
        keys.pend,
        keys.stream("batch", "acme"),
    ]
    assert all("{brook}" in name for name in [*names, keys.active("batch"), keys.remembered("batch")])


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "exactly one"),
        ({"prompt": ""}, "empty"),
        ({"prompt": "a\x00"}, "U\\+0000"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens"),
        ({"prompt": "a", "max_tokens": "5"}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 2, "min_tokens": 3}, "min_tokens"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "a", "metadata": {"k": "v" * 513}}, "metadata"),
        ({"prompt": "a", "surprise": 1}, "surprise"),
        ({"prompt": [1, 2**31]}, "prompt"),
    ],
)
def test_a_bad_request_is_refused_by_its_field(body: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        JobRequest.model_validate(body)


def test_a_conversation_is_rendered_by_the_models_template() -> None:
    bundle = byte_bundle(512)
    encoder = PromptEncoder(bundle.tokenizer_json.encode(), bundle.chat_template, bundle.special_tokens)
    ids = encoder.encode_messages([{"role": "user", "content": "hi"}])
    assert bytes(ids) == b"user: hi\nassistant: "
