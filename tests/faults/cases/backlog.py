"""A hundred thousand jobs that wait: nothing may become slower for it."""

from __future__ import annotations

import asyncio
import http.client
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import psutil

from bench.load import load as fast_load
from jobs.brokers import open_broker
from jobs.model import Status
from tests.faults.accounts import Account
from tests.faults.case import Scene, case
from tests.faults.installation import CLASSIC, broker_url

BODY = {"pipeline": "addition", "params": {"x": 1, "y": 2}}
SMALL = 0.03  # of the backlog: what is drained to know the rate of an empty queue
DRAINED = 0.2
PROBES = 400  # submissions of one client, one after the other
WATCHED_S = 120.0  # longer than the first fallback ring takes


@case(
    19,
    "backlog of 100,000, a fifth of it drained",
    pairs=(CLASSIC,),
    jobs=100_000,
    queues=("io",),
    alone=True,
    is_quiet=True,
    limit_s=1_200.0,
    settings={"LOG_LEVEL": "warning"},
)
def backlog(scene: Scene) -> None:
    """The rates of an empty queue first, then the same with the backlog."""
    here = scene.installation
    worker = here.workers["io"]
    worker.end(15.0)
    before = sum(here.store.counts().values())
    empty_ms = _submit_p50_ms(scene)
    _submit(scene, int(scene.jobs * SMALL))
    _rung(scene)
    empty_cost = _sweepers_cost(scene, 15.0)
    worker.start()
    empty_rate = _drain_rate(scene, int(scene.jobs * SMALL))
    worker.end(15.0)

    began = time.monotonic()
    _submit(scene, scene.jobs - scene.submitted)
    scene.tell("accepted a second", scene.jobs * (1 - SMALL) / (time.monotonic() - began))
    scene.tell("all rung s after the last 202", _rung(scene))
    full_ms = _submit_p50_ms(scene)
    _rung(scene)
    extra, since = _extra_messages(scene), time.monotonic()
    full_cost = _sweepers_cost(scene, WATCHED_S)
    more = _extra_messages(scene) - extra
    worker.start()
    full_rate = _drain_rate(scene, int(scene.jobs * DRAINED))

    scene.tell("drained a second, empty", empty_rate)
    scene.tell("drained a second", full_rate)
    scene.expect("drain rate over empty", full_rate / empty_rate, least=0.8)
    scene.tell("submit p50 ms, empty", empty_ms)
    scene.expect("submit p50 over empty", full_ms / empty_ms, most=1.2)
    scene.expect("rung twice in the backlog %", 100 * extra / scene.jobs, most=1.0)
    scene.expect("duplicate rings % an hour", 100 * more / scene.jobs * 3600 / (time.monotonic() - since), most=1.0)
    scene.tell("sweepers' cores, empty", empty_cost)
    scene.expect("sweepers' cores", full_cost, most=2 * empty_cost + 0.02)
    scene.account = _account(scene, before)
    scene.expect("failed", scene.account.statuses[Status.FAILED], most=0)


def _account(scene: Scene, before: int) -> Account:
    """Counts instead of records: most of the jobs are still to wait, and each of them must be there."""
    here = scene.installation
    here.workers["io"].end(15.0)
    counts = {status: count for (name, status), count in here.store.counts().items() if name == "addition"}
    account = Account(accepted=scene.submitted)
    account.statuses.update(counts)
    there = sum(counts.values()) - before
    if there < account.accepted:
        account.lost.append(f"{account.accepted - there} of {account.accepted} have no record")
    account.needed = account.executions = counts.get(Status.SUCCESSFUL, 0)
    return account


def _submit(scene: Scene, jobs: int) -> None:
    """From many connections to both gateways."""
    ports, body = scene.installation.ports, json.dumps(BODY).encode()
    with ThreadPoolExecutor(len(ports)) as threads:
        halves = [jobs // 2, jobs - jobs // 2]
        runs = [threads.submit(asyncio.run, fast_load(port, body, 8, n)) for port, n in zip(ports, halves, strict=True)]
        scene.submitted += sum(len(set(run.result()[2])) for run in runs)


def _submit_p50_ms(scene: Scene) -> float:
    """One client that waits for each answer."""
    connection = http.client.HTTPConnection("127.0.0.1", scene.installation.ports[0], timeout=10)
    took = []
    for _ in range(PROBES):
        began = time.monotonic()
        connection.request("POST", "/process", json.dumps(BODY), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        took.append(time.monotonic() - began)
        scene.submitted += answer.status == 202
    connection.close()
    return 1000 * statistics.median(took)


def _rung(scene: Scene) -> float:
    """Wait until every ready part is rung; how long that took."""
    began = time.monotonic()
    ready = scene.unfinished()
    scene.until(lambda: sum(scene.installation.store.rung_counts().values()) >= ready, "all to be rung", 600)
    return time.monotonic() - began


def _extra_messages(scene: Scene) -> int:
    """Messages on the queue beyond the parts that are ready."""
    here = scene.installation
    broker = open_broker(broker_url(here.broker_server), here.pair.queue_type)
    try:
        return broker.depth("io") - scene.unfinished()
    finally:
        broker.close()


def _sweepers_cost(scene: Scene, seconds: float) -> float:
    """Cores that the sweepers use while nothing is to be done."""

    def used() -> float:
        times = [psutil.Process(sweeper.pid).cpu_times() for sweeper in scene.installation.sweepers]
        return sum(one.user + one.system for one in times)

    before, began = used(), time.monotonic()
    time.sleep(seconds)
    return (used() - before) / (time.monotonic() - began)


def _drain_rate(scene: Scene, jobs: int) -> float:
    """Jobs a second from the first finish to the last of so many."""
    store = scene.installation.store

    def done() -> int:
        return sum(count for (_, status), count in store.counts().items() if status is Status.SUCCESSFUL)

    start = done()
    scene.until(lambda: done() > start + jobs // 20, "the worker to begin", 120)
    began, first = time.monotonic(), done()
    scene.until(lambda: done() >= start + jobs * 0.95, f"{jobs} jobs to be drained", 600)
    return (done() - first) / (time.monotonic() - began)
