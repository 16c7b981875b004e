"""What being watched costs: metrics, logs and traces on against off: `make bench-gauges`.

On: everything counts and is scraped, logs at `info` go to files, each request and part belongs to a trace and has a
span in it, which goes to a collector (bench/sink.py).
Off: the same processes with all of that taken out (bench/bare.py), logs at `error`. Both are whole installations beside
each other on one RabbitMQ and one Redis with AOF `always`; one rests while the other one is measured.

submit: 16 clients and 2 gateway processes, from the first POST to the last signature on its queue. Each process is a
gateway of its own and has half of the clients: behind one port chance deals them out, and that moves the rate more than
what is measured.
video: street.mp4 some times in a row at 25 frames a second, from the upload to `successful`.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bench.overhead import ADDITION, check, drain, end_all, load
from bench.rounds import Pair, figure, interleave, machine, ratios
from bench.servers import Servers
from bench.video import QUEUES, STREET, ours_of, repeat
from gristmill import Client
from jobs.store import open_store
from tests.neighbours import free_port

GATEWAYS = 2
SCRAPE_S = 10.0  # as docker/monitoring/prometheus.yml says; of the time that is measured, so the first round has one


@dataclass
class Side:
    """One of the two installations: its URLs, its gateways' ports, and those of others that tell what they count."""

    name: str
    broker: str
    store: str
    ports: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    collector: int = 0
    scrape_in_s: float = 0.0

    @property
    def is_watched(self) -> bool:
        """Whether this is the side with everything on."""
        return self.name == "on"

    def start(self, servers: Servers, queues: tuple[str, ...]) -> None:
        """Two gateways, a sweeper, a worker for each queue; on the watched side a collector too."""
        files = f"file://{servers.folder}/files-{self.name}"
        env = {"BROKER_URL": self.broker, "STORE_URL": self.store, "FILES_URL": files, "LOG_LEVEL": "error"}
        if self.is_watched:
            self.collector = free_port()
            servers.start("sink", ["-m", "bench.sink", str(self.collector)])
            servers.ready(self.collector, "/")
            env |= {"LOG_LEVEL": "info", "OTLP_URL": f"http://127.0.0.1:{self.collector}"}
        app = "api.main:app" if self.is_watched else "bench.bare:app"
        self.ports = [servers.our_gateway(1, name=f"gateway-{n}-{self.name}", app=app, **env) for n in range(GATEWAYS)]
        programs = {"sweeper": ["-m", "jobs.sweeper"]}
        worker = ["-m", "celery_worker" if self.is_watched else "bench.bare"]
        programs |= {f"worker-{queue}": worker for queue in queues}
        for name, command in programs.items():
            own = {"QUEUES": name.removeprefix("worker-")} if name.startswith("worker-") else {}
            if self.is_watched:
                self.told.append(free_port())
                own["METRICS_PORT"] = str(self.told[-1])
            servers.start(f"{name}-{self.name}", command, **{**servers.our_environment(), **env, **own})
        for port in self.told:
            servers.ready(port, "/metrics")

    def spans_sent(self) -> int:
        """How many requests with spans the collector has taken."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.collector}/", timeout=20) as answer:
            return int(answer.read())

    @contextlib.contextmanager
    def scraped(self) -> Iterator[None]:
        """Ask for everything that it counts when it is time, as Prometheus would; of the other side nobody asks."""
        if not self.is_watched:
            yield
            return
        done, before = threading.Event(), self.spans_sent()
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(self._ask_until, done)
            try:
                yield
            finally:
                done.set()
            asking.result()  # a scrape that failed would make this side cheaper than it is
        if self.spans_sent() == before:
            raise RuntimeError("No span came to the collector.")

    def _ask_until(self, done: threading.Event) -> None:
        began = time.monotonic()
        while not done.wait(self.scrape_in_s):
            self._ask()
            began, self.scrape_in_s = time.monotonic(), SCRAPE_S
        self.scrape_in_s = max(0.0, self.scrape_in_s - (time.monotonic() - began))

    def _ask(self) -> None:
        for port in (*self.ports, *self.told):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            if answer.status != 200 or b"gristmill_" not in answer.read():
                raise RuntimeError(f"port {port} answers {answer.status}")
            connection.close()


def main() -> int:
    """Both benches; the figures last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31, help="of submit; a third as many of video")
    parser.add_argument("--submissions", type=int, default=2_000, help="of one round of the submit rate")
    parser.add_argument("--times", type=int, default=4, help="how often the clip is repeated")
    parser.add_argument("--only", choices=("submit", "video"))
    asked = parser.parse_args()
    print(machine(), flush=True)
    lines = []
    if asked.only != "video":
        print(f"submit: {asked.submissions} POSTs of 16 clients until all are queued, in jobs a second", flush=True)
        lines.append(figure("gauges_submit_ratio", ratios(submit(asked.rounds, asked.submissions)), "at least 0.97"))
    if asked.only != "submit":
        print(f"video: street.mp4 {asked.times} times in a row, in frames a second", flush=True)
        pairs = video(max(7, asked.rounds // 3), asked.times)
        lines.append(figure("gauges_video_ratio", ratios(pairs), "at least 0.97"))
    print("\n".join(lines))
    return 0


@contextlib.contextmanager
def sides(*queues: str) -> Iterator[tuple[Servers, Side, Side]]:
    """Both installations, up."""
    with Servers() as servers:
        on = Side("on", servers.our_broker, servers.our_store)
        off = Side("off", servers.peer_broker, servers.peer_results)
        for side in (on, off):
            side.start(servers, queues)
        yield servers, on, off


def submit(rounds: int, submissions: int) -> list[Pair]:
    """Acceptances a second, on and off."""
    with sides() as (servers, on, off):

        def rate_of(side: Side) -> float:
            with side.scraped():
                found = load(servers, side.ports, ADDITION, submissions, side.broker, "io")
            store = open_store(side.store)
            # Ended before their signatures are taken away: a sweeper would miss those, and ring again.
            end_all(store, found["ids"])
            store.close()
            check(found["ids"], [arguments[0] for _, arguments in drain(side.broker, "io")])
            return submissions / found["queued_s"]

        return _rounds(rate_of, on, off, rounds, "jobs/s")


def video(rounds: int, times: int) -> list[Pair]:
    """Frames a second, on and off."""
    with sides(*QUEUES) as (servers, on, off):
        clip: Path = servers.folder / "street.mp4"
        frames = repeat(STREET, clip, times)
        clients = {side.name: Client(f"http://127.0.0.1:{side.ports[0]}") for side in (on, off)}

        def rate_of(side: Side) -> float:
            with side.scraped():
                seconds, counted = ours_of(clients[side.name], clip)
            if counted != frames:
                raise RuntimeError(f"{counted} frames of {frames}")
            return frames / seconds

        return _rounds(rate_of, on, off, rounds, "fps")


def _rounds(rate_of: Callable[[Side], float], on: Side, off: Side, rounds: int, unit: str) -> list[Pair]:
    for side in (on, off):  # warm
        rate_of(side)
    return interleave(lambda: rate_of(on), lambda: rate_of(off), rounds, unit)


if __name__ == "__main__":
    sys.exit(main())
