"""Which servers and settings may a test ask for? Real ones: started once a session, with a fresh state for each test."""

import gc
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from itertools import cycle
from pathlib import Path

import psycopg
import pytest
import redis as sync_redis
from hypothesis import settings as hypothesis_settings
from sqlalchemy.ext.asyncio import AsyncEngine

from app.db import create_engine
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.redis import Redis, create_redis
from app.schema import migrate
from app.settings import Settings
from tests.support.databases import servers_folder, temporary_database, with_database
from tests.support.leftovers import assert_nobody_in_redis
from tests.support.patience import be_patient

# What the caller's shell has configured is none of the tests' business.
for _name in [name for name in os.environ if name.startswith("PENSTOCK_") or name in {"DATABASE_URL", "REDIS_URL"}]:
    del os.environ[_name]

# A script's background has Ctrl-C ignored, and whatever it starts inherits that; tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests run side by side, and their models are tiny: a second thread of an engine would only wait for the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# `make test` tries the same examples each time: it says whether a change broke something. `make test-long` looks for new ones.
hypothesis_settings.register_profile("repeat", derandomize=True, deadline=None)
hypothesis_settings.register_profile("explore", derandomize=False, print_blob=True, deadline=None)
hypothesis_settings.load_profile("repeat")

TEMPLATE = "penstock_template"
_redis_databases = cycle(range(15))  # of 16: the last is for what lives longer than a test


gc.disable()  # while all is imported: that makes much, and no garbage


def pytest_collection_finish() -> None:
    """What the imports made stays to the end: no collection shall look through all of it again and again."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """`async def` tests and fixtures run under asyncio (anyio's pytest plugin, mode auto), on the loop that all our processes use."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def server_dir() -> Iterator[Path]:
    """A folder for servers' data. pytest's own temporary folders are closed to the account that Postgres runs under."""
    with tempfile.TemporaryDirectory(
        prefix="penstock-tests-", dir=servers_folder(), ignore_cleanup_errors=True
    ) as folder:
        path = Path(folder)
        path.chmod(0o711)
        yield path


@pytest.fixture(scope="session")
def postgres_server(server_dir: Path) -> Iterator[EmbeddedPostgres]:
    """The session's Postgres. Don't stop it: `private_postgres` is for that."""
    with EmbeddedPostgres(server_dir / "postgres", fast=True) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(server_dir: Path) -> Iterator[EmbeddedRedis]:
    """The session's Redis. Don't stop or FLUSHALL it: `private_redis` is for that."""
    with EmbeddedRedis(server_dir / "redis") as server:
        yield server


@pytest.fixture(scope="session")
def postgres_admin(postgres_server: EmbeddedPostgres) -> Iterator[psycopg.Connection]:
    """A connection that makes and drops databases."""
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        # An autovacuum worker that begins on a database which is being dropped, and the drop, wait for each other: up to a minute.
        admin.execute("ALTER SYSTEM SET autovacuum = off")
        admin.execute("SELECT pg_reload_conf()")
        yield admin


@pytest.fixture(scope="session")
def template_database(postgres_server: EmbeddedPostgres, postgres_admin: psycopg.Connection) -> str:
    """The name of a database that is migrated to head and that nobody is connected to."""
    postgres_admin.execute(f"CREATE DATABASE {TEMPLATE}")
    migrate(Settings(database_url=with_database(postgres_server.url, TEMPLATE)))
    return TEMPLATE


@pytest.fixture
def empty_database_url(postgres_server: EmbeddedPostgres, postgres_admin: psycopg.Connection) -> Iterator[str]:
    """A database of the test's own with nothing in it."""
    with temporary_database(postgres_admin, postgres_server.url) as url:
        yield url


@pytest.fixture
def database_url(
    postgres_server: EmbeddedPostgres, postgres_admin: psycopg.Connection, template_database: str
) -> Iterator[str]:
    """A migrated database of the test's own. Who is still connected after the test fails it."""
    with temporary_database(postgres_admin, postgres_server.url, template_database) as url:
        yield url


@pytest.fixture
def redis_url(
    redis_server: EmbeddedRedis, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """An empty Redis database of the test's own. Who is still connected after the test fails it."""
    if not {"private_redis", "private_postgres"} & set(request.fixturenames):
        be_patient(monkeypatch)
    url = redis_server.url.removesuffix("/0") + f"/{next(_redis_databases)}"
    with sync_redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url
        try:
            assert_nobody_in_redis(client)
        finally:
            client.flushdb()


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    """Defaults, on the test's own database and Redis. Another value: `settings.model_copy(update={...})`."""
    return Settings(database_url=database_url, redis_url=redis_url, data_dir=tmp_path)


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    """What a child process needs to have the same `settings`."""
    assert settings.database_url
    assert settings.redis_url
    return os.environ | {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "PENSTOCK_DATA_DIR": str(settings.data_dir),
    }


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    """A connection pool on `database_url`."""
    engine = create_engine(settings, application_name="penstock-tests")
    yield engine
    await engine.dispose()


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    """A client of `redis_url`."""
    async with create_redis(settings) as client:
        yield client


@pytest.fixture
def private_dir() -> Iterator[Path]:
    """A folder for the data of servers of the test's own."""
    path = Path(tempfile.mkdtemp(prefix="penstock-tests-", dir=servers_folder()))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def private_redis(private_dir: Path) -> Iterator[EmbeddedRedis]:
    """A Redis of the test's own, started: stop, kill, pause, restart and FLUSHALL as you like."""
    with EmbeddedRedis(private_dir / "redis") as server:
        yield server


@pytest.fixture(scope="session")
def template_server(server_dir: Path) -> Path:
    """The folder of a Postgres that was migrated to head and has stopped. It has no port yet."""
    folder = server_dir / "template"
    with EmbeddedPostgres(folder, fast=True) as server:
        migrate(Settings(database_url=server.url))
    (folder / "port").unlink()
    return folder


@pytest.fixture
def private_postgres(private_dir: Path, template_server: Path) -> Iterator[EmbeddedPostgres]:
    """A Postgres of the test's own, migrated and started: stop, kill, pause and restart it as you like."""
    # cp: the data belong to the account that Postgres runs under, and shutil's copies would be ours.
    subprocess.run(["cp", "-a", template_server, private_dir / "postgres"], check=True)
    with EmbeddedPostgres(private_dir / "postgres", fast=True) as server:
        yield server
