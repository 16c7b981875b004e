"""What every store keeps: which rings are owed, by confirmation, by deficit and by the slow fallback."""

from __future__ import annotations

import time

from jobs.model import Cause, Change, PartKey, Submission
from jobs.store import RING_FALLBACK_MAX_S, RING_FALLBACK_S
from jobs.stores import postgres_sweep
from tests.ageing import age
from tests.store_steps import at_once, break_part, emitter, indexes, keys, part, put, take


def accept(store, jobs):
    """Accept some jobs; the rings they are owed."""
    return [ring for answer in store.add([Submission(job) for job in jobs]) for ring in answer.rings]


def test_a_ring_that_nobody_confirmed_is_owed_after_two_seconds(store, store_url, make_job):
    # Given a job that was just accepted
    (ring,) = accept(store, [make_job(priority=9)])
    # Then nobody owes a ring yet: its gateway is about to give it
    assert store.unrung(10) == []
    # When two seconds pass without a confirm
    age(store_url, 2.1)
    # Then it is owed, once in two seconds
    assert store.unrung(10) == [ring]
    assert store.unrung(10) == []
    age(store_url, 2.1)
    assert store.unrung(10) == [ring]
    assert store.rung_counts().get("only", 0) == 0


def test_unrung_parts_come_oldest_first_over_all_queues(store, store_url, make_job):
    # Given six jobs on three queues, a second apart
    rings = []
    for queue in ("m", "z", "a", "z", "m", "a"):
        rings += accept(store, [make_job(queue)])
        age(store_url, 1)
    age(store_url, 10)
    # When they are asked for in bounded steps
    # Then they come in the order they became ready
    assert [*store.unrung(4), *store.unrung(4)] == rings


def test_a_confirmed_ring_is_not_repeated_for_a_minute(store, store_url, make_job):
    # Given a ring that was confirmed, twice
    rings = accept(store, [make_job()])
    store.rung(rings)
    store.rung(rings)
    store.rung([])
    # Then it counts as rung
    assert store.rung_counts()["only"] == 1
    age(store_url, RING_FALLBACK_S - 5)
    assert (store.unrung(10), store.overdue("only", 10)) == ([], [])
    # When a minute has passed without anybody claiming it, it is due again
    age(store_url, 6)
    assert store.overdue("elsewhere", 10) == []
    assert store.overdue("only", 10) == rings
    assert store.overdue("only", 10) == []
    assert store.rung_counts()["only"] == 1


def test_the_fallback_doubles_up_to_an_hour(store, store_url, make_job):
    # Given a rung part that nobody claims
    rings = accept(store, [make_job()])
    store.rung(rings)
    wait = RING_FALLBACK_S
    age(store_url, wait + 1)
    for _ in range(8):
        # When it is rung again, its next interval is twice as long, at most an hour
        assert store.overdue("only", 10) == rings
        wait = min(2 * wait, RING_FALLBACK_MAX_S)
        age(store_url, wait - 5)
        assert store.overdue("only", 10) == []
        age(store_url, 6)
    assert wait == RING_FALLBACK_MAX_S


def test_becoming_ready_anew_starts_the_interval_over(store, store_url, make_job):
    # Given a part that was rung again and again, then claimed and failed
    rings = accept(store, [make_job()])
    store.rung(rings)
    for wait in (61, 121, 241):
        age(store_url, wait)
        assert store.overdue("only", 10) == rings
    break_part(store, rings[0].at, Cause.GIVEN_BACK)
    # Then it is unrung, and once rung its interval is a minute again
    assert store.rung_counts().get("only", 0) == 0
    age(store_url, 2.1)
    assert store.unrung(10) == rings
    store.rung(rings)
    age(store_url, 61)
    assert store.overdue("only", 10) == rings


def test_overdue_rings_come_oldest_first_and_in_bounded_steps(store, store_url, make_job):
    rings = []
    for _ in range(5):
        new = accept(store, [make_job()])
        store.rung(new)
        rings += new
        age(store_url, 1)
    age(store_url, 61)
    assert [*store.overdue("only", 3), *store.overdue("only", 3)] == rings


def test_what_is_no_longer_ready_is_passed_over(store, store_url, make_job):
    # Given rings of a claimed, a finished, a dismissed, an unknown and a ready part
    jobs = [make_job() for _ in range(4)]
    rings = accept(store, jobs)
    take(store, part(jobs[0]))
    store.finish(take(store, part(jobs[1])), b"")
    store.dismiss(jobs[2].id)
    strange = accept(store, [make_job()])
    age(store_url, 61)
    store.dismiss(strange[0].at.job_id)
    store.remove(strange[0].at.job_id)
    # When all of them are confirmed late
    store.rung([*rings, *strange])
    # Then only the ready one counts
    assert store.rung_counts()["only"] == 1
    age(store_url, 61)
    assert store.overdue("only", 10) == [rings[3]]


def test_a_part_outside_the_window_is_owed_nothing(store, store_url, make_job):
    # Given three emitted parts in a window of one
    job = put(store, make_job("a", "b*", window=1))
    source = emitter(store, job, [b"", b""])
    # When much time passes
    age(store_url, 10)
    # Then only the first is owed a ring
    assert keys(store.unrung(10)) == [part(job, 1, source.fence, 0)]


def test_missing_rings_are_what_the_queue_lacks(store, store_url, make_job):
    # Given five rung parts, rung a second apart, and one that is not rung
    rings = []
    for _ in range(5):
        new = accept(store, [make_job()])
        store.rung(new)
        rings += new
        age(store_url, 1)
    accept(store, [make_job()])
    # When the queue holds as many messages or more, nothing is missing, and that costs no turn
    assert (store.missing("only", 5, 10), store.missing("only", 9, 10)) == ([], [])
    # When it holds three, the two that are due soonest are missing
    assert store.missing("only", 3, 10) == rings[:2]
    # Then the queue's turn is over for a second, whoever asks
    assert store.missing("only", 0, 10) == []
    age(store_url, 1.1)
    assert store.missing("only", 3, 10) == rings[2:4]
    # and no more than the limit comes
    age(store_url, 1.1)
    assert len(store.missing("only", 0, 3)) == 3


def test_a_missing_ring_counts_as_rung_anew(store, store_url, make_job):
    rings = accept(store, [make_job()])
    store.rung(rings)
    assert store.missing("only", 0, 10) == rings
    age(store_url, 61)
    assert store.overdue("only", 10) == []
    age(store_url, 60)
    assert store.overdue("only", 10) == rings


def test_many_sweepers_ring_a_deficit_once(store, make_job):
    # Given ten rung parts on an empty queue
    store.rung(accept(store, [make_job() for _ in range(10)]))
    # When six sweepers see the deficit at the same moment
    answers = at_once(*[lambda: store.missing("only", 4, 10)] * 6)
    # Then one of them rings the six that are missing
    assert sorted(len(answer) for answer in answers) == [0, 0, 0, 0, 0, 6]


def test_two_queues_take_turns_of_their_own(store, make_job):
    store.rung(accept(store, [make_job("a"), make_job("b")]))
    assert (len(store.missing("a", 0, 10)), len(store.missing("b", 0, 10))) == (1, 1)


def test_rung_parts_are_counted_by_queue_until_they_are_claimed(store, make_job):
    jobs = [make_job("a"), make_job("a"), make_job("b"), make_job("c")]
    rings = accept(store, jobs)
    store.rung(rings[:3])
    assert {queue: n for queue, n in store.rung_counts().items() if n} == {"a": 2, "b": 1}
    take(store, part(jobs[0]))
    store.dismiss(jobs[2].id)
    assert {queue: n for queue, n in store.rung_counts().items() if n} == {"a": 1}


def test_a_long_queue_need_not_be_counted_whole_and_what_it_lacks_is_found(store, store_url, make_job, monkeypatch):
    # Given 60 rung parts, where 50 are counted at least
    monkeypatch.setattr(postgres_sweep, "RUNG_COUNTED", 50)
    rings = accept(store, [*(make_job() for _ in range(60)), make_job("other")])
    store.rung(rings)
    counted = store.rung_counts()
    assert 50 <= counted["only"] <= (60 if store_url.startswith("redis") else 50)
    assert counted["other"] == 1
    # Then the rings that are missing are found, however few messages wait
    for messages, missing in ((0, 10), (45, 10), (55, 5), (60, 0)):
        age(store_url, 1.1)
        assert len(store.missing("only", messages, 10)) == missing


def test_a_due_part_is_owed_like_any_other(store, store_url, make_job):
    # Given a part whose back-off is over
    job = put(store, make_job())
    break_part(store, part(job), Cause.FAILURE, delay_s=5)
    age(store_url, 6)
    rings = store.due(10)
    # When its ring is lost, it comes again
    age(store_url, 2.1)
    assert store.unrung(10) == rings
    store.rung(rings)
    assert store.rung_counts()["only"] == 1


def test_a_full_backlog_is_not_rung_again_and_again(store, store_url, make_job):
    # Given 300 rung jobs whose messages all are on the queue
    rings = accept(store, [make_job() for _ in range(300)])
    store.rung(rings)
    # When the sweep comes by every second for half a minute
    for _ in range(30):
        assert (store.unrung(500), store.missing("only", 300, 500), store.overdue("only", 500)) == ([], [], [])
        age(store_url, 1)


def test_watchers_hear_of_jobs_that_change(store, make_job):
    # Given two watchers
    job = put(store, make_job())
    watchers = [store.watch(timeout_s=0.2) for _ in range(2)]
    for watcher in watchers:
        assert next(watcher) is None  # nothing changed, and it says so in time
    # When a job is dismissed
    store.dismiss(job.id)
    # Then both hear of it
    for watcher in watchers:
        heard = [next(watcher) for _ in range(3)]
        assert Change(job.id, is_final=True) in heard
        watcher.close()


def test_watchers_are_told_which_change_is_the_last(store, make_job):
    # Given a watcher and a job of one part
    job = put(store, make_job())
    watcher = store.watch(timeout_s=0.2)
    assert next(watcher) is None
    # When the job runs and ends
    claim = store.claim(PartKey(job.id, 0), "a", "token", 60)
    store.finish(claim, b"=1")
    # Then the watcher hears of both, in order, and which was the end
    heard = [change for change in (next(watcher) for _ in range(4)) if change]
    watcher.close()
    assert list(dict.fromkeys(heard))[-1] == Change(job.id, is_final=True)
    assert Change(job.id, is_final=False) in heard


def test_a_watcher_is_not_kept_waiting(store):
    watcher = store.watch(timeout_s=0.1)
    start = time.monotonic()
    assert [next(watcher) for _ in range(3)] == [None] * 3
    assert time.monotonic() - start < 2
    watcher.close()


def test_pinging_a_store_that_is_there(store):
    assert store.ping() is None


def test_emitted_parts_can_all_be_found_by_their_rings(store, store_url, make_job):
    # Given a fan-out whose emit answers were all lost
    job = put(store, make_job("a", "b*", window=3))
    source = emitter(store, job, [b""] * 5)
    found = []
    # When the sweep's rings are all that workers have
    for _ in range(5):
        age(store_url, 3)
        for ring in store.unrung(10):
            found.append(ring.at.index)
            store.finish(take(store, ring.at), b"")
    # Then no part is stranded
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert indexes(store.finish(source, b"", emitted=5).rings) == []
