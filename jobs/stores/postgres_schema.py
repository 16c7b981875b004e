"""The tables in Postgres. The migrations make them; a test compares the two.

A job's row holds its stages and their counters too: whoever moves a part holds that row's lock, so a counter is
never contended, and a stage's end is seen without counting. Lock order is the job's row, then its parts. JSON is kept
as ASCII text: jsonb refuses NUL and lone surrogates, and rounds nothing only as long as nobody asks it to.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator

VERSION = "0004"  # the newest migration; the store refuses a database with another one

# A part's state. `held` is a job's first that its pipeline's limits hold back; `waiting` is outside the window;
# `halted` is what a job's end leaves of a part that was not over.
HELD, WAITING, UNRUNG, RUNG, LATER, LEASED = "held", "waiting", "unrung", "rung", "later", "leased"
DONE, DEAD, HALTED = "done", "dead", "halted"
OPEN = (HELD, WAITING, UNRUNG, RUNG, LATER, LEASED)


ESCAPE = "\x01"  # before what a text column refuses


class Name(TypeDecorator[str]):
    """Text that may come from outside, as a path or a header does: what a text column refuses is kept as JSON."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Printable text passes as it is, and nearly everything is that."""
        if value is None or (value.isprintable() and value.isascii()):
            return value
        return value if value.isprintable() and _encodes(value) else ESCAPE + json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """What it was."""
        if value is None or not value.startswith(ESCAPE):
            return value
        return str(json.loads(value.removeprefix(ESCAPE)))


def _encodes(value: str) -> bool:
    """Lone surrogates do not."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class Json(TypeDecorator[Any]):
    """JSON as ASCII text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """None is NULL."""
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """NULL is None."""
        return None if value is None else json.loads(value)


tables = MetaData()

jobs = Table(
    "jobs",
    tables,
    Column("id", Name, primary_key=True),
    Column("pipeline", Name, nullable=False),
    Column("status", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("updated", Double, nullable=False),
    Column("started", Double),
    Column("finished", Double),
    Column("deadline", Double),
    Column("kept_since", Double),  # since when a final job waits for its family to expire
    Column("version", Integer, nullable=False),
    Column("last_event", Integer, nullable=False),
    Column("stages", Text, nullable=False),
    Column("error", Text),
    Column("plan", Text, nullable=False),
    Column("params", Text, nullable=False),
    Column("input", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("owner", Name, nullable=False),
    Column("deadline_s", Double),
    Column("retry_of", Name),
    Column("family", Name, nullable=False),
    Column("folders", Json, nullable=False),  # of removed relatives, to be trashed with the family's last member
    Column("line", Name, nullable=False, server_default=""),  # its queue's, or its limited pipeline's
    Column("trace", Text, nullable=False, server_default=""),
    Column("held", Boolean),  # by its pipeline's limits; NULL: its pipeline has none
    postgresql_with={"fillfactor": "75"},  # room for the next version of a row on its page: no index is touched
)
Index("jobs_newest", jobs.c.created.desc(), jobs.c.id.desc())
Index("jobs_by_status", jobs.c.status, jobs.c.created.desc(), jobs.c.id.desc())
Index("jobs_by_pipeline", jobs.c.pipeline, jobs.c.created.desc(), jobs.c.id.desc(), postgresql_include=["status"])
Index("jobs_by_family", jobs.c.family)
Index(
    "jobs_with_deadline",
    jobs.c.deadline,
    postgresql_where=jobs.c.deadline.is_not(None) & jobs.c.finished.is_(None),
)
Index(
    "jobs_waiting",
    jobs.c.line,
    jobs.c.priority.desc(),
    jobs.c.created,
    jobs.c.id,
    postgresql_where=jobs.c.status == "accepted",
)
Index("jobs_started", jobs.c.line, jobs.c.started, postgresql_where=jobs.c.started.is_not(None))
Index("jobs_limited", jobs.c.line, jobs.c.held, postgresql_where=jobs.c.held.is_not(None) & jobs.c.finished.is_(None))
Index("jobs_kept", jobs.c.kept_since, postgresql_where=jobs.c.kept_since.is_not(None))


def _job_id(**options: Any) -> Column[str]:
    return Column("job_id", Name, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, **options)


parts = Table(
    "parts",
    tables,
    _job_id(primary_key=True),
    Column("stage", SmallInteger, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("index", Integer, primary_key=True),
    Column("state", Text, nullable=False),
    Column("task", Name, nullable=False),
    Column("queue", Name, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("rings", Integer, nullable=False),  # fallback rings so far; of one backing off: those that no worker took
    Column("at_once", Boolean, nullable=False),  # whether it was inside the window when it was emitted
    Column("ready_at", Double, nullable=False),  # since when, or from when, it can be claimed
    Column("ring_due", Double, nullable=False),
    Column("lease_until", Double),  # in no index: a heartbeat then rewrites the row on its page and nothing else
    Column("claimed_at", Double),
    Column("ended_at", Double),
    Column("token", Name),
    Column("worker", Name),
    Column("files", Json, nullable=False),
    Column("payload", LargeBinary),
    Column("output", LargeBinary),
    Column("error", Json),
    Column("ended_token", Name),  # the last token that ended an attempt, and what it was answered
    Column("answer", Json),
    postgresql_with={"fillfactor": "75"},
)
Index("parts_unrung", parts.c.ring_due, postgresql_where=parts.c.state == UNRUNG)
Index("parts_rung", parts.c.queue, parts.c.ring_due, postgresql_where=parts.c.state == RUNG)
Index("parts_ready", parts.c.task, parts.c.ready_at, postgresql_where=parts.c.state.in_([UNRUNG, RUNG]))
Index("parts_later", parts.c.ready_at, postgresql_where=parts.c.state == LATER)
Index("parts_dead", parts.c.ended_at, postgresql_where=parts.c.state == DEAD)
Index("parts_leased", parts.c.token, postgresql_where=parts.c.state == LEASED)

events = Table(
    "events",
    tables,
    _job_id(primary_key=True),
    Column("id", Integer, primary_key=True),
    Column("time", Double, nullable=False),
    Column("type", Text, nullable=False),
    Column("data", Json, nullable=False),
)

artifacts = Table(
    "artifacts",
    tables,
    Column("number", BigInteger, Identity(always=True), primary_key=True),
    _job_id(),
    Column("stage", SmallInteger, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("index", Integer, nullable=False),
    Column("name", Name, nullable=False),
    Column("artifact", Json, nullable=False),
)
Index("artifacts_of_job", artifacts.c.job_id, artifacts.c.stage)

# Log lines hang on a counter of their own, so that a chatty stage neither waits for its job's lock nor holds it.
log_heads = Table("log_heads", tables, _job_id(primary_key=True), Column("lines", Integer, nullable=False))

log_lines = Table(
    "log_lines",
    tables,
    Column("job_id", Name, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("line", Json, nullable=False),
    ForeignKeyConstraint(["job_id"], ["log_heads.job_id"], ondelete="CASCADE"),
)

labels = Table(
    "labels",
    tables,
    Column("label", Text, primary_key=True),  # a digest of name and value, whatever characters they have
    Column("created", Double, primary_key=True),
    _job_id(primary_key=True),
)
Index("labels_of_job", labels.c.job_id)

keys = Table(
    "keys",
    tables,
    Column("owner", Name, primary_key=True),
    Column("key", Name, primary_key=True),
    Column("digest", Text, nullable=False),
    _job_id(),
)
Index("keys_of_job", keys.c.job_id)

uploads = Table(
    "uploads",
    tables,
    Column("id", Name, primary_key=True),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Column("upload", Json, nullable=False),
)
Index("uploads_expiring", uploads.c.expires)

pins = Table(
    "pins",
    tables,
    _job_id(primary_key=True),
    Column("upload_id", Name, ForeignKey("uploads.id"), primary_key=True),
)
Index("pins_of_upload", pins.c.upload_id)

trash = Table("trash", tables, Column("name", Name, primary_key=True), Column("since", Double, nullable=False))
Index("trash_oldest", trash.c.since)

# When a queue last got rings by deficit, so that many sweepers give them once a second.
guards = Table("guards", tables, Column("queue", Name, primary_key=True), Column("at", Double, nullable=False))

# Workers that are there, until when, and what they say of themselves.
workers = Table(
    "workers",
    tables,
    Column("name", Name, primary_key=True),
    Column("until", Double, nullable=False),
    Column("told", Text, nullable=False),
)
