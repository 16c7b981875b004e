"""How busy `video` would keep a device of so many frames a second: what the host costs, seen without a GPU.

The device is a clock: a call is done so long after the one before it, and the answers are those of the CPU. So what is
left idle is what Python needs between two calls. A part of `make gpu-check` on a list of GPUs that are none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.servers import ROOT
from bench.video import STREET
from celery_worker.models import Models
from celery_worker.pipelines.video.detect import MODEL
from celery_worker.testing import MODELS, run
from celery_worker.workbench import Device

VIDEO = ROOT / "celery_worker" / "pipelines" / "video"
PARAMS = {"fps": 25, "tasks": ["detect"], "outputs": ["detections"]}


def shares(device: Device, batch: int, frames_a_second: float, rounds: int) -> list[float]:
    """The device's seconds of work in those that the inference of the sample took, round by round."""
    models = _Clocked(device, frames_a_second)
    run(VIDEO, PARAMS, [STREET], device=device, batch=batch, models=models)  # warm: each size's answers are known
    found = []
    for _ in range(rounds):
        models.detector.busy_s = 0.0
        done = run(VIDEO, PARAMS, [STREET], device=device, batch=batch, models=models)
        found.append(models.detector.busy_s / done.result["seconds"]["inference"])
    return found


class _Clocked(Models):
    """The repository's models; the detector runs on the clock."""

    def __init__(self, device: Device, frames_a_second: float) -> None:
        super().__init__(MODELS, device)
        self.detector = _Detector(super().load(MODEL), frames_a_second)

    def load(self, name: str) -> Any:
        return self.detector if name == MODEL else super().load(name)


class _Detector:
    """A session whose calls queue up for one device, as those of several threads do on a GPU."""

    def __init__(self, session: Any, frames_a_second: float) -> None:
        self.labels = session.labels
        self.busy_s = 0.0
        self._session, self._rate = session, frames_a_second
        self._answers: dict[int, list[np.ndarray]] = {}
        self._free_at = 0.0
        self._turn = threading.Lock()

    def run(self, names: Sequence[str], given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The answers, once the device is through with this call."""
        frames = np.array(given["images"])  # as on its way to the device
        with self._turn:
            if len(frames) not in self._answers:
                self._answers[len(frames)] = self._session.run(names, {"images": frames})
            took = len(frames) / self._rate
            self._free_at = done_at = max(self._free_at, time.perf_counter()) + took
            self.busy_s += took
        time.sleep(max(0.0, done_at - time.perf_counter()))
        return [answer.copy() for answer in self._answers[len(frames)]]
