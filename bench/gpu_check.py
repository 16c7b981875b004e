"""What a GPU does here, beside the CPU: `make gpu-check`. Without a GPU it says so, and fails.

equal: what `video` sees in the sample on the GPU, 16 frames to a call, and on the CPU, one to a call; and the landmarks
that the same crops of persons have on both.
fps: the detector alone, by frames to a call; its input comes from the host's memory, its answers go there.
busy: the share of the time in which `video` infers that the GPU computes, by NVML; and how soon it is free after a
dismissal. That part runs a gateway and workers on Redis, and needs no RabbitMQ.
A list of GPUs that are none (GRISTMILL_GPU_LIST) is taken for trying this command out: its figures say `simulated`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np

from bench.gpu_share import VIDEO, shares
from bench.gpu_watch import watched
from bench.rounds import figure, machine
from bench.video import STREET
from celery_worker import cuda, devices
from celery_worker.models import Models
from celery_worker.pipelines.video import persons
from celery_worker.pipelines.video.detect import MODEL, SIDE, answers, detect, letterbox
from celery_worker.testing import MODELS, run
from celery_worker.workbench import Device
from jobs.errors import SettingsInvalid

BATCH = 16
SIZES = (1, 4, 8, 16, 32)
BOX_PX, SCORE = 1.0, 0.01  # so far apart may a GPU's detections be: it adds floats up in another order
LANDMARK_PX = 1.0  # ... and a landmark, in pixels of its model's 256
WARM_S = 1.0  # a GPU that idled runs at a fraction of its clock for a moment
GOAL = 0.9
CLOCKED = (500, 1000, 2000)  # frames a second of a device that is a clock
NO_GPU = (
    "gpu-check: there is no GPU here that ONNX Runtime can use (DEVICE={setting}): {why}. Nothing was checked. "
    "It needs NVIDIA's driver, and onnxruntime-gpu in the place of onnxruntime (requirements/gpu.txt)."
)

Detection = Mapping[str, Any]


def main() -> int:
    """0 when the results are equal and the GPU was kept busy; 1 when not; 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, default=256, help="that the detector looks at in a round")
    parser.add_argument("--seconds", type=float, default=30.0, help="that the GPU is watched for while videos come in")
    parser.add_argument("--times", type=int, default=6, help="how often the sample is repeated in each of these videos")
    asked = parser.parse_args()
    setting = os.environ.get("DEVICE", "auto")
    try:
        device = devices.find(setting)
    except SettingsInvalid as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    if device.kind == "cpu":
        why = "it is not asked for" if setting == "cpu" else cuda.trouble() or "none is seen"
        print(NO_GPU.format(setting=setting, why=why), file=sys.stderr)
        return 2
    device = devices.pin(device)
    prefix = "gpu" if device.kind == "cuda" else "simulated"
    print(machine(), flush=True)
    print(f"device: {device.name}, {device.memory_bytes >> 20} MB", flush=True)
    # In a process of its own: then nobody but the workers has the device while it is watched.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        wrong, seen = alone.submit(unequal, device).result()
        apart = alone.submit(landmarks_apart, device).result()
        rates = alone.submit(speeds, device, asked.frames, asked.rounds).result()
    for line in wrong[:10]:
        print(f"  {line}")
    if apart:
        print(f"  landmarks lie {max(apart):.3f} pixels apart at most, {statistics.median(apart):.4f} in the middle")
    found = watched(setting, device, BATCH, asked.seconds, asked.times)
    near_ones = sum(one <= LANDMARK_PX for one in apart)
    lines = [f"figure {prefix}_unequal_detections {len(wrong)} (of {seen} on the CPU; goal 0)"]
    lines += [f"figure {prefix}_equal_landmarks {near_ones} (of {len(apart)}; goal all)"]
    lines += [f"figure {prefix}_fps_batch_{size} {rate:.1f}" for size, rate in rates.items()]
    lines += [f"figure {prefix}_fps_video {found.frames / found.wall_s:.1f} (in {found.wall_s:.0f} s)"]
    share = None if found.busy_s is None else found.busy_s / found.inference_s
    if device.kind == "simulated":
        lines += [
            figure(f"simulated_busy_share_at_{rate}_fps", shares(device, BATCH, rate, asked.rounds), f"at least {GOAL}")
            for rate in CLOCKED
        ]
    elif found.busy_s is None or share is None:
        print(f"  NVML does not tell how busy {device.name} is: of a MIG slice it never does")
    else:
        lines += [
            f"figure {prefix}_busy_share {share:.3f} (of {found.inference_s:.0f} s of inference; goal at least {GOAL})",
            f"figure {prefix}_busy_share_of_all {found.busy_s / found.wall_s:.3f} (of all the time)",
        ]
    lines += [figure(f"{prefix}_free_after_dismissal_s", found.free_s, "at most 5, until the next job has computed")]
    print("\n".join(lines))
    equal = seen > 0 and not wrong and apart and near_ones == len(apart)
    return 0 if equal and (share is None or share >= GOAL) else 1


def unequal(device: Device) -> tuple[list[str], int]:
    """What differs between the device and the CPU, and how many detections there are on the CPU."""
    params = {"fps": 5, "tasks": ["detect"], "outputs": ["detections"]}
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


def landmarks_apart(device: Device) -> list[float]:
    """How far each landmark of each person lies from where the CPU has it, in pixels of the model; the same crops."""
    ours, theirs = (Models(MODELS, one).load(persons.MODEL) for one in (device, devices.cpu()))
    detector = Models(MODELS, devices.cpu()).load(MODEL)
    person = detector.labels.index("person")
    found: list[float] = []
    with av.open(str(STREET)) as file:
        for frame in islice(file.decode(video=0), 0, 100, 10):
            picture = frame.to_ndarray(format="rgb24")
            small = np.zeros((1, SIDE, SIDE, 3), np.uint8)
            letterbox(picture, False, small[0])
            size = (frame.width, frame.height)
            [seen] = detect(detector, small, batch=1, size=size, min_score=0.4, classes=frozenset({person}))
            crops = [persons.cut(picture, *square) for square in persons.squares_of(seen, 1.0)]
            for mine, other in zip(persons.looks(ours, crops, BATCH), persons.looks(theirs, crops, 1), strict=True):
                if float(other[1][0]) >= persons.SURE:
                    found += np.abs(mine[0] - other[0])[: persons.LANDMARKS, :2].max(axis=1).tolist()
    return found


def speeds(device: Device, count: int, rounds: int) -> dict[int, float]:
    """Frames a second of the detector by frames to a call: the median of rounds in which each size has its turn."""
    frames = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    with av.open(str(STREET)) as file:
        for frame, picture in zip(frames, file.decode(video=0), strict=False):
            letterbox(picture.to_ndarray(format="rgb24"), False, frame)
    session = Models(MODELS, device).load(MODEL)
    rates: dict[int, list[float]] = {size: [] for size in SIZES}
    for size in SIZES:  # the first call of a size prepares it
        until = time.perf_counter() + WARM_S
        while list(answers(session, frames[:size], size)) and time.perf_counter() < until:
            pass
    for n in range(rounds):
        for size in SIZES:
            began = time.perf_counter()
            list(answers(session, frames, size))  # a call returns once its answers are in the host's memory
            rates[size].append(count / (time.perf_counter() - began))
        print(f"  round {n + 1}: " + ", ".join(f"{size}: {rates[size][-1]:.1f} fps" for size in SIZES), flush=True)
    return {size: statistics.median(found) for size, found in rates.items()}


if __name__ == "__main__":
    sys.exit(main())
