"""A worker's side in Postgres: claims, heartbeats, emits, ends of attempts. Each function is a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, literal, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert

from jobs.errors import ClaimLost, TooManyParts
from jobs.model import (
    MAX_PARTS,
    Artifact,
    Cause,
    Claim,
    Emitted,
    Ended,
    JobError,
    LogLine,
    PartKey,
    Ring,
    Standing,
    Status,
)
from jobs.store import BACK_OFF_MAX_S, LOG_LINES, NO_WORKER_S
from jobs.stores import postgres_rows as rows
from jobs.stores.postgres_held import CLOCK, Held, hold, throw_away
from jobs.stores.postgres_schema import (
    DEAD,
    DONE,
    LATER,
    LEASED,
    RUNG,
    UNRUNG,
    artifacts,
    jobs,
    log_heads,
    log_lines,
    parts,
)

COUNTER = {Cause.FAILURE: "failures", Cause.LOSS: "losses", Cause.GIVEN_BACK: "given_back"}
KEY = (parts.c.job_id, parts.c.stage, parts.c.generation, parts.c.index)
LOST = "The worker that held the part was lost."


def claim(link: Connection, at: PartKey, worker: str, token: str, lease_s: float, device: str) -> Claim | None:
    """Take a part, and void what older claims of an emitter left."""
    held = hold(link, at.job_id)
    if held is None or held.status.is_final or (held.job.deadline is not None and held.job.deadline <= held.now):
        return None
    part = held.part(at)
    if part is None or part["ended_token"] == token:
        return None
    if held.is_held_by(part, token):
        return _claim(held, part)
    if not (part["state"] in (UNRUNG, RUNG) or (part["state"] == LATER and part["ready_at"] <= held.now)):
        return None

    taken = {
        "state": LEASED,
        "fence": part["fence"] + 1,
        "token": token,
        "lease_until": held.now + lease_s,
        "claimed_at": held.now,
        "worker": worker,
    }
    held.put_part(at, **taken)
    if held.emits(at.stage):
        held.void(at.stage + 1, taken["fence"])
    if held.status is Status.ACCEPTED:
        held.begin()
    state = held.stages[at.stage]
    waited_s = state.waited_s + max(0.0, held.now - part["ready_at"])
    held.change(at.stage, waited_s=waited_s, device=device, no_worker=0)
    if state.started is None:
        held.change(at.stage, started=held.now)
        held.event("stage_started", stage=state.name)
    held.save()
    return _claim(held, {**part, **taken})


def _claim(held: Held, part: rows.Row) -> Claim:
    payload = held.payload(rows.key_of(part)) if held.plan(part["stage"]).each else None
    return rows.claim_of(held.job, part, payload)


def taken_by(link: Connection, tokens: Sequence[str]) -> dict[str, PartKey]:
    """Which parts some tokens hold."""
    found = link.execute(select(parts.c.token, *KEY).where(parts.c.state == LEASED, parts.c.token.in_(tokens)))
    return {row["token"]: rows.key_of(row) for row in found.mappings()}


def ready_like(link: Connection, like: Claim, limit: int) -> list[PartKey]:
    """Ready parts of a claim's pipeline and stage, oldest first, without those an attempt at which has ended badly."""
    clean = (parts.c.failures == 0) & (parts.c.losses == 0)
    ready = parts.c.state.in_([UNRUNG, RUNG]) & (parts.c.stage == like.at.stage) & clean
    task = f"{like.pipeline}.{like.stage.name}"
    found = select(*KEY).where(ready, parts.c.task == task).order_by(parts.c.ready_at, parts.c.job_id, parts.c.index)
    return [rows.key_of(row) for row in link.execute(found.limit(limit)).mappings()]


def renew(link: Connection, claims: Sequence[Claim], lease_s: float) -> list[Standing]:
    """Lengthen leases, without the locks of their jobs; a part that is being changed just now is passed over."""
    wanted = tuple_(*KEY).in_([claim.at.as_args() for claim in claims])
    holds = tuple_(*KEY, parts.c.fence, parts.c.token).in_([(*c.at.as_args(), c.fence, c.token) for c in claims])
    held = select(*KEY).where(holds, parts.c.state == LEASED)
    mine = held.with_for_update(key_share=True, skip_locked=True).cte("mine")
    same = (column == mine.c[column.name] for column in KEY)
    link.execute(update(parts).where(*same).values(lease_until=CLOCK + lease_s))
    final = {status.value for status in Status if status.is_final}
    living = select(jobs.c.id).where(jobs.c.id.in_({c.at.job_id for c in claims}), jobs.c.status.not_in(final))
    running = set(link.scalars(living))
    standing = select(*KEY, parts.c.state, parts.c.token, parts.c.fence)
    found = {rows.key_of(row): row for row in link.execute(standing.where(wanted)).mappings()}
    return [_standing(claim, found.get(claim.at), claim.at.job_id in running) for claim in claims]


def _standing(claim: Claim, part: RowMapping | None, running: bool) -> Standing:
    if not running:
        return Standing.ENDED
    if part is None or (part["state"], part["token"], part["fence"]) != (LEASED, claim.token, claim.fence):
        return Standing.LOST
    return Standing.HELD


def progress(link: Connection, claim: Claim, fraction: float) -> None:
    """Keep how far a one-part stage is, if it moved."""
    held = hold(link, claim.at.job_id)
    if held is None or held.status.is_final or held.plan(claim.at.stage).each:
        return
    part = held.part(claim.at)
    if _standing(claim, part, True) is Standing.HELD and held.stages[claim.at.stage].progress != fraction:
        held.change(claim.at.stage, progress=fraction)
        held.event("progress", stage=claim.stage.name, progress=fraction)
        held.save()


def emit(link: Connection, claim: Claim, index: int, payload: bytes, files: Sequence[str]) -> Emitted:
    """Make a part of the next stage, unless it is there or too many are unfinished."""
    held = hold(link, claim.at.job_id)
    if held is None or held.is_ended_by(held.held_part(claim), claim.token):
        raise ClaimLost(job_id=claim.at.job_id)
    following = claim.at.stage + 1
    at = PartKey(claim.at.job_id, following, held.stages[following].generation, index)
    known = held.part(at)
    if known is not None:
        return Emitted((rows.ring_of(known),) if known["at_once"] else ())
    state = held.stages[following]
    if state.total >= MAX_PARTS:
        raise TooManyParts(most=MAX_PARTS)
    if state.total - state.done - state.dead >= 2 * held.job.plan.window:
        return Emitted(full=True)
    held.change(following, total=state.total + 1)
    rings = held.open(at, payload=payload, files=list(files))
    held.save()
    return Emitted(tuple(rings))


def finish(link: Connection, claim: Claim, output: bytes, kept: Sequence[Artifact], emitted: int | None) -> Ended:
    """Record an output, and open what comes next."""
    held, part, answer = _ending(link, claim)
    if answer is not None:
        return answer
    stage, at = claim.at.stage, claim.at
    emits, stated = held.emits(stage), emitted or 0
    if emits and stated != held.stages[stage + 1].total:
        detail = f"The stage said it emitted {stated} parts; the store has {held.stages[stage + 1].total}."
        error = JobError("emit-mismatch", detail, claim.stage.name, at.index)
        return _answer(held, claim, end_attempt(held, part, Cause.BAD_INPUT, error, 0.0))

    state = held.stages[stage]
    held.change(stage, done=state.done + 1, ran_s=state.ran_s + held.now - part["claimed_at"])
    throw_away(link, part["files"], held.now)
    _keep(held, at, kept)
    if claim.stage.each:
        done, total = state.done + 1, state.total
        numbers = {"index": at.index, "generation": at.generation, "fence": claim.fence, "done": done, "total": total}
        held.event("progress", stage=state.name, **numbers)
    rings = held.leave(stage, at.generation)
    if emits:
        held.finish_stage(stage)
        held.change(stage + 1, closed=True)
        rings += held.complete_if_none_remain(stage + 1)
    else:
        rings += held.complete_if_none_remain(stage)
    over: dict[str, Any] = {"state": DONE, "output": output, "payload": None, "files": [], "ended_at": held.now}
    return _answer(held, claim, rings, **over)


def fail(link: Connection, claim: Claim, cause: Cause, error: JobError, delay_s: float) -> Ended:
    """End an attempt without an output."""
    held, part, answer = _ending(link, claim)
    if answer is not None:
        return answer
    return _answer(held, claim, end_attempt(held, part, cause, error, delay_s))


def lose(link: Connection, at: PartKey, delay_s: float) -> Ended | None:
    """Count a loss, if nobody holds the job just now and the lease did run out."""
    held = hold(link, at.job_id, skip_locked=True)
    part = None if held is None else held.part(at, against_renewal=True)
    if held is None or part is None or part["state"] != LEASED or part["lease_until"] > held.now:
        return None
    error = JobError("worker-lost", LOST, held.plan(at.stage).name, at.index)
    waits_s = min(delay_s * (2.0 ** min(part["losses"], 30) - 1), BACK_OFF_MAX_S)
    rings = end_attempt(held, part, Cause.LOSS, error, waits_s)
    held.save()
    return Ended(held.status, tuple(rings), rows.lost_of(held.job, part, held.now))


def end_attempt(held: Held, part: RowMapping, cause: Cause, error: JobError, delay_s: float) -> list[Ring]:
    """Move the cause's counter; then the part is ready again, or dead, and its job may have failed."""
    at, plan = rows.key_of(part), held.plan(part["stage"])
    state, counter = held.stages[at.stage], COUNTER.get(cause)
    held.change(at.stage, ran_s=state.ran_s + held.now - part["claimed_at"])
    if counter is not None:
        held.change(at.stage, **{counter: getattr(state, counter) + 1})
    held.event("attempt_failed", **{**asdict(error), "cause": cause.value, "fence": part["fence"]})

    failures = part["failures"] + (cause is Cause.FAILURE)
    losses = part["losses"] + (cause is Cause.LOSS)
    spent = (cause is Cause.FAILURE and failures >= held.job.plan.max_failures) or (
        cause is Cause.LOSS and losses >= held.job.plan.max_losses
    )
    counted: dict[str, Any] = {"failures": failures, "losses": losses, "token": None}
    if not spent and cause is not Cause.BAD_INPUT:
        return held.reopen(at, delay_s, **counted)
    held.put_part(at, state=DEAD, error=asdict(error), ended_at=held.now, **counted)
    held.change(at.stage, dead=state.dead + 1)
    if not plan.each or plan.min_success >= 1:
        return held.end(Status.FAILED, error)
    return held.leave(at.stage, at.generation) + held.complete_if_none_remain(at.stage)


def strand(link: Connection, at: PartKey) -> None:
    """No worker could take a ready part's signature: it backs off, longer each time."""
    held = hold(link, at.job_id)
    part = None if held is None else held.part(at)
    if held is None or part is None or held.status.is_final or part["state"] not in (UNRUNG, RUNG):
        return
    state = held.stages[at.stage]
    first, most = NO_WORKER_S
    waits_s = min(first * 2.0 ** min(state.no_worker, 30), most)
    held.put_part(at, state=LATER, ready_at=held.now + waits_s)
    held.change(at.stage, no_worker=state.no_worker + 1)
    held.save()


def log(link: Connection, job_id: str, lines: Sequence[LogLine]) -> None:
    """Append lines under numbers of the job's own; the oldest fall out."""
    lines = lines[-LOG_LINES:]
    known = select(jobs.c.id, literal(len(lines))).where(jobs.c.id == job_id)
    numbering = upsert(log_heads).from_select(["job_id", "lines"], known)
    grown = {"lines": log_heads.c.lines + len(lines)}
    last = link.scalar(
        numbering.on_conflict_do_update(index_elements=["job_id"], set_=grown).returning(log_heads.c.lines)
    )
    if last is None:
        return
    first = last - len(lines) + 1
    numbered = [{"job_id": job_id, "number": first + n, "line": asdict(line)} for n, line in enumerate(lines)]
    link.execute(insert(log_lines), numbered)
    link.execute(log_lines.delete().where(log_lines.c.job_id == job_id, log_lines.c.number <= last - LOG_LINES))


def _ending(link: Connection, claim: Claim) -> tuple[Held, RowMapping, Ended | None]:
    """The job and part that a claim is about to end, or the answer that it was given when it did."""
    held = hold(link, claim.at.job_id)
    if held is None:
        raise ClaimLost(job_id=claim.at.job_id)
    part = held.held_part(claim)
    return held, part, held.answered(part["answer"]) if held.is_ended_by(part, claim.token) else None


def _answer(held: Held, claim: Claim, rings: Sequence[Ring], **over: Any) -> Ended:
    """Write everything, and with the part what is answered."""
    answer = held.answer(rings)
    held.put_part(claim.at, **over, token=None, ended_token=claim.token, answer=answer)
    held.save()
    return Ended(held.status, tuple(rings))


def _keep(held: Held, at: PartKey, kept: Sequence[Artifact]) -> None:
    if kept:
        where = {"job_id": at.job_id, "stage": at.stage, "generation": at.generation, "index": at.index}
        held.link.execute(insert(artifacts), [{**where, "name": one.name, "artifact": asdict(one)} for one in kept])
    for one in kept:
        held.event("artifact", stage=held.plan(at.stage).name, name=one.name, bytes=one.bytes, type=one.type)
