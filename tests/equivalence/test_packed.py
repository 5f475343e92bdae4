"""The pieces that models which run through transformers borrow of our kernels: as PyTorch computes, and row by row alike."""

import pytest
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from tests.equivalence import tiny
from tests.equivalence.test_lean import LONG, MIXED, OTHER, SHORT, steps
from workers.engine import native
from workers.engine.attention_native import NativeAttention
from workers.engine.attention_torch import TorchAttention
from workers.engine.model import load_model
from workers.engine.packed import PackedLinear, pack_linears
from workers.engine.quantize import weight_bytes
from workers.engine.runner import GenericForward

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="there is no C++ compiler")

_LARGE = tiny._COMMON | {
    "hidden_size": 768,
    "intermediate_size": 1536,
    "num_attention_heads": 12,
    "num_hidden_layers": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,
}
WIDE = {  # so wide that PyTorch's own products differ with the number of rows
    "olmo2": lambda: transformers.Olmo2Config(**_LARGE, num_key_value_heads=4),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=300, n_embd=768, n_layer=2, n_head=12, n_positions=1024),
    "gemma2": lambda: transformers.Gemma2Config(
        **_LARGE, num_key_value_heads=4, head_dim=64, sliding_window=100, query_pre_attn_scalar=64
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_LARGE),
}


@pytest.fixture(scope="module", params=WIDE)
def wide(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(3)
    transformers.AutoModelForCausalLM.from_config(WIDE[request.param](), dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def loaded(folder, dtype, quantization="none"):
    return load_model(folder, torch.device("cpu"), dtype, quantization)


def forward(model, backend, block_size=16):
    return GenericForward(model, backend, num_blocks=160, block_size=block_size)


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [
        ("bfloat16", "none"),
        pytest.param("float32", "none", marks=pytest.mark.long),
        pytest.param("bfloat16", "int8", marks=pytest.mark.long),
        ("bfloat16", "nf4"),
    ],
)
def test_the_bits_of_a_row_depend_on_its_own_sequence_only(wide, dtype, quantization):
    model = loaded(wide, dtype, quantization)
    assert pack_linears(native.kernels(), model) > 0
    alone, among = (forward(model, NativeAttention(native.kernels(), 16)) for _ in range(2))
    (wanted,) = [alone(batch).clone() for batch in steps([{0: (LONG, 0, 530)}])]
    *_, chunked = [among(batch).clone() for batch in steps(MIXED)]
    assert torch.equal(chunked, wanted)
    neighbours = {1: (SHORT, 6, 1), 0: (LONG, 529, 1), 2: (OTHER, 40, 50)}
    (batched,) = [among(batch).clone() for batch in steps([neighbours])]
    assert torch.equal(batched[1:2], wanted)


def test_float32_logits_are_those_of_pytorch(wide):
    plain = forward(loaded(wide, "float32"), TorchAttention())
    model = loaded(wide, "float32")
    pack_linears(native.kernels(), model)
    ours = forward(model, NativeAttention(native.kernels(), 16))
    for batch in steps(MIXED):
        wanted = plain(batch)
        torch.testing.assert_close(ours(batch), wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


def test_bfloat16_errs_no_more_than_pytorch_does(wide):
    exact, plain = (
        forward(loaded(wide, "float32"), TorchAttention()),
        forward(loaded(wide, "bfloat16"), TorchAttention()),
    )
    model = loaded(wide, "bfloat16")
    pack_linears(native.kernels(), model)
    ours = forward(model, NativeAttention(native.kernels(), 16))
    errors, usual = [], []
    for batch in steps(MIXED):
        wanted = exact(batch)
        errors.append((ours(batch).float() - wanted).norm(dim=-1) / wanted.norm(dim=-1))
        usual.append((plain(batch).float() - wanted).norm(dim=-1) / wanted.norm(dim=-1))
    assert torch.cat(errors).mean() < 1.5 * torch.cat(usual).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 96), (70, 33), (576, 1), (31, 300)])
def test_a_linear_layer_of_any_size(dtype, inputs, outputs):
    torch.manual_seed(1)
    linear = torch.nn.Linear(inputs, outputs, dtype=dtype)
    conv = Conv1D(outputs, inputs).to(dtype)
    for layer in (linear, conv, torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype)):
        packed = PackedLinear(native.kernels(), layer)
        x = torch.randn(2, 35, inputs, dtype=dtype)
        torch.testing.assert_close(packed(x), layer(x))
        assert torch.equal(packed(x[:, 3:4]), packed(x)[:, 3:4])
    with pytest.raises(TypeError, match=r"was given torch\.float16"):
        packed(x.half())


def test_weights_are_freed_once_they_are_packed_and_packing_twice_changes_nothing(wide):
    model = loaded(wide, "bfloat16")
    before = weight_bytes(model.module)
    num_packed = pack_linears(native.kernels(), model)
    held = sum(part.forward._packed.nbytes for part in model.linears)
    tied = model.module.get_input_embeddings().weight is model.module.get_output_embeddings().weight
    embedding = model.module.get_input_embeddings().weight.nbytes
    assert weight_bytes(model.module) + held < before + 1.2 * tied * embedding + before / 10
    assert pack_linears(native.kernels(), model) == num_packed


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_which_attention_and_which_order_of_the_pages_decide_the_settings_hash(checkpoint, kernels):
    folder = checkpoint("qwen3")[1]  # heads of 32: on AMX, pages of 16 tokens are laid out for it
    hashes = {
        tiny.load(folder, kernels=kernels, dtype="bfloat16", block_size=size).info.settings_hash for size in (4, 8, 16)
    }
    is_tiled = kernels == "auto" and native.kernels().best_isa == native.AMX
    assert len(hashes) == (2 if is_tiled else 1)
