"""A client's side in Postgres: what is accepted, retried and forgotten. Each function is a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    Connection,
    RowMapping,
    Table,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    null,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from jobs.errors import JobNotFailed, JobNotFound, JobsError, KeyReused, TooManyWaiting, UploadNotFound
from jobs.model import Accepted, Job, PartKey, Ring, StageState, Status, Submission
from jobs.store import FINAL_REMOVABLE_S
from jobs.stores import postgres_lines as lines
from jobs.stores import postgres_rows as rows
from jobs.stores.postgres_held import CLOCK, Held, hold, throw_away
from jobs.stores.postgres_pages import by_ids
from jobs.stores.postgres_schema import (
    DONE,
    HELD,
    UNRUNG,
    WAITING,
    artifacts,
    events,
    jobs,
    keys,
    labels,
    parts,
    pins,
    uploads,
)

PART = ("job_id", "stage", "generation", "index")


class KeyTaken(Exception):
    """Another batch took a key meanwhile: look again."""


# -- accepting ------------------------------------------------------------------------------------------------


def add(link: Connection, submissions: Sequence[Submission], room: int | None) -> list[Accepted | JobsError]:
    """Write what is new of a batch, up to `room` jobs. Rows are locked in one order: uploads, jobs, keys; sorted."""
    now: float = link.scalar(select(CLOCK)) or 0.0
    known = _known_keys(link, submissions)
    unknown = _unknown_uploads(link, submissions)
    new: dict[str, Submission] = {}
    seen: dict[str, str | JobsError] = {}  # by a submission's job id: the job that answers it, or what is wrong
    for one in submissions:
        job, name = one.job, (one.job.owner, one.key or "")
        missing = next((upload for upload in one.pins if upload in unknown), None)
        if one.key and name in known:
            first, digest = known[name]
            seen[job.id] = first if digest == one.digest else KeyReused(job_id=first)
        elif missing is not None:
            seen[job.id] = UploadNotFound(file=missing)
        elif job.id not in new and room is not None and len(new) >= room:
            seen[job.id] = TooManyWaiting()
        elif job.id not in new:
            new[job.id] = one
            if one.key:
                known[name] = (job.id, one.digest)
    written = _write(link, [replace(one, job=rows.fresh(one.job, now)) for _, one in sorted(new.items())])
    return _answers(link, submissions, seen, written)


def _answers(
    link: Connection,
    submissions: Sequence[Submission],
    seen: dict[str, str | JobsError],
    written: dict[str, Accepted],
) -> list[Accepted | JobsError]:
    """One answer a submission: just written, a replay, or an error, unless that very job exists already."""
    others = [one.job.id for one in submissions if one.job.id not in written]
    others += [found for found in seen.values() if isinstance(found, str) and found not in written]
    stored = {job.id: job for job in by_ids(link, others)} if others else {}
    answers: list[Accepted | JobsError] = []
    for one in submissions:
        found = seen.get(one.job.id, one.job.id)
        if one.job.id in written and isinstance(found, str) and found == one.job.id:
            answers.append(written[one.job.id])
            written[one.job.id] = Accepted(written[one.job.id].job, replayed=True)  # for the same job once more
        elif one.job.id in stored:
            answers.append(Accepted(stored[one.job.id], replayed=True))
        elif isinstance(found, JobsError):
            answers.append(found)
        elif found in written or found in stored:
            answers.append(Accepted(written[found].job if found in written else stored[found], replayed=True))
        else:  # forgotten between two looks
            raise KeyTaken
    return answers


def _known_keys(link: Connection, submissions: Sequence[Submission]) -> dict[tuple[str, str], tuple[str, str]]:
    names = [(one.job.owner, one.key) for one in submissions if one.key]
    if not names:
        return {}
    found = link.execute(select(keys).where(tuple_(keys.c.owner, keys.c.key).in_(names))).mappings()
    return {(row["owner"], row["key"]): (row["job_id"], row["digest"]) for row in found}


def _unknown_uploads(link: Connection, submissions: Sequence[Submission]) -> set[str]:
    """Pins without an upload. The others are locked against the sweeper until they are pinned."""
    wanted = {upload for one in submissions for upload in one.pins}
    if not wanted:
        return set()
    some = select(uploads.c.id).where(uploads.c.id.in_(wanted)).order_by(uploads.c.id)
    return wanted - set(link.scalars(some.with_for_update(read=True, key_share=True)))


def _write(link: Connection, new: Sequence[Submission]) -> dict[str, Accepted]:
    """Write new jobs with what belongs to them, but those that exist already; by id. Raises KeyTaken."""
    if not new:
        return {}
    put = upsert(jobs).on_conflict_do_nothing().returning(jobs.c.id)
    rows_ = [rows.job_row(one.job, _inside(one.job, 0), lines.line_of(one.job)) for one in new]
    written = set(link.scalars(put, rows_))
    new = [one for one in new if one.job.id in written]
    firsts = [_first(one.job) for one in new]
    named = sorted((one.job.owner, one.key, one.digest, one.job.id) for one in new if one.key)
    if named:
        columns = ("owner", "key", "digest", "job_id")
        take = upsert(keys).on_conflict_do_nothing().returning(keys.c.key)
        if len(list(link.scalars(take, [dict(zip(columns, values, strict=True)) for values in named]))) < len(named):
            raise KeyTaken
    _insert(link, parts, firsts)
    _insert(link, events, [_accepted_event(one.job) for one in new])
    _insert(link, labels, [row for one in new for row in _label_rows(one.job)])
    _insert(link, pins, [{"job_id": one.job.id, "upload_id": pin} for one in new for pin in sorted(set(one.pins))])
    rings = [rows.ring_of(first) for first in firsts if first["state"] == UNRUNG]
    limited = [lines.line_of(one.job) for one in new if one.job.plan.is_limited]
    rings += lines.release(link, limited, new[0].job.created) if limited else []
    ids = {one.job.id for one in new}
    others = tuple(ring for ring in rings if ring.at.job_id not in ids)
    own = {ring.at.job_id: ring for ring in rings if ring.at.job_id in ids}
    answers = {one.job.id: Accepted(one.job, rings=(own[one.job.id],) if one.job.id in own else ()) for one in new}
    if others:
        first_id = new[0].job.id
        answers[first_id] = replace(answers[first_id], rings=answers[first_id].rings + others)
    return answers


def _first(job: Job) -> dict[str, Any]:
    """The row of a job's first part: ready, unless its pipeline's limits may hold it back."""
    return rows.part_row(job, PartKey(job.id, 0), job.created, state=HELD if job.plan.is_limited else UNRUNG)


def _accepted_event(job: Job) -> dict[str, Any]:
    data = {} if job.retry_of is None else {"retry_of": job.retry_of}
    return {"job_id": job.id, "id": 1, "time": job.created, "type": "accepted", "data": data}


def _label_rows(job: Job) -> list[dict[str, Any]]:
    return [
        {"label": rows.label_digest(name, value), "created": job.created, "job_id": job.id}
        for name, value in job.labels.items()
    ]


def _insert(link: Connection, table: Any, values: Sequence[dict[str, Any]]) -> None:
    if values:
        link.execute(insert(table), values)


# -- retrying -------------------------------------------------------------------------------------------------


def retry(link: Connection, job_id: str, new_id: str) -> Accepted:
    """A new job that adopts what a failed one has done."""
    if replay := by_ids(link, [new_id]):
        return Accepted(replay[0], replayed=True)
    held = hold(link, job_id)
    if held is None:
        raise JobNotFound(job_id=job_id)
    old = held.job
    if held.status is not Status.FAILED:
        raise JobNotFailed(f"The job is {old.status}.", job_status=old.status.value)
    states, whole = _adopted(held)
    job = rows.fresh(replace(old, id=new_id, retry_of=old.id), held.now, stages=tuple(states))
    put = upsert(jobs).on_conflict_do_nothing().returning(jobs.c.id)
    row = rows.job_row(job, _inside(job, whole), lines.line_of(job, whole))
    if not list(link.scalars(put, [row])):  # another retry was first
        return Accepted(by_ids(link, [new_id])[0], replayed=True)
    link.execute(insert(events), _accepted_event(job))
    _insert(link, labels, _label_rows(job))
    _copy(link, pins, pins.c.job_id == old.id, job_id=new_id)
    before = (artifacts.c.job_id == old.id) & (artifacts.c.stage <= whole)
    done = exists(parts).where(*(parts.c[name] == artifacts.c[name] for name in PART), parts.c.state == DONE)
    _copy(link, artifacts, before & done, job_id=new_id)
    _copy(link, parts, (parts.c.job_id == old.id) & (parts.c.stage < whole), job_id=new_id)
    rings = _reopen(link, old, job, whole, held.now)
    if job.plan.is_limited:
        rings = lines.release(link, [lines.line_of(job)], held.now)
    return Accepted(replace(job, stages=rows.shown(job.stages, job.plan)), rings=tuple(rings))


def _adopted(held: Held) -> tuple[list[StageState], int]:
    """The new job's stages, and how many of them, from the first on, are taken over whole."""
    states: list[StageState] = []
    whole = 0
    for plan, state in zip(held.job.plan.stages, held.stages, strict=True):
        enough = math.ceil(plan.min_success * state.total - 1e-9)
        if whole == len(states) and state.finished is not None and state.done >= enough:
            states.append(replace(state, failures=0, losses=0, given_back=0))
            whole += 1
        elif whole == len(states) and plan.each and state.closed:
            fresh = rows.untouched(plan)
            states.append(replace(fresh, total=state.total, done=state.done, closed=True, generation=state.generation))
        else:
            states.append(rows.untouched(plan))
    return states, whole


def _inside(job: Job, stage: int) -> list[int]:
    """How many parts of each stage have a place in the window, when a job begins with one stage."""
    state = job.stages[stage]
    return [min(state.total - state.done, job.plan.window) if s == stage else 0 for s in range(len(job.stages))]


def _reopen(link: Connection, old: Job, job: Job, stage: int, now: float) -> list[Ring]:
    """Open the first stage that is not adopted whole: its one part, or what is not done of its emitted parts."""
    ready = HELD if job.plan.is_limited else UNRUNG
    if not job.plan.stages[stage].each:
        part = rows.part_row(job, PartKey(job.id, stage), now, state=ready)
        link.execute(insert(parts), part)
        return [rows.ring_of(part)]
    old_parts = (parts.c.job_id == old.id) & (parts.c.stage == stage)
    _copy(link, parts, old_parts & (parts.c.state == DONE), job_id=job.id)
    turn = func.row_number().over(order_by=parts.c.index)
    anew = {
        name: literal(value, parts.c[name].type)
        for name, value in rows.part_row(job, PartKey(job.id, stage), now).items()
        if name not in ("generation", "index", "fence", "files", "payload", "at_once")
    }
    nothing = {name: null() for name in ("token", "worker", "lease_until", "error", "ended_token", "answer")}
    state = case((turn <= job.plan.window, ready), else_=WAITING)
    _copy(link, parts, old_parts & (parts.c.state != DONE), **{**anew, **nothing, "state": state})
    opened = (parts.c.job_id == job.id) & (parts.c.stage == stage) & (parts.c.state == UNRUNG)
    return [rows.ring_of(row) for row in link.execute(select(parts).where(opened).order_by(parts.c.index)).mappings()]


def _copy(link: Connection, table: Table, where: Any, **values: Any) -> None:
    """Write some rows once more, with other values in some columns."""
    names = [column.name for column in table.c if column.identity is None]
    order = table.c.number if table is artifacts else None
    source = select(*(_value(table, name, values) for name in names)).where(where).order_by(order)
    link.execute(insert(table).from_select(names, source))


def _value(table: Table, name: str, values: dict[str, Any]) -> Any:
    if name not in values:
        return table.c[name]
    value = values[name]
    return literal(value, table.c[name].type) if isinstance(value, str) else value


# -- forgetting -----------------------------------------------------------------------------------------------


def remove(link: Connection, job_id: str) -> None:
    """Forget one final job; its family's files go with the last member."""
    family = _lock_family(link, job_id)
    row = family.get(job_id)
    now: float = link.scalar(select(CLOCK)) or 0.0
    if row is None or row["finished"] is None or now - row["finished"] <= FINAL_REMOVABLE_S:
        return
    folders = [*row["folders"], f"jobs/{job_id}/"]
    others = sorted(set(family) - {job_id})
    if others:
        heir = others[0]
        link.execute(update(jobs).where(jobs.c.id == heir).values(folders=[*family[heir]["folders"], *folders]))
    else:
        throw_away(link, folders, now)
    link.execute(delete(jobs).where(jobs.c.id == job_id))


def expired(link: Connection, older_than_s: float, limit: int) -> list[str]:
    """Final jobs whose time may be over: one of each family is enough."""
    old = jobs.c.kept_since <= CLOCK - older_than_s
    return list(link.scalars(select(jobs.c.id).where(old).order_by(jobs.c.kept_since).limit(limit)))


def expire(link: Connection, job_id: str, older_than_s: float) -> int:
    """Forget a job's whole family, if its last member finished long ago; else look again when that can be."""
    family = _lock_family(link, job_id, skip_locked=True)
    if job_id not in family:
        return 0
    now: float = link.scalar(select(CLOCK)) or 0.0
    latest = max(now if row["finished"] is None else row["finished"] for row in family.values())
    if latest > now - older_than_s:
        link.execute(update(jobs).where(jobs.c.id == job_id).values(kept_since=latest))
        return 0
    throw_away(link, [name for key, row in family.items() for name in (*row["folders"], f"jobs/{key}/")], now)
    link.execute(delete(jobs).where(jobs.c.id.in_(list(family))))
    return len(family)


def expire_uploads(link: Connection, limit: int) -> int:
    """Forget uploads past their time that no job pins."""
    pinned = exists(pins).where(pins.c.upload_id == uploads.c.id)
    old = select(uploads.c.id).where(uploads.c.expires <= CLOCK, ~pinned).order_by(uploads.c.expires).limit(limit)
    ids = list(link.scalars(old.with_for_update(skip_locked=True)))
    if not ids:
        return 0
    gone = delete(uploads).where(uploads.c.id.in_(ids), ~pinned).returning(uploads.c.upload)
    names = [upload["file"] for upload in link.scalars(gone)]
    throw_away(link, names, link.scalar(select(CLOCK)) or 0.0)
    return len(names)


def _lock_family(link: Connection, job_id: str, *, skip_locked: bool = False) -> dict[str, RowMapping]:
    """A job's family, in the order of ids and each locked against everything; none, if one is held just now.

    Read again once it is locked: a retry may have added a member meanwhile.
    """
    root = select(jobs.c.family).where(jobs.c.id == job_id).scalar_subquery()
    members = select(jobs.c.id, jobs.c.finished, jobs.c.folders).where(jobs.c.family == root)
    while True:
        found = link.execute(members.order_by(jobs.c.id).with_for_update(skip_locked=skip_locked)).mappings().all()
        locked = {row["id"]: row for row in found}
        present = set(link.scalars(select(jobs.c.id).where(jobs.c.family == root)))
        if present == set(locked):
            return locked
        if skip_locked:
            return {}
