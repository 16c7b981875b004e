"""Steps that tests of a store share: put a job in, take a part, see what stands in the record."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jobs.model import Accepted, Artifact, Cause, Claim, Ended, Job, JobError, PartKey, Status, Submission
from jobs.store import JobStore

BROKE = JobError("stage-broke", "The stage broke.", "only", 0)
_tokens = itertools.count(1)


def put(store: JobStore, job: Job, **submission: Any) -> Job:
    """Accept a job; the record."""
    (accepted,) = store.add([Submission(job, **submission)])
    assert isinstance(accepted, Accepted), accepted
    return accepted.job


def part(job: Job, stage: int = 0, generation: int = 0, index: int = 0) -> PartKey:
    """A part of a job."""
    return PartKey(job.id, stage, generation, index)


def token() -> str:
    """A token of its own for each claim."""
    return f"token-{next(_tokens)}"


def take(store: JobStore, at: PartKey, lease_s: float = 60.0, **options: Any) -> Claim:
    """Claim a part that can be claimed."""
    claim = store.claim(at, "worker", token(), lease_s, **options)
    assert claim is not None, at
    return claim


def run(store: JobStore, at: PartKey, output: bytes = b"done", **finishing: Any) -> Ended:
    """Claim a part and finish it."""
    return store.finish(take(store, at), output, **finishing)


def emitter(store: JobStore, job: Job, payloads: Iterable[bytes] = (), stage: int = 0) -> Claim:
    """A claim on the emitting stage that has emitted some payloads, from index 0."""
    claim = take(store, part(job, stage))
    for index, payload in enumerate(payloads):
        assert not store.emit(claim, index, payload).full
    return claim


def broke(stage: str = "only", index: int = 0, detail: str = "The stage broke.") -> JobError:
    """The error of a stage that broke."""
    return JobError("stage-broke", detail, stage, index)


def break_part(store: JobStore, at: PartKey, cause: Cause = Cause.BAD_INPUT, **failing: Any) -> Ended:
    """Claim a part and fail it."""
    claim = take(store, at)
    return store.fail(claim, cause, broke(claim.stage.name, at.index), **failing)


def break_job(store: JobStore, job: Job) -> Job:
    """A job whose first part had bad input."""
    break_part(store, part(job))
    return store.get(job.id)


def events(store: JobStore, job: Job) -> list[str]:
    """The types of its events."""
    return [event.type for event in store.events(job.id)]


def data(store: JobStore, job: Job, kind: str) -> list[dict[str, Any]]:
    """What the events of one type say."""
    return [dict(event.data) for event in store.events(job.id) if event.type == kind]


def keys(rings: Iterable[Any]) -> list[PartKey]:
    """The parts that some rings name."""
    return [ring.at for ring in rings]


def indexes(rings: Iterable[Any]) -> list[int]:
    """The indexes of the parts that some rings name."""
    return [ring.at.index for ring in rings]


def status(store: JobStore, job: Job) -> Status:
    """Where a job stands."""
    return store.get(job.id).status


def artifact(name: str, file: str = "jobs/x/file", size: int = 3) -> Artifact:
    """A kept file."""
    return Artifact(name, file, size, "ab" * 32, "text/plain")


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Run calls in threads that start together; what each returned or raised."""

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # noqa: BLE001  the error is the outcome
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))
