"""Connections to Postgres that answer within three seconds, or fail as StoreUnavailable.

Three guards, since each misses a case: the server's own timeouts (a lock that is not freed, a frozen client), TCP's
(the host is gone), and a thread that cuts a connection whose call is over its time (the server hangs, but its host
still acknowledges). A call whose connection was lost is repeated once: every step of the store may be.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg2
from sqlalchemy import Connection, create_engine, exc, text
from sqlalchemy.engine import URL, make_url

from jobs.errors import JobsError, StoreRefused, StoreUnavailable
from jobs.stores.postgres_schema import VERSION

CALL_S = 2.8  # a call is cut then; a client is told within 3 s
STATEMENT_MS = 2_500
IDLE_MS = 5_000  # a client that freezes in mid-transaction holds a job's lock for no longer
CONNECT_S = 2  # libpq's smallest
REPEAT_WITHIN_S = 0.7  # a later loss is not repeated: connecting anew may take CONNECT_S
CONNECTIONS, MORE_CONNECTIONS = 4, 28  # kept open, and opened for a burst, of each process
TCP = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 2_500}
SERVER = {
    "synchronous_commit": "on",  # what is acknowledged is on disk, whatever the server's own default
    "statement_timeout": STATEMENT_MS,
    "idle_in_transaction_session_timeout": IDLE_MS,
    "default_transaction_isolation": "read\\ committed",
}

MIGRATE = "Run: python -m jobs.migrate"
REPEATABLE = {"40001", "40P01"}  # the server itself undid the transaction: serialization, deadlock
NO_SCHEMA = {"42P01", "42703", "3F000"}  # no such table, column, schema

WITHOUT = "gristmill_without"  # an option of each connection: the protections that its steps leave out

T = TypeVar("T")
Step = Callable[[Connection], T]


def driver_url(url: str) -> URL:
    """The URL with its driver named: SQLAlchemy 2.1 reads postgresql:// as psycopg 3."""
    return make_url(url).set(drivername="postgresql+psycopg2")


class Connections:
    """A pool that runs steps, each within CALL_S. Safe for threads, and for processes that fork."""

    def __init__(self, url: str, without: Set[str] = frozenset()) -> None:
        self._without = frozenset(without)
        try:
            self._url = driver_url(url)
        except exc.ArgumentError as error:
            raise StoreRefused("The store's URL cannot be read.") from error
        self._lock = threading.Lock()
        self._pid = 0
        self._checked = False

    def write(self, step: Step[T]) -> T:
        """Run a step in one transaction."""
        return self._call(step, reading=False)

    def read(self, step: Step[T]) -> T:
        """Run a step of one statement, or of several that need not agree; each is its own transaction."""
        return self._call(step, reading=True)

    def listen(self, channel: str) -> Any:
        """A connection of the driver's, outside the pool, that hears what is notified on a channel."""
        self._open()
        with answering():
            pooled = self._engine.raw_connection()
            pooled.detach()
            link: Any = pooled.dbapi_connection
            link.autocommit = True
            link.cursor().execute(f"LISTEN {channel}")
            return link

    def close(self) -> None:
        """Give every connection back; a later call opens new ones."""
        with self._lock:
            if self._pid == os.getpid():
                self._engine.dispose()
                self._watchdog.stop()
            self._pid = 0

    def _call(self, step: Step[T], *, reading: bool) -> T:
        began = time.monotonic()
        while True:
            self._open()
            engine = self._reading if reading else self._engine
            try:
                with answering(), engine.connect() as link, self._watchdog.watch(link, began + CALL_S):
                    if not self._checked:
                        _check(link)
                        self._checked = True
                    result = step(link)
                    link.commit()
                    return result
            except StoreUnavailable as error:
                if not _lost(error.__cause__) or time.monotonic() - began > REPEAT_WITHIN_S:
                    raise

    def _open(self) -> None:
        """Make the pool of this process: a forked child must not speak on its parent's connections."""
        with self._lock:
            if self._pid != os.getpid():
                self._engine = create_engine(
                    self._url,
                    pool_size=CONNECTIONS,
                    max_overflow=MORE_CONNECTIONS,
                    pool_timeout=CONNECT_S,
                    pool_use_lifo=True,
                    connect_args=self._options(),
                    execution_options={WITHOUT: self._without},
                )
                self._reading = self._engine.execution_options(isolation_level="AUTOCOMMIT")
                self._watchdog = Watchdog()
                self._pid = os.getpid()

    def _options(self) -> dict[str, Any]:
        given = self._url.query.get("options", "")
        ours = " ".join(f"-c {name}={value}" for name, value in SERVER.items())
        options = f"{given} {ours}".strip() if isinstance(given, str) else ours
        return {"connect_timeout": CONNECT_S, "application_name": "gristmill", **TCP, "options": options}


class Watchdog:
    """Cuts the connections whose calls are over their time: the thread that waits then gets an error."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[int, tuple[float, Any]] = {}
        self._work = threading.Event()
        self._stopped = False
        threading.Thread(target=self._run, name="store-watchdog", daemon=True).start()

    @contextmanager
    def watch(self, link: Connection, deadline: float) -> Iterator[None]:
        """While the block runs, its connection may be cut at `deadline`."""
        me = id(link)
        with self._lock:
            self._calls[me] = (deadline, link.connection.dbapi_connection)
            self._work.set()
        try:
            yield
        finally:
            with self._lock:
                del self._calls[me]

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._work.set()

    def _run(self) -> None:
        while not self._stopped:
            self._work.wait()
            time.sleep(0.1)
            with self._lock:  # a call that is over has left the table: nobody else's connection is cut
                now = time.monotonic()
                for deadline, link in self._calls.values():
                    if deadline <= now:
                        _cut(link)
                if not self._calls and not self._stopped:
                    self._work.clear()


def _cut(link: Any) -> None:
    try:
        with socket.socket(fileno=os.dup(link.fileno())) as copy:
            copy.shutdown(socket.SHUT_RDWR)
    except (OSError, psycopg2.Error):
        pass  # it is closed already


@contextmanager
def answering() -> Iterator[None]:
    """Turn whatever keeps Postgres from answering into StoreUnavailable, and a missing schema into StoreRefused."""
    try:
        yield
    except JobsError:
        raise
    except (exc.DBAPIError, psycopg2.Error) as error:
        if _code(error) in NO_SCHEMA:
            raise StoreRefused(f"The database's schema is missing or old. {MIGRATE}") from error
        raise StoreUnavailable() from error
    except (exc.TimeoutError, exc.PendingRollbackError) as error:  # no connection is free; a cut one was used on
        raise StoreUnavailable() from error


def _lost(error: BaseException | None) -> bool:
    if isinstance(error, exc.DBAPIError):
        return error.connection_invalidated or _code(error) in REPEATABLE
    return False


def _code(error: BaseException) -> str | None:
    original = error.orig if isinstance(error, exc.DBAPIError) else error
    return getattr(original, "pgcode", None)


def _check(link: Connection) -> None:
    """Refuse a standby, and a database without our schema or with an older one; newer ones only add to it."""
    if link.scalar(text("SELECT pg_is_in_recovery()")):
        raise StoreRefused("The database is a read-only standby; use its primary.")
    if link.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        raise StoreRefused(f"The database has no schema yet. {MIGRATE}")
    found = link.scalar(text("SELECT version_num FROM alembic_version"))
    if found is None or found < VERSION:
        raise StoreRefused(f"The database's schema is {found}, this version needs {VERSION}. {MIGRATE}", schema=found)
