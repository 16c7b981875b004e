"""A job whose row a transaction holds: what may be done with it, and what is written at the end.

Whoever changes a job, or moves a part from one state to another on a worker's word, holds the job's row first. Only
heartbeats and rings touch parts without it, and they never wait for a part that somebody else holds: no deadlocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import (
    ARRAY,
    Connection,
    Double,
    Integer,
    RowMapping,
    Select,
    Text,
    Update,
    bindparam,
    case,
    cast,
    delete,
    extract,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from jobs.errors import ClaimLost
from jobs.model import Claim, Ended, Event, Job, JobError, PartKey, Ring, StagePlan, StageState, Status
from jobs.store import RING_UNCONFIRMED_S
from jobs.stores import postgres_lines as lines
from jobs.stores import postgres_rows as rows
from jobs.stores.postgres_engine import WITHOUT
from jobs.stores.postgres_schema import (
    DEAD,
    HALTED,
    LATER,
    LEASED,
    OPEN,
    UNRUNG,
    WAITING,
    Name,
    artifacts,
    events,
    jobs,
    parts,
    trash,
)

CHANNEL = "gristmill_jobs"

CLOCK = cast(extract("epoch", func.clock_timestamp()), Double)


def _lock(*, skip_locked: bool) -> Select[Any]:
    """A job's row, locked. The lock is taken inside, so that the clock is read once it is held."""
    one = select(jobs).where(jobs.c.id == bindparam("job"))
    inner = one.with_for_update(key_share=True, skip_locked=skip_locked).subquery("held")
    return select(inner, CLOCK.label("now"))


_locked = {skip: _lock(skip_locked=skip) for skip in (False, True)}
_at = (
    (parts.c.job_id == bindparam("of_job"))
    & (parts.c.stage == bindparam("of_stage"))
    & (parts.c.generation == bindparam("of_generation"))
    & (parts.c.index == bindparam("of_index"))
)
_light = [column for column in parts.c if column.name not in ("payload", "output")]
_part = select(*_light).where(_at)
_payload = select(parts.c.payload).where(_at)
_next_waiting = (
    select(parts.c.index)
    .where(
        parts.c.job_id == bindparam("of_job"),
        parts.c.stage == bindparam("of_stage"),
        parts.c.generation == bindparam("of_generation"),
        parts.c.state == WAITING,
    )
    .order_by(parts.c.index)
    .limit(1)
)
_put_part = update(parts).where(_at)


def _save(*, telling: bool, moved: bool) -> Update:
    """One statement that writes a job's row, its new events, and wakes whoever watches: one wait for the server."""
    put = update(jobs).where(jobs.c.id == bindparam("of_job"))
    if telling:
        texts = ARRAY(Text)
        each = (func.unnest(bindparam("event_" + name, type_=texts)) for name in ("types", "data"))
        numbers = func.unnest(bindparam("event_ids", type_=ARRAY(Integer)))
        told = select(bindparam("of_job", type_=Name), numbers, bindparam("now", type_=Double), *each)
        put = put.add_cte(insert(events).from_select(["job_id", "id", "time", "type", "data"], told).cte("told"))
    mark = case((jobs.c.finished.is_not(None), "!"), else_="+")
    return put.returning(func.pg_notify(CHANNEL, func.concat(mark, jobs.c.id))) if moved else put


_saves = {(t, m): _save(telling=t, moved=m) for t in (False, True) for m in (False, True)}


class Held:
    """A job whose row is locked until the transaction ends. `save` writes it; without that nothing changed."""

    def __init__(self, link: Connection, row: RowMapping) -> None:
        self.link = link
        self.without: frozenset[str] = link.get_execution_options().get(WITHOUT, frozenset())
        self.now: float = row["now"]
        self.job: Job = rows.job_of(row)
        self.stages: list[StageState] = rows.stages_of(row["stages"])
        self._inside = rows.inside_of(row["stages"])
        self._last_event: int = row["last_event"]
        self._events: list[Event] = []
        self._changes: dict[str, Any] = {}

    @property
    def status(self) -> Status:
        """Where the job stands, with what this transaction did."""
        return self.job.status

    # -- parts ------------------------------------------------------------------------------------------------

    def part(self, at: PartKey, *, against_renewal: bool = False) -> RowMapping | None:
        """A part's row, without its payload and output.

        The job's lock keeps it as it is but for heartbeats and rings. Only who ends a lease locks the part as well:
        an emitter in a tight loop would otherwise starve its own heartbeat, which passes over locked parts.
        """
        statement = _part.with_for_update(key_share=True) if against_renewal else _part
        return self.link.execute(statement, _where(at)).mappings().one_or_none()

    def held_part(self, claim: Claim) -> RowMapping:
        """The part that a claim holds, or did hold when it ended its attempt. Raises ClaimLost."""
        part = self.part(claim.at)
        if part is None:
            raise ClaimLost(job_id=claim.at.job_id)
        if self.is_ended_by(part, claim.token):
            return part
        if self.status.is_final and "final" not in self.without:
            raise ClaimLost(job_id=claim.at.job_id)
        held = (part["state"], part["token"], part["fence"]) == (LEASED, claim.token, claim.fence)
        if not held and "fence" not in self.without:
            raise ClaimLost(job_id=claim.at.job_id)
        return part

    def is_ended_by(self, part: RowMapping, token: str) -> bool:
        """Whether a command is the repetition of the one that ended the part's last attempt."""
        return part["ended_token"] == token and "token" not in self.without

    def is_held_by(self, part: RowMapping, token: str) -> bool:
        """Whether a claim is the repetition of the one that holds the part."""
        return (part["state"], part["token"]) == (LEASED, token) and "token" not in self.without

    def payload(self, at: PartKey) -> bytes | None:
        """What was emitted for a part."""
        found = self.link.scalar(_payload, _where(at))
        return None if found is None else bytes(found)

    def put_part(self, at: PartKey, **values: Any) -> None:
        """Change a part's row."""
        self.link.execute(_put_part, {**_where(at), **values})

    def open(self, at: PartKey, **values: Any) -> list[Ring]:
        """Write a new part: ready if the window has room, else waiting. Its ring, if it is ready."""
        room = self.has_room(at.stage)
        state = UNRUNG if room else WAITING
        row = rows.part_row(self.job, at, self.now, **{"state": state, "at_once": room, **values})
        self.link.execute(insert(parts), row)
        if not room:
            return []
        self._inside[at.stage] += 1
        return [rows.ring_of(row)]

    def reopen(self, at: PartKey, delay_s: float, **values: Any) -> list[Ring]:
        """A part is to be tried again: it keeps its place in the window. Its ring, if it need not wait."""
        if delay_s > 0:
            self.put_part(at, state=LATER, ready_at=self.now + delay_s, **values)
            return []
        self.put_part(at, **self._ready(), **values)
        return [rows.ring_at(self.job, at.stage, at.generation, at.index)]

    def _ready(self) -> dict[str, Any]:
        return {"state": UNRUNG, "ready_at": self.now, "ring_due": self.now + RING_UNCONFIRMED_S, "rings": 0}

    def has_room(self, stage: int) -> bool:
        """Whether one more part of a stage may be rung, leased or backing off."""
        return not self.job.plan.stages[stage].each or self._inside[stage] < self.job.plan.window

    def leave(self, stage: int, generation: int) -> list[Ring]:
        """A part is over: the first waiting one takes its place in the window. Its ring."""
        self._inside[stage] -= 1
        if not self.job.plan.stages[stage].each or self.stages[stage].total <= self._over(stage) + self._inside[stage]:
            return []
        where = {"of_job": self.job.id, "of_stage": stage, "of_generation": generation}
        index = self.link.scalar(_next_waiting, where)
        if index is None:
            return []
        self._inside[stage] += 1
        at = PartKey(self.job.id, stage, generation, index)
        self.put_part(at, **self._ready())
        return [rows.ring_at(self.job, stage, generation, index)]

    def _over(self, stage: int) -> int:
        return self.stages[stage].done + self.stages[stage].dead

    def void(self, stage: int, generation: int) -> None:
        """Forget what older claims of the emitter left: another generation lives now.

        The files of its payloads go to the trash.
        """
        if "generation" in self.without:
            return
        if self.stages[stage].total:
            left = select(parts.c.files).where(parts.c.job_id == self.job.id, parts.c.stage == stage)
            throw_away(self.link, [name for files in self.link.scalars(left) for name in files], self.now)
            for table in (parts, artifacts):
                self.link.execute(delete(table).where(table.c.job_id == self.job.id, table.c.stage == stage))
        self._inside[stage] = 0
        self.change(stage, total=0, done=0, dead=0, closed=False, generation=generation)

    # -- the job ----------------------------------------------------------------------------------------------

    def plan(self, stage: int) -> StagePlan:
        """A stage's plan."""
        return self.job.plan.stages[stage]

    def emits(self, stage: int) -> bool:
        """Whether a stage's part hands out the next stage's parts."""
        return stage + 1 < len(self.stages) and self.plan(stage + 1).each

    def change(self, stage: int, **values: Any) -> None:
        """Change what the record says of a stage."""
        self.stages[stage] = replace(self.stages[stage], **values)

    def event(self, kind: str, /, **data: Any) -> None:
        """Append to the job's log of events."""
        self._last_event += 1
        self._events.append(Event(self._last_event, self.now, kind, data))

    def begin(self) -> None:
        """The job's first claim."""
        self._move(Status.RUNNING, started=self.now)
        self.event("running")

    def end(self, status: Status, error: JobError | None = None) -> list[Ring]:
        """The job's last move: its parts leave every list at once. The rings of jobs that take its place."""
        if status is not Status.SUCCESSFUL:  # nothing is open then
            halt = update(parts).where(parts.c.job_id == self.job.id, parts.c.state.in_(OPEN)).values(state=HALTED)
            self.link.execute(halt)
        told = None if error is None else rows.dumps(asdict(error))
        self._move(status, finished=self.now, kept_since=self.now, error=told)
        self.job = replace(self.job, error=error, finished=self.now)
        self.event(status.value, **({} if error is None else asdict(error)))
        limited = [lines.line_of(self.job)] if self.job.plan.is_limited else []
        return lines.release(self.link, limited, self.now, besides=self.job.id)

    def complete_if_none_remain(self, stage: int) -> list[Ring]:
        """Once a stage is closed and none of its parts remain: open the next one, or end the job."""
        state = self.stages[stage]
        if self.status.is_final or not state.closed or self._over(stage) < state.total:
            return []
        self.finish_stage(stage)
        if state.done < math.ceil(self.plan(stage).min_success * state.total - 1e-9):
            return self.end(Status.FAILED, self._latest_error(stage))
        if stage + 1 == len(self.stages):
            return self.end(Status.SUCCESSFUL)
        return self.open(PartKey(self.job.id, stage + 1))

    def finish_stage(self, stage: int) -> None:
        """Nothing of a stage remains."""
        self.change(stage, finished=self.now, progress=1.0)
        state = self.stages[stage]
        self.event("stage_finished", stage=state.name, done=state.done, dead=state.dead, total=state.total)

    def _latest_error(self, stage: int) -> JobError | None:
        dead = (parts.c.job_id == self.job.id) & (parts.c.stage == stage) & (parts.c.state == DEAD)
        found = self.link.scalar(select(parts.c.error).where(dead).order_by(parts.c.ended_at.desc()).limit(1))
        return None if found is None else JobError(**found)

    def _move(self, status: Status, **changes: Any) -> None:
        self.job = replace(self.job, status=status)
        self._changes |= {"status": status.value, **changes}

    def save(self) -> None:
        """Write the job's row and its events; wake whoever watches, if the status moved."""
        changes = {
            "updated": self.now,
            "version": self.job.version + max(1, len(self._events)),
            "last_event": self._last_event,
            "stages": rows.stages_text(self.stages, self._inside),
            **self._changes,
        }
        if self._events:
            changes |= {
                "now": self.now,
                "event_ids": [one.id for one in self._events],
                "event_types": [one.type for one in self._events],
                "event_data": [rows.dumps(one.data) for one in self._events],
            }
        statement = _saves[bool(self._events), "status" in self._changes]
        self.link.execute(statement, {"of_job": self.job.id, **changes})

    # -- answers ------------------------------------------------------------------------------------------------

    def answer(self, rings: Sequence[Ring]) -> dict[str, Any]:
        """What is kept with a part, so that a repeated command gets the first answer."""
        own = (ring.at for ring in rings if ring.at.job_id == self.job.id)
        keys = [[at.stage, at.generation, at.index] for at in own]
        let_in = [asdict(ring) for ring in rings if ring.at.job_id != self.job.id]
        return {"status": self.status.value, "rings": keys, **({"let_in": let_in} if let_in else {})}

    def answered(self, answer: dict[str, Any]) -> Ended:
        """The answer again."""
        own = [rows.ring_at(self.job, *key) for key in answer["rings"]]
        let_in = [Ring(**{**ring, "at": PartKey(**ring["at"])}) for ring in answer.get("let_in", ())]
        return Ended(Status(answer["status"]), (*own, *let_in))


def hold(link: Connection, job_id: str, *, skip_locked: bool = False) -> Held | None:
    """Lock a job's row and read it. None: no such job, or with `skip_locked` somebody else holds it."""
    row = link.execute(_locked[skip_locked], {"job": job_id}).mappings().one_or_none()
    return None if row is None else Held(link, row)


def throw_away(link: Connection, names: Sequence[str], now: float) -> None:
    """Put names in Files on the trash list."""
    if names:
        link.execute(upsert(trash).on_conflict_do_nothing(), [{"name": name, "since": now} for name in names])


def _where(at: PartKey) -> dict[str, Any]:
    return {"of_job": at.job_id, "of_stage": at.stage, "of_generation": at.generation, "of_index": at.index}
