"""How does Alembic reach the database? On the connection that app.schema hands over."""

from alembic import context
from sqlalchemy import create_engine

from app.schema import full_metadata
from app.settings import settings


def run() -> None:
    """Run the migrations in one transaction each."""
    connection = context.config.attributes.get("connection")
    if connection is not None:
        context.configure(connection=connection, target_metadata=full_metadata(), transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
        return
    engine = create_engine(settings().sqlalchemy_url)
    with engine.connect() as own:
        context.configure(connection=own, target_metadata=full_metadata(), transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
