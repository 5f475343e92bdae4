"""The cases are those that the peers' published figures were measured with; changing one makes all figures incomparable."""

import pytest

from benchmarks.workload import cases, fingerprint

# Of the (token ids, count) pairs of the scripts that the peers were first measured with, and their output tokens.
FIXED = {
    "single-64-128": ("9b568e20d13e7ef0", 128),
    "batch16-256-128": ("4d40e88283e28a84", 2048),
    "shared1k-x32": ("8d3c02072273c4c5", 1024),
    "mixed64": ("8cbde896caaa197f", 8697),
    "mixed48-long": ("a883d89ee7ab2759", 12013),
    "ladder": ("2e986c6a4a9e8bbc", 2614),
}


@pytest.mark.parametrize("name", FIXED)
def test_a_case_never_changes(name):
    prompts = cases()[name]
    assert (fingerprint(prompts), sum(prompt.num_tokens for prompt in prompts)) == FIXED[name]


def test_the_ladders_requests_share_a_prefix():
    first, *others = cases()["ladder"]
    assert all(other.token_ids[:256] == first.token_ids[:256] != other.token_ids[-256:] for other in others)
