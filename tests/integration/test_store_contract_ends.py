"""What every store keeps: how attempts end, well or badly, and what a repeated or late call is answered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.errors import ClaimLost
from jobs.model import Cause, Ended, Output, Standing, Status
from tests.ageing import age
from tests.store_steps import (
    artifact,
    at_once,
    break_part,
    broke,
    data,
    emitter,
    events,
    keys,
    part,
    put,
    run,
    status,
    take,
)

OPAQUE = (b"", b"\x00", b"\x80\x04pickle?", b"\xff\xfe\xc3(", bytes(range(256)) * 300, b"[]")


# -- finishing -------------------------------------------------------------------------------------------------


def test_finishing_opens_the_next_stage_and_the_last_one_ends_the_job(store, make_job):
    # Given a job of two stages
    job = put(store, make_job("a", "b", priority=9))
    # When the first is finished
    claim = take(store, part(job))
    ended = store.finish(claim, b"one")
    # Then the second is ready
    assert (ended.status, keys(ended.rings)) == (Status.RUNNING, [part(job, 1)])
    assert (ended.rings[0].task, ended.rings[0].priority) == ("echo.b", 9)
    # When that is finished too
    last = run(store, part(job, 1), b"two")
    # Then the job is successful
    assert last == Ended(Status.SUCCESSFUL)
    found = store.get(job.id)
    assert (found.status, found.progress, found.error) == (Status.SUCCESSFUL, 1.0, None)
    assert [(s.status, s.done, s.total, s.dead) for s in found.stages] == [("finished", 1, 1, 0)] * 2
    assert found.finished >= found.started >= found.created
    assert (store.outputs(job.id, 0), store.outputs(job.id, 1)) == ([Output(0, b"one")], [Output(0, b"two")])
    assert store.events(job.id)[-1].type == "successful"
    assert store.events(job.id)[-1].data == {}
    assert store.counts() == {("echo", Status.SUCCESSFUL): 1}


def test_a_finish_that_is_repeated_gets_the_first_answer(store, make_job):
    # Given finishes whose answers were lost, the last one of a job that has ended since
    job = put(store, make_job("a", "b"))
    one = take(store, part(job))
    first = store.finish(one, b"one", [artifact("x")])
    # When each is repeated, before and after the job moved on, with whatever it carries now
    assert store.finish(one, b"another") == first
    two = take(store, part(job, 1))
    assert store.finish(one, b"another") == first
    last = store.finish(two, b"two")
    assert store.finish(two, b"two") == last == Ended(Status.SUCCESSFUL)
    assert store.finish(one, b"another") == first
    # Then everything happened once
    assert store.outputs(job.id, 0) == [Output(0, b"one")]
    assert events(store, job).count("stage_finished") == 2
    assert events(store, job).count("artifact") == 1
    assert [stage.done for stage in store.get(job.id).stages] == [1, 1]


def test_only_the_living_claim_may_finish(store, make_job):
    # Given a claim that was lost, and the one that followed it
    job = put(store, make_job("a", "b"))
    stale = take(store, part(job))
    store.fail(stale, Cause.LOSS, broke("a"))
    fresh = take(store, part(job))
    # When a stale fence, a foreign token, or a token with another fence finish
    # Then they are refused and change nothing
    foreign = (
        replace(fresh, token="guessed"),
        replace(fresh, fence=fresh.fence + 1),
        replace(fresh, fence=stale.fence),
    )
    for claim in foreign:
        with pytest.raises(ClaimLost):
            store.finish(claim, b"wrong")
        with pytest.raises(ClaimLost):
            store.fail(claim, Cause.BAD_INPUT, broke("a"))
        assert store.renew([claim], 60) == [Standing.LOST]
    assert store.outputs(job.id, 0) == []
    store.finish(fresh, b"right")
    with pytest.raises(ClaimLost):
        store.finish(replace(fresh, token="guessed"), b"wrong")
    assert store.outputs(job.id, 0) == [Output(0, b"right")]


def test_nothing_moves_a_final_job(store, make_job):
    # Given a dismissed job, and who held its part
    job = put(store, make_job("a", "b*"))
    claim = take(store, part(job))
    before = store.dismiss(job.id)
    # When the holder goes on
    # Then it is told that the job has ended, and nothing changes
    assert store.renew([claim], 60, {claim.token: 0.5}) == [Standing.ENDED]
    for late in (
        lambda: store.finish(claim, b"", emitted=0),
        lambda: store.fail(claim, Cause.BAD_INPUT, broke("a")),
        lambda: store.emit(claim, 0, b"x"),
    ):
        with pytest.raises(ClaimLost):
            late()
    assert store.get(job.id) == before


def test_a_dismissal_and_a_finish_at_the_same_moment_agree_on_one_end(store, make_job):
    for _ in range(20):
        # Given a job whose last part is about to be finished
        job = put(store, make_job())
        claim = take(store, part(job))
        # When it is finished and dismissed at once
        finished, dismissed = at_once(lambda c=claim: store.finish(c, b""), lambda i=job.id: store.dismiss(i))
        # Then one of them was first, and both know it
        final = store.get(job.id)
        assert dismissed.status is final.status
        if final.status is Status.SUCCESSFUL:
            assert finished == Ended(Status.SUCCESSFUL)
        else:
            assert (final.status, type(finished)) == (Status.DISMISSED, ClaimLost)
        assert events(store, job)[-1] == final.status.value


def test_outputs_and_payloads_are_opaque_bytes(store, make_job):
    # Given bytes that no text column and no JSON would take
    job = put(store, make_job("a", "b*", "c", window=len(OPAQUE)))
    source = emitter(store, job, OPAQUE)
    # When they are emitted, claimed, finished and read
    claims = [take(store, part(job, 1, source.fence, index)) for index in range(len(OPAQUE))]
    for claim in claims:
        store.finish(claim, claim.payload)
    store.finish(source, b"\x00\xff", emitted=len(OPAQUE))
    # Then they are what they were
    assert [claim.payload for claim in claims] == list(OPAQUE)
    assert store.outputs(job.id, 1) == [Output(index, payload) for index, payload in enumerate(OPAQUE)]
    assert store.outputs(job.id, 0) == [Output(0, b"\x00\xff")]


def test_artifacts_are_listed_by_name_and_the_later_of_two_stands(store, make_job):
    # Given two stages that keep files, two of them of one name
    job = put(store, make_job("a", "b"))
    run(store, part(job), artifacts=[artifact("z.txt", size=1), artifact("same", size=1), artifact("a b ü", size=2)])
    # When the second one keeps the name again
    run(store, part(job, 1), artifacts=[artifact("same", "jobs/x/later", size=9)])
    # Then the list is by name and has the later one
    expected = [artifact("a b ü", size=2), artifact("same", "jobs/x/later", size=9), artifact("z.txt", size=1)]
    assert store.artifacts(job.id) == expected
    assert [told["name"] for told in data(store, job, "artifact")] == ["z.txt", "same", "a b ü", "same"]


def test_a_failed_attempt_keeps_no_artifact(store, make_job):
    job = put(store, make_job())
    break_part(store, part(job), Cause.FAILURE)
    assert store.artifacts(job.id) == []


# -- failing ---------------------------------------------------------------------------------------------------


def test_bad_input_ends_the_job_with_its_message(store, make_job):
    # Given a claimed part
    job = put(store, make_job("a", "b"))
    claim = take(store, part(job))
    error = broke("a", detail="The file is not a video.")
    # When it says that its input is bad, twice
    first = store.fail(claim, Cause.BAD_INPUT, error)
    again = store.fail(claim, Cause.BAD_INPUT, error)
    # Then the job failed of it, no counter moved, and it is told once
    assert first == again == Ended(Status.FAILED)
    found = store.get(job.id)
    assert (found.status, found.error, found.finished is not None) == (Status.FAILED, error, True)
    stage = found.stages[0]
    assert (stage.dead, stage.failures, stage.losses, stage.given_back) == (1, 0, 0, 0)
    assert events(store, job) == ["accepted", "running", "stage_started", "attempt_failed", "failed"]
    told = {"code": error.code, "detail": error.detail, "stage": "a", "index": 0}
    assert store.events(job.id)[-1].data == told
    assert store.events(job.id)[-2].data == {**told, "cause": "bad_input", "fence": 1}
    assert store.outputs(job.id, 0) == [Output(0, None, error)]


@pytest.mark.parametrize(
    ("cause", "limits", "counter"),
    [
        (Cause.FAILURE, {"max_failures": 3, "max_losses": 1}, "failures"),
        (Cause.LOSS, {"max_failures": 1, "max_losses": 3}, "losses"),
    ],
)
def test_a_part_is_tried_again_up_to_the_limit_of_its_counter(store, make_job, cause, limits, counter):
    # Given a part that may fail three times
    job = put(store, make_job(**limits))
    # When it fails twice
    for n in range(2):
        claim = take(store, part(job))
        assert (claim.fence, getattr(claim, counter)) == (n + 1, n)
        ended = store.fail(claim, cause, broke())
        # Then it is ready again, and repeating the fail counts nothing
        assert (ended.status, keys(ended.rings)) == (Status.RUNNING, [part(job)])
        assert store.fail(claim, cause, broke()) == ended
        assert getattr(store.get(job.id).stages[0], counter) == n + 1
    # When it fails for the third time, the job does
    assert break_part(store, part(job), cause) == Ended(Status.FAILED)
    assert getattr(store.get(job.id).stages[0], counter) == 3
    assert store.get(job.id).error == broke()


def test_failures_and_losses_are_counted_apart_and_giving_back_is_free(store, make_job):
    # Given a part with small limits
    job = put(store, make_job(max_failures=2, max_losses=2))
    # When it is given back many times, lost once and fails once
    for _ in range(6):
        ended = break_part(store, part(job), Cause.GIVEN_BACK)
        assert (ended.status, keys(ended.rings)) == (Status.RUNNING, [part(job)])
    break_part(store, part(job), Cause.LOSS)
    break_part(store, part(job), Cause.FAILURE)
    # Then it may still run
    claim = take(store, part(job))
    stage = store.get(job.id).stages[0]
    assert (claim.failures, claim.losses) == (1, 1)
    assert (stage.failures, stage.losses, stage.given_back, stage.dead) == (1, 1, 6, 0)
    assert store.finish(claim, b"").status is Status.SUCCESSFUL


def test_a_part_that_backs_off_is_not_claimed_before_its_time(store, store_url, make_job):
    # Given a part that failed with a delay
    job = put(store, make_job())
    claim = take(store, part(job))
    ended = store.fail(claim, Cause.FAILURE, broke(), delay_s=30)
    # Then it is neither ready nor owed
    assert ended == Ended(Status.RUNNING)
    assert store.fail(claim, Cause.FAILURE, broke(), delay_s=30) == ended
    age(store_url, 20)
    assert (store.claim(part(job), "w", "t", 60), store.due(10), store.unrung(10)) == (None, [], [])
    # When its time has come, the sweep rings it once and it can be claimed
    age(store_url, 11)
    assert keys(store.due(10)) == [part(job)]
    assert store.due(10) == []
    assert take(store, part(job)).failures == 1


def test_a_part_whose_time_has_come_is_claimed_without_the_sweep(store, store_url, make_job):
    # Given a part that backed off long enough, and a duplicate of its signature
    job = put(store, make_job())
    break_part(store, part(job), Cause.FAILURE, delay_s=30)
    age(store_url, 31)
    # When it is claimed before any sweep
    claim = take(store, part(job))
    # Then the sweep has nothing left to ring
    assert store.due(10) == []
    assert store.finish(claim, b"").status is Status.SUCCESSFUL


def test_due_parts_come_in_bounded_steps(store, store_url, make_job):
    for _ in range(5):
        break_part(store, part(put(store, make_job())), Cause.FAILURE, delay_s=30)
    age(store_url, 31)
    assert [len(store.due(3)) for _ in range(3)] == [3, 2, 0]


def test_a_deadline_fails_the_job_once(store, store_url, make_job):
    # Given a running job with a deadline, one with a later one, one without, and one that made it
    job, later, free, made = (put(store, make_job("a", deadline_s=s)) for s in (10, 1_000, None, 10))
    claim = take(store, part(job))
    run(store, part(made))
    # When the deadline has passed and the sweep comes by twice
    age(store_url, 11)
    assert (store.end_deadlines(10), store.end_deadlines(10)) == ([job.id], [])
    # Then the job failed of it and its holder is told
    found = store.get(job.id)
    assert (found.status, found.error.code) == (Status.FAILED, "deadline-passed")
    assert store.events(job.id)[-1].data["code"] == "deadline-passed"
    assert store.renew([claim], 60) == [Standing.ENDED]
    with pytest.raises(ClaimLost):
        store.finish(claim, b"")
    statuses = [status(store, one) for one in (later, free, made)]
    assert statuses == [Status.ACCEPTED, Status.ACCEPTED, Status.SUCCESSFUL]


def test_deadlines_are_ended_in_bounded_steps(store, store_url, make_job):
    jobs = [put(store, make_job(deadline_s=10)) for _ in range(3)]
    age(store_url, 11)
    assert len(store.end_deadlines(2)) == 2
    assert len(store.end_deadlines(2)) == 1
    assert {status(store, job) for job in jobs} == {Status.FAILED}


def test_the_time_that_parts_waited_and_ran_is_summed(store, store_url, make_job):
    # Given a part that waited for 10 s, ran for 5, failed, waited for 3 and ran for 2
    job = put(store, make_job())
    age(store_url, 10)
    claim = take(store, part(job))
    age(store_url, 5)
    store.fail(claim, Cause.FAILURE, broke())
    age(store_url, 3)
    claim = take(store, part(job))
    age(store_url, 2)
    store.finish(claim, b"")
    # Then the sums say so
    stage = store.get(job.id).stages[0]
    assert stage.waited_s == pytest.approx(13, abs=2)
    assert stage.ran_s == pytest.approx(7, abs=2)
