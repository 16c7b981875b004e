"""Stages that do what no stage should: each costs its own job, and the worker works on."""

from collections import Counter

import pytest

from jobs.model import Status
from tests.mill import Mill
from tests.neighbours import Valkey

POISONS = {
    "kill_self": ("loss", "worker-lost"),
    "segfault": ("loss", "worker-lost"),
    "os_exit": ("loss", "worker-lost"),
    "sys_exit": ("failure", "stage-broke"),
    "keyboard_interrupt": ("failure", "stage-broke"),
    "memory_error": ("failure", "out-of-memory"),
    "eat_memory": ("failure", "out-of-memory"),
    "recursion": ("failure", "stage-broke"),
    "unpicklable": ("failure", "stage-broke"),
    "not_json": ("failure", "stage-broke"),
    "nan": ("failure", "stage-broke"),
    "circular": ("failure", "stage-broke"),
    "false_dismissal": ("failure", "stage-broke"),
    "endless": ("failure", "time-limit"),
}


@pytest.fixture(scope="module")
def mill(rabbitmq, tmp_path_factory):
    """One worker for all of these, with a sweeper: it must survive every one of them."""
    url = rabbitmq.vhost("poison")
    folder = tmp_path_factory.mktemp("poison")
    limits = {"LEASE_S": 1.5, "MAX_FAILURES": 2, "MAX_LOSSES": 2, "MAX_MEMORY_MB": 400}
    with Valkey() as store, Mill(url, store.url, folder, **limits) as mill:
        mill.worker("poison", "-c", "2")
        mill.sweeper()
        assert mill.result(mill.submit("poison", how="nothing"), within_s=60) is None
        yield mill
    rabbitmq.drop_vhost("poison")


@pytest.fixture(scope="module")
def poisoned(mill):
    """A job for each poison, all at once, so that their back-offs run side by side."""
    return {how: mill.submit("poison", how=how) for how in POISONS}


def fates(mill, job_id):
    """How its attempts ended."""
    return Counter((data["cause"], data["code"]) for _, data in mill.events(job_id, "attempt_failed"))


@pytest.mark.parametrize("how", POISONS)
def test_a_poisonous_stage_fails_its_job_after_its_attempts(mill, poisoned, how):
    # Given a stage that breaks in this way each time
    cause, code = POISONS[how]
    # When its attempts are used up
    job = mill.wait(poisoned[how], within_s=60)
    # Then the job says why, and each attempt was counted once
    assert (job.status, job.error.code, fates(mill, job.id)) == (Status.FAILED, code, {(cause, code): 2})
    assert (job.error.stage, job.error.index) == ("swallow", 0)


def test_the_worker_works_on_after_all_of_them(mill, poisoned):
    for job_id in poisoned.values():
        mill.wait(job_id, within_s=60)
    assert mill.result(mill.submit("poison", how="nothing")) is None
    assert mill.processes[0].poll() is None


def test_bad_input_is_not_tried_again_and_its_words_reach_the_client(mill):
    job_id = mill.submit("poison", how="bad_input")
    job = mill.wait(job_id)
    assert (job.error.code, job.error.detail) == ("bad-input", "The file is not a video� ?.")
    assert fates(mill, job_id) == {("bad_input", "bad-input"): 1}


def test_try_again_is_tried_again_and_its_words_reach_the_client(mill):
    job_id = mill.submit("poison", how="try_again")
    job = mill.wait(job_id)
    assert (job.error.detail, fates(mill, job_id)) == ("The site is busy.", {("failure", "stage-broke"): 2})


def test_a_result_too_large_for_anybody_fails_the_job_at_once(mill):
    job_id = mill.submit("poison", how="huge")
    job = mill.wait(job_id)
    assert (job.error.code, sum(fates(mill, job_id).values())) == ("output-too-large", 1)


def test_a_large_result_goes_through_a_file(mill):
    assert mill.result(mill.submit("poison", how="large")) == "x" * (1 << 20)


def test_a_stage_that_holds_the_interpreter_for_longer_than_its_lease_runs_once(mill, tmp_path):
    # Given a lease of 1.5 s, and a stage in which no other thread of its process runs for 2.6 s
    job_id = mill.submit("poison", how="hold_gil", seconds=2.6, marks=str(tmp_path))
    # When it is done
    assert mill.result(job_id) == "held"
    # Then it ran once: the parent kept its lease
    assert (len(list(tmp_path.iterdir())), fates(mill, job_id)) == (1, {})
