"""What every store keeps: claims, leases, finishing, failing, and what a repeated or late call is answered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.errors import ClaimLost, JobNotFailed
from jobs.model import Cause, Ended, Output, PartKey, StagePlan, Standing, Status
from jobs.store import BACK_OFF_MAX_S
from tests.ageing import age
from tests.store_steps import (
    artifact,
    at_once,
    break_part,
    broke,
    data,
    emitter,
    events,
    indexes,
    keys,
    part,
    put,
    run,
    status,
    take,
)

OPAQUE = (b"", b"\x00", b"\x80\x04pickle?", b"\xff\xfe\xc3(", bytes(range(256)) * 300, b"[]")


# -- claiming --------------------------------------------------------------------------------------------------


def test_a_claim_makes_the_job_run_and_holds_the_part(store, make_job):
    # Given an accepted job with a deadline
    job = put(store, make_job("a", "b", params={"x": 1}, input={"url": "u"}, deadline_s=100))
    # When its part is claimed
    claim = store.claim(part(job), "worker", "t", 15, device="cuda:0")
    # Then the claim says all that a worker needs
    assert (claim.at, claim.fence, claim.token, claim.pipeline) == (part(job), 1, "t", "echo")
    assert (claim.params, claim.input, claim.plan, claim.payload) == ({"x": 1}, {"url": "u"}, job.plan, None)
    assert (claim.failures, claim.losses, claim.deadline, claim.family) == (0, 0, job.deadline, job.id)
    assert claim.stage.name == "a"
    # and the record shows it
    found = store.get(job.id)
    assert (found.status, found.stages[0].device, found.stages[0].status) == (Status.RUNNING, "cuda:0", "running")
    assert found.started == pytest.approx(claim.lease_until - 15, abs=0.1)
    assert events(store, job) == ["accepted", "running", "stage_started"]
    assert store.events(job.id)[-1].data == {"stage": "a"}
    assert store.counts() == {("echo", Status.RUNNING): 1}


def test_a_claim_that_is_repeated_is_the_same_claim(store, make_job):
    # Given a claim whose answer was lost
    job = put(store, make_job())
    first = store.claim(part(job), "worker", "t", 60)
    # When it is asked for again, later
    again = store.claim(part(job), "worker", "t", 60)
    # Then it is the first one, and nothing was written twice
    assert again == first
    assert events(store, job) == ["accepted", "running", "stage_started"]


def test_there_is_nothing_to_claim(store, make_job):
    # Given a part that another worker holds
    job = put(store, make_job("a", "b*", "c"))
    claim = take(store, part(job))
    # Then neither it, nor what is blocked, void or unknown can be claimed
    for at in (part(job), part(job, 1), part(job, 2), part(job, 3), part(job, 0, 1), part(job, 0, 0, 1)):
        assert store.claim(at, "other", "t2", 60) is None
    assert store.claim(PartKey("nobody", 0), "other", "t2", 60) is None
    # nor when it is finished
    store.finish(claim, b"", emitted=0)
    assert store.claim(part(job), "other", "t2", 60) is None


def test_a_part_whose_lease_is_over_is_not_claimed_before_its_loss_is_counted(store, store_url, make_job):
    # Given a claim whose lease ran out
    job = put(store, make_job())
    stale = take(store, part(job), lease_s=10)
    age(store_url, 11)
    # When another worker asks
    # Then it gets nothing until the sweep has counted the loss
    assert store.claim(part(job), "other", "t2", 60) is None
    (ended,) = store.end_leases(10, grace_s=0)
    assert (ended.status, keys(ended.rings)) == (Status.RUNNING, [part(job)])
    fresh = store.claim(part(job), "other", "t2", 60)
    assert (fresh.fence, fresh.losses, fresh.failures) == (stale.fence + 1, 1, 0)


def test_a_job_past_its_deadline_is_not_claimed(store, store_url, make_job):
    # Given a job whose deadline has passed, but which nobody has ended yet
    job = put(store, make_job(deadline_s=10))
    assert job.deadline == pytest.approx(job.created + 10)
    age(store_url, 11)
    # Then it cannot be claimed
    assert store.claim(part(job), "worker", "t", 60) is None


def test_a_token_that_has_ended_its_attempt_claims_nothing(store, make_job):
    # Given a claim that was given back, so that its part is ready again
    job = put(store, make_job())
    claim = take(store, part(job))
    store.fail(claim, Cause.GIVEN_BACK, broke())
    # When the claim's own command arrives once more, late
    late = store.claim(part(job), "worker", claim.token, 60)
    # Then it takes nothing: its finish would be taken for a repeated one
    assert late is None
    assert run(store, part(job)).status is Status.SUCCESSFUL


def test_two_claimers_of_one_part_never_both_win(store, make_job):
    # Given fifty parts, one after the other
    for n in range(50):
        at = part(put(store, make_job()))
        # When four workers claim one at the same moment
        calls = [lambda at=at, n=n, w=w: store.claim(at, f"w{w}", f"t{n}.{w}", 60) for w in range(4)]
        won = [claim for claim in at_once(*calls) if claim is not None]
        # Then exactly one has it
        assert [claim.fence for claim in won] == [1], won


def test_further_parts_are_claimed_oldest_first_and_of_the_same_stage_only(store, make_job):
    # Given three jobs whose inference is ready, one of another pipeline, and one with its first stage ready
    jobs = [put(store, make_job("a", "b")) for _ in range(3)]
    other = put(store, make_job("a", "b", pipeline="other"))
    for job in (*jobs, other):
        run(store, part(job))
    put(store, make_job("a", "b"))
    like = take(store, part(jobs[0], 1))
    # When more of the same is asked for, twice with the same tokens
    claims = store.claim_more(like, "worker", ["m1", "m2", "m3"], 60, "cpu")
    again = store.claim_more(like, "worker", ["m1", "m2", "m3"], 60, "cpu")
    # Then there are two, oldest first, as good as any claim, and the repeated call took no more
    assert [(c.at, c.token, c.fence) for c in claims] == [(part(jobs[1], 1), "m1", 1), (part(jobs[2], 1), "m2", 1)]
    assert again == claims
    assert store.claim_more(like, "worker", [], 60) == []
    assert store.claim(part(jobs[1], 1), "w", "m1", 60) == claims[0]
    assert store.finish(claims[0], b"").status is Status.SUCCESSFUL
    # and fewer tokens take fewer parts
    assert store.claim(part(other, 1), "w", "t", 60) is not None


def test_a_repeated_claim_of_further_parts_answers_in_the_same_order(store, make_job):
    # Given parts that became ready in another order than that of their jobs
    jobs = [put(store, make_job("a")) for _ in range(4)]
    like = take(store, part(jobs[0]))
    break_part(store, part(jobs[1]), Cause.GIVEN_BACK)
    # When all are claimed, and the reply is lost
    claims = store.claim_more(like, "worker", ["m3", "m2", "m1"], 60)
    # Then the repeated call says the same
    assert [claim.at.job_id for claim in claims] == [jobs[n].id for n in (2, 3, 1)]
    assert store.claim_more(like, "worker", ["m3", "m2", "m1"], 60) == claims


def test_further_parts_may_be_of_the_same_job(store, make_job):
    # Given six emitted parts in a window of four
    job = put(store, make_job("a", "b*", window=4))
    source = emitter(store, job, [b"%d" % n for n in range(6)])
    like = take(store, part(job, 1, source.fence, 0))
    # When five more are asked for
    claims = store.claim_more(like, "worker", [f"m{n}" for n in range(5)], 60)
    # Then the window's other three are taken, each with its payload
    assert [(claim.at.index, claim.payload) for claim in claims] == [(1, b"1"), (2, b"2"), (3, b"3")]


# -- leases ----------------------------------------------------------------------------------------------------


def test_a_renewal_learns_where_each_claim_stands(store, store_url, make_job):
    # Given a held claim, one that was finished, one of a dismissed job, one whose part was taken anew, an unknown one
    job, done, gone, lost = (put(store, make_job("a", "b")) for _ in range(4))
    held, finished, ended, stale = (take(store, part(j), lease_s=10) for j in (job, done, gone, lost))
    store.finish(finished, b"")
    store.dismiss(gone.id)
    store.fail(stale, Cause.LOSS, broke("a"))
    take(store, part(lost))
    unknown = replace(held, at=PartKey("nobody", 0))
    # When all are renewed in one call
    standings = store.renew([held, finished, ended, stale, unknown], 60)
    # Then each has its answer
    assert standings == [Standing.HELD, Standing.LOST, Standing.ENDED, Standing.LOST, Standing.ENDED]
    # and the held one's lease is longer now
    age(store_url, 30)
    assert store.end_leases(10, grace_s=0) == []
    assert store.renew([], 60) == []


def test_a_lease_that_ran_out_but_was_not_ended_is_renewed(store, store_url, make_job):
    # Given a claim whose lease ran out a while ago
    job = put(store, make_job())
    claim = take(store, part(job), lease_s=10)
    age(store_url, 100)
    # When its worker is back in time
    assert store.renew([claim], 60) == [Standing.HELD]
    # Then nothing was lost
    assert store.end_leases(10, grace_s=0) == []
    assert store.finish(claim, b"").status is Status.SUCCESSFUL


def test_progress_is_kept_and_told_when_it_moved(store, make_job):
    # Given a running stage of two
    job = put(store, make_job("a", "b"))
    claim = take(store, part(job))
    # When its progress is told, among them what it was already
    for told in (0.0, 0.25, 0.25, 0.5):
        assert store.renew([claim], 60, {claim.token: told, "other": 0.9}) == [Standing.HELD]
    store.renew([claim], 60)
    # Then the record has the last one, and each move is an event
    found = store.get(job.id)
    assert (found.stages[0].progress, found.progress) == (0.5, 0.25)
    assert data(store, job, "progress") == [{"stage": "a", "progress": 0.25}, {"stage": "a", "progress": 0.5}]
    # and a finished stage is whole
    store.finish(claim, b"")
    assert (store.get(job.id).stages[0].progress, store.get(job.id).progress) == (1.0, 0.5)


def test_a_lost_lease_is_counted_once_and_its_part_comes_again(store, store_url, make_job):
    # Given two leases of which one ran out
    job, other = put(store, make_job()), put(store, make_job())
    stale = take(store, part(job), lease_s=10)
    take(store, part(other), lease_s=100)
    age(store_url, 11)
    # When the sweep comes by twice
    (ended,) = store.end_leases(10, grace_s=0)
    assert store.end_leases(10, grace_s=0) == []
    # Then one loss is counted, and told
    assert (ended.status, keys(ended.rings)) == (Status.RUNNING, [part(job)])
    assert store.get(job.id).stages[0].losses == 1
    (told,) = data(store, job, "attempt_failed")
    assert (told["cause"], told["code"], told["stage"], told["index"]) == ("loss", "worker-lost", "only", 0)
    assert told["fence"] == stale.fence
    # and the late worker is refused whatever it does
    for late in (lambda: store.finish(stale, b""), lambda: store.fail(stale, Cause.FAILURE, broke())):
        with pytest.raises(ClaimLost):
            late()
    assert store.renew([stale], 60) == [Standing.LOST]
    assert store.get(job.id).stages[0].losses == 1


def test_a_lost_claim_does_not_touch_the_lease_of_the_one_that_followed(store, store_url, make_job):
    # Given a part that was lost and claimed anew, even with the same token: a repeat that arrived late
    job = put(store, make_job())
    stale = store.claim(part(job), "worker", "t", 10)
    age(store_url, 11)
    store.end_leases(10, grace_s=0)
    fresh = store.claim(part(job), "worker", "t", 60)
    # When the stale claim is renewed for no time at all
    assert store.renew([stale], 0) == [Standing.LOST]
    # Then the fresh one still holds
    assert store.end_leases(10, grace_s=0) == []
    assert store.renew([fresh], 60) == [Standing.HELD]


def test_a_part_that_is_lost_again_and_again_waits_longer_each_time(store, store_url, make_job):
    # Given a part that may be lost often
    job = put(store, make_job(max_losses=20))
    # When its leases run out one after the other
    take(store, part(job), lease_s=10)
    age(store_url, 11)
    (first,) = store.end_leases(10, grace_s=0, delay_s=2)
    waits = []
    for n in range(1, 9):
        take(store, part(job), lease_s=10)
        age(store_url, 11)
        ended = store.end_leases(10, grace_s=0, delay_s=2)
        age(store_url, min(2 * (2**n - 1), BACK_OFF_MAX_S) - 1)
        early = store.due(10)
        age(store_url, 1.5)
        waits.append((ended, early, keys(store.due(10))))
    # Then it is ready at once the first time, and waits for 2, 6, 14 s ... five minutes from then on
    assert keys(first.rings) == [part(job)]
    assert waits == [([Ended(Status.RUNNING)], [], [part(job)])] * 8


def test_leases_are_not_ended_while_the_store_is_fresh(store, store_url, make_job):
    # Given a lease that ran out, in a store that was started a moment ago
    job = put(store, make_job())
    claim = take(store, part(job), lease_s=10)
    age(store_url, 100)
    # When the sweep comes by with a grace that is longer than the store is up
    # Then nothing is lost, and the worker goes on
    assert store.end_leases(10, grace_s=1e6) == []
    assert store.renew([claim], 60) == [Standing.HELD]


def test_leases_of_a_job_that_one_of_them_fails_are_not_ended_further(store, store_url, make_job):
    # Given three parts of a job whose leases ran out, none of which may be lost
    job = put(store, make_job("a", "b*", max_losses=1))
    source = take(store, part(job), lease_s=1_000)
    for index in range(3):
        store.emit(source, index, b"")
        take(store, part(job, 1, source.fence, index), lease_s=10)
    age(store_url, 11)
    # When the sweep comes by
    ended = store.end_leases(10, grace_s=0)
    # Then the first loss ends the job, and nothing comes after its end
    assert ended == [Ended(Status.FAILED)]
    assert events(store, job)[-2:] == ["attempt_failed", "failed"]
    assert store.get(job.id).stages[1].losses == 1
    age(store_url, 100)
    assert (store.unrung(10), store.end_leases(10, grace_s=0)) == ([], [])


def test_leases_are_ended_in_bounded_steps(store, store_url, make_job):
    # Given five leases that ran out
    for _ in range(5):
        take(store, part(put(store, make_job())), lease_s=10)
    age(store_url, 11)
    # When they are ended three at a time
    assert [len(store.end_leases(3, grace_s=0)) for _ in range(3)] == [3, 2, 0]


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


# -- retrying --------------------------------------------------------------------------------------------------


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
