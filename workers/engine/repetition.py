"""Does an output run in circles? Models that lose the thread repeat themselves until their last token, and that is paid."""

_LONGEST_PATTERN = 64  # tokens
_LEAST_TOKENS = 32  # a repeated part may be shorter in any table, list or code


def runs_in_circles(token_ids: list[int], first: int, times: int) -> bool:
    """Whether the tokens from `first` on end with one pattern, at least `times` times in a row and 32 tokens in all."""
    length = len(token_ids) - first
    for period in range(1, min(_LONGEST_PATTERN, length // times) + 1):
        span = max(period * times, _LEAST_TOKENS)
        if (
            token_ids[-1] == token_ids[-1 - period]
            and span <= length
            and token_ids[len(token_ids) - span + period :] == token_ids[len(token_ids) - span : -period]
        ):
            return True
    return False
