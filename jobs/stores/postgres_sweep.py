"""Rings and the sweep in Postgres. Each statement takes what nobody else holds, so any number of sweepers may run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Integer,
    and_,
    cast,
    extract,
    func,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from jobs.model import JobError, PartKey, Ring, Status
from jobs.store import RING_FALLBACK_MAX_S, RING_FALLBACK_S, RING_UNCONFIRMED_S, RUNG_COUNTED
from jobs.stores import postgres_rows as rows
from jobs.stores.postgres_held import CLOCK, hold
from jobs.stores.postgres_schema import LATER, LEASED, RUNG, UNRUNG, guards, jobs, parts

KEY = (parts.c.job_id, parts.c.stage, parts.c.generation, parts.c.index)
DEADLINE = JobError("deadline-passed", "The job was not finished by its deadline.")
_DOUBLED = RING_FALLBACK_S * func.power(2, func.least(parts.c.rings + 1, 30))
_RUNG = text(f"""
WITH RECURSIVE known (queue) AS (
  (SELECT queue FROM parts WHERE state = '{RUNG}' ORDER BY queue LIMIT 1)
  UNION ALL
  SELECT (SELECT queue FROM parts WHERE state = '{RUNG}' AND queue > known.queue ORDER BY queue LIMIT 1)
  FROM known WHERE known.queue IS NOT NULL
)
SELECT known.queue, (
  SELECT count(*) FROM (SELECT 1 FROM parts WHERE state = '{RUNG}' AND parts.queue = known.queue LIMIT :most) AS first
) AS counted FROM known WHERE known.queue IS NOT NULL
""").columns(queue=parts.c.queue.type, counted=Integer)  # each queue costs :most steps in an index at most
_NEXT_FALLBACK = CLOCK + func.least(_DOUBLED, RING_FALLBACK_MAX_S)


def rung(link: Connection, keys: Sequence[Ring]) -> None:
    """Confirmed rings: a part that is still unrung is rung."""
    wanted = tuple_(*KEY).in_([ring.at.as_args() for ring in keys])
    _take(link, and_(wanted, parts.c.state == UNRUNG), None, None, state=RUNG, ring_due=CLOCK + RING_FALLBACK_S)


def unrung(link: Connection, limit: int) -> list[Ring]:
    """Rings that nobody confirmed in time."""
    due = and_(parts.c.state == UNRUNG, parts.c.ring_due <= CLOCK)
    return _take(link, due, parts.c.ring_due, limit, ring_due=CLOCK + RING_UNCONFIRMED_S)


def rung_counts(link: Connection) -> dict[str, int]:
    """By queue: how many rung parts are ready."""
    return {row.queue: row.counted for row in link.execute(_RUNG, {"most": RUNG_COUNTED})}


def missing(link: Connection, queue: str, messages: int, limit: int) -> list[Ring]:
    """Rings by deficit. The guard's row is locked until the end, so that two sweepers cannot both find it."""
    here = and_(parts.c.state == RUNG, parts.c.queue == queue)
    some = select(parts.c.ring_due).where(here).limit(messages + limit).subquery()
    deficit = (link.scalar(select(func.count()).select_from(some)) or 0) - messages
    if deficit <= 0:
        return []
    guard = upsert(guards).values(queue=queue, at=CLOCK)
    open_again = guard.on_conflict_do_update(
        index_elements=["queue"], set_={"at": CLOCK}, where=guards.c.at <= CLOCK - 1.0
    )
    if link.scalar(open_again.returning(guards.c.queue)) is None:
        return []
    return _take(link, here, parts.c.ring_due, deficit, rings=parts.c.rings + 1, ring_due=_NEXT_FALLBACK)


def overdue(link: Connection, queue: str, limit: int) -> list[Ring]:
    """Rung parts that nobody claimed in their interval."""
    due = and_(parts.c.state == RUNG, parts.c.queue == queue, parts.c.ring_due <= CLOCK)
    return _take(link, due, parts.c.ring_due, limit, rings=parts.c.rings + 1, ring_due=_NEXT_FALLBACK)


def due(link: Connection, limit: int) -> list[Ring]:
    """Parts whose back-off is over."""
    over = and_(parts.c.state == LATER, parts.c.ready_at <= CLOCK)
    return _take(link, over, parts.c.ready_at, limit, state=UNRUNG, rings=0, ring_due=CLOCK + RING_UNCONFIRMED_S)


def _take(link: Connection, which: ColumnElement[bool], order: Any, limit: int | None, **values: Any) -> list[Ring]:
    """Change the first of some parts that nobody else holds just now; their rings, in that order."""
    place = order if order is not None else parts.c.job_id
    some = select(*KEY, place.label("place")).where(which).order_by(order).limit(limit)
    taken = some.with_for_update(key_share=True, skip_locked=True).cte("taken")
    same = (column == taken.c[column.name] for column in KEY)
    change = update(parts).where(*same).values(**values)
    change = change.returning(*KEY, parts.c.task, parts.c.queue, parts.c.priority, taken.c.place)
    found = sorted(link.execute(change).mappings(), key=lambda row: (row["place"], rows.key_of(row)))
    return [rows.ring_of(row) for row in found]


def leases_over(link: Connection, limit: int, grace_s: float) -> list[PartKey]:
    """Parts whose lease ran out; none while the server itself has been up for less than `grace_s`."""
    up: float = link.scalar(select(CLOCK - cast(extract("epoch", func.pg_postmaster_start_time()), Double))) or 0.0
    if up < grace_s:
        return []
    over = select(*KEY).where(parts.c.state == LEASED, parts.c.lease_until <= CLOCK)
    return [rows.key_of(row) for row in link.execute(over.order_by(parts.c.lease_until).limit(limit)).mappings()]


def deadlines_over(link: Connection, limit: int) -> list[str]:
    """Jobs whose deadline has passed."""
    over = and_(jobs.c.deadline <= CLOCK, jobs.c.finished.is_(None))
    return list(link.scalars(select(jobs.c.id).where(over).order_by(jobs.c.deadline).limit(limit)))


def end_deadline(link: Connection, job_id: str) -> bool:
    """Fail one job whose deadline has passed, if nobody holds it just now."""
    held = hold(link, job_id, skip_locked=True)
    if held is None or held.status.is_final or held.job.deadline is None or held.job.deadline > held.now:
        return False
    held.end(Status.FAILED, DEADLINE)
    held.save()
    return True


def counts(link: Connection) -> dict[tuple[str, Status], int]:
    """Jobs by pipeline and status."""
    counted = select(jobs.c.pipeline, jobs.c.status, func.count()).group_by(jobs.c.pipeline, jobs.c.status)
    return {(pipeline, Status(status)): count for pipeline, status, count in link.execute(counted)}
