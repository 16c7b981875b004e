"""The `gristmill` command as scripts use it: what it prints, and its exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from gristmill import Client, Status
from tests.acceptance.installations import ROOT, gristmill, wait_until


@pytest.fixture
def run(any_url):
    """The command, told by GRISTMILL_URL where the gateway is."""
    return lambda *arguments, **more: gristmill(*arguments, GRISTMILL_URL=any_url, **more)


def test_submit_and_wait_prints_the_result_alone(run):
    # When a job is submitted and waited for
    done = run("submit", "addition", "-p", "x=40", "-p", "y=2", "--wait")
    # Then standard output is the result, and the way there is on standard error
    assert (done.returncode, done.stdout) == (0, "42\n")
    assert "add started" in done.stderr


def test_a_job_can_be_followed_by_its_id(run):
    # Given the id that submit printed
    job = run("submit", "addition", "-p", "x=40", "-p", "y=2", "-l", "from=cli").stdout.strip()
    # When it is watched, then the result can be read, and the job is in the list
    watched = run("watch", job)
    assert (watched.returncode, watched.stdout) == (0, f"{job} successful\n")
    assert json.loads(run("result", job).stdout) == 42
    whole = json.loads(run("result", job, "--json").stdout)
    assert (whole["id"], whole["labels"]) == (job, {"from": "cli"})
    listed = json.loads(run("jobs", "--label", "from=cli", "--json").stdout)
    assert job in [each["id"] for each in listed]
    assert job in run("jobs").stdout
    lines = [json.loads(line) for line in run("watch", job, "--json").stdout.splitlines()]
    assert (lines[0]["type"], lines[-1]["type"]) == ("accepted", "successful")


@pytest.mark.timeout(180)
def test_a_video_is_downloaded_and_not_twice(run, tmp_path):
    # Given a video that is done
    job = run("submit", "video", ROOT / "samples" / "street.mp4", "-p", "fps=2", "--wait", "--json", timeout=150)
    assert job.returncode == 0, job.stderr
    document = json.loads(job.stdout)
    # When its artifacts are downloaded, then their paths are printed
    first = run("download", document["id"], tmp_path / "out")
    assert str(tmp_path / "out" / "annotated.mp4") in first.stdout.splitlines()
    # And one of them can be had alone
    one = run("download", document["id"], tmp_path / "one", "--name", "detections.jsonl")
    assert one.stdout.splitlines() == [str(tmp_path / "one" / "detections.jsonl")]


def test_a_failed_job_is_exit_code_1_and_can_be_retried(run, tmp_path):
    # Given a file that is no video
    (tmp_path / "no.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + b"this is no video" * 100)
    failed = run("submit", "video", tmp_path / "no.mp4", "--wait")
    # Then the code says that the job failed, and the message why
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "bad-input" in failed.stderr
    # And it can be retried, which fails again
    job = json.loads(run("jobs", "--status", "failed", "--limit", "1", "--json").stdout)[0]["id"]
    again = run("retry", job, "--wait")
    assert again.returncode == 1


def test_each_kind_of_trouble_has_its_exit_code(run, tmp_path):
    # Given a long job, and a finished one
    long = run("submit", "addition", "-p", "x=1", "-p", "y=2", "-p", "delay=60").stdout.strip()
    done = run("submit", "addition", "-p", "x=1", "-p", "y=2", "--wait", "--json")
    finished = json.loads(done.stdout)["id"]
    # Then each has a code that a script can tell apart
    codes = {
        "wrong params": run("submit", "addition", "-p", "x=one").returncode,
        "no such file": run("submit", "video", tmp_path / "nothing.mp4").returncode,
        "not name=value": run("submit", "addition", "-p", "x").returncode,
        "no such command": run("grind").returncode,
        "nobody there": run("jobs", "--url", "http://127.0.0.1:9").returncode,
        "no such job": run("watch", "nothing").returncode,
        "no such pipeline": run("pipelines", "nothing").returncode,
        "not finished": run("result", long).returncode,
        "not failed": run("retry", finished).returncode,
        "out of time": run("watch", long, "--timeout", "0.5").returncode,
        "dismissed": (run("dismiss", long), run("watch", long).returncode)[1],
        "its result": run("result", long).returncode,
    }
    assert codes == {
        "wrong params": 2,
        "no such file": 2,
        "not name=value": 2,
        "no such command": 2,
        "nobody there": 3,
        "no such job": 4,
        "no such pipeline": 4,
        "not finished": 6,
        "not failed": 6,
        "out of time": 7,
        "dismissed": 5,
        "its result": 5,
    }


def test_ctrl_c_leaves_the_job_running_and_says_how_to_end_it(any_url):
    # Given a submission that waits
    argv = [
        sys.executable,
        "-m",
        "gristmill",
        "submit",
        "addition",
        "-p",
        "x=1",
        "-p",
        "y=2",
        "-p",
        "delay=30",
        "--wait",
    ]
    with Client(any_url) as client:
        before = {job.id for job in client.jobs(limit=20)}
        process = subprocess.Popen([*argv, "--url", any_url], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        new = lambda: [job for job in client.jobs(limit=5) if job.id not in before]  # noqa: E731
        wait_until(lambda: any(job.status is Status.RUNNING for job in new()), 30)
        time.sleep(0.5)
        # When Ctrl-C comes
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
        # Then the job goes on, and the message says how to end it
        (job,) = new()
        assert (process.returncode, job.refresh().status) == (130, Status.RUNNING)
        assert f"gristmill dismiss {job.id}" in said
        job.dismiss()


def test_pipelines_are_listed_with_their_params(run):
    # When pipelines are asked for, then both are there, and one shows its params
    assert {line.split("\t")[0] for line in run("pipelines").stdout.splitlines()} >= {"addition", "video"}
    assert "x" in json.loads(run("pipelines", "addition").stdout)["params"]["properties"]
