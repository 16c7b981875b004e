"""What a job, a stage and a part are, and the moves they may make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

MAX_PARTS = 10_000  # of one stage; counters and listings are built for this size


class Status(StrEnum):
    """Where a job stands: the five words of OGC API - Processes."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    SUCCESSFUL = "successful"
    FAILED = "failed"
    DISMISSED = "dismissed"

    @property
    def is_final(self) -> bool:
        """A final status never changes."""
        return not NEXT[self]


NEXT: Mapping[Status, frozenset[Status]] = {
    Status.ACCEPTED: frozenset({Status.RUNNING, Status.FAILED, Status.DISMISSED}),
    Status.RUNNING: frozenset({Status.SUCCESSFUL, Status.FAILED, Status.DISMISSED}),
    Status.SUCCESSFUL: frozenset(),
    Status.FAILED: frozenset(),
    Status.DISMISSED: frozenset(),
}


@dataclass(frozen=True, order=True, slots=True)
class PartKey:
    """Which part: `generation` is the fence of the claim that emitted it, 0 where nobody emits."""

    job_id: str
    stage: int
    generation: int = 0
    index: int = 0

    def as_args(self) -> tuple[str, int, int, int]:
        """What a signature carries."""
        return (self.job_id, self.stage, self.generation, self.index)


@dataclass(frozen=True, slots=True)
class Ring:
    """A part that is ready, with what a signature needs: the task's name, its queue, the job's priority (9 first)."""

    at: PartKey
    task: str
    queue: str
    priority: int


@dataclass(frozen=True)
class StagePlan:
    """One stage as it was when the job was accepted."""

    name: str
    queue: str
    each: bool = False
    time_limit: float = 900.0
    min_success: float = 1.0


@dataclass(frozen=True)
class Plan:
    """What is frozen into a record at acceptance, so that a deploy in mid-job mixes nothing."""

    stages: tuple[StagePlan, ...]
    window: int = 8
    max_failures: int = 3
    max_losses: int = 5
    rate: int | None = None  # jobs of the pipeline that start in any minute
    concurrency: int | None = None  # jobs of the pipeline that are under way at once

    @property
    def is_limited(self) -> bool:
        """Whether jobs may be held back until their pipeline has room."""
        return self.rate is not None or self.concurrency is not None


@dataclass(frozen=True)
class JobError:
    """Why a job failed, or an attempt did. `code` is one of ERROR_CODES."""

    code: str
    detail: str
    stage: str | None = None
    index: int | None = None


ERROR_CODES = (
    "bad-input",
    "stage-broke",
    "worker-lost",
    "out-of-memory",
    "time-limit",
    "output-too-large",
    "deadline-passed",
    "emit-mismatch",
)


@dataclass(frozen=True)
class Artifact:
    """A file that a stage keeps for the client. `file` is its name in Files."""

    name: str
    file: str
    bytes: int
    sha256: str
    type: str


@dataclass(frozen=True)
class StageState:
    """What a record says of one stage. Seconds are sums over its parts; `total` counts what is known so far."""

    name: str
    total: int = 0
    done: int = 0
    dead: int = 0
    closed: bool = False
    generation: int = 0
    progress: float = 0.0
    failures: int = 0
    losses: int = 0
    given_back: int = 0
    waited_s: float = 0.0
    ran_s: float = 0.0
    device: str = ""
    started: float | None = None
    finished: float | None = None
    no_worker: int = 0  # signatures that no worker could take, since the last one that was taken

    @property
    def status(self) -> str:
        """waiting, running, finished, or `no worker`: whoever was asked does not know the stage."""
        if self.finished is not None:
            return "finished"
        if self.no_worker:
            return "no worker"
        return "waiting" if self.started is None else "running"


def each_progress(done: int, dead: int, total: int, closed: bool, emitter: float) -> float:
    """0..1 of an `each` stage: its share of finished parts, times how far its `emitter` is."""
    if not total:
        return 1.0 if closed else 0.0
    return (done + dead) / total * (1.0 if closed else emitter)


@dataclass(frozen=True)
class Job:
    """One submission of one pipeline. Times are Unix seconds by the store's clock; `deadline` is absolute.

    `deadline_s` is what the client asked for, in seconds from acceptance; the store turns it into `deadline`.
    `version` grows with every change that a client can see. `family` is the first job of a chain of retries,
    which all belong to its `trace` (`jobs.trace`).
    """

    id: str
    pipeline: str
    plan: Plan
    params: Mapping[str, Any]
    input: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 4
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: str = "local"
    deadline_s: float | None = None
    retry_of: str | None = None
    family: str = ""
    status: Status = Status.ACCEPTED
    created: float = 0.0
    updated: float = 0.0
    started: float | None = None
    finished: float | None = None
    deadline: float | None = None
    error: JobError | None = None
    stages: tuple[StageState, ...] = ()
    version: int = 0
    trace: str = ""

    @property
    def progress(self) -> float:
        """0..1, each stage counting the same."""
        if self.status is Status.SUCCESSFUL:
            return 1.0
        return sum(stage.progress for stage in self.stages) / len(self.stages) if self.stages else 0.0


@dataclass(frozen=True)
class Submission:
    """A job on its way in: with the client's key, the digest of its canonical body, and the uploads it pins."""

    job: Job
    key: str | None = None
    digest: str = ""
    pins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Accepted:
    """The answer to a submission: the record as it stands, and the ring it is owed (none for a replay)."""

    job: Job
    replayed: bool = False
    rings: tuple[Ring, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where an accepted job stands in its line: 1 is the next one. `per_s`: how many of that line start a second."""

    position: int
    per_s: float


@dataclass(frozen=True, slots=True)
class Pressure:
    """How many jobs wait to be started, and how many start a second now."""

    waiting: int
    per_s: float


@dataclass(frozen=True, slots=True)
class DeadPart:
    """A part that used up its attempts: in which job, of what it died, and when. `status` is its job's."""

    at: PartKey
    stage: str
    pipeline: str
    status: Status
    error: JobError
    time: float


@dataclass(frozen=True)
class Claim:
    """A worker's hold on a part: a lease with a fence number, good until `lease_until` by the store's clock.

    `failures` and `losses` count earlier attempts. `payload` is what was emitted, None for a stage that is not `each`.
    `family` is the first job of a chain of retries: what is kept under its id lives as long as any of them.
    `waited_s`: how long the part had been ready. `trace` is the job's.
    """

    at: PartKey
    fence: int
    token: str
    lease_until: float
    pipeline: str
    plan: Plan
    params: Mapping[str, Any]
    input: Mapping[str, Any]
    payload: bytes | None = None
    failures: int = 0
    losses: int = 0
    deadline: float | None = None
    family: str = ""
    waited_s: float = 0.0
    trace: str = ""

    @property
    def stage(self) -> StagePlan:
        """The plan of the stage that the part belongs to."""
        return self.plan.stages[self.at.stage]


class Standing(StrEnum):
    """What a renewal learns of a claim."""

    HELD = "held"
    ENDED = "ended"  # the job is final: dismissed, failed elsewhere, past its deadline
    LOST = "lost"  # another fence or generation stands


@dataclass(frozen=True)
class Emitted:
    """The answer to an emit. `full`: nothing was stored, 2 x WINDOW parts are unfinished; try again soon."""

    rings: tuple[Ring, ...] = ()
    full: bool = False


@dataclass(frozen=True)
class Presence:
    """A worker that is there: on which host and device, what it serves, and what each of its children found out.

    `batches` has the inputs to a call by task, `models` the bytes of the device's memory that each loaded model took.
    """

    name: str
    device: str
    queues: tuple[str, ...]
    children: int = 0
    batches: Mapping[str, int] = field(default_factory=dict)
    models: Mapping[str, int] = field(default_factory=dict)
    memory_bytes: int = 0

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Presence:
        """From a store's JSON. What a newer version says besides is passed over."""
        known = {one.name: told[one.name] for one in fields(cls) if one.name in told}
        return cls(**{**known, "queues": tuple(told["queues"])})


class Cause(StrEnum):
    """Which counter an ended attempt moves."""

    BAD_INPUT = "bad_input"  # none: the job fails with that message
    FAILURE = "failure"  # the stage broke
    LOSS = "loss"  # the child or the worker died, or the lease ran out
    GIVEN_BACK = "given_back"  # a shutdown; free


@dataclass(frozen=True)
class Lost:
    """An attempt whose lease was ended: what its claim said of it, and from when to when by the store's clock."""

    at: PartKey
    fence: int
    pipeline: str
    plan: Plan
    trace: str
    began: float
    ended: float

    @property
    def stage(self) -> StagePlan:
        """The plan of the stage that the part belongs to."""
        return self.plan.stages[self.at.stage]


@dataclass(frozen=True)
class Ended:
    """The answer to a finish or a fail: where the job stands now, and the rings that became due at once.

    `lost` is the attempt, where nobody but the store knows it: its lease ran out.
    """

    status: Status
    rings: tuple[Ring, ...] = ()
    lost: Lost | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Output:
    """What one part of a stage left: its bytes, or the error it died of."""

    index: int
    value: bytes | None
    error: JobError | None = None


@dataclass(frozen=True)
class Event:
    """One line of a job's log of events. Ids count from 1 without gaps."""

    id: int
    time: float
    type: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """A job changed. `is_final`: it has ended, and this is the last change."""

    job_id: str
    is_final: bool


@dataclass(frozen=True)
class LogLine:
    """One line that a stage logged. `fence`: in which claim of the part; 0 where an older version wrote the line."""

    time: float
    level: str
    text: str
    stage: str
    index: int
    fence: int = 0

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> LogLine:
        """From a store's JSON. What a newer version says besides is passed over."""
        return cls(**{one.name: told[one.name] for one in fields(cls) if one.name in told})


@dataclass(frozen=True)
class Upload:
    """A file that a client stored: `file` is its name in Files, times are by the store's clock."""

    id: str
    file: str
    bytes: int
    sha256: str
    type: str
    name: str = ""
    created: float = 0.0
    expires: float = 0.0


@dataclass(frozen=True)
class Page:
    """Some jobs, newest first, and the cursor of the next page, None at the end."""

    jobs: tuple[Job, ...]
    next: str | None = None
