"""The stack with each combination of servers, and what it keeps: restarts, down and up, a backup and its way back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gristmill import Status
from tests.compose.examples import STREET
from tests.compose.load import Load
from tests.compose.stack import ROOT, Stack

OPERATING = (ROOT / "docs" / "operating.md").read_text()


def lines_of(heading: str) -> str:
    """The lines that the page has in the block under a heading."""
    found = re.search(rf"^### {heading}\n.*?^```\n(.*?)^```", OPERATING, re.M | re.S)
    assert found, heading
    return found.group(1)


def test_everything_may_restart_with_jobs_waiting(stack: Stack) -> None:
    with stack.client() as client:
        # Given more jobs than can run at once, and a video
        video = client.submit("video", file=STREET, fps=5)
        waiting = [client.submit("addition", x=n, y=1, delay=1) for n in range(40)]
        # When everything restarts
        stack.compose("restart", timeout=300)
        # Then they are all done
        assert [job.wait(timeout=120).result for job in waiting] == [n + 1 for n in range(40)]
        assert video.wait(timeout=180).status is Status.SUCCESSFUL


def test_the_records_are_there_after_down_and_up(stack: Stack, tmp_path: Path) -> None:
    # Given finished jobs, one with artifacts
    with stack.client() as client:
        video = client.submit("video", file=STREET, fps=2).wait(timeout=180)
        before = {job.id: (job.status, job.pipeline) for job in client.jobs()}
    # When the stack is taken down, and brought up again
    stack.down()
    assert stack.containers() == []
    stack.up()
    # Then the same jobs are there, and their files
    with stack.client() as client:
        assert {job.id: (job.status, job.pipeline) for job in client.jobs()} == before
        assert client.job(video.id).download(tmp_path)


# One of each store: what the broker held is not in a backup.
@pytest.mark.parametrize("stack", ["rabbitmq-redis", "redis-postgres"], indirect=True, scope="session")
def test_a_backup_that_was_taken_under_load_comes_back_whole(stack: Stack, tmp_path: Path) -> None:
    store = stack.servers.split("-")[1].capitalize()
    # Given a finished video, and jobs under way
    with stack.client() as client:
        video = client.submit("video", file=STREET, fps=2).wait(timeout=180)
    with Load(stack.url) as load:
        before = load.accepted()
        # When a backup is made as the page says
        stack.shell(lines_of(f"Back up {store}"), tmp_path)
    # And everything is lost
    stack.down("-v")
    # And the backup is brought back as the page says
    stack.shell(lines_of(f"Restore {store}"), tmp_path)
    # Then every job that was accepted before it is there, and ends well
    with stack.client() as client:
        for job_id in before:
            assert client.job(job_id).wait(timeout=120).status is Status.SUCCESSFUL
        # And the finished one has its files
        found = client.job(video.id)
        assert (found.status, found.result) == (video.status, video.result)
        assert {path.name for path in found.download(tmp_path / "out")} >= {"annotated.mp4", "detections.jsonl"}
