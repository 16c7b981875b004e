"""How Alembic reaches the database: one transaction, and one migrator at a time."""

from __future__ import annotations

from alembic import context
from sqlalchemy import NullPool, create_engine, text

from jobs.stores.postgres_engine import driver_url
from jobs.stores.postgres_schema import tables

MIGRATING = 0x67726973  # the advisory lock's number


def migrate() -> None:
    """Run what is asked, alone."""
    engine = create_engine(driver_url(context.config.attributes["url"]), poolclass=NullPool)
    with engine.connect() as link:
        context.configure(connection=link, target_metadata=tables)
        with context.begin_transaction():
            link.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATING})"))
            context.run_migrations()


migrate()
