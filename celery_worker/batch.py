"""How many inputs one call of a stage takes on this device: measured before the first claim, halved when memory ends.

What a stage declares: `batch: {max, wait_ms}` in pipeline.yaml; in stages.py a probe in `PROBE` and, if one call may
serve several parts, a function `<stage>_batch(benches, givens)` and how many inputs a part has in `WEIGHT`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery_worker.device_errors import is_out_of_memory
from celery_worker.stages import load_module
from jobs import log
from jobs.errors import PipelineBroken
from jobs.model import Claim
from jobs.pipeline import Pipeline

GAIN = 0.85  # a batch twice as large must bring an input's cost down to this share, or it is not worth its delay
TRIES = 5  # runs of a probe at each size; the quickest counts
SURE = 2  # comparisons in a row that a larger size must win
WAIT_SHARE = 0.1  # of a lone call's time: so long others may be waited for, and only while there are others

logger = log.get(__name__)

Probe = Callable[[Callable[[str], Any], int], object]
Call = Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True)
class Form:
    """What a stage says of its batches.

    `probe` is None where its models are the job's, so that nothing can be measured beforehand: a GPU then takes the
    most, and less once memory ends. `call` is None where one call serves one part only, `weigh` where a part is one
    input.
    """

    task: str
    probe: Probe | None
    call: Call | None
    weigh: Callable[[Any], int] | None
    most: int
    wait_s: float


@dataclass
class Batch:
    """What was found out. `size` inputs to a call; `costs` maps sizes to the seconds of a call.

    `like` is a claim of the stage: further ones are asked for by it. `had_company`: the last batch had several parts.
    """

    form: Form
    size: int
    wait_s: float
    costs: Mapping[int, float] = field(default_factory=dict)
    like: Claim | None = None
    had_company: bool = False

    @property
    def takes_several(self) -> bool:
        """Whether parts of several jobs go into one call here."""
        return self.form.call is not None and self.size > 1

    def halve(self) -> bool:
        """Memory has ended: take half as many from now on. False when there is nothing to halve."""
        if self.size == 1:
            return False
        self.size //= 2
        logger.warning("batch_halved", task=self.form.task, size=self.size)
        return True


def forms_of(pipeline: Pipeline) -> dict[str, Form]:
    """By stage, what those say that batch at all. Raises PipelineBroken for a `batch` in the yaml without a probe."""
    module = load_module(pipeline)
    probes: Mapping[str, Probe | None] = getattr(module, "PROBE", {})
    if missing := sorted(pipeline.batches.keys() - probes.keys()):
        where = pipeline.folder / "stages.py"
        raise PipelineBroken(f"{where} has no PROBE for {', '.join(missing)}, which batches by pipeline.yaml.")
    weights: Mapping[str, Callable[[Any], int]] = getattr(module, "WEIGHT", {})
    return {
        name: Form(
            task=f"{pipeline.name}.{name}",
            probe=probes[name],
            call=getattr(module, f"{name}_batch", None),
            weigh=weights.get(name),
            most=found.max,
            wait_s=found.wait_ms / 1e3,
        )
        for name, found in pipeline.batches.items()
    }


def measured(
    form: Form, model: Callable[[str], Any], most: int, kind: str, clock: Callable[[], float] = time.perf_counter
) -> Batch:
    """Double the size for as long as it pays. A CPU stays at 1; a device that runs out of memory below that size.

    `kind` is the device's.
    """
    most = min(most, form.most)
    if form.probe is None:
        return Batch(form, 1 if kind == "cpu" else most, 0.0)
    costs: dict[int, float] = {}
    size = 1
    try:
        # What else the machine does may make one comparison come out wrong, but hardly two in a row.
        while 2 * size <= most and all(_pays(form.probe, model, size, costs, clock) for _ in range(SURE)):
            size *= 2
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("batch_probe_out_of_memory", task=form.task, size=size)
    wait_s = min(form.wait_s, WAIT_SHARE * costs.get(1, 0.0)) if size > 1 else 0.0
    told = {str(n): round(1e3 * seconds, 3) for n, seconds in costs.items()}
    logger.info("batch_chosen", task=form.task, size=size, wait_ms=round(1e3 * wait_s, 3), call_ms=told)
    return Batch(form, size, wait_s, costs)


def packs(weights: Sequence[int], size: int) -> list[list[int]]:
    """Which parts share a call: in order, as many as have `size` inputs together; one that is larger stands alone."""
    found: list[list[int]] = []
    room = 0
    for n, weight in enumerate(weights):
        if found and weight <= room:
            found[-1].append(n)
            room -= weight
        else:
            found.append([n])
            room = size - weight
    return found


def _pays(
    probe: Probe, model: Callable[[str], Any], size: int, costs: dict[int, float], clock: Callable[[], float]
) -> bool:
    """Whether twice as many inputs are worth it. In turn, so that whatever else the machine does slows both."""
    best: dict[int, float] = {}
    for _ in range(TRIES):
        for n in (size, 2 * size):
            began = clock()
            probe(model, n)
            best[n] = min(clock() - began, best.get(n, math.inf))
    costs |= {n: min(seconds, costs.get(n, math.inf)) for n, seconds in best.items()}
    return best[2 * size] / 2 <= GAIN * best[size]
