"""Brokers that die, go away, forget everything, or take no more messages."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.case import Scene, case
from tests.faults.installation import CLASSIC, POSTGRES_REDIS, REDIS_REDIS, call
from tests.faults.load import ACCEPTED, Attempt
from tests.neighbours import RabbitMQ

AWAY_S = 60.0
ALARM_S = 30.0


@case(6, "broker kill -9 and restart, twice", pairs=(CLASSIC, POSTGRES_REDIS), jobs=2_000, few=100, shared=True)
def broker_killed(scene: Scene) -> None:
    """With many messages waiting and some under way."""
    broker = scene.installation.broker_server
    with scene.load(in_flight=300) as load:
        for fraction in (0.3, 0.7):
            load.reached(fraction)
            broker.kill()
            time.sleep(1.0)
            broker.start()
            scene.recovered_after(time.monotonic())
    scene.expect("failed", len(scene.settle().failed), most=0)


@case(7, "broker away for 60 s", pairs=(CLASSIC, POSTGRES_REDIS), jobs=700)
def broker_away(scene: Scene) -> None:
    """Half of the time nobody listens, half of the time it is frozen: connections open and nothing answers."""
    broker = scene.installation.broker_server
    with scene.load(rate=10.0, clients=8) as load:
        load.reached(0.02)
        began = time.monotonic()
        broker.kill()
        time.sleep(AWAY_S / 2)
        broker.start()
        freeze_at = time.monotonic()
        os.killpg(broker.process.pid, signal.SIGSTOP)
        time.sleep(AWAY_S / 2)
        os.killpg(broker.process.pid, signal.SIGCONT)
        ended = time.monotonic()
        scene.recovered_after(ended)
    scene.tell("frozen after s", freeze_at - began)
    _submits(scene, [one for one in scene.attempts if began <= one.began <= ended], p99_s=0.3)
    scene.expect("failed", len(scene.settle().failed), most=0)


@case(8, "broker wiped with 500 waiting", pairs=(CLASSIC, REDIS_REDIS), jobs=550, alone=True)
def broker_wiped(scene: Scene) -> None:
    """Its data directory is deleted: the records know what was on its queues."""
    with scene.load() as load:
        load.reached(1.0)
        waiting = scene.unfinished()
        _wipe(scene)
        back = time.monotonic()
        scene.recovered_after(back)
    scene.expect("unfinished when it was wiped", waiting, least=0.9 * scene.jobs)
    scene.drain()
    scene.expect("all finished s after its return", time.monotonic() - back, most=90)
    scene.expect("failed", len(scene.settle().failed), most=0)


@case(9, "memory alarm, then disk alarm, 30 s each", pairs=(CLASSIC,), jobs=750)
def broker_alarms(scene: Scene) -> None:
    """RabbitMQ blocks its publishers; who submits must not notice, and no thread may hang afterwards."""
    here = scene.installation
    with scene.load(rate=10.0, clients=8) as load:
        load.reached(0.02)
        began = time.monotonic()
        with _alarm(here.broker_server, "set_vm_memory_high_watermark", "0.00001", "0.6"):
            time.sleep(ALARM_S)
        with _alarm(here.broker_server, "set_disk_free_limit", "100000GB", "50MB"):
            time.sleep(ALARM_S)
        ended = time.monotonic()
        scene.recovered_after(ended)
    _submits(scene, [one for one in scene.attempts if began <= one.began <= ended], p99_s=1.0)
    scene.drain()
    _every_thread_rings(scene)
    scene.expect("failed", len(scene.settle().failed), most=0)


def _submits(scene: Scene, attempts: list[Attempt], p99_s: float) -> None:
    """Every one is a 202, and quick."""
    took = sorted(one.took_s for one in attempts)
    scene.expect("submitted meanwhile", len(took), least=100)
    scene.expect("other than 202", sum(one.outcome != ACCEPTED for one in attempts), most=0)
    scene.tell("submit p50 ms", 1000 * statistics.median(took))
    scene.expect("submit p99 ms", 1000 * took[int(len(took) * 0.99)], most=1000 * p99_s)


def _wipe(scene: Scene) -> None:
    broker = scene.installation.broker_server
    broker.kill()
    if isinstance(broker, RabbitMQ):
        shutil.rmtree(broker.folder / "mnesia")
    else:
        for path in broker.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
    broker.start()


@contextmanager
def _alarm(broker: RabbitMQ, command: str, on: str, off: str) -> Iterator[None]:
    broker.control(command, on)
    try:
        yield
    finally:
        broker.control(command, off)


def _every_thread_rings(scene: Scene) -> None:
    """With the sweepers frozen, a job submitted to each gateway comes through: ringers and workers' bells do ring.

    Then each sweeper alone shows its sign of life.
    """
    here = scene.installation
    for sweeper in here.sweepers:
        sweeper.signal(signal.SIGSTOP)
    try:
        for n, port in enumerate(here.ports):
            scene.require(_comes_through(port, n), f"a job of gateway {n} did not come through without a sweeper")
    finally:
        for sweeper in here.sweepers:
            sweeper.signal(signal.SIGCONT)
    alive = here.folder / "gristmill-sweeper-alive"
    for n in range(2):
        other = here.sweepers[1 - n]
        other.signal(signal.SIGSTOP)
        try:
            time.sleep(0.3)
            scene.require(_is_touched(alive, 15.0), f"sweeper {n} does not sweep")
        finally:
            other.signal(signal.SIGCONT)


def _comes_through(port: int, number: int) -> bool:
    body = {"pipeline": "battery", "params": {"name": f"probe-{number}-{time.monotonic_ns()}"}}
    status, job = call(port, "POST", "/process", body, {"Prefer": "wait=30"}, timeout=40)
    return status == 200 and job["status"] == "successful"


def _is_touched(path: Path, within_s: float) -> bool:
    before, until = path.stat().st_mtime_ns, time.monotonic() + within_s
    while path.stat().st_mtime_ns == before and time.monotonic() < until:
        time.sleep(0.1)
    return path.stat().st_mtime_ns > before
