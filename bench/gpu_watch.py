"""How busy `video` keeps a GPU, and how soon it is free after a dismissal: the second half of `make gpu-check`."""

from __future__ import annotations

import os
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from bench.gpu_share import PARAMS
from bench.servers import Servers
from bench.video import STREET, repeat
from celery_worker import nvml
from celery_worker.workbench import Device
from gristmill import Client, Job, Stage

SAMPLE_S = 0.05
WINDOW_S = 1.2  # NVML tells of the last 1/6 to 1 s, by the device
START_S = 300.0  # until the first job is through: a large GPU's libraries are read from the disk first
DISMISSALS = 3


@dataclass(frozen=True)
class Watched:
    """What was seen. `busy_s`: seconds in which the GPU computed, None where it does not tell.

    `inference_s` is what `video` says it needed for its inference, and `wall_s` how long it all took.
    """

    busy_s: float | None
    inference_s: float
    wall_s: float
    frames: int
    free_s: list[float]


def watched(setting: str, device: Device, batch: int, seconds: float, times: int) -> Watched:
    """Many videos at once, so that the GPU always has something to do, for so many seconds; then the dismissals."""
    with Servers(rabbitmq=False) as servers:
        clips = [servers.folder / f"{name}.mp4" for name in ("clip", "long")]
        repeat(STREET, clips[0], times)
        repeat(STREET, clips[1], 10 * times)
        client = Client(f"http://127.0.0.1:{servers.our_gateway()}")
        servers.our_sweeper()
        for queue in ("preprocess", "postprocess"):
            servers.our_worker(queue)
        told = {**servers.our_environment(), "DEVICE": setting, "MAX_BATCH": str(batch), "QUEUES": "inference"}
        servers.start("worker-inference", ["-m", "celery_worker"], **told)
        job = ended(servers, client.submit("video", file=STREET, **PARAMS))  # warm
        if inference_of(job).device != device.name:
            raise RuntimeError(f"inference ran on {inference_of(job).device}, not on {device.name}")
        time.sleep(WINDOW_S)
        began = time.monotonic()
        with Sampler(device) as sampler:
            done = kept_busy(servers, client, clips[0], seconds)
            wall_s = time.monotonic() - began
            time.sleep(WINDOW_S)  # what the last calls did is told by now
        inference_s = sum(job.result["seconds"]["inference"] for job in done)
        frames = sum(job.result["frames"] for job in done)
        free_s = [freed(servers, client, clips[1]) for _ in range(DISMISSALS)]
        return Watched(sampler.busy_s, inference_s, wall_s, frames, free_s)


def kept_busy(servers: Servers, client: Client, clip: Path, seconds: float) -> list[Job]:
    """As many jobs under way as there are cores, for so long; all of them, ended."""
    under_way: list[Job] = []
    done: list[Job] = []
    until = time.monotonic() + seconds
    while under_way or time.monotonic() < until:
        while len(under_way) < len(os.sched_getaffinity(0)) and time.monotonic() < until:
            under_way.append(client.submit("video", file=clip, **PARAMS))
        done.append(ended(servers, under_way.pop(0)))
    return done


def ended(servers: Servers, job: Job) -> Job:
    """A job once it is successful. Raises RuntimeError for another end, or if a process of ours has ended."""
    servers.until(lambda: job.refresh().status.is_final, f"{job.id} to end", within_s=START_S)
    if str(job.status) != "successful":
        raise RuntimeError(f"the job is {job.status}: {job.error}")
    return job


def freed(servers: Servers, client: Client, clip: Path) -> float:
    """Seconds from the dismissal of a job in the middle of its inference until another one's is done."""
    job = client.submit("video", file=clip, **PARAMS)
    servers.until(lambda: inference_of(job.refresh()).done, "the job to infer", within_s=START_S)
    began = time.monotonic()
    job.dismiss()
    other = client.submit("video", file=STREET, **{**PARAMS, "fps": 1}, priority=9)
    servers.until(lambda: inference_of(other.refresh()).done, "the next job to infer", within_s=START_S)
    seconds = time.monotonic() - began
    if str(job.refresh().status) != "dismissed":
        raise RuntimeError(f"the job was {job.status} before it could be dismissed: --times 100 makes it longer")
    ended(servers, other)
    return seconds


def inference_of(job: Job) -> Stage:
    """The stage that the GPU is for."""
    return next(stage for stage in job.stages if stage.name == "inference")


class Sampler:
    """Asks NVML again and again how busy the device was of late, in a thread."""

    def __init__(self, device: Device) -> None:
        self._device, self._busy, self._ended = device, list[float](), threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._seconds = 0.0

    @property
    def busy_s(self) -> float | None:
        """The integral of what it said. Each answer tells of the past, so begin idle, and go on for WINDOW_S after."""
        return statistics.mean(self._busy) * self._seconds if self._busy else None

    def __enter__(self) -> Sampler:
        self._seconds = -time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._seconds += time.monotonic()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            found = nvml.uses([(self._device.name, self._device.uuid)])
            if found and found[0].busy is not None:
                self._busy.append(found[0].busy)
