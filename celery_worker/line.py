"""The line between a worker's child and its parent: what the child holds, how far it is, and when it must stop.

A child writes and hardly ever reads; the parent reads several times a second. So a short part costs its child two
small writes and its parent next to nothing. A line that ends tells the parent that the child has died.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from jobs.model import Claim, Ring

VARIABLE = "GRISTMILL_LINE"  # where children, forked or spawned, find the parent's socket
ADDRESS_BYTES = 107  # unix(7): what sun_path holds besides its closing zero


@dataclass(frozen=True)
class Hello:
    """The first word of a child."""

    pid: int
    scratch: str


@dataclass(frozen=True)
class Ready:
    """The child has loaded its models and measured its batches; see `jobs.model.Presence`."""

    batches: Mapping[str, int]
    models: Mapping[str, int]


@dataclass(frozen=True)
class Holds:
    """The child has a claim. Renew it. `began`: seconds since 1970."""

    claim: Claim
    began: float


@dataclass(frozen=True)
class Progress:
    """How far the part of a claim is, 0..1."""

    token: str
    fraction: float


@dataclass(frozen=True)
class Waits:
    """The child waits for the store, or for the next stage to catch up: its time limit does not run meanwhile."""

    token: str
    waiting: bool


@dataclass(frozen=True)
class Released:
    """The claim is finished, failed, or lost. `outcome`: `finished`, or the cause of its failing; none: it was lost.

    `code` is the error's. `over`: seconds since 1970.
    """

    token: str
    over: float
    outcome: str = ""
    ran_s: float = 0.0
    kept_bytes: int = 0
    code: str = ""


@dataclass(frozen=True)
class Loaded:
    """The child has loaded a model."""

    model: str
    seconds: float


@dataclass(frozen=True)
class Rung:
    """The broker confirmed these."""

    rings: tuple[Ring, ...]


@dataclass(frozen=True)
class DeviceLost:
    """The child can compute nothing more on its device."""


@dataclass(frozen=True)
class Stop:
    """The parent's only word: leave that part at the next checkpoint."""

    token: str


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """A name for a socket that the kernel takes, however deep its folder lies: it may have 107 bytes."""
    if len(os.fsencode(path)) <= ADDRESS_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class ChildLine:
    """The child's end. Safe for threads: one batch is finished while the next one runs."""

    def __init__(self, scratch: Path) -> None:
        with socket.socket(socket.AF_UNIX) as connecting, _address(Path(os.environ[VARIABLE])) as address:
            connecting.connect(address)
            self._connection = Connection(connecting.detach())
        self._stopped: set[str] = set()
        self._since: dict[str, float] = {}
        self._ended: dict[str, tuple[str, int, str]] = {}
        self._lock = threading.Lock()
        self._say(Hello(os.getpid(), str(scratch)))

    def ready(self, batches: Mapping[str, int], models: Mapping[str, int]) -> None:
        """Tell what was found out before the first claim, or since."""
        self._say(Ready(batches, models))

    def hold(self, claim: Claim) -> None:
        """Ask the parent to renew a claim. What it does not need stays here: params may have a megabyte."""
        self._since[claim.token] = time.monotonic()
        self._say(Holds(replace(claim, params={}, input={}, payload=None), time.time()))

    def progress(self, claim: Claim, fraction: float) -> None:
        """Let the parent pass on how far a part is."""
        self._say(Progress(claim.token, fraction))

    def wait(self, claim: Claim, waiting: bool) -> None:
        """Stop the clock of a part's time limit, or let it go on."""
        self._say(Waits(claim.token, waiting))

    @contextmanager
    def waiting(self, claim: Claim) -> Iterator[None]:
        """What happens inside is none of the stage's doing."""
        self.wait(claim, True)
        try:
            yield
        finally:
            self.wait(claim, False)

    def ended(self, claim: Claim, outcome: str, kept_bytes: int = 0, code: str = "") -> None:
        """Note how an attempt ended, for gauges and traces; its release tells it."""
        self._ended[claim.token] = (outcome, kept_bytes, code)

    def release(self, claim: Claim) -> None:
        """Let go of a claim."""
        with self._lock:
            self._stopped.discard(claim.token)
        outcome, kept_bytes, code = self._ended.pop(claim.token, ("", 0, ""))
        ran_s = time.monotonic() - self._since.pop(claim.token)
        self._say(Released(claim.token, time.time(), outcome, ran_s, kept_bytes, code))

    def loaded(self, model: str, seconds: float) -> None:
        """Tell how long a model took to load."""
        self._say(Loaded(model, seconds))

    def device_lost(self) -> None:
        """The worker must leave its queue."""
        self._say(DeviceLost())

    def rung(self, rings: Sequence[Ring]) -> None:
        """Let the parent record confirms, for all its children in one go."""
        self._say(Rung(tuple(rings)))

    def must_stop(self, claim: Claim) -> bool:
        """Whether the parent has said so."""
        with self._lock:
            while self._connection.poll(0):
                word = self._connection.recv()
                if isinstance(word, Stop):
                    self._stopped.add(word.token)
            return claim.token in self._stopped

    def _say(self, word: Any) -> None:
        try:
            with self._lock:
                self._connection.send(word)
        except OSError:
            # The parent is gone, and with it whoever renews: another worker will run the part.
            os._exit(1)


class Exchange:
    """The parent's end of all lines."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        with _address(path) as address:
            self._socket.bind(address)
        self._socket.listen(64)
        self._socket.setblocking(False)
        os.environ[VARIABLE] = str(path)

    def accept(self) -> Iterator[Connection]:
        """Children that called since the last look."""
        while True:
            try:
                accepted, _ = self._socket.accept()
            except BlockingIOError:
                return
            accepted.setblocking(True)
            yield Connection(accepted.detach())

    def close(self) -> None:
        """Take no more calls."""
        self._socket.close()


def words(connection: Connection) -> Iterator[Any]:
    """What a child has said since the last look. Raises EOFError once it has died and everything is read."""
    while connection.poll(0):
        yield connection.recv()
