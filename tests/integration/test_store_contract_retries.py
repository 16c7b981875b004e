"""What every store keeps: a failed job is retried as a new one that adopts what is done."""

from __future__ import annotations

import pytest

from jobs.errors import JobNotFailed
from jobs.model import Cause, Ended, Output, StagePlan, Status
from tests.ageing import age
from tests.store_steps import (
    artifact,
    break_part,
    broke,
    emitter,
    indexes,
    keys,
    part,
    put,
    run,
    status,
    take,
)


def test_a_retry_adopts_what_is_done(store, make_job):
    # Given a job whose second stage had bad input
    job = put(store, make_job("a", "b", "c", params={"x": 1}, labels={"k": "v"}, deadline_s=500, priority=8))
    run(store, part(job), b"one", artifacts=[artifact("kept")])
    break_part(store, part(job, 1), Cause.FAILURE)
    break_part(store, part(job, 1))
    # When it is retried, twice
    first = store.retry(job.id, "second")
    again = store.retry(job.id, "second")
    # Then there is one new job, of the same family, that goes on at the second stage
    new = first.job
    assert (again.job, again.rings) == (new, ())
    assert (new.id, new.retry_of, new.family, new.status) == ("second", job.id, job.id, Status.ACCEPTED)
    assert (new.params, new.labels, new.priority, new.plan) == (job.params, job.labels, 8, job.plan)
    assert new.deadline == pytest.approx(new.created + 500)
    assert (new.error, new.started, new.finished) == (None, None, None)
    assert keys(first.rings) == [part(new, 1)]
    assert store.outputs("second", 0) == [Output(0, b"one")]
    assert store.artifacts("second") == [artifact("kept")]
    assert [stage.status for stage in new.stages] == ["finished", "waiting", "waiting"]
    assert (new.stages[1].failures, new.stages[1].dead) == (0, 0)
    assert [(e.id, e.type, e.data) for e in store.events("second")] == [(1, "accepted", {"retry_of": job.id})]
    assert store.page(label=("k", "v")).jobs[0] == new
    # and the counters begin at 0: it may fail as often again
    assert take(store, part(new, 1)).failures == 0
    # and the first job is as it was
    assert (status(store, job), len(store.outputs(job.id, 0))) == (Status.FAILED, 1)


def test_a_retry_can_be_retried_and_finishes(store, make_job):
    job = put(store, make_job("a", "b"))
    break_part(store, part(job))
    second = store.retry(job.id, "second").job
    run(store, part(second))
    break_part(store, part(second, 1))
    third = store.retry("second", "third").job
    assert (third.retry_of, third.family) == ("second", job.id)
    assert run(store, part(third, 1)) == Ended(Status.SUCCESSFUL)
    assert len(store.outputs("third", 0)) == 1


def test_an_expired_job_can_be_retried(store, store_url, make_job):
    # Given a job that failed at its deadline with its part leased
    job = put(store, make_job("a", "b", deadline_s=10))
    take(store, part(job))
    age(store_url, 11)
    store.end_deadlines(10)
    # When it is retried
    new = store.retry(job.id, "second").job
    # Then it runs with a deadline of its own
    assert run(store, part(new)).status is Status.RUNNING
    assert run(store, part(new, 1)).status is Status.SUCCESSFUL


@pytest.mark.parametrize("end", ["accepted", "successful", "dismissed"])
def test_only_a_failed_job_can_be_retried(store, make_job, end):
    job = put(store, make_job())
    if end == "successful":
        run(store, part(job))
    if end == "dismissed":
        store.dismiss(job.id)
    with pytest.raises(JobNotFailed) as caught:
        store.retry(job.id, "second")
    assert caught.value.fields["job_status"] == end
    assert len(store.page().jobs) == 1


def test_a_retry_of_a_job_whose_emitter_finished_runs_only_what_is_not_done(store, make_job):
    # Given a fan-out of five in a window of two, of which 1 and 3 are done when 0 fails
    job = put(store, make_job("a", "b*", "c", window=2))
    source = emitter(store, job, [b"0", b"1", b"2", b"3"])
    run(store, part(job, 1, source.fence, 1), b"one", artifacts=[artifact("of-1")])
    store.emit(source, 4, b"4")
    store.finish(source, b"list", emitted=5)
    run(store, part(job, 1, source.fence, 2), b"two")
    run(store, part(job, 1, source.fence, 3), b"three")
    break_part(store, part(job, 1, source.fence, 0))
    # When it is retried
    accepted = store.retry(job.id, "second")
    new, generation = accepted.job, source.fence
    # Then the undone ones come again, with their payloads, in the window
    assert keys(accepted.rings) == [part(new, 1, generation, 0), part(new, 1, generation, 4)]
    stage = new.stages[1]
    counted = (stage.total, stage.done, stage.dead, stage.closed, stage.generation, stage.status)
    assert counted == (5, 3, 0, True, generation, "waiting")
    assert [output.index for output in store.outputs("second", 1)] == [1, 2, 3]
    assert store.artifacts("second") == [artifact("of-1")]
    claim = take(store, part(new, 1, generation, 0))
    assert (claim.payload, claim.failures) == (b"0", 0)
    store.finish(claim, b"zero")
    assert take(store, part(new, 1, generation, 4)).payload == b"4"


def test_a_retry_of_a_job_whose_emitter_did_not_finish_emits_again(store, make_job):
    # Given an emitter that fails after a part of it was done
    job = put(store, make_job("a", "b*", "c"))
    source = emitter(store, job, [b"0", b"1"])
    run(store, part(job, 1, source.fence, 0), artifacts=[artifact("old")])
    store.fail(source, Cause.BAD_INPUT, broke("a"))
    # When it is retried
    accepted = store.retry(job.id, "second")
    # Then the emitter runs again, and nothing of the fan-out was adopted
    assert keys(accepted.rings) == [part(accepted.job)]
    assert (accepted.job.stages[1].total, accepted.job.stages[1].closed) == (0, False)
    assert (store.outputs("second", 1), store.artifacts("second")) == ([], [])
    again = emitter(store, accepted.job, [b"0"])
    assert indexes(run(store, part(accepted.job, 1, again.fence, 0)).rings) == []
    assert keys(store.finish(again, b"", emitted=1).rings) == [part(accepted.job, 2)]


def test_a_retry_after_too_few_succeeded_runs_the_dead_ones_again(store, make_job):
    # Given a stage that needs half of its two parts, and both died
    job = put(store, make_job("a", StagePlan("b", "b", each=True, min_success=0.5), "c"))
    source = emitter(store, job, [b"0", b"1"])
    store.finish(source, b"", emitted=2)
    for index in range(2):
        break_part(store, part(job, 1, source.fence, index))
    assert status(store, job) is Status.FAILED
    # When it is retried
    accepted = store.retry(job.id, "second")
    # Then both run again
    assert indexes(accepted.rings) == [0, 1]
    assert (accepted.job.stages[1].dead, store.outputs("second", 1)) == (0, [])
    generation = accepted.job.stages[1].generation
    run(store, part(accepted.job, 1, generation, 0))
    last = run(store, part(accepted.job, 1, generation, 1))
    assert keys(last.rings) == [part(accepted.job, 2)]
