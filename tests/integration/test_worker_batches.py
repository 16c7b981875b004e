"""Parts of several jobs in one call, through a real worker: each is finished on its own, whatever the others do."""

import json
import time
from collections import Counter

import pytest

from jobs.model import Status
from tests.mill import Mill
from tests.neighbours import Valkey

QUEUE = "inference.slides"
FEW = 8


@pytest.fixture
def make_mill(request, tmp_path):
    """A factory: `make_mill("redis")`, and its worker is started by the test."""
    made = []

    def make(store="redis", **env):
        mill = Mill(request.getfixturevalue("rabbitmq_url"), request.getfixturevalue(f"{store}_url"), tmp_path, **env)
        (tmp_path / "marks").mkdir()
        made.append(mill)
        return mill

    yield make
    for mill in made:
        mill.__exit__()


def submit(mill, how="nothing", **params):
    return mill.submit("slides", how=how, marks=str(mill.folder / "marks"), **params)


def calls(mill):
    """Who was in each call, in order."""
    return [json.loads(mark.read_text()) for mark in sorted((mill.folder / "marks").iterdir())]


def log(mill):
    return "".join(path.read_text() for path in mill.folder.glob("worker-*.log"))


def causes(mill, job_id):
    return Counter(data["cause"] for _, data in mill.events(job_id, "attempt_failed"))


@pytest.mark.parametrize("store", ["redis", "postgres"])
def test_waiting_parts_of_many_jobs_share_a_call_and_are_finished_each_on_its_own(make_mill, store):
    # Given twenty jobs that wait
    mill = make_mill(store)
    jobs = [submit(mill) for _ in range(20)]
    # When a worker comes
    mill.worker(QUEUE, "-c", "1")
    results = [mill.result(job_id, within_s=40) for job_id in jobs]
    # Then each has its own output, eight at most were together, and none ran twice
    assert [one["key"] for one in results] == [f"{job_id}.0.0" for job_id in jobs]
    assert max(one["together"] for one in results) == 8
    assert Counter(name for call in calls(mill) for name in call) == Counter(jobs)
    assert len(calls(mill)) <= 5
    # And each has its own log, its own events and the device in its record
    for job_id, result in zip(jobs, results, strict=True):
        assert [line.text for line in mill.store.logs(job_id)] == [f"looked with {result['together']}"]
        assert [kind for kind, _ in mill.events(job_id)][-1] == "successful"
        assert mill.store.get(job_id).stages[0].device == "cpu"
    # And the worker said what it had measured
    assert '"size": 8' in next(line for line in log(mill).splitlines() if "batch_chosen" in line)


def test_one_at_a_time_where_the_setting_says_so(make_mill):
    mill = make_mill(MAX_BATCH=1)
    jobs = [submit(mill) for _ in range(FEW)]
    mill.worker(QUEUE, "-c", "1")
    assert [mill.result(job_id, within_s=40)["together"] for job_id in jobs] == [1] * FEW


def test_what_is_wrong_with_one_is_not_wrong_with_the_others(make_mill):
    # Given eight jobs, of which one breaks each call that it is in, and one has bad input
    mill = make_mill(MAX_FAILURES=2)
    jobs = [submit(mill, {3: "break", 6: "bad_input"}.get(n, "nothing")) for n in range(FEW)]
    mill.sweeper()
    mill.worker(QUEUE, "-c", "1")
    # When they have run
    ended = [mill.wait(job_id, within_s=40) for job_id in jobs]
    # Then those two fail with their own words, and the others took no harm
    failed = {n: (job.error.code, job.error.detail) for n, job in enumerate(ended) if job.status is Status.FAILED}
    assert failed == {3: ("stage-broke", "The stage broke."), 6: ("bad-input", "That is no picture.")}
    assert [causes(mill, job_id) for job_id in jobs] == [
        {3: Counter(failure=2), 6: Counter(bad_input=1)}.get(n, Counter()) for n in range(FEW)
    ]
    # And what had broken was tried again alone
    assert calls(mill)[-1] == [jobs[3]]


def test_parts_whose_worker_died_together_are_lost_each_by_itself_and_none_is_doubled(make_mill):
    # Given eight jobs, one of which kills whoever works on it
    mill = make_mill(LEASE_S=1.5, MAX_LOSSES=2)
    jobs = [submit(mill, "die" if n == 5 else "nothing") for n in range(FEW)]
    mill.sweeper()
    mill.worker(QUEUE, "-c", "1")
    # When all have ended
    ended = [mill.wait(job_id, within_s=60) for job_id in jobs]
    # Then the one has failed, after it had run alone; the others are through
    assert [job.status is Status.FAILED for job in ended] == [n == 5 for n in range(FEW)]
    assert ended[5].error.code == "worker-lost"
    together, *later = calls(mill)
    assert len(together) == FEW
    assert all(len(call) == 1 for call in later)
    # And each lost what it was in, once, and finished once
    assert [causes(mill, job_id)["loss"] for job_id in jobs] == [2 if n == 5 else 1 for n in range(FEW)]
    assert Counter(name for call in later for name in call) == Counter(jobs)
    assert {len(mill.events(job.id, "stage_finished")) for n, job in enumerate(ended) if n != 5} == {1}


def test_a_batch_that_is_too_large_for_the_memory_is_halved(make_mill):
    mill = make_mill()
    jobs = [submit(mill, "too_large") for _ in range(FEW)]
    mill.worker(QUEUE, "-c", "1")
    # Then all get through by fours, and nothing is counted against them
    assert {mill.result(job_id, within_s=40)["together"] for job_id in jobs} == {4}
    assert [causes(mill, job_id) for job_id in jobs] == [Counter()] * FEW
    assert log(mill).count("batch_halved") == 1


def test_a_dismissed_job_leaves_its_batch_and_the_others_go_on(make_mill):
    # Given eight jobs in one call, which takes seconds
    mill = make_mill()
    jobs = [submit(mill, seconds=0.4) for _ in range(FEW)]
    mill.worker(QUEUE, "-c", "1")
    mill.until(lambda: calls(mill), what="the first call")
    # When one of them is dismissed
    mill.store.dismiss(jobs[7])
    # Then the others are through, without a failed attempt
    for job_id in jobs[:7]:
        assert mill.result(job_id, within_s=40)["key"] == f"{job_id}.0.0"
        assert causes(mill, job_id) == Counter()
    assert mill.store.get(jobs[7]).status is Status.DISMISSED


def test_the_leases_of_a_whole_batch_are_renewed(make_mill):
    # Given a lease much shorter than the call
    mill = make_mill(LEASE_S=1)
    jobs = [submit(mill, seconds=0.5) for _ in range(FEW)]
    mill.sweeper()
    mill.worker(QUEUE, "-c", "1")
    # Then nobody takes a part over
    for job_id in jobs:
        mill.result(job_id, within_s=40)
    assert [causes(mill, job_id) for job_id in jobs] == [Counter()] * FEW
    assert len(calls(mill)) == 1


def test_finished_parts_wait_for_an_absent_store_while_none_is_lost(tmp_path, rabbitmq_url):
    with Valkey() as store, Mill(rabbitmq_url, store.url, tmp_path, LEASE_S=3) as mill:
        (tmp_path / "marks").mkdir()
        mill.sweeper()
        jobs = [submit(mill, seconds=0.2) for _ in range(FEW)]
        mill.worker(QUEUE, "-c", "1")
        mill.until(lambda: calls(mill), what="the first call")
        # When the store is away as the call ends
        store.kill()
        time.sleep(3)
        store.start()
        # Then all outputs are accepted, and each part ran once
        assert [mill.result(job_id, within_s=40)["together"] for job_id in jobs] == [FEW] * FEW
        assert len(calls(mill)) == 1
