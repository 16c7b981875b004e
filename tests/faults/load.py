"""Many HTTP clients that submit jobs and write down what they were answered, and a watch that looks at the records."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from jobs.errors import JobsError, StoreUnavailable
from jobs.model import Status
from jobs.store import open_store

ANSWER_S = 10.0  # a client waits for so long; then it does not know
PAUSE_S = (0.2, 1.0)  # between two tries of one submission
IDLE_S = 10.0  # an idle connection may be closed by the gateway just as it is used again: make a new one
LOOK_S = 0.1
LOOKS = 20  # records that one look reads at most: a battery that watches harder takes the CPU of what it watches

ACCEPTED, REFUSED, UNKNOWN = "accepted", "refused", "unknown"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request and what its client knows of it. `unknown`: it was sent, and no whole answer came back."""

    key: str
    began: float
    took_s: float
    outcome: str
    status: int = 0
    job_id: str = ""


def battery_job(name: str) -> dict[str, Any]:
    """The body of one job of the test pipeline."""
    return {"pipeline": "battery", "params": {"name": name}}


class Watch:
    """Looks at the records of accepted jobs all the time, and remembers the first final status it saw of each."""

    def __init__(self, store_url: str) -> None:
        self.first_seen: dict[str, Status] = {}
        self._store = open_store(store_url)
        self._open: deque[str] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    @property
    def unfinished(self) -> int:
        """How many are not known to have ended."""
        return len(self._open)

    def add(self, job_id: str) -> None:
        """Look at this one, too."""
        self._open.append(job_id)

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        self._thread.join(10.0)
        self._store.close()

    def _run(self) -> None:
        while not self._closing.wait(LOOK_S):
            for _ in range(min(LOOKS, len(self._open))):
                job_id = self._open.popleft()
                try:
                    status = self._store.get(job_id).status
                except StoreUnavailable:
                    self._open.append(job_id)
                    break
                except JobsError:
                    continue  # no record: the account finds that out
                if status.is_final:
                    self.first_seen[job_id] = status
                else:
                    self._open.append(job_id)


class Load:
    """Submits jobs from threads; used as a context manager, it has sent all of them at the end of the block.

    `in_flight`: no more than so many unfinished jobs at a time, so that queues stay short whatever the machine does.
    `rate`: so many a second, come what may. A submission that was refused is tried again until it is accepted, and
    one with an unknown answer too if `insists`, always with the same Idempotency-Key; `repeats` times more once it is.
    `mixed`: in any order.
    """

    def __init__(
        self,
        ports: Sequence[int],
        store_url: str,
        names: Sequence[str],
        *,
        body: Callable[[str], dict[str, Any]] = battery_job,
        clients: int = 16,
        in_flight: int | None = None,
        rate: float | None = None,
        insists: bool = True,
        repeats: int = 0,
        mixed: bool = False,
        gives_up_after_s: float = 120.0,
    ) -> None:
        self.attempts: list[Attempt] = []
        self.watch = Watch(store_url)
        names = random.sample(names, len(names)) if mixed else list(names)
        self._ports, self.names, self._body = ports, names, body  # gateways may come and go meanwhile
        self._in_flight, self._rate, self._insists, self._repeats = in_flight, rate, insists, repeats
        self._gives_up_after_s = gives_up_after_s
        self._next = self._accepted = 0
        self._lock = threading.Lock()
        self._began = 0.0
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(n,), daemon=True) for n in range(clients)]

    @property
    def accepted(self) -> int:
        """How many jobs have a 202."""
        return self._accepted

    def attempts_accepted(self) -> list[Attempt]:
        """Those that were answered with an id."""
        return [attempt for attempt in list(self.attempts) if attempt.outcome == ACCEPTED]

    @property
    def is_over(self) -> bool:
        """Whether every client has come to its end."""
        return not any(thread.is_alive() for thread in self._threads)

    def start(self) -> Self:
        """Begin to send."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def reached(self, fraction: float, within_s: float = 240.0) -> None:
        """Wait until so much of the load is accepted. Raises TimeoutError."""
        until = time.monotonic() + within_s
        while self.accepted < fraction * len(self.names) and not self.is_over:
            if time.monotonic() > until:
                raise TimeoutError(f"{self.accepted} of {len(self.names)} jobs were accepted in {within_s:g} s")
            time.sleep(0.02)

    def wait(self, within_s: float = 300.0) -> None:
        """Wait until every client has come to its end. Raises TimeoutError."""
        until = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.1, until - time.monotonic()))
        if not self.is_over:
            raise TimeoutError(f"{self.accepted} of {len(self.names)} jobs were accepted in {within_s:g} s")

    def enough(self) -> None:
        """Begin no further submission; those under way go on."""
        with self._lock:
            self._next = len(self.names)

    def stop(self) -> None:
        """Send nothing more."""
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(ANSWER_S + 5)
        self.watch.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self.stop()

    def _client(self, number: int) -> None:
        connection = _Connection(self._ports, number)
        while not self._stopping.is_set():
            with self._lock:
                turn = self._next
                self._next += 1
            if turn >= len(self.names):
                break
            self._hold_back(turn)
            self._submit(connection, self.names[turn])
        connection.close()

    def _hold_back(self, turn: int) -> None:
        if self._rate is not None:
            self._stopping.wait(max(0.0, self._began + turn / self._rate - time.monotonic()))
        while self._in_flight is not None and self.watch.unfinished >= self._in_flight:
            if self._stopping.wait(0.02):
                return

    def _submit(self, connection: _Connection, name: str) -> None:
        until = time.monotonic() + self._gives_up_after_s
        body = self._body(name)
        while not self._stopping.is_set() and time.monotonic() < until:
            attempt = connection.submit(name, body)
            self.attempts.append(attempt)
            if attempt.outcome == ACCEPTED:
                self.watch.add(attempt.job_id)
                with self._lock:
                    self._accepted += 1
                for _ in range(self._repeats):
                    self.attempts.append(connection.submit(name, body))
                return
            if attempt.outcome == UNKNOWN and not self._insists:
                return
            self._stopping.wait(random.uniform(*PAUSE_S))


class _Connection:
    """A client's connection to one of the gateways; after any trouble it goes to the other one."""

    def __init__(self, ports: Sequence[int], number: int) -> None:
        self._ports, self._at = ports, number
        self._open: http.client.HTTPConnection | None = None
        self._used = 0.0

    def submit(self, key: str, body: dict[str, Any]) -> Attempt:
        """POST /process once."""
        began = time.monotonic()

        def attempt(outcome: str, status: int = 0, job_id: str = "") -> Attempt:
            return Attempt(key, began, time.monotonic() - began, outcome, status, job_id)

        try:
            connection = self._connect()
        except OSError:
            self._turn_away()
            return attempt(REFUSED)  # nothing was sent
        try:
            headers = {"Content-Type": "application/json", "Idempotency-Key": key}
            connection.request("POST", "/process", json.dumps(body), headers)
            answer = connection.getresponse()
            content = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            self._turn_away()
            return attempt(UNKNOWN)
        if answer.status == 202:
            return attempt(ACCEPTED, 202, content["id"])
        return attempt(REFUSED, answer.status)

    def close(self) -> None:
        """Give it back."""
        if self._open is not None:
            self._open.close()
        self._open = None

    def _connect(self) -> http.client.HTTPConnection:
        if time.monotonic() - self._used > IDLE_S:
            self.close()
        self._used = time.monotonic()
        if self._open is None:
            made = http.client.HTTPConnection("127.0.0.1", self._ports[self._at % len(self._ports)], timeout=ANSWER_S)
            made.connect()
            self._open = made
        return self._open

    def _turn_away(self) -> None:
        self.close()
        self._at += 1
