"""Mixed faults for a long time: what leaks, shows."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from itertools import cycle

import psutil

from tests.faults.case import Scene, case
from tests.faults.cases.workers import kill_one_of, napping
from tests.faults.installation import CLASSIC
from tests.faults.processes import Kept

SOAK_S = float(os.environ.get("SOAK", "600"))
LONG_S = 3_600.0  # from here on a slope an hour can be told
FAULT_EVERY_S = 12.0
SHARE = 0.7  # of what the installation can do
SAMPLE_S = 2.0


@case(
    20,
    f"mixed faults for {SOAK_S:g} s at 70 % load",
    pairs=(CLASSIC,),
    jobs=0,
    alone=True,
    is_quiet=True,
    limit_s=SOAK_S + 600,
)
def soak(scene: Scene) -> None:
    """Some processes are never touched: it is their memory and file descriptors that are looked at."""
    here = scene.installation
    steady = [here.gateways[0], here.sweepers[0], *here.workers.values()]
    victims = [here.worker(queue, name=f"victim-{queue}") for queue in here.queues]
    can = _capacity(scene)
    scene.tell("jobs a second at most", can)
    faults = cycle(_faults(scene, victims))
    with _measuring(steady) as samples, scene.load(int(SHARE * can * SOAK_S), rate=SHARE * can, in_flight=500) as load:
        until = time.monotonic() + SOAK_S
        injected = 0
        while time.monotonic() < until and not load.is_over:
            time.sleep(FAULT_EVERY_S * random.uniform(0.7, 1.3))
            next(faults)()
            injected += 1
        load.enough()
    account = scene.settle()
    scene.expect("faults", injected, least=SOAK_S / FAULT_EVERY_S / 3)
    scene.expect("failed", len(account.failed), most=0)
    for program in steady:
        _judge(scene, program.name, samples[program.name])


def _faults(scene: Scene, victims: list[Kept]) -> list[Callable[[], object]]:
    here = scene.installation

    def killed_and_back(server) -> None:
        server.kill()
        time.sleep(1.0)
        server.start()
        scene.recovered_after(time.monotonic())

    def frozen() -> None:
        with scene.frozen(random.choice(victims)):
            time.sleep(1.5 * scene.lease_s)

    return [
        lambda: random.choice(victims).signal(signal.SIGKILL),
        lambda: kill_one_of(random.choice(victims)),
        lambda: here.gateways[1].signal_group(signal.SIGKILL),
        lambda: killed_and_back(here.broker_server),
        lambda: kill_one_of(random.choice(victims)),
        lambda: here.sweepers[1].signal(signal.SIGKILL),
        frozen,
        lambda: killed_and_back(here.store_server),
        lambda: random.choice(victims).signal_group(signal.SIGKILL),
    ]


def _capacity(scene: Scene) -> float:
    """Jobs a second that come through when there are always some waiting."""
    with scene.load(400, in_flight=80, body=napping(0.0)) as load:
        load.reached(0.3)
        began, first = time.monotonic(), load.accepted
    return (load.accepted - first) / (time.monotonic() - began)


class Samples:
    """Resident bytes and open files of one program and its children, over time."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.rss: list[int] = []
        self.files: list[int] = []

    def take(self, pids: list[int]) -> None:
        rss = files = 0
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                rss, files = rss + process.memory_info().rss, files + process.num_fds()
        self.at.append(time.monotonic())
        self.rss.append(rss)
        self.files.append(files)

    def window(self, values: list[int], begin: float, end: float) -> list[int]:
        """Those between two shares of the whole time."""
        first, length = self.at[0], self.at[-1] - self.at[0]
        return [value for at, value in zip(self.at, values, strict=True) if begin <= (at - first) / length <= end]


@contextlib.contextmanager
def _measuring(programs: list[Kept]) -> Iterator[dict[str, Samples]]:
    samples = {program.name: Samples() for program in programs}
    closing = threading.Event()

    def run() -> None:
        while not closing.wait(SAMPLE_S):
            for program in programs:
                samples[program.name].take([program.pid, *program.children()])

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        closing.set()
        thread.join(10.0)


def _judge(scene: Scene, name: str, samples: Samples) -> None:
    """Memory and files at the end against minute 3 of ten, or as a slope if the time was long enough for one."""
    early, late = samples.window(samples.rss, 0.2, 0.3), samples.window(samples.rss, 0.9, 1.0)
    if SOAK_S >= LONG_S:
        hours = [(at - samples.at[0]) / 3600 for at in samples.at]
        begin = len(hours) // 10
        slope = statistics.linear_regression(hours[begin:], samples.rss[begin:]).slope
        scene.expect(f"{name}: RSS % an hour", 100 * slope / statistics.median(early), most=1.0)
    else:
        scene.expect(f"{name}: RSS % grown", 100 * (statistics.median(late) / statistics.median(early) - 1), most=5.0)
    files = [statistics.median(samples.window(samples.files, *when)) for when in ((0.2, 0.3), (0.9, 1.0))]
    scene.expect(f"{name}: more open files", files[1] - files[0], most=3)
