"""Workers whose network drops every packet, both ways and then one way."""

from __future__ import annotations

import time
from typing import Any

from tests.faults.case import Scene, case
from tests.faults.installation import CLASSIC
from tests.faults.load import battery_job
from tests.faults.places import Island

AWAY_S = 60.0
RESUMED_S = 90.0


@case(
    12,
    "workers cut off from broker and store for 60 s, both ways, then one",
    pairs=(CLASSIC,),
    jobs=200,
    alone=True,
    limit_s=600.0,
)
def partitioned(scene: Scene) -> None:
    """With one way open, their commands arrive and the answers do not."""
    here = scene.installation
    island = here.borrowed.enter_context(Island())
    elsewhere = {name: island.url(here.env[name]) for name in ("BROKER_URL", "STORE_URL")}
    for queue, worker in list(here.workers.items()):
        worker.end(20.0)
        command = island.python("-m", "celery_worker", "--grace", "8", "-c", "1")
        here.workers[queue] = here.keep(f"island-{queue}", *command, QUEUES=queue, WORKER_NAME=queue, **elsewhere)
    with scene.load(in_flight=24, body=_napping) as load:
        for fraction, chains in ((0.2, ("INPUT", "OUTPUT")), (0.6, ("INPUT",))):
            load.reached(fraction)
            with island.cut_off(*chains):
                time.sleep(AWAY_S)
            scene.recovered_after(time.monotonic())
    account = scene.settle()
    scene.expect("resumed s", scene.recovery_s or 0.0, most=RESUMED_S)
    scene.expect("failed", len(account.failed), most=0)


def _napping(name: str) -> dict[str, Any]:
    body = battery_job(name)
    body["params"]["nap"] = 0.05
    return body
