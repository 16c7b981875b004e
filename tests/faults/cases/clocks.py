"""Processes whose clocks are two hours off, ahead and behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from jobs.model import Status
from tests.faults.case import Scene, case
from tests.faults.installation import CLASSIC, call, ready
from tests.faults.load import ACCEPTED, battery_job
from tests.neighbours import need

OFF = "2h"
PATIENT = Path(__file__).parent.parent / "patient"
LIBRARIES = "usr/lib/*/faketime/libfaketime.so.1"
DEADLINE_S, LATE_S = 5.0, 3.0  # a deadline, and what the sweep may take beyond
LATE_JOBS = LONG_JOBS = 2
KEPT_S = 3_600.0  # less than the clocks are off: who looks at his own clock would forget everything at once


@case(
    13,
    "clocks of a worker and a gateway two hours off",
    pairs=(CLASSIC,),
    jobs=200,
    alone=True,
    settings={"RESULT_TTL_S": KEPT_S, "UPLOAD_TTL_S": KEPT_S},
)
def clocks_off(scene: Scene) -> None:
    """Leases, deadlines and retention go by the store's clock. A sweeper is off too, for it ends all three."""
    need(_library, "libfaketime")
    here = scene.installation
    off = ((here.gateways[1], "+"), (here.workers["battery_split"], "+"), (here.workers["battery_grind"], "-"))
    for program, sign in (*off, (here.sweepers[1], "+")):
        program.env |= {"LD_PRELOAD": str(_library()), "FAKETIME": sign + OFF, "PYTHONPATH": str(PATIENT)}
        # The monotonic clock goes right on any machine; and gunicorn compares it with the times of files.
        program.env |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
        program.kill()  # it is started again
    scene.until(lambda: all(ready(port) for port in here.ports), "the gateways to be ready again")
    status, upload = call(here.ports[1], "POST", "/files", {"any": "thing"})
    scene.require(status == 201, f"an upload was answered {status}")
    with scene.load(LATE_JOBS, body=lambda name: _with(name, nap=60.0, deadline=DEADLINE_S), clients=2) as late:
        late.wait()
    with scene.load(LONG_JOBS, body=lambda name: _with(name, nap=1.5 * scene.lease_s, parts=1), clients=2) as long:
        long.wait()
    with scene.load(in_flight=24, body=lambda name: _with(name, deadline=300.0)) as load:
        load.wait()
    account = scene.settle()
    ids = {one.job_id for one in late.attempts if one.outcome == ACCEPTED}
    jobs = [record.job for record in scene.records()]
    scene.expect("leases lost", sum(stage.losses for job in jobs for stage in job.stages), most=0)
    scene.require(set(account.failed) == ids, f"{account.failed} failed, expected {sorted(ids)}")
    after = [job.finished - job.created for job in jobs if job.id in ids and job.status is Status.FAILED]
    scene.expect("deadline passed after s, first", min(after, default=0.0), least=DEADLINE_S)
    scene.expect("deadline passed after s, last", max(after, default=99.0), most=DEADLINE_S + LATE_S)
    scene.expect("jobs kept", len(jobs), least=scene.jobs + LATE_JOBS + LONG_JOBS)
    scene.require(here.store.upload(upload["id"]).expires - time.time() > KEPT_S / 2, "the upload expires at once")
    strange = [s for job in jobs for s in job.stages if not 0 <= s.waited_s < 600 or not 0 <= s.ran_s < 600]
    scene.expect("stages whose times are wrong", len(strange), most=0)


def _with(name: str, deadline: float | None = None, **params: Any) -> dict[str, Any]:
    body = battery_job(name)
    body["params"] |= params
    return body if deadline is None else {**body, "deadline": deadline}


def _library() -> Path | None:
    return next(Path("/").glob(LIBRARIES), None)
