"""Parts that kill, break or outgrow whoever runs them, among healthy ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jobs.model import Status
from tests.faults.case import Scene, case
from tests.faults.installation import CLASSIC

# What a poisoned part does, and the code that its job must fail with.
KINDS = {
    "kill_self": "worker-lost",
    "segfault": "worker-lost",
    "memory_error": "out-of-memory",
    "endless": "time-limit",
    "greedy": "out-of-memory",
    "huge": "output-too-large",
    "unpicklable": "stage-broke",
}
SHARE = 0.4  # of the jobs have one poisoned part of their eight: 5 % of the parts
MEMORY_MB = 512
LIMIT = 3  # of failures, and of losses
MOST_TRIES = 2 * LIMIT - 1  # of a part that fails, and is lost with its worker too
SETTINGS = {"MAX_MEMORY_MB": MEMORY_MB, "MAX_FAILURES": LIMIT, "MAX_LOSSES": LIMIT}


@case(14, "5 % poison parts", pairs=(CLASSIC,), jobs=400, settings=SETTINGS, alone=True, limit_s=600.0)
def poison(scene: Scene) -> None:
    """Each poisoned job fails with a code that says which; no healthy one does."""
    here = scene.installation
    here.worker("battery_grind", name="second-grinder", children=2)
    names = scene.names()
    bad = {name: list(KINDS)[n % len(KINDS)] for n, name in enumerate(names[: int(len(names) * SHARE)])}

    def body(name: str) -> dict[str, Any]:
        params: dict[str, Any] = {"name": name, "memory_mb": 3 * MEMORY_MB}
        if how := bad.get(name):
            params |= {"bad": len(name + how) % 8, "how": how}
        return {"pipeline": "poisoned", "params": params}

    with scene.load(body=body, mixed=True):
        pass
    scene.drain(420.0)
    account = scene.settle()
    names_of = {attempt.job_id: attempt.key for attempt in scene.attempts if attempt.job_id}
    healthy = [job_id for job_id, name in names_of.items() if name not in bad]
    scene.expect("poisoned", len(bad), least=1)
    scene.expect(
        "healthy jobs not successful", sum(account.found.get(i) is not Status.SUCCESSFUL for i in healthy), most=0
    )
    codes = Counter((bad[names_of[i]], code) for i, code in account.failed.items() if names_of.get(i) in bad)
    for how, expected in KINDS.items():
        asked = sum(one == how for one in bad.values())
        got = {code: n for (kind, code), n in codes.items() if kind == how}
        scene.require(got == {expected: asked}, f"{how}: {asked} jobs failed as {got}, not as {expected}")
    tries: Counter[tuple[str, int]] = Counter()
    for effect in scene.effects():
        if effect.stage == 1 and names_of.get(effect.job_id) in bad:
            tries[effect.job_id, effect.index] += 1
    for (job_id, index), times in tries.items():
        scene.require(times <= MOST_TRIES, f"part {index} of {job_id} was tried {times} times")
