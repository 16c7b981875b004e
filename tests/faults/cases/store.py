"""A store that dies under load."""

from __future__ import annotations

import time

from tests.faults.case import Scene, case
from tests.faults.installation import CLASSIC, QUORUM
from tests.faults.load import ACCEPTED, UNKNOWN

AWAY_S = 5.0


@case(10, "store kill -9 and restart, twice", pairs=(CLASSIC, QUORUM), jobs=2_000, few=100, shared=True)
def store_killed(scene: Scene) -> None:
    """While it is away every submission is answered 503, soon; what was accepted before is there afterwards."""
    server = scene.installation.store_server
    away: list[tuple[float, float]] = []
    with scene.load(in_flight=300) as load:
        for fraction in (0.3, 0.7):
            load.reached(fraction)
            began = time.monotonic()
            server.kill()
            time.sleep(AWAY_S)
            server.start()
            away.append((began, time.monotonic()))
            scene.recovered_after(away[-1][1])
    account = scene.settle()
    meanwhile = [one for one in scene.attempts if any(begin <= one.began <= end for begin, end in away)]
    refused = [one for one in meanwhile if one.outcome != ACCEPTED]
    scene.expect("refused meanwhile", len(refused), least=2)
    scene.expect("other than 503", sum(one.status != 503 for one in refused), most=0)
    scene.expect("slowest answer s", max((one.took_s for one in meanwhile), default=0.0), most=3.0)
    scene.expect("unknown", sum(one.outcome == UNKNOWN for one in scene.attempts), most=0)
    scene.expect("failed", len(account.failed), most=0)
