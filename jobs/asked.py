"""Gauges of what is, asked when somebody scrapes: what waits, what is full. However long it takes, it costs little.

What happens is counted where it happens, and costs the same whoever looks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jobs.errors import JobsError

FRESH_S = 1.0  # answers are kept for so long, so that many who scrape cost no more than one
SHARE = 20  # ... and for so many times as long as they took: a long backlog or history is counted more seldom


class Asked(Collector):
    """What one neighbour answers, and whether it does: `name` is 1 or 0. One that does not is asked again soon."""

    def __init__(self, name: str, help: str, ask: Callable[[], Iterable[Metric]], fresh_s: float = FRESH_S) -> None:
        self._name, self._help, self._ask, self._fresh_s = name, help, ask, fresh_s
        self._lock = threading.Lock()
        self._found: list[Metric] = []
        self._good_until = 0.0

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked when it is registered."""
        return ()

    def collect(self) -> Sequence[Metric]:
        """What can be known now; what does not answer is left out, and is not up."""
        with self._lock:
            if time.monotonic() >= self._good_until:
                self._look()
            return self._found

    def _look(self) -> None:
        began, kept_s = time.monotonic(), self._fresh_s
        try:
            self._found = [*self._ask(), one(self._name, self._help, 1)]
            kept_s = max(kept_s, SHARE * (time.monotonic() - began))
        except JobsError:
            self._found = [one(self._name, self._help, 0)]
        self._good_until = time.monotonic() + kept_s


def one(name: str, help: str, value: float) -> Metric:
    """A gauge without labels."""
    return GaugeMetricFamily(name, help, value=value)
