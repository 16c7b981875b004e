"""How gunicorn runs the gateway. WEB_CONCURRENCY is the number of processes."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from typing import Any

from jobs.settings import load_or_exit

bind = f"0.0.0.0:{load_or_exit().api_port}"
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
logger_class = "api.gunicorn_log.OneForm"
worker_class = "uvicorn_worker.UvicornWorker"  # Flask behind gunicorn's own asgi worker deadlocks on lost streams
backlog = 2048
keepalive = 30
timeout = 60
control_socket_disable = True  # its default path is one for all gateways of a user
graceful_timeout = 30  # downloads under way; those who wait are let go at once

_made_here = "PROMETHEUS_MULTIPROC_DIR" not in os.environ
_folder = os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", "") or tempfile.mkdtemp(prefix="gristmill-metrics-")
os.environ["PROMETHEUS_MULTIPROC_DIR"] = _folder

import api.app  # noqa: E402, F401 - imported before the fork, so that the processes share it; the folder must be known


def post_worker_init(worker: Any) -> None:
    """What is there now stays for good: the garbage collector need not look at it again, nor after every few requests.

    It takes 8 us of a job otherwise, and now and then 50 ms at once: https://docs.python.org/3/library/gc.html#gc.freeze
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


def child_exit(server: Any, worker: Any) -> None:
    """Its gauges end with a process; its counters stay in the sum."""
    from prometheus_client.multiprocess import mark_process_dead  # only now: its import looks for the folder

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def on_exit(server: Any) -> None:
    """The counters end with the gateway."""
    if _made_here:
        shutil.rmtree(_folder, ignore_errors=True)
