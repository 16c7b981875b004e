"""A short scene for each protection, in which it is missed when it is switched off. With it, every scene is green."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis

from jobs.model import Status
from tests.faults.accounts import Effect
from tests.faults.case import Scene
from tests.faults.cases.fanout import whole
from tests.faults.cases.frozen import finishes, freeze_in_mid_part
from tests.faults.installation import CLASSIC, QUEUES, REDIS_REDIS, Pair, call
from tests.faults.load import battery_job
from tests.faults.lossy import Lossy

LEASE_S = 3.0
GONE_S = 20.0  # what has not ended so long after the fault is called lost
CUTTER = ("cutter_cut", "cutter_chew", "cutter_gather")


@dataclass(frozen=True)
class Missed:
    """What is switched off, `with_` whatever else covers it; the case of the battery that the scene is taken from."""

    name: str
    case: int
    run: Callable[[Scene], None]
    with_: tuple[str, ...] = ()
    pair: Pair = REDIS_REDIS
    queues: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)


MISSED: dict[str, Missed] = {}


def missed(name: str, case: int, **about: Any) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    """Register a scene for a protection."""

    def register(run: Callable[[Scene], None]) -> Callable[[Scene], None]:
        settings = {"LEASE_S": LEASE_S, **about.pop("settings", {})}
        MISSED[name] = Missed(name, case, run, settings=settings, **about)
        return run

    return register


# -- on the way to a worker ---------------------------------------------------------------------------------------


@missed("confirms", 6, with_=("deficit",), pair=CLASSIC)
def unconfirmed(scene: Scene) -> None:
    """A broker that stands still takes bytes and keeps none of them: then it is killed."""
    broker = scene.installation.broker_server
    _one(scene)  # so that the ringers have connections
    os.killpg(broker.process.pid, signal.SIGSTOP)
    with scene.load(20, clients=4) as load:
        load.wait()
    time.sleep(1.0)
    broker.kill()
    broker.start()
    _recover(scene)


@missed("rings", 8)
def wiped(scene: Scene) -> None:
    """The broker forgets what waits."""
    _wipe(scene)
    _recover(scene)


@missed("deficit", 8)
def wiped_too(scene: Scene) -> None:
    """Without it there is the slow fallback, a minute later."""
    _wipe(scene)
    _recover(scene, within_s=100.0)


@missed("ack", 10, with_=("deficit",))
def away_at_the_claim(scene: Scene) -> None:
    """The store is away when the signatures come: the worker gives them back to the broker."""
    here, worker = scene.installation, scene.installation.workers["battery_split"]
    with scene.frozen(worker):
        with scene.load(4) as load:
            load.wait()
        time.sleep(1.0)
        here.store_server.kill()
    time.sleep(14.0)  # it insists for ten seconds
    here.store_server.start()
    _recover(scene)


# -- a worker that dies, or stands still ----------------------------------------------------------------------------


@missed("leases", 2)
def worker_killed(scene: Scene) -> None:
    """A worker dies whole, with a part."""
    worker = scene.installation.workers["battery_grind"]
    with _under_way(scene, nap=1.0):
        worker.kill()
    _recover(scene)


@missed("burial", 3, settings={"LEASE_S": 12.0})
def child_killed(scene: Scene) -> None:
    """A child dies, and its parent knows."""
    with _under_way(scene, nap=1.0) as held:
        killed_at = time.monotonic()
        os.kill(held.pid, signal.SIGKILL)
        scene.until(lambda: _later_runs(scene, held), "the part to run again")
        scene.recovery(min(_later_runs(scene, held)) - killed_at)
    scene.settle(GONE_S)


@missed("heartbeat", 4)
def long_part(scene: Scene) -> None:
    """A part takes longer than a lease."""
    with scene.load(1, body=lambda name: _job(name, nap=1.7 * LEASE_S, parts=1)) as load:  # in each of three stages
        load.wait()
    account = scene.settle(GONE_S)
    scene.expect("executions beyond the need", account.executions - account.needed, most=0)
    scene.expect("healthy jobs that failed", len(account.failed), most=0)


@missed("watchdog", 14, settings={"MAX_MEMORY_MB": 300, "MAX_FAILURES": 1})
def greedy_part(scene: Scene) -> None:
    """A part takes twice the memory that it may."""
    params = {"how": "greedy", "bad": 0, "parts": 1, "memory_mb": 600}
    with scene.load(1, body=lambda name: {"pipeline": "poisoned", "params": {"name": name, **params}}) as load:
        load.wait()
    codes = set(scene.settle(60.0).failed.values())
    scene.require(codes == {"out-of-memory"}, f"it failed with {', '.join(codes) or 'nothing'}, not out-of-memory")


@missed("fence", 4)
def frozen_worker(scene: Scene) -> None:
    """A worker stands still for two leases and then finishes what another one has been given."""
    here, victim = scene.installation, scene.installation.workers["battery_grind"]
    twin = here.worker("battery_grind", name="worker-twin")
    try:
        with scene.load(6, body=lambda name: _job(name, nap=0.3, parts=4)):
            held = freeze_in_mid_part(scene, victim)
            scene.until(lambda: held is None or finishes(scene, held), "another one to finish it")
            victim.signal_group(signal.SIGCONT)
        scene.settle(GONE_S)
        scene.require(held is not None, "no part was under way in the worker when it was frozen")
    finally:
        here.keeper.forget(twin)
        twin.kill()


@missed("grace", 10, settings={"LEASE_S": 12.0})
def slow_to_come_back(scene: Scene) -> None:
    """After a restart of the store the sweepers are there before a worker is."""
    here, victim = scene.installation, scene.installation.workers["battery_grind"]
    with _under_way(scene, nap=20.0):
        here.store_server.kill()
        with scene.frozen(victim):
            time.sleep(scene.lease_s + 1.0)
            for sweeper in here.sweepers:
                words, tried = sweeper.log, sweeper.log.read_text().count("store_unavailable")
                sweeper.kill()  # it is started again, and has not yet learnt to be patient
                scene.until(lambda w=words, n=tried: w.read_text().count("store_unavailable") > n, "its sweep")
            here.store_server.start()
            time.sleep(scene.lease_s / 2)
    account = scene.settle(60.0)
    scene.expect("executions beyond the need", account.executions - account.needed, most=0)


# -- commands that come twice, or too late ----------------------------------------------------------------------------


@missed("token", 10)
def replies_lost(scene: Scene) -> None:
    """Between a worker and the store one reply in four is lost: the command was done, and is sent again."""
    here = scene.installation
    worker = here.workers["battery_split"]
    with Lossy(here.store_server.port, one_in=4) as lossy:
        honest = worker.env["STORE_URL"]
        worker.env["STORE_URL"] = honest.replace(f":{here.store_server.port}", f":{lossy.port}")
        worker.kill()  # it is started again
        with scene.load(24, body=lambda name: _job(name, parts=2)) as load:
            load.wait()
        scene.settle(90.0)
        worker.env["STORE_URL"] = honest
        worker.kill()
    scene.tell("replies lost", lossy.lost)
    losses = sum(stage.losses for record in scene.records() for stage in record.job.stages)
    scene.expect("attempts lost, each for a lease", losses, most=0)


@missed("generation", 16, queues=(*QUEUES, *CUTTER))
def cut_anew(scene: Scene) -> None:
    """Emitters die in mid-emission, and cut differently the second time."""
    with scene.load(4, body=_cut) as load:
        load.wait()
    scene.settle(40.0)
    mixed = [record.job.id for record in scene.records() if record.result != whole(record)]
    scene.expect("jobs with outputs of a void cut", len(mixed), most=0)


@missed("final", 18)
def dismissed_at_the_end(scene: Scene) -> None:
    """A job is dismissed while its last part runs, which then comes to its end."""
    with scene.load(1, body=lambda name: _job(name, nap=1.5, parts=0)) as load:
        load.wait()
        job_id = load.attempts[-1].job_id
        scene.until(lambda: any(effect.stage == 2 for effect in _of(scene, job_id)), "its last stage to begin")
        status, job = call(scene.installation.ports[0], "DELETE", f"/jobs/{job_id}")
        scene.require(status == 200 and job["status"] == Status.DISMISSED, f"DELETE answered {status}: {job}")
        load.watch.first_seen[job_id] = Status.DISMISSED
        time.sleep(3.0)
    scene.settle(GONE_S)


@missed("idempotency", 5)
def key_again(scene: Scene) -> None:
    """Clients repeat each submission."""
    with scene.load(10, repeats=1, clients=2) as load:
        load.wait()
    scene.settle(GONE_S)


@missed("hash", 5)
def key_of_another(scene: Scene) -> None:
    """A client uses another one's key for work of its own: a 202 would be for work that nobody does."""
    port, (mine, other) = scene.installation.ports[0], scene.names(2)
    key = {"Idempotency-Key": mine}
    first, _ = call(port, "POST", "/process", battery_job(mine), key)
    second, job = call(port, "POST", "/process", battery_job(other), key)
    scene.require(first == 202, f"the first was answered {first}")
    scene.require(second == 422, f"LOST: work of its own was answered {second} with {job.get('params')}")


# -- what they share ---------------------------------------------------------------------------------------------------


def _job(name: str, **params: Any) -> dict[str, Any]:
    body = battery_job(name)
    body["params"] |= params
    return body


def _cut(name: str) -> dict[str, Any]:
    return {"pipeline": "cutter", "params": {"name": name, "parts": 12, "dies_after": 5}}


def _one(scene: Scene) -> None:
    """A job of each gateway."""
    with scene.load(4, clients=2) as load:
        load.wait()
    scene.drain(60.0)


def _wipe(scene: Scene) -> None:
    """Ten jobs wait, and the broker is emptied."""
    here = scene.installation
    with scene.frozen(here.workers["battery_split"]):
        with scene.load(10) as load:
            load.wait()
        time.sleep(1.0)  # rung, and told
        with redis.Redis(port=here.broker_server.port) as broker:
            broker.flushall()


def _recover(scene: Scene, within_s: float = GONE_S) -> None:
    """How long it takes until nothing is unfinished; then the account."""
    scene.recovery(scene.drain(within_s))
    scene.settle(0.0)


@contextmanager
def _under_way(scene: Scene, nap: float) -> Iterator[Effect]:
    """Inside, one job has a part under way in `battery_grind`."""

    def begun() -> list[Effect]:
        return [effect for effect in scene.effects() if effect.stage == 1]

    with scene.load(1, body=lambda name: _job(name, nap=nap, parts=1)) as load:
        load.wait()
        scene.until(begun, "a part to begin")
        time.sleep(0.2)
        yield begun()[0]


def _of(scene: Scene, job_id: str) -> list[Effect]:
    return [effect for effect in scene.effects() if effect.job_id == job_id]


def _later_runs(scene: Scene, held: Effect) -> list[float]:
    same = (effect for effect in _of(scene, held.job_id) if (effect.stage, effect.index) == (held.stage, held.index))
    return [effect.at for effect in same if effect.fence > held.fence]
