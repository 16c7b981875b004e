"""Starts a worker with the right flags: `python -m celery_worker`.

Each queue gets a worker with children of its own: if they shared them, the stages that emit could hold them all while
they wait for the stage that consumes.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from types import FrameType

from celery_worker import devices
from jobs import log
from jobs.settings import load_or_exit

AFTER_KILL_S = 10.0  # a worker that has not ended so long after its grace is killed

logger = log.get(__name__)


def main() -> int:
    """One queue: be its worker. Several: start one for each, and end with all of them."""
    options = _options()
    settings = load_or_exit()
    if len(settings.queues) == 1:
        return work(settings.queues[0], options)
    log.setup(settings.log_level)
    return supervise(settings.queues, options.grace, settings.metrics_port)


def work(queue: str, options: argparse.Namespace) -> int:
    """Be the worker of one queue; returns when it is shut down."""
    from celery_worker.main import app, device, parent

    parent.grace_s = options.grace
    children = options.concurrency or concurrency(queue, device.kind)
    # In Celery 5.7 two workers of one name on one host cannot live together.
    name = f"{os.environ.get('WORKER_NAME', queue)}-{os.getpid()}@%h"
    flags = ["--pool=prefork", f"--concurrency={children}", "--without-gossip", "--without-mingle", "-n", name]
    app.worker_main(["--quiet", "worker", *flags, "--loglevel", "WARNING"])
    return 0


def concurrency(queue: str, kind: str) -> int:
    """How many children: one for a GPU, one a core for inference on a CPU, more where they mostly wait."""
    group = queue.split(".")[0]
    if group == "inference":
        return devices.cores() if kind == "cpu" else 1
    return max(4, 2 * devices.cores()) if group == "io" else max(1, devices.cores() // 2)


def supervise(queues: tuple[str, ...], grace_s: float, metrics_port: int) -> int:
    """Start a worker for each queue, each with a metrics port; when one ends, or a signal comes, end them all."""
    stopping = False

    def end(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    command = [sys.executable, "-m", "celery_worker", *sys.argv[1:]]
    # Groups of their own: Ctrl-C reaches this process alone, and each worker is told once.
    workers = {}
    for number, queue in enumerate(queues):
        own = {"QUEUES": queue, "METRICS_PORT": str(metrics_port and metrics_port + number)}
        workers[queue] = subprocess.Popen(command, env={**os.environ, **own}, start_new_session=True)
    ended: dict[str, int] = {}
    while not stopping and not ended:
        time.sleep(0.2)
        ended = {queue: code for queue, one in workers.items() if (code := one.poll()) is not None}
    if ended:
        logger.error("worker_ended", codes=ended)
    for one in workers.values():
        if one.poll() is None:
            one.terminate()
    until = time.monotonic() + grace_s + AFTER_KILL_S
    for one in workers.values():
        try:
            one.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.kill()
    return 1 if ended else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m celery_worker", description=__doc__)
    parser.add_argument("--grace", type=float, default=60.0, help="seconds that a shutdown waits for running parts")
    parser.add_argument("-c", "--concurrency", type=int, help="children (default: by the queue and the device)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
