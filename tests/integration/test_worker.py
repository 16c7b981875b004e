"""Whole jobs through real workers: fan-out, dismissal, deaths, outages and shutdowns."""

import os
import shutil
import signal
import time

import kombu
import pytest

from celery_worker import redis_transport
from jobs.model import Status
from tests.mill import ROOT, Mill, children
from tests.neighbours import Valkey, any_rabbitmq

STAGES = ("split", "grind", "gather")


@pytest.fixture
def make_mill(request, tmp_path):
    """A factory: `make_mill("rabbitmq", "redis", LEASE_S=2)`; everything ends with the test."""
    made = []

    def make(broker="rabbitmq", store="redis", **env):
        mill = Mill(request.getfixturevalue(f"{broker}_url"), request.getfixturevalue(f"{store}_url"), tmp_path, **env)
        made.append(mill)
        return mill

    yield make
    for mill in made:
        mill.__exit__()


@pytest.mark.parametrize(("broker", "store"), [("rabbitmq", "redis"), ("redis", "postgres"), ("rabbitmq", "postgres")])
def test_a_job_fans_out_and_comes_together_in_order(make_mill, broker, store):
    # Given a worker for each of three stages
    mill = make_mill(broker, store, WINDOW=4)
    for queue in STAGES:
        mill.worker(queue, "-c", "1")
    # When a job splits into 30 parts
    job_id = mill.submit("mill", parts=30)
    # Then all come back in order, and the kept file is listed
    squares = [n * n for n in range(30)]
    assert mill.result(job_id, within_s=60) == {"squares": squares, "sum": sum(squares)}
    [artifact] = mill.store.artifacts(job_id)
    assert (artifact.name, artifact.type) == ("squares.txt", "text/plain")
    assert mill.files.load(artifact.file).decode() == "\n".join(map(str, squares))
    # Then what the stage logged is in the job's log, and the payloads' files wait for their removal
    assert [line.text for line in mill.store.logs(job_id)] == ["split 30"]
    assert len(mill.store.trash(100)) == 30
    # Then a job without parts, and one with payloads too large for the record, come through as well
    assert mill.result(mill.submit("mill", parts=0)) == {"squares": [], "sum": 0}
    assert mill.result(mill.submit("mill", parts=3, large=100_000)) == {"squares": [0, 1, 4], "sum": 5}


def test_some_parts_may_break_and_their_errors_stand_in_the_outputs(make_mill):
    mill = make_mill(MAX_FAILURES=1)
    for queue in STAGES:
        mill.worker(queue, "-c", "1")
    assert mill.result(mill.submit("mill", parts=4, bad=[1]), within_s=60)["squares"] == [0, None, 4, 9]
    job = mill.wait(mill.submit("mill", parts=4, bad=[0, 1, 2]))
    assert (job.status, job.error.code, job.error.detail) == (Status.FAILED, "stage-broke", "The stage broke.")


def test_an_emitter_waits_while_its_consumers_are_far_behind(make_mill):
    # Given a window of 2, and nobody who consumes
    mill = make_mill(WINDOW=2)
    mill.worker("split", "-c", "1")
    job_id = mill.submit("mill", parts=50)
    mill.started(job_id)
    # When time passes
    time.sleep(2)
    # Then no more than 2 x 2 parts were emitted
    assert mill.store.get(job_id).stages[1].total == 4
    # Then it goes on as soon as somebody consumes
    mill.worker("grind", "-c", "2")
    mill.worker("gather", "-c", "1")
    assert len(mill.result(job_id, within_s=60)["squares"]) == 50


@pytest.mark.parametrize("how", ["nap", "deaf"])
def test_a_dismissed_job_frees_its_worker_within_five_seconds(make_mill, tmp_path, how):
    # Given an hour-long stage on the only child, and a lease of the usual length; `deaf` never looks at a checkpoint
    mill = make_mill(LEASE_S=15, PIPELINE_DIRS=long_pipelines(tmp_path))
    mill.worker("long", "-c", "1")
    long = mill.submit("long", how=how, seconds=3_600)
    mill.started(long)
    time.sleep(1)
    # When it is dismissed
    mill.store.dismiss(long)
    started = time.monotonic()
    following = mill.submit("long", how="nothing")
    # Then the next job is through in 5 s
    mill.result(following, within_s=10)
    assert time.monotonic() - started < 5
    assert mill.store.get(long).status is Status.DISMISSED


def test_a_part_whose_worker_was_killed_runs_again_when_its_lease_is_over(make_mill, tmp_path):
    # Given two workers, and a stage on one of them
    mill = make_mill(LEASE_S=2, PIPELINE_DIRS=long_pipelines(tmp_path))
    (marks := tmp_path / "marks").mkdir()
    workers = [mill.worker("long", "-c", "1") for _ in range(2)]
    mill.sweeper()
    mill.until(lambda: mill.logs().count(" ready.") == 2, within_s=40, what="both workers")
    job_id = mill.submit("long", how="nap", seconds=4, marks=str(marks))
    mill.until(lambda: list(marks.iterdir()), what="the first attempt")
    pid = int(next(marks.iterdir()).name.split(".")[1])
    [busy] = [worker for worker in workers if pid in children(worker)]
    # When parent and child die in the same moment
    killed = time.monotonic()
    os.kill(busy.pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    # Then the other does it, after the lease and a few seconds
    mill.until(lambda: len(list(marks.iterdir())) == 2, within_s=12, what="the second attempt")
    assert time.monotonic() - killed < 2 + 8
    assert mill.result(job_id) == "rested"
    assert [data["code"] for _, data in mill.events(job_id, "attempt_failed")] == ["worker-lost"]


def test_a_child_dies_with_its_parent(make_mill):
    mill = make_mill()
    worker = mill.worker("poison", "-c", "1")
    job_id = mill.submit("poison", how="deaf", seconds=30)
    mill.started(job_id)
    pids = children(worker)
    worker.kill()
    worker.wait()
    mill.until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), within_s=5, what="the child to die")


def test_a_warm_shutdown_finishes_what_is_short(make_mill):
    mill = make_mill(LEASE_S=2)
    worker = mill.worker("poison", "-c", "1", "--grace", "20")
    job_id = mill.submit("poison", how="nap", seconds=1.5)
    mill.started(job_id)
    started = time.monotonic()
    worker.terminate()
    assert worker.wait(20) == 0
    assert time.monotonic() - started < 8
    assert mill.store.get(job_id).status is Status.SUCCESSFUL


@pytest.mark.parametrize("how", ["nap", "deaf"])
def test_a_warm_shutdown_gives_back_what_is_long(make_mill, tmp_path, how):
    # Given a stage that takes longer than the shutdown may
    mill = make_mill(LEASE_S=5, MAX_LOSSES=1, MAX_FAILURES=1, PIPELINE_DIRS=long_pipelines(tmp_path))
    worker = mill.worker("long", "-c", "1", "--grace", "0.5")
    job_id = mill.submit("long", how=how, seconds=8)
    mill.started(job_id)
    # When the worker is asked to go
    worker.terminate()
    worker.wait(20)
    # Then the part was given back, at nobody's cost, and the next worker has it
    assert mill.store.get(job_id).stages[0].given_back == 1
    mill.worker("long", "-c", "1")
    assert mill.result(job_id, within_s=40) == "rested"
    assert (mill.store.get(job_id).stages[0].losses, mill.store.get(job_id).stages[0].failures) == (0, 0)


def test_the_store_may_be_away_while_a_stage_works(tmp_path, rabbitmq_url):
    with Valkey() as store, Mill(rabbitmq_url, store.url, tmp_path, LEASE_S=5) as mill:
        (marks := tmp_path / "marks").mkdir()
        mill.worker("poison", "-c", "1")
        mill.sweeper()
        job_id = mill.submit("poison", how="nap", seconds=2.5, marks=str(marks))
        mill.until(lambda: list(marks.iterdir()), what="the stage to start")
        # When the store is away for longer than a lease and the stage's time limit, and the stage ends meanwhile
        store.kill()
        time.sleep(6)
        store.start()
        # Then its output is accepted all the same, and it ran once
        assert mill.result(job_id) == "rested"
        assert len(list(marks.iterdir())) == 1


def test_a_job_accepted_without_a_broker_runs_when_it_is_back(tmp_path, redis_url):
    with any_rabbitmq() as broker, Mill(broker.url, redis_url, tmp_path) as mill:
        mill.worker("io", "-c", "1")
        mill.sweeper()
        assert mill.result(mill.submit("addition", x=1, y=2), within_s=60) == 3
        # Given a broker that died
        broker.kill()
        # When jobs are accepted
        jobs = [mill.submit("addition", x=n, y=1) for n in range(5)]
        time.sleep(2)
        broker.start()
        # Then they run when it is back
        assert [mill.result(job_id, within_s=60) for job_id in jobs] == [1, 2, 3, 4, 5]


def test_a_wiped_queue_is_rung_again_by_deficit(make_mill, rabbitmq_url):
    # Given confirmed rings that nobody has taken yet
    mill = make_mill()
    jobs = [mill.submit("addition", x=n, y=0) for n in range(20)]
    assert mill.bell.depth("io") == 20
    # When their queue is lost
    with kombu.Connection(rabbitmq_url) as connection:
        connection.default_channel.queue_delete("io")
    mill.sweeper()
    mill.worker("io", "-c", "1")
    # Then all run, long before the slow fallback of a minute
    assert [mill.result(job_id, within_s=30) for job_id in jobs] == list(range(20))


@pytest.mark.parametrize("settle", ["ack", "reject", "requeue"])
def test_a_message_whose_acknowledgement_failed_does_not_keep_a_worker_from_the_next_one(settle):
    # Given a worker's channel to a Redis broker, with one message under way and a prefetch of one
    redis_transport.install()
    with Valkey() as broker, kombu.Connection(broker.url) as connection:
        queue = connection.SimpleQueue("one")
        queue.put("a")
        channel = queue.consumer.channel
        channel.basic_qos(0, 1, False)
        message = queue.get(timeout=5)
        assert not channel.qos.can_consume()
        # When the broker is away as the worker settles the message
        broker.kill()
        with pytest.raises(connection.connection_errors):
            getattr(message, settle)()
        # Then the channel asks for the next one, and so finds out that its connection is gone
        assert channel.qos.can_consume()


def test_the_higher_priority_runs_first(make_mill, tmp_path):
    mill = make_mill()
    (marks := tmp_path / "marks").mkdir()
    jobs = {}
    for priority in (0, 9, 4):
        (marks / str(priority)).mkdir()
        jobs[priority] = mill.submit("poison", priority=priority, how="nothing", marks=str(marks / str(priority)))
    mill.worker("poison", "-c", "1")
    for job_id in jobs.values():
        mill.result(job_id, within_s=60)
    begun = {priority: next((marks / str(priority)).iterdir()).name for priority in jobs}
    assert sorted(jobs, key=lambda priority: int(begun[priority].split(".")[0])) == [9, 4, 0]


def test_one_command_serves_several_queues_with_children_of_their_own(make_mill):
    mill = make_mill("redis", "redis", WINDOW=2)
    supervisor = mill.worker(",".join(STAGES), "-c", "1", "--grace", "5")
    assert len(mill.result(mill.submit("mill", parts=20), within_s=60)["squares"]) == 20
    assert len(children(supervisor)) == 3
    supervisor.terminate()
    assert supervisor.wait(20) == 0


def test_celery_starts_a_worker_too(make_mill):
    mill = make_mill()
    mill.start(
        "celery", ["-m", "celery", "-A", "celery_worker.main", "worker", "-c", "1", "-n", "mine@%h"], QUEUES="io"
    )
    assert mill.result(mill.submit("addition", x=40, y=2), within_s=60) == 42


def test_a_workers_folder_may_lie_deep(make_mill, tmp_path):
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()
    mill = make_mill("redis", "redis")
    mill.worker("io", "-c", "1", TMPDIR=deep)
    assert mill.result(mill.submit("addition", x=40, y=2), within_s=60) == 42


def test_a_worker_that_finds_no_place_for_its_folder_ends(make_mill):
    mill = make_mill("redis", "redis")
    code = """import tempfile
from celery_worker.main import app
tempfile.tempdir = "/nowhere"
app.worker_main(["worker", "-c", "1", "-n", "homeless@%h"])"""
    assert mill.start("homeless", ["-c", code], QUEUES="io").wait(60) == 1
    assert "No such file or directory: '/nowhere/" in mill.logs()


def test_children_that_are_spawned_as_a_gpu_needs_it_know_their_stages(make_mill):
    mill = make_mill("redis", "redis")
    code = """from celery_worker.main import app
app.conf.worker_pool_start_method = "spawn"
app.worker_main(["worker", "-c", "1", "-n", "spawned@%h"])"""
    mill.start("spawned", ["-c", code], QUEUES="io")
    assert mill.result(mill.submit("addition", x=40, y=2), within_s=60) == 42


def test_a_place_for_files_that_is_away_costs_no_attempt(make_mill, tmp_path):
    # Given a stage that keeps a file, and a file where the folder should be
    (place := tmp_path / "kept").write_text("in the way")
    mill = make_mill(FILES_URL=place.as_uri(), MAX_LOSSES=1, MAX_FAILURES=1)
    mill.worker("split", "-c", "1")
    mill.worker("gather", "-c", "1")
    mill.sweeper()
    job_id = mill.submit("mill", parts=0)
    # When it was tried in vain
    mill.until(lambda: mill.store.get(job_id).stages[2].given_back, 60, "an attempt to be given back")
    # Then its job comes through once there is a place
    place.unlink()
    job = mill.wait(job_id, within_s=60)
    assert (job.status, job.stages[2].losses, job.stages[2].failures) == (Status.SUCCESSFUL, 0, 0)


@pytest.mark.parametrize("without", ["heartbeat", "watchdog"])
def test_without_a_protection_what_it_protects_from_happens(make_mill, tmp_path, without):
    # Given a worker without its heartbeat, or without its watchdog over memory
    (marks := tmp_path / "marks").mkdir()
    mill = make_mill(LEASE_S=1, MAX_MEMORY_MB=400, MAX_FAILURES=1, WITHOUT=without)
    mill.worker("poison", "-c", "2")
    mill.sweeper()
    how, seconds = ("nap", 2.5) if without == "heartbeat" else ("eat_memory", 0.5)
    # When a stage takes longer than its lease, or eats for half a second
    job = mill.wait(mill.submit("poison", how=how, seconds=seconds, marks=str(marks)), within_s=60)
    # Then the lease is lost, or nobody minds
    if without == "heartbeat":
        assert job.stages[0].losses > 0
    else:
        assert job.status is Status.SUCCESSFUL


def test_quorum_queues_carry_jobs(make_mill):
    mill = make_mill(QUEUE_TYPE="quorum")
    mill.worker("io", "-c", "1")
    assert mill.result(mill.submit("addition", x=40, y=2), within_s=60) == 42


def test_a_stage_that_is_named_and_missing_stops_the_worker_at_boot(make_mill, tmp_path):
    folder = tmp_path / "pipelines" / "hollow"
    folder.mkdir(parents=True)
    (folder / "pipeline.yaml").write_text("title: Hollow\nstages: [{name: absent, queue: io}]\n")
    (folder / "stages.py").write_text("")
    mill = make_mill("redis", "redis")
    worker = mill.worker("io", PIPELINE_DIRS=str(folder.parent))
    assert worker.wait(30) == 1
    assert f"{folder}/stages.py has no function absent, which pipeline.yaml names." in mill.logs()


def test_a_model_that_is_named_and_missing_stops_the_worker_at_boot(make_mill, tmp_path):
    folder = tmp_path / "pipelines" / "blind"
    folder.mkdir(parents=True)
    (folder / "pipeline.yaml").write_text("title: Blind\nstages: [{name: look, queue: io}]\n")
    (folder / "stages.py").write_text("MODELS = {'look': ('eye',)}\ndef look(bench, given): ...\n")
    mill = make_mill("redis", "redis")
    worker = mill.worker("io", PIPELINE_DIRS=str(folder.parent))
    assert worker.wait(30) == 1
    assert "names no model 'eye'" in mill.logs()


def long_pipelines(place):
    """A folder with the poison pipeline again, as `long`, with a time limit of a day."""
    source, folder = ROOT / "tests" / "pipelines" / "poison", place / "pipelines" / "long"
    folder.mkdir(parents=True)
    text = (source / "pipeline.yaml").read_text().replace("poison, time_limit: 3", "long, time_limit: 86400")
    (folder / "pipeline.yaml").write_text(text)
    shutil.copy(source / "stages.py", folder)
    return str(folder.parent)
