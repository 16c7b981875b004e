"""Gateways that are killed while they answer."""

from __future__ import annotations

import os
import random
import signal
import time

from tests.faults.case import Scene, case
from tests.faults.installation import CLASSIC, QUORUM, ready
from tests.faults.load import ACCEPTED, UNKNOWN

KILLS, JOBS = 50, 800  # shared between the pairs
REPEATS = 3  # of each accepted key, so that requests are under way all the time


@case(5, "gateway kill -9 in mid-request, 50 times", pairs=(CLASSIC, QUORUM), jobs=JOBS, few=100, shared=True)
def gateways_killed(scene: Scene) -> None:
    """Clients try again with the same key; every fifth time the whole gateway dies, else the process that serves."""
    here, wanted = scene.installation, 5 if scene.short else max(5, KILLS * scene.jobs // JOBS)
    kills: list[float] = []
    back: list[float] = []
    with scene.load(clients=8, rate=scene.jobs / (wanted * 0.9), repeats=REPEATS) as load:
        load.reached(0.02)
        while len(kills) < wanted:
            number = len(kills) % 2
            gateway = here.gateways[number]
            serving = gateway.children()
            if not serving:  # it is only just being started
                time.sleep(0.05)
                continue
            time.sleep(random.uniform(0.1, 0.4))
            kills.append(time.monotonic())
            if len(kills) % 5 == 0:
                gateway.signal_group(signal.SIGKILL)
            else:
                os.kill(serving[0], signal.SIGKILL)
            scene.until(lambda port=here.ports[number]: ready(port), "the gateway to be back", 60)
            back.append(time.monotonic() - kills[-1])
    account = scene.settle()
    hit = [attempt for attempt in scene.attempts if attempt.outcome == UNKNOWN]
    scene.expect("kills", len(kills), least=wanted)
    scene.expect("requests cut off", len(hit), least=1)
    repeated: dict[str, set[str]] = {}
    for attempt in scene.attempts:
        if attempt.outcome == ACCEPTED:
            repeated.setdefault(attempt.key, set()).add(attempt.job_id)
    scene.expect("keys answered with two ids", sum(len(ids) > 1 for ids in repeated.values()), most=0)
    scene.expect("failed", len(account.failed), most=0)
    scene.recovery(max(back))
