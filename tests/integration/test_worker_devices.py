"""Workers on a list of GPUs that stands for a machine's: pinned, named, left when they vanish, shared with the CPU."""

import json
from collections import Counter

import pytest

from celery_worker.devices import LIST
from celery_worker.heartbeat import DEVICE_GONE, NO_CHILD
from jobs.model import Status
from tests.mill import Mill

QUEUE = "inference.slides"
GPUS = [
    {"number": 0, "uuid": "GPU-aaaa", "name": "NVIDIA L4", "memory_bytes": 24 << 30},
    {"number": 1, "uuid": "MIG-bbbb", "name": "NVIDIA H100 1g.10gb", "memory_bytes": 10 << 30, "is_slice": True},
]
BARREN = """
title: A stage whose batch cannot be measured
stages: [{name: look, queue: inference.barren, time_limit: 20, batch: {max: 8, wait_ms: 5}}]
params: {type: object, additionalProperties: false, properties: {}}
"""
L4, SLICE = "simulated:0 NVIDIA L4 GPU-aaaa", "simulated:1 NVIDIA H100 1g.10gb MIG-bbbb"


@pytest.fixture
def mill(rabbitmq_url, redis_url, tmp_path):
    """A machine with two GPUs."""
    (tmp_path / "gpus.json").write_text(json.dumps(GPUS))
    with Mill(rabbitmq_url, redis_url, tmp_path, **{LIST: tmp_path / "gpus.json"}) as mill:
        yield mill


def present(mill):
    return {worker.device: worker for worker in mill.store.workers()}


def there(mill, *names):
    ready = {device for device, worker in present(mill).items() if worker.children}
    return ready == set(names)


def causes(mill, job_id):
    return Counter((data["cause"], data["code"]) for _, data in mill.events(job_id, "attempt_failed"))


def test_each_worker_has_one_spawned_child_on_its_own_device_and_says_so(mill):
    # Given a worker for each device, one for the CPU, and one for a queue where nothing is inferred
    mill.worker(QUEUE, DEVICE="0")
    mill.worker(QUEUE, DEVICE="MIG-bbbb", GPU_MEMORY_MB=4096)
    mill.worker(QUEUE, "-c", "1", DEVICE="cpu")
    mill.worker("grind", "-c", "1", DEVICE="0")
    mill.until(lambda: len([one for one in mill.store.workers() if one.children]) == 4, 60, "the workers")
    # Then each is told with its memory and its batch
    found = present(mill)
    assert set(found) == {L4, SLICE, "cpu"}
    assert (found[L4].children, found[L4].memory_bytes, found[L4].batches) == (1, 24 << 30, {"slides.look": 8})
    assert found[SLICE].memory_bytes == 4 << 30
    assert [one.device for one in mill.store.workers() if one.queues == ("grind",)] == ["cpu"]
    # When jobs run
    jobs = [mill.submit("slides", seconds=0.2) for _ in range(40)]
    results = {job_id: mill.result(job_id, within_s=60) for job_id in jobs}
    # Then all three share the queue, each record names the device, and each child saw that one only
    seen = {(mill.store.get(job_id).stages[0].device, results[job_id]["sees"]) for job_id in jobs}
    assert {device for device, _ in seen} == {L4, SLICE, "cpu"}
    assert {sees for device, sees in seen if device == L4} == {"GPU-aaaa"}
    assert {sees for device, sees in seen if device == SLICE} == {"MIG-bbbb"}


def test_a_part_that_is_too_large_for_one_device_goes_to_another(mill):
    # Given a job that does not fit on the first device, and a worker on that one; the job may be tried there again
    # while the other worker starts, which takes long on a busy machine
    mill.settings = mill.settings.model_copy(update={"max_failures": 50})
    mill.worker(QUEUE, DEVICE="0")
    mill.sweeper()
    mill.until(lambda: there(mill, L4), 60, "the first worker")
    job_id = mill.submit("slides", how="hog")
    mill.until(lambda: causes(mill, job_id), what="the first attempt")
    # When the other one comes
    mill.worker(QUEUE, DEVICE="1")
    # Then it runs there, and the attempt that ran out of memory has cost it nothing
    mill.result(job_id, within_s=40)
    assert mill.store.get(job_id).stages[0].device == SLICE
    assert mill.events(job_id, "attempt_failed")[0][1]["cause"] == "given_back"
    assert causes(mill, job_id)["given_back", "out-of-memory"] == 1


def test_a_part_that_fits_nowhere_fails_in_the_end(mill):
    mill.worker(QUEUE, DEVICE="0", MAX_FAILURES=1)
    mill.sweeper()
    job = mill.submit("slides", how="hog")
    assert mill.wait(job, within_s=60).error.code == "out-of-memory"


def test_a_worker_whose_device_vanished_leaves_the_queue_and_the_others_go_on(mill):
    # Given a worker on a device, in the middle of a part
    worker = mill.worker(QUEUE, DEVICE="0")
    mill.sweeper()
    mill.until(lambda: there(mill, L4), 60, "the worker")
    job_id = mill.submit("slides", seconds=15)
    mill.started(job_id)
    # When its device falls off the bus
    (mill.folder / "gpus.json").write_text(json.dumps(GPUS[1:]))
    # Then it ends, says why, and is listed no more
    assert worker.wait(20) == DEVICE_GONE
    assert "device vanished" in mill.logs()
    assert mill.store.workers() == []
    # And the part was given back, for whoever is there
    assert causes(mill, job_id) == {("given_back", "worker-lost"): 1}
    # And started anew, it says what is missing
    assert mill.worker(QUEUE, DEVICE="0").wait(30) != 0
    assert "DEVICE is 0, but there is no such GPU" in mill.logs()
    mill.store.dismiss(job_id)


def test_a_call_that_says_that_the_device_is_lost_ends_the_worker_too(mill):
    # Given a job whose call finds the device lost, and seven in the same batch
    jobs = [mill.submit("slides", how="lost" if n == 4 else "nothing") for n in range(8)]
    worker = mill.worker(QUEUE, DEVICE="0")
    mill.sweeper()
    # When the worker has left, and one on the CPU takes over
    assert worker.wait(60) == DEVICE_GONE
    mill.worker(QUEUE, "-c", "1", DEVICE="cpu")
    # Then every job gets through, and none has lost an attempt
    for job_id in jobs:
        mill.result(job_id, within_s=60)
        assert mill.store.get(job_id).status is Status.SUCCESSFUL
        assert set(causes(mill, job_id)) <= {("given_back", "worker-lost")}


def test_a_part_that_makes_its_device_useless_does_not_do_so_for_ever(mill):
    # Given a job whose call brings down whatever device it runs on, and which may lose one worker
    mill.settings = mill.settings.model_copy(update={"max_losses": 1})
    wedge = mill.submit("slides", how="wedge")
    worker = mill.worker(QUEUE, DEVICE="0")
    mill.sweeper()
    # Then its worker ends, for another process can compute on that device again
    assert worker.wait(60) == DEVICE_GONE
    # And the job comes to an end: the attempt was counted, as the device was there still
    assert mill.wait(wedge, within_s=20).error.code == "worker-lost"
    assert causes(mill, wedge) == {("loss", "worker-lost"): 1}


def test_a_worker_on_a_gpu_whose_child_cannot_start_does_not_look_well(mill):
    # Given a pipeline whose probe breaks on the device, as it does where CUDA cannot be used
    folder = mill.folder / "pipelines" / "barren"
    folder.mkdir(parents=True)
    (folder / "pipeline.yaml").write_text(BARREN)
    (folder / "stages.py").write_text("look = probe = lambda *given: 1 / 0\nPROBE = {'look': probe}\n")
    (folder / "example.json").write_text('{"pipeline": "barren", "params": {}}')
    # When its worker starts
    worker = mill.worker("inference.barren", DEVICE="0", PIPELINE_DIRS=folder.parent)
    # Then it ends and says why: it would be there, and do nothing
    assert worker.wait(60) == NO_CHILD
    assert "its children cannot start" in mill.logs()
    assert "ZeroDivisionError" in mill.logs()


def test_production_refuses_a_list_of_gpus_that_are_none(mill):
    worker = mill.worker(QUEUE, ENVIRONMENT="production")
    assert worker.wait(30) != 0
    assert "which production refuses" in mill.logs()
