"""Which deliveries share a lane? As many lanes as wanted for nobody: a tenant has so many, whatever URLs its jobs bring."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from app.webhooks.lanes import ONE_OFF_LANES, endpoint_lane, one_off_lane

TENANTS = st.text("abz09-_", min_size=1, max_size=8)
NAMES = st.text("abzAZ09-.", min_size=1, max_size=12)
HOSTS = st.builds("{}.example{}".format, NAMES, st.sampled_from(["", ":8443"]))
RESOURCES = st.sampled_from(["", "/", "/a/B?c=//d", "?x=https://y.example/"])
KEYS = st.text(min_size=1, max_size=40)


@given(TENANTS, KEYS, st.integers(0, 2000), st.integers(0, 2**32))
def test_a_tenant_has_so_many_lanes_however_many_hosts_its_jobs_name(
    tenant: str, key: str, hosts: int, draw: int
) -> None:
    lanes = {one_off_lane(tenant, f"https://{draw}-{n}.example/", key=key) for n in range(hosts)}
    assert len(lanes) <= ONE_OFF_LANES
    assert all(lane.startswith(f"{tenant} #") for lane in lanes)


@given(TENANTS, TENANTS, HOSTS, HOSTS, KEYS)
def test_no_two_tenants_and_no_endpoint_share_a_lane_with_another(
    one: str, other: str, host: str, its_host: str, key: str
) -> None:
    url, its_url = f"https://{host}/", f"https://{its_host}/"
    ones = {one_off_lane(one, url, key=key), endpoint_lane(one, url)}
    assert len(ones) == 2
    if one != other:
        assert ones.isdisjoint({one_off_lane(other, its_url, key=key), endpoint_lane(other, its_url)})


@given(TENANTS, HOSTS, RESOURCES, RESOURCES, KEYS)
def test_one_server_is_in_one_lane_whatever_its_path(tenant: str, host: str, path: str, other: str, key: str) -> None:
    assert one_off_lane(tenant, f"https://{host}{path}", key=key) == one_off_lane(
        tenant, f"https://{host.upper()}{other}", key=key
    )
    assert endpoint_lane(tenant, f"https://{host}{path}") == endpoint_lane(tenant, f"https://{host.upper()}{other}")


def test_hosts_are_spread_over_all_lanes_evenly() -> None:
    urls = [f"https://{n}.example.com/" for n in range(100 * ONE_OFF_LANES)]
    counts = Counter(one_off_lane("acme", url, key="whsec_one") for url in urls)
    assert len(counts) == ONE_OFF_LANES
    # 100 are expected in each, with a standard deviation of 10.
    assert 50 < min(counts.values()) <= max(counts.values()) < 150


def test_who_doesnt_know_the_key_doesnt_know_whose_lane_a_host_gets() -> None:
    urls = [f"https://{n}.example.com/" for n in range(1000)]
    pairs = [(one_off_lane("acme", url, key="whsec_one"), one_off_lane("acme", url, key="whsec_two")) for url in urls]
    same = sum(first == second for first, second in pairs)
    assert same < 50, "one in 64 by chance"
