"""From a ready part to its queue, always after the record. The one place that publishes.

A ring that fails is nothing lost: the record says that it is owed, and the sweeper rings again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from jobs import log
from jobs.brokers import Broker, open_broker
from jobs.errors import BrokerUnavailable, StoreUnavailable
from jobs.model import Ring
from jobs.settings import Settings
from jobs.store import JobStore

WAITING = 2_000  # rings a ringer holds: about what it can publish in a second
BATCH = 256  # rings on their way before their confirms are read
TELL_S = 0.3  # confirmed rings are told to the store after this: by then most are claimed, and cost it no write
TELL_AT = 1_024  # ... or when so many have gathered
PAUSE_S = (0.5, 8.0)  # after a failure the broker is left alone for the first, doubling up to the second

logger = log.get(__name__)


class Bell:
    """Rings now, on the calling thread: publish, wait for the confirms, pass them on. Not shared by threads.

    `told` gets what was confirmed: `store.rung`, or somebody who gathers for it. A bell never raises, and while the
    broker is away it costs its caller one short wait every few seconds.
    """

    def __init__(self, broker: Broker, told: Callable[[Sequence[Ring]], None]) -> None:
        self._broker, self._told = broker, told
        self._pause_s, self._silent_until = PAUSE_S[0], 0.0

    @property
    def is_silent(self) -> bool:
        """The broker failed a moment ago, and is left alone."""
        return time.monotonic() < self._silent_until

    def ring(self, rings: Sequence[Ring]) -> int:
        """How many were confirmed. The rest are owed, and the sweeper's."""
        confirmed = 0
        for start in range(0, len(rings), BATCH):
            if self.is_silent:
                break
            confirmed += self._ring(rings[start : start + BATCH])
        return confirmed

    def depth(self, queue: str) -> int:
        """How many messages wait on a queue. Raises BrokerUnavailable, also while the broker is left alone."""
        if self.is_silent:
            raise BrokerUnavailable()
        try:
            return self._broker.depth(queue)
        except BrokerUnavailable as error:
            self._leave_alone(error)
            raise

    def close(self) -> None:
        """Give back the connection to the broker; the store is not the bell's."""
        self._broker.close()

    def _ring(self, rings: Sequence[Ring]) -> int:
        try:
            confirmed = self._broker.publish(rings)
        except BrokerUnavailable as error:
            self._leave_alone(error)
            return 0
        self._pause_s = PAUSE_S[0]
        if confirmed:
            tell(self._told, confirmed)
        return len(confirmed)

    def _leave_alone(self, error: BrokerUnavailable) -> None:
        logger.warning("broker_unavailable", error=str(error), pause_s=self._pause_s)
        self._silent_until = time.monotonic() + self._pause_s
        self._pause_s = min(self._pause_s * 2, PAUSE_S[1])


def tell(told: Callable[[Sequence[Ring]], None], confirmed: Sequence[Ring]) -> None:
    """Record confirms. Without a store they are not recorded, and rung again: harmless."""
    try:
        told(confirmed)
    except StoreUnavailable as error:
        logger.warning("rung_not_recorded", count=len(confirmed), error=str(error))


def open_bell(settings: Settings, told: Callable[[Sequence[Ring]], None]) -> Bell:
    """A bell with a connection of its own, made at the first ring."""
    confirms = "confirms" not in settings.without
    return Bell(open_broker(settings.broker_url, settings.queue_type, confirms=confirms), told)


class Ringer:
    """Rings from a thread of its own, so that nobody who answers a client waits for the broker."""

    def __init__(self, broker: Broker, store: JobStore, *, waiting: int = WAITING) -> None:
        self._confirmed: list[Ring] = []
        self._bell, self._store, self._bound = Bell(broker, self._confirmed.extend), store, waiting
        self._rings: deque[Ring] = deque()
        self._told_at = 0.0
        self._offered = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._closing = False
        self.dropped = 0  # rings left to the sweeper because the queue was full
        self._thread = threading.Thread(target=self._run, name="ringer", daemon=True)
        self._thread.start()

    def offer(self, rings: Sequence[Ring]) -> None:
        """Returns at once. What does not fit is left to the sweeper."""
        free = max(0, self._bound - len(self._rings))
        self.dropped += max(0, len(rings) - free)
        rings = rings[:free]
        if rings:
            self._rings.extend(rings)
            self._idle.clear()
            self._offered.set()

    def drain(self, timeout: float) -> bool:
        """Wait until everything offered so far was tried; False when that took too long."""
        return self._idle.wait(timeout)

    def close(self, timeout: float = 1.0) -> None:
        """Try what is left for so long, then stop and give back the connection."""
        self.drain(timeout)
        self._closing = True
        self._offered.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._closing:
            self._offered.wait(TELL_S if self._confirmed else None)
            self._offered.clear()
            while self._rings and not self._closing:
                batch = [self._rings.popleft() for _ in range(min(BATCH, len(self._rings)))]
                self._guarded(self._bell.ring, batch)
                self._tell(TELL_AT)
            self._tell(1 if time.monotonic() - self._told_at >= TELL_S else TELL_AT)
            if not self._rings:
                self._idle.set()
                if self._rings:  # offered in between
                    self._idle.clear()
        self._tell(1)
        self._bell.close()

    def _tell(self, at_least: int) -> None:
        if len(self._confirmed) >= at_least:
            confirmed = list(self._confirmed)
            self._confirmed.clear()
            self._told_at = time.monotonic()
            self._guarded(tell, self._store.rung, confirmed)

    def _guarded(self, call: Callable[..., object], *args: object) -> None:
        try:
            call(*args)
        except Exception:  # a thread that dies would leave every ring to the sweeper
            logger.exception("ringer_failed")


def open_ringer(settings: Settings, store: JobStore) -> Ringer:
    """A ringer as the settings want it. Open it after a fork: its thread does not survive one."""
    broker = open_broker(settings.broker_url, settings.queue_type, confirms="confirms" not in settings.without)
    return Ringer(broker, store)
