"""When somebody who was refused should come again: as soon as there is likely room for just him."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from jobs.errors import JobsError
from jobs.model import Pressure
from jobs.store import JobStore

LOOK_S = 1.0  # how old what is known of the store may be
UNKNOWN_S = 60  # to wait where nothing moves: nobody can say when it will
LONGEST_S = 3_600


class Promises:
    """Who is refused now stands behind those who were refused before and have not had their time yet.

    Not shared by threads. Every gateway process promises for itself; one who comes too early is told again.
    """

    def __init__(self, store: JobStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._pressure = Pressure(0, 0.0)
        self._looked = -math.inf
        self._ahead = 0.0  # refused, and not come again yet

    def next(self, most: int) -> int:
        """Seconds until one more than `most` jobs are likely begun, for one more who asks."""
        self._look()
        per_s = self._pressure.per_s
        if per_s <= 0:
            return UNKNOWN_S
        self._ahead += 1
        excess = max(0, self._pressure.waiting - most)
        return max(1, min(LONGEST_S, math.ceil((excess + self._ahead) / per_s)))

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < LOOK_S:
            return
        try:
            pressure = self._store.pressure()
        except JobsError:
            return
        if self._looked > -math.inf:
            self._ahead = max(0.0, self._ahead - pressure.per_s * (now - self._looked))
        self._pressure, self._looked = pressure, now
