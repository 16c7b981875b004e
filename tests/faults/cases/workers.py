"""Workers that are killed, and processes that are replaced while they work."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from itertools import cycle, pairwise

from tests.faults.accounts import Effect, EffectLog
from tests.faults.case import Scene, case
from tests.faults.installation import CLASSIC, QUORUM, REDIS_REDIS, ready
from tests.faults.load import battery_job
from tests.faults.processes import Kept
from tests.neighbours import free_port

KILL_EVERY_S = 3.0
SLOW_S = 0.5
CHILD_KILLS = 50
FEW_KILLS = 4  # in the short set, where a busy machine may take longer to start a worker than to kill it
FREE_AGAIN_S = 2.0  # beyond a lease: for the sweep, the ring, and a worker that is free
GRACE_S = 8.0  # what workers are started with


def napping(nap_s: float) -> Callable[[str], dict]:
    """Jobs whose parts take a moment, so that a kill meets them."""

    def body(name: str) -> dict:
        made = battery_job(name)
        made["params"]["nap"] = nap_s
        return made

    return body


def some_slow(name: str) -> dict:
    """One job in six has, in each stage, a part that takes longer than the supervisor takes to end its worker."""
    made = napping(0.01)(name)
    made["params"]["slow"] = SLOW_S if is_slow(name) else 0.0
    return made


def is_slow(name: str) -> bool:
    """By the number at its end."""
    return int(name.rpartition("-")[2]) % 6 == 0


@case(2, "worker's parent kill -9 every 3 s", pairs=(CLASSIC, QUORUM, REDIS_REDIS), jobs=1_000, few=80, shared=True)
def parents_killed(scene: Scene) -> None:
    """The parent alone is killed; its supervisor ends what is left of it and starts it again."""
    here = scene.installation
    kills: list[tuple[float, frozenset[int]]] = []
    # Two workers of each queue: an orphan is to wait for its lease, not for the start of the one that was killed.
    spares = [] if scene.short else [here.worker(queue, name=f"spare-{queue}") for queue in here.queues]
    # Short queues for the same reason; many clients would all see that there is room.
    with scene.load(in_flight=8, clients=2, body=some_slow) as load:
        load.reached(0.05)
        for victim in cycle([*here.workers.values(), *spares]):
            if scene.short and len(kills) >= FEW_KILLS:
                break
            time.sleep(KILL_EVERY_S)
            while not load.is_over and not has_run(scene, victim):  # it is only just being started
                time.sleep(0.1)
            if load.is_over:
                break
            children = frozenset(victim.children())
            until_a_slow_one_begins(scene, children)
            kills.append((time.monotonic(), children))
            victim.signal(signal.SIGKILL)
    account = scene.settle()
    for spare in spares:
        spare.end(GRACE_S + 12.0)
        here.keeper.forget(spare)
    scene.expect("kills", len(kills), least=1)
    scene.expect("failed", len(account.failed), most=0)
    waited = orphans(scene.effects(), kills)
    scene.expect("orphaned parts that ran again", len(waited), least=1)
    if waited:
        scene.recovery(max(waited))
        bound = scene.lease_s + FREE_AGAIN_S
        # A busy machine starts a worker in many seconds; how soon is looked at by the full run alone.
        scene.expect("slowest orphan s", max(waited), most=None if scene.short else bound)


def orphans(effects: list[Effect], kills: list[tuple[float, frozenset[int]]]) -> list[float]:
    """For each part whose last execution was in a killed worker, and which ran again: seconds from the kill to that."""
    by_part: dict[tuple[str, int, int], list[Effect]] = {}
    for effect in effects:
        by_part.setdefault((effect.job_id, effect.stage, effect.index), []).append(effect)
    waited = []
    for runs in by_part.values():
        runs.sort(key=lambda effect: effect.at)
        for first, again in pairwise(runs):
            killed = [at for at, pids in kills if first.pid in pids and first.at <= at <= again.at]
            if killed and again.fence > first.fence:
                waited.append(again.at - killed[0])
    return waited


@case(3, "pool child kill -9, 50 times", pairs=(CLASSIC,), jobs=1_000, few=80)
def children_killed(scene: Scene) -> None:
    """No healthy job fails: a lost attempt is not the part's fault."""
    kills, wanted = 0, 6 if scene.short else CHILD_KILLS
    with scene.load(in_flight=12, body=napping(0.02)) as load:
        load.reached(0.05)
        while kills < wanted and not load.is_over:
            worker = random.choice(list(scene.installation.workers.values()))
            kills += kill_one_of(worker)
            time.sleep(0.4)
    account = scene.settle()
    scene.expect("kills", kills, least=wanted)
    scene.expect("failed", len(account.failed), most=0)


def has_run(scene: Scene, worker: Kept) -> bool:
    """Whether one of its children has run a part."""
    children = set(worker.children())
    return any(effect.pid in children for effect in scene.effects())


def until_a_slow_one_begins(scene: Scene, pids: frozenset[int], within_s: float = 20.0) -> None:
    """Wait until one of these processes has just begun a slow part, so that a kill now orphans it."""
    log, until = EffectLog(scene.installation.effects), time.monotonic() + within_s
    while time.monotonic() < until:
        begun = {effect.job_id for effect in log.read() if effect.pid in pids and effect.index == 0}
        if begun and any(attempt.job_id in begun and is_slow(attempt.key) for attempt in scene.attempts):
            return
        time.sleep(0.02)


def kill_one_of(worker: Kept) -> int:
    """Kill one of its children; 1 if there was one."""
    children = worker.children()
    if not children:
        return 0
    try:
        os.kill(random.choice(children), signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1


@case(17, "rolling restart of every process, new before old", pairs=(QUORUM,), jobs=2_000, alone=True)
def rolling_restart(scene: Scene) -> None:
    """Each process gets a younger twin; once that is there, the elder is asked to end."""
    here = scene.installation
    took: dict[str, float | None] = {}
    with scene.load(in_flight=24, body=napping(0.05)) as load:
        load.reached(0.02)
        for n, old in enumerate(list(here.gateways)):
            port = here.ports[n]
            here.gateways[n] = here.gateway_at(new := free_port(), f"gateway-{n}-new")
            scene.until(lambda new=new: ready(new), "the new gateway", 120)
            here.ports[n] = new
            time.sleep(1.0)  # as a proxy would: nothing new goes to the old one
            took[f"gateway {port}"] = old.end(15.0)
        for queue, old in list(here.workers.items()):
            here.workers[queue] = here.worker(queue, name=f"worker-{queue}-new")
            scene.until(lambda new=here.workers[queue]: has_run(scene, new), f"a new worker of {queue}", 120)
            took[f"worker of {queue}"] = old.end(GRACE_S + 12.0)
        for n, old in enumerate(list(here.sweepers)):
            here.sweepers[n] = here.keep(f"sweeper-{n}-new", "-m", "jobs.sweeper")
            took[f"sweeper {n}"] = old.end(15.0)
        scene.require(not load.is_over, "the load was over before everything was replaced")
        load.enough()
    account = scene.settle()
    scene.expect("failed", len(account.failed), most=0)
    for name, seconds in took.items():
        scene.require(seconds is not None, f"{name} did not end by itself")
    scene.expect("slowest end s", max(seconds or 99.0 for seconds in took.values()), most=GRACE_S + 2.0)
