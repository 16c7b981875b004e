"""Jobs under way while something happens to the stack, and their accounting afterwards, over HTTP only."""

from __future__ import annotations

import threading
import time
import uuid
from types import TracebackType
from typing import Self

from gristmill import Client, Status
from gristmill.errors import GristmillError

FINAL_WITHIN_S = 180


class Load:
    """Some submitters of additions; each repeats a submission, with the same key, until it has its 202."""

    def __init__(self, url: str, submitters: int = 3, pause_s: float = 0.2, delay_s: float = 0.3) -> None:
        self._url, self._pause_s, self._delay_s = url, pause_s, delay_s
        self._mark = uuid.uuid4().hex
        self._stop = threading.Event()
        self._accepted: dict[str, int] = {}
        self._lost: list[str] = []
        self._threads = [threading.Thread(target=self._submit, args=(n,)) for n in range(submitters)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        time.sleep(2)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        time.sleep(0 if kind else 2)
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def accepted(self) -> list[str]:
        """The jobs that were accepted so far."""
        return list(self._accepted)

    def finished(self) -> int:
        """How many have succeeded so far."""
        with Client(self._url, patience=90) as client:
            return sum(1 for _ in client.jobs(label=f"load:{self._mark}", status="successful"))

    def account(self) -> int:
        """Every 202 is a job that succeeded once, with its own sum, and nothing else ran. How many there were."""
        assert self._lost == [], f"submissions that never got an answer: {self._lost[:3]}"
        assert self._accepted
        with Client(self._url, patience=90) as client:
            until = time.monotonic() + FINAL_WITHIN_S
            first: dict[str, Status] = {}
            for job_id, answer in self._accepted.items():
                job = client.job(job_id).wait(timeout=max(1.0, until - time.monotonic()))
                assert (job.status, job.result) == (Status.SUCCESSFUL, answer), f"{job_id}: {job.record}"
                first[job_id] = job.status
            # The store knows exactly the jobs that were accepted: none lost, none doubled.
            listed = list(client.jobs(label=f"load:{self._mark}"))
            assert sorted(job.id for job in listed) == sorted(self._accepted)
            # And none changed its mind.
            assert {job.id: job.status for job in listed} == first
            for job_id in list(self._accepted)[:: max(1, len(self._accepted) // 20)]:
                kinds = [event.type for event in client.job(job_id).events()]
                assert (kinds.count("stage_finished"), kinds.count("successful")) == (1, 1), f"{job_id}: {kinds}"
        return len(self._accepted)

    def _submit(self, submitter: int) -> None:
        number = submitter * 1_000_000
        with Client(self._url, patience=120) as client:
            while not self._stop.is_set():
                number += 1
                try:
                    job = client.submit(
                        "addition",
                        x=number,
                        y=1,
                        delay=self._delay_s,
                        labels={"load": self._mark},
                        key=str(uuid.uuid4()),
                    )
                    self._accepted[job.id] = number + 1
                except GristmillError as error:
                    self._lost.append(f"{type(error).__name__}: {error}")
                self._stop.wait(self._pause_s)
