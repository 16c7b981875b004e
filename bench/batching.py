"""What micro-batching is worth: `make bench-batching`.

cpu: 64 waiting single-image jobs and a real detector, where a batch cannot pay and must not be chosen. Both sides do
the same work then, so the figure is 1 and noise: it has three times the rounds.
device: a simulated one, 8 ms a call and 1 ms an input; always 8 jobs wait while up to 8 are looked at. And one alone.
Ours measures its batch; the peer is the same worker with MAX_BATCH=1. Each has a vhost and a database of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import av

from bench.rounds import Pair, figure, interleave, machine, paired, ratios
from bench.servers import ROOT, Servers
from jobs.brokers import open_broker
from jobs.dispatch import Bell
from jobs.model import Job, Status, Submission
from jobs.pipeline import Pipelines
from jobs.store import open_store

WAITING = 8  # jobs that wait at the simulated device, beside as many in its hands
CPU_JOBS = 64
LOOK_S = 0.001  # between two looks at how many are done
PAUSE_S = 0.005  # after a lone job
PATIENCE_S = 120.0


def main() -> int:
    """All three; the figures last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=320, help="of one round at the simulated device")
    parser.add_argument("--alone", type=int, default=200, help="jobs of one round and side, one after the other")
    asked = parser.parse_args()
    print(machine(), flush=True)
    with Servers() as servers:
        lines = on_the_cpu(servers, 3 * asked.rounds) + on_a_device(servers, asked.rounds, asked.jobs, asked.alone)
    print("\n".join(lines))
    return 0


def on_the_cpu(servers: Servers, rounds: int) -> list[str]:
    """Jobs a second through a stage with a real detector, all of them waiting at the beginning."""
    print(f"cpu: {CPU_JOBS} waiting pictures through the detector, in jobs a second", flush=True)
    picture = servers.folder / "street.png"
    with av.open(str(ROOT / "samples" / "street.mp4")) as file:
        next(file.decode(video=0)).to_image().save(picture)
    with both(servers, "stills", "inference.stills", picture=str(picture)) as (ours, peer):
        size = ours.size
        print(f"  ours chose {size} to a call", flush=True)

        def backlog(side: Side) -> float:
            began = side.begin()
            side.submit(CPU_JOBS)
            side.until(CPU_JOBS)
            return CPU_JOBS / (time.perf_counter() - began)

        backlog(ours), backlog(peer)
        pairs = interleave(lambda: backlog(ours), lambda: backlog(peer), rounds, "jobs/s")
    return [
        figure("batching_cpu_ratio", ratios(pairs), "at least 1.0"),
        f"figure batching_cpu_size {size} (goal 1)",
    ]


def on_a_device(servers: Servers, rounds: int, jobs: int, alone: int) -> list[str]:
    """Jobs a second with eight waiting, and the p95 of jobs that come one by one."""
    with both(servers, "slides", "inference.slides") as (ours, peer):
        size = ours.size
        print(
            f"device: {jobs} jobs, {WAITING} always waiting, in jobs a second; ours chose {size} to a call", flush=True
        )

        def stream(side: Side) -> float:
            began = side.begin()
            for sent in range(0, jobs, WAITING):
                side.submit(WAITING)
                # Those in its hands count as well: with one at a time there is one, and so more of the others wait.
                side.until(sent - WAITING)
            side.until(jobs)
            return jobs / (time.perf_counter() - began)

        stream(ours), stream(peer)
        crowds = interleave(lambda: stream(ours), lambda: stream(peer), rounds, "jobs/s")
        print(f"device: the p95 of {alone} jobs, each by itself, in ms", flush=True)

        def lone(side: Side) -> float:
            began = side.begin()
            side.submit(1)
            side.until(1)
            took = 1e3 * (time.perf_counter() - began)
            time.sleep(PAUSE_S)
            return took

        # Job by job: a p95 is what else the machine did for a moment, and that must strike both alike.
        lone(ours), lone(peer)
        singles = paired(lambda: p95s(lambda: lone(ours), lambda: lone(peer), alone), rounds, "ms")
    return [
        figure("batching_device_ratio", ratios(crowds), "at least 3.0"),
        figure("batching_lone_p95_ratio", ratios(singles), "at most 1.2"),
    ]


def p95s(ours: Callable[[], float], peer: Callable[[], float], count: int) -> Pair:
    """The p95 of so many on each side, taken in turn; who begins changes."""
    mine, other = [], []
    for n in range(count):
        if n % 2:
            other.append(peer())
        mine.append(ours())
        if not n % 2:
            other.append(peer())
    return statistics.quantiles(mine, n=20)[-1], statistics.quantiles(other, n=20)[-1]


@contextlib.contextmanager
def both(servers: Servers, pipeline: str, queue: str, **params: Any) -> Iterator[tuple[Side, Side]]:
    """A worker that measures its batch, and one that takes one at a time; both warm, and ended afterwards."""
    ours = Side(servers, "ours", (servers.our_broker, servers.our_store), pipeline, queue, params)
    peer = Side(servers, "peer", (servers.peer_broker, servers.peer_results), pipeline, queue, params, MAX_BATCH="1")
    try:
        for side in (ours, peer):
            side.begin()
            side.submit(1)
            side.until(1)
        yield ours, peer
    finally:
        ours.close()
        peer.close()


class Side:
    """One worker with its own broker and store. Jobs come straight from here: the gateway is not what is measured."""

    def __init__(
        self,
        servers: Servers,
        name: str,
        where: tuple[str, str],
        pipeline: str,
        queue: str,
        params: dict[str, Any],
        **environment: str,
    ) -> None:
        broker, store = where
        told = {**servers.our_environment(), "BROKER_URL": broker, "STORE_URL": store, "LOG_LEVEL": "info"}
        self._servers, self._worker, self._params = servers, f"worker-{name}-{queue}", params
        # One child: a device has one, and on the CPU both sides get one core for it.
        servers.start(self._worker, ["-m", "celery_worker", "-c", "1"], **{**told, **environment, "QUEUES": queue})
        self._pipeline = Pipelines(told["PIPELINE_DIRS"].split(","))[pipeline]
        self._store = open_store(store)
        self._bell = Bell(open_broker(broker), self._store.rung)
        self._sent = 0
        self._base = 0  # jobs that had ended at the beginning

    @property
    def size(self) -> int:
        """The batch that its worker has chosen, as its log says."""
        log = self._servers.folder / f"{self._worker}.log"
        [line] = [line for line in log.read_text().splitlines() if "batch_chosen" in line]
        found = re.search(r'"size": (\d+)', line)
        assert found
        return int(found[1])

    def submit(self, count: int) -> None:
        """Accept and ring so many jobs at once."""
        plan = self._pipeline.plan(window=8, max_failures=3, max_losses=5)
        params = self._pipeline.check(self._params)
        ids = [f"{self._worker}-{self._sent + n}" for n in range(count)]
        self._sent += count
        jobs = [Job(one, self._pipeline.name, plan, params, {}, family=one) for one in ids]
        accepted = self._store.add([Submission(job) for job in jobs])
        self._bell.ring([ring for one in accepted for ring in one.rings])

    def begin(self) -> float:
        """Count from here: nothing is on its way. The time, for a stop watch."""
        self._base = self._ended()
        return time.perf_counter()

    def until(self, count: int) -> None:
        """Wait until so many jobs have their result since the beginning."""
        until = time.monotonic() + PATIENCE_S
        while self._ended() - self._base < count:
            if time.monotonic() > until:
                raise RuntimeError(f"Jobs do not end.\n{self._servers.logs()}")
            time.sleep(LOOK_S)

    def _ended(self) -> int:
        counts = self._store.counts()
        if counts.get((self._pipeline.name, Status.FAILED)):
            raise RuntimeError(f"A job failed.\n{self._servers.logs()}")
        return counts.get((self._pipeline.name, Status.SUCCESSFUL), 0)

    def close(self) -> None:
        """End the worker."""
        self._servers.stop(self._worker)
        self._bell.close()
        self._store.close()


if __name__ == "__main__":
    sys.exit(main())
