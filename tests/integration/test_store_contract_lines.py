"""What every store keeps: lines of waiting jobs, limits of pipelines, what is dead, and whose files are needed."""

from __future__ import annotations

import itertools
from contextlib import closing

import psycopg2
import pytest
import redis

from jobs.errors import JobNotFound, TooManyWaiting
from jobs.model import Accepted, Cause, PartKey, Place, Pressure, StagePlan, Status, Submission
from jobs.store import NO_WORKER_S, open_store
from jobs.stores.postgres_looks import OLDEST
from tests.ageing import age
from tests.conftest import new_job
from tests.store_steps import break_part, broke, emitter, indexes, keys, part, put, run, status, take

_numbers = itertools.count(1)


def limited(*stages, rate=None, concurrency=None, **fields):
    """A job of a pipeline that holds jobs back."""
    return new_job(*stages, pipeline="slow", rate=rate, concurrency=concurrency, **fields)


def accept(store, *jobs, **options):
    """The rings of some jobs, accepted one after the other."""
    return [store.add([Submission(job)], **options)[0].rings for job in jobs]


# -- how many may wait ---------------------------------------------------------------------------------------------


def test_a_job_beyond_the_limit_of_waiting_ones_is_refused_and_nothing_is_written(store, make_job):
    # Given two jobs that wait, and one that was begun
    first, begun = make_job(), make_job()
    put(store, begun)
    take(store, part(begun))
    put(store, first, key="k", digest="d")
    # When more come than may wait
    last, refused = make_job(), make_job()
    answers = store.add([Submission(last), Submission(refused)], most_waiting=2)
    # Then the first of them is accepted, the second is not, and leaves nothing
    assert isinstance(answers[0], Accepted)
    assert isinstance(answers[1], TooManyWaiting)
    assert answers[1].fields["waiting"] >= 1
    with pytest.raises(JobNotFound):
        store.get(refused.id)
    # And what was accepted before is still answered, by its key and by its id
    again = store.add([Submission(make_job(), key="k", digest="d"), Submission(last)], most_waiting=2)
    assert [(one.job.id, one.replayed) for one in again] == [(first.id, True), (last.id, True)]
    # And there is room again once one has begun
    take(store, part(first))
    age_of_count()
    assert isinstance(store.add([Submission(make_job())], most_waiting=2)[0], Accepted)


def age_of_count():
    """A store may count late; not by more than this."""
    import time

    time.sleep(0.6)


# -- places --------------------------------------------------------------------------------------------------------


def test_a_place_counts_who_comes_before_in_the_same_line(store, make_job):
    # Given jobs of several priorities on one queue, and one on another
    low, first, second, urgent = (make_job(priority=p) for p in (1, 4, 4, 9))
    elsewhere = make_job("other")
    for job in (low, first, elsewhere, second, urgent):
        put(store, job)
    # Then the urgent one is next, the low one last
    assert [store.place(job.id).position for job in (urgent, first, second, low, elsewhere)] == [1, 2, 3, 4, 1]
    # When one begins and one is dismissed
    take(store, part(urgent))
    store.dismiss(first.id)
    # Then the others move up, and who waits no longer has no place
    assert [store.place(job.id) for job in (urgent, first)] == [None, None]
    assert [store.place(job.id).position for job in (second, low)] == [1, 2]
    with pytest.raises(JobNotFound):
        store.place("nobody")


def test_a_line_tells_how_fast_it_moves_and_forgets_after_five_minutes(store, store_url, make_job):
    # Given a line in which nothing ever began
    waiting = put(store, make_job())
    assert store.place(waiting.id) == Place(1, 0.0)
    assert store.pressure() == Pressure(1, 0.0)
    # When thirty jobs begin, and thirty seconds pass
    for _ in range(30):
        take(store, part(put(store, make_job())))
    take(store, part(put(store, make_job("other"))))
    assert store.place(waiting.id).per_s == pytest.approx(3, rel=0.01)  # over ten seconds at least
    age(store_url, 30)
    # Then it moves by about one a second
    assert store.place(waiting.id).per_s == pytest.approx(1, rel=0.3)
    assert store.pressure().per_s == pytest.approx(31 / 30, rel=0.3)
    age(store_url, 290)
    assert store.place(waiting.id) == Place(1, 0.0)


def test_a_job_that_an_older_version_accepted_stands_in_no_line_and_runs(store, store_url, make_job):
    # Given a job whose record names no line
    job = put(store, make_job())
    if store_url.startswith("redis"):
        with redis.Redis.from_url(store_url) as client:
            client.hdel(f"job:{job.id}", "line")
    else:
        with psycopg2.connect(store_url) as link:
            link.cursor().execute("update jobs set line = default")
    # Then it has a place or none, and runs as ever
    assert store.place(job.id) is None or store.place(job.id).position == 1
    assert run(store, part(job)).status is Status.SUCCESSFUL


# -- limits of a pipeline ------------------------------------------------------------------------------------------


def test_no_more_jobs_are_let_in_than_may_be_under_way_at_once(store):
    # Given a pipeline that allows two, and four jobs of it, the last the most urgent
    jobs = [limited(concurrency=2, priority=4 + 5 * (n == 3)) for n in range(4)]
    rings = accept(store, *jobs)
    # Then two are rung; the others are not even ready
    assert [len(some) for some in rings] == [1, 1, 0, 0]
    assert store.claim(part(jobs[2]), "worker", "early", 60.0) is None
    assert store.release() == []
    # When one ends, whichever way, the next one by priority, then by age, is let in
    assert keys(run(store, part(jobs[0])).rings) == [part(jobs[3])]
    store.dismiss(jobs[1].id)
    take(store, part(jobs[2]))
    # And everything is rung that was let in without a ring
    assert status(store, jobs[2]) is Status.RUNNING
    assert accept(store, limited(concurrency=2)) == [()]
    assert keys(break_part(store, part(jobs[3])).rings) != []


@pytest.mark.parametrize("stated", [0, 1])
def test_an_end_whose_reply_was_lost_tells_again_who_was_let_in(store, stated):
    # Given an emitter under way, and a job held back
    first, second = limited("a", "b*", concurrency=1), limited(concurrency=1)
    accept(store, first, second)
    claim = take(store, part(first))
    # When it ends as it should, or stating parts that it did not emit, and does so again
    ended = store.finish(claim, b"", (), stated)
    again = store.finish(claim, b"", (), stated)
    # Then both answers have the other one's ring
    assert keys(ended.rings) == [part(second)]
    assert again == ended


def test_what_is_let_in_by_a_dismissal_is_rung_by_the_sweeper(store, store_url):
    # Given one job under way, and one held back
    first, second = limited(concurrency=1), limited(concurrency=1)
    accept(store, first, second)
    # When the first is dismissed, before anybody took it
    store.dismiss(first.id)
    # Then the second one's ring is owed
    age(store_url, 2.1)
    assert keys(store.unrung(10)) == [part(second)]


def test_no_more_jobs_begin_in_a_minute_than_the_rate_allows(store, store_url):
    # Given a pipeline that starts two a minute, and five jobs
    jobs = [limited(rate=2) for _ in range(5)]
    assert [len(some) for some in accept(store, *jobs)] == [1, 1, 0, 0, 0]
    # When the first two wait for a worker for longer than a minute
    age(store_url, 100)
    # Then nobody else is let in: they could all begin at once
    assert store.release() == []
    # When they run and end, the minute counts from when they began
    for job in jobs[:2]:
        assert run(store, part(job)).rings == ()
    age(store_url, 55)
    assert store.release() == []
    age(store_url, 6)
    assert keys(store.release()) == [part(jobs[2]), part(jobs[3])]
    assert store.release() == []
    # And one that is dismissed before it began gives its place away
    store.dismiss(jobs[2].id)
    assert take(store, part(jobs[4]))


def test_a_job_that_is_held_back_can_be_dismissed_and_its_deadline_ends_it(store, store_url):
    # Given one under way, and two held back, one with a deadline
    under_way, dismissed, late = limited(concurrency=1), limited(concurrency=1), limited(concurrency=1, deadline_s=60)
    accept(store, under_way, dismissed, late)
    # When one is dismissed, and the deadline passes
    store.dismiss(dismissed.id)
    age(store_url, 61)
    assert store.end_deadlines(10) == [late.id]
    # Then both have ended, and nobody rings for them any more
    assert [status(store, job) for job in (dismissed, late)] == [Status.DISMISSED, Status.FAILED]
    assert run(store, part(under_way)).rings == ()
    age(store_url, 10)
    assert (store.release(), store.unrung(10)) == ([], [])


def test_a_retry_waits_for_room_too_and_then_goes_on_where_it_was(store):
    # Given a failed job of three emitted parts, one done, and another job that holds the only place
    job = limited("cut", "look*", "join", concurrency=1, window=2)
    put(store, job)
    claim = emitter(store, job, [b"0", b"1", b"2"])
    store.finish(claim, b"cut", emitted=3)
    run(store, part(job, 1, claim.fence, 0))
    break_part(store, part(job, 1, claim.fence, 1))
    other = limited(concurrency=1)
    put(store, other)
    # When it is retried
    accepted = store.retry(job.id, "again")
    # Then nothing of it is ready
    assert accepted.rings == ()
    assert store.claim(PartKey("again", 1, claim.fence, 1), "worker", "early", 60.0) is None
    # When the place is free, what was not done goes on
    assert indexes(run(store, part(other)).rings) == [1, 2]
    run(store, PartKey("again", 1, claim.fence, 1), b"one")
    assert keys(run(store, PartKey("again", 1, claim.fence, 2), b"two").rings) == [PartKey("again", 2)]
    assert [one.value for one in store.outputs("again", 1)] == [b"done", b"one", b"two"]


# -- no worker, and dead -------------------------------------------------------------------------------------------


def test_a_part_that_no_worker_takes_backs_off_and_shows_it(store, store_url, make_job):
    # Given a job whose signature came back
    job = put(store, make_job())
    at, wait = part(job), NO_WORKER_S[0]
    for turn in range(1, 8):
        store.strand([at, part(make_job())])
        # Then it says so, and is rung again later each time
        (stage,) = store.get(job.id).stages
        assert (stage.status, stage.no_worker) == ("no worker", turn)
        age(store_url, wait - 1)
        assert store.due(10) == []
        age(store_url, 1.5)
        assert keys(store.due(10)) == [at]
        wait = min(2 * wait, NO_WORKER_S[1])
    # When a worker takes it after all
    assert wait == NO_WORKER_S[1]
    claim = take(store, at)
    assert store.get(job.id).stages[0].status == "running"
    # Then it is no matter that a late signature comes back too
    store.strand([at])
    assert store.finish(claim, b"").status is Status.SUCCESSFUL


def test_parts_that_used_up_their_attempts_are_listed_until_their_job_is_forgotten(store, store_url, make_job):
    # Given a job that failed by its limit, one whose input was bad, and one that bears a dead part
    tired = put(store, make_job(max_failures=1))
    break_part(store, part(tired), Cause.FAILURE)
    break_part(store, part(put(store, make_job())), Cause.BAD_INPUT)
    age(store_url, 1)
    loose = put(store, make_job("cut", *loose_stage(), max_losses=1))
    claim = emitter(store, loose, [b"0", b"1"])
    break_part(store, part(loose, 1, claim.fence, 1), Cause.LOSS)
    # Then two are listed, the latest first
    found = store.dead(10)
    assert [(one.at, one.stage, one.status) for one in found] == [
        (part(loose, 1, claim.fence, 1), "look", Status.RUNNING),
        (part(tired), "only", Status.FAILED),
    ]
    assert found[1].error == broke()
    assert found[1].pipeline == "echo"
    # And those of a job that is removed are not
    age(store_url, 100)
    store.remove(tired.id)
    assert [one.at.job_id for one in store.dead(10)] == [loose.id]


def loose_stage():
    """An `each` stage that bears dead parts."""
    return [StagePlan("look", "look", each=True, min_success=0.5)]


def test_the_longest_wait_of_each_stage_is_told(store, store_url, make_job):
    # Given two jobs that wait, one for longer, and one that is under way
    put(store, make_job())
    age(store_url, 100)
    put(store, make_job())
    put(store, make_job("other"))
    take(store, part(put(store, make_job("third"))))
    # Then each stage's longest wait is told, by its task
    assert store.longest_waits() == {"echo.only": pytest.approx(100, abs=5), "echo.other": pytest.approx(0, abs=5)}


def test_a_long_backlog_does_not_make_the_longest_wait_dear(store, store_url, make_job):
    # Given a job that waits for long, many that came after it, and one of another queue
    put(store, make_job())
    age(store_url, 100)
    for _ in range(12):
        store.add([Submission(make_job()) for _ in range(50)])
    put(store, make_job(StagePlan("other", "elsewhere")))
    # When it is asked how long they wait, then it is told, and not all of them were looked at
    assert store.longest_waits() == {"echo.only": pytest.approx(100, abs=5), "echo.other": pytest.approx(0, abs=5)}
    assert 0 < effort_of_waits(store, store_url) < 500


def test_the_longest_wait_is_told_of_a_task_that_stands_behind_all_others_of_its_queue(store, store_url, make_job):
    # Given many jobs that wait, rung and unrung, and behind them one of another task on the same queue
    for ring in (True, False):
        for _ in range(6):
            rings = [one.rings[0] for one in store.add([Submission(make_job()) for _ in range(50)])]
            store.rung(rings if ring else [])
    age(store_url, 100)
    late = put(store, make_job(StagePlan("other", "only")))
    age(store_url, 10)
    # Then both are told
    waits = {"echo.only": pytest.approx(110, abs=5), "echo.other": pytest.approx(10, abs=5)}
    assert store.longest_waits() == waits
    # And a part that is backing off, or whose job has ended, is not ready, and not told
    break_part(store, part(late), Cause.FAILURE, delay_s=5)
    assert store.longest_waits().keys() == {"echo.only"}
    age(store_url, 6)
    store.due(10)
    waits = {"echo.only": pytest.approx(116, abs=5), "echo.other": pytest.approx(0, abs=5)}
    assert store.longest_waits() == waits
    store.dismiss(late.id)
    assert store.longest_waits().keys() == {"echo.only"}


def test_what_an_older_version_did_is_seen_too(redis_url, make_job):
    # Given three jobs, of which a version that keeps no list of a task's parts accepted one, took one and ended one
    with closing(open_store(redis_url)) as store, redis.Redis.from_url(redis_url) as client:
        accepted, taken, ended = (put(store, make_job()) for _ in range(3))
        listed = client.zrange("task:echo.only:ready", 0, -1, withscores=True)
        take(store, part(taken))
        store.dismiss(ended.id)
        client.zadd("task:echo.only:ready", dict(listed))
        client.zrem("task:echo.only:ready", f"{accepted.id}|0|0|0")
        # Then those that are taken and ended do not count, and are forgotten
        assert store.longest_waits() == {}
        assert (client.exists("task:echo.only:ready"), client.exists("tasks")) == (0, 0)
        # And the one that is ready does from its next ring on
        age(redis_url, 3)
        assert [ring.at for ring in store.unrung(10)] == [part(accepted)]
        assert store.longest_waits() == {"echo.only": pytest.approx(3, abs=2)}


def effort_of_waits(store, store_url: str) -> int:
    """Commands that Redis does, or rows that Postgres reads, to tell the longest waits."""
    if store_url.startswith("redis"):
        with redis.Redis.from_url(store_url) as client:
            before = client.info("stats")["total_commands_processed"]
            store.longest_waits()
            return client.info("stats")["total_commands_processed"] - before

    def rows(node: dict) -> int:
        below = node.get("Plans", ())
        seen = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        return sum(map(rows, below)) if below else node["Actual Loops"] * seen

    with closing(psycopg2.connect(store_url)) as link, link.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {OLDEST}")
        return int(rows(cursor.fetchone()[0][0]["Plan"]))


# -- files ---------------------------------------------------------------------------------------------------------


def test_files_are_needed_of_living_attempts_and_of_those_that_were_accepted(store, store_url, make_job):
    # Given an emitter that was taken twice, with one part done, one under way and one ready
    job = put(store, make_job("cut", "look*"))
    emitter(store, job, [b"0", b"1"])
    age(store_url, 100)
    store.end_leases(10, 0.0)
    claim = emitter(store, job, [b"0", b"1", b"2"])
    run(store, part(job, 1, claim.fence, 0))
    take(store, part(job, 1, claim.fence, 1))
    # Then the second attempt's files are needed, the first one's are not
    one, two = (part(job, 1, claim.fence, n) for n in (0, 1))
    assert (claim.fence, store.needed(job.id)) == (2, {(part(job), 2), (one, 1), (two, 1)})
    # And of a job that has ended, those of the accepted attempts
    store.finish(claim, b"", emitted=3)
    store.dismiss(job.id)
    assert store.needed(job.id) == {(part(job), 2), (one, 1)}


def test_the_files_of_a_removed_job_are_needed_while_a_relative_lives(store, store_url, make_job):
    # Given a failed job with a retry
    job = put(store, make_job("one", "two"))
    run(store, part(job))
    break_part(store, part(job, 1))
    store.retry(job.id, "again")
    # When the first is removed
    age(store_url, 100)
    store.remove(job.id)
    # Then its files are needed as long as the other one is there
    assert store.needed(job.id) is None
    store.dismiss("again")
    age(store_url, 100)
    store.remove("again")
    for gone in (job.id, "again", "nobody"):
        with pytest.raises(JobNotFound):
            store.needed(gone)
