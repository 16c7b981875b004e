"""Between the model and the rows that Postgres holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from sqlalchemy import RowMapping

from jobs.model import Claim, Job, JobError, Lost, PartKey, Plan, Ring, StagePlan, StageState, Status, each_progress
from jobs.store import RING_UNCONFIRMED_S
from jobs.stores.postgres_schema import UNRUNG

Row = RowMapping | Mapping[str, Any]


def dumps(value: Any) -> str:
    """JSON in ASCII, so that lone surrogates and NUL survive as escapes."""
    return json.dumps(value, separators=(",", ":"))


def label_digest(name: str, value: str) -> str:
    """How a label is named in its index."""
    return blake2b(dumps([name, value]).encode(), digest_size=16).hexdigest()


# -- jobs ---------------------------------------------------------------------------------------------------


def fresh(job: Job, now: float, **changes: Any) -> Job:
    """A job as it is written first: accepted now, nothing begun."""
    return replace(
        job,
        family=job.family or job.id,
        status=Status.ACCEPTED,
        created=now,
        updated=now,
        started=None,
        finished=None,
        deadline=None if job.deadline_s is None else now + job.deadline_s,
        error=None,
        version=1,
        **{"stages": tuple(untouched(stage) for stage in job.plan.stages), **changes},
    )


def untouched(stage: StagePlan) -> StageState:
    """A stage that nobody worked on: an `each` stage learns its number of parts from its emitter."""
    return StageState(stage.name, total=int(not stage.each), closed=not stage.each)


def job_row(job: Job, inside: Sequence[int], line: str) -> dict[str, Any]:
    """A new job's row; `inside` counts the parts of each stage that have a place in the window, `line` is its line."""
    return {
        "id": job.id,
        "pipeline": job.pipeline,
        "status": job.status.value,
        "created": job.created,
        "updated": job.updated,
        "deadline": job.deadline,
        "version": job.version,
        "last_event": 1,
        "stages": stages_text(job.stages, inside),
        "plan": _plan_text(job.plan),
        "params": dumps(job.params),
        "input": dumps(job.input),
        "labels": dumps(dict(job.labels)),
        "priority": job.priority,
        "owner": job.owner,
        "deadline_s": job.deadline_s,
        "retry_of": job.retry_of,
        "family": job.family,
        "trace": job.trace,
        "folders": [],
        "line": line,
        "held": True if job.plan.is_limited else None,
    }


def job_of(row: Row) -> Job:
    """The job behind a row."""
    plan = plan_of(row["plan"])
    return Job(
        id=row["id"],
        pipeline=row["pipeline"],
        plan=plan,
        params=json.loads(row["params"]),
        input=json.loads(row["input"]),
        priority=row["priority"],
        labels=json.loads(row["labels"]),
        owner=row["owner"],
        deadline_s=row["deadline_s"],
        retry_of=row["retry_of"],
        family=row["family"],
        status=Status(row["status"]),
        created=row["created"],
        updated=row["updated"],
        started=row["started"],
        finished=row["finished"],
        deadline=row["deadline"],
        error=error_of(row["error"]),
        stages=shown(stages_of(row["stages"]), plan),
        version=row["version"],
        trace=row["trace"],
    )


def stages_text(stages: Iterable[StageState], inside: Iterable[int]) -> str:
    """Stages as a job's row holds them; `inside` counts the parts of each that have a place in the window."""
    return dumps(
        [[*(getattr(stage, name) for name in _STAGE_FIELDS), n] for stage, n in zip(stages, inside, strict=True)]
    )


def stages_of(text: str) -> list[StageState]:
    """The stages of a row."""
    return [StageState(*values[:-1]) for values in json.loads(text)]


def inside_of(text: str) -> list[int]:
    """How many parts of each stage have a place in the window."""
    return [values[-1] for values in json.loads(text)]


def shown(stages: Sequence[StageState], plan: Plan) -> tuple[StageState, ...]:
    """Stages as clients see them: the progress of an `each` stage follows from its counters."""
    seen: list[StageState] = []
    for stage, how in zip(stages, plan.stages, strict=True):
        if how.each:
            before = seen[-1].progress
            told = each_progress(stage.done, stage.dead, stage.total, stage.closed, before)
            stage = replace(stage, progress=told)
        seen.append(stage)
    return tuple(seen)


@lru_cache(maxsize=256)  # every job of a pipeline has the same
def plan_of(text: str) -> Plan:
    """The plan behind its JSON."""
    data = json.loads(text)
    return Plan(tuple(StagePlan(**stage) for stage in data.pop("stages")), **data)


@lru_cache(maxsize=256)
def _plan_text(plan: Plan) -> str:
    return dumps(asdict(plan))


def error_of(text: str | None) -> JobError | None:
    """The error behind its JSON."""
    return JobError(**json.loads(text)) if text else None


_STAGE_FIELDS = [field.name for field in fields(StageState)]


# -- parts --------------------------------------------------------------------------------------------------


def part_row(job: Job, at: PartKey, now: float, **values: Any) -> dict[str, Any]:
    """A new part's row: ready, and owed a ring if the one that its writer now sends is not confirmed."""
    stage = job.plan.stages[at.stage]
    return {
        "job_id": at.job_id,
        "stage": at.stage,
        "generation": at.generation,
        "index": at.index,
        "state": UNRUNG,
        "task": task_name(job, at.stage),
        "queue": stage.queue,
        "priority": job.priority,
        "fence": 0,
        "failures": 0,
        "losses": 0,
        "rings": 0,
        "at_once": True,
        "ready_at": now,
        "ring_due": now + RING_UNCONFIRMED_S,
        "files": [],
        "payload": None,
        **values,
    }


def task_name(job: Job, stage: int) -> str:
    """How a stage is named on the wire."""
    return f"{job.pipeline}.{job.plan.stages[stage].name}"


def key_of(row: Row) -> PartKey:
    """Which part a row is."""
    return PartKey(row["job_id"], row["stage"], row["generation"], row["index"])


def ring_of(row: Row) -> Ring:
    """The ring of a part's row."""
    return Ring(key_of(row), row["task"], row["queue"], row["priority"])


def ring_at(job: Job, stage: int, generation: int, index: int) -> Ring:
    """The ring of a part, from its job."""
    at = PartKey(job.id, stage, generation, index)
    return Ring(at, task_name(job, stage), job.plan.stages[stage].queue, job.priority)


def claim_of(job: Job, row: Row, payload: bytes | None) -> Claim:
    """The claim that holds a leased part."""
    return Claim(
        at=key_of(row),
        fence=row["fence"],
        token=row["token"],
        lease_until=row["lease_until"],
        pipeline=job.pipeline,
        plan=job.plan,
        params=job.params,
        input=job.input,
        payload=payload,
        failures=row["failures"],
        losses=row["losses"],
        deadline=job.deadline,
        family=job.family,
        waited_s=max(0.0, row["claimed_at"] - row["ready_at"]),
        trace=job.trace,
    )


def lost_of(job: Job, row: Row, now: float) -> Lost:
    """The attempt whose lease is ended now."""
    return Lost(key_of(row), row["fence"], job.pipeline, job.plan, job.trace, row["claimed_at"], now)
