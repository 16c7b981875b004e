"""Clients that change their minds."""

from __future__ import annotations

import time

from jobs.model import Status
from tests.faults.case import Scene, case
from tests.faults.installation import QUORUM, call
from tests.faults.load import battery_job

FREE_WITHIN_S = 5.0
LONG_S = 50.0


@case(18, "dismissal of waiting and of running jobs", pairs=(QUORUM,), jobs=200)
def dismissed(scene: Scene) -> None:
    """Waiting ones end at once and never run; a running one frees its worker soon, whether it listens or not."""
    freed = [_dismiss_running(scene, listens=n % 2 == 0) for n in range(10)]
    scene.expect("slowest to free the worker s", max(freed), most=FREE_WITHIN_S)
    scene.recovery(max(freed))
    # Given a long job, and all the others behind it
    with scene.load(1, body=lambda name: _long(name, listens=True)) as blocking:
        blocking.wait()
        _begun(scene, blocking.attempts_accepted()[0].job_id)
        with scene.load(scene.jobs - 21) as waiting:
            pass
        # When all are dismissed
        ids = [attempt.job_id for attempt in waiting.attempts_accepted()]
        took = [_delete(scene, job_id) for job_id in ids]
        # Then each was over when its DELETE was answered
        statuses = {scene.installation.store.get(job_id).status for job_id in ids}
        _delete(scene, blocking.attempts_accepted()[0].job_id)
    scene.require(statuses == {Status.DISMISSED}, f"dismissed jobs are {', '.join(sorted(statuses))}")
    scene.expect("slowest DELETE s", max(took), most=2.0)
    account = scene.settle()
    ran = {effect.job_id for effect in scene.effects()} & set(ids)
    scene.expect("dismissed while waiting, and yet run", len(ran), most=0)
    scene.expect("dismissed", account.statuses[Status.DISMISSED], least=len(ids) + 11)


def _dismiss_running(scene: Scene, *, listens: bool) -> float:
    """Seconds from the answer to DELETE until the job behind is begun by the same worker."""
    with scene.load(1, body=lambda name: _long(name, listens)) as running:
        running.wait()
        job_id = running.attempts_accepted()[0].job_id
        _begun(scene, job_id)
    with scene.load(1) as behind:
        behind.wait()
        _delete(scene, job_id)
        asked = time.monotonic()
        begun = _begun(scene, behind.attempts_accepted()[0].job_id)
    return begun - asked


def _long(name: str, listens: bool) -> dict:
    body = battery_job(name)
    body["params"] |= {"nap": LONG_S, "listens": listens}
    return body


def _begun(scene: Scene, job_id: str) -> float:
    """When its first part began."""

    def begun() -> list[float]:
        return [effect.at for effect in scene.effects() if effect.job_id == job_id]

    scene.until(begun, f"{job_id} to begin", 60)
    return begun()[0]


def _delete(scene: Scene, job_id: str) -> float:
    began = time.monotonic()
    status, job = call(scene.installation.ports[0], "DELETE", f"/jobs/{job_id}")
    scene.require(status == 200 and job["status"] == "dismissed", f"DELETE answered {status}: {job}")
    return time.monotonic() - began
