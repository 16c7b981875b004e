"""What a worker's parent knows of its children, and of each claim that they hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from celery_worker.line import Ready
from jobs.model import Cause, Claim, JobError


@dataclass
class Hold:
    """A claim of a child, as the parent sees it."""

    claim: Claim
    began: float  # seconds since 1970
    since: float  # moved on by the time that the child waited
    renewed: float
    progress: float = 0.0
    told: float = 0.0  # the progress that the store knows
    waits_since: float | None = None
    stop_at: float | None = None  # when the child is killed, once it was told to stop

    def wait(self, since: float | None, now: float) -> None:
        """Stop the clock of its time limit, or let it go on."""
        if self.waits_since is not None:
            self.since += now - self.waits_since
        self.waits_since = since

    def is_over(self, now: float) -> bool:
        """Whether the stage itself has taken longer than it may."""
        return self.waits_since is None and now - self.since > self.claim.stage.time_limit


@dataclass
class Child:
    """A child process and what it holds. `verdict` is why the parent killed it, and over which claim."""

    connection: Connection
    young_until: float  # it may load models until then, or until it takes its first part
    pid: int = 0
    scratch: str = ""
    holds: dict[str, Hold] = field(default_factory=dict)
    verdict: tuple[str, Cause, JobError] | None = None
    ready: Ready | None = None  # what it found out before its first claim
