"""Both stores against the reference: whatever two workers, clients and sweepers do, all three answer the same.

Hypothesis finds the order of calls: late finishes by stale claims, calls repeated after lost replies, crashes, emits
out of order, dismissals in the middle. Every answer and the whole visible record are compared after every call.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobs.errors import JobsError
from jobs.model import Accepted, Cause, Claim, Ended, Job, JobError, PartKey, Plan, Ring, StagePlan, Status, Submission
from jobs.store import JobStore, open_store
from tests.ageing import age, empty
from tests.reference_store import OPEN, ReferenceStore
from tests.store_steps import artifact

# Time passes in steps of 200 s; what ends after a while ends in the middle of a step, so a slow machine is no matter.
STEP_S, LEASE_S, DELAY_S, DEADLINE_S = 200.0, 500.0, 300.0, 5_100.0
LONG_S = 19 * STEP_S  # longer than any interval of a ring
MADE_BY_STORE = ("emit-mismatch", "worker-lost", "deadline-passed")  # their sentences are the stores' own

A, B, C = (StagePlan(name, f"queue-{name}") for name in "abc")
EACH, LOOSE = replace(B, each=True), replace(B, each=True, min_success=0.5)
SHAPES = [
    (A, EACH, C),
    (A, LOOSE, C),
    (A, B),
    (A, EACH),
    (A, LOOSE, C, replace(EACH, name="d", queue="queue-d")),
]
QUEUES = [f"queue-{name}" for name in "abcd"]
JOBS = st.tuples(
    st.sampled_from(SHAPES),
    st.integers(1, 3),  # window
    st.sampled_from([None, None, DEADLINE_S]),
    st.sampled_from([None, None, "k1", "k2"]),  # Idempotency-Key
    st.sampled_from("xy"),  # digest
    st.sampled_from([{}, {}, {"concurrency": 1}, {"rate": 1}, {"rate": 2, "concurrency": 1}]),
)
DEEDS = st.sampled_from(["finish", "emit", "crash", "renew", "claim", "finish wrongly", *map(str, Cause)])
DELAYS = st.sampled_from([0.0, DELAY_S])
BACKGROUND = st.sampled_from(["rung", "old ring", "submit again", "time", "strand"])
PICK = st.integers(0, 30)
AGAIN = st.booleans()  # the reply was lost: the same call once more


class StoreMachine(RuleBasedStateMachine):
    """A real store and the reference, side by side. Few rules with many deeds: each step finds something to do."""

    url: ClassVar[str]
    store: ClassVar[JobStore]

    @initialize(jobs=st.lists(JOBS, min_size=1, max_size=2))
    def begin(self, jobs):
        empty(self.url)
        self.model = ReferenceStore()
        self.submissions: list[Submission] = []
        self.held: list[Claim] = []  # every claim there ever was
        self.rings: list[Ring] = []  # every ring there ever was
        self.final: dict[str, Status] = {}
        self.number = 0
        for job in jobs:
            self._submit(job, again=False)

    # -- clients --------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.model.records) < 4)
    @rule(job=JOBS, again=AGAIN)
    def submit(self, job, again):
        self._submit(job, again)

    @precondition(
        lambda self: self.number > 12 and self.number % 3 == 0
    )  # seldom: there is little left to see after it
    @rule(pick=PICK, again=AGAIN)
    def dismiss(self, pick, again):
        jobs = list(self.model.records)
        for _ in range(1 + again):
            self.both("dismiss", jobs[pick % len(jobs)])

    @precondition(lambda self: self._failed() and len(self.model.records) < 6)
    @rule(pick=PICK, again=AGAIN)
    def retry(self, pick, again):
        failed, new = self._failed(), f"{self._next():06}-retry"
        for _ in range(1 + again):
            self.rings += self.both("retry", failed[pick % len(failed)], new).rings

    # -- workers --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self._ready())
    @rule(picks=st.lists(PICK, min_size=1, max_size=3), worker=st.sampled_from(["one", "two"]), again=AGAIN)
    def claim(self, picks, worker, again):
        for pick in picks:
            if ready := self._ready():
                self._claim(ready[pick % len(ready)], worker, again)

    @precondition(lambda self: self.held)
    @rule(pick=PICK, n=st.integers(1, 3), again=AGAIN)
    def claim_more(self, pick, n, again):
        like = self.held[pick % len(self.held)]
        tokens = [f"more-{self._next()}" for _ in range(n)]
        possible = self.model.claimable(like)
        lease_s = self._lease_s()
        taken = self.store.claim_more(like, "one", tokens, lease_s, "cpu")
        assert len(taken) <= min(n, len(possible)), (taken, possible)
        if not self._late_jobs():  # what is past its deadline may stand in the way until the sweep
            assert len(taken) == min(n, len(possible)), (taken, possible)
        for claim in taken:  # which ones is the store's choice
            assert claim.at in possible
            assert _plain(self.model.claim(claim.at, "one", claim.token, lease_s, "cpu")) == _plain(claim)
        if again:
            assert self.store.claim_more(like, "one", tokens, lease_s, "cpu") == taken
        self.held += taken
        self.check(*{claim.at.job_id for claim in taken})

    @precondition(lambda self: self._living())
    @rule(deeds=st.lists(st.tuples(PICK, DEEDS), min_size=1, max_size=3), delay_s=DELAYS, again=AGAIN)
    def work(self, deeds, delay_s, again):
        """Workers do something with parts that they hold."""
        for pick, deed in deeds:
            if living := self._living():
                self._do(living[pick % len(living)], deed, delay_s, again)

    @precondition(lambda self: self._emitters())
    @rule(pick=PICK, indexes=st.lists(st.integers(0, 5), min_size=1, max_size=6), again=AGAIN)
    def emit(self, pick, indexes, again):
        """An emitter emits, in any order."""
        emitters = self._emitters()
        for index in indexes:
            self._twice(again, "emit", emitters[pick % len(emitters)], index, b"%d\x00\xff" % index)

    @precondition(lambda self: self._living())
    @rule(picks=st.lists(PICK, min_size=1, max_size=3), again=AGAIN)
    def finish(self, picks, again):
        """Workers do what they should."""
        for pick in picks:
            if living := self._living():
                self._do(living[pick % len(living)], "finish", 0.0, again)

    @precondition(lambda self: self._living())
    @rule(pick=PICK, delay_s=DELAYS)
    def take_over(self, pick, delay_s):
        """A worker dies, and another one takes what it held."""
        living = self._living()
        claim = living[pick % len(living)]
        self._do(claim, "crash", delay_s, again=False)
        self._claim(claim.at, "two", again=False)

    @precondition(lambda self: self._stale())
    @rule(deeds=st.lists(st.tuples(PICK, DEEDS), min_size=1, max_size=4), delay_s=DELAYS, again=AGAIN)
    def come_late(self, deeds, delay_s, again):
        """Workers that were taken for dead go on: with parts that are over, void, or another one's."""
        for pick, deed in deeds:
            if stale := self._stale():
                self._do(stale[pick % len(stale)], deed, delay_s, again)

    # -- sweepers -------------------------------------------------------------------------------------------------

    @rule(sweep=st.sampled_from(["end_leases", "end_deadlines", "unrung", "due", "overdue", "release"]), delay_s=DELAYS)
    def sweep(self, sweep, delay_s):
        if sweep == "end_leases":
            for ended in self.both("end_leases", 100, 0.0, delay_s, touched=self.model.records):
                self.rings += ended.rings
        elif sweep == "end_deadlines":
            self.both("end_deadlines", 100, touched=self.model.records)
        elif sweep == "due":
            self.rings += self.both("due", 100, touched=self.model.records)
        elif sweep == "release":
            self.rings += self.both("release")
        elif sweep == "unrung":
            self.time_passes(STEP_S)
            self.rings += self.both("unrung", 100)
        else:
            self.time_passes(LONG_S)
            for queue in QUEUES:
                self.both("overdue", queue, 100)

    @rule(pick=PICK, deed=BACKGROUND, by=st.integers(-1, 1))
    def background(self, pick, deed, by):
        """What goes on all the time: confirms, signatures that come twice or for nothing, repeated submissions."""
        at = pick % max(1, len(self.rings))
        if not self.rings:  # every job is held back
            return
        ring = self.rings[at].at
        if deed == "rung":
            self.both("rung", self.rings[at : at + 4])
        elif deed == "old ring":
            self._claim(replace(ring, stage=ring.stage + (by > 0), generation=ring.generation + by), "two", again=False)
        elif deed == "strand":
            self.both("strand", [ring])
            self.check(ring.job_id)
            self.time_passes(STEP_S)  # it backs off for seconds, which a slow machine takes from one call to the next
        elif deed == "submit again":
            self.both("add", [self.submissions[pick % len(self.submissions)]])
        else:
            self.time_passes(3 * STEP_S if by else STEP_S)

    def time_passes(self, seconds: float) -> None:
        age(self.url, seconds)
        self.model.now += seconds

    # -- what holds at every moment ---------------------------------------------------------------------------------

    @invariant()
    def nothing_is_out_of_sight(self):
        """What is ready inside a window is owed or rung, counted by its queue, and waits by its task."""
        if not hasattr(self, "model"):
            return
        assert {q: n for q, n in self.store.rung_counts().items() if n} == self.model.rung_counts()
        assert self.store.counts() == self.model.counts()
        assert self.store.longest_waits().keys() == self.model.tasks_ready()

    @invariant()
    def windows_and_counters_add_up(self):
        for record in getattr(self, "model", ReferenceStore()).records.values():
            for stage in record.stages:
                if stage.plan.each:
                    assert stage.count(*OPEN) <= record.job.plan.window
                    assert (stage.count("done"), stage.count("dead")) == (stage.state.done, stage.state.dead)
                    assert stage.state.total == len(stage.parts)
                    if stage.count("waiting") and not record.held and not record.job.status.is_final:
                        assert stage.count(*OPEN) == record.job.plan.window

    def teardown(self) -> None:
        """Whatever happened: with sweeps and workers alone every job comes to its end."""
        if not hasattr(self, "model"):
            return
        for _ in range(100):
            if all(record.job.status.is_final for record in self.model.records.values()):
                break
            self.time_passes(LONG_S)
            rings: list[Ring] = [*self.both("due", 100), *self.both("release"), *self.both("unrung", 100)]
            for ended in self.both("end_leases", 100, 0.0, 0.0):
                rings += ended.rings
            for queue in QUEUES:
                rings += self.both("overdue", queue, 100)
            self.both("end_deadlines", 100)
            for ring in rings:
                if claim := self._claim(ring.at, "two", again=False):
                    self._do(claim, "emit", 0.0, again=False)
                    self._do(claim, "finish", 0.0, again=False)
        else:
            raise AssertionError("some job never ends")
        self.check(*self.model.records)

    # -- both at once -------------------------------------------------------------------------------------------------

    def both(self, name: str, *arguments: Any, touched: Any = None) -> Any:
        """Call the store and the reference; their answers and the records they touched are the same."""
        expected, answer = _outcome(self.model, name, arguments), _outcome(self.store, name, arguments)
        assert _plain(answer) == _plain(expected), (name, arguments)
        first = arguments[0] if arguments else None
        if touched is None:
            touched = [first.at.job_id] if isinstance(first, Claim) else [first] if isinstance(first, str) else []
            touched += [first.job_id] if isinstance(first, PartKey) else []
            touched += [one.at.job_id for one in first if isinstance(one, Claim)] if isinstance(first, list) else []
        self.check(*(job for job in touched if job in self.model.records))
        return answer

    def check(self, *jobs: str) -> None:
        """What anyone can see of some jobs is the same, and what may never change has not."""
        for job in jobs:
            found = self.store.get(job)
            assert _plain(found) == _plain(self.model.get(job))
            events = self.store.events(job)
            assert [event.id for event in events] == list(range(1, len(events) + 1))
            assert _plain([replace(event, time=0) for event in events]) == _plain(
                [replace(event, time=0) for event in self.model.events(job)]
            )
            closed = [event.data["stage"] for event in events if event.type == "stage_finished"]
            assert len(closed) == len(set(closed))
            for stage in range(len(found.plan.stages)):
                assert _plain(self.store.outputs(job, stage)) == _plain(self.model.outputs(job, stage))
            assert self.store.artifacts(job) == self.model.artifacts(job)
            if found.status.is_final:
                assert self.final.setdefault(job, found.status) is found.status
            assert job not in self.final or found.status.is_final

    def _submit(self, job: tuple[Any, ...], again: bool) -> None:
        shape, window, deadline_s, key, digest, limits = job
        id_ = f"{self._next():06}-job"
        plan = Plan(shape, window=window, max_failures=2, max_losses=3, **limits)
        pipeline = "-".join(["mill", *limits])
        new = Job(id=id_, family=id_, pipeline=pipeline, plan=plan, params={"n": id_}, deadline_s=deadline_s)
        self.submissions.append(Submission(new, key=key, digest=digest))
        for _ in range(1 + again):
            for answer in self.both("add", [self.submissions[-1]]):
                self.rings += answer.rings if isinstance(answer, Accepted) else ()

    def _claim(self, at: PartKey, worker: str, again: bool) -> Claim | None:
        token = f"token-{self._next()}"
        call = ("claim", at, worker, token, self._lease_s(), "cpu")
        claim = self.both(*call)
        if again:
            assert _plain(self.both(*call)) == _plain(claim)
        self.held += [claim] if claim else []
        return claim

    def _do(self, claim: Claim, deed: str, delay_s: float, again: bool) -> None:
        """One call of a worker, whether it still holds the part or not; `again`: its reply was lost."""
        emitted = self._emitted(claim)
        error = JobError("stage-broke", f"It broke under {claim.token}.", claim.stage.name, claim.at.index)
        if deed == "finish":
            call = ("finish", claim, b"\x80" + claim.token.encode(), [artifact("kept", claim.token)], emitted)
        elif deed == "finish wrongly":
            call = ("finish", claim, b"", (), emitted + 1)
        elif deed == "renew":
            call = ("renew", [claim], self._lease_s(), {claim.token: 0.25})
        elif deed == "claim":
            call = ("claim", claim.at, "one", claim.token, self._lease_s(), "cpu")
        elif deed == "crash":
            self.both("renew", [claim], 0.0)
            self.sweep("end_leases", delay_s)
            return
        elif deed == "emit":
            if self._following(claim):
                for index in (emitted, emitted + 1):
                    self._twice(again, "emit", claim, index, b"\x00\xff" + claim.token.encode())
            return
        else:
            call = ("fail", claim, Cause(deed), error, delay_s)
        self._twice(again, *call)

    def _twice(self, again: bool, *call: Any) -> None:
        first = self.both(*call)
        self.rings += getattr(first, "rings", ())
        if again:
            assert _plain(self.both(*call)) == _plain(first)

    def _late_jobs(self) -> list[Job]:
        jobs = [record.job for record in self.model.records.values() if not record.job.status.is_final]
        return [job for job in jobs if job.deadline is not None and job.deadline <= self.model.now]

    def _failed(self) -> list[str]:
        return [job for job, record in self.model.records.items() if record.job.status is Status.FAILED]

    def _ready(self) -> list[PartKey]:
        return sorted(found.at for _, _, found in self.model._all("ready"))

    def _holds(self, claim: Claim) -> bool:
        _, found = self.model._find(claim.at)
        return found is not None and (found.status, found.token) == ("leased", claim.token)

    def _living(self) -> list[Claim]:
        """Claims that hold their part."""
        return [claim for claim in self._open() if self._holds(claim)]

    def _emitters(self) -> list[Claim]:
        return [claim for claim in self._living() if self._following(claim)]

    def _stale(self) -> list[Claim]:
        """Claims that do not any more; most telling is what another one holds now, or what is void."""
        stale = [claim for claim in self._open() if not self._holds(claim)]
        found = {claim.token: self.model._find(claim.at)[1] for claim in stale}
        told = [c for c in stale if (part := found[c.token]) is None or part.status == "leased"]
        return told or stale

    def _open(self) -> list[Claim]:
        return [claim for claim in self.held if not self.model.records[claim.at.job_id].job.status.is_final]

    def _following(self, claim: Claim) -> bool:
        """Whether the claim's stage emits."""
        following = claim.plan.stages[claim.at.stage + 1 : claim.at.stage + 2]
        return bool(following) and following[0].each

    def _emitted(self, claim: Claim) -> int:
        """How many parts the claim has emitted, if it still counts."""
        return self.model.get(claim.at.job_id).stages[claim.at.stage + 1].total if self._following(claim) else 0

    def _lease_s(self) -> float:
        """Each a little longer than the one before, so that it is clear which ran out first."""
        return LEASE_S + 0.02 * self._next()

    def _next(self) -> int:
        self.number += 1
        return self.number


def _outcome(store: Any, name: str, arguments: tuple[Any, ...]) -> Any:
    try:
        return getattr(store, name)(*arguments)
    except JobsError as error:
        return error


def _plain(value: Any) -> Any:
    """An answer without what may differ: times, sentences, and the order of what comes in no order."""
    match value:
        case JobsError():
            return type(value)
        case JobError():
            return replace(value, detail="") if value.code in MADE_BY_STORE else value
        case Job():
            times = {name: getattr(value, name) is not None for name in ("started", "finished", "deadline")}
            stages = tuple(
                replace(
                    stage,
                    waited_s=0.0,
                    ran_s=0.0,
                    progress=round(stage.progress, 4),
                    started=stage.started is not None,
                    finished=stage.finished is not None,
                )
                for stage in value.stages
            )
            return replace(value, **times, created=0, updated=0, version=0, error=_plain(value.error), stages=stages)
        case Claim():
            return replace(value, lease_until=0, waited_s=0, deadline=value.deadline is not None)
        case Accepted():
            return replace(value, job=_plain(value.job), rings=_plain(list(value.rings)))
        case Ended():
            return replace(value, rings=_plain(list(value.rings)))
        case list() if value and isinstance(value[0], Ring | Ended | str):
            return sorted((_plain(one) for one in value), key=repr)
        case list():
            return [_plain(one) for one in value]
    if hasattr(value, "error"):
        return replace(value, error=_plain(value.error))
    if hasattr(value, "data") and value.data.get("code") in MADE_BY_STORE:
        return replace(value, data={**value.data, "detail": ""})
    return value


@pytest.mark.timeout(0 if os.environ.get("HYPOTHESIS_PROFILE") == "soak" else 1_200)
@pytest.mark.long
def test_a_store_does_what_the_reference_says(store_url):
    # Given an empty store
    soak = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
    store = open_store(store_url)
    machine = type("Machine", (StoreMachine,), {"url": store_url, "store": store})
    # When anything happens to it
    # Then it answers as the reference does
    examples = {} if soak else {"max_examples": 40}
    run_state_machine_as_test(machine, settings=settings(stateful_step_count=60 if soak else 40, **examples))
    store.close()
