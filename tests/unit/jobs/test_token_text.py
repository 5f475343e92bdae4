"""Do the API and the worker agree on what a token's bytes are?"""

import pytest
from tokenizers import Tokenizer, decoders, models

from app.jobs.token_text import TokenText
from app.queue.events import TokenLogprob
from workers.engine.token_bytes import TokenBytes
from workers.generation.hand import _shown
from workers.models import BROOK


def pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({"\u2581a": 0, "<0xC3>": 1, "b": 2}, []))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer", [Tokenizer.from_file(str(BROOK / "tokenizer.json")), pieces()], ids=["bytes", "pieces"]
)
def test_each_token_has_the_same_bytes_on_both_sides(tokenizer: Tokenizer) -> None:
    ours, workers = TokenText(tokenizer), TokenBytes(tokenizer)
    for token_id in range(tokenizer.get_vocab_size() + 1):
        assert ours.bytes_of(token_id) == workers.of(token_id)
    entry = ours.entry(1, TokenLogprob(-0.5, [2, 0], [-0.5, -1.0]))
    assert entry == _shown(workers, 1, -0.5) | {"top_logprobs": [_shown(workers, 2, -0.5), _shown(workers, 0, -1.0)]}
