"""Pages of jobs in Redis, newest first: the narrowest index, read in steps from behind a cursor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jobs.model import Job, Page, Status
from jobs.stores import cursors
from jobs.stores import redis_records as records
from jobs.stores.redis_link import Link, answering, wire

STEP = 200  # how many ids of an index one round of `page` reads
STEPS = 10  # rounds before a page is cut short


def page(
    link: Link,
    status: Status | None,
    pipeline: str | None,
    label: tuple[str, str] | None,
    cursor: str | None,
    limit: int,
) -> Page:
    """Up to `limit` jobs that fit every filter. Raises CursorInvalid."""
    index = _index(status, pipeline, label)
    after = cursors.read(cursor, int)
    jobs: list[Job] = []
    asked = max(limit, STEP) if label else limit
    for _ in range(STEPS):
        ids = _ids(link, index, after, asked)
        for job in _jobs(link, ids):
            after = (int(job.created * 1000 + 0.5), job.id)
            if (status is None or job.status is status) and (pipeline is None or job.pipeline == pipeline):
                jobs.append(job)
            if len(jobs) == limit:
                more = _ids(link, index, after, 1)
                return Page(tuple(jobs), cursors.write(*after) if more else None)
        if len(ids) < asked:
            return Page(tuple(jobs))
    return Page(tuple(jobs), cursors.write(*after) if after else None)


def label_index(key: str, value: str) -> str:
    """The key of the index of jobs with a label."""
    return "jobs:label:" + records.dumps([key, value])


def _ids(link: Link, index: Any, after: tuple[int, str] | None, count: int) -> list[str]:
    """Ids of an index, newest first, beginning behind `after`."""
    index = wire(index)
    with answering():
        if after is None:
            return [i.decode() for i in link.client.zrevrange(index, 0, count - 1)]
        created, last = after
        same = link.client.zrangebyscore(index, created, created)
        ids = sorted((i.decode() for i in same if i.decode() < last), reverse=True)[:count]
        if len(ids) < count:
            older = link.client.zrevrangebyscore(index, f"({created}", "-inf", start=0, num=count - len(ids))
            ids += [i.decode() for i in older]
        return ids


def _jobs(link: Link, ids: Sequence[str]) -> Iterator[Job]:
    with answering():
        pipe = link.client.pipeline(transaction=False)
        for job_id in ids:
            pipe.hgetall(f"job:{job_id}")
        found = pipe.execute()
    return (records.job_of(records.texts(h)) for h in found if h)


def _index(status: Status | None, pipeline: str | None, label: tuple[str, str] | None) -> str:
    """The narrowest index that holds every job of a filter."""
    if label:
        return label_index(*label)
    if pipeline:
        return f"jobs:pipeline:{pipeline}" + (f":status:{status.value}" if status else "")
    return f"jobs:status:{status.value}" if status else "jobs:all"
