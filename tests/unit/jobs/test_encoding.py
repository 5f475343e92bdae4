"""Are the ids that a prompt is counted by those that its tokenizer gives?"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.jobs.tokenizing import PromptEncoder
from tests.support.api import tokenizer_of_bytes
from tests.support.jobs import ENCODER, FILES

_BYTES = tokenizer_of_bytes()
ENCODERS = {
    "bundle": ENCODER,
    "bytes": PromptEncoder(_BYTES.tokenizer_json, _BYTES.chat_template, _BYTES.special_tokens),
}
SPECIAL = [*FILES.special_tokens.values(), " ", "\n", "�", "ﬁ", "🦊"]


@pytest.mark.parametrize("name", sorted(ENCODERS))
@settings(deadline=None)
@given(text=st.lists(st.one_of(st.text(), st.sampled_from(SPECIAL))).map("".join))
def test_the_short_way_gives_the_same_ids(name: str, text: str) -> None:
    encoder = ENCODERS[name]
    text = text.encode("utf-8", "ignore").decode()  # no lone surrogates: no body holds any
    assert encoder.encode_text(text) == encoder.tokenizer.encode(text, add_special_tokens=True).ids
    messages = [{"role": "user", "content": "a " + text.replace("<", "")}]
    rendered = encoder.render(messages)
    assert encoder.encode_messages(messages) == encoder.tokenizer.encode(rendered, add_special_tokens=False).ids
