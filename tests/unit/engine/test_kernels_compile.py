"""The Triton kernels compile for the GPUs that people have. Needs none: Triton brings its own assembler."""

from importlib.util import find_spec

import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("triton") is None, reason="triton isn't installed (it comes with PyTorch for CUDA)"),
]

SHAPES = {"HEAD_DIM": 80, "HEAD_PAD": 128, "VALUE_DIM": 64, "VALUE_PAD": 64}
TILE = {"GROUP": 7, "BLOCK_Q": 2, "BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_SIZE": 16}


def compiled(kernel, pointers, constants, capability, warps=4):
    """The machine code of a kernel whose arguments are pointers to the types given, floats named so, or int32."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    floats = {"scale", "softcap"}
    names = [name for name in kernel.arg_names if name not in constants]
    signature = {name: pointers.get(name, "fp32" if name in floats else "i32") for name in names}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": warps, "num_stages": 2}).asm


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("segment", [0, 128])
def test_attention_compiles(capability, dtype, segment):
    from workers.engine import kernels_triton as kernels

    pool = dict.fromkeys(["query", "key", "value", "keys", "values", "output", "sinks"], f"*{dtype}")
    scratch = dict.fromkeys(["sums", "peaks", "totals"], "*fp32")
    indices = dict.fromkeys(["tiles", "query_starts", "seq_lens", "block_tables", "slot_mapping"], "*i64")
    pointers = pool | scratch | indices
    options = {"HAS_TILES": True, "HAS_SINKS": True, "HAS_SOFTCAP": True, "HAS_WINDOW": True, "SEGMENT": segment}
    constants = SHAPES | TILE | options
    assert compiled(kernels.attend_pages, pointers, constants, capability)["cubin"]
    if segment:
        named = {name: value for name, value in constants.items() if name in kernels.merge_segments.arg_names}
        assert compiled(kernels.merge_segments, pointers, named, capability)["cubin"]
    else:
        assert compiled(kernels.write_pages, pointers, SHAPES, capability, warps=1)["cubin"]
