"""The one-machine mode: it survives kills and restarts, and tells a second one that it is there."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import httpx2
import psutil
import pytest

from gristmill import Client, Status
from tests.acceptance.installations import OneMachine, gristmill, wait_until

pytestmark = [
    pytest.mark.timeout(240),
]


@pytest.fixture(scope="module")
def started() -> Iterator[OneMachine]:
    """One that these tests may kill; each start takes seconds, so they share it."""
    with OneMachine() as machine:
        yield machine


@pytest.fixture
def machine(started: OneMachine) -> OneMachine:
    """It runs, whatever the test before did to it."""
    return started if started.process is not None else started.start()


def test_jobs_are_finished_after_a_kill_of_the_whole_group(machine):
    # Given jobs that run and jobs that wait
    with Client(machine.url) as client:
        ids = [client.submit("addition", x=n, y=1, delay=2).id for n in range(4)]
        wait_until(lambda: any(client.job(each).status is Status.RUNNING for each in ids), 30, machine.said)
    # When everything is killed -9, and started again
    machine.kill()
    machine.start()
    # Then every job is finished, with its own result
    with Client(machine.url) as client:
        assert [client.job(each).wait(timeout=90).result for each in ids] == [1, 2, 3, 4]


def test_a_killed_supervisor_leaves_nothing_that_blocks_the_next_one(machine):
    # Given a running one whose supervisor alone is killed
    below = machine.processes()[1:]
    assert len(below) >= 8  # gateway, workers, sweeper, Valkey, and the children of some
    assert machine.process is not None
    machine.process.kill()
    machine.process.wait()
    # When the next one starts at once in the same folder
    machine.start()
    # Then it works, and none of the old processes is there any more
    with Client(machine.url) as client:
        assert client.submit("addition", x=40, y=2).wait(timeout=60).result == 42
    assert [process for process in below if process.is_running()] == []


def test_each_process_that_dies_is_replaced(machine):
    # Given a job that takes a while
    with Client(machine.url, patience=30) as client:
        job = client.submit("addition", x=40, y=2, delay=3)
        wait_until(lambda: job.refresh().status is Status.RUNNING, 30, machine.said)
        # When Valkey, the gateway, the sweeper and the worker are killed -9 one after the other
        for name, pid in machine.state()["pids"].items():
            if name in ("valkey", "gateway", "sweeper", "worker-io"):
                os.kill(pid, signal.SIGKILL)
        # Then the job is done all the same
        assert job.wait(timeout=120).result == 42


def test_a_stop_is_orderly_and_a_restart_forgets_nothing(machine):
    # Given a finished job under a key, and one that runs for long
    body = {"pipeline": "addition", "params": {"x": 40, "y": 2}}
    headers = {"Idempotency-Key": "restart-1", "Prefer": "wait=30"}
    first = httpx2.post(f"{machine.url}/process", json=body, headers=headers, timeout=60).json()
    with Client(machine.url) as client:
        long = client.submit("addition", x=1, y=2, delay=15)
        wait_until(lambda: long.refresh().status is Status.RUNNING, 30, machine.said)
    everything = machine.processes()
    # When Ctrl-C comes, then all of it is gone within 30 seconds
    began = time.monotonic()
    assert machine.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < 30
    assert [process for process in everything if process.is_running()] == []
    # And after the next start the key still means that job, and its result is still there
    machine.start()
    again = httpx2.post(f"{machine.url}/process", json=body, headers=headers, timeout=60)
    assert (again.json()["id"], again.headers["Idempotency-Replayed"]) == (first["id"], "true")
    assert httpx2.get(f"{machine.url}/jobs/{first['id']}/results").json() == 42
    # And the long job was given back, which costs it nothing, and is finished
    with Client(machine.url) as client:
        job = client.job(long.id).wait(timeout=90)
        assert (job.result, job.stages[0].failures, job.stages[0].losses) == (3, 0, 0)


def test_a_service_manager_s_signal_ends_it_too(machine):
    # When SIGTERM comes, then it ends as with Ctrl-C
    everything = machine.processes()
    assert machine.stop(signal.SIGTERM) == 0
    assert [process for process in everything if process.is_running()] == []


def test_it_ends_with_whoever_started_it(machine):
    # Given one that was started with --until-eof, as these are
    assert machine.process is not None
    assert machine.process.stdin is not None
    # When the other end of its standard input closes, then it ends
    machine.process.stdin.close()
    assert machine.process.wait(timeout=40) == 0
    machine.process = None


def test_a_second_one_in_the_same_folder_is_refused(machine):
    # When another one is started in the folder of one that runs
    second = gristmill("up", "--folder", machine.folder, "--port", "0")
    # Then it says who is there, with its own exit code
    assert second.returncode == 6
    assert f"already running in {machine.folder} at {machine.url} (process " in second.stderr.replace("\n", " ")
    # And the first one is unharmed
    with Client(machine.url) as client:
        assert client.submit("addition", x=40, y=2).wait(timeout=60).result == 42


def test_a_port_in_use_is_said_clearly(tmp_path):
    # Given a port that somebody else listens on
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # When it is asked for
        refused = gristmill("up", "--folder", tmp_path / ".gristmill", "--port", port)
    # Then the message names it and a way out
    assert refused.returncode == 8
    assert f"port {port} is in use" in refused.stderr
    assert "--port" in refused.stderr


def test_a_wrong_setting_stops_it_before_anything_runs(tmp_path):
    # When a setting is wrong
    refused = gristmill("up", "--folder", tmp_path / ".gristmill", "--port", "0", LEASE_S="soon")
    # Then it is named, and nothing was started
    assert "LEASE_S" in refused.stderr
    assert refused.returncode != 0
    marked = [p for p in psutil.process_iter() if _folder_of(p) == str(tmp_path / ".gristmill")]
    assert marked == []


def _folder_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("GRISTMILL_FOLDER")
    except (psutil.Error, OSError):
        return None
