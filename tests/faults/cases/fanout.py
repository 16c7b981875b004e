"""Fan-outs whose parts die or stall, and whose emitters die and cut differently the second time."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from tests.faults.accounts import Effect, Record
from tests.faults.case import Scene, case
from tests.faults.installation import CLASSIC, QUEUES, QUORUM

PARTS = 16
SHARE = 0.02  # of the first attempts that die, and of those that stall
STALL_S = 9.0  # a lease and a half
CHEWERS = 3


@case(
    16,
    "fan-out 16, kills, stalls, emitters that cut anew",
    pairs=(CLASSIC, QUORUM),
    jobs=60,
    shared=True,
    queues=(*QUEUES, "cutter_cut", "cutter_chew", "cutter_gather"),
    settings={"MAX_LOSSES": 9},
)
def fan_out(scene: Scene) -> None:
    """The last stage runs once a job, on the outputs of the cut that came through and of no other."""
    here, chance = scene.installation, random.Random(scene.prefix)
    for n in range(1, CHEWERS):
        here.worker("cutter_chew", name=f"worker-chewer-{n}")
    with scene.load(in_flight=30, body=lambda name: _cut(name, chance)) as load:
        load.wait()
    account = scene.settle()
    records = list(scene.records())
    scene.tell("emitters killed", sum(record.job.params["dies_after"] > 0 for record in records))
    scene.expect("attempts lost", sum(stage.losses for record in records for stage in record.job.stages), least=1)
    scene.expect("failed", len(account.failed), most=0)
    scene.expect("jobs whose last stage ran more than once", _more_than_once(scene.effects()), most=0)
    mixed = [record.job.id for record in records if record.result != whole(record)]
    scene.expect("jobs with outputs of a void cut", len(mixed), most=0)


def _cut(name: str, chance: random.Random) -> dict[str, Any]:
    """Half of the emitters die on their way; parts of two in a hundred die, of as many stall."""
    kills = [n for n in range(PARTS) if chance.random() < SHARE]
    stalls = [n for n in range(PARTS) if chance.random() < SHARE and n not in kills]
    dies_after = chance.randrange(3, PARTS - 4) if chance.random() < 0.5 else 0
    params = {"parts": PARTS, "dies_after": dies_after, "kills": kills, "stalls": stalls, "stall_s": STALL_S}
    return {"pipeline": "cutter", "params": {"name": name, **params}}


def _more_than_once(effects: list[Effect]) -> int:
    times = Counter(effect.job_id for effect in effects if effect.stage == 2)
    return sum(count > 1 for count in times.values())


def whole(record: Record) -> object:
    """What the last stage must say: every part of one cut, which is the last one that was begun."""
    number, parts = record.job.stages[1].generation, record.job.params["parts"]
    given = [{"cut": number, "n": n} for n in range(parts)]
    return {"name": record.key, "cut": {"cut": number, "parts": parts}, "given": given}
