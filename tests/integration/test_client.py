"""The Python client against an HTTP server that misbehaves on demand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from gristmill import Client, JobDismissed, JobFailed, WaitTimedOut, errors

ID = "0198-a"


@pytest.fixture
def client(httpserver: HTTPServer) -> Iterator[Client]:
    with Client(httpserver.url_for(""), patience=3.0, outage=3.0) as client:
        yield client


def document(status: str = "accepted", **more: Any) -> dict[str, Any]:
    stage = {"name": "mill", "status": "waiting", "total": 1, "done": 0, "progress": 0.0}
    return {"id": ID, "pipeline": "addition", "status": status, "stages": [stage], **more}


class Answers:
    """One answer after the other, and what was asked for; the last one stays."""

    def __init__(self, *answers: Response) -> None:
        self._answers = list(answers)
        self.asked: list[Request] = []

    def __call__(self, request: Request) -> Response:
        request.get_data()
        self.asked.append(request)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def answer(body: Any = None, status: int = 200, **headers: str) -> Response:
    kind = "application/problem+json" if status >= 400 else "application/json"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(json.dumps(body), status, named, content_type=kind)


def test_one_line_submits_waits_and_gives_the_result(httpserver, client):
    # Given a gateway whose job is done by the second question
    submit = Answers(answer(document(), 202))
    status = Answers(answer(document("running")), answer(document("successful", result={"sum": 42})))
    httpserver.expect_request("/process", method="POST").respond_with_handler(submit)
    httpserver.expect_request(f"/jobs/{ID}").respond_with_handler(status)
    # When it is used as the README shows
    result = client.submit("addition", x=40, y=2).wait().result
    # Then the params went out by name, and the result came back
    assert result == {"sum": 42}
    assert submit.asked[0].get_json() == {"pipeline": "addition", "params": {"x": 40, "y": 2}}
    assert status.asked[0].headers["Prefer"] == "wait=25"


def test_a_submission_that_is_repeated_on_the_way_keeps_its_key(httpserver, client):
    # Given a gateway that is restarting when the job arrives
    submit = Answers(answer(None, 503), answer(None, 502), answer(document(), 202))
    httpserver.expect_request("/process", method="POST").respond_with_handler(submit)
    # When two jobs are submitted
    client.submit("addition", x=1, y=2)
    client.submit("addition", x=1, y=2)
    # Then the three tries of the first one had one key, and the second one another
    keys = [request.headers["Idempotency-Key"] for request in submit.asked]
    assert (len(keys), len(set(keys[:3])), keys[3] in keys[:3]) == (4, 1, False)


def test_a_wait_survives_a_gateway_that_is_away(httpserver, client):
    # Given a job whose gateway has a bad moment
    away = answer({"type": "/problems/store-unavailable", "detail": "Away."}, 503, Retry_After="1")
    status = Answers(answer(document("running")), away, away, answer(document("successful", result=1)))
    httpserver.expect_request(f"/jobs/{ID}").respond_with_handler(status)
    # When it is waited for, then the wait goes on
    assert client.job(ID).wait(timeout=20).result == 1


def test_a_wait_ends_in_time_and_says_that_the_job_goes_on(httpserver, client):
    # Given a job that takes long
    httpserver.expect_request(f"/jobs/{ID}").respond_with_json(document("running"))
    # When it is waited for too short a time
    with pytest.raises(WaitTimedOut, match="it goes on"):
        client.job(ID).wait(timeout=0.3)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"status": "failed", "error": {"code": "bad-input", "detail": "No video stream."}}, JobFailed),
        ({"status": "dismissed"}, JobDismissed),
        ({"status": "running"}, WaitTimedOut),
    ],
)
def test_a_job_without_a_result_says_why(httpserver, client, more, expected):
    # Given a job that has none
    httpserver.expect_request(f"/jobs/{ID}").respond_with_json(document(**more))
    # When its result is read, then the reason is raised
    with pytest.raises(expected):
        client.job(ID).result  # noqa: B018 -- reading it is what is tested


def test_a_problem_is_raised_as_its_class_with_every_violation(httpserver, client):
    # Given a gateway that refuses the params
    violations = [{"pointer": "/params/x", "detail": "not a number"}, {"pointer": "/params/z", "detail": "unknown"}]
    problem = {"type": "/problems/params-invalid", "title": "T", "status": 422, "detail": "2 do not fit."}
    refusal = answer({**problem, "errors": violations}, 422)
    httpserver.expect_request("/process", method="POST").respond_with_handler(Answers(refusal))
    # When such a job is submitted
    with pytest.raises(errors.ParamsInvalid, match=r"2 do not fit\.") as refused:
        client.submit("addition", x="a", z=1)
    # Then the error carries what the gateway said
    assert (refused.value.status, list(refused.value.errors)) == (422, violations)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, {"type": "/problems/job-not-found"}, errors.JobNotFound),
        (404, {"type": "/problems/something-new"}, errors.NotFound),
        (409, {"type": "/problems/job-not-failed"}, errors.JobNotFailed),
        (413, None, errors.Invalid),
        (500, "<html>", errors.Problem),
    ],
)
def test_an_answer_of_any_kind_becomes_some_class(httpserver, client, status, body, expected):
    # Given a gateway, or a proxy before it, that answers like this
    httpserver.expect_request(f"/jobs/{ID}").respond_with_handler(Answers(answer(body, status)))
    # When a job is asked for, then that class is raised
    with pytest.raises(errors.Problem) as raised:
        client.job(ID)
    assert type(raised.value) is expected


def test_nobody_there_is_an_error_of_its_own():
    # Given an address where nobody listens, when it is asked, then that is what the error says
    with Client("http://127.0.0.1:9", patience=0.1) as client, pytest.raises(errors.GatewayUnreachable):
        client.job(ID)


def sse(*lines: tuple[int, str, dict[str, Any]]) -> Response:
    text = "".join(f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n" for number, kind, data in lines)
    return Response(f": heartbeat\n\n{text}", content_type="text/event-stream")


def test_a_broken_stream_of_events_is_taken_up_where_it_broke(httpserver, client):
    # Given a stream that ends after two events, an outage, and the rest
    stream = Answers(
        sse((1, "accepted", {}), (2, "running", {})),
        answer(None, 503),
        sse((2, "running", {}), (3, "progress", {"stage": "mill", "progress": 0.5}), (4, "successful", {})),
    )
    httpserver.expect_request(f"/jobs/{ID}").respond_with_json(document("running"))
    httpserver.expect_request(f"/jobs/{ID}/events").respond_with_handler(stream)
    # When the events are read
    events = list(client.job(ID).events())
    # Then each came once, in order, and the client said what it knew already
    assert [(event.id, event.type) for event in events] == [
        (1, "accepted"),
        (2, "running"),
        (3, "progress"),
        (4, "successful"),
    ]
    assert [request.headers["Last-Event-ID"] for request in stream.asked] == ["0", "2", "2"]


def test_a_finished_stream_has_no_more_events(httpserver, client):
    # Given a job whose events are all known already
    httpserver.expect_request(f"/jobs/{ID}").respond_with_json(document("successful", result=1))
    httpserver.expect_request(f"/jobs/{ID}/events").respond_with_data(status=204)
    # When more are asked for, then there are none, and nobody tries again
    assert list(client.job(ID).events(after=9)) == []


def test_pages_are_followed_by_their_query_alone(httpserver, client):
    # Given a gateway behind a proxy, whose links name a host that nobody can reach
    first = answer({"jobs": [document()]}, Link='<http://inside:3333/jobs?limit=100&cursor=abc>; rel="next"')
    pages = Answers(first, answer({"jobs": [document(), document()]}))
    httpserver.expect_request("/jobs").respond_with_handler(pages)
    # When three jobs are listed
    assert len(list(client.jobs(status="running"))) == 3
    # Then the second page was asked for where the first one came from
    assert [request.query_string.decode() for request in pages.asked] == [
        "status=running&limit=100",
        "limit=100&cursor=abc",
    ]


BODY = bytes(range(256)) * 4096


class Artifacts:
    """One artifact, sent in pieces of at most `cut` bytes: each answer ends early, as a broken connection would."""

    def __init__(self, httpserver: HTTPServer, name: str = "a.bin", cut: int | None = None, ranges: bool = True):
        self.cut = cut
        self.ranges = ranges
        self.asked: list[str | None] = []
        listed = {"name": name, "bytes": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest(), "type": "x/y"}
        httpserver.expect_request(f"/jobs/{ID}").respond_with_json(document("successful", result=1))
        httpserver.expect_request(f"/jobs/{ID}/artifacts").respond_with_json({"artifacts": [listed]})
        httpserver.expect_request(f"/jobs/{ID}/artifacts/{name}").respond_with_handler(self)

    def __call__(self, request: Request) -> Response:
        asked = request.headers.get("Range")
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        end = len(BODY) if self.cut is None else min(len(BODY), start + self.cut)
        return Response(BODY[start:end], 206 if start else 200)


def test_a_download_that_breaks_goes_on_where_it_was(httpserver, client, tmp_path):
    # Given a gateway whose answers end early
    artifacts = Artifacts(httpserver, cut=300_000)
    # When the artifacts are downloaded
    paths = client.job(ID).download(tmp_path / "out")
    # Then all bytes came, each once, and nothing else is in the folder
    assert paths == [tmp_path / "out" / "a.bin"]
    assert paths[0].read_bytes() == BODY
    assert artifacts.asked == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    assert list((tmp_path / "out").iterdir()) == paths
    # And a second download fetches nothing
    client.job(ID).download(tmp_path / "out")
    assert len(artifacts.asked) == 4


def test_a_download_that_stays_broken_keeps_what_it_has_for_the_next_call(httpserver, client, tmp_path):
    # Given a gateway that cannot continue, and always stops after the same bytes
    artifacts = Artifacts(httpserver, cut=300_000, ranges=False)
    # When it is downloaded, then the client gives up instead of trying for ever
    with pytest.raises(errors.DownloadBroken, match="300000 of 1048576"):
        client.job(ID).download(tmp_path)
    # And no half file has the artifact's name
    assert not (tmp_path / "a.bin").exists()
    # When the gateway is well again, then the next call goes on
    artifacts.cut, artifacts.ranges = None, True
    client.job(ID).download(tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert artifacts.asked[-1] == "bytes=300000-"


def test_bytes_that_were_spoilt_on_the_disk_are_fetched_anew(httpserver, client, tmp_path):
    # Given the start of a download, spoilt
    Artifacts(httpserver)
    digest = hashlib.sha256(BODY).hexdigest()
    (tmp_path / f".a.bin.{digest[:16]}.part").write_bytes(b"x" * 1000)
    # When it is continued, then the result is right all the same
    (path,) = client.job(ID).download(tmp_path)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("name", ["..", "../evil", "/etc/evil", "a/b", "a\\b", "", "a\n", "a\x00b"])
def test_no_name_leaves_the_folder(httpserver, client, tmp_path, name):
    # Given a gateway that lists such a name
    httpserver.expect_request(f"/jobs/{ID}").respond_with_json(document("successful", result=1))
    listed = [{"name": "good", "bytes": 1, "sha256": ""}, {"name": name, "bytes": 1, "sha256": ""}]
    httpserver.expect_request(f"/jobs/{ID}/artifacts").respond_with_json({"artifacts": listed})
    # When its artifacts are downloaded, then nothing at all is written
    with pytest.raises(errors.NameRefused):
        client.job(ID).download(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_folder_is_replaced_and_not_written_through(httpserver, client, tmp_path):
    # Given a folder where the artifact's name, and that of its unfinished part, are links to a file elsewhere
    Artifacts(httpserver)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out").mkdir()
    for name in ("a.bin", f".a.bin.{hashlib.sha256(BODY).hexdigest()[:16]}.part"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "mine")
    # When it is downloaded
    (path,) = client.job(ID).download(tmp_path / "out")
    # Then the file elsewhere is as it was
    assert ((tmp_path / "mine").read_text(), path.is_symlink(), path.read_bytes()) == ("mine", False, BODY)


def test_a_file_is_streamed_first_and_named_in_the_job(httpserver, client, tmp_path):
    # Given a file, and a gateway that is away for its first try
    upload = Answers(answer(None, 503), answer({"id": "u1"}, 201))
    submit = Answers(answer(document(), 202))
    httpserver.expect_request("/files", method="POST").respond_with_handler(upload)
    httpserver.expect_request("/process", method="POST").respond_with_handler(submit)
    path = Path(tmp_path / "street.mp4")
    path.write_bytes(b"video" * 1000)
    # When a job with it is submitted
    client.submit("video", file=path, fps=5, priority=9, labels={"camera": "7"})
    # Then the second try sent the whole file again
    asked = upload.asked[-1]
    assert (asked.get_data(), asked.content_type, asked.args["name"]) == (b"video" * 1000, "video/mp4", "street.mp4")
    assert submit.asked[0].get_json() == {
        "pipeline": "video",
        "params": {"fps": 5},
        "input": {"file": "u1"},
        "priority": 9,
        "labels": {"camera": "7"},
    }
