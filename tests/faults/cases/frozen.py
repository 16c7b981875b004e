"""A worker that stands still for longer than its leases, and a stage that holds the interpreter's lock as long."""

from __future__ import annotations

import signal
import time
from typing import Any

from tests.faults.accounts import Effect
from tests.faults.case import Scene, case
from tests.faults.installation import CLASSIC, QUEUES, QUORUM
from tests.faults.load import battery_job
from tests.faults.processes import Kept

LEASES = 3
NAP_S = 0.1
PARTS = 4
TRIES = 100


@case(
    4,
    "worker frozen, and a stage that holds the GIL, for three leases",
    pairs=(CLASSIC, QUORUM),
    jobs=200,
    queues=(*QUEUES, "numb"),
)
def frozen(scene: Scene) -> None:
    """A twin takes over what the frozen one held. Who holds the lock keeps its lease: its parent renews it."""
    here, still_s = scene.installation, LEASES * scene.lease_s
    here.worker("battery_grind", name="worker-twin")
    victim = here.workers["battery_grind"]
    with scene.load(1, body=lambda name: _numb(name, still_s)) as numb:
        numb.wait()
    with scene.load(in_flight=24, body=_napping) as load:
        load.reached(0.2)
        held = freeze_in_mid_part(scene, victim)
        frozen_at = time.monotonic()
        time.sleep(still_s)
        victim.signal_group(signal.SIGCONT)
    account = scene.settle()
    scene.require(held, "no part was under way in the worker when it was frozen")
    if held:
        taken = finishes(scene, held)
        scene.require(
            len(taken) == 1 and taken[0] > held.fence, f"{held} is stale, but the finishes {taken} were taken"
        )
        again = [effect.at - frozen_at for effect in scene.effects() if _is_later_run(effect, held)]
        scene.recovery(min(again, default=0.0))
        refused = victim.log.read_text(errors="replace").count("claim_lost")
        scene.expect("late finishes refused", refused, least=1)
    scene.expect("failed", len(account.failed), most=0)
    runs = [effect for effect in scene.effects() if effect.job_id == numb.attempts[-1].job_id]
    scene.expect("executions of the part that held the GIL", len(runs), least=1, most=1)


def freeze_in_mid_part(scene: Scene, victim: Kept) -> Effect | None:
    """Freeze its whole group while it works on a part; which one that is."""
    for _ in range(TRIES):
        children = set(victim.children())
        before = len(scene.effects())
        scene.until(lambda pids=children, n=before: any(e.pid in pids for e in scene.effects()[n:]), "it to work")
        victim.signal_group(signal.SIGSTOP)
        held = [effect for effect in scene.effects() if effect.pid in children][-1]
        if not finishes(scene, held):
            return held
        victim.signal_group(signal.SIGCONT)
    return None


def finishes(scene: Scene, part: Effect) -> list[int]:
    """The fences under which a part was finished."""
    told = [one.data for one in scene.installation.store.events(part.job_id, limit=10_000) if one.type == "progress"]
    where = (part.index, part.generation)
    return [data["fence"] for data in told if (data.get("index"), data.get("generation")) == where]


def _is_later_run(effect: Effect, held: Effect) -> bool:
    same = (effect.job_id, effect.stage, effect.index) == (held.job_id, held.stage, held.index)
    return same and effect.fence > held.fence


def _napping(name: str) -> dict[str, Any]:
    body = battery_job(name)
    body["params"] |= {"nap": NAP_S, "parts": PARTS}
    return body


def _numb(name: str, seconds: float) -> dict[str, Any]:
    return {"pipeline": "numb", "params": {"name": name, "seconds": seconds}}
