"""Where does randomness come from? From counters: the same seed, choice and position always give the same draw.

No generator has a state, so a draw doesn't depend on what else is in the batch, on preemption or on a restart.
Source: J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011 (the idea); G. Steele et al., "Fast
Splittable Pseudorandom Number Generators", OOPSLA 2014 (splitmix64's finaliser, used here as the mixing function).
"""

_MASK_64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix_64(value: int) -> int:
    """Scramble 64 bits (splitmix64's finaliser): a bijection in which every input bit reaches every output bit."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)


def row_key(seed: int, choice: int, position: int) -> int:
    """64 bits that fix all draws of one token: `position` counts from the prompt's first token (absolute)."""
    key = mix_64((seed + GOLDEN) & _MASK_64)
    key = mix_64((key + (choice + 1) * GOLDEN) & _MASK_64)
    return mix_64((key + (position + 1) * GOLDEN) & _MASK_64)
