"""Which requests does every contender get? The same ones, whatever it is. Standard library only: any interpreter reads it."""

import hashlib
import json
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request: its prompt and how many tokens to generate (the end of sequence is ignored)."""

    token_ids: list[int]
    num_tokens: int


# Cases in which our engine runs every request twice, by turns: as it is, and with what the case is about.
VARIANTS = {"json-schema": "with schema", "copying": "speculating"}

# An endless list, so that the number of tokens is the same with and without it.
JSON_SCHEMA = json.dumps(
    {
        "type": "array",
        "minItems": 1_000_000,
        "items": {
            "type": "object",
            "properties": {
                "id": {"type": "integer", "minimum": 0, "maximum": 9999},
                "name": {"type": "string", "maxLength": 24},
                "price": {"type": "number"},
                "tags": {"type": "array", "items": {"enum": ["new", "used", "rare", "sold"]}, "maxItems": 3},
                "seen": {"type": "boolean"},
            },
            "required": ["id", "name", "price", "tags", "seen"],
            "additionalProperties": False,
        },
    }
)


def cases() -> dict[str, list[Prompt]]:
    """All cases by name. Token counts and ids are fixed: figures of two runs are about the same work."""
    prefix = [(j * 13) % 8000 + 3 for j in range(1024)]
    return {
        "single-64-128": [Prompt([6] * 64, 128)],
        "batch16-256-128": [Prompt([(i * 7 + j) % 8000 + 3 for j in range(256)], 128) for i in range(16)],
        "shared1k-x32": [Prompt([*prefix, i + 3, i + 9, i + 20], 32) for i in range(32)],
        "mixed64": _mixed(64, 1, (16, 256), (16, 256)),
        "mixed48-long": _mixed(48, 9, (32, 512), (32, 512)),
        # What each rung of the ladder adds must have something to work on: a shared prefix, and lengths that differ.
        "ladder": [
            Prompt(prefix[:256] + each.token_ids, each.num_tokens) for each in _mixed(32, 4, (16, 128), (16, 128))
        ],
        # For devices that a small batch doesn't fill.
        "batch64-128-128": _batch(64),
        "batch256-128-128": _batch(256),
        "json-schema": [Prompt(each.token_ids, 96) for each in _mixed(32, 5, (32, 128), (96, 96))],
        "copying": [_copied(number) for number in range(4)],
        "smoke": _mixed(6, 2, (4, 24), (4, 12), vocabulary=200),
    }


def max_num_seqs(names: list[str]) -> int:
    """The batch that every contender is allowed on these cases: 64, or as many as the largest of them has requests."""
    return max(64, *(len(cases()[name]) for name in names))


def _batch(count: int) -> list[Prompt]:
    return [Prompt([(i * 31 + j * 7) % 8000 + 3 for j in range(128)], 128) for i in range(count)]


def _copied(seed: int) -> Prompt:
    """A text without a repeated word, and its beginning again: what a model that copies goes on with is known."""
    text = random.Random(seed).sample(range(3, 49_000), 200)
    return Prompt([*text, *text[:8]], 160)


def fingerprint(prompts: list[Prompt]) -> str:
    """Changes with any token id or count."""
    text = repr([(prompt.token_ids, prompt.num_tokens) for prompt in prompts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _mixed(
    count: int, seed: int, prompt: tuple[int, int], output: tuple[int, int], vocabulary: int = 8192
) -> list[Prompt]:
    r = random.Random(seed)
    return [
        Prompt([r.randrange(3, vocabulary) for _ in range(r.randint(*prompt))], r.randint(*output))
        for _ in range(count)
    ]
