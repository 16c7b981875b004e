"""Records as a client reads them from Postgres: by id, and in pages, newest first. Each function is a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Select, select, tuple_

from jobs.errors import JobNotFound
from jobs.model import Job, Page, Status
from jobs.stores import cursors
from jobs.stores import postgres_rows as rows
from jobs.stores.postgres_schema import jobs, labels

LOOK = 1_000  # how many jobs a page with combined filters looks at


def by_ids(link: Connection, ids: Iterable[str]) -> list[Job]:
    """The records of some jobs, in no order."""
    return [rows.job_of(row) for row in link.execute(select(jobs).where(jobs.c.id.in_(list(ids)))).mappings()]


def check(link: Connection, job_id: str) -> None:
    """Raises JobNotFound."""
    if link.scalar(select(jobs.c.id).where(jobs.c.id == job_id)) is None:
        raise JobNotFound(job_id=job_id)


def page(
    link: Connection,
    status: Status | None,
    pipeline: str | None,
    label: tuple[str, str] | None,
    cursor: str | None,
    limit: int,
) -> Page:
    """Walk the narrowest index; with filters that combine, over a bounded stretch of it."""
    combined = sum(one is not None for one in (status, pipeline, label)) > 1
    look = max(LOOK, limit) if combined else limit
    stretch = _stretch(status, pipeline, label, cursors.read(cursor, float)).limit(look + 1)
    seen = list(link.execute(stretch))
    fitting = [
        (created, job_id)
        for created, job_id, its_status, its_pipeline in seen[:look]
        if (status is None or its_status == status.value) and (pipeline is None or its_pipeline == pipeline)
    ]
    shown = fitting[:limit]
    if len(fitting) > limit:
        following: str | None = cursors.write(*shown[-1])
    else:
        following = cursors.write(seen[look - 1][0], seen[look - 1][1]) if len(seen) > look else None
    found = {job.id: job for job in by_ids(link, [job_id for _, job_id in shown])} if shown else {}
    return Page(tuple(found[job_id] for _, job_id in shown if job_id in found), following)


def _stretch(
    status: Status | None, pipeline: str | None, label: tuple[str, str] | None, after: tuple[float, str] | None
) -> Select[Any]:
    order = labels.c if label else jobs.c
    job_id = labels.c.job_id if label else jobs.c.id
    found = select(order.created, job_id, jobs.c.status, jobs.c.pipeline)
    if label:
        found = found.join(jobs, jobs.c.id == labels.c.job_id).where(labels.c.label == rows.label_digest(*label))
    elif status is not None:
        found = found.where(jobs.c.status == status.value)
    elif pipeline is not None:
        found = found.where(jobs.c.pipeline == pipeline)
    if after is not None:
        found = found.where(tuple_(order.created, job_id) < tuple_(*after))
    return found.order_by(order.created.desc(), job_id.desc())
