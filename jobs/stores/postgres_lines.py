"""Lines of accepted jobs in Postgres: who stands where, how fast they begin, and who is let in where limits hold back.

Who lets jobs in holds the line's advisory lock until the end of its transaction, taken after its own job's row. It
passes over rows that somebody else holds, and so waits for nobody's job: no deadlocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, select, text, tuple_, update

from jobs.errors import JobNotFound
from jobs.model import Job, Place, Plan, Pressure, Ring, Status
from jobs.store import LINE_LEAST_S, LINE_S, LINE_STARTS, RING_UNCONFIRMED_S
from jobs.stores import postgres_rows as rows
from jobs.stores.postgres_schema import HELD, UNRUNG, jobs, parts

MINUTE_S = 60.0
MOST_AT_ONCE = 100  # let in by one transaction
ACCEPTED = jobs.c.status == Status.ACCEPTED.value
_TURN = (jobs.c.priority.desc(), jobs.c.created, jobs.c.id)

_LINES = text("""
WITH RECURSIVE known (line) AS (
  (SELECT line FROM jobs WHERE started IS NOT NULL ORDER BY line LIMIT 1)
  UNION ALL
  SELECT (SELECT line FROM jobs WHERE started IS NOT NULL AND line > known.line ORDER BY line LIMIT 1)
  FROM known WHERE known.line IS NOT NULL
)
SELECT line FROM known WHERE line IS NOT NULL
""")  # each line costs one step in an index, however many jobs it has


def line_of(job: Job, stage: int = 0) -> str:
    """Where a job stands that begins with a stage."""
    return f"pipeline:{job.pipeline}" if job.plan.is_limited else f"queue:{job.plan.stages[stage].queue}"


def place(link: Connection, job_id: str, now: float) -> Place | None:
    """How many of the line come before it."""
    me = select(jobs.c.line, jobs.c.priority, jobs.c.created, jobs.c.status).where(jobs.c.id == job_id)
    row = link.execute(me).mappings().one_or_none()
    if row is None:
        raise JobNotFound(job_id=job_id)
    if row["status"] != Status.ACCEPTED.value:
        return None
    more_urgent = jobs.c.priority > row["priority"]
    earlier = (jobs.c.priority == row["priority"]) & (tuple_(jobs.c.created, jobs.c.id) < (row["created"], job_id))
    here = ACCEPTED & (jobs.c.line == row["line"])
    counts = [select(func.count()).select_from(jobs).where(here, one) for one in (more_urgent, earlier)]
    ahead = sum(link.scalar(count) or 0 for count in counts)
    return Place(ahead + 1, _starts_per_s(link, row["line"], now))


def pressure(link: Connection, now: float) -> Pressure:
    """What waits, and what all lines start a second."""
    per_s = sum(_starts_per_s(link, line, now) for line in link.scalars(_LINES).all())
    return Pressure(waiting(link), per_s)


def waiting(link: Connection, most: int | None = None) -> int:
    """How many jobs are accepted and not begun; counting stops at `most`."""
    some = select(jobs.c.id).where(ACCEPTED).limit(most).subquery()
    return link.scalar(select(func.count()).select_from(some)) or 0


def _starts_per_s(link: Connection, line: str, now: float) -> float:
    started = select(jobs.c.started).where(jobs.c.line == line, jobs.c.started > now - LINE_S)
    last = started.order_by(jobs.c.started.desc()).limit(LINE_STARTS).subquery()
    n, oldest = link.execute(select(func.count(), func.min(last.c.started))).one()
    if not n:
        return 0.0
    least = LINE_LEAST_S if n < LINE_STARTS else 0.001
    return float(n / max(now - oldest, least))


# -- limits ----------------------------------------------------------------------------------------------------


def release(link: Connection, lines: Iterable[str], now: float, besides: str = "") -> list[Ring]:
    """Let in jobs of limited lines, first come first, as far as there is room. `besides`: a job that ends just now."""
    rings: list[Ring] = []
    for line in sorted(set(lines)):
        link.execute(select(func.pg_advisory_xact_lock(func.hashtext(line))))
        for _ in range(MOST_AT_ONCE):
            following = link.execute(_first_held(line, besides)).mappings().one_or_none()
            if following is None or not _has_room(link, line, rows.plan_of(following["plan"]), now, besides):
                break
            link.execute(update(jobs).where(jobs.c.id == following["id"]).values(held=False))
            rings += _open(link, following["id"], now)
    return rings


def lines_held(link: Connection) -> list[str]:
    """The lines in which somebody is held back."""
    return list(link.scalars(select(jobs.c.line).where(jobs.c.held, jobs.c.finished.is_(None)).distinct()))


def _first_held(line: str, besides: str) -> Select[Any]:
    held = (jobs.c.line == line, jobs.c.held, jobs.c.finished.is_(None), jobs.c.id != besides)
    first = select(jobs.c.id, jobs.c.plan).where(*held)
    return first.order_by(*_TURN).limit(1).with_for_update(key_share=True, skip_locked=True)


def _has_room(link: Connection, line: str, plan: Plan, now: float, besides: str) -> bool:
    def count(*which: ColumnElement[bool]) -> int:
        return link.scalar(select(func.count()).where(jobs.c.line == line, jobs.c.id != besides, *which)) or 0

    let_in = (jobs.c.held.is_(False), jobs.c.finished.is_(None))
    if plan.concurrency is not None and count(*let_in) >= plan.concurrency:
        return False
    if plan.rate is None:
        return True
    lately = link.scalar(select(func.count()).where(jobs.c.line == line, jobs.c.started > now - MINUTE_S)) or 0
    return lately + count(*let_in, jobs.c.started.is_(None)) < plan.rate


def _open(link: Connection, job_id: str, now: float) -> list[Ring]:
    """The parts that were held back are ready now."""
    opened = update(parts).where(parts.c.job_id == job_id, parts.c.state == HELD)
    opened = opened.values(state=UNRUNG, ready_at=now, ring_due=now + RING_UNCONFIRMED_S)
    found = link.execute(opened.returning(*parts.c)).mappings()
    return [rows.ring_of(row) for row in sorted(found, key=lambda row: row["index"])]
