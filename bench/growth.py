"""What a backlog and a long history cost: `make bench-growth`.

submit: the p50 of POST /process over HTTP with 100,000 jobs waiting, beside the same gateway when it was empty.
page: the p50 of a page of GET /jobs with 1,000,000 jobs in the store. bytes: what a finished job takes in each store.
look: what sweeps and scrapes ask of the store, behind the backlog and then with the history.
The jobs are really accepted, and the finished ones really finished, by the store's own steps. The million waits, which
is harder than a million that is over: every index has it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import time
from collections.abc import Iterator

import psycopg2
import redis

from bench.rounds import machine
from bench.servers import Servers
from jobs.model import Job, PartKey, Plan, Ring, StagePlan, Submission
from jobs.store import JobStore, open_store
from tests.conftest import migrate
from tests.neighbours import Postgres

BODY = json.dumps({"pipeline": "addition", "params": {"x": 40, "y": 2}})
PLAN = Plan((StagePlan("add", "io"),))
BATCH = 500
LOOKS = 9


def main() -> int:
    """Both stores; the figures last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--store", choices=("redis", "postgres"), action="append")
    asked = parser.parse_args()
    print(machine(), flush=True)
    lines: list[str] = []
    for kind in asked.store or ("redis", "postgres"):
        with Servers() as servers, Postgres() as postgres:
            if kind == "postgres":
                migrate(postgres.url)
            url = servers.our_store if kind == "redis" else postgres.url
            lines += measure(kind, url, servers, asked)
    print("\n".join(lines))
    return 0


def measure(kind: str, url: str, servers: Servers, asked: argparse.Namespace) -> list[str]:
    """The figures of one store."""
    store = open_store(url)
    per_job = bytes_a_job(kind, url, store)
    port = servers.our_gateway(STORE_URL=url, MAX_WAITING="10000000")
    submit(port, asked.requests)  # warm, like everything that is measured after it
    empty = submit(port, asked.requests)
    waiting = fill(store, asked.waiting)
    full = submit(port, asked.requests)
    place = get(port, f"/jobs/{waiting[-1]}", asked.requests // 4)
    print(f"  {kind}: submit {empty:.2f} ms empty, {full:.2f} ms behind {asked.waiting:,}", flush=True)
    confirm(store, waiting)
    behind = list(looks(f"{kind}_{asked.waiting}", store))
    fill(store, asked.jobs - sum(store.counts().values()))
    page = get(port, "/jobs?limit=50", asked.requests // 4)
    filtered = get(port, "/jobs?limit=50&status=accepted&processID=addition", asked.requests // 4)
    behind += looks(f"{kind}_{asked.jobs}", store)
    store.close()
    return [
        *behind,
        f"figure growth_submit_ratio_{kind} {full / empty:.3f} (behind {asked.waiting:,} waiting; goal at most 1.2)",
        f"figure growth_place_ms_{kind} {place:.2f} (a job's document behind {asked.waiting:,})",
        f"figure growth_page_ms_{kind} {page:.2f} (of {asked.jobs:,} jobs; goal under 20)",
        f"figure growth_filtered_page_ms_{kind} {filtered:.2f} (of {asked.jobs:,} jobs; goal under 20)",
        f"figure growth_bytes_per_job_{kind} {per_job:.0f} (finished, one stage)",
    ]


def fill(store: JobStore, count: int) -> list[str]:
    """Accept so many jobs, as the gateway does; their ids."""
    made: list[str] = []
    while len(made) < count:
        first = time.monotonic_ns()
        ids = [f"bench-{first}-{n:05}" for n in range(min(BATCH, count - len(made)))]
        some = [Job(id=one, family=one, pipeline="addition", plan=PLAN, params={"x": 40, "y": 2}) for one in ids]
        store.add([Submission(job) for job in some])
        made += ids
    return made


def confirm(store: JobStore, waiting: list[str]) -> None:
    """Their rings, as the broker confirms them."""
    rings = [Ring(PartKey(job_id, 0), "addition.add", "io", 4) for job_id in waiting]
    for start in range(0, len(rings), BATCH):
        store.rung(rings[start : start + BATCH])


def looks(of: str, store: JobStore) -> Iterator[str]:
    """What each sweep asks (`rung_counts`), and each scrape besides; the medians of some."""
    for what in ("rung_counts", "longest_waits", "pressure", "counts"):
        took = []
        for _ in range(LOOKS):
            began = time.perf_counter()
            getattr(store, what)()
            took.append(time.perf_counter() - began)
        yield f"figure growth_{what}_ms_{of} {statistics.median(took) * 1e3:.2f}"


def submit(port: int, requests: int) -> float:
    """The p50 of a POST in ms, one client on one connection."""
    return ask(port, "POST", "/process", requests, 202)


def get(port: int, path: str, requests: int) -> float:
    """The p50 of a GET in ms."""
    return ask(port, "GET", path, requests, 200)


def ask(port: int, method: str, path: str, requests: int, expected: int) -> float:
    """Ask again and again; each answer must be the one expected."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    took = []
    for _ in range(requests):
        body = BODY if method == "POST" else None
        began = time.perf_counter()
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        content = answer.read()
        took.append(time.perf_counter() - began)
        if answer.status != expected:
            raise RuntimeError(f"{answer.status}: {content[:500]!r}")
    connection.close()
    return statistics.median(took) * 1e3


def bytes_a_job(kind: str, url: str, store: JobStore, count: int = 2_000) -> float:
    """What the store grew by for each job that was accepted, taken and finished."""
    for job_id in fill(store, BATCH):  # tables and lists have their first pages
        store.dismiss(job_id)
    before = size(kind, url)
    for number, job_id in enumerate(fill(store, count)):
        claim = store.claim(PartKey(job_id, 0), "bench", f"token-{number}", 60.0, "cpu")
        assert claim
        store.finish(claim, b"=42")
    return (size(kind, url) - before) / count


def size(kind: str, url: str) -> int:
    """The memory of Redis' data, or the pages of Postgres' tables and indexes after a vacuum."""
    if kind == "redis":
        with redis.Redis.from_url(url) as client:
            return int(client.info("memory")["used_memory_dataset"])
    link = psycopg2.connect(url)
    link.autocommit = True
    cursor = link.cursor()
    cursor.execute("vacuum full")
    cursor.execute("select pg_database_size(current_database())")
    found = cursor.fetchone()
    link.close()
    assert found
    return int(found[0])


if __name__ == "__main__":
    raise SystemExit(main())
