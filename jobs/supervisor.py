"""Keeps some processes running: starts them in order, starts again what dies, ends all of them in bounded time."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STEADY_S = 30.0  # who ran for this long starts over with the first pause
TICK_S = 0.1
LOG_BYTES = 20 * 1024 * 1024  # a log above this becomes the one `.1` beside it
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Program:
    """What to run. `last`: ended only after all the others, because they need it until their own end."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    grace_s: float = 15.0
    last: bool = False


class Supervisor:
    """Some programs, each in a session of its own, so that Ctrl-C in a terminal reaches only the supervisor."""

    def __init__(self, say: Callable[[str], None], over: Callable[[], bool] = lambda: False) -> None:
        """`over` asks for the end, too, as a signal does."""
        self._say = say
        self._over = over
        self._children: list[_Child] = []
        self._signals = 0

    def listen(self) -> None:
        """From now on SIGINT, SIGTERM and SIGHUP ask for the end; a second one asks for it at once."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    @property
    def asked_to_end(self) -> bool:
        """Whether a signal came, or it is over."""
        if not self._signals and self._over():
            self._signals = 1
        return self._signals > 0

    def start(self, program: Program) -> None:
        """Start it, and keep it running from now on."""
        child = _Child(program)
        self._children.append(child)
        child.start()

    def until(self, done: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Keep everything running until `done`; False when a signal or the time came first."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not done():
            if self.asked_to_end or (end is not None and time.monotonic() > end):
                return False
            for child in self._children:
                child.look_after(self._say)
            time.sleep(TICK_S)
        return True

    def pids(self) -> dict[str, int]:
        """By name: what runs now."""
        return {child.program.name: child.pid for child in self._children if child.pid}

    def end(self) -> None:
        """End all of them: politely, then after their grace by force; those marked `last` after the others."""
        for last in (False, True):
            children = [child for child in self._children if child.program.last is last]
            for child in children:
                child.send(signal.SIGTERM)
            self._wait_for(children)
            for child in children:
                child.kill_group()

    def _wait_for(self, children: Sequence[_Child]) -> None:
        began = time.monotonic()
        seen = self._signals
        while living := [child for child in children if child.lives]:
            if self._signals > max(seen, 1):
                self._say("Asked again: ending by force.")
                return
            if all(time.monotonic() - began > child.program.grace_s for child in living):
                self._say(f"Ending by force: {', '.join(child.program.name for child in living)}.")
                return
            time.sleep(TICK_S)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals += 1


class _Child:
    """One program and the process that runs it now, if any."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause = FIRST_PAUSE_S
        self._start_at: float | None = None

    @property
    def lives(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self.lives else None

    def start(self) -> None:
        """Run it, its output behind what is in its log. When this process dies, however it dies, it gets SIGTERM."""
        with self.program.log.open("ab") as log:
            self._process = subprocess.Popen(
                list(self.program.argv),
                env=dict(self.program.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_dies_with(os.getpid()),  # safe: this process has one thread
            )
        self._started = time.monotonic()
        self._start_at = None

    def look_after(self, say: Callable[[str], None]) -> None:
        """Start it again, with a growing pause, if it is gone."""
        if self.lives:
            self._cut_log()
        elif self._start_at is None:
            self.kill_group()
            if time.monotonic() - self._started > STEADY_S:
                self._pause = FIRST_PAUSE_S
            self._start_at = time.monotonic() + self._pause
            say(f"{self.program.name} {self._how_it_ended()}; again in {self._pause:g} s. See {self.program.log}")
            self._pause = min(self._pause * 2, LONGEST_PAUSE_S)
        elif time.monotonic() >= self._start_at:
            self.start()

    def send(self, number: signal.Signals) -> None:
        """To the process itself; how its own children end is its business."""
        if self._process is not None and self.lives:
            self._process.send_signal(number)

    def kill_group(self) -> None:
        """What is left of its session: children whose parent was killed, for one."""
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            self._process.wait()

    def _how_it_ended(self) -> str:
        code = self._process.returncode if self._process is not None else None
        if code is not None and code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def _cut_log(self) -> None:
        """The process appends to it: once copied, the file can be emptied under it."""
        log = self.program.log
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.with_suffix(".log.1").write_bytes(log.read_bytes())
            os.truncate(log, 0)


def _dies_with(parent: int) -> Callable[[], None] | None:
    """What a child does before it becomes its program, so that no killed supervisor leaves it behind. Linux only."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we could ask
            os._exit(1)

    return ask
