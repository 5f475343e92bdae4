"""Does the link that tests break do what it says, with a real Redis behind it?"""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import redis as sync_redis

from app.embedded import EmbeddedRedis
from benchmarks.faults.link import Link


@pytest.fixture
def link(redis_url: str) -> Iterator[Link]:
    with Link(redis_url) as link:
        yield link


_clients: list[sync_redis.Redis] = []


@pytest.fixture(autouse=True)
def no_client_is_left(redis_url: str) -> Iterator[None]:
    yield
    while _clients:
        left = _clients.pop()
        left.close()  # gives its connection back to a pool
        left.connection_pool.disconnect()


def to(url: str) -> sync_redis.Redis:
    # One connection for all its commands: a pool would look at it first, and take another if it was reset.
    _clients.append(sync_redis.Redis.from_url(url, socket_timeout=20.0, retry=None).client())
    return _clients[-1]


def client(link: Link) -> sync_redis.Redis:
    return to(link.url)


def test_what_goes_in_comes_out(link: Link, redis_url: str) -> None:
    big = b"x" * 3_000_000
    client(link).set("a", big)
    assert client(link).get("a") == to(redis_url).get("a") == big


def test_a_cut_resets_and_lets_new_connections_in(link: Link) -> None:
    one = client(link)
    one.ping()
    link.cut()
    with pytest.raises(sync_redis.ConnectionError):
        one.ping()
    assert client(link).ping()


def test_a_link_that_refuses_refuses_until_it_is_healed(link: Link) -> None:
    link.refuse()
    with pytest.raises(sync_redis.ConnectionError):
        client(link).ping()
    link.heal()
    assert client(link).ping()


def test_what_is_held_arrives_when_it_heals(link: Link, redis_url: str) -> None:
    held = client(link)
    held.ping()
    link.hold()
    done = threading.Event()

    def write() -> None:
        held.set("late", "1")
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert not done.wait(0.3)
    assert to(redis_url).get("late") is None
    link.heal()
    thread.join(20)
    assert to(redis_url).get("late") == b"1"


def test_a_held_link_makes_clients_time_out(link: Link) -> None:
    one = client(link)
    one.ping()
    assert one.connection is not None
    one.connection.update_current_socket_timeout(0.2)
    link.hold()
    with pytest.raises(sync_redis.TimeoutError):
        one.ping()


def test_an_answer_is_lost_after_its_request_has_taken_effect(link: Link, redis_url: str) -> None:
    link.lose_answer(b"INCR", b"counted")
    with pytest.raises(sync_redis.ConnectionError):
        client(link).incr("counted")
    assert to(redis_url).get("counted") == b"1", "the server got it"
    assert link.num_lost_answers == 1
    assert client(link).incr("counted") == 2, "only once"


def test_a_loss_waits_for_its_requests_on_one_connection(link: Link) -> None:
    link.lose_answer(b"first", b"second")
    one, other = client(link), client(link)
    one.set("first", 1)
    other.set("second", 1)
    with pytest.raises(sync_redis.ConnectionError):
        one.set("second", 1)


def test_a_request_is_known_when_it_comes_in_pieces(link: Link) -> None:
    link.lose_answer(b"secret word")
    with socket.create_connection(("127.0.0.1", link.port)) as one:
        one.sendall(b"PING sec")
        time.sleep(0.1)
        one.sendall(b"ret word\r\n")
        with pytest.raises(ConnectionError):
            one.recv(100)
    assert link.num_lost_answers == 1


def test_answers_are_delayed(link: Link) -> None:
    one = client(link)
    one.ping()
    link.delay(0.3)
    start = time.monotonic()
    one.ping()
    assert time.monotonic() - start >= 0.3


def test_a_server_that_is_away_is_refused(private_redis: EmbeddedRedis) -> None:
    with Link(private_redis.url) as link:
        client(link).ping()
        private_redis.kill()
        with pytest.raises(sync_redis.ConnectionError):
            client(link).ping()
