"""The account of every job id: what the clients were told, against the records, the files kept, the effects made.

`settle` is a pure function of what was read, so that it can itself be shown to go red.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.errors import FileMissing, JobNotFound
from jobs.files import Files
from jobs.model import Artifact, Event, Job, Status
from jobs.store import JobStore
from jobs.values import unpack
from tests.faults.load import ACCEPTED, REFUSED, UNKNOWN, Attempt

PAGE = 200
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Effect:
    """One execution of a part: a line of the effect log."""

    job_id: str
    stage: int
    generation: int
    index: int
    fence: int
    pid: int
    at: float


@dataclass(frozen=True)
class Record:
    """What is left of one job: its record, its events, its result, and the names of kept files that do not fit."""

    job: Job
    events: Sequence[Event]
    result: object = None
    torn: Sequence[str] = ()

    @property
    def key(self) -> str:
        """The client's name for it."""
        return str(self.job.params.get("name", ""))


@dataclass
class Account:
    """The outcome. `wrong` has a sentence for everything that must not be, the first few of each kind."""

    accepted: int = 0
    refused: int = 0
    unknown: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    flipped: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # job id: the error's code
    statuses: Counter[str] = field(default_factory=Counter)
    executions: int = 0
    needed: int = 0
    found: dict[str, Status] = field(default_factory=dict)  # every job of the case that has a record

    @property
    def wrong(self) -> list[str]:
        """Sentences for a person."""
        found: list[str] = []
        for name in ("lost", "doubled", "flipped", "torn"):
            all_ = getattr(self, name)
            found += [f"{name}: {one}" for one in all_[:SHOWN]]
            if len(all_) > SHOWN:
                found.append(f"{name}: and {len(all_) - SHOWN} more")
        return found


def settle(
    attempts: Iterable[Attempt],
    records: Iterable[Record],
    effects: Iterable[Effect],
    first_seen: Mapping[str, Status] = {},
) -> Account:
    """Account for every key and id.

    `records` are all that the store has, also those that no client knows of; they are gone through once. `first_seen`
    is what was seen of jobs while the fault was on.
    """
    account = Account()
    keys: dict[str, str] = {}
    for record in records:
        job = record.job
        account.found[job.id], keys[job.id] = job.status, record.key
        _look_at(record, account)
    look_again(account, first_seen, "had been")
    told = _told(attempts, account)
    account.accepted = len({job_id for ids in told.values() for job_id in ids})
    for key, ids in told.items():
        for job_id in ids:
            if job_id not in keys:
                account.lost.append(f"{job_id} ({key}) has a 202 and no record")
            elif keys[job_id] != key:
                account.lost.append(f"{job_id} was answered to {key}, its record is {keys[job_id]}'s")
        if len(ids) > 1:
            account.doubled.append(f"{key} was answered with {len(ids)} ids")
    for key, times in Counter(keys.values()).items():
        if times > 1:
            account.doubled.append(f"{key} has {times} records")
    account.executions = sum(effect.job_id in keys for effect in effects)
    return account


def look_again(account: Account, statuses: Mapping[str, Status], when: str = "was later") -> None:
    """Compare with what was seen at another time: of two looks at a final job both must see the same."""
    for job_id, status in statuses.items():
        now = account.found.get(job_id)
        final = status.is_final if when == "had been" else now is not None and now.is_final
        if now is not None and final and status is not now:
            account.flipped.append(f"{job_id} is {now}, and {when} {status}")


def _told(attempts: Iterable[Attempt], account: Account) -> dict[str, set[str]]:
    """The ids that each key was answered with."""
    ids: dict[str, set[str]] = defaultdict(set)
    for attempt in attempts:
        if attempt.outcome == ACCEPTED:
            ids[attempt.key].add(attempt.job_id)
        account.refused += attempt.outcome == REFUSED
        account.unknown += attempt.outcome == UNKNOWN
    return ids


def _look_at(record: Record, account: Account) -> None:
    """One job: has it ended, once, each stage and part of it once, with the right result and whole files."""
    job, events = record.job, record.events
    account.statuses[job.status] += 1
    if not job.status.is_final:
        account.lost.append(f"{job.id} ({record.key}) is still {job.status}")
        return
    finals = [event.type for event in events if event.type in set(Status) and Status(event.type).is_final]
    if finals != [job.status]:
        account.flipped.append(f"{job.id} is {job.status}, its events say {finals}")
    for what, times in Counter(_endings(events)).items():
        if times > 1:
            account.doubled.append(f"{job.id}: {what} {times} times")
    account.torn += [f"{job.id}: {name}" for name in record.torn]
    if job.status is Status.FAILED:
        account.failed[job.id] = job.error.code if job.error else "none"
    if job.status is Status.SUCCESSFUL:
        account.needed += sum(state.total for state in job.stages)
        missing = [state.name for state in job.stages if state.done != state.total or not state.closed]
        closed = {event.data["stage"] for event in events if event.type == "stage_finished"}
        missing += [state.name for state in job.stages if state.name not in closed]
        if missing:
            account.lost.append(f"{job.id} is successful without {', '.join(sorted(set(missing)))}")
        expected = expected_result(job)
        if expected is not None and record.result != expected:
            account.lost.append(f"{job.id} has the result {record.result!r}, not {expected!r}")


def _endings(events: Sequence[Event]) -> Iterator[str]:
    """The accepted finishes of parts, and the closings of stages, from what the same atomic steps wrote."""
    for event in events:
        if event.type == "stage_finished":
            yield f"stage {event.data['stage']} was closed"
        elif event.type == "progress" and "index" in event.data:
            data = event.data
            yield f"part {data['index']} of {data['stage']}, generation {data['generation']} was finished"


def expected_result(job: Job) -> object:
    """What a job of the test pipelines must come to; None for others."""
    if job.pipeline not in ("battery", "poisoned"):
        return None
    return {"name": job.params["name"], "sum": sum(n * n for n in range(job.params["parts"]))}


class EffectLog:
    """The effects from now on. Each line is read once, since cases ask for them all the time."""

    def __init__(self, log: Path) -> None:
        self._log, self._at = log, log.stat().st_size
        self._lock = threading.Lock()
        self._known: list[Effect] = []

    def read(self) -> list[Effect]:
        """All of them so far."""
        with self._lock, self._log.open("rb") as log:
            log.seek(self._at)
            fresh = log.read()
            whole = fresh[: fresh.rfind(b"\n") + 1]
            self._at += len(whole)
            words = [line.split() for line in whole.decode().splitlines()]
            self._known += [Effect(w[0], *map(int, w[1:6]), float(w[6])) for w in words if len(w) == 7]
            return list(self._known)


def read_records(store: JobStore, files: Files, prefix: str, since: float) -> Iterator[Record]:
    """Every job accepted after `since`, by the store's clock, whose key begins with `prefix`."""
    cursor = None
    while True:
        page = store.page(cursor=cursor, limit=PAGE)
        for job in page.jobs:
            if str(job.params.get("name", "")).startswith(prefix):
                yield _read(store, files, job)
        cursor = page.next
        if cursor is None or (page.jobs and page.jobs[-1].created < since):
            return


def read_statuses(store: JobStore, job_ids: Iterable[str]) -> dict[str, Status]:
    """The second look."""
    found: dict[str, Status] = {}
    for job_id in job_ids:
        try:
            found[job_id] = store.get(job_id).status
        except JobNotFound:
            continue
    return found


def _read(store: JobStore, files: Files, listed: Job) -> Record:
    job = store.get(listed.id)
    events = store.events(job.id, limit=10_000)
    if job.status is not Status.SUCCESSFUL:
        return Record(job, events)
    output = store.outputs(job.id, len(job.plan.stages) - 1)[0].value or b""
    torn = [one.name for one in store.artifacts(job.id) if not _is_whole(files, one)]
    return Record(job, events, unpack(output, files.load), torn)


def _is_whole(files: Files, artifact: Artifact) -> bool:
    try:
        data = files.load(artifact.file)
    except FileMissing:
        return False
    return len(data) == artifact.bytes and hashlib.sha256(data).hexdigest() == artifact.sha256
