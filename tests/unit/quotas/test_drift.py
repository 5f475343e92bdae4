"""How many tenants does a round compare?"""

import pytest

from app.quotas.drift import PASS_S, a_round


@pytest.mark.parametrize(("tenants", "every_s", "least"), [(0, 300, 0), (1, 300, 1), (10_000, 300, 70), (5, 1e9, 5)])
def test_a_round_is_the_share_of_a_pass(tenants: int, every_s: float, least: int) -> None:
    assert a_round(tenants, every_s) == least
    assert least * PASS_S >= tenants * min(every_s, PASS_S)
