"""What a worker counts. The parent counts for its children: what a killed child did stays counted, and costs no file.

A child says at the end of each part how it went (`celery_worker.line.Released`); who died is counted at the burial.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from celery_worker.line import Loaded, Released
from celery_worker.nvml import GpuUse
from celery_worker.workbench import Device
from jobs.model import Cause, Claim

PART = ("pipeline", "stage")
# From a part that does nothing to one that runs into its time limit.
SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
LOAD_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)


class WorkerCounts:
    """One worker's counts, in a registry of its own. `look` asks for the use of its GPUs when somebody scrapes."""

    def __init__(self, queues: Sequence[str], device: Device, look: Callable[[], Sequence[GpuUse]]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_Gpus(device, look))
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        about = {"queues": ",".join(queues), "device": device.name}
        Info("gristmill_worker", "Which queues it serves, and on what.", registry=self.registry).info(about)
        self.children = gauge("gristmill_worker_children", "Children that are there to work.")
        self._died = counter("gristmill_worker_children_died", "Children that died or were killed, by why.", ["why"])
        self._running = gauge("gristmill_parts_running", "Parts being worked on.", PART)
        self._waited = histogram(
            "gristmill_part_waited_seconds", "How long a part had been ready at its claim.", PART, buckets=SECONDS
        )
        self._ran = histogram(
            "gristmill_part_ran_seconds", "From a part's claim to its end.", (*PART, "outcome"), buckets=SECONDS
        )
        self._kept = counter("gristmill_kept_bytes", "Bytes of the files that parts kept for clients.", PART)
        self._loads = histogram(
            "gristmill_model_load_seconds", "How long a model took to load.", ["model"], buckets=LOAD_SECONDS
        )

    def held(self, claim: Claim) -> None:
        """A child has begun a part: an attempt."""
        self._running.labels(*_part(claim)).inc()
        self._waited.labels(*_part(claim)).observe(claim.waited_s)

    def released(self, claim: Claim, word: Released) -> None:
        """A child has done with a part. `lost`: another claim, or the job's end, went before its finish or fail."""
        self._ended(claim, word.outcome or "lost", word.ran_s)
        if word.kept_bytes:
            self._kept.labels(*_part(claim)).inc(word.kept_bytes)

    def died_with(self, claim: Claim, cause: Cause, ran_s: float) -> None:
        """A child died over a part."""
        self._ended(claim, cause.value, ran_s)

    def died(self, why: str) -> None:
        """A child died; `why` is an error's code."""
        self._died.labels(why).inc()

    def loaded(self, word: Loaded) -> None:
        """A child has loaded a model."""
        self._loads.labels(word.model).observe(word.seconds)

    def _ended(self, claim: Claim, outcome: str, ran_s: float) -> None:
        self._running.labels(*_part(claim)).dec()
        self._ran.labels(*_part(claim), outcome).observe(ran_s)


class _Gpus(Collector):
    """Memory and use of the worker's GPUs, by device; nothing where NVML does not answer."""

    def __init__(self, device: Device, look: Callable[[], Sequence[GpuUse]]) -> None:
        self._look = look if device.kind == "cuda" else tuple

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        used = _by_device("gristmill_gpu_memory_used_bytes", "Memory of the GPU in use, by whomever.")
        size = _by_device("gristmill_gpu_memory_size_bytes", "Memory of the GPU in all.")
        busy = _by_device("gristmill_gpu_busy_ratio", "Share of the last moments in which the GPU computed, 0..1.")
        for one in self._look():
            used.add_metric([one.device], one.memory_used)
            size.add_metric([one.device], one.memory_size)
            if one.busy is not None:
                busy.add_metric([one.device], one.busy)
        return (used, size, busy)


def _by_device(name: str, help: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help, labels=["device"])


def _part(claim: Claim) -> tuple[str, str]:
    return claim.pipeline, claim.stage.name
