"""What does the engine do when the device runs out of memory in a step? It plans less, and tries more again later.

A step that failed counts for nothing: its sequences are planned again, at most half of its tokens at a time. After a
while without a failure the budget doubles, up to what was configured; each failure makes that while longer.
"""

_FIRST_PATIENCE = 256  # steps
_MOST_PATIENCE = 1 << 16


class MemoryPressure:
    """The token budget of a step."""

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._calm_steps = 0
        self._patience = _FIRST_PATIENCE
        self.num_tokens = most_tokens  # what a step may feed at present
        self.num_shortages = 0  # steps that failed

    def shrink(self, num_fed: int) -> None:
        """A step that fed so many tokens, more than 1, found no room."""
        self.num_shortages += 1
        self.num_tokens = max(1, min(self.num_tokens, num_fed // 2))
        self._calm_steps = 0
        self._patience = min(_MOST_PATIENCE, self._patience * 2)

    def grow(self) -> bool:
        """A step went well; whether the budget has changed by that."""
        if self.num_tokens == self._most_tokens:
            return False
        self._calm_steps += 1
        if self._calm_steps < self._patience:
            return False
        self._calm_steps = 0
        self.num_tokens = min(self._most_tokens, self.num_tokens * 2)
        return True
