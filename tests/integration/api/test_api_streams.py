"""Events as they happen, many watchers at once, large files, and how a gateway ends."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from api.streams import event_stream
from api.waiting import Threads, Waiting
from jobs.model import Job
from jobs.store import JobStore, open_store
from tests.gateways import Gateway
from tests.integration.api.conftest import Worker
from tests.neighbours import Valkey, free_port

WATCHERS = 200
ADD = {"pipeline": "addition", "params": {"x": 40, "y": 2}}


@pytest.fixture(scope="module")
def production(api_valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Two processes under gunicorn, as they are started in earnest."""
    gateway = Gateway(free_port(), api_valkey.url, f"{api_valkey.url[:-1]}1", tmp_path_factory.mktemp("production"))
    yield gateway.start(production=True, processes=2)
    gateway.close()


def stream(client: httpx2.Client, job_id: str, last: int = 0) -> Iterator[tuple[str, str]]:
    """Id and name of each event, as they come."""
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
    with client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for sent in httpx2.EventSource(answer):
            if sent.id:  # not the line that tells when to come again
                yield sent.id, sent.event


def test_events_arrive_as_they_happen_and_end_with_the_final_one(
    client: httpx2.Client, worker: Worker, submit: Callable[..., Any]
) -> None:
    # Given a stream of a job that nobody has begun
    job = submit()
    events = stream(client, job["id"])
    assert next(events) == ("1", "accepted")
    # When a worker takes it, each event arrives at once
    began = time.monotonic()
    claim = worker.claim(job["id"])
    assert [next(events)[1] for _ in range(2)] == ["running", "stage_started"]
    assert time.monotonic() - began < 0.5
    # And the stream ends with the job
    worker.finish(claim, 42)
    assert [name for _, name in events][-1] == "successful"


def test_a_dropped_stream_goes_on_behind_the_last_event(
    client: httpx2.Client, worker: Worker, submit: Callable[..., Any]
) -> None:
    job = submit()
    worker.finish_job(job["id"], 42)
    whole = list(stream(client, job["id"]))
    rest = list(stream(client, job["id"], last=2))
    assert [int(id_) for id_, _ in whole] == list(range(1, len(whole) + 1))
    assert rest == whole[2:]


def test_a_stream_with_nothing_left_is_not_asked_for_again(
    client: httpx2.Client, worker: Worker, submit: Callable[..., Any]
) -> None:
    job = submit()
    worker.finish_job(job["id"], 42)
    answer = client.get(f"/jobs/{job['id']}/events", headers={"Accept": "text/event-stream", "Last-Event-ID": "99"})
    assert answer.status_code == 204


def test_events_are_also_a_page_of_json(client: httpx2.Client, worker: Worker, submit: Callable[..., Any]) -> None:
    job = submit()
    worker.finish_job(job["id"], 42)
    page = client.get(f"/jobs/{job['id']}/events?after=1").json()
    assert [each["id"] for each in page["events"]] == list(range(2, page["events"][-1]["id"] + 1))
    assert client.get(page["links"][0]["href"]).json() == {"events": [], "links": []}


def test_a_quiet_stream_sends_a_comment_now_and_then(redis_url: str, make_job: Callable[..., Job]) -> None:
    # Given a stream of a job to which nothing happens, with a short heartbeat
    from jobs.model import Submission

    store = open_store(redis_url)
    job = make_job()
    store.add([Submission(job)])

    async def listen() -> bytes:
        waiting = Waiting(store, Threads("store", 2))
        sent: list[bytes] = []

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        async def receive() -> Any:
            await asyncio.sleep(1.5)
            return {"type": "http.disconnect"}

        await event_stream(store, waiting, job.id, 1, [], heartbeat_s=0.3)({}, receive, send)
        waiting.close()
        return b"".join(sent)

    # When it is listened to for a second and a half
    said = asyncio.run(listen())
    store.close()
    # Then comments came
    assert said.startswith(b"retry: 2000\n\n")
    assert 2 <= said.count(b": heartbeat\n\n") <= 5


@pytest.mark.alone
def test_many_watchers_leave_the_gateway_quick_and_are_let_go(production: Gateway) -> None:
    # Given 200 streams and 200 waiting requests on a job that goes on
    with production.client() as client:
        job_id = client.post("/process", json=ADD).json()["id"]
    port = int(production.url.rpartition(":")[2])

    async def watch(headers: str, path: str) -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n".encode())
        if "event-stream" in headers:
            assert b"200 OK" in await reader.readuntil(b"\r\n")
            await reader.readuntil(b"event: accepted")
        return writer

    async def measure() -> list[float]:
        streams = [watch("Accept: text/event-stream", f"/jobs/{job_id}/events") for _ in range(WATCHERS)]
        waits = [watch("Prefer: wait=50", f"/jobs/{job_id}") for _ in range(WATCHERS)]
        writers = await asyncio.gather(*streams, *waits)
        await until(lambda: waiting(production) == 2 * WATCHERS)
        took = []
        reader, asking = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(300):
            began = time.perf_counter()
            asking.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b'{"status":"ok"}')).startswith(b"HTTP/1.1 200")
            took.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)
        asking.close()
        for writer in writers:
            writer.close()
        return took

    # When /livez is asked all the while
    took = asyncio.run(measure())
    left = time.monotonic()
    # Then it answers quickly
    p99 = statistics.quantiles(took, n=100)[98]
    print(f"\nfigure livez_p99_ms {p99 * 1000:.1f}")
    assert p99 < 0.05
    # And two seconds after the watchers have left nothing of them is left
    while waiting(production):
        assert time.monotonic() - left < 2
        time.sleep(0.05)


def waiting(gateway: Gateway) -> int:
    """How many streams and waiting requests the gateway counts."""
    found = re.search(r"^gristmill_waiting (\S+)", httpx2.get(f"{gateway.url}/metrics").text, re.MULTILINE)
    return int(float(found[1])) if found else 0


async def until(true: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + within_s
    while not await asyncio.to_thread(true):
        assert time.monotonic() < end
        await asyncio.sleep(0.1)


def test_a_two_gigabyte_upload_adds_little_memory(production: Gateway) -> None:
    # Given a gateway that has taken uploads before
    upload(production, 8)
    before = memory(production)
    peak = before
    done = threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(0.03):
            peak = max(peak, memory(production))

    looking = threading.Thread(target=look)
    looking.start()
    # When it takes two gigabytes
    try:
        stored = upload(production, 2048)
    finally:
        done.set()
        looking.join()
    # Then all of it is there, and its processes have hardly grown
    for path in production.files.rglob("*"):
        if path.is_file() and path.stat().st_size > 1 << 30:
            assert path.stat().st_size == stored["bytes"] == 2048 << 20
            path.unlink()
    added = (peak - before) / (1 << 20)
    print(f"\nfigure upload_2gb_added_mb {added:.1f}")
    assert added < 64


def upload(gateway: Gateway, megabytes: int) -> dict[str, Any]:
    """So many megabytes, made on the fly."""
    piece = bytes(1 << 20)
    headers = {"content-length": str(megabytes << 20), "content-type": "application/octet-stream"}
    with gateway.client(timeout=100.0) as client:
        answer = client.post("/files", content=(piece for _ in range(megabytes)), headers=headers)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def memory(gateway: Gateway) -> int:
    """Resident bytes of all its processes."""
    assert gateway.process
    total = 0
    for process in psutil.Process(gateway.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def test_who_waits_is_let_go_when_the_gateway_ends(api_valkey: Valkey, tmp_path: Path) -> None:
    # Given somebody who waits for a job, and somebody who listens to it
    gateway = Gateway(free_port(), api_valkey.url, f"{api_valkey.url[:-1]}1", tmp_path)
    gateway.start(production=True, processes=1)
    answers: list[Any] = []
    with gateway.client() as client:
        job_id = client.post("/process", json=ADD).json()["id"]
        waiter = threading.Thread(
            target=lambda: answers.append(client.get(f"/jobs/{job_id}", headers={"Prefer": "wait=30"}).status_code)
        )
        listener = threading.Thread(target=lambda: answers.append(len(list(stream(client, job_id)))))
        for thread in (waiter, listener):
            thread.start()
        while waiting(gateway) < 2:
            time.sleep(0.05)
        # When the gateway is told to end
        began = time.monotonic()
        gateway.close()
        for thread in (waiter, listener):
            thread.join(5)
    # Then both are answered, and it ends soon
    assert sorted(answers) == [1, 200]
    assert time.monotonic() - began < 5


def test_without_the_store_clients_are_told_within_three_seconds(tmp_path: Path, refused: Callable[..., Any]) -> None:
    with (
        Valkey() as valkey,
        Gateway(free_port(), valkey.url, f"{valkey.url[:-1]}1", tmp_path) as gateway,
        gateway.client() as client,
    ):
        job_id = client.post("/process", json=ADD).json()["id"]
        # Given a store that is gone
        valkey.kill()
        # Then everything that needs it says so in time, without a trace
        for method, path, body in (
            ("POST", "/process", ADD),
            ("GET", "/jobs", None),
            ("GET", f"/jobs/{job_id}", None),
            ("GET", f"/jobs/{job_id}/results", None),
            ("GET", f"/jobs/{job_id}/events", None),
            ("DELETE", f"/jobs/{job_id}", None),
        ):
            began = time.monotonic()
            answer = client.request(method, path, json=body)
            refused(answer, 503, "store-unavailable")
            assert answer.headers["retry-after"] == "5"
            assert time.monotonic() - began < 3, path
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["store"]) == (503, "The store of records does not answer.")
        assert client.get("/livez").status_code == 200
        assert "gristmill_store_up 0.0" in client.get("/metrics").text
        assert "Traceback" not in gateway.words()
        # And once it is back, so is the gateway
        valkey.start()
        assert client.get(f"/jobs/{job_id}").status_code == 200
        assert client.post("/process", json=ADD).status_code == 202


def test_a_store_that_hangs_is_told_within_three_seconds(tmp_path: Path, refused: Callable[..., Any]) -> None:
    with Valkey() as valkey, Gateway(free_port(), valkey.url, f"{valkey.url[:-1]}1", tmp_path) as gateway:
        assert valkey.process
        stuck = psutil.Process(valkey.process.pid)
        with gateway.client() as client:
            client.post("/process", json=ADD)
            # Given a store that takes connections and never answers
            stuck.suspend()
            try:
                # When clients come one after the other
                with ThreadPoolExecutor(4) as clients:
                    began = [clients.submit(timed, client, "POST", "/process") for _ in range(2)]
                    time.sleep(0.5)
                    began.append(clients.submit(timed, client, "POST", "/process"))
                    began.append(clients.submit(timed, client, "GET", "/jobs"))
                # Then none waits for longer than three seconds, also not behind another's wait
                for answer, seconds in (each.result() for each in began):
                    refused(answer, 503, "store-unavailable")
                    assert seconds < 3.2
            finally:
                stuck.resume()


def timed(client: httpx2.Client, method: str, path: str) -> tuple[httpx2.Response, float]:
    """An answer, and the seconds that it took."""
    began = time.monotonic()
    return client.request(method, path, json=ADD if method == "POST" else None), time.monotonic() - began


def test_without_the_broker_jobs_are_still_accepted(api_valkey: Valkey, tmp_path: Path, records: JobStore) -> None:
    nobody = f"amqp://guest:guest@127.0.0.1:{free_port()}//"
    with Gateway(free_port(), api_valkey.url, nobody, tmp_path) as gateway, gateway.client() as client:
        answers = [client.post("/process", json=ADD) for _ in range(5)]
        assert {answer.status_code for answer in answers} == {202}
        assert records.get(answers[-1].json()["id"]).status == "accepted"
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["broker"]) == (200, "unavailable")


def test_the_gateway_works_over_postgres(postgres_url: str, api_valkey: Valkey, tmp_path: Path) -> None:
    with (
        Gateway(free_port(), postgres_url, f"{api_valkey.url[:-1]}1", tmp_path) as gateway,
        gateway.client() as client,
        contextlib.closing(open_store(postgres_url)) as store,
    ):
        worker = Worker(store, gateway.files)
        first = client.post("/process", json={**ADD, "labels": {"a": "b"}}, headers={"Idempotency-Key": "k"}).json()
        assert (
            client.post("/process", json={**ADD, "labels": {"a": "b"}}, headers={"Idempotency-Key": "k"}).json()
            == first
        )
        threading.Timer(0.3, worker.finish_job, [first["id"], 42]).start()
        waited = client.get(f"/jobs/{first['id']}", headers={"Prefer": "wait=5"}).json()
        assert (waited["status"], waited["result"]) == ("successful", 42)
        assert [name for _, name in stream(client, first["id"])][-1] == "successful"
        assert [job["id"] for job in client.get("/jobs?label=a:b").json()["jobs"]] == [first["id"]]
        # And what Postgres itself would trip over is refused before
        assert client.get("/jobs?cursor=forged").status_code == 400
        assert client.get("/jobs?label=a:%00").status_code == 400
        assert client.get("/jobs?processID=%00").json()["jobs"] == []
        assert client.post("/process", json={"pipeline": "clip", "input": {"file": "\x00"}}).status_code == 422
        params = {"pipeline": "page", "params": {"text": "a\x00b"}}
        assert client.post("/process", json=params).json()["params"] == {"text": "a\x00b"}


def test_slow_senders_do_not_hold_the_others_up(gateway: Gateway, client: httpx2.Client) -> None:
    # Given fifty clients that have begun a request and say no more
    port = int(gateway.url.rpartition(":")[2])
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    for each in slow:
        each.sendall(
            b"POST /process HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
    # Then others are served
    began = time.monotonic()
    assert client.post("/process", json=ADD).status_code == 202
    assert client.get("/jobs?limit=1").status_code == 200
    assert time.monotonic() - began < 2
    for each in slow:
        each.close()
