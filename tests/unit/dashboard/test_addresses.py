"""What does an address stand for, and where is a Secure cookie kept without https?"""

import pytest

from app.operators.addresses import is_local, network_of


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"), ("2001:db8:1:2::7", "2001:db8:1:2::/64"), ("2001:0DB8:1:2:FFFF::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::7", "2001:db8:1:3::/64"), ("::ffff:192.0.2.7", "192.0.2.7"), ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"), ("unknown", "unknown"), ("x" * 300, "x" * 100),
    ],
)  # fmt: skip
def test_an_ipv6_address_stands_for_its_64(address: str, network: str) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "x.localhost", "127.0.0.1", "127.8.9.10", "::1", "[::1]"])
def test_the_browsers_own_machine(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.test", "notlocalhost", "penstock.test"])
def test_another_machine(host: str) -> None:
    assert not is_local(host)
