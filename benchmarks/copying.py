"""How does one get a model that copies, without training one? By weights that are set by hand: an induction head.

Source of the mechanism: C. Olsson et al., "In-context Learning and Induction Heads", 2022. The first layer's heads attend to
the token before and write down its code; the second layer's look for the place whose token before is the current one,
and read what stands there. All other layers compute what they always do, and add nothing: the cost is the shape's own.
"""

import math
from typing import Any

ROPE_THETA = 1e10  # the slow half of the frequencies then doesn't turn within any prompt, so contents can be compared

_PART = 192  # numbers of a token's code; the hidden state holds three: of the token, of the one before, of the next
_SHARPNESS = 50.0  # in nats, times what a place differs from the wanted one
_FAST = 6  # frequencies that tell places apart
_CONTENT = 16  # pairs that compare contents, from the slow end
_CONTENT_WEIGHT = 4.0


def make_copying(model: Any) -> None:
    """Set the weights of a Llama with 9 heads of 64 over 3 of keys and values, in place."""
    import torch

    with torch.no_grad():
        config, layers = model.config, model.model.layers
        head_dim, vocab_size = config.hidden_size // config.num_attention_heads, config.vocab_size
        assert (config.hidden_size, head_dim, config.num_key_value_heads) == (3 * _PART, 64, 3)
        generator = torch.Generator().manual_seed(7)
        code = torch.randint(0, 2, (vocab_size, _PART), generator=generator).float() * 2 - 1
        code[:, -1] = 1.0  # the same for all: where there is nothing to compare
        model.model.embed_tokens.weight.zero_()
        model.model.embed_tokens.weight[:, :_PART] = code
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, 2 * _PART :] = code
        for layer in layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        # What the norm makes of a 1 when one, or two, of the three parts are filled.
        _attend_to_the_one_before(layers[0].self_attn, math.sqrt(3.0), head_dim)
        _attend_to_what_followed(layers[1].self_attn, math.sqrt(1.5), head_dim)


def _attend_to_the_one_before(attention: Any, unit: float, head_dim: int) -> None:
    half, amplitude = head_dim // 2, math.sqrt(_SHARPNESS * math.sqrt(head_dim)) / unit
    queries, keys = _zeroed(attention)
    for head in range(3):
        query, key = 3 * head * head_dim, head * head_dim
        for number in range(_FAST):
            angle = ROPE_THETA ** (-number / half)
            queries[query + number, _PART - 1] = amplitude * math.cos(angle)
            queries[query + half + number, _PART - 1] = -amplitude * math.sin(angle)
            keys[key + number, _PART - 1] = amplitude
    _carry(attention, unit, head_dim, target=_PART)


def _attend_to_what_followed(attention: Any, unit: float, head_dim: int) -> None:
    half, weight = head_dim // 2, _CONTENT_WEIGHT / unit
    queries, keys = _zeroed(attention)
    for head in range(3):
        query, key, source = 3 * head * head_dim, head * head_dim, head * head_dim
        for number in range(_CONTENT):
            for part in range(2):
                place = part * half + half - _CONTENT + number
                queries[query + place, source + part * _CONTENT + number] = weight
                keys[key + place, _PART + source + part * _CONTENT + number] = weight
    _carry(attention, unit, head_dim, target=2 * _PART)


def _zeroed(attention: Any) -> tuple[Any, Any]:
    queries, keys = attention.q_proj.weight, attention.k_proj.weight
    queries.zero_()
    keys.zero_()
    return queries, keys


def _carry(attention: Any, unit: float, head_dim: int, target: int) -> None:
    """The token's code goes through the values of three heads to a part of the hidden state."""
    attention.v_proj.weight.zero_()
    for number in range(_PART):
        head, place = divmod(number, head_dim)
        attention.v_proj.weight[number, number] = 1 / unit
        attention.o_proj.weight[target + number, 3 * head * head_dim + place] = 1.0
