"""Between the model and what Redis holds: one readable hash a job, JSON where a field has structure.

The scripts in lua/ read the same fields; docs/keys.md lists the keys. JSON that came from outside (params, input,
labels) stays text for Redis: Lua's cjson would turn [] into {} and round long numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

from jobs.model import (
    Artifact,
    Change,
    Claim,
    Event,
    Job,
    JobError,
    LogLine,
    Lost,
    PartKey,
    Plan,
    Ring,
    StagePlan,
    StageState,
    Status,
    Submission,
    Upload,
    each_progress,
)

Fields = Mapping[str, str]


def dumps(value: Any) -> str:
    """JSON in ASCII, so that lone surrogates and NUL survive as escapes."""
    return json.dumps(value, separators=(",", ":"))


def job_fields(submission: Submission, ttl_s: float) -> dict[str, Any]:
    """The hash of a new job, as far as the gateway knows it."""
    job = submission.job
    fields: dict[str, Any] = {
        "id": job.id,
        "pipeline": job.pipeline,
        "status": Status.ACCEPTED.value,
        "priority": job.priority,
        "owner": job.owner,
        "family": job.family or job.id,
        "labels": dumps(dict(job.labels)),
        "params": dumps(job.params),
        "input": dumps(job.input),
        "ttl_ms": int(ttl_s * 1000),
    }
    if job.deadline_s is not None:
        fields["deadline_s"] = repr(job.deadline_s)
    if job.trace:
        fields["trace"] = job.trace
    return {**fields, **_plan_fields(job.plan)}


@lru_cache(maxsize=256)  # every job of a pipeline has the same
def _plan_fields(plan: Plan) -> Mapping[str, Any]:
    fields: dict[str, Any] = {
        "plan": dumps(asdict(plan)),
        "n": len(plan.stages),
        "window": plan.window,
        "max_failures": plan.max_failures,
        "max_losses": plan.max_losses,
    }
    for name in ("rate", "concurrency"):
        if (limit := getattr(plan, name)) is not None:
            fields[name] = limit
    for s, stage in enumerate(plan.stages):
        fields[f"s{s}.name"] = stage.name
        fields[f"s{s}.queue"] = stage.queue
        fields[f"s{s}.each"] = int(stage.each)
        fields[f"s{s}.min_success"] = repr(stage.min_success)
        fields[f"s{s}.total"] = fields[f"s{s}.closed"] = int(not stage.each)
        fields[f"s{s}.generation"] = 0
    return fields


def fresh(job: Job, created_ms: int) -> Job:
    """The job as `add` has just written it, without reading it back."""
    created = created_ms / 1000
    return replace(
        job,
        family=job.family or job.id,
        status=Status.ACCEPTED,
        created=created,
        updated=created,
        deadline=None if job.deadline_s is None else (created_ms + int(job.deadline_s * 1000)) / 1000,
        stages=tuple(StageState(s.name, total=int(not s.each), closed=not s.each) for s in job.plan.stages),
        version=1,
    )


def job_of(h: Fields) -> Job:
    """The job behind a hash."""
    plan = plan_of(h["plan"])
    return Job(
        id=h["id"],
        pipeline=h["pipeline"],
        plan=plan,
        params=json.loads(h["params"]),
        input=json.loads(h["input"]),
        priority=int(h["priority"]),
        labels=json.loads(h["labels"]),
        owner=h["owner"],
        deadline_s=float(h["deadline_s"]) if "deadline_s" in h else None,
        retry_of=h.get("retry_of"),
        family=h["family"],
        status=Status(h["status"]),
        created=_time(h, "created") or 0.0,
        updated=_time(h, "updated") or 0.0,
        started=_time(h, "started"),
        finished=_time(h, "finished"),
        deadline=_time(h, "deadline"),
        error=error_of(h.get("error")),
        stages=tuple(_stages(h, plan)),
        version=int(h.get("version", 0)),
        trace=h.get("trace", ""),
    )


def _stages(h: Fields, plan: Plan) -> Sequence[StageState]:
    states: list[StageState] = []
    for s, stage in enumerate(plan.stages):

        def number(name: str, s: int = s) -> int:
            return int(h.get(f"s{s}.{name}", 0))

        total, done, dead, closed = number("total"), number("done"), number("dead"), number("closed") == 1
        if stage.each:
            progress = each_progress(done, dead, total, closed, states[-1].progress)
        else:
            progress = float(h.get(f"s{s}.progress", 0.0))
        states.append(
            StageState(
                name=stage.name,
                total=total,
                done=done,
                dead=dead,
                closed=closed,
                generation=number("generation"),
                progress=progress,
                failures=number("failures"),
                losses=number("losses"),
                given_back=number("given_back"),
                waited_s=number("waited_ms") / 1000,
                ran_s=number("ran_ms") / 1000,
                device=h.get(f"s{s}.device", ""),
                started=_time(h, f"s{s}.started"),
                finished=_time(h, f"s{s}.finished"),
                no_worker=number("no_worker"),
            )
        )
    return states


@lru_cache(maxsize=256)
def plan_of(text: str) -> Plan:
    """The plan behind its JSON."""
    data = json.loads(text)
    return Plan(tuple(StagePlan(**stage) for stage in data.pop("stages")), **data)


def error_of(text: str | bytes | None) -> JobError | None:
    """The error behind its JSON."""
    return JobError(**json.loads(text)) if text else None


def claim_of(row: Sequence[bytes | None]) -> Claim:
    """What claiming.lua returns."""
    job_id, s, g, i, fence, token, until, pipeline, plan, params, job_input = (_text(v) for v in row[:11])
    payload, failures, losses, family, waited, trace = row[11], *(_text(v) for v in row[12:15]), row[15], row[16]
    deadline = row[17] if len(row) > 17 else None
    return Claim(
        at=PartKey(job_id, int(s), int(g), int(i)),
        fence=int(fence),
        token=token,
        lease_until=float(until) / 1000,
        pipeline=pipeline,
        plan=plan_of(plan),
        params=json.loads(params),
        input=json.loads(job_input),
        payload=payload,
        failures=int(failures),
        losses=int(losses),
        deadline=None if deadline is None else float(deadline) / 1000,
        family=family,
        waited_s=int(waited or 0) / 1000,
        trace=_text(trace),
    )


def lost_of(row: Sequence[bytes]) -> Lost:
    """What end_leases.lua tells of an attempt."""
    job_id, s, g, i, fence, pipeline, plan, trace = (_text(value) for value in row[:8])
    began, ended = (int(ms) / 1000 for ms in row[8:])
    return Lost(PartKey(job_id, int(s), int(g), int(i)), int(fence), pipeline, plan_of(plan), trace, began, ended)


def rings_of(rows: Sequence[Sequence[bytes]] | None) -> tuple[Ring, ...]:
    """What a script returns for the rings that are due."""
    rings = []
    for row in rows or ():
        job_id, s, g, i, task, queue, priority = (_text(value) for value in row)
        rings.append(Ring(PartKey(job_id, int(s), int(g), int(i)), task, queue, int(priority)))
    return tuple(rings)


def part_of(member: bytes) -> PartKey:
    """The part behind its name in a list."""
    job_id, s, g, i = _text(member).rsplit("|", 3)
    return PartKey(job_id, int(s), int(g), int(i))


def ring_member(at: PartKey) -> str:
    """How a part is named in the lists of rings and leases."""
    return f"{at.job_id}|{at.stage}|{at.generation}|{at.index}"


def event_of(entry: tuple[bytes, Mapping[bytes, bytes]]) -> Event:
    """An entry of a job's stream of events."""
    number, h = entry
    return Event(int(number.split(b"-")[0]), int(h[b"time"]) / 1000, _text(h[b"type"]), json.loads(h[b"data"]))


def change_of(told: bytes) -> Change:
    """What a script publishes: ! or + before the id of a job that ended or changed."""
    return Change(_text(told[1:]), is_final=told[:1] == b"!")


def log_line_of(entry: tuple[bytes, Mapping[bytes, bytes]]) -> LogLine:
    """An entry of a job's stream of log lines."""
    return LogLine.of(json.loads(entry[1][b"line"]))


def artifact_of(text: bytes) -> Artifact:
    """The artifact behind its JSON."""
    return Artifact(**json.loads(text))


def upload_fields(upload: Upload) -> dict[str, Any]:
    """The hash of an upload, without its times."""
    return {k: v for k, v in asdict(upload).items() if k not in ("created", "expires")}


def upload_of(h: Fields) -> Upload:
    """The upload behind a hash."""
    times = {k: int(h[k]) / 1000 for k in ("created", "expires")}
    return Upload(**{**h, **times, "bytes": int(h["bytes"])})  # type: ignore[arg-type]


def texts(raw: Mapping[bytes, bytes]) -> dict[str, str]:
    """A hash in text."""
    return {_text(k): _text(v) for k, v in raw.items()}


def pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """A hash that a script returned as a flat list."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "surrogatepass")


def _time(h: Fields, name: str) -> float | None:
    return int(h[name]) / 1000 if name in h else None
