"""The sweeper alone: what it rings, ends, deletes, and what it survives."""

import signal
import time

import pytest

from jobs.brokers import open_broker
from jobs.dispatch import Bell
from jobs.errors import FileMissing
from jobs.files import open_files
from jobs.model import Artifact, Cause, JobError, PartKey, Status, Submission, Upload
from jobs.settings import Settings
from jobs.sweeper import Sweeper, back_off
from tests.ageing import age
from tests.mill import Mill
from tests.neighbours import Valkey, free_port


@pytest.fixture
def settings(redis_url, store_url, tmp_path):
    return Settings(
        broker_url=f"{redis_url[:-1]}1", store_url=store_url, files_url=f"file://{tmp_path}/files", lease_s=1
    )


@pytest.fixture
def broker(settings):
    broker = open_broker(settings.broker_url)
    yield broker
    broker.close()


@pytest.fixture
def make_sweeper(settings, store, broker):
    """A factory: `make_sweeper(without=...)`."""

    def make(**changes):
        wanted = settings.model_copy(update=changes)
        return Sweeper(store, open_files(settings.files_url), Bell(broker, store.rung), ["only"], wanted)

    return make


def accept(store, job):
    return store.add([Submission(job)])[0]


def claim(store, job, token="t", lease_s=30.0):
    return store.claim(PartKey(job.id, 0), "w", token, lease_s)


def test_a_ring_that_was_never_confirmed_is_rung_after_two_seconds(store, make_job, make_sweeper, broker):
    # Given a job whose ring was lost
    accept(store, make_job())
    sweeper = make_sweeper()
    sweeper.sweep()
    assert broker.depth("only") == 0
    # When two seconds have passed
    time.sleep(2.1)
    sweeper.sweep()
    # Then it is rung, once
    sweeper.sweep()
    assert (broker.depth("only"), store.rung_counts()) == (1, {"only": 1})


def test_a_full_backlog_is_not_rung_again_and_a_wiped_one_is(store, make_job, make_sweeper, broker, settings):
    # Given 20 jobs whose messages wait on their queue
    bell, sweeper = Bell(broker, store.rung), make_sweeper()
    for _ in range(20):
        bell.ring(accept(store, make_job()).rings)
    # When sweeps go by
    for _ in range(3):
        sweeper.sweep()
        time.sleep(1)
    # Then nothing is rung again
    assert broker.depth("only") == 20
    # When the queue is wiped
    broker._client.flushdb()
    sweeper.sweep()
    sweeper.sweep()
    # Then the second sweep that misses them rings them all
    assert broker.depth("only") == 20


def test_without_the_deficit_a_wiped_queue_stays_empty(store, make_job, make_sweeper, broker):
    Bell(broker, store.rung).ring(accept(store, make_job()).rings)
    broker._client.flushdb()
    sweeper = make_sweeper(without=frozenset({"deficit"}))
    for _ in range(3):
        sweeper.sweep()
    assert broker.depth("only") == 0


def test_the_fallback_rings_a_short_queue_and_hardly_ever_a_long_one(
    store, store_url, make_job, make_sweeper, broker, monkeypatch
):
    # Given 20 jobs that nobody has claimed for so long that the fallback is due for each
    bell, sweeper = Bell(broker, store.rung), make_sweeper()
    for _ in range(20):
        bell.ring(accept(store, make_job()).rings)
    age(store_url, 70)
    # When 20 messages count as many, Then one part is rung, and none in the next sweeps
    monkeypatch.setattr("jobs.sweeper.LONG", 20)
    for _ in range(3):
        sweeper.sweep()
        assert broker.depth("only") == 21
    # When they count as few, Then a sweep rings some
    monkeypatch.setattr("jobs.sweeper.LONG", 1_000)
    sweeper.sweep()
    assert broker.depth("only") == 31


def test_a_part_is_rung_again_when_its_back_off_is_over(store, make_job, make_sweeper, broker):
    job = make_job()
    accept(store, job)
    store.fail(claim(store, job), Cause.FAILURE, JobError("stage-broke", "The stage broke."), delay_s=0.3)
    sweeper = make_sweeper()
    sweeper.sweep()
    assert broker.depth("only") == 0
    time.sleep(0.4)
    sweeper.sweep()
    assert broker.depth("only") == 1


def test_a_lease_that_ran_out_is_a_loss(store, make_job, make_sweeper):
    job = make_job()
    accept(store, job)
    claim(store, job, lease_s=0.2)
    time.sleep(0.4)
    make_sweeper(without=frozenset({"grace"})).sweep()
    assert store.get(job.id).stages[0].losses == 1


def test_a_job_past_its_deadline_fails(store, make_job, make_sweeper):
    job = make_job(deadline_s=0.2)
    accept(store, job)
    time.sleep(0.3)
    make_sweeper().sweep()
    assert (store.get(job.id).status, store.get(job.id).error.code) == (Status.FAILED, "deadline-passed")


def test_files_that_no_record_needs_are_deleted_and_taken_off_the_list(store, make_job, make_sweeper, settings):
    # Given an upload that expires at once, and a job's kept file
    files = open_files(settings.files_url)
    files.put("uploads/u1", b"old")
    files.put("jobs/keep/0/0.0.1/a.txt", b"kept")
    store.add_upload(Upload("u1", "uploads/u1", 3, "00", "text/plain"), ttl_s=0.1)
    job = make_job()
    accept(store, job)
    held = claim(store, job)
    store.finish(held, b"=1", [Artifact("a.txt", "jobs/keep/0/0.0.1/a.txt", 4, "00", "text/plain")])
    time.sleep(0.3)
    # When the sweeper comes by
    sweeper = make_sweeper()
    sweeper.sweep()
    sweeper.sweep()
    # Then the one is gone and the other is not
    with pytest.raises(FileMissing):
        files.size("uploads/u1")
    assert (files.size("jobs/keep/0/0.0.1/a.txt"), store.trash(10)) == (4, [])


def test_an_absent_broker_does_not_stop_the_other_steps(store, make_job, settings):
    absent = Bell(open_broker(f"amqp://guest:guest@127.0.0.1:{free_port()}/"), store.rung)
    sweeper = Sweeper(store, open_files(settings.files_url), absent, ["only"], settings)
    job = make_job(deadline_s=0.1)
    accept(store, job)
    accept(store, make_job())
    time.sleep(2.2)
    assert sweeper.sweep()
    assert store.get(job.id).error.code == "deadline-passed"


def test_a_back_off_doubles_up_to_five_minutes_and_is_jittered():
    assert all(1 <= back_off(0) <= 3 for _ in range(50))
    assert all(4 <= back_off(2) <= 12 for _ in range(50))
    assert all(150 <= back_off(10_000) <= 450 for _ in range(50))
    assert len({back_off(3) for _ in range(10)}) == 10


def test_the_process_survives_a_store_that_goes_and_comes_and_stops_when_asked(tmp_path, redis_url, make_job):
    with Valkey() as store, Mill(redis_url, store.url, tmp_path) as mill:
        sweeper = mill.sweeper()
        mill.until(lambda: "sweeper_started" in mill.logs(), what="the sweeper to start")
        store.kill()
        mill.until(lambda: "store_unavailable" in mill.logs(), what="the sweeper to notice")
        store.start()
        job_id = mill.submit("addition", ring=False, x=1, y=1)
        mill.until(lambda: mill.bell.depth("io") == 1, within_s=25, what=f"a ring for {job_id}")
        sweeper.send_signal(signal.SIGTERM)
        assert sweeper.wait(5) == 0
