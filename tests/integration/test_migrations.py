"""Do the migrations lead to the schema that the code describes, by whatever way?"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, create_engine, text

from app.revisions import head_revision
from app.schema import alembic_config, full_metadata, migrate
from app.settings import Settings

# Order of columns aside: a column that is added later stands last in Postgres.
COLUMNS = """
    SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
      AND c.relname <> 'alembic_version'
    ORDER BY 1, 2
"""
CONSTRAINTS = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND conrelid IS DISTINCT FROM to_regclass('alembic_version')
    ORDER BY 1, 2
"""
INDEXES = """
    SELECT tablename, indexname, indexdef FROM pg_indexes
    WHERE schemaname = 'public' AND tablename <> 'alembic_version'
    ORDER BY 1, 2
"""
RELATIONS = """
    SELECT relname FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE 'alembic_version%' ORDER BY 1
"""


def described(connection: Connection, query: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in connection.execute(text(query))]


@pytest.fixture
def migrated(settings: Settings) -> Iterator[Engine]:
    engine = create_engine(settings.sqlalchemy_url)
    yield engine
    engine.dispose()


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[Engine]:
    engine = create_engine(Settings(database_url=empty_database_url).sqlalchemy_url)
    yield engine
    engine.dispose()


def test_alembic_sees_no_difference_between_migrations_and_metadata(migrated: Engine) -> None:
    with migrated.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "target_metadata": full_metadata()}
        )
        assert compare_metadata(context, full_metadata()) == []


@pytest.mark.parametrize("query", [COLUMNS, CONSTRAINTS, INDEXES], ids=["columns", "constraints", "indexes"])
def test_postgres_sees_no_difference_between_migrations_and_metadata(
    migrated: Engine, empty: Engine, query: str
) -> None:
    with migrated.connect() as by_migrations, empty.connect() as by_metadata:
        full_metadata().create_all(by_metadata)
        expected = described(by_metadata, query)
        assert expected
        assert described(by_migrations, query) == expected


def test_down_to_base_leaves_nothing_and_up_again_makes_the_same(migrated: Engine, settings: Settings) -> None:
    with migrated.connect() as connection:
        before = [described(connection, query) for query in (COLUMNS, CONSTRAINTS, INDEXES)]
        command.downgrade(alembic_config(connection), "base")
        connection.commit()
        assert described(connection, RELATIONS) == []
        connection.commit()
        assert migrate(settings) == head_revision()
        assert [described(connection, query) for query in (COLUMNS, CONSTRAINTS, INDEXES)] == before


OLDER_LETTERS = """
    INSERT INTO tenants (id, webhook_secret) VALUES ('acme', 'x');
    INSERT INTO jobs (id, tenant_id, pool, model, tier, status, gen, attempt, prompt_tokens, max_tokens, finished_at)
    SELECT ('00000000-0000-7000-8000-00000000000' || i)::uuid, 'acme', 'p', 'm', 'batch', 'dead', 3, 3, 1, 1, now()
    FROM generate_series(1, 2) AS i;
    INSERT INTO dead_letters (job_id, reservation, pool, tenant_id, reason, fingerprint, evidence, resolved_at)
    SELECT id, 1, 'p', 'acme', 'engine_crashes', 'p:engine_crashes', '{}', CASE WHEN id::text LIKE '%2' THEN now() END
    FROM jobs;
"""
LATER_DELIVERIES = """
    INSERT INTO webhook_deliveries (id, tenant_id, job_id, event_type, url, body, reservation)
    SELECT gen_random_uuid(), 'acme', id, 'job.dead', 'https://example.com/', '', life
    FROM jobs CROSS JOIN generate_series(1, 2) AS life
"""


def test_letters_of_before_are_completed_and_can_go_back(empty: Engine, empty_database_url: str) -> None:
    settings = Settings(database_url=empty_database_url)
    migrate(settings, "0001")
    with empty.connect() as connection:
        connection.execute(text(OLDER_LETTERS))
        connection.commit()
        migrate(settings)
        letters = "SELECT attempt, resolution, resolved_by FROM dead_letters ORDER BY job_id"
        assert described(connection, letters) == [(3, None, None), (3, "discarded", "unknown")]
        connection.execute(text(LATER_DELIVERIES))
        connection.commit()
        command.downgrade(alembic_config(connection), "0001")
        connection.commit()
        assert described(connection, "SELECT count(*) FROM dead_letters") == [(2,)]
        assert described(connection, "SELECT count(*) FROM webhook_deliveries") == [(2,)]


def test_migrating_twice_changes_nothing(migrated: Engine, settings: Settings) -> None:
    with migrated.connect() as connection:
        oids = "SELECT oid, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
        before = described(connection, oids)
        connection.rollback()
        assert migrate(settings) == head_revision()
        assert described(connection, oids) == before


def test_processes_that_migrate_at_once_take_turns(empty_database_url: str) -> None:
    settings = Settings(database_url=empty_database_url)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(migrate, [settings] * 4)) == [head_revision()] * 4
