"""POST /process and what follows from it: ids, keys, waiting, forms, uploads."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from jobs.errors import UploadNotFound
from jobs.model import Cause, JobError
from jobs.store import JobStore
from tests.gateways import Gateway
from tests.integration.api.conftest import Worker

ADD = {"pipeline": "addition", "params": {"x": 40, "y": 2}}
MP4 = bytes.fromhex("00000020667479706d70343200000000") + b"mp42isom" + bytes(200)


def test_a_submission_is_accepted_before_any_of_it_has_run(client: httpx2.Client, records: JobStore) -> None:
    # When a job is submitted
    answer = client.post(
        "/process", json={**ADD, "priority": 7, "labels": {"team": "maps"}, "deadline": 60, "input": {}}
    )
    # Then it is in the store, and the answer says where it is
    document = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/jobs/{document['id']}"
    assert answer.headers["retry-after"] == "1"
    job = records.get(document["id"])
    assert (job.pipeline, job.params, job.priority, dict(job.labels)) == (
        "addition",
        {"x": 40, "y": 2, "delay": 0},
        7,
        {"team": "maps"},
    )
    assert document["deadline"] > document["created"]
    assert (document["jobID"], document["type"], document["processID"]) == (document["id"], "process", "addition")
    # And what was answered is what GET answers, beside its place in the line
    shown = client.get(answer.headers["location"]).json()
    assert (shown.pop("queue_position"), "estimated_start" in shown) == (1, True)
    del shown["estimated_start"]
    assert shown == document


def test_many_submissions_at_once_are_all_stored(client: httpx2.Client, records: JobStore) -> None:
    # Given forty clients that submit at the same time
    ids: list[str] = []

    def one(n: int) -> None:
        ids.append(client.post("/process", json={"pipeline": "addition", "params": {"x": n, "y": 0}}).json()["id"])

    threads = [threading.Thread(target=one, args=(n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    # Then each job is there, with its own params
    assert sorted(records.get(each).params["x"] for each in ids) == list(range(40))


def test_a_repeated_key_answers_the_first_job(client: httpx2.Client, refused: Callable[..., Any]) -> None:
    # Given a submission with a key
    headers = {"Idempotency-Key": f"once-{time.time_ns()}"}
    first = client.post("/process", json=ADD, headers=headers)
    # When it is repeated, spelled differently
    again = client.post(
        "/process",
        content=b'{"params": {"y":2,   "x":40}, "pipeline": "addition"}',
        headers={**headers, "content-type": "application/json"},
    )
    # Then it is the same job
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert (first.headers.get("idempotency-replayed"), again.headers["idempotency-replayed"]) == (None, "true")
    # And another body under that key is refused
    other = client.post("/process", json={"pipeline": "addition", "params": {"x": 1, "y": 2}}, headers=headers)
    refused(other, 422, "key-reused")


def test_waiting_answers_as_soon_as_the_job_is_final(client: httpx2.Client, worker: Worker, records: JobStore) -> None:
    # Given a worker that finishes the job 0.3 s after it came
    label = f"wait-{time.time_ns()}"

    def work() -> None:
        while not (found := records.page(label=("run", label)).jobs):
            time.sleep(0.02)
        time.sleep(0.3)
        worker.finish_job(found[0].id, 42)

    thread = threading.Thread(target=work)
    thread.start()
    # When the client waits for up to two seconds
    began = time.monotonic()
    answer = client.post("/process", json={**ADD, "labels": {"run": label}}, headers={"Prefer": "wait=2"})
    thread.join()
    # Then it has the result as soon as it is there
    assert (answer.status_code, answer.json()["status"], answer.json()["result"]) == (200, "successful", 42)
    assert time.monotonic() - began < 1.5
    assert answer.headers["preference-applied"] == "wait=2"


def test_waiting_in_vain_answers_the_job_as_it_stands(client: httpx2.Client) -> None:
    began = time.monotonic()
    answer = client.post("/process", json=ADD, headers={"Prefer": "respond-async, wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (202, "accepted")
    assert 0.9 < time.monotonic() - began < 2.5


def test_nobody_waits_longer_than_the_setting_allows(client: httpx2.Client) -> None:
    began = time.monotonic()
    answer = client.post("/process", json=ADD, headers={"Prefer": "wait=86400"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=2")
    assert time.monotonic() - began < 4


def test_a_failed_job_that_was_waited_for_answers_200_with_its_error(
    client: httpx2.Client, worker: Worker, records: JobStore, submit: Callable[..., Any]
) -> None:
    # Given a job that failed
    job = submit()
    records.fail(worker.claim(job["id"]), Cause.BAD_INPUT, JobError("bad-input", "No video stream.", "add", 0))
    # When somebody waits for it
    answer = client.get(f"/jobs/{job['id']}", headers={"Prefer": "wait=2"})
    # Then the document says why
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert answer.json()["error"] == {"code": "bad-input", "detail": "No video stream.", "stage": "add", "index": 0}


def test_a_long_poll_with_an_etag_answers_on_the_first_change(
    client: httpx2.Client, worker: Worker, submit: Callable[..., Any]
) -> None:
    # Given a client that knows an accepted job
    job = submit()
    etag = client.get(f"/jobs/{job['id']}").headers["etag"]
    # When a worker takes it 0.3 s later
    threading.Timer(0.3, worker.claim, [job["id"]]).start()
    answer = client.get(f"/jobs/{job['id']}", headers={"Prefer": "wait=2", "If-None-Match": etag})
    # Then the poll answers at once, with another tag
    assert (answer.status_code, answer.json()["status"]) == (200, "running")
    assert answer.headers["etag"] != etag


def test_a_known_version_is_not_sent_again(client: httpx2.Client, submit: Callable[..., Any]) -> None:
    job = submit()
    etag = client.get(f"/jobs/{job['id']}").headers["etag"]
    again = client.get(f"/jobs/{job['id']}", headers={"If-None-Match": f'"other", W/{etag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)


def test_an_uploaded_file_is_on_disk_with_its_digest(
    client: httpx2.Client, gateway: Gateway, records: JobStore
) -> None:
    # When a file is uploaded
    answer = client.post("/files?name=street.mp4", content=MP4, headers={"content-type": "video/mp4"})
    # Then it is stored as it came
    stored = answer.json()
    assert answer.status_code == 201
    assert (stored["bytes"], stored["sha256"], stored["type"], stored["name"]) == (
        len(MP4),
        hashlib.sha256(MP4).hexdigest(),
        "video/mp4",
        "street.mp4",
    )
    assert (gateway.files / records.upload(stored["id"]).file).read_bytes() == MP4
    # And a job can use it
    job = client.post("/process", json={"pipeline": "clip", "input": {"file": stored["id"]}})
    assert (job.status_code, job.json()["input"], job.json()["params"]) == (202, {"file": stored["id"]}, {"fps": 5})
    # And several of it
    many = {"pipeline": "clip", "input": {"files": [stored["id"], stored["id"]]}}
    assert client.post("/process", json=many).status_code == 202


def test_an_upload_without_a_length_arrives_whole(client: httpx2.Client) -> None:
    pieces = [b"ab" * 50_000, b"", b"cd" * 300_000]
    answer = client.post("/files", content=iter(pieces))
    assert answer.status_code == 201
    assert answer.json()["sha256"] == hashlib.sha256(b"".join(pieces)).hexdigest()


def test_a_json_file_is_a_file(client: httpx2.Client) -> None:
    answer = client.post("/files", content=b"{not json", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["bytes"]) == (201, 9)


def test_a_form_carries_the_file_along(client: httpx2.Client, gateway: Gateway, records: JobStore) -> None:
    # When a form with a file is submitted twice under one key
    headers = {"Idempotency-Key": f"form-{time.time_ns()}"}
    form = {"pipeline": "clip", "params": '{"fps": 10}', "priority": "8", "labels": '{"kind": "form"}'}
    first, again = (
        client.post("/process", data=form, files={"file": ("a.mp4", MP4, "video/mp4")}, headers=headers)
        for _ in range(2)
    )
    # Then it is one job with that file: the same content is the same body
    job = first.json()
    assert (first.status_code, job["params"], job["priority"], job["labels"]) == (202, {"fps": 10}, 8, {"kind": "form"})
    assert (again.json()["id"], again.headers["idempotency-replayed"]) == (job["id"], "true")
    upload = records.upload(job["input"]["file"])
    assert (upload.name, upload.type) == ("a.mp4", "video/mp4")
    assert (gateway.files / upload.file).read_bytes() == MP4


def test_a_file_that_only_a_decoder_can_refuse_is_accepted(client: httpx2.Client) -> None:
    # Given a text file that claims to be a video
    form = {"file": ("street.mp4", b"This is not a video.\n" * 40, "video/mp4")}
    # Then it is left to the stage, which can say what is wrong with it
    assert client.post("/process", data={"pipeline": "clip"}, files=form).status_code == 202


def test_a_url_and_a_text_are_taken_by_pipelines_that_declare_them(
    client: httpx2.Client, refused: Callable[..., Any]
) -> None:
    for given in ({"url": "https://example.org/page"}, {"text": "Hello"}):
        assert client.post("/process", json={"pipeline": "page", "input": given}).status_code == 202
        refused(
            client.post("/process", json={**ADD, "input": given}), 422, "input-invalid", f"/input/{next(iter(given))}"
        )


@pytest.mark.parametrize("key", ["k", "x" * 255])
def test_a_retry_with_a_key_makes_one_job(
    client: httpx2.Client, worker: Worker, records: JobStore, submit: Callable[..., Any], key: str
) -> None:
    # Given a failed job
    job = submit()
    records.fail(worker.claim(job["id"]), Cause.BAD_INPUT, JobError("bad-input", "No."))
    # When it is retried twice under one key
    first, again = (client.post(f"/jobs/{job['id']}/retry", headers={"Idempotency-Key": key}) for _ in range(2))
    # Then there is one new job, which names the first
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"] != job["id"]
    assert first.json()["retry_of"] == job["id"]
    assert {"href": f"/jobs/{job['id']}", "rel": "predecessor-version", "type": "application/json"} in first.json()[
        "links"
    ]


def test_a_refused_form_leaves_no_file(client: httpx2.Client, gateway: Gateway, refused: Callable[..., Any]) -> None:
    # Given what is on disk
    before = {path for path in gateway.files.rglob("*") if path.is_file()}
    # When forms are refused: wrong params after the file, and a broken end
    wrong = client.post("/process", data={"pipeline": "clip", "params": '{"fps": "x"}'}, files={"file": MP4})
    refused(wrong, 422, "params-invalid", "/params/fps")
    # Then nothing was added
    assert {path for path in gateway.files.rglob("*") if path.is_file()} == before


def test_an_upload_that_nobody_made_is_unknown(records: JobStore) -> None:
    with pytest.raises(UploadNotFound):
        records.upload("nobody")
