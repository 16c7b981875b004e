"""Looks at Redis: what is dead, what waits for long, whose files are needed, which workers are there."""

from __future__ import annotations

import json

from jobs.errors import JobNotFound
from jobs.model import DeadPart, PartKey, Presence, Status
from jobs.stores import redis_records as records
from jobs.stores.redis_link import Link, answering, wire

LOOK_WAITS = 100  # how many parts that an older version took `longest_waits` passes over: it is asked at each scrape


def dead(link: Link, limit: int) -> list[DeadPart]:
    """Parts that used up their attempts, latest first."""
    with answering():
        listed = link.client.zrevrange("dead", 0, limit - 1, withscores=True)
        keys = [records.part_of(member) for member, _ in listed]
        pipe = link.client.pipeline(transaction=False)
        for at in keys:
            pipe.hmget(f"job:{at.job_id}", f"s{at.stage}.name", "pipeline", "status", f"s{at.stage}.generation")
            pipe.hget(f"job:{at.job_id}:s{at.stage}:errors", at.index)
        found = pipe.execute()
    return [
        DeadPart(at, name.decode(), pipeline.decode(), Status(status.decode()), error, since / 1000)
        for n, (at, (_, since)) in enumerate(zip(keys, listed, strict=True))
        for name, pipeline, status, generation in [found[2 * n]]
        if name and int(generation) == at.generation and (error := records.error_of(found[2 * n + 1]))
    ]


def longest_waits(link: Link) -> dict[str, float]:
    """By task: for how long the oldest ready part has been so."""
    return {task.decode(errors="surrogatepass"): ms / 1000 for task, ms in link.run("longest_waits", LOOK_WAITS)}


def present(link: Link) -> list[Presence]:
    """The workers that are there, by name."""
    with answering():
        names = link.client.zrangebyscore("workers", link.now() * 1000, "inf")
        told = link.client.hmget("workers:told", sorted(names)) if names else []
    return [Presence.of(json.loads(text)) for text in told if text]


def needed(link: Link, job_id: str) -> frozenset[tuple[PartKey, int]] | None:
    """Parts done or leased, with their fences; None: a removed job whose relatives live. Raises JobNotFound."""
    with answering():
        stages, status = link.client.hmget(wire(f"job:{job_id}"), "n", "status")
        if stages is None and link.client.hexists("gone", wire(job_id)):
            return None
        if stages is None:
            raise JobNotFound(job_id=job_id)
        pipe = link.client.pipeline(transaction=True)
        for s in range(int(stages)):
            pipe.hget(f"job:{job_id}", f"s{s}.generation")
            pipe.hgetall(f"job:{job_id}:s{s}:parts")
        found = pipe.execute()
    keeps = ("done",) if Status(status.decode()).is_final else ("done", "leased")
    return frozenset(
        (PartKey(job_id, s, int(found[2 * s]), int(i)), part["f"])
        for s in range(int(stages))
        for i, text in found[2 * s + 1].items()
        if (part := json.loads(text))["st"] in keeps
    )
