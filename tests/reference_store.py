"""The store as it should be, in plain Python with a clock that is set by hand: the oracle of the state machine.

Never a stand-in for a store in other tests. It says what a record looks like after each call; only what a real store
needs for itself (pages of jobs, `watch`, connections) is left out. Read it beside jobs/store.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.errors import ClaimLost, JobNotFailed, JobNotFound, JobsError, KeyReused, TooManyParts, TooManyWaiting
from jobs.model import (
    MAX_PARTS,
    Accepted,
    Artifact,
    Cause,
    Claim,
    Emitted,
    Ended,
    Event,
    Job,
    JobError,
    Output,
    PartKey,
    Ring,
    StagePlan,
    StageState,
    Standing,
    Status,
    Submission,
    each_progress,
)
from jobs.store import BACK_OFF_MAX_S, NO_WORKER_S, RING_FALLBACK_MAX_S, RING_FALLBACK_S, RING_UNCONFIRMED_S

MINUTE_S = 60.0
OPEN = ("ready", "later", "leased")  # what takes a place in the window


@dataclass
class Part:
    """One part. `status`: waiting (outside the window), ready, later (backing off), leased, done or dead."""

    at: PartKey
    status: str = "waiting"
    fence: int = 0
    token: str = ""
    lease_until: float = 0.0
    not_before: float = 0.0
    failures: int = 0
    losses: int = 0
    payload: bytes | None = None
    files: Sequence[str] = ()
    emitted: Emitted | None = None  # what the emit that made it was answered
    output: Output | None = None
    rung: bool = False
    owed: float = 0.0  # when its ring is due again
    repeats: int = 0
    ended_token: str = ""  # the last claim that ended, and what it was answered
    ended: Ended | None = None


@dataclass
class Stage:
    """One stage of one job, with the parts of its living generation."""

    plan: StagePlan
    state: StageState
    parts: dict[int, Part] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    error: JobError | None = None

    def set(self, **changes: Any) -> None:
        """Change what the record says of the stage."""
        self.state = replace(self.state, **changes)

    def count(self, *statuses: str) -> int:
        """How many of its parts stand so."""
        return sum(part.status in statuses for part in self.parts.values())


@dataclass
class Record:
    """One job. `held`: its pipeline's limits hold it back; None: it has none."""

    job: Job
    stages: list[Stage]
    events: list[Event] = field(default_factory=list)
    held: bool | None = None
    waits: list[Part] = field(default_factory=list)  # what becomes ready once it is let in


class ReferenceStore:
    """See the module's text. `now` moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.records: dict[str, Record] = {}
        self.keys: dict[tuple[str, str], tuple[str, str]] = {}
        self.freed: list[str] = []  # what `trash` would list

    # -- a client's side ------------------------------------------------------------------------------------

    def add(self, submissions: Sequence[Submission], *, most_waiting: int | None = None) -> list[Accepted | JobsError]:
        return [self._add(submission, most_waiting) for submission in submissions]

    def _add(self, submission: Submission, most_waiting: int | None) -> Accepted | JobsError:
        job, key = submission.job, (submission.job.owner, submission.key or "")
        if job.id in self.records:
            return Accepted(self.get(job.id), replayed=True)
        if submission.key and key in self.keys:
            first, digest = self.keys[key]
            return Accepted(self.get(first), replayed=True) if digest == submission.digest else KeyReused()
        waiting = sum(record.job.status is Status.ACCEPTED for record in self.records.values())
        if most_waiting is not None and waiting >= most_waiting:
            return TooManyWaiting(waiting=waiting)
        if submission.key:
            self.keys[key] = (job.id, submission.digest)
        stages = [Stage(plan, _untouched(plan)) for plan in job.plan.stages]
        deadline = None if job.deadline_s is None else self.now + job.deadline_s
        record = Record(replace(job, family=job.family or job.id, created=self.now, deadline=deadline), stages)
        self.records[job.id] = record
        self._event(record, "accepted")
        rings = self._enter(record, [Part(PartKey(job.id, 0))])
        return Accepted(self.get(job.id), rings=rings)

    def get(self, job_id: str) -> Job:
        record = self._record(job_id)
        states: list[StageState] = []
        for stage in record.stages:
            state = stage.state
            if stage.plan.each:
                emitter = states[-1].progress
                state = replace(
                    state, progress=each_progress(state.done, state.dead, state.total, state.closed, emitter)
                )
            states.append(state)
        return replace(record.job, stages=tuple(states))

    def dismiss(self, job_id: str) -> Job:
        record = self._record(job_id)
        if not record.job.status.is_final:
            self._end_job(record, Status.DISMISSED)
        return self.get(job_id)

    def retry(self, job_id: str, new_id: str) -> Accepted:
        if new_id in self.records:
            return Accepted(self.get(new_id), replayed=True)
        old = self._record(job_id)
        if old.job.status is not Status.FAILED:
            raise JobNotFailed()
        job = replace(
            old.job,
            id=new_id,
            retry_of=job_id,
            status=Status.ACCEPTED,
            created=self.now,
            started=None,
            finished=None,
            error=None,
            deadline=None if old.job.deadline_s is None else self.now + old.job.deadline_s,
        )
        new = Record(job, [Stage(stage.plan, _untouched(stage.plan)) for stage in old.stages])
        self.records[new_id] = new
        self._event(new, "accepted", retry_of=job_id)
        for number, stage in enumerate(old.stages):
            whole = stage.state.finished is not None and _enough(stage)
            if whole:
                _adopt(stage, new.stages[number], new_id)
                new.stages[number].set(failures=0, losses=0, given_back=0)
                continue
            closed = stage.plan.each and stage.state.closed
            first = [Part(PartKey(new_id, number))]
            rings = self._adopt_some(stage, new, number) if closed else self._enter(new, first)
            return Accepted(self.get(new_id), rings=rings)
        raise AssertionError("a failed job with nothing left to do")

    def _adopt_some(self, old: Stage, new: Record, number: int) -> tuple[Ring, ...]:
        """The emitter has finished: keep what is done, run the others again from their payloads."""
        stage = new.stages[number]
        _adopt(old, stage, new.job.id)
        kept = old.state
        fresh = StageState(old.plan.name, total=kept.total, done=kept.done, closed=True, generation=kept.generation)
        stage.state = fresh
        again = [part for _, part in sorted(stage.parts.items()) if part.status != "done"]
        for part in again:
            part.status = "waiting"
        for part in again:
            part.failures = part.losses = 0
            part.output, part.token, part.ended_token = None, "", ""
        return self._enter(new, again)

    def events(self, job_id: str, after: int = 0, limit: int = 1_000) -> list[Event]:
        return self._record(job_id).events[after : after + limit]

    def outputs(self, job_id: str, stage: int) -> list[Output]:
        parts = self._record(job_id).stages[stage].parts
        return [part.output for _, part in sorted(parts.items()) if part.output]

    def artifacts(self, job_id: str) -> list[Artifact]:
        by_name: dict[str, Artifact] = {}
        for stage in self._record(job_id).stages:
            by_name |= stage.artifacts
        return [by_name[name] for name in sorted(by_name)]

    # -- a worker's side ------------------------------------------------------------------------------------

    def claim(self, at: PartKey, worker: str, token: str, lease_s: float, device: str = "") -> Claim | None:
        record, part = self._find(at)
        if record is None or part is None or record.job.status.is_final:
            return None
        if record.job.deadline is not None and record.job.deadline <= self.now:
            return None
        if not (part.status == "leased" and part.token == token):
            over = part.status == "later" and part.not_before <= self.now
            if not (part.status == "ready" or over) or part.ended_token == token:
                return None
            part.status, part.token, part.fence = "leased", token, part.fence + 1
            part.lease_until = self.now + lease_s
            self._note_claim(record, part, device)
        job = record.job
        return Claim(
            at=at,
            fence=part.fence,
            token=token,
            lease_until=part.lease_until,
            pipeline=job.pipeline,
            plan=job.plan,
            params=job.params,
            input=job.input,
            payload=part.payload,
            failures=part.failures,
            losses=part.losses,
            deadline=job.deadline,
            family=job.family,
            trace=job.trace,
        )

    def _note_claim(self, record: Record, part: Part, device: str) -> None:
        stage, emits_to = record.stages[part.at.stage], self._emits_to(record, part.at.stage)
        stage.set(device=device, no_worker=0)
        if emits_to:  # the older generations are void
            self.freed += [name for old in emits_to.parts.values() if old.status != "done" for name in old.files]
            emits_to.parts, emits_to.artifacts, emits_to.error = {}, {}, None
            emits_to.set(total=0, done=0, dead=0, closed=False, generation=part.fence)
        if record.job.status is Status.ACCEPTED:
            record.job = replace(record.job, status=Status.RUNNING, started=self.now)
            self._event(record, "running")
        if stage.state.started is None:
            stage.set(started=self.now)
            self._event(record, "stage_started", stage=stage.plan.name)

    def claimable(self, like: Claim) -> set[PartKey]:
        """What `claim_more` may choose from."""
        return {
            part.at
            for record, stage, part in self._all("ready")
            if record.job.pipeline == like.pipeline
            and part.at.stage == like.at.stage
            and part.failures == part.losses == 0
            and not (record.job.deadline is not None and record.job.deadline <= self.now)
        }

    def renew(self, claims: Sequence[Claim], lease_s: float, progress: Mapping[str, float] = {}) -> list[Standing]:
        return [self._renew(claim, lease_s, progress.get(claim.token)) for claim in claims]

    def _renew(self, claim: Claim, lease_s: float, progress: float | None) -> Standing:
        record = self.records.get(claim.at.job_id)
        if record is None or record.job.status.is_final:
            return Standing.ENDED
        try:
            part = self._held(claim)
        except ClaimLost:
            return Standing.LOST
        part.lease_until = self.now + lease_s
        stage = record.stages[claim.at.stage]
        if progress is not None and not stage.plan.each and progress != stage.state.progress:
            stage.set(progress=progress)
            self._event(record, "progress", stage=stage.plan.name, progress=progress)
        return Standing.HELD

    def emit(self, claim: Claim, index: int, payload: bytes, files: Sequence[str] = ()) -> Emitted:
        self._held(claim)
        record = self._record(claim.at.job_id)
        stage = record.stages[claim.at.stage + 1]
        if index in stage.parts:
            return stage.parts[index].emitted or Emitted()
        if stage.state.total >= MAX_PARTS or not 0 <= index < MAX_PARTS:
            raise TooManyParts()
        if stage.count("waiting", *OPEN) >= 2 * record.job.plan.window:
            return Emitted(full=True)
        stage.set(total=stage.state.total + 1)
        at = PartKey(claim.at.job_id, claim.at.stage + 1, claim.fence, index)
        part = Part(at, payload=payload, files=files)
        part.emitted = Emitted(self._admit(record, part))
        return part.emitted

    def finish(
        self, claim: Claim, output: bytes, artifacts: Sequence[Artifact] = (), emitted: int | None = None
    ) -> Ended:
        if first := self._answered(claim):
            return first
        part = self._held(claim)
        record = self._record(claim.at.job_id)
        stage, emits_to = record.stages[claim.at.stage], self._emits_to(record, claim.at.stage)
        if emits_to and (emitted or 0) != emits_to.state.total:
            error = JobError("emit-mismatch", "", stage.plan.name, claim.at.index)
            rings = self._end_attempt(record, part, Cause.BAD_INPUT, error, 0.0)
            return self._answer(record, part, claim.token, rings)
        part.status, part.output = "done", Output(claim.at.index, output)
        self.freed += part.files
        stage.set(done=stage.state.done + 1)
        for artifact in artifacts:
            stage.artifacts[artifact.name] = artifact
            told = {"name": artifact.name, "bytes": artifact.bytes, "type": artifact.type}
            self._event(record, "artifact", stage=stage.plan.name, **told)
        if stage.plan.each:
            where = {"index": claim.at.index, "generation": claim.at.generation, "fence": claim.fence}
            counted = {"done": stage.state.done, "total": stage.state.total}
            self._event(record, "progress", stage=stage.plan.name, **where, **counted)
        rings = self._next_waiting(record, stage)
        if emits_to:
            self._end_stage(record, claim.at.stage)
            emits_to.set(closed=True)
            rings += self._complete(record, claim.at.stage + 1)
        else:
            rings += self._complete(record, claim.at.stage)
        return self._answer(record, part, claim.token, rings)

    def fail(self, claim: Claim, cause: Cause, error: JobError, delay_s: float = 0.0) -> Ended:
        if first := self._answered(claim):
            return first
        part = self._held(claim)
        record = self._record(claim.at.job_id)
        rings = self._end_attempt(record, part, cause, error, delay_s)
        return self._answer(record, part, claim.token, rings)

    # -- rings ----------------------------------------------------------------------------------------------

    def rung(self, keys: Sequence[Ring]) -> None:
        for ring in keys:
            record, part = self._find(ring.at)
            if record and part and part.status == "ready" and not record.job.status.is_final and not part.rung:
                part.rung, part.owed = True, self.now + RING_FALLBACK_S

    def unrung(self, limit: int) -> list[Ring]:
        found = [(record, part) for record, _, part in self._all("ready") if not part.rung and part.owed <= self.now]
        chosen = sorted(found, key=lambda pair: pair[1].owed)[:limit]
        for _, part in chosen:
            part.owed = self.now + RING_UNCONFIRMED_S
        return [self._ring(record, part.at) for record, part in chosen]

    def rung_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for _, stage, part in self._all("ready"):
            if part.rung:
                counts[stage.plan.queue] = counts.get(stage.plan.queue, 0) + 1
        return counts

    def tasks_ready(self) -> set[str]:
        """Whose waits a store tells."""
        return {f"{record.job.pipeline}.{stage.plan.name}" for record, stage, _ in self._all("ready")}

    def overdue(self, queue: str, limit: int) -> list[Ring]:
        found = [
            (record, part)
            for record, stage, part in self._all("ready")
            if part.rung and part.owed <= self.now and stage.plan.queue == queue
        ]
        chosen = sorted(found, key=lambda pair: pair[1].owed)[:limit]
        for _, part in chosen:
            part.repeats += 1
            part.owed = self.now + min(RING_FALLBACK_S * 2**part.repeats, RING_FALLBACK_MAX_S)
        return [self._ring(record, part.at) for record, part in chosen]

    def strand(self, keys: Sequence[PartKey]) -> None:
        for at in keys:
            record, part = self._find(at)
            if record and part and part.status == "ready" and not record.job.status.is_final:
                stage = record.stages[at.stage]
                first, most = NO_WORKER_S
                part.status = "later"
                part.not_before = self.now + min(first * 2.0 ** min(stage.state.no_worker, 30), most)
                stage.set(no_worker=stage.state.no_worker + 1)

    # -- the sweep --------------------------------------------------------------------------------------------

    def release(self) -> list[Ring]:
        held = sorted({record.job.pipeline for record in self.records.values() if record.held})
        return [ring for pipeline in held for ring in self._let_in(pipeline)]

    def due(self, limit: int) -> list[Ring]:
        over = [(record, part) for record, _, part in self._all("later") if part.not_before <= self.now]
        chosen = sorted(over, key=lambda pair: pair[1].not_before)[:limit]
        return [ring for record, part in chosen for ring in self._ready(record, part)]

    def end_leases(self, limit: int, grace_s: float, delay_s: float = 0.0) -> list[Ended]:
        over = [(record, part) for record, _, part in self._all("leased") if part.lease_until <= self.now]
        ended = []
        for record, part in sorted(over, key=lambda pair: pair[1].lease_until)[:limit]:
            if record.job.status.is_final:
                continue  # another of its parts has just ended it
            error = JobError("worker-lost", "", record.stages[part.at.stage].plan.name, part.at.index)
            waits_s = min(delay_s * (2.0 ** min(part.losses, 30) - 1), BACK_OFF_MAX_S)
            rings = self._end_attempt(record, part, Cause.LOSS, error, waits_s)
            ended.append(Ended(record.job.status, rings))
        return ended

    def end_deadlines(self, limit: int) -> list[str]:
        living = [record for record in self.records.values() if not record.job.status.is_final]
        over = [r for r in living if r.job.deadline is not None and r.job.deadline <= self.now][:limit]
        for record in over:
            self._end_job(record, Status.FAILED, JobError("deadline-passed", ""))
        return [record.job.id for record in over]

    def counts(self) -> dict[tuple[str, Status], int]:
        counts: dict[tuple[str, Status], int] = {}
        for record in self.records.values():
            where = (record.job.pipeline, record.job.status)
            counts[where] = counts.get(where, 0) + 1
        return counts

    # -- how limits hold back -----------------------------------------------------------------------------------

    def _enter(self, record: Record, first: list[Part]) -> tuple[Ring, ...]:
        """A job begins with some parts, or waits for its pipeline to have room."""
        record.waits = first
        if not record.job.plan.is_limited:
            return self._open(record)
        record.held = True
        return self._let_in(record.job.pipeline)

    def _open(self, record: Record) -> tuple[Ring, ...]:
        first, record.waits = record.waits, []
        return tuple(ring for part in first for ring in self._admit(record, part))

    def _let_in(self, pipeline: str) -> tuple[Ring, ...]:
        """First come first (as `records` lists them), the more urgent before; as far as there is room."""
        rings: tuple[Ring, ...] = ()
        mine = [record for record in self.records.values() if record.job.pipeline == pipeline]
        turn = [record for record in mine if record.held and not record.job.status.is_final]
        for record in sorted(turn, key=lambda one: -one.job.priority):
            plan = record.job.plan
            inside = [one for one in mine if one.held is False and not one.job.status.is_final]
            lately = [one for one in mine if one.job.started is not None and one.job.started > self.now - MINUTE_S]
            begun = len(lately) + sum(one.job.started is None for one in inside)
            if plan.concurrency is not None and len(inside) >= plan.concurrency:
                break
            if plan.rate is not None and begun >= plan.rate:
                break
            record.held = False
            rings += self._open(record)
        return rings

    # -- how parts move -----------------------------------------------------------------------------------------

    def _admit(self, record: Record, part: Part) -> tuple[Ring, ...]:
        """A new part is ready if the window has room; else it waits."""
        stage = record.stages[part.at.stage]
        full = stage.plan.each and stage.count(*OPEN) >= record.job.plan.window
        stage.parts[part.at.index] = part
        return () if full else self._ready(record, part)

    def _ready(self, record: Record, part: Part) -> tuple[Ring, ...]:
        part.status, part.rung, part.repeats, part.owed = "ready", False, 0, self.now + RING_UNCONFIRMED_S
        return (self._ring(record, part.at),)

    def _next_waiting(self, record: Record, stage: Stage) -> tuple[Ring, ...]:
        """A part is over: the first waiting one takes its place in the window."""
        waiting = sorted(index for index, part in stage.parts.items() if part.status == "waiting")
        return self._ready(record, stage.parts[waiting[0]]) if waiting else ()

    def _end_attempt(
        self, record: Record, part: Part, cause: Cause, error: JobError, delay_s: float
    ) -> tuple[Ring, ...]:
        stage, plan = record.stages[part.at.stage], record.job.plan
        told = {"index": part.at.index, "cause": cause.value, "fence": part.fence, "code": error.code}
        self._event(record, "attempt_failed", stage=stage.plan.name, **told, detail=error.detail)
        if cause is Cause.FAILURE:
            part.failures += 1
            stage.set(failures=stage.state.failures + 1)
        elif cause is Cause.LOSS:
            part.losses += 1
            stage.set(losses=stage.state.losses + 1)
        elif cause is Cause.GIVEN_BACK:
            stage.set(given_back=stage.state.given_back + 1)
        too_often = (cause is Cause.FAILURE and part.failures >= plan.max_failures) or (
            cause is Cause.LOSS and part.losses >= plan.max_losses
        )
        if cause is not Cause.BAD_INPUT and not too_often:
            if delay_s <= 0:
                return self._ready(record, part)
            part.status, part.not_before = "later", self.now + delay_s
            return ()
        part.status, part.output = "dead", Output(part.at.index, None, error)
        stage.set(dead=stage.state.dead + 1)
        stage.error = error
        if not stage.plan.each or stage.plan.min_success >= 1:
            return self._end_job(record, Status.FAILED, error)
        return self._next_waiting(record, stage) + self._complete(record, part.at.stage)

    def _complete(self, record: Record, number: int) -> tuple[Ring, ...]:
        """If the stage is closed and none of its parts remain: open the next one, or end the job."""
        stage = record.stages[number]
        if not stage.state.closed or stage.state.done + stage.state.dead < stage.state.total:
            return ()
        self._end_stage(record, number)
        if not _enough(stage):
            return self._end_job(record, Status.FAILED, stage.error)
        if number + 1 == len(record.stages):
            return self._end_job(record, Status.SUCCESSFUL)
        return self._admit(record, Part(PartKey(record.job.id, number + 1)))

    def _end_stage(self, record: Record, number: int) -> None:
        stage = record.stages[number]
        stage.set(finished=self.now, progress=1.0)
        counted = {"done": stage.state.done, "dead": stage.state.dead, "total": stage.state.total}
        self._event(record, "stage_finished", stage=stage.plan.name, **counted)

    def _end_job(self, record: Record, status: Status, error: JobError | None = None) -> tuple[Ring, ...]:
        record.job = replace(record.job, status=status, finished=self.now, error=error)
        data = {} if error is None else {k: getattr(error, k) for k in ("code", "detail", "stage", "index")}
        self._event(record, status.value, **data)
        return self._let_in(record.job.pipeline) if record.held is not None else ()

    # -- looking things up ----------------------------------------------------------------------------------------

    def _record(self, job_id: str) -> Record:
        if job_id not in self.records:
            raise JobNotFound(job_id=job_id)
        return self.records[job_id]

    def _find(self, at: PartKey) -> tuple[Record | None, Part | None]:
        """The record, and the part if it is of the living generation."""
        record = self.records.get(at.job_id)
        if record is None or not 0 <= at.stage < len(record.stages):
            return record, None
        part = record.stages[at.stage].parts.get(at.index)
        return record, part if part and part.at == at else None

    def _held(self, claim: Claim) -> Part:
        record, part = self._find(claim.at)
        if record is None or part is None or record.job.status.is_final:
            raise ClaimLost()
        if (part.status, part.token, part.fence) != ("leased", claim.token, claim.fence):
            raise ClaimLost()
        return part

    def _answer(self, record: Record, part: Part, token: str, rings: tuple[Ring, ...]) -> Ended:
        part.ended_token, part.ended = token, Ended(record.job.status, rings)
        return part.ended

    def _answered(self, claim: Claim) -> Ended | None:
        """What the claim was answered when it ended, if it did, and was the last one to."""
        _, part = self._find(claim.at)
        return part.ended if part and part.ended_token == claim.token else None

    def _emits_to(self, record: Record, number: int) -> Stage | None:
        following = record.stages[number + 1 : number + 2]
        return following[0] if following and following[0].plan.each else None

    def _all(self, status: str) -> list[tuple[Record, Stage, Part]]:
        """Parts that stand so, of jobs that are not final."""
        return [
            (record, stage, part)
            for record in self.records.values()
            if not record.job.status.is_final
            for stage in record.stages
            for part in stage.parts.values()
            if part.status == status
        ]

    def _ring(self, record: Record, at: PartKey) -> Ring:
        stage = record.stages[at.stage].plan
        return Ring(at, f"{record.job.pipeline}.{stage.name}", stage.queue, record.job.priority)

    def _event(self, record: Record, type: str, /, **data: Any) -> None:
        record.events.append(Event(len(record.events) + 1, self.now, type, data))


def _untouched(plan: StagePlan) -> StageState:
    return StageState(plan.name, total=0 if plan.each else 1, closed=not plan.each)


def _enough(stage: Stage) -> bool:
    return stage.state.done >= math.ceil(stage.plan.min_success * stage.state.total - 1e-9)


def _adopt(old: Stage, new: Stage, job_id: str) -> None:
    """Copy a stage into another job, as it is."""
    new.state, new.artifacts, new.error = old.state, dict(old.artifacts), old.error
    new.parts = {i: replace(part, at=replace(part.at, job_id=job_id)) for i, part in old.parts.items()}
