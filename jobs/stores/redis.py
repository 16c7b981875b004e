"""Records in Redis (or Valkey): one short Lua script per transition, run in one primary with AOF `always`.

A script checks everything before its first write, since an error in a script leaves its earlier writes in place.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict
from typing import Any

import redis

from jobs.errors import (
    ClaimLost,
    JobNotFailed,
    JobNotFound,
    JobsError,
    KeyReused,
    TooManyParts,
    TooManyWaiting,
    UploadNotFound,
)
from jobs.model import (
    MAX_PARTS,
    Accepted,
    Artifact,
    Cause,
    Change,
    Claim,
    DeadPart,
    Emitted,
    Ended,
    Event,
    Job,
    JobError,
    LogLine,
    Output,
    Page,
    PartKey,
    Place,
    Presence,
    Pressure,
    Ring,
    Standing,
    Status,
    Submission,
    Upload,
)
from jobs.store import FINAL_REMOVABLE_S, LOG_LINES, NO_WORKER_S
from jobs.stores import redis_looks as looks
from jobs.stores import redis_pages as pages
from jobs.stores import redis_records as records
from jobs.stores.redis_link import Link, answering, wire

LOOK = 64  # how many rings of a queue `claim_more` looks at
STEP = 200  # how many rings one call names


class RedisStore:
    """JobStore in Redis. Raises StoreRefused in cluster mode: a job's keys would lie on several nodes."""

    def __init__(self, url: str, *, result_ttl_s: float, without: Set[str] = frozenset()) -> None:
        self._ttl_s = result_ttl_s
        self._link = Link(url, without)

    # -- a client's side ------------------------------------------------------------------------------------

    def add(self, submissions: Sequence[Submission], *, most_waiting: int | None = None) -> list[Accepted | JobsError]:
        calls = [("add", self._add_args(one, most_waiting)) for one in submissions]
        answers = self._link.run_all(calls)
        return [self._accepted(one, answer) for one, answer in zip(submissions, answers, strict=True)]

    def _add_args(self, one: Submission, most_waiting: int | None) -> list[Any]:
        job = one.job
        fields = records.job_fields(one, self._ttl_s)
        return [
            job.id,
            f"key:{job.owner}:{one.key}" if one.key else "",
            one.digest,
            int(self._ttl_s * 1000),
            "" if job.deadline_s is None else int(job.deadline_s * 1000),
            json.dumps(one.pins, ensure_ascii=False),  # cjson refuses an escaped lone surrogate
            records.dumps([pages.label_index(*label) for label in job.labels.items()]),
            "" if most_waiting is None else most_waiting,
            *(part for pair in fields.items() for part in pair),
        ]

    def _accepted(self, one: Submission, answer: list[Any]) -> Accepted | JobsError:
        match answer:
            case [b"new", _, created, rings]:
                return Accepted(records.fresh(one.job, int(created)), rings=records.rings_of(rings))
            case [b"replay", job_id]:
                return Accepted(self.get(job_id.decode()), replayed=True)
            case [b"reused", job_id]:
                return KeyReused(job_id=job_id.decode())
            case [b"unknown", upload_id]:
                return UploadNotFound(file=upload_id.decode(errors="surrogatepass"))
            case [b"full", waiting]:
                return TooManyWaiting(waiting=int(waiting))
        raise AssertionError(answer)

    def get(self, job_id: str) -> Job:
        with answering():
            found = self._link.client.hgetall(wire(f"job:{job_id}"))
        if not found:
            raise JobNotFound(job_id=job_id)
        return records.job_of(records.texts(found))

    def page(
        self,
        *,
        status: Status | None = None,
        pipeline: str | None = None,
        label: tuple[str, str] | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        return pages.page(self._link, status, pipeline, label, cursor, limit)

    def place(self, job_id: str) -> Place | None:
        match self._link.run("place", job_id):
            case [b"unknown"]:
                raise JobNotFound(job_id=job_id)
            case [b"waits", position, per_s]:
                return Place(int(position), float(per_s))
        return None

    def pressure(self) -> Pressure:
        waiting, per_s = self._link.run("pressure")
        return Pressure(int(waiting), float(per_s))

    def dismiss(self, job_id: str) -> Job:
        if not self._link.run("dismiss", job_id):
            raise JobNotFound(job_id=job_id)
        return self.get(job_id)

    def remove(self, job_id: str) -> None:
        self._link.run("remove", job_id, int(FINAL_REMOVABLE_S * 1000))

    def retry(self, job_id: str, new_id: str) -> Accepted:
        match self._link.run("retry", job_id, new_id):
            case [b"unknown"]:
                raise JobNotFound(job_id=job_id)
            case [b"not-failed", status]:
                raise JobNotFailed(f"The job is {status.decode()}.", job_status=status.decode())
            case [b"new", rings]:
                return Accepted(self.get(new_id), rings=records.rings_of(rings))
        return Accepted(self.get(new_id), replayed=True)

    def events(self, job_id: str, after: int = 0, limit: int = 1_000) -> list[Event]:
        key = f"job:{job_id}"
        exists, found = self._link.read(key, lambda p: p.xrange(wire(f"{key}:events"), min=f"({after}-0", count=limit))
        return [records.event_of(entry) for entry in _existing(job_id, exists, found)]

    def logs(self, job_id: str) -> list[LogLine]:
        key = f"job:{job_id}"
        exists, found = self._link.read(key, lambda p: p.xrange(wire(f"{key}:log")))
        return [records.log_line_of(entry) for entry in _existing(job_id, exists, found)]

    def outputs(self, job_id: str, stage: int) -> list[Output]:
        key = f"job:{job_id}"
        exists, values, errors = self._link.read(
            key,
            lambda p: p.hgetall(wire(f"{key}:s{stage}:outputs")),
            lambda p: p.hgetall(wire(f"{key}:s{stage}:errors")),
        )
        _existing(job_id, exists, values)
        done = [Output(int(i), value) for i, value in values.items()]
        dead = [Output(int(i), None, records.error_of(error)) for i, error in errors.items()]
        return sorted(done + dead, key=lambda output: output.index)

    def artifacts(self, job_id: str) -> list[Artifact]:
        key = f"job:{job_id}"
        with answering():
            stages = self._link.client.hget(wire(key), "n")
        if stages is None:
            raise JobNotFound(job_id=job_id)
        reads = [lambda p, s=s: p.hgetall(f"{key}:s{s}:artifacts") for s in range(int(stages))]
        _, *found = self._link.read(key, *reads)
        by_name = {name: text for stage in found for name, text in stage.items()}
        return sorted((records.artifact_of(text) for text in by_name.values()), key=lambda a: a.name)

    # -- uploads --------------------------------------------------------------------------------------------

    def add_upload(self, upload: Upload, ttl_s: float) -> Upload:
        fields = records.upload_fields(upload)
        flat = self._link.run(
            "add_upload", upload.id, int(ttl_s * 1000), *(part for pair in fields.items() for part in pair)
        )
        return records.upload_of(records.texts(records.pairs(flat)))

    def upload(self, upload_id: str) -> Upload:
        with answering():
            found = self._link.client.hgetall(wire(f"upload:{upload_id}"))
        if not found:
            raise UploadNotFound(file=upload_id)
        return records.upload_of(records.texts(found))

    # -- a worker's side ------------------------------------------------------------------------------------

    def claim(self, at: PartKey, worker: str, token: str, lease_s: float, device: str = "") -> Claim | None:
        row = self._link.run("claim", *at.as_args(), worker, token, int(lease_s * 1000), device)
        return records.claim_of(row) if row else None

    def claim_more(
        self, like: Claim, worker: str, tokens: Sequence[str], lease_s: float, device: str = ""
    ) -> list[Claim]:
        if not tokens:
            return []
        queue, lease_ms = like.stage.queue, int(lease_s * 1000)
        args = [like.pipeline, like.at.stage, queue, worker, device, lease_ms, LOOK]
        return [records.claim_of(row) for row in self._link.run("claim_more", *args, *tokens)]

    def renew(self, claims: Sequence[Claim], lease_s: float, progress: Mapping[str, float] = {}) -> list[Standing]:
        calls: list[tuple[str, list[Any]]] = []
        for claim in claims:
            moved = progress.get(claim.token)
            told = "" if moved is None else f"{moved:.4g}"
            calls.append(("renew", [*_hold(claim), int(lease_s * 1000), told]))
        return [Standing(answer.decode()) for answer in self._link.run_all(calls)]

    def emit(self, claim: Claim, index: int, payload: bytes, files: Sequence[str] = ()) -> Emitted:
        following = claim.at.stage + 1
        if following >= len(claim.plan.stages) or not claim.plan.stages[following].each:
            raise ValueError(f"Nothing behind {claim.stage.name} takes what it emits.")
        if not 0 <= index < MAX_PARTS:
            raise TooManyParts(most=MAX_PARTS)
        match self._link.run("emit", *_hold(claim), index, payload, "\n".join(files), MAX_PARTS):
            case [b"emitted", rings]:
                return Emitted(records.rings_of(rings))
            case [b"full"]:
                return Emitted(full=True)
            case [b"many"]:
                raise TooManyParts(most=MAX_PARTS)
        raise ClaimLost(job_id=claim.at.job_id)

    def finish(
        self, claim: Claim, output: bytes, artifacts: Sequence[Artifact] = (), emitted: int | None = None
    ) -> Ended:
        flat: list[str] = []
        for one in artifacts:
            told = {"stage": claim.stage.name, "name": one.name, "bytes": one.bytes, "type": one.type}
            flat += [one.name, records.dumps(asdict(one)), records.dumps(told)]
        stated = "" if emitted is None else emitted
        return _ended(claim, self._link.run("finish", *_hold(claim), output, stated, *flat))

    def fail(self, claim: Claim, cause: Cause, error: JobError, delay_s: float = 0.0) -> Ended:
        told = records.dumps(asdict(error))
        return _ended(claim, self._link.run("fail", *_hold(claim), cause.value, told, int(delay_s * 1000)))

    def log(self, job_id: str, lines: Sequence[LogLine]) -> None:
        self._link.run("log", job_id, LOG_LINES, *(records.dumps(asdict(line)) for line in lines))

    # -- rings ----------------------------------------------------------------------------------------------

    def rung(self, keys: Sequence[Ring]) -> None:
        for start in range(0, len(keys), STEP):
            some = keys[start : start + STEP]
            self._link.run("rung", *(part for ring in some for part in (ring.queue, records.ring_member(ring.at))))

    def unrung(self, limit: int) -> list[Ring]:
        return list(records.rings_of(self._link.run("unrung", limit)))

    def rung_counts(self) -> dict[str, int]:
        with answering():
            queues = sorted(queue.decode() for queue in self._link.client.smembers("queues"))
            pipe = self._link.client.pipeline(transaction=False)
            for queue in queues:
                pipe.zcard(f"queue:{queue}:rung")
            return dict(zip(queues, pipe.execute(), strict=True))

    def missing(self, queue: str, messages: int, limit: int) -> list[Ring]:
        return list(records.rings_of(self._link.run("missing", queue, messages, limit)))

    def overdue(self, queue: str, limit: int) -> list[Ring]:
        return list(records.rings_of(self._link.run("overdue", queue, limit)))

    def strand(self, keys: Sequence[PartKey]) -> None:
        first, most = (int(seconds * 1000) for seconds in NO_WORKER_S)
        for start in range(0, len(keys), STEP):
            self._link.run("strand", first, most, *(records.ring_member(at) for at in keys[start : start + STEP]))

    # -- the sweep --------------------------------------------------------------------------------------------

    def release(self) -> list[Ring]:
        return list(records.rings_of(self._link.run("release")))

    def due(self, limit: int) -> list[Ring]:
        return list(records.rings_of(self._link.run("due", limit)))

    def end_leases(self, limit: int, grace_s: float, delay_s: float = 0.0) -> list[Ended]:
        ended = self._link.run("end_leases", limit, int(grace_s * 1000), int(delay_s * 1000))
        return [
            Ended(Status(status.decode()), records.rings_of(rings), records.lost_of(lost))
            for status, rings, lost in ended
        ]

    def end_deadlines(self, limit: int) -> list[str]:
        return [job_id.decode() for job_id in self._link.run("end_deadlines", limit)]

    def expire(self, limit: int) -> int:
        return int(self._link.run("expire", limit))

    def trash(self, limit: int) -> list[str]:
        with answering():
            return [name.decode() for name in self._link.client.zrange("trash", 0, limit - 1)]

    def trashed(self, names: Sequence[str]) -> None:
        if names:
            with answering():
                self._link.client.zrem("trash", *names)

    def needed(self, job_id: str) -> frozenset[tuple[PartKey, int]] | None:
        return looks.needed(self._link, job_id)

    # -- looking ----------------------------------------------------------------------------------------------

    def dead(self, limit: int) -> list[DeadPart]:
        return looks.dead(self._link, limit)

    def longest_waits(self) -> dict[str, float]:
        return looks.longest_waits(self._link)

    def now(self) -> float:
        return self._link.now()

    # -- watching ---------------------------------------------------------------------------------------------

    def watch(self, timeout_s: float = 1.0) -> Iterator[Change | None]:
        while True:
            try:
                with contextlib.closing(self._link.client.pubsub(ignore_subscribe_messages=True)) as channel:
                    channel.subscribe("jobs")
                    while True:
                        message = channel.get_message(timeout=timeout_s)
                        yield records.change_of(message["data"]) if message else None
            except redis.RedisError:
                yield None
                time.sleep(timeout_s)

    def announce(self, worker: Presence, ttl_s: float) -> None:
        self._link.run("announce", worker.name, records.dumps(asdict(worker)), int(ttl_s * 1000))

    def workers(self) -> list[Presence]:
        return looks.present(self._link)

    def counts(self) -> dict[tuple[str, Status], int]:
        with answering():
            found = records.texts(self._link.client.hgetall("counts"))
        split = {name.rpartition("|")[::2]: int(n) for name, n in found.items()}
        return {(pipeline, Status(status)): n for (pipeline, status), n in split.items() if n}

    def ping(self) -> None:
        self._link.ping()

    def close(self) -> None:
        self._link.client.close()


def _hold(claim: Claim) -> tuple[Any, ...]:
    return (*claim.at.as_args(), claim.fence, claim.token)


def _ended(claim: Claim, answer: list[Any]) -> Ended:
    if answer[0] == b"lost":
        raise ClaimLost(job_id=claim.at.job_id)
    return Ended(Status(answer[0].decode()), records.rings_of(answer[1]))


def _existing(job_id: str, exists: int, found: Any) -> Any:
    if not exists:
        raise JobNotFound(job_id=job_id)
    return found
