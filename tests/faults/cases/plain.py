"""No fault at all, and every message three times: what runs how often."""

from __future__ import annotations

import contextlib
import random
import threading
import time

import psutil

from jobs.brokers import Broker, open_broker
from jobs.errors import BrokerUnavailable
from jobs.model import PartKey, Ring
from tests.faults.case import Scene, case
from tests.faults.installation import CLASSIC, POSTGRES_REDIS, QUEUES, REDIS_REDIS, broker_url

STAGES = ("split", "grind", "gather")
COPIES = 2  # of every signature, besides the real one
LATE_S = 3.0


@case(1, "none", pairs=(CLASSIC, POSTGRES_REDIS), jobs=2_000, few=120, shared=True)
def nothing(scene: Scene) -> None:
    """Every part runs exactly once."""
    before = _cpu_s()
    with scene.load(in_flight=200):
        pass
    scene.drain()
    spent = _cpu_s() - before
    account = scene.settle()
    scene.tell("CPU ms a job, servers and clients too", 1000 * spent / max(1, account.accepted))
    scene.expect("executions beyond the need", account.executions - account.needed, most=0)
    scene.expect("failed", len(account.failed), most=0)


@case(15, "every signature three times, shuffled", pairs=(CLASSIC, REDIS_REDIS), jobs=500, few=80, shared=True)
def everything_thrice(scene: Scene) -> None:
    """Copies come before the part is ready, while it runs, after it, and after the job's end."""
    with Postman(scene) as postman:
        with scene.load(in_flight=100):
            pass
        scene.drain()
    postman.send_everything_again()
    scene.drain()
    time.sleep(1.0)
    account = scene.settle()
    scene.tell("copies", postman.sent)
    scene.expect("copies sent of each signature", postman.sent / max(1, account.needed), least=COPIES)
    scene.expect("failed", len(account.failed), most=0)


def _cpu_s() -> float:
    """CPU seconds of this process and of all that it started."""
    this = psutil.Process()
    spent = 0.0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            spent += times.user + times.system
    return spent


class Postman:
    """Publishes copies of signatures, as a broker that delivers more than once would."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._broker: Broker = open_broker(
            broker_url(scene.installation.broker_server), scene.installation.pair.queue_type
        )
        self._known: set[PartKey] = set()
        self._later: list[tuple[float, PartKey]] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="postman", daemon=True)
        self.sent = 0

    def send_everything_again(self) -> None:
        """Once all jobs are over: a copy of each signature there ever was, in any order."""
        self._look()
        self._send(random.sample(sorted(self._known), len(self._known)))

    def __enter__(self) -> Postman:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(10.0)
        self._look()
        self._send([at for _, at in self._later])

    def _run(self) -> None:
        while not self._closing.wait(0.1):
            self._look()
            now = time.monotonic()
            due = [at for when, at in self._later if when <= now]
            self._later = [(when, at) for when, at in self._later if when > now]
            random.shuffle(due)
            self._send(due)

    def _look(self) -> None:
        """What is accepted, and what was begun, is known by name: also the parts that were not yet emitted."""
        parts = {PartKey(attempt.job_id, 0) for attempt in self._scene.attempts if attempt.job_id}
        for effect in self._scene.effects():
            if effect.stage == 0:
                parts |= {PartKey(effect.job_id, 1, effect.fence, n) for n in range(8)}
                parts.add(PartKey(effect.job_id, 2))
        fresh = parts - self._known
        self._known |= fresh
        self._later += [(time.monotonic() + random.uniform(0, LATE_S), at) for at in fresh]

    def _send(self, parts: list[PartKey]) -> None:
        rings = [Ring(at, f"battery.{STAGES[at.stage]}", QUEUES[at.stage], random.randrange(10)) for at in parts]
        for start in range(0, len(rings), 200):
            try:
                self.sent += len(self._broker.publish(rings[start : start + 200]))
            except BrokerUnavailable:
                continue
