"""Processes of an installation that are started again whenever they die, and can be killed, frozen and replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.neighbours import Server

ROOT = Path(__file__).resolve().parent.parent.parent
TICK_S = 0.1
OWNER = "GRISTMILL_BATTERY"  # in the environment of everything that a battery starts: the pid of the battery


class Kept:
    """One program. It has a session of its own, so that a signal to its group reaches it and its children alone."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name, self.argv, self.env, self.log = name, list(argv), dict(env), log
        self.starts = 0
        self.is_held_down = False  # do not start it again
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it; what is left of the one before is ended."""
        self.kill()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self.argv],
                cwd=ROOT,
                env={**os.environ, **self.env, OWNER: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.starts += 1
        self.is_held_down = False

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def lives(self) -> bool:
        """Whether it runs, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def children(self) -> list[int]:
        """The pids of its children now."""
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]
        return []

    def signal(self, number: int) -> None:
        """To the process itself."""
        if self.lives:
            os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """To the process and its children: kill -9 leaves no one, SIGSTOP freezes them all."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def end(self, within_s: float) -> float | None:
        """SIGTERM; the seconds it took to end, or None when it had to be killed. Stays ended until `start`."""
        self.is_held_down = True
        self.signal(signal.SIGTERM)
        began = time.monotonic()
        assert self._process is not None
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return None
        return time.monotonic() - began

    def kill(self) -> None:
        """kill -9 of the whole group."""
        if self._process is not None:
            self.signal_group(signal.SIGKILL)
            self._process.wait()


class Keeper:
    """The supervisor: looks every tenth of a second, starts again what has died, without a growing pause."""

    def __init__(self) -> None:
        self._programs: list[Kept] = []
        self._servers: list[Server] = []
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()
        self.said: list[str] = []

    def keep(self, program: Kept) -> Kept:
        """Start it, and keep it running from now on."""
        with self._lock:
            program.start()
            self._programs.append(program)
        return program

    def forget(self, program: Kept) -> None:
        """It is not ours any more."""
        with self._lock:
            self._programs.remove(program)

    @contextlib.contextmanager
    def keeping(self, server: Server):
        """Inside, a server that ends is started again on its data, over and over if need be."""
        with self._lock:
            self._servers.append(server)
        try:
            yield
        finally:
            with self._lock:
                self._servers.remove(server)

    def close(self) -> None:
        """End every program."""
        self._closing.set()
        self._thread.join(120.0)
        for program in self._programs:
            program.kill()

    def _run(self) -> None:
        while not self._closing.wait(TICK_S):
            with self._lock:
                for program in self._programs:
                    if not program.lives and not program.is_held_down:
                        program.start()
                servers = list(self._servers)
            for server in servers:
                if server.process is None or server.process.poll() is not None:
                    try:
                        server.start()
                    except RuntimeError as error:  # its disk is still full: it ended again
                        self.said.append(str(error))


def end_leftovers() -> int:
    """End what a battery that was itself killed has left running; how many that were."""
    left = [process for process in psutil.process_iter() if _is_left(process)]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=5)
    return len(left)


def _is_left(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error, OSError, ValueError):
        owner = process.environ().get(OWNER)
        return bool(owner) and not psutil.pid_exists(int(owner))
    return False
