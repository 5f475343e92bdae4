"""How is a decoder of the Llama family run by the C++ kernels? Weights packed once, then one call a step for all layers.

Only architectures and configs that are understood to the last setting are taken; all others go the generic way,
through transformers. Equality of both ways is held by tests, and checked once more when a model is loaded.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers.engine import native
from workers.engine.batch import Batch
from workers.engine.model import LoadedModel
from workers.engine.native import Kernels

_ARCHITECTURES = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
_ROPE_TYPES = {"default", "linear", "llama3", "yarn"}  # those whose frequencies are the same at every length
_DTYPES = {torch.float32, torch.bfloat16}
_MAX_HEAD_DIM = 256
_UNIT = 16  # slots that AMX takes at once


def why_not_lean(model: LoadedModel) -> str | None:
    """What keeps a model from being run lean, or None."""
    module: Any = model.module
    if model.device.type != "cpu":
        return f"it runs on {model.device.type}"
    if model.architecture not in _ARCHITECTURES or not type(module).__module__.startswith("transformers.models."):
        return f"{model.architecture} isn't of the Llama family"
    config = module.config
    rope = module.model.rotary_emb
    dtypes = {parameter.dtype for parameter in module.parameters()}
    faults: dict[str, Any] = {
        f"its weights are quantised as {model.quantization}": model.quantization != "none",
        f"its type is {model.dtype}": len(dtypes) > 1 or dtypes - _DTYPES,
        f"its activation is {config.hidden_act}": config.hidden_act != "silu",
        f"its rotary embedding is of type {rope.rope_type}": rope.rope_type not in _ROPE_TYPES,
        "its rotary embedding is partial": rope.inv_freq.numel() * 2 != _head_dim(config),
        "its MLP has biases": getattr(config, "mlp_bias", False),
        "its weights aren't plain": any(
            type(part) is not nn.Linear for name, part in module.named_modules() if name.endswith(("_proj", "lm_head"))
        ),
        "its sizes aren't multiples of 32": any(
            size % 32
            for size in (config.hidden_size, config.intermediate_size, config.num_attention_heads * _head_dim(config))
        ),
        "its heads are too large": _head_dim(config) > _MAX_HEAD_DIM or _head_dim(config) % 2,
    }
    return next((fault for fault, is_so in faults.items() if is_so), None)


def release_weights(model: LoadedModel) -> None:
    """Free the weights that `LeanDecoder` has copies of. The module can't be called any more."""
    for part in model.module.modules():
        if type(part) is nn.Linear:
            part.weight = nn.Parameter(part.weight.new_empty(0), requires_grad=False)


class LeanDecoder:
    """The forward pass of one model over its own KV pool."""

    def __init__(
        self, kernels: Kernels, model: LoadedModel, *, num_blocks: int, block_size: int, isa: int | None = None
    ) -> None:
        """Packs the weights of a model that `why_not_lean` finds nothing wrong with; `isa` None = the best one."""
        isa = kernels.best_isa if isa is None else isa
        module: Any = model.module
        config = module.config
        self._kernels = kernels
        self._block_size = block_size
        self._kept: list[Tensor] = []  # what the structs point at
        self._logits = torch.empty(0, model.vocab_size)
        rope = module.model.rotary_emb
        self._frequencies = rope.inv_freq.float().numpy()
        self._rope_scaling = float(rope.attention_scaling)
        head_dim = _head_dim(config)
        is_tiled = isa == native.AMX and model.dtype == torch.bfloat16
        is_tiled = is_tiled and block_size % _UNIT == 0 and head_dim % 32 == 0
        self.name = f"lean {isa} {'tiled' if is_tiled else 'plain'} {kernels.version}"
        pool = (len(module.model.layers), 2, num_blocks * block_size, config.num_key_value_heads, head_dim)
        self._pool = kernels.empty(*pool, dtype=model.dtype).zero_()
        self._layers = (native.Layer * len(module.model.layers))(
            *(self._layer(layer, *pages) for layer, pages in zip(module.model.layers, self._pool, strict=True))
        )
        self._model = native.Model(
            isa=isa,
            is_bf16=model.dtype == torch.bfloat16,
            is_tiled=is_tiled,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            num_layers=len(self._layers),
            block_size=block_size,
            threads=torch.get_num_threads(),
            epsilon=config.rms_norm_eps,
            scaling=head_dim**-0.5,
            embedding=self._keep(module.model.embed_tokens.weight.detach()),
            final_norm=self._vector(module.model.norm.weight),
            head=self._matrix(module.lm_head),
            layers=self._layers,
        )

    def __call__(self, batch: Batch) -> Tensor:
        """Logits [R, vocab] float32 of the rows that sample; the next call writes over them."""
        angles = batch.positions.numpy()[:, None].astype(np.float32) * self._frequencies
        cosines, sines = np.cos(angles) * self._rope_scaling, np.sin(angles) * self._rope_scaling
        query_lens, kv_lens = np.asarray(batch.query_lens, np.int32), np.asarray(batch.kv_lens, np.int32)
        num_samples = len(batch.sample_rows)
        if len(self._logits) < num_samples:
            self._logits = self._kernels.empty(num_samples, self._logits.shape[1], dtype=torch.float32)
        logits = self._logits[:num_samples]
        step = native.Step(
            tokens=len(batch.input_ids),
            samples=num_samples,
            sequences=native.Sequences(
                count=len(query_lens),
                table_width=batch.block_tables.shape[1],
                tables=batch.block_tables.data_ptr(),
                query_lens=query_lens.ctypes.data,
                kv_lens=kv_lens.ctypes.data,
            ),
            input_ids=batch.input_ids.data_ptr(),
            slots=batch.slot_mapping.data_ptr(),
            sample_rows=batch.sample_rows.data_ptr(),
            cosines=cosines.ctypes.data,
            sines=sines.ctypes.data,
        )
        self._kernels.forward(self._model, step, logits)
        return logits

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block's keys and values in all layers."""
        size = self._block_size
        slots = self._pool[:, :, target * size : (target + 1) * size]
        slots.copy_(self._pool[:, :, source * size : (source + 1) * size])

    def _layer(self, layer: Any, keys: Tensor, values: Tensor) -> native.Layer:
        attention, mlp = layer.self_attn, layer.mlp
        gate, up = (part.weight.detach() for part in (mlp.gate_proj, mlp.up_proj))
        inputs = gate.shape[1]
        # 16 rows of gate, 16 of up, and so on: both halves of a product come out of the same panel.
        gate_up = torch.stack([gate.view(-1, 16, inputs), up.view(-1, 16, inputs)], dim=1).view(-1, inputs)
        return native.Layer(
            attention_norm=self._vector(layer.input_layernorm.weight),
            mlp_norm=self._vector(layer.post_attention_layernorm.weight),
            query_norm=self._vector(attention.q_norm.weight) if hasattr(attention, "q_norm") else None,
            key_norm=self._vector(attention.k_norm.weight) if hasattr(attention, "k_norm") else None,
            qkv=self._matrix(attention.q_proj, attention.k_proj, attention.v_proj),
            output=self._matrix(attention.o_proj),
            gate_up=self._packed(gate_up),
            down=self._matrix(mlp.down_proj),
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            window=_window(attention) or 0,
        )

    def _matrix(self, *parts: nn.Linear) -> native.Matrix:
        """The parts' outputs one after the other."""
        biases = [part.bias.detach() for part in parts if part.bias is not None]
        assert len(biases) in {0, len(parts)}
        weight = torch.cat([part.weight.detach() for part in parts]) if len(parts) > 1 else parts[0].weight
        return self._packed(weight, torch.cat(biases) if biases else None)

    def _packed(self, weight: Tensor, bias: Tensor | None = None) -> native.Matrix:
        packed = self._keep(self._kernels.pack(weight))
        return native.Matrix(packed, self._vector(bias) if bias is not None else None, *weight.shape)

    def _vector(self, values: Tensor) -> int:
        return self._keep(values.detach().float().contiguous())

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _window(attention: Any) -> int | None:
    """Tokens that a layer's token sees. Mistral has one for all layers in its config, the others one a layer."""
    if type(attention).__name__ == "MistralAttention":
        return attention.config.sliding_window  # type: ignore[no-any-return]
    return getattr(attention, "sliding_window", None)
