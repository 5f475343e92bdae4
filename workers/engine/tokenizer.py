"""What must the parent know to turn text into tokens and back, without loading a model?"""

import json
from typing import Any

import msgspec

BYTE_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


class TokenizerBundle(msgspec.Struct, frozen=True, kw_only=True):
    """All that encoding, decoding and chat rendering need; `tokenizers.Tokenizer.from_str` reads the JSON."""

    tokenizer_json: str
    chat_template: str | None = None  # Jinja
    special_tokens: dict[str, str] = {}  # "bos_token" -> "<s>" and so on, the variables that templates use
    add_bos: bool = False  # whether encoding with special tokens puts a BOS in front of plain text


def load_bundle(folder: str) -> TokenizerBundle:
    """The bundle of a model's folder, read by transformers. Raises OSError or ValueError without a fast tokenizer."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError("the model has no fast tokenizer: add a tokenizer.json to its folder")
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special_tokens = {name: str(getattr(tokenizer, name)) for name in names if getattr(tokenizer, name, None)}
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name
        template = template.get("default")
    plain, wrapped = backend.encode("a", add_special_tokens=False).ids, backend.encode("a").ids
    return TokenizerBundle(
        tokenizer_json=backend.to_str(),
        chat_template=template,
        special_tokens=special_tokens,
        add_bos=wrapped[:1] == [tokenizer.bos_token_id] and wrapped != plain,
    )


def byte_bundle(vocab_size: int) -> TokenizerBundle:
    """A tokenizer of bytes: id = byte; the last id is EOS; what lies between are words that no text is encoded to."""
    eos_id = vocab_size - 1
    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    vocab |= {f"w{number:x}.": number for number in range(256, eos_id)}
    end = "<|end|>"
    document: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": eos_id,
                "content": end,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab | {end: eos_id},
            "merges": [],
        },
    }
    return TokenizerBundle(
        tokenizer_json=json.dumps(document, ensure_ascii=False),
        chat_template=BYTE_CHAT_TEMPLATE,
        special_tokens={"eos_token": end},
    )


def byte_symbols() -> list[str]:
    """The printable character that byte-level BPE writes for each byte.

    Source: A. Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (GPT-2's vocabulary).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    symbols, num_shifted = [], 0
    for byte in range(256):
        symbols.append(chr(byte) if byte in printable else chr(256 + num_shifted))
        num_shifted += byte not in printable
    return symbols
