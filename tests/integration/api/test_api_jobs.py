"""Jobs over HTTP: lists, results, artifacts, logs, dismissal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import httpx2
import pytest

from jobs.model import Cause, JobError, LogLine, Presence
from jobs.store import JobStore
from jobs.values import pack
from tests.gateways import Gateway
from tests.integration.api.conftest import Worker
from tests.scraping import scraped

CONTENT = bytes(range(256)) * 10


def test_pages_follow_each_other_by_link(client: httpx2.Client) -> None:
    # Given five jobs with a label
    value = f"pages-{time.time_ns()}"
    body = {"pipeline": "addition", "params": {"x": 1, "y": 2}, "labels": {"run": value}}
    ids = [client.post("/process", json=body).json()["id"] for _ in range(5)]
    # When they are listed two at a time, by following `next`
    found, path = [], f"/jobs?label=run:{value}&limit=2"
    while path:
        answer = client.get(path)
        found += [job["id"] for job in answer.json()["jobs"]]
        path = answer.links.get("next", {}).get("url")
    # Then they come newest first, each once
    assert found == ids[::-1]


def test_lists_are_filtered_by_status_and_pipeline(client: httpx2.Client, submit: Callable[..., Any]) -> None:
    job, other = submit(), submit("tiles")
    client.delete(f"/jobs/{job['id']}")
    dismissed = client.get("/jobs", params={"status": "dismissed", "processID": "addition"}).json()["jobs"]
    tiles = client.get("/jobs?processID=tiles").json()["jobs"]
    assert job["id"] in [each["id"] for each in dismissed]
    assert {(each["status"], each["pipeline"]) for each in dismissed} == {("dismissed", "addition")}
    assert other["id"] in [each["id"] for each in tiles]


def test_a_result_is_what_the_last_stage_returned(
    client: httpx2.Client, worker: Worker, submit: Callable[..., Any]
) -> None:
    job = submit()
    worker.finish_job(job["id"], {"sum": 42, "list": []})
    assert client.get(f"/jobs/{job['id']}/results").json() == {"sum": 42, "list": []}
    assert client.get(f"/jobs/{job['id']}").json()["result"] == {"sum": 42, "list": []}


def test_a_large_result_is_only_at_its_own_place(
    client: httpx2.Client, worker: Worker, submit: Callable[..., Any]
) -> None:
    job = submit()
    worker.finish_job(job["id"], "x" * 100_000)
    assert client.get(f"/jobs/{job['id']}/results").json() == "x" * 100_000
    assert "result" not in client.get(f"/jobs/{job['id']}").json()


def test_the_result_of_an_each_stage_is_a_list_in_order(
    client: httpx2.Client, worker: Worker, records: JobStore, submit: Callable[..., Any]
) -> None:
    # Given a job whose last stage runs for each of three parts
    job = submit("tiles")
    emitter = worker.claim(job["id"])
    for index in range(3):
        records.emit(emitter, index, pack(index, str))
    worker.finish(emitter, None, emitted=3)
    # When they finish out of order
    for index in (2, 0, 1):
        worker.finish(worker.claim(job["id"], 1, emitter.fence, index), {"n": index})
    # Then the result is in order
    assert client.get(f"/jobs/{job['id']}/results").json() == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert client.get(f"/jobs/{job['id']}").json()["result"] == [{"n": 0}, {"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("code", "status", "name"), [("bad-input", 422, "job-bad-input"), ("stage-broke", 500, "job-failed")]
)
def test_the_result_of_a_failed_job_is_its_problem(
    client: httpx2.Client,
    worker: Worker,
    records: JobStore,
    submit: Callable[..., Any],
    refused: Callable[..., Any],
    code: str,
    status: int,
    name: str,
) -> None:
    job = submit()
    records.fail(worker.claim(job["id"]), Cause.BAD_INPUT, JobError(code, "Why it failed.", "add", 0))
    problem = refused(client.get(f"/jobs/{job['id']}/results"), status, name)
    assert (problem["detail"], problem["code"], problem["stage"], problem["index"]) == (
        "Why it failed.",
        code,
        "add",
        0,
    )


def test_a_dismissed_job_is_gone_and_dismissing_again_does_no_harm(
    client: httpx2.Client, submit: Callable[..., Any], refused: Callable[..., Any]
) -> None:
    job = submit()
    answers = [client.delete(f"/jobs/{job['id']}") for _ in range(2)]
    assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [(200, "dismissed")] * 2
    refused(client.get(f"/jobs/{job['id']}/results"), 410, "job-dismissed")


def test_an_id_does_not_reach_into_another_key_of_the_store(
    client: httpx2.Client, submit: Callable[..., Any], refused: Callable[..., Any]
) -> None:
    # The events of a job lie under its key and a word: no id may have a colon
    refused(client.get(f"/jobs/{submit()['id']}:events"), 404, "job-not-found")


def test_only_a_failed_job_can_be_retried(
    client: httpx2.Client, submit: Callable[..., Any], refused: Callable[..., Any]
) -> None:
    refused(client.post(f"/jobs/{submit()['id']}/retry"), 409, "job-not-failed")


def test_the_log_is_text(client: httpx2.Client, records: JobStore, submit: Callable[..., Any]) -> None:
    job = submit()
    # Given a line, and one of a version that did not know of fences
    lines = [
        LogLine(1_700_000_000.5, "info", "one\ntwo", "add", 0, 3),
        LogLine(1_700_000_001.0, "error", "x", "add", 0),
    ]
    records.log(job["id"], lines)
    answer = client.get(f"/jobs/{job['id']}/logs")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    told = "2023-11-14T22:13:20.500Z INFO    add[0]#3 one\n  two\n2023-11-14T22:13:21.000Z ERROR   add[0] x\n"
    assert answer.text == told


def test_a_line_of_the_log_can_neither_look_like_another_nor_steer_a_terminal(
    client: httpx2.Client, records: JobStore, submit: Callable[..., Any]
) -> None:
    # Given what a stage may have found in a file: line ends of every kind, commands for terminals, turned directions
    job = submit()
    text = "a\r\nb\rc\x0bd\x85e\u2028f\x1b[2Jg\x9b1mh\u202ei\x7f\tj\u00e9 \u65e5\u672c"
    records.log(job["id"], [LogLine(1_700_000_000.5, "info", text, "add", 0, 3)])
    # Then they are shown, and do nothing; letters of any script stay as they are
    answer = client.get(f"/jobs/{job['id']}/logs").text
    first, second = answer.splitlines()
    assert first.endswith(" INFO    add[0]#3 a")
    assert second == "  b\\rc\\x0bd\\x85e\\u2028f\\x1b[2Jg\\x9b1mh\\u202ei\\x7f\tj\u00e9 \u65e5\u672c"


@pytest.fixture
def artifact(worker: Worker, submit: Callable[..., Any]) -> str:
    """The path of a kept file."""
    job = submit()
    kept = worker.keep(job["id"], "table.bin", CONTENT, "application/octet-stream")
    worker.finish_job(job["id"], 1, (kept,))
    return f"/jobs/{job['id']}/artifacts/table.bin"


def test_artifacts_are_listed_and_downloaded_whole(client: httpx2.Client, artifact: str) -> None:
    listed = client.get(artifact.removesuffix("/table.bin")).json()["artifacts"]
    assert [(each["name"], each["bytes"], each["href"]) for each in listed] == [("table.bin", len(CONTENT), artifact)]
    answer = client.get(artifact)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["etag"] == f'"{listed[0]["sha256"]}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-disposition"] == 'attachment; filename="table.bin"'
    assert answer.headers["content-length"] == str(len(CONTENT))


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-199", 100, 199),
        ("bytes=2000-", 2000, 2559),
        ("bytes=-10", 2550, 2559),
        ("bytes=2500-99999", 2500, 2559),
        ("bytes=-99999", 0, 2559),
    ],
)
def test_a_range_is_a_part_of_the_file(client: httpx2.Client, artifact: str, asked: str, start: int, end: int) -> None:
    answer = client.get(artifact, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, CONTENT[start : end + 1])
    assert answer.headers["content-range"] == f"bytes {start}-{end}/{len(CONTENT)}"


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "bytes=9-3", "lines=1-2", "bytes=-", "bytes=x-"])
def test_a_range_that_is_not_one_plain_range_is_the_whole(client: httpx2.Client, artifact: str, asked: str) -> None:
    answer = client.get(artifact, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize("asked", ["bytes=2560-", "bytes=9999-10000", "bytes=-0"])
def test_a_range_behind_the_end_is_refused(
    client: httpx2.Client, artifact: str, refused: Callable[..., Any], asked: str
) -> None:
    answer = client.get(artifact, headers={"Range": asked})
    refused(answer, 416, "range-not-satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"


def test_a_download_is_continued_only_of_the_same_file(client: httpx2.Client, artifact: str) -> None:
    etag = client.head(artifact).headers["etag"]
    same = client.get(artifact, headers={"Range": "bytes=10-", "If-Range": etag})
    other = client.get(artifact, headers={"Range": "bytes=10-", "If-Range": '"other"'})
    known = client.get(artifact, headers={"If-None-Match": etag})
    assert [each.status_code for each in (same, other, known)] == [206, 200, 304]


def test_head_is_get_without_a_body(client: httpx2.Client, artifact: str, submit: Callable[..., Any]) -> None:
    for path in (artifact, "/jobs", "/", "/livez", f"/jobs/{submit()['id']}"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content, head.headers["content-type"]) == (200, b"", get.headers["content-type"])


def test_a_picture_may_be_shown_and_a_page_may_not(
    client: httpx2.Client, worker: Worker, submit: Callable[..., Any]
) -> None:
    job = submit()
    kept = [
        worker.keep(job["id"], name, b"content", type_)
        for name, type_ in (("a.jpg", "image/jpeg"), ("b.html", "text/html"), ("c.svg", "image/svg+xml"))
    ]
    worker.finish_job(job["id"], 1, tuple(kept))
    shown = [
        client.get(f"/jobs/{job['id']}/artifacts/{each.name}").headers["content-disposition"].partition(";")[0]
        for each in kept
    ]
    assert shown == ["inline", "attachment", "attachment"]


def test_a_file_that_has_vanished_is_told_without_a_trace(
    client: httpx2.Client, worker: Worker, submit: Callable[..., Any], refused: Callable[..., Any]
) -> None:
    # Given an artifact whose file is gone
    job = submit()
    kept = worker.keep(job["id"], "gone.bin", b"x", "application/octet-stream")
    worker.finish_job(job["id"], 1, (kept,))
    (worker._files / kept.file).unlink()
    # Then the answer is a problem, and names no path
    problem = refused(client.get(f"/jobs/{job['id']}/artifacts/gone.bin"), 500, "file-missing")
    assert str(worker._files) not in str(problem)


def test_pipelines_are_described_with_the_schema_of_their_params(
    client: httpx2.Client, refused: Callable[..., Any]
) -> None:
    listed = client.get("/processes").json()["processes"]
    assert [each["id"] for each in listed] == ["addition", "clip", "page", "tiles"]
    clip = client.get("/processes/clip").json()
    assert clip["input"] == {"required": True, "takes": {"file": ["video/*"], "files": ["video/*"]}}
    assert clip["params"]["properties"]["fps"]["default"] == 5
    refused(client.get("/processes/nope"), 404, "pipeline-not-found")


def test_the_version_lists_the_workers_that_are_there(client: httpx2.Client, records: JobStore) -> None:
    # Given a worker on a GPU
    worker = Presence("host:7", "cuda:0 NVIDIA L4", ("inference",), 1, {"video.inference": 16}, {"detector": 5}, 9)
    records.announce(worker, 60)
    # Then the gateway shows it with its device, until it leaves
    assert client.get("/version").json()["workers"] == [{**asdict(worker), "queues": ["inference"]}]
    records.announce(worker, 0)
    assert client.get("/version").json()["workers"] == []


def test_the_gateway_says_what_it_is_and_how_it_is(client: httpx2.Client) -> None:
    assert client.get("/livez").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok", "checks": {"store": "ok", "files": "ok", "broker": "ok"}}
    assert client.get("/version").json()["pipelines"] == ["addition", "clip", "page", "tiles"]
    hrefs = [link["href"] for link in client.get("/").json()["links"]]
    for href in hrefs:
        assert client.get(href).status_code == 200, href
    page = client.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
    assert all(f'href="{href}"' in page.text for href in hrefs if href != "/")


def test_answers_jobs_and_bytes_are_counted(
    client: httpx2.Client, submit: Callable[..., Any], worker: Worker, gateway: Gateway
) -> None:
    # Given what was counted before
    before = scraped(f"{gateway.url}/metrics")
    # When a job is accepted, a file sent in, another one out
    job = submit()
    assert client.post("/files", content=b"x" * 1_000, headers={"Content-Type": "video/mp4"}).status_code == 201
    worker.finish_job(job["id"], {}, (worker.keep(job["id"], "out.bin", b"y" * 3_000, "application/zip"),))
    assert len(client.get(f"/jobs/{job['id']}/artifacts/out.bin").content) == 3_000
    # Then all of it was counted
    after = scraped(f"{gateway.url}/metrics")
    for name, more in {
        'gristmill_requests_total{operation="submit",status="202"}': 1,
        'gristmill_jobs_accepted_total{pipeline="addition"}': 1,
        'gristmill_jobs{pipeline="addition",status="successful"}': 1,
        "gristmill_files_received_bytes_total": 1_000,
        "gristmill_files_sent_bytes_total": 3_000,
    }.items():
        assert after[name] - before.get(name, 0) == more, name
    assert after["gristmill_store_up"] == 1
