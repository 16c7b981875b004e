"""What a client sees of a whole installation, whatever stands behind its gateway."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path

import av
import httpx2
import pytest

from gristmill import Client, JobDismissed, Status, errors

CHILDREN = max(4, 2 * len(os.sched_getaffinity(0)))  # of the worker on `io`
STREET = Path(__file__).resolve().parent.parent.parent / "samples" / "street.mp4"


def test_addition_answers_42(client):
    # When 40 and 2 are submitted, then the answer is 42
    job = client.submit("addition", x=40, y=2).wait(timeout=60)
    assert (job.status, job.result, job.progress) == (Status.SUCCESSFUL, 42, 1.0)
    assert [(stage.name, stage.status, stage.done) for stage in job.stages] == [("add", "finished", 1)]


def test_curl_can_submit_and_wait_in_one_request(url):
    # When a job is posted with `Prefer: wait`
    body = {"pipeline": "addition", "params": {"x": 40, "y": 2}}
    answer = httpx2.post(f"{url}/process", json=body, headers={"Prefer": "wait=30"}, timeout=60)
    # Then the answer is the finished job
    assert (answer.status_code, answer.json()["status"], answer.json()["result"]) == (200, "successful", 42)


def test_events_tell_the_whole_story_in_order(client):
    # Given a job that takes a moment
    job = client.submit("addition", x=1, y=2, delay=0.5)
    # When its events are read to the end
    events = list(job.events())
    # Then they count from 1, and end with the final status
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    kinds = [event.type for event in events if event.type != "progress"]
    assert kinds == ["accepted", "running", "stage_started", "stage_finished", "successful"]


@pytest.mark.timeout(180)
def test_a_video_goes_through_the_whole_pipeline(client, tmp_path):
    # Given the sample video
    job = client.submit("video", file=STREET, fps=5)
    # When it is done
    job.wait(timeout=120)
    assert job.status is Status.SUCCESSFUL, job.error
    assert [stage.status for stage in job.stages] == ["finished"] * 3
    # Then its artifacts come over HTTP
    paths = {path.name: path for path in job.download(tmp_path)}
    assert {"annotated.mp4", "contact-sheet.jpg", "detections.jsonl"} <= set(paths)
    # And the detections are lines of JSON, in time, with boxes inside the picture
    lines = [json.loads(line) for line in paths["detections.jsonl"].read_text().splitlines()]
    assert lines
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    # And the annotated video plays: H.264, five frames a second
    with av.open(paths["annotated.mp4"]) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, float(stream.average_rate)) == ("h264", 5.0)
        frames = sum(1 for _ in video.decode(stream))
    assert frames == pytest.approx(5 * job.result["duration"], abs=2)
    assert job.result["frames"] == frames


def test_a_file_that_is_no_video_fails_with_a_sentence(client):
    # Given some text that claims to be a video
    job = client.submit("video", file=b"\x00\x00\x00\x18ftypmp42" + b"this is no video" * 100)
    # When it is done, then the job says what was wrong with it
    job.wait(timeout=60)
    assert job.status is Status.FAILED
    assert job.error.code == "bad-input"
    with pytest.raises(errors.JobFailed):
        job.result  # noqa: B018 -- reading it is what is tested


def test_the_more_urgent_job_runs_first(client):
    # Given more waiting jobs than there are workers for them
    waiting = [client.submit("addition", x=1, y=n, delay=1, priority=1) for n in range(3 * CHILDREN)]
    # When an urgent one comes last
    urgent = client.submit("addition", x=1, y=1, priority=9).wait(timeout=60)
    # Then it has overtaken most of them
    for job in waiting:
        job.wait(timeout=60)
    later = [job for job in waiting if job.record.started > urgent.record.started]
    assert len(later) >= CHILDREN


def test_dismissing_long_jobs_frees_their_workers_at_once(client):
    # Given more long jobs than there are workers, running
    long = [client.submit("addition", x=1, y=n, delay=60) for n in range(CHILDREN + 2)]
    until = time.monotonic() + 30
    while sum(job.refresh().status is Status.RUNNING for job in long) < CHILDREN and time.monotonic() < until:
        time.sleep(0.1)
    # When they are dismissed in the middle
    for job in long:
        job.dismiss()
    # Then another job is done within 5 seconds
    began = time.monotonic()
    assert client.submit("addition", x=40, y=2).wait(timeout=30).result == 42
    assert time.monotonic() - began < 5
    # And they are dismissed for good
    assert {job.refresh().status for job in long} == {Status.DISMISSED}
    with pytest.raises(JobDismissed):
        long[0].result  # noqa: B018 -- reading it is what is tested


def test_one_key_is_one_job(client, url):
    # Given a submission with a key
    key = str(uuid.uuid4())
    first = client.submit("addition", x=1, y=2, key=key)
    # When it comes again, then it is the same job, and the answer says so
    body = {"pipeline": "addition", "params": {"x": 1, "y": 2}}
    again = httpx2.post(f"{url}/process", json=body, headers={"Idempotency-Key": key})
    assert (again.json()["id"], again.headers["Idempotency-Replayed"]) == (first.id, "true")
    # And another body under that key is refused
    with pytest.raises(errors.KeyReused):
        client.submit("addition", x=1, y=3, key=key)


def test_wrong_params_are_named_all_at_once(client):
    # When a job has three things wrong, then the refusal names the three
    with pytest.raises(errors.ParamsInvalid) as refused:
        client.submit("addition", x="forty", z=1)
    assert len(refused.value.errors) == 3


def test_jobs_can_be_found_by_their_label(client):
    # Given two jobs, one with a label
    mark = uuid.uuid4().hex
    labelled = client.submit("addition", x=1, y=2, labels={"batch": mark})
    client.submit("addition", x=1, y=2)
    # When jobs are listed by it, then it is the only one
    assert [job.id for job in client.jobs(label=f"batch:{mark}")] == [labelled.id]


def test_what_is_not_there_is_not_found(client):
    # When unknown things are asked for, then the class says which
    with pytest.raises(errors.JobNotFound):
        client.job("nothing")
    with pytest.raises(errors.PipelineNotFound):
        client.pipeline("nothing")
    with pytest.raises(errors.PipelineUnknown):
        client.submit("nothing")


def test_every_pipeline_shows_an_example_that_it_takes(client: Client):
    # When the pipelines are listed, then the two that exist are there, each with its params
    assert {"addition", "video"} <= {pipeline.id for pipeline in client.pipelines()}
    assert client.pipeline("addition").raw["example"]["params"] == {"x": 40, "y": 2}
