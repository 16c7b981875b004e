"""One `up` for one folder: a lock that ends with its holder, and the end of what a killed one left behind."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path

import psutil

MARK = "GRISTMILL_FOLDER"  # in the environment of everything that `up` starts
POLITE_S = 5.0


class AlreadyRunning(Exception):
    """Another `up` works in that folder."""

    def __init__(self, pid: object, url: object) -> None:
        super().__init__("Another `up` works in that folder.")
        self.pid = pid
        self.url = url


class Running:
    """The hold on a folder, for as long as this process lives. `state` is for clients: pid and, once healthy, URL."""

    def __init__(self, folder: Path) -> None:
        """Raises AlreadyRunning."""
        self._folder = folder
        self.state = folder / "up.json"
        self._lock = os.open(folder / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            known = read_state(folder)
            raise AlreadyRunning(known.get("pid"), known.get("url")) from None
        self.tell()

    def tell(self, url: str | None = None, pids: dict[str, int] | None = None) -> None:
        """Write the state aside, then give it its name."""
        aside = self.state.with_suffix(".tmp")
        aside.write_text(json.dumps({"pid": os.getpid(), "url": url, "pids": pids or {}}))
        os.replace(aside, self.state)

    def end_leftovers(self) -> list[str]:
        """End what a killed `up` of this folder left: its processes carry the folder in their environment.

        Whoever holds the lock knows that no living supervisor owns them. Returns their names.
        """
        left = [process for process in psutil.process_iter() if self._is_ours(process)]
        names = [_name(process) for process in left]
        _end(left)
        return names

    def close(self) -> None:
        """Let the next `up` in."""
        self.state.unlink(missing_ok=True)
        os.close(self._lock)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return bool(process.pid != os.getpid() and process.environ().get(MARK) == str(self._folder))
        except (psutil.Error, OSError):
            return False  # gone, or another user's


def read_state(folder: Path) -> dict[str, object]:
    """What the `up` of that folder says of itself; {} where there is none."""
    try:
        found = json.loads((folder / "up.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _end(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        _send(process, force=False)
    _, living = psutil.wait_procs(processes, timeout=POLITE_S)
    for process in living:
        _send(process, force=True)
    psutil.wait_procs(living, timeout=POLITE_S)


def _send(process: psutil.Process, *, force: bool) -> None:
    try:
        process.kill() if force else process.terminate()
    except psutil.NoSuchProcess:
        return


def _name(process: psutil.Process) -> str:
    try:
        return f"{process.name()} ({process.pid})"
    except psutil.Error:
        return str(process.pid)
