"""Brings the store's schema to this version: `python -m jobs.migrate`. Redis needs none."""

from __future__ import annotations

import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import exc

from jobs.settings import StoreUrl, secrets_dir

MIGRATIONS = Path(__file__).parent / "stores" / "migrations"


class Where(BaseSettings):
    """The one setting that a migration needs: it may run before there is a broker."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    store_url: StoreUrl = Field(description="Where job records are kept.")


def migrate(url: str) -> None:
    """Apply what is not applied yet, in one transaction; of several that run at once, one does it."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["url"] = url
    command.upgrade(config, "head")


def main() -> None:
    """Exit 0 when the schema is this version's, 1 when the database refuses, 2 when the setting is wrong."""
    try:
        url = Where(_secrets_dir=secrets_dir()).store_url  # type: ignore[call-arg]
    except ValidationError as error:
        print(f"gristmill: STORE_URL: {error.errors()[0]['msg']}", file=sys.stderr)
        sys.exit(2)
    if not url.startswith("postgresql"):
        print("Nothing to migrate: only Postgres has a schema.")
        return
    try:
        migrate(url)
    except CommandError as error:
        if not isinstance(error.__cause__, ResolutionError):
            raise
        print("The schema is newer than this version, which works with it.")
        return
    except exc.SQLAlchemyError as error:
        print(f"gristmill: the database cannot be migrated: {error.__cause__ or error}", file=sys.stderr)
        sys.exit(1)
    print("The schema is up to date.")


if __name__ == "__main__":
    main()
