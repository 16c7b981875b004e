"""What a worker's Celery app is made of: its stages by name, its queues, the settings that must not be Celery's own."""

import pickle

import pytest

from celery_worker import stages
from celery_worker.__main__ import concurrency
from celery_worker.app import configuration, create_app, served
from celery_worker.devices import cpu
from celery_worker.workbench import Device
from jobs.errors import PipelineBroken
from jobs.pipeline import read
from jobs.settings import Settings


def settings(**changes):
    given = {"broker_url": "amqp://localhost", "store_url": "redis://localhost", "files_url": "file:///tmp/files"}
    return Settings(**{**given, "pipeline_dirs": "tests/pipelines,celery_worker/pipelines", **changes})


def ours(app):
    return sorted(name for name in app.tasks if not name.startswith("celery."))


def test_a_worker_knows_the_stages_on_its_queues_and_no_others():
    app = create_app(settings(queues="grind,poison"), cpu())
    assert ours(app) == ["mill.grind", "poison.swallow"]
    assert sorted(served(settings(queues="grind"))) == ["mill"]


def test_two_apps_in_one_process_do_not_share_their_stages():
    create_app(settings(queues="poison"), cpu())
    assert ours(create_app(settings(queues="grind"), cpu())) == ["mill.grind"]


def test_a_stage_that_is_named_and_missing_is_told_at_boot(tmp_path):
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "pipeline.yaml").write_text("title: Hollow\nstages: [{name: absent, queue: io}]\n")
    (tmp_path / "hollow" / "stages.py").write_text("absent = 3\n")
    with pytest.raises(PipelineBroken, match="has no function absent"):
        create_app(settings(queues="io", pipeline_dirs=str(tmp_path)), cpu())


def test_a_pipeline_elsewhere_may_import_its_own_modules(tmp_path):
    folder = tmp_path / "split"
    folder.mkdir()
    (folder / "pipeline.yaml").write_text("title: Split\nstages: [{name: one, queue: io}]\n")
    (folder / "stages.py").write_text("from .more import one\nMODELS = {'one': ('detector',)}\n")
    (folder / "more.py").write_text("def one(bench, given):\n    return 1\n")
    assert stages.load(read(folder))["one"](None, None) == 1
    assert stages.models_of(read(folder)) == {"one": ("detector",)}


def test_what_the_promises_rest_on_is_set():
    found = configuration(settings(), cpu())
    assert {
        name: found[name]
        for name in ("task_acks_late", "task_reject_on_worker_lost", "task_ignore_result", "worker_prefetch_multiplier")
    } == {
        "task_acks_late": True,
        "task_reject_on_worker_lost": False,
        "task_ignore_result": True,
        "worker_prefetch_multiplier": 1,
    }
    assert found["worker_cancel_long_running_tasks_on_connection_loss"] is False
    assert "read_timeout" not in found["broker_transport_options"]


def test_a_redis_broker_gives_a_part_back_only_after_the_longest_stage():
    options = configuration(settings(broker_url="redis://localhost"), cpu())["broker_transport_options"]
    assert (options["visibility_timeout"] > 86_400, options["priority_steps"]) == (True, list(range(10)))


def test_the_type_of_a_queue_shows_in_its_name_and_in_that_of_its_dead_letters():
    classic, quorum = (configuration(settings(queues="io", queue_type=t), cpu()) for t in ("classic", "quorum"))
    assert [(q.name, q.queue_arguments) for q in (*classic["task_queues"], *quorum["task_queues"])] == [
        ("io", {"x-max-priority": 10, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}),
        (
            "io.quorum",
            {
                "x-queue-type": "quorum",
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": "dead.quorum",
            },
        ),
    ]


def test_a_gpu_has_one_child_that_is_spawned():
    gpu = Device("cuda:0 Any", "cuda")
    assert configuration(settings(), gpu)["worker_pool_start_method"] == "spawn"
    assert configuration(settings(), cpu())["worker_pool_start_method"] == "fork"
    assert concurrency("inference", "cuda") == concurrency("inference.text", "cuda") == 1
    assert concurrency("io", "cpu") >= 4


def test_the_app_is_pickled_by_name():
    assert b"_of_main" in pickle.dumps(create_app(settings(queues="io"), cpu()))
