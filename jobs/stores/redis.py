"""Records in Redis (or Valkey): one short Lua script per transition, run in one primary with AOF `always`.

A script checks everything before its first write, since an error in a script leaves its earlier writes in place.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from hashlib import sha1
from importlib.resources import files as package_files
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from jobs.errors import (
    ClaimLost,
    CursorInvalid,
    JobNotFailed,
    JobNotFound,
    JobsError,
    KeyReused,
    StoreRefused,
    StoreUnavailable,
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
    Pressure,
    Ring,
    Standing,
    Status,
    Submission,
    Upload,
)
from jobs.store import FINAL_REMOVABLE_S, LOG_LINES, NO_WORKER_S
from jobs.stores import redis_records as records

ANSWER_S = 2.5  # a call that gets no answer for so long has failed; a client is told within 3 s
LOOK = 64  # how many rings of a queue `claim_more` looks at
STEP = 200  # how many ids of an index one round of `page` reads
STEPS = 10  # rounds before a page is cut short
LOOK_WAITS = 5_000  # how many ready parts of a queue `longest_waits` looks at
PROTECTS = " -- protection: "  # ends a script's line that the fault battery can leave out


class RedisStore:
    """JobStore in Redis. Raises StoreRefused in cluster mode: a job's keys would lie on several nodes."""

    def __init__(self, url: str, *, result_ttl_s: float, without: Set[str] = frozenset()) -> None:
        self._ttl_s = result_ttl_s
        self._without = frozenset(without)
        self._checked = False
        self._client: Any = redis.Redis.from_url(  # its types allow text and bytes everywhere; this one gives bytes
            url,
            socket_timeout=ANSWER_S,
            socket_connect_timeout=1.0,
            health_check_interval=15,
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2, supported_errors=(redis.ConnectionError,)),
        )

    # -- a client's side ------------------------------------------------------------------------------------

    def add(self, submissions: Sequence[Submission], *, most_waiting: int | None = None) -> list[Accepted | JobsError]:
        calls = [("add", self._add_args(one, most_waiting)) for one in submissions]
        answers = self._run_all(calls)
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
            records.dumps([_label_index(*label) for label in job.labels.items()]),
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
        with _answering():
            found = self._client.hgetall(_wire(f"job:{job_id}"))
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
        index = _index(status, pipeline, label)
        after = _read_cursor(cursor)
        jobs: list[Job] = []
        asked = max(limit, STEP) if label else limit
        for _ in range(STEPS):
            ids = self._ids(index, after, asked)
            for job in self._jobs(ids):
                after = (int(job.created * 1000 + 0.5), job.id)
                if (status is None or job.status is status) and (pipeline is None or job.pipeline == pipeline):
                    jobs.append(job)
                if len(jobs) == limit:
                    more = self._ids(index, after, 1)
                    return Page(tuple(jobs), _cursor(after) if more else None)
            if len(ids) < asked:
                return Page(tuple(jobs))
        return Page(tuple(jobs), _cursor(after) if after else None)

    def _ids(self, index: Any, after: tuple[int, str] | None, count: int) -> list[str]:
        """Ids of an index, newest first, beginning behind `after`."""
        index = _wire(index)
        with _answering():
            if after is None:
                return [i.decode() for i in self._client.zrevrange(index, 0, count - 1)]
            created, last = after
            same = self._client.zrangebyscore(index, created, created)
            ids = sorted((i.decode() for i in same if i.decode() < last), reverse=True)[:count]
            if len(ids) < count:
                older = self._client.zrevrangebyscore(index, f"({created}", "-inf", start=0, num=count - len(ids))
                ids += [i.decode() for i in older]
            return ids

    def _jobs(self, ids: Sequence[str]) -> Iterator[Job]:
        with _answering():
            pipe = self._client.pipeline(transaction=False)
            for job_id in ids:
                pipe.hgetall(f"job:{job_id}")
            found = pipe.execute()
        return (records.job_of(records.texts(h)) for h in found if h)

    def place(self, job_id: str) -> Place | None:
        match self._run("place", job_id):
            case [b"unknown"]:
                raise JobNotFound(job_id=job_id)
            case [b"waits", position, per_s]:
                return Place(int(position), float(per_s))
        return None

    def pressure(self) -> Pressure:
        waiting, per_s = self._run("pressure")
        return Pressure(int(waiting), float(per_s))

    def dismiss(self, job_id: str) -> Job:
        if not self._run("dismiss", job_id):
            raise JobNotFound(job_id=job_id)
        return self.get(job_id)

    def remove(self, job_id: str) -> None:
        self._run("remove", job_id, int(FINAL_REMOVABLE_S * 1000))

    def retry(self, job_id: str, new_id: str) -> Accepted:
        match self._run("retry", job_id, new_id):
            case [b"unknown"]:
                raise JobNotFound(job_id=job_id)
            case [b"not-failed", status]:
                raise JobNotFailed(f"The job is {status.decode()}.", job_status=status.decode())
            case [b"new", rings]:
                return Accepted(self.get(new_id), rings=records.rings_of(rings))
        return Accepted(self.get(new_id), replayed=True)

    def events(self, job_id: str, after: int = 0, limit: int = 1_000) -> list[Event]:
        key = f"job:{job_id}"
        exists, found = self._read(key, lambda p: p.xrange(_wire(f"{key}:events"), min=f"({after}-0", count=limit))
        return [records.event_of(entry) for entry in _existing(job_id, exists, found)]

    def logs(self, job_id: str) -> list[LogLine]:
        key = f"job:{job_id}"
        exists, found = self._read(key, lambda p: p.xrange(_wire(f"{key}:log")))
        return [records.log_line_of(entry) for entry in _existing(job_id, exists, found)]

    def outputs(self, job_id: str, stage: int) -> list[Output]:
        key = f"job:{job_id}"
        exists, values, errors = self._read(
            key,
            lambda p: p.hgetall(_wire(f"{key}:s{stage}:outputs")),
            lambda p: p.hgetall(_wire(f"{key}:s{stage}:errors")),
        )
        _existing(job_id, exists, values)
        done = [Output(int(i), value) for i, value in values.items()]
        dead = [Output(int(i), None, records.error_of(error)) for i, error in errors.items()]
        return sorted(done + dead, key=lambda output: output.index)

    def artifacts(self, job_id: str) -> list[Artifact]:
        key = f"job:{job_id}"
        with _answering():
            stages = self._client.hget(_wire(key), "n")
        if stages is None:
            raise JobNotFound(job_id=job_id)
        reads = [lambda p, s=s: p.hgetall(f"{key}:s{s}:artifacts") for s in range(int(stages))]
        _, *found = self._read(key, *reads)
        by_name = {name: text for stage in found for name, text in stage.items()}
        return sorted((records.artifact_of(text) for text in by_name.values()), key=lambda a: a.name)

    # -- uploads --------------------------------------------------------------------------------------------

    def add_upload(self, upload: Upload, ttl_s: float) -> Upload:
        fields = records.upload_fields(upload)
        flat = self._run(
            "add_upload", upload.id, int(ttl_s * 1000), *(part for pair in fields.items() for part in pair)
        )
        return records.upload_of(records.texts(records.pairs(flat)))

    def upload(self, upload_id: str) -> Upload:
        with _answering():
            found = self._client.hgetall(_wire(f"upload:{upload_id}"))
        if not found:
            raise UploadNotFound(file=upload_id)
        return records.upload_of(records.texts(found))

    # -- a worker's side ------------------------------------------------------------------------------------

    def claim(self, at: PartKey, worker: str, token: str, lease_s: float, device: str = "") -> Claim | None:
        row = self._run("claim", *at.as_args(), worker, token, int(lease_s * 1000), device)
        return records.claim_of(row) if row else None

    def claim_more(
        self, like: Claim, worker: str, tokens: Sequence[str], lease_s: float, device: str = ""
    ) -> list[Claim]:
        if not tokens:
            return []
        queue, lease_ms = like.stage.queue, int(lease_s * 1000)
        args = [like.pipeline, like.at.stage, queue, worker, device, lease_ms, LOOK]
        return [records.claim_of(row) for row in self._run("claim_more", *args, *tokens)]

    def renew(self, claims: Sequence[Claim], lease_s: float, progress: Mapping[str, float] = {}) -> list[Standing]:
        calls: list[tuple[str, list[Any]]] = []
        for claim in claims:
            moved = progress.get(claim.token)
            told = "" if moved is None else f"{moved:.4g}"
            calls.append(("renew", [*_hold(claim), int(lease_s * 1000), told]))
        return [Standing(answer.decode()) for answer in self._run_all(calls)]

    def emit(self, claim: Claim, index: int, payload: bytes, files: Sequence[str] = ()) -> Emitted:
        following = claim.at.stage + 1
        if following >= len(claim.plan.stages) or not claim.plan.stages[following].each:
            raise ValueError(f"Nothing behind {claim.stage.name} takes what it emits.")
        if not 0 <= index < MAX_PARTS:
            raise TooManyParts(most=MAX_PARTS)
        match self._run("emit", *_hold(claim), index, payload, "\n".join(files), MAX_PARTS):
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
        return _ended(claim, self._run("finish", *_hold(claim), output, stated, *flat))

    def fail(self, claim: Claim, cause: Cause, error: JobError, delay_s: float = 0.0) -> Ended:
        told = records.dumps(asdict(error))
        return _ended(claim, self._run("fail", *_hold(claim), cause.value, told, int(delay_s * 1000)))

    def log(self, job_id: str, lines: Sequence[LogLine]) -> None:
        self._run("log", job_id, LOG_LINES, *(records.dumps(asdict(line)) for line in lines))

    # -- rings ----------------------------------------------------------------------------------------------

    def rung(self, keys: Sequence[Ring]) -> None:
        for start in range(0, len(keys), STEP):
            some = keys[start : start + STEP]
            self._run("rung", *(part for ring in some for part in (ring.queue, records.ring_member(ring.at))))

    def unrung(self, limit: int) -> list[Ring]:
        return list(records.rings_of(self._run("unrung", limit)))

    def rung_counts(self) -> dict[str, int]:
        with _answering():
            queues = sorted(queue.decode() for queue in self._client.smembers("queues"))
            pipe = self._client.pipeline(transaction=False)
            for queue in queues:
                pipe.zcard(f"queue:{queue}:rung")
            return dict(zip(queues, pipe.execute(), strict=True))

    def missing(self, queue: str, messages: int, limit: int) -> list[Ring]:
        return list(records.rings_of(self._run("missing", queue, messages, limit)))

    def overdue(self, queue: str, limit: int) -> list[Ring]:
        return list(records.rings_of(self._run("overdue", queue, limit)))

    def strand(self, keys: Sequence[PartKey]) -> None:
        first, most = (int(seconds * 1000) for seconds in NO_WORKER_S)
        for start in range(0, len(keys), STEP):
            self._run("strand", first, most, *(records.ring_member(at) for at in keys[start : start + STEP]))

    # -- the sweep --------------------------------------------------------------------------------------------

    def release(self) -> list[Ring]:
        return list(records.rings_of(self._run("release")))

    def due(self, limit: int) -> list[Ring]:
        return list(records.rings_of(self._run("due", limit)))

    def end_leases(self, limit: int, grace_s: float, delay_s: float = 0.0) -> list[Ended]:
        ended = self._run("end_leases", limit, int(grace_s * 1000), int(delay_s * 1000))
        return [Ended(Status(status.decode()), records.rings_of(rings)) for status, rings in ended]

    def end_deadlines(self, limit: int) -> list[str]:
        return [job_id.decode() for job_id in self._run("end_deadlines", limit)]

    def expire(self, limit: int) -> int:
        return int(self._run("expire", limit))

    def trash(self, limit: int) -> list[str]:
        with _answering():
            return [name.decode() for name in self._client.zrange("trash", 0, limit - 1)]

    def trashed(self, names: Sequence[str]) -> None:
        if names:
            with _answering():
                self._client.zrem("trash", *names)

    def needed(self, job_id: str) -> frozenset[tuple[PartKey, int]] | None:
        with _answering():
            stages, status = self._client.hmget(_wire(f"job:{job_id}"), "n", "status")
            if stages is None and self._client.hexists("gone", _wire(job_id)):
                return None
            if stages is None:
                raise JobNotFound(job_id=job_id)
            pipe = self._client.pipeline(transaction=True)
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

    # -- looking ----------------------------------------------------------------------------------------------

    def dead(self, limit: int) -> list[DeadPart]:
        with _answering():
            listed = self._client.zrevrange("dead", 0, limit - 1, withscores=True)
            keys = [records.part_of(member) for member, _ in listed]
            pipe = self._client.pipeline(transaction=False)
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

    def longest_waits(self) -> dict[str, float]:
        with _answering():
            now_s, us = self._client.time()
            longest: dict[str, float] = {}
            for queue in self._client.smembers("queues"):
                for list_ in (b"rung", b"unrung"):
                    name = b"queue:" + queue + b":" + list_
                    keys = [records.part_of(one) for one in self._client.zrange(name, 0, LOOK_WAITS - 1)]
                    pipe = self._client.pipeline(transaction=False)
                    for at in keys:
                        pipe.hmget(f"job:{at.job_id}", "pipeline", f"s{at.stage}.name")
                        pipe.hget(f"job:{at.job_id}:s{at.stage}:parts", at.index)
                    found = pipe.execute()
                    for (pipeline, stage), text in zip(found[::2], found[1::2], strict=True):
                        if pipeline and text:
                            task = f"{pipeline.decode()}.{stage.decode()}"
                            waits_s = now_s + us / 1e6 - json.loads(text)["ra"] / 1000
                            longest[task] = max(longest.get(task, 0.0), waits_s)
        return longest

    def now(self) -> float:
        with _answering():
            seconds, us = self._client.time()
        return float(seconds + us / 1e6)

    # -- watching ---------------------------------------------------------------------------------------------

    def watch(self, timeout_s: float = 1.0) -> Iterator[Change | None]:
        while True:
            try:
                with contextlib.closing(self._client.pubsub(ignore_subscribe_messages=True)) as channel:
                    channel.subscribe("jobs")
                    while True:
                        message = channel.get_message(timeout=timeout_s)
                        yield records.change_of(message["data"]) if message else None
            except redis.RedisError:
                yield None
                time.sleep(timeout_s)

    def counts(self) -> dict[tuple[str, Status], int]:
        with _answering():
            found = records.texts(self._client.hgetall("counts"))
        split = {name.rpartition("|")[::2]: int(n) for name, n in found.items()}
        return {(pipeline, Status(status)): n for (pipeline, status), n in split.items() if n}

    def ping(self) -> None:
        with _answering():
            self._client.ping()
        self._check()

    def close(self) -> None:
        self._client.close()

    # -- how a script is run ----------------------------------------------------------------------------------

    def _check(self) -> None:
        """Once, at the first call: refuse what cannot keep the promises."""
        if not self._checked:
            with _answering():
                mode = self._client.info("server").get("redis_mode")
            if mode == "cluster":
                raise StoreRefused("Redis in cluster mode cannot change a job in one step; use one primary.")
            self._checked = True

    def _run(self, name: str, *args: Any) -> Any:
        self._check()
        text, digest = _script(name, self._without)
        sent = [_wire(arg) for arg in args]
        with _answering():
            try:
                return self._client.evalsha(digest, 0, *sent)
            except redis.exceptions.NoScriptError:
                return self._client.eval(text, 0, *sent)

    def _run_all(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """Each call is one atomic step; all of them are one round trip."""
        self._check()
        with _answering():
            pipe = self._client.pipeline(transaction=False)
            for name, args in calls:
                pipe.evalsha(_script(name, self._without)[1], 0, *map(_wire, args))
            answers: list[Any] = pipe.execute(raise_on_error=False)
        for n, answer in enumerate(answers):
            if isinstance(answer, redis.exceptions.NoScriptError):
                answers[n] = self._run(calls[n][0], *calls[n][1])
            elif isinstance(answer, Exception):
                with _answering():
                    raise answer
        return answers

    def _read(self, key: str, *reads: Callable[[Any], Any]) -> list[Any]:
        """Whether a key exists, and some reads, as of one moment."""
        with _answering():
            pipe = self._client.pipeline(transaction=True)
            pipe.exists(_wire(key))
            for read in reads:
                read(pipe)
            answers: list[Any] = pipe.execute()
        return answers


@cache
def _script(name: str, without: frozenset[str]) -> tuple[str, str]:
    """A transition's text and digest; the shared parts stand before it. `without`: lines that are left out."""
    folder = package_files("jobs.stores") / "lua"
    shared = ["common", "claiming"] if name.startswith("claim") else ["common"]
    lines = [line for part in (*shared, name) for line in (folder / f"{part}.lua").read_text().splitlines()]
    text = "\n".join(line for line in lines if line.rpartition(PROTECTS)[2] not in without)
    return text, sha1(text.encode(), usedforsecurity=False).hexdigest()


@contextmanager
def _answering() -> Iterator[None]:
    """Turn whatever keeps Redis from answering into StoreUnavailable."""
    try:
        yield
    except (
        redis.ConnectionError,  # also BusyLoadingError
        redis.TimeoutError,
        redis.exceptions.ReadOnlyError,
        redis.exceptions.OutOfMemoryError,
    ) as error:
        raise StoreUnavailable() from error
    except redis.ResponseError as error:
        if any(word in str(error) for word in ("MISCONF", "BUSY", "OOM", "LOADING", "READONLY")):
            raise StoreUnavailable() from error
        raise


def _wire(arg: Any) -> Any:
    """Text that may come from outside has lone surrogates at times; the client's own encoder breaks at them."""
    return arg.encode(errors="surrogatepass") if isinstance(arg, str) and not arg.isascii() else arg


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


def _label_index(key: str, value: str) -> str:
    return "jobs:label:" + records.dumps([key, value])


def _index(status: Status | None, pipeline: str | None, label: tuple[str, str] | None) -> str:
    """The narrowest index that holds every job of a filter."""
    if label:
        return _label_index(*label)
    if pipeline:
        return f"jobs:pipeline:{pipeline}" + (f":status:{status.value}" if status else "")
    return f"jobs:status:{status.value}" if status else "jobs:all"


def _cursor(after: tuple[int, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(after).encode()).decode()


def _read_cursor(cursor: str | None) -> tuple[int, str] | None:
    if cursor is None:
        return None
    try:
        created, job_id = json.loads(base64.b64decode(cursor.encode(), altchars=b"-_", validate=True))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise CursorInvalid() from None
    if type(created) is not int or not isinstance(job_id, str) or not 0 <= created < 2**53:
        raise CursorInvalid()
    return created, job_id
