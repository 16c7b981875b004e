"""What every store keeps: claims and leases, and what a repeated or late call is answered."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from jobs.errors import ClaimLost
from jobs.model import Cause, Ended, PartKey, Standing, Status
from jobs.store import BACK_OFF_MAX_S
from jobs.trace import new
from tests.ageing import age
from tests.store_steps import (
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
    take,
)

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


def test_a_claim_tells_how_long_its_part_waited(store, make_job):
    # Given a part that has been ready for a while
    job = put(store, make_job())
    time.sleep(0.3)
    # When it is claimed
    claim = store.claim(part(job), "worker", "t", 60)
    # Then the claim tells the same as the record, also when its answer was lost
    assert claim.waited_s == pytest.approx(store.get(job.id).stages[0].waited_s, abs=0.002)
    assert 0.3 <= claim.waited_s < 2
    assert store.claim(part(job), "worker", "t", 60).waited_s == claim.waited_s


def test_a_trace_is_kept_in_the_record_and_told_with_every_claim(store, make_job):
    # Given a job that belongs to a trace, and one of an older version, which has none
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    job, older = put(store, make_job(trace=trace)), put(store, make_job())
    # Then record and claim tell it, and so does a retry
    assert (store.get(job.id).trace, store.get(older.id).trace) == (trace, "")
    claim = store.claim(part(job), "worker", "t", 60)
    assert (claim.trace, store.claim(part(older), "worker", "o", 60).trace) == (trace, "")
    store.fail(claim, Cause.BAD_INPUT, broke())
    again = store.retry(job.id, "again").job
    assert (again.trace, store.claim(part(again), "worker", "a", 60).trace) == (trace, trace)


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


@pytest.mark.parametrize("cause", [Cause.FAILURE, Cause.LOSS])
def test_a_part_that_ended_badly_is_no_further_part(store, make_job, cause):
    # Given three ready parts; an attempt at one of them broke or was lost, at another it was given back
    jobs = [put(store, make_job()) for _ in range(4)]
    store.fail(take(store, part(jobs[1])), cause, broke())
    store.fail(take(store, part(jobs[2])), Cause.GIVEN_BACK, broke())
    # When further parts are asked for
    claims = store.claim_more(take(store, part(jobs[0])), "worker", ["m1", "m2", "m3"], 60)
    # Then that one is left to whoever claims it by its name
    assert {claim.at for claim in claims} == {part(jobs[2]), part(jobs[3])}
    assert take(store, part(jobs[1])) is not None


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
    trace = new()
    job, other = put(store, make_job(trace=trace)), put(store, make_job())
    stale = take(store, part(job), lease_s=10)
    take(store, part(other), lease_s=100)
    age(store_url, 11)
    # When the sweep comes by twice
    (ended,) = store.end_leases(10, grace_s=0)
    assert store.end_leases(10, grace_s=0) == []
    # Then one loss is counted, and told
    assert (ended.status, keys(ended.rings)) == (Status.RUNNING, [part(job)])
    assert store.get(job.id).stages[0].losses == 1
    # and with it the attempt, which nobody else may know any more
    lost = ended.lost
    assert (lost.at, lost.fence, lost.pipeline, lost.stage) == (stale.at, stale.fence, stale.pipeline, stale.stage)
    assert (lost.trace, lost.ended - lost.began) == (trace, pytest.approx(11, abs=2))
    assert lost.ended == pytest.approx(store.now(), abs=5)
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
