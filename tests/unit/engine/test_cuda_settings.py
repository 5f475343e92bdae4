"""What is decided for a GPU, as far as that needs none: which attention, how many pages."""

from types import SimpleNamespace

import pytest
import torch

from workers.engine.attention_torch import TorchAttention
from workers.engine.config import EngineConfig
from workers.engine.cuda import attention_backend, decode_steps, fixed_shape, kv_bytes, profile_chunks
from workers.engine.errors import EngineConfigError

GIB = 1 << 30
CPU = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, layers=[])


def config(**more):
    return EngineConfig(model="m", **more)


def test_pages_take_what_weights_and_the_largest_step_leave_of_the_share():
    # Of 80 GiB, 16 are taken by weights and others.
    assert kv_bytes(80 * GIB, 64 * GIB, 2 * GIB, 0.9) == 72 * GIB - 16 * GIB - 2 * GIB - GIB // 4
    assert kv_bytes(8 * GIB, 1 * GIB, 2 * GIB, 0.9) < 0


def test_the_largest_step_has_all_tokens_and_all_rows_on_pages_of_their_own():
    chunks = profile_chunks(num_seqs=7, num_tokens=100, block_size=16)
    assert sum(chunk.num_fed for chunk in chunks) == 100
    assert all(chunk.samples for chunk in chunks)
    blocks = [block for chunk in chunks for block in chunk.sequence.block_table]
    assert blocks == list(range(len(blocks)))
    assert all(len(chunk.sequence.block_table) * 16 >= chunk.count > 0 for chunk in chunks)


def test_on_the_cpu_attention_is_plain_and_what_needs_a_gpu_is_refused():
    assert isinstance(attention_backend(config(), CPU, 128), TorchAttention)
    with pytest.raises(EngineConfigError, match='attention "triton" needs a CUDA device'):
        attention_backend(config(attention="triton"), CPU, 128)
    with pytest.raises(EngineConfigError, match=r'attention "varlen" .*block_size is 16'):
        attention_backend(config(attention="varlen"), CPU, 128)
    with pytest.raises(EngineConfigError, match="can't be deterministic"):
        attention_backend(config(attention="varlen", deterministic=True), CPU, 128)


def test_the_host_looks_less_often_on_a_gpu_unless_told_otherwise():
    gpu = torch.device("cuda")
    assert [decode_steps(config(), device) for device in (CPU.device, gpu)] == [1, 4]
    assert [decode_steps(config(decode_steps=7), device) for device in (CPU.device, gpu)] == [7, 7]


def test_the_shape_of_deterministic_forward_passes_holds_every_row():
    assert fixed_shape(config(), 9) is None
    shape = fixed_shape(config(deterministic=True, max_num_seqs=8, max_batch_tokens=64, speculative_tokens=3), 9)
    assert (shape.num_tokens, shape.num_samples, shape.trash_block) == (64, 32, 9)
    few = fixed_shape(config(deterministic=True, max_num_seqs=8, max_batch_tokens=16, speculative_tokens=3), 9)
    assert few.num_samples == 16
