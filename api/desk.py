"""What the intake works with, in one process: the batches on their way in, those who wait, threads for what blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.accept import Batches, Checker
from api.checks import Shape
from api.services import Services
from api.waiting import Threads, Waiting

STORE_THREADS, DISK_THREADS = 16, 16


class Desk:
    """Opened with the app; its threads start with the first call."""

    def __init__(self, services: Services, submission_schema: Mapping[str, Any]) -> None:
        self.services = services
        self.submission = Shape(submission_schema)
        self.checker = Checker(services)
        self.batches = Batches(services)
        self.store_threads = Threads("store", STORE_THREADS)
        self.disk_threads = Threads("disk", DISK_THREADS)
        self.waiting = Waiting(services.store, self.store_threads)

    def close(self) -> None:
        """After the last answer: what is offered to the ringer is rung, every connection given back."""
        self.batches.close()
        self.store_threads.close()
        self.disk_threads.close()
        self.services.close()
