"""The Celery app: every setting whose default is wrong for us, the queues, and each stage registered by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import kombu
from celery import Celery

from celery_worker import redis_transport
from celery_worker.batch import forms_of
from celery_worker.runtime import task_of
from celery_worker.stages import load
from celery_worker.workbench import Device
from jobs.brokers import PRIORITIES, client_name, queue_arguments, wire_name
from jobs.pipeline import Pipeline, Pipelines
from jobs.settings import Settings

# One thread a child: the children are the parallel part. Libraries read these when they are imported.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
LONGEST_S = 86_400  # the largest time limit that a pipeline may have


class App(Celery):
    """Travels to a spawned child by name: Celery itself would send the settings, and none of the tasks."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_main, ()


def _of_main() -> Celery:
    from celery_worker.main import app

    return app


def create_app(settings: Settings, device: Device) -> Celery:
    """An app that serves the queues of the settings. Raises PipelineBroken for a stage that is named and missing."""
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")
    redis_transport.install()
    app = App("gristmill", set_as_current=True)
    app.config_from_object(configuration(settings, device))
    for pipeline in served(settings).values():
        stages = load(pipeline)
        forms_of(pipeline)
        for plan in pipeline.stages:
            if plan.queue in settings.queues:
                # Tasks are shared between the apps of a process unless told not to be.
                # No time limit of Celery's: it would run on while a part waits for the store. The heart has its own.
                name = f"{pipeline.name}.{plan.name}"
                app.task(name=name, shared=False)(task_of(name, stages[plan.name]))
    return app


def served(settings: Settings) -> dict[str, Pipeline]:
    """The pipelines with a stage on one of the queues: others are not even imported."""
    return {
        name: pipeline
        for name, pipeline in Pipelines(settings.pipeline_dirs).items()
        if any(stage.queue in settings.queues for stage in pipeline.stages)
    }


def infers(settings: Settings) -> bool:
    """Whether it is one of those workers that a GPU is for; nobody else holds on to one."""
    return any(queue.split(".")[0] == "inference" for queue in settings.queues)


def configuration(settings: Settings, device: Device) -> Mapping[str, Any]:
    """Celery's settings, by its names. The reasons are in docs/decisions."""
    queues = [wire_name(queue, settings.queue_type) for queue in settings.queues]
    arguments = queue_arguments(settings.queue_type)
    return {
        "broker_url": settings.broker_url,
        "broker_heartbeat": 30,
        "broker_connection_max_retries": None,
        "broker_connection_retry_on_startup": True,
        "broker_pool_acquire_timeout": 5,
        "broker_transport_options": _transport(settings),
        "task_queues": [kombu.Queue(name, kombu.Exchange(""), name, queue_arguments=arguments) for name in queues],
        "task_default_queue": queues[0],
        "task_default_exchange_type": "topic",
        "task_create_missing_queues": False,
        "task_acks_late": "ack" not in settings.without,
        "task_reject_on_worker_lost": False,
        "task_ignore_result": True,
        "task_track_started": False,
        "accept_content": ["json"],
        "worker_prefetch_multiplier": 1,
        "worker_disable_rate_limits": True,
        "worker_proc_alive_timeout": 180,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_pool_start_method": "fork" if device.kind == "cpu" else "spawn",
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_send_task_events": settings.flower_events,
        "worker_enable_remote_control": settings.flower_events,
    }


def _transport(settings: Settings) -> dict[str, Any]:
    """No read_timeout here: this connection consumes, and may rightly hear nothing for hours."""
    if settings.broker_url.startswith("redis"):
        return {
            "priority_steps": list(range(PRIORITIES)),
            "visibility_timeout": LONGEST_S + 3_600,
            "unacked_restore_throttle": 1,
            "client_name": client_name(wire_name(settings.queues[0], settings.queue_type)),
        }
    return {"confirm_publish": True}
