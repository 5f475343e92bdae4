"""One layer's attention over pages, without a model."""

import torch

from workers.engine.attention import AttentionCall, LayerCache
from workers.engine.batch import build_batch
from workers.engine.protocol import SamplingParams
from workers.engine.scheduler import Chunk
from workers.engine.sequence import Sequence

NUM_SLOTS = 4096


class Scene:
    """Sequences of (keys, queries) on pages that lie anywhere, and one layer's tensors for them."""

    def __init__(
        self,
        lens,
        *,
        heads=4,
        kv_heads=2,
        dim=16,
        value_dim=None,
        block_size=16,
        dtype=torch.float32,
        seed=1,
        device="cpu",
    ):
        value_dim = value_dim or dim
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=generator).to(dtype).to(device)

        self.lens, self.block_size, self.device = lens, block_size, torch.device(device)
        self.keys, self.values = normal(NUM_SLOTS, kv_heads, dim), normal(NUM_SLOTS, kv_heads, value_dim)
        blocks = torch.randperm(NUM_SLOTS // block_size, generator=generator).tolist()
        self.tables = [[blocks.pop() for _ in range(-(-length // block_size))] for length, _ in lens]
        # As transformers gives them: heads first in memory's view, tokens first in ours.
        self.query = [normal(1, count, heads, dim).transpose(1, 2)[0].transpose(0, 1) for _, count in lens]
        self.key = [normal(count, kv_heads, dim) for _, count in lens]
        self.value = [normal(count, kv_heads, value_dim) for _, count in lens]
        self.sinks = normal(heads)

    def run(self, attention, places=None, **options):
        """What the sequences at `places` get, in one call; [tokens, heads, value dim] each."""
        places = range(len(self.lens)) if places is None else places
        chunks = []
        for place in places:
            length, count = self.lens[place]
            sequence = Sequence(
                request_id="",
                choice=0,
                priority=0,
                arrival=0,
                sampling=SamplingParams(max_tokens=1),
                max_len=length + 1,
                token_ids=[0] * length,
                num_prompt_tokens=length,
                block_table=self.tables[place],
            )
            chunks.append(Chunk(sequence, length - count, count, samples=True))
        batch = build_batch(chunks, self.block_size, self.device)
        options = {"scaling": 0.3} | options
        query, key, value = (torch.cat([each[i] for i in places]) for each in (self.query, self.key, self.value))
        self.cache = LayerCache(self.keys.clone(), self.values.clone())
        attention.prepare(batch)
        output = attention.attend(AttentionCall(query, key, value, **options), self.cache)
        return output.split([self.lens[place][1] for place in places])


def assert_equal(got, wanted, tolerance=2e-5):
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance)
