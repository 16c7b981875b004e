"""What bad input gets: the right 4xx as problem+json, the process unharmed, nothing half-written."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from jobs.store import JobStore
from tests.gateways import Gateway

ADD: dict[str, Any] = {"pipeline": "addition", "params": {"x": 40, "y": 2}}
JSON = {"content-type": "application/json"}
MULTIPART = {"content-type": "multipart/form-data; boundary=cut"}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)

Refused = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _nothing_is_left(gateway: Gateway, records: JobStore, client: httpx2.Client) -> Iterator[None]:
    """Whatever is refused writes no job and no file, breaks nothing, and leaves the gateway alive."""
    jobs, files, words = sum(records.counts().values()), _files(gateway), len(gateway.words())
    yield
    assert sum(records.counts().values()) == jobs
    assert _files(gateway) == files
    assert "Traceback" not in gateway.words()[words:]
    assert client.get("/livez").status_code == 200


def _files(gateway: Gateway) -> set[str]:
    return {str(path) for path in gateway.files.rglob("*") if path.is_file() and "uploads/" not in str(path)}


def test_every_violation_of_a_body_is_told_at_once(client: httpx2.Client, refused: Refused) -> None:
    body = {
        "pipeline": "addition",
        "params": {"x": "forty", "z": 1},
        "webhook": "http://example.org",
        "priority": 10,
        "labels": {"a b": "c", "d": 1},
        "deadline": 0,
    }
    problem = refused(client.post("/process", json=body), 422, "body-invalid")
    pointers = [each["pointer"] for each in problem["errors"]]
    assert {"/deadline", "/labels/a b", "/labels/d", "/params/x", "/params/z", "/priority", "/webhook"} < set(pointers)
    assert len(pointers) == 8  # and the missing y


def test_params_are_told_by_their_pipeline_s_schema(client: httpx2.Client, refused: Refused) -> None:
    answer = client.post("/process", json={"pipeline": "addition", "params": {"x": True, "y": 2, "z": 0}})
    refused(answer, 422, "params-invalid", "/params/x", "/params/z")


def test_an_unknown_pipeline_is_told_with_those_that_exist(client: httpx2.Client, refused: Refused) -> None:
    problem = refused(client.post("/process", json={"pipeline": "nope"}), 422, "pipeline-unknown", "/pipeline")
    assert "addition" in problem["errors"][0]["detail"]


@pytest.mark.parametrize("member", ["webhook", "callback", "id", "owner"])
def test_members_that_are_not_built_are_refused(client: httpx2.Client, refused: Refused, member: str) -> None:
    refused(client.post("/process", json={**ADD, member: "x"}), 422, "body-invalid", f"/{member}")


@pytest.mark.parametrize("body", [b"[]", b"3", b'"text"', b"null", b"{}"])
def test_json_that_is_no_submission_is_refused(client: httpx2.Client, refused: Refused, body: bytes) -> None:
    refused(client.post("/process", content=body, headers=JSON), 422, "body-invalid")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{",
        b'{"pipeline": "addition"} trailing',
        b"\xff\xfe{}",
        b'{"pipeline": "addition", "params": {"x": NaN, "y": 2}}',
        b'{"pipeline": "addition", "params": {"x": -Infinity, "y": 2}}',
        b'{"pipeline": "addition", "params": {"x": 1e999, "y": 2}}',
        b'{"pipeline": "addition", "params": {"x": ' + b"1" * 5_000 + b', "y": 2}}',
        b'{"pipeline": "addition", "params": {"x": "\\ud800", "y": 2}}',
        b'{"pipeline": "addition", "params": ' + b"[" * 90_000 + b"]" * 90_000 + b"}",
        b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
        b'{"pipeline": "page", "params": {"a": ' + b"[" * 200 + b"]" * 200 + b"}}",
        json.dumps(ADD).encode("utf-16"),
    ],
    ids=lambda body: repr(body[-30:]),
)
def test_what_is_not_json_is_unreadable(client: httpx2.Client, refused: Refused, body: bytes) -> None:
    refused(client.post("/process", content=body, headers=JSON), 400, "body-unreadable")


def test_a_deep_body_over_the_limit_is_too_large_before_it_is_parsed(client: httpx2.Client, refused: Refused) -> None:
    refused(client.post("/process", content=b"[" * 300_000, headers=JSON), 413, "body-too-large")


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/xml", "text/json", "json", "application/json2", "application/json; charset=utf-16"],
)
def test_another_content_type_is_refused(client: httpx2.Client, refused: Refused, content_type: str) -> None:
    answer = client.post("/process", content=json.dumps(ADD), headers={"content-type": content_type})
    assert answer.status_code == 415
    assert answer.json()["type"] in ("/problems/media-type-unsupported", "/problems/unsupported-media-type")


def test_a_missing_content_type_is_refused(client: httpx2.Client, refused: Refused) -> None:
    refused(client.post("/process", content=json.dumps(ADD).encode()), 415, "media-type-unsupported")


@pytest.mark.parametrize(
    "content_type", ["Application/JSON", "APPLICATION/JSON;CHARSET=UTF-8", 'application/json ; charset="utf-8"']
)
def test_an_oddly_spelled_content_type_is_validated_all_the_same(
    client: httpx2.Client, refused: Refused, content_type: str
) -> None:
    body = json.dumps({**ADD, "webhook": 1})
    refused(
        client.post("/process", content=body, headers={"content-type": content_type}), 422, "body-invalid", "/webhook"
    )


def test_a_chunked_body_is_read_up_to_the_limit(client: httpx2.Client, refused: Refused) -> None:
    # A wrong body without a length is read, and found wrong
    pieces = [b'{"pipeline": ', b'"addition"', b', "webhook": 1}']
    answer = client.post("/process", content=iter(pieces), headers=JSON)
    refused(answer, 422, "body-invalid", "/params/x", "/params/y", "/webhook")
    # A large one is refused once it is over the limit
    large = client.post("/process", content=iter([b'{"a": "'] + [b"x" * 50_000] * 10), headers=JSON)
    refused(large, 413, "body-too-large")


def test_a_chunked_upload_over_the_limit_leaves_nothing(
    client: httpx2.Client, refused: Refused, gateway: Gateway
) -> None:
    before = sorted((gateway.files).rglob("*"))
    refused(client.post("/files", content=iter([b"x" * 500_000] * 8)), 413, "body-too-large")
    refused(client.post("/files", content=b"x" * 3_000_001), 413, "body-too-large")
    assert [path for path in sorted(gateway.files.rglob("*")) if path.is_file()] == [
        path for path in before if path.is_file()
    ]


def test_a_body_that_says_it_is_too_large_is_not_read(gateway: Gateway, refused: Refused) -> None:
    answer = raw(
        gateway,
        b"POST /process HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999999999\r\n\r\n{",
    )
    assert answer.startswith(b"HTTP/1.1 413")


def multipart(*parts: tuple[str, bytes], end: bytes = b"--cut--\r\n") -> bytes:
    """A multipart body by hand."""
    return (
        b"".join(
            b"--cut\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + content + b"\r\n"
            for head, content in parts
        )
        + end
    )


PIPELINE = ('name="pipeline"', b"clip")
FILE = ('name="file"; filename="a.mp4"', b"some bytes")


@pytest.mark.parametrize(
    ("headers", "body", "status", "name"),
    [
        ({"content-type": "multipart/form-data"}, multipart(PIPELINE, FILE), 400, "body-unreadable"),
        ({"content-type": "multipart/form-data; boundary=" + "x" * 300}, b"", 400, "body-unreadable"),
        (MULTIPART, multipart(PIPELINE, FILE, end=b""), 400, "body-unreadable"),
        (MULTIPART, multipart(PIPELINE, FILE)[:-20], 400, "body-unreadable"),
        (MULTIPART, b"no multipart at all", 400, "body-unreadable"),
        (MULTIPART, b"", 400, "body-unreadable"),
        (MULTIPART, multipart(*[('name="labels"', b"{}")] * 2_000), 400, "body-unreadable"),
        (MULTIPART, multipart(*[(f'name="f{n}"', b"{}") for n in range(2_000)]), 400, "body-unreadable"),
        (MULTIPART, multipart(PIPELINE, FILE, ('name="params"', b"{")), 400, "body-unreadable"),
        (MULTIPART, multipart(PIPELINE, FILE, ('name="params"', b"\xff")), 400, "body-unreadable"),
        (MULTIPART, multipart(PIPELINE, PIPELINE, FILE), 400, "body-unreadable"),
        (MULTIPART, multipart(PIPELINE, FILE, FILE), 422, "body-invalid"),
        (MULTIPART, multipart(PIPELINE, ('name="file"; filename="a.mp4"', b"")), 422, "input-invalid"),
        (MULTIPART, multipart(PIPELINE), 422, "input-invalid"),
        (MULTIPART, multipart(FILE), 422, "body-invalid"),
        (MULTIPART, multipart(PIPELINE, FILE, ('name="webhook"', b"x")), 422, "body-invalid"),
        (MULTIPART, multipart(PIPELINE, FILE, ('name="priority"', b"high")), 422, "body-invalid"),
        (MULTIPART, multipart(PIPELINE, ('name="file"; filename="a.mp4"', PNG)), 422, "input-invalid"),
        (MULTIPART, multipart(PIPELINE, ('name="params"', b"x" * 300_000)), 413, "body-too-large"),
        (MULTIPART, multipart(PIPELINE, ('name="file"; filename="a"', b"x" * 3_000_001)), 413, "body-too-large"),
    ],
)
def test_a_form_that_is_wrong_or_broken_is_refused(
    client: httpx2.Client, refused: Refused, headers: dict[str, str], body: bytes, status: int, name: str
) -> None:
    refused(client.post("/process", content=body, headers=headers), status, name)


def test_a_form_whose_sender_leaves_is_forgotten(gateway: Gateway, client: httpx2.Client) -> None:
    # Given a client that announces a file and leaves in the middle of it
    start = multipart(PIPELINE, FILE, end=b"")[:-5] + b"x" * 100_000
    head = (
        "POST /process HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\nContent-Type: multipart/form-data; "
        "boundary=cut\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as connection:
        connection.sendall(head.encode() + start)
    # Then nothing is written aside either, once the gateway has noticed
    until(lambda: not [path for path in gateway.files.rglob("*") if path.is_file() and ".aside" in str(path)])


def test_a_file_is_sent_to_files_raw(client: httpx2.Client, refused: Refused) -> None:
    refused(client.post("/files", files={"file": b"x"}), 415, "media-type-unsupported")


def test_an_empty_file_is_refused(client: httpx2.Client, refused: Refused) -> None:
    refused(client.post("/files", content=b""), 422, "input-invalid", "/file")
    refused(client.post("/files", content=iter([b""])), 422, "input-invalid", "/file")


def test_an_unknown_file_is_refused(client: httpx2.Client, refused: Refused) -> None:
    for id_ in ("nobody", "../../etc/passwd", "\x00", "{job}"):
        refused(
            client.post("/process", json={"pipeline": "clip", "input": {"file": id_}}),
            422,
            "upload-not-found",
            "/input/file",
        )
    many = {"pipeline": "clip", "input": {"files": ["a", "b"]}}
    refused(client.post("/process", json=many), 422, "upload-not-found", "/input/files/0", "/input/files/1")


def test_a_file_of_a_kind_that_the_pipeline_does_not_take_is_refused(client: httpx2.Client, refused: Refused) -> None:
    # Given a picture that claims to be a video
    stored = client.post("/files", content=PNG, headers={"content-type": "video/mp4"}).json()
    # Then its first bytes tell
    answer = client.post("/process", json={"pipeline": "clip", "input": {"file": stored["id"]}})
    assert "image/png" in refused(answer, 422, "input-invalid", "/input/file")["detail"]


@pytest.mark.parametrize(
    "given",
    [
        {"file": "a", "url": "http://x"},
        {"file": 3},
        {"files": []},
        {"url": "file:///etc/passwd"},
        {"url": "http://"},
        {"path": "/etc/passwd"},
        [],
        "x",
    ],
)
def test_an_input_of_the_wrong_shape_is_refused(client: httpx2.Client, refused: Refused, given: Any) -> None:
    answer = client.post("/process", json={"pipeline": "page", "input": given})
    refused(answer, 422, answer.json()["type"].removeprefix("/problems/"))
    assert all(each["pointer"].startswith("/input") for each in answer.json()["errors"])


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1:6379/", "not public"),
        ("http://2130706433/", "not public"),
        ("http://[::ffff:169.254.169.254]/latest/meta-data/", "not public"),
        ("https://localhost/", "not public"),
        ("http://me:secret@example.org/", "user name or password"),
        ("s3://bucket/key", "not in ALLOWED_HOSTS"),
    ],
)
def test_an_address_that_nobody_should_fetch_is_refused(
    client: httpx2.Client, refused: Refused, url: str, why: str
) -> None:
    answer = client.post("/process", json={"pipeline": "page", "input": {"url": url}})
    assert why in refused(answer, 422, "input-invalid", "/input/url")["errors"][0]["detail"]


def test_an_input_that_is_needed_and_missing_is_refused(client: httpx2.Client, refused: Refused) -> None:
    refused(client.post("/process", json={"pipeline": "clip"}), 422, "input-invalid", "/input")


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "café"])
def test_a_key_that_is_no_key_is_refused(client: httpx2.Client, refused: Refused, key: str) -> None:
    headers = [("Idempotency-Key", key.encode("latin-1")), ("content-type", "application/json")]
    refused(client.post("/process", content=json.dumps(ADD), headers=headers), 400, "parameters-invalid")


@pytest.mark.parametrize(
    "query",
    [
        "status=done",
        "limit=0",
        "limit=201",
        "limit=x",
        "limit=1&limit=2",
        "label=novalue",
        "label=:x",
        "label=%00:x",
        "sort=id",
        "cursor=forged",
        "cursor=MTIzfHg",
        "cursor=" + "A" * 600,
        "cursor=%00",
        "processID=" + "x" * 50,
        "&".join(f"q{n}=1" for n in range(300)),
    ],
)
def test_a_list_cannot_be_asked_for_like_that(client: httpx2.Client, refused: Refused, query: str) -> None:
    answer = client.get(f"/jobs?{query}")
    refused(answer, 400, answer.json()["type"].removeprefix("/problems/"))


@pytest.mark.parametrize("id_", ["nobody", "%00", "..%2f..%2fetc", "{x}", "*", "a" * 300, "%ff", "🦊", "job:1"])
@pytest.mark.parametrize("tail", ["", "/results", "/events", "/logs", "/artifacts", "/artifacts/x"])
def test_an_unknown_job_is_not_found(client: httpx2.Client, id_: str, tail: str) -> None:
    answer = client.get(f"/jobs/{id_}{tail}")
    assert answer.status_code in (400, 404)
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_unknown_job_cannot_be_dismissed_or_retried(client: httpx2.Client, refused: Refused) -> None:
    refused(client.delete("/jobs/nobody"), 404, "job-not-found")
    refused(client.post("/jobs/nobody/retry"), 404, "job-not-found")


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "٣", "9" * 17])
def test_an_event_id_that_is_none_is_refused(client: httpx2.Client, refused: Refused, last: str) -> None:
    headers = [("Last-Event-ID", last.encode())]
    refused(client.get("/jobs/nobody/events", headers=headers), 400, "parameters-invalid")


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /jobs?x=\xff HTTP/1.1",
        b"GET /\xff\xfe HTTP/1.1",
        b"BREW / HTTP/1.1",
        b"GET // HTTP/1.1",
        b"PUT /jobs HTTP/1.1",
    ],
)
def test_odd_requests_get_an_answer_that_is_no_5xx(gateway: Gateway, request_line: bytes) -> None:
    answer = raw(gateway, request_line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 4")


def raw(gateway: Gateway, data: bytes) -> bytes:
    """What the gateway answers to these bytes."""
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(data)
        connection.settimeout(2)
        answer = b""
        with contextlib.suppress(TimeoutError):
            while piece := connection.recv(65_536):
                answer += piece
        return answer


def until(true: Callable[[], object], within_s: float = 5.0) -> None:
    """Wait for something to become true."""
    import time

    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
