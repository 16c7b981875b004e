"""The supervisor with real processes: it starts again, ends in order and in time, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from jobs.running import MARK, AlreadyRunning, Running
from jobs.supervisor import Program, Supervisor

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
POLITE = "import time; print('up', flush=True); time.sleep(99)"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def supervisor(said: list[str]) -> Iterator[Supervisor]:
    supervisor = Supervisor(said.append)
    yield supervisor
    supervisor.end()


@pytest.fixture
def make_program(tmp_path: Path) -> Callable[..., Program]:
    def make(name: str, code: str, **more: object) -> Program:
        env = {**os.environ, "LOG": str(tmp_path / "order")}
        return Program(name, (sys.executable, "-c", code), env, tmp_path / f"{name}.log", **more)

    return make


def up(program: Program, times: int = 1) -> Callable[[], bool]:
    """Whether the program has said so that often."""
    return lambda: program.log.exists() and program.log.read_text().count("up\n") >= times


def test_a_process_that_is_killed_is_started_again(supervisor, make_program, said):
    # Given a running program
    program = make_program("mill", POLITE)
    supervisor.start(program)
    assert supervisor.until(up(program), timeout_s=10)
    # When it is killed
    first = supervisor.pids()["mill"]
    os.kill(first, signal.SIGKILL)
    # Then another one runs soon, and the operator is told how the first one ended and where to look
    assert supervisor.until(up(program, times=2), timeout_s=10)
    assert supervisor.pids()["mill"] != first
    assert "mill was ended by SIGKILL" in said[0]
    assert str(program.log) in said[0]


def test_a_process_that_dies_at_once_is_started_with_growing_pauses(supervisor, make_program, said):
    # Given a program that cannot run
    supervisor.start(make_program("broken", "raise SystemExit(3)"))
    # When it is looked after for two seconds
    supervisor.until(lambda: False, timeout_s=2.5)
    # Then it was not started ten times a second
    assert [line.partition("; again in ")[2].partition(" s.")[0] for line in said[:2]] == ["0.5", "1"]
    assert len(said) <= 3


def test_who_is_needed_by_the_others_ends_after_them(supervisor, make_program, tmp_path):
    # Given a server, and a client of it that takes a moment to end
    notes = "import os, signal, sys, time\ndef note(*_):\n    time.sleep({pause})\n"
    notes += "    open(os.environ['LOG'], 'a').write('{name}\\n')\n    sys.exit()\n"
    notes += "signal.signal(signal.SIGTERM, note)\nprint('up', flush=True)\ntime.sleep(99)"
    server = make_program("server", notes.format(name="server", pause=0), last=True)
    client = make_program("client", notes.format(name="client", pause=0.7))
    for program in (server, client):
        supervisor.start(program)
    assert supervisor.until(lambda: up(server)() and up(client)(), timeout_s=10)
    # When all are ended
    supervisor.end()
    # Then the server outlived its client
    assert (tmp_path / "order").read_text().split() == ["client", "server"]


def test_who_does_not_listen_is_ended_by_force_in_time(supervisor, make_program, said):
    # Given a program that ignores SIGTERM
    program = make_program("stubborn", STUBBORN, grace_s=0.5)
    supervisor.start(program)
    assert supervisor.until(up(program), timeout_s=10)
    pid = supervisor.pids()["stubborn"]
    # When it is asked to end
    began = time.monotonic()
    supervisor.end()
    # Then it is gone soon after its grace
    assert time.monotonic() - began < 3
    assert not psutil.pid_exists(pid)
    assert said[-1] == "Ending by force: stubborn."


def test_children_of_a_killed_process_do_not_stay(supervisor, make_program):
    # Given a program with a child of its own
    code = f"import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); c.wait()"
    program = make_program("parent", code)
    supervisor.start(program)
    assert supervisor.until(up(program), timeout_s=10)
    parent = psutil.Process(supervisor.pids()["parent"])
    (child,) = parent.children()
    # When the program is killed and looked after
    parent.kill()
    # Then the child of the first one is gone before the second one starts
    assert supervisor.until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, timeout_s=10)


def test_a_killed_supervisor_takes_its_processes_along(tmp_path):
    # Given a supervisor in a process of its own
    code = f"""
import os, sys
from pathlib import Path
from jobs.supervisor import Program, Supervisor
supervisor = Supervisor(print)
program = Program("mill", (sys.executable, "-c", {POLITE!r}), dict(os.environ), Path({str(tmp_path / "mill.log")!r}))
supervisor.start(program)
print(supervisor.pids()["mill"], flush=True)
supervisor.until(lambda: False)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        mill = psutil.Process(int(process.stdout.readline()))
        # When it is killed -9
        process.kill()
    # Then what it had started ends too
    mill.wait(timeout=5)


def test_a_second_up_in_a_folder_learns_of_the_first(tmp_path):
    # Given one that runs and is healthy
    first = Running(tmp_path)
    first.tell("http://127.0.0.1:3333")
    # When a second one starts there, then it learns who is there
    with pytest.raises(AlreadyRunning) as refused:
        Running(tmp_path)
    assert (refused.value.pid, refused.value.url) == (os.getpid(), "http://127.0.0.1:3333")
    # And once the first one is gone, it may start
    first.close()
    Running(tmp_path).close()


def test_what_a_killed_up_left_is_ended_and_nobody_else_is(tmp_path):
    # Given a stubborn process of this folder, and one of another folder
    def start(folder: Path) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-c", STUBBORN]
        process = subprocess.Popen(argv, env={**os.environ, MARK: str(folder)}, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    ours, another = start(tmp_path), start(tmp_path / "another")
    running = Running(tmp_path)
    try:
        # When the next `up` of this folder clears up
        left = running.end_leftovers()
        # Then only its own leftover is gone
        assert [str(ours.pid) in name for name in left] == [True]
        assert (ours.poll() is not None, another.poll()) == (True, None)
    finally:
        running.close()
        for process in (ours, another):
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
