"""Looks at Postgres: what is dead, what waits for long, whose files are needed, which workers are there."""

from __future__ import annotations

import json
from dataclasses import asdict

from sqlalchemy import Connection, Double, delete, select, text
from sqlalchemy.dialects.postgresql import insert as upsert

from jobs.errors import JobNotFound
from jobs.model import DeadPart, JobError, PartKey, Presence, Status
from jobs.stores import postgres_rows as rows
from jobs.stores.postgres_held import CLOCK
from jobs.stores.postgres_schema import DEAD, DONE, LEASED, RUNG, UNRUNG, jobs, parts, workers

LOOK = 10  # dead parts that are looked at for each that may be listed

_FIRST = f"SELECT task, ready_at FROM parts WHERE state IN ('{UNRUNG}', '{RUNG}')"
OLDEST = text(f"""
WITH RECURSIVE oldest (task, ready_at) AS (
  ({_FIRST} ORDER BY task, ready_at LIMIT 1)
  UNION ALL
  SELECT following.task, following.ready_at FROM oldest
  CROSS JOIN LATERAL ({_FIRST} AND task > oldest.task ORDER BY task, ready_at LIMIT 1) AS following
)
SELECT task, CAST(extract(epoch FROM clock_timestamp()) AS double precision) - ready_at AS waits_s FROM oldest
""").columns(task=parts.c.task.type, waits_s=Double)  # each task costs one step in an index, however many parts it has


def dead(link: Connection, limit: int) -> list[DeadPart]:
    """Parts that used up their attempts, latest first; those whose input was bad had no second one."""
    found = select(parts, jobs.c.pipeline, jobs.c.status, jobs.c.plan).join(jobs, jobs.c.id == parts.c.job_id)
    latest = found.where(parts.c.state == DEAD).order_by(parts.c.ended_at.desc())
    listed: list[DeadPart] = []
    for row in link.execute(latest.limit(LOOK * limit)).mappings():
        plan = rows.plan_of(row["plan"])
        if len(listed) < limit and (row["failures"] >= plan.max_failures or row["losses"] >= plan.max_losses):
            stage = plan.stages[row["stage"]].name
            error = JobError(**row["error"])
            listed.append(
                DeadPart(rows.key_of(row), stage, row["pipeline"], Status(row["status"]), error, row["ended_at"])
            )
    return listed


def longest_waits(link: Connection) -> dict[str, float]:
    """By task: for how long the oldest ready part has been so."""
    return {row.task: row.waits_s for row in link.execute(OLDEST)}


def needed(link: Connection, job_id: str) -> frozenset[tuple[PartKey, int]] | None:
    """Parts done or leased, with their fences; None: a removed job whose relatives live. Raises JobNotFound."""
    status = link.scalar(select(jobs.c.status).where(jobs.c.id == job_id))
    if status is None:
        removed = link.scalars(select(jobs.c.folders).where(jobs.c.folders != [])).all()
        if any(f"jobs/{job_id}/" in folders for folders in removed):
            return None
        raise JobNotFound(job_id=job_id)
    keeps = [DONE] if Status(status).is_final else [DONE, LEASED]
    found = select(parts).where(parts.c.job_id == job_id, parts.c.state.in_(keeps))
    return frozenset((rows.key_of(row), row["fence"]) for row in link.execute(found).mappings())


def announce(link: Connection, worker: Presence, ttl_s: float) -> None:
    """A worker is there for so long; 0: it leaves."""
    mine = upsert(workers).values(name=worker.name, until=CLOCK + ttl_s, told=json.dumps(asdict(worker)))
    change = {"until": mine.excluded.until, "told": mine.excluded.told}
    link.execute(mine.on_conflict_do_update(index_elements=["name"], set_=change))
    # Those that another worker is just removing are passed over.
    gone = select(workers.c.name).where(workers.c.until <= CLOCK).with_for_update(skip_locked=True)
    link.execute(delete(workers).where(workers.c.name.in_(gone)))


def present(link: Connection) -> list[Presence]:
    """The workers that are there, by name."""
    found = link.scalars(select(workers.c.told).where(workers.c.until > CLOCK).order_by(workers.c.name))
    return [Presence.of(json.loads(text)) for text in found]
