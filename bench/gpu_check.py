"""What a GPU does here, beside the CPU: `make gpu-check`. Without a GPU it says so, and fails.

equal: what `video` sees in the sample on the GPU, 16 frames to a call, and on the CPU, one to a call.
fps: the detector alone, by frames to a call.
busy: the share of the time in which `video` infers that the GPU computes; and how soon it is free after a dismissal.
A list of GPUs that are none (GRISTMILL_GPU_LIST) is taken for trying this command out: its figures say `simulated`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from bench.rounds import machine
from bench.servers import ROOT, Servers
from bench.video import repeat
from celery_worker import devices, nvml
from celery_worker.models import Models
from celery_worker.pipelines.video.detect import MODEL, SIDE, answers, letterbox
from celery_worker.testing import MODELS, run
from celery_worker.workbench import Device
from gristmill import Client, Job, Stage

STREET = ROOT / "samples" / "street.mp4"
VIDEO = ROOT / "celery_worker" / "pipelines" / "video"
BATCH = 16
SIZES = (1, 4, 8, 16, 32)
BOX_PX, SCORE = 1.0, 0.01  # so far apart may a GPU's detections be: it adds floats up in another order
SAMPLE_S = 0.05
NO_GPU = (
    "gpu-check: there is no GPU here that ONNX Runtime can use (DEVICE={setting}), so nothing was checked. It needs "
    "NVIDIA's driver, and onnxruntime-gpu in the place of onnxruntime (requirements/gpu.txt)."
)

Detection = Mapping[str, Any]


def main() -> int:
    """0 when the results are equal and the GPU was kept busy; 1 when not; 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, default=256, help="that the detector looks at in a round")
    parser.add_argument("--times", type=int, default=20, help="how often the clip is repeated while the GPU is watched")
    asked = parser.parse_args()
    setting = os.environ.get("DEVICE", "auto")
    device = devices.find(setting)
    if device.kind == "cpu":
        print(NO_GPU.format(setting=setting), file=sys.stderr)
        return 2
    device = devices.pin(device)
    prefix = "gpu" if device.kind == "cuda" else "simulated"
    print(machine(), flush=True)
    print(f"device: {device.name}, {device.memory_bytes >> 20} MB", flush=True)
    wrong, found = unequal(device)
    for line in wrong[:10]:
        print(f"  {line}")
    lines = [f"figure {prefix}_equal_detections {found - len(wrong)} (of {found}; goal all)"]
    lines += [
        f"figure {prefix}_fps_batch_{size} {rate:.1f}"
        for size, rate in speeds(device, asked.frames, asked.rounds).items()
    ]
    busy, free_s = watched(setting, device, asked.times)
    if busy is not None:
        lines.append(f"figure {prefix}_busy_share {busy:.3f} (goal at least 0.9)")
    lines.append(f"figure {prefix}_free_after_dismissal_s {free_s:.2f} (until the next job computes; goal at most 5)")
    print("\n".join(lines))
    return 1 if wrong or (busy is not None and busy < 0.9) else 0


def unequal(device: Device) -> tuple[list[str], int]:
    """What differs between the device and the CPU, and how many detections there are on either."""
    params = {"fps": 5, "tasks": ["detect", "pose"], "outputs": ["detections"]}
    with tempfile.TemporaryDirectory(prefix="gristmill-gpu-check-") as folder:
        theirs = run(VIDEO, params, [STREET], folder=Path(folder) / "cpu", device=devices.cpu())
        ours = run(VIDEO, params, [STREET], folder=Path(folder) / "gpu", device=device, batch=BATCH)
        sides = [by_frame(done.artifacts["detections.jsonl"]) for done in (ours, theirs)]
        return differences(*sides, theirs.params["min_score"]), sum(map(len, sides[1].values()))


def by_frame(file: Path) -> dict[int, list[Detection]]:
    """The detections of each frame."""
    found: dict[int, list[Detection]] = {}
    for line in file.read_text().splitlines():
        one = json.loads(line)
        found.setdefault(one["frame"], []).append(one)
    return found


def differences(
    ours: Mapping[int, Sequence[Detection]], theirs: Mapping[int, Sequence[Detection]], least: float
) -> list[str]:
    """Detections that the other side has not: of one class, every edge within BOX_PX, the score within SCORE.

    One whose score is that near to the least may be missing on one side.
    """
    wrong = []
    for frame in sorted({*ours, *theirs}):
        for side, mine, others in (("device", ours, theirs), ("cpu", theirs, ours)):
            for one in mine.get(frame, ()):
                if one["score"] > least + SCORE and not any(near(one, other) for other in others.get(frame, ())):
                    wrong.append(f"frame {frame}: only the {side} sees {one['class']} at {one['box']}, {one['score']}")
    return wrong


def near(one: Detection, other: Detection) -> bool:
    """Whether the two are the same object."""
    apart = max(abs(a - b) for a, b in zip(one["box"], other["box"], strict=True))
    return one["class"] == other["class"] and apart <= BOX_PX and abs(one["score"] - other["score"]) <= SCORE


def speeds(device: Device, count: int, rounds: int) -> dict[int, float]:
    """Frames a second of the detector by frames to a call: the median of rounds in which each size has its turn."""
    frames = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    with av.open(str(STREET)) as file:
        for frame, picture in zip(frames, file.decode(video=0), strict=False):
            letterbox(picture.to_ndarray(format="rgb24"), False, frame)
    session = Models(MODELS, device).load(MODEL)
    rates: dict[int, list[float]] = {size: [] for size in SIZES}
    for size in SIZES:
        list(answers(session, frames[:size], size))  # the first call of a size prepares it
    for n in range(rounds):
        for size in SIZES:
            began = time.perf_counter()
            list(answers(session, frames, size))
            rates[size].append(count / (time.perf_counter() - began))
        print(f"  round {n + 1}: " + ", ".join(f"{size}: {rates[size][-1]:.1f} fps" for size in SIZES), flush=True)
    return {size: statistics.median(found) for size, found in rates.items()}


def watched(setting: str, device: Device, times: int) -> tuple[float | None, float]:
    """How busy the GPU is while `video` infers (None: nobody tells), and seconds from a dismissal to the next job."""
    with Servers() as servers:
        clip = servers.folder / "street.mp4"
        repeat(STREET, clip, times)
        client = Client(f"http://127.0.0.1:{servers.our_gateway()}")
        servers.our_sweeper()
        for queue in ("preprocess", "postprocess"):
            servers.our_worker(queue)
        told = {**servers.our_environment(), "DEVICE": setting, "MAX_BATCH": str(BATCH), "QUEUES": "inference"}
        servers.start("worker-inference", ["-m", "celery_worker"], **told)
        job = client.submit("video", file=STREET, fps=5).wait()  # warm
        if inference_of(job).device != device.name:
            raise RuntimeError(f"inference ran on {inference_of(job).device}, not on {device.name}")
        job = client.submit("video", file=clip, fps=25)
        with Sampler(device) as sampler:
            while not job.refresh().status.is_final:
                sampler.counts = inference_of(job).status == "running"
                time.sleep(SAMPLE_S)
        if str(job.status) != "successful":
            raise RuntimeError(f"the job is {job.status}: {job.error}")
        # While one job infers, it is dismissed, and another one wants the GPU.
        job = client.submit("video", file=clip, fps=25)
        servers.until(lambda: inference_of(job.refresh()).status == "running", "the job to infer")
        began = time.monotonic()
        job.dismiss()
        other = client.submit("video", file=STREET, fps=1, priority=9)
        servers.until(lambda: inference_of(other.refresh()).done, "the next job to infer")
        return sampler.share, time.monotonic() - began


def inference_of(job: Job) -> Stage:
    """The stage that the GPU is for."""
    return next(stage for stage in job.stages if stage.name == "inference")


class Sampler:
    """Asks NVML again and again how busy the device is, in a thread; those answers count that come while `counts`."""

    def __init__(self, device: Device) -> None:
        self.counts = False
        self._device, self._busy, self._ended = device, list[float](), threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    @property
    def share(self) -> float | None:
        """The mean of what counted."""
        return statistics.mean(self._busy) if self._busy else None

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            found = nvml.uses([(self._device.name, self._device.uuid)])
            if self.counts and found and found[0].busy is not None:
                self._busy.append(found[0].busy)


if __name__ == "__main__":
    sys.exit(main())
