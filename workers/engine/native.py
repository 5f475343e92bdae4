"""Where do the C++ kernels come from? Compiled at first use by whatever compiler there is, and cached.

No compiler, or one that fails: a warning, and the engine goes on with plain PyTorch.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import POINTER, Structure, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import record_function

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent / "kernels"
_MAIN = _SOURCES / "decoder.cpp"
_FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp"),
    *("-fno-math-errno", "-fno-trapping-math"),  # neither changes a result
)
_TIMEOUT_S = 300

PLAIN, AVX512_BF16, AMX = 0, 1, 2  # kinds of instructions, as in common.h


class Matrix(Structure):
    """A packed weight matrix."""

    _fields_ = (("packed", c_void_p), ("bias", c_void_p), ("outputs", c_int), ("inputs", c_int))


class Layer(Structure):
    """One decoder layer."""

    _fields_ = (
        *((name, c_void_p) for name in ("attention_norm", "mlp_norm", "query_norm", "key_norm")),
        *((name, Matrix) for name in ("qkv", "output", "gate_up", "down")),
        *(("keys", c_void_p), ("values", c_void_p), ("window", c_int)),
    )


class Model(Structure):
    """A decoder."""

    _fields_ = (
        *((name, c_int) for name in ("isa", "is_bf16", "is_tiled", "hidden", "intermediate", "heads", "kv_heads")),
        *((name, c_int) for name in ("head_dim", "num_layers", "block_size", "threads")),
        *(("epsilon", c_float), ("scaling", c_float), ("embedding", c_void_p), ("final_norm", c_void_p)),
        *(("head", Matrix), ("layers", POINTER(Layer))),
    )


class Sequences(Structure):
    """The sequences of a step."""

    _fields_ = (
        *(("count", c_int), ("table_width", c_int)),
        *(("tables", c_void_p), ("query_lens", c_void_p), ("kv_lens", c_void_p)),
    )


class Step(Structure):
    """What a forward pass is fed."""

    _fields_ = (
        *(("tokens", c_int), ("samples", c_int), ("sequences", Sequences)),
        *((name, c_void_p) for name in ("input_ids", "slots", "sample_rows", "cosines", "sines")),
    )


class LayerCall(Structure):
    """The attention of one layer in a step."""

    _fields_ = (
        *((name, c_void_p) for name in ("query", "key", "value", "keys", "values", "sinks", "output", "slots")),
        *(("scaling", c_float), ("softcap", c_float), ("window", c_int)),
        *((name, c_int) for name in ("tokens", "heads", "kv_heads", "key_dim", "value_dim", "block_size", "threads")),
    )


class Kernels:
    """The functions of the library, with their types. Tensors must be contiguous; addresses are taken as they are."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        library.penstock_packed_size.restype = c_int64
        library.penstock_packed_size.argtypes = (c_int, c_int)
        library.penstock_pack.argtypes = (c_int, c_void_p, c_void_p, c_int, c_int)
        library.penstock_forward.argtypes = (POINTER(Model), POINTER(Step), c_void_p)
        library.penstock_linear.argtypes = (c_int, c_int, c_void_p, c_int, c_int, POINTER(Matrix), c_void_p, c_int)
        library.penstock_attend.argtypes = (c_int, c_int, POINTER(LayerCall), POINTER(Sequences))
        library.penstock_prefer_large_pages.argtypes = (c_void_p, c_int64)
        library.penstock_argmax.argtypes = (c_void_p, c_void_p, c_int, c_int, c_int)
        library.penstock_forbid.argtypes = (c_void_p, c_void_p, c_void_p, c_int, c_int, c_int, c_int)
        self._library = library
        self.version = path.stem  # of sources, flags, compiler and processor
        self.best_isa: int = library.penstock_best_isa()

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A tensor that holds anything, in large pages where the system has them."""
        tensor = torch.empty(shape, dtype=dtype)
        self._library.penstock_prefer_large_pages(tensor.data_ptr(), tensor.nbytes)
        return tensor

    def pack(self, weight: Tensor) -> Tensor:
        """A weight matrix [outputs, inputs] (bfloat16 or float32, inputs a multiple of 32) in the kernels' order."""
        outputs, inputs = weight.shape
        weight = weight.detach().contiguous()
        packed = self.empty(self._library.penstock_packed_size(outputs, inputs), dtype=weight.dtype)
        is_bf16 = weight.dtype == torch.bfloat16
        self._library.penstock_pack(is_bf16, weight.data_ptr(), packed.data_ptr(), outputs, inputs)
        return packed

    def forward(self, model: Model, step: Step, logits: Tensor) -> None:
        """One forward pass into `logits` [samples, vocab] float32."""
        with record_function("penstock_forward"):  # so that profiles show it
            self._library.penstock_forward(ctypes.byref(model), ctypes.byref(step), logits.data_ptr())

    def linear(self, x: Tensor, matrix: Matrix, out: Tensor) -> None:
        """`x` [rows, columns] times a packed matrix into `out` [rows, outputs]; the matrix's inputs are `columns` rounded up."""
        rows, columns = x.shape
        is_bf16, threads = x.dtype == torch.bfloat16, torch.get_num_threads()
        self._library.penstock_linear(
            *(self.best_isa, is_bf16, x.data_ptr(), rows, columns, ctypes.byref(matrix), out.data_ptr(), threads)
        )

    def attend(self, layer: LayerCall, sequences: Sequences, *, is_bf16: bool, is_tiled: bool) -> None:
        """Write a layer's keys and values to their slots, then let every token attend."""
        self._library.penstock_attend(is_bf16, is_tiled, ctypes.byref(layer), ctypes.byref(sequences))

    def argmax(self, scores: Tensor) -> Tensor:
        """`scores.argmax(dim=-1)` for [rows, columns] float32, without PyTorch's scalar loop."""
        rows, columns = scores.shape
        assert scores.is_contiguous()
        best = torch.empty(rows, dtype=torch.int64)
        with record_function("penstock_argmax"):
            self._library.penstock_argmax(scores.data_ptr(), best.data_ptr(), rows, columns, torch.get_num_threads())
        return best

    def forbid(self, logits: Tensor, rows: list[int], words: Tensor) -> None:
        """As `sampler.torch_forbid`, for [rows, columns] float32."""
        assert logits.is_contiguous()
        assert words.is_contiguous()
        places = (c_int * len(rows))(*rows)
        columns, width, threads = logits.shape[1], words.shape[1], torch.get_num_threads()
        self._library.penstock_forbid(logits.data_ptr(), places, words.data_ptr(), len(rows), columns, width, threads)


@cache
def kernels() -> Kernels | None:
    """The kernels, compiled if need be; None where that isn't possible (it is logged why)."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        logger.warning("there is no C++ compiler, so the CPU path runs on plain PyTorch, which is several times slower")
        return None
    try:
        return Kernels(_library_path(compiler))
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        logger.warning("the C++ kernels can't be used, so the CPU path runs on plain PyTorch: %s", detail[-2000:])
        return None


def _library_path(compiler: str) -> Path:
    """The compiled library, from the cache or made now. Raises OSError or SubprocessError."""
    path = _cache_folder() / f"penstock-{_key(compiler)}.so"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, *_FLAGS, str(_MAIN), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
        made.replace(path)  # atomic: another process may be making it too
    return path


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "penstock" / "kernels"


def _key(compiler: str) -> str:
    """Of all that decides what comes out: sources, flags, compiler, processor."""
    digest = hashlib.sha256()
    for source in sorted([*_SOURCES.glob("*.h"), *_SOURCES.glob("*.cpp")]):
        digest.update(source.name.encode() + source.read_bytes())
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=60).stdout
    digest.update("\n".join((*_FLAGS, version, torch.__version__, platform.machine(), _processor())).encode())
    return digest.hexdigest()[:20]


def _processor() -> str:
    """The processor's features, where the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))
