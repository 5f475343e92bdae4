"""A whole engine over the Triton kernels chooses the tokens that it chooses over plain attention.

Under Triton's interpreter, hence in a process of its own: `tests/unit/engine/test_interpreted.py` starts it.
"""

import pytest
import torch

from tests.equivalence import tiny
from workers.engine.protocol import Request, SamplingParams

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.mark.parametrize("name", ["gemma2", pytest.param("gpt_oss", marks=pytest.mark.long)])
def test_greedy_tokens_are_those_of_plain_attention(name, tmp_path):
    torch.set_num_threads(1)
    tiny.save_model(name, tmp_path)
    sampling = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    requests = [Request(id=str(i), prompt_ids=p, sampling=sampling) for i, p in enumerate(tiny.prompts(2, 24))]
    settings = {"block_size": 4, "max_batch_tokens": 24, "max_num_seqs": 4, "kernels": "torch"}
    plain = tiny.run(tiny.load(tmp_path, **settings), requests)
    engine = tiny.load(tmp_path, **settings, attention="triton", decode_steps=4)
    assert "triton" in type(engine._model._forward._backend).__module__
    assert tiny.run(tiny.filled_up(engine, [2, 4]), requests).tokens == plain.tokens
