"""Users, profiles and settings in SQL: each written once, under a key that is the same for every attempt."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    DateTime,
    Engine,
    ForeignKey,
    MetaData,
    String,
    Table,
    create_engine,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateTable

from jobs.errors import BadInput, TryAgain

IDS = uuid.UUID("5d1b4a4e-6f0f-4c55-9d0a-6c3b7c1a2f10")  # our ids are named by keys in here
BUSY_S = 30  # so long a SQLite file may be written by others

metadata = MetaData()
users = Table(
    "users",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("key", String(200), nullable=False, unique=True),
    Column("name", String(100), nullable=False),
    Column("email", String(254), nullable=False),
    Column("mailbox", String(254), nullable=False, unique=True),  # the address without its case
    Column("created", DateTime(timezone=True), server_default=func.now(), nullable=False),
)
profiles = Table(
    "profiles",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, unique=True),
    Column("display_name", String(100), nullable=False),
    Column("initials", String(2), nullable=False),
)
settings = Table(
    "settings",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, unique=True),
    Column("language", String(10), nullable=False),
    Column("newsletter", Boolean, nullable=False),
)
mails = Table(
    "mails",
    metadata,
    Column("message_id", String(200), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("sent", DateTime(timezone=True), server_default=func.now(), nullable=False),
)


def id_of(key: str) -> str:
    """The same id for the same key, whoever asks and when."""
    return str(uuid.uuid5(IDS, key))


def register(url: str, key: str, name: str, email: str) -> str:
    """The user's id; repeated with the same key, the same user. Raises BadInput for an address that is taken."""
    with _transaction(url) as connection:
        user = {"id": id_of(key), "key": key, "name": name, "email": email, "mailbox": email.casefold()}
        _add(connection, users, user)
        owner = connection.execute(select(users.c.key).where(users.c.mailbox == user["mailbox"])).scalar_one()
    if owner != key:
        raise BadInput(f"The e-mail address {email} is taken.")
    return str(user["id"])


def add_profile(url: str, key: str, user_id: str, name: str) -> str:
    """What others see of a user; the profile's id."""
    words = name.split()
    initials = "".join(word[0] for word in (words[0], *words[1:][-1:])).upper()[:2]
    profile = {"id": id_of(key), "user_id": user_id, "display_name": " ".join(words), "initials": initials}
    with _transaction(url) as connection:
        _add(connection, profiles, profile)
    return id_of(key)


def add_settings(url: str, key: str, user_id: str) -> str:
    """What a new user begins with; the settings' id."""
    with _transaction(url) as connection:
        _add(connection, settings, {"id": id_of(key), "user_id": user_id, "language": "en", "newsletter": False})
    return id_of(key)


def was_sent(url: str, message_id: str) -> bool:
    """Whether that mail is known to have gone out."""
    with _transaction(url) as connection:
        found = connection.execute(select(mails.c.message_id).where(mails.c.message_id == message_id)).first()
    return found is not None


def record_sent(url: str, message_id: str, user_id: str) -> None:
    """Remember that it has."""
    with _transaction(url) as connection:
        _add(connection, mails, {"message_id": message_id, "user_id": user_id})


def _add(connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
    """Insert, unless it, or what it collides with, is there already."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    connection.execute(insert(table).values(**row).on_conflict_do_nothing())


@contextmanager
def _transaction(url: str) -> Iterator[Connection]:
    """Committed at the end. Raises TryAgain for a database that is away, or a file that is locked for long."""
    try:
        with _engine(url).begin() as connection:
            yield connection
    except OperationalError as error:
        raise TryAgain("The users' database does not answer.") from error


@cache
def _engine(url: str) -> Engine:
    """One per process, its tables made. No connection outlives a transaction, so a fork takes none along."""
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg2")
    options = {"timeout": BUSY_S} if parsed.get_backend_name() == "sqlite" else {"connect_timeout": 5}
    engine = create_engine(parsed, poolclass=NullPool, connect_args=options)
    try:
        _make_tables(engine)
    except DBAPIError:
        # In Postgres IF NOT EXISTS may collide with another process; what is really wrong comes again.
        _make_tables(engine)
    return engine


def _make_tables(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
