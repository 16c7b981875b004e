"""Ends a worker that stands still, so that whoever supervises it starts it anew.

Three ways to stand still: Celery's main loop hangs; signatures wait on the queue and none comes, because the
connection is stale; signatures came and no child takes them, because the pool hangs. None of them is judged while
the broker or the store does not answer: an outage must not become a storm of restarts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jobs.errors import BrokerUnavailable, StoreUnavailable


@dataclass(frozen=True)
class Signs:
    """What the watchdog looks at. `reserved`: ids of signatures that came and are not settled."""

    reserved: Callable[[], Iterable[str]]
    depth: Callable[[], int]  # messages that wait on the queue; raises BrokerUnavailable
    store_answers: Callable[[], None]  # raises StoreUnavailable


class Watchdog:
    """Asked again and again by the heart: why the worker should end now, or None."""

    def __init__(self, signs: Signs, patience_s: float) -> None:
        self._signs, self._patience_s = signs, patience_s
        self._seen: dict[str, float] = {}  # when each signature came
        self._lively = 0.0  # when something last happened, or could not
        self._asked = 0.0
        self._short_since = 0.0  # since when signatures are here that no child holds
        self._unheard = 0  # looks in a row that found messages which did not come

    def verdict(self, now: float, looped: float | None, holds: int, young: int = 0) -> str | None:
        """`looped`: when the main loop last turned, None while it waits for its broker; `holds`: claims held;
        `young`: children that may still load their models, with a signature in their hands."""
        if looped is None:
            self._forget(now)
            return None
        if now - looped > self._patience_s:
            return "main loop hangs"
        reserved = set(self._signs.reserved())
        self._seen = {one: self._seen.get(one, now) for one in reserved}
        waiting = sum(now - since > self._patience_s for since in self._seen.values())
        if waiting <= holds + young:
            self._short_since = now
        elif now - self._short_since > self._patience_s:
            # More signatures than parts have been here for long, and not only while one is let go and acknowledged.
            return "pool hangs" if self._is_sure(now, self._signs.store_answers) else None
        if reserved or holds:
            self._lively, self._unheard = now, 0
        if now - self._lively > self._patience_s and now - self._asked > self._patience_s / 4:
            self._asked = now
            return self._is_deaf(now)
        return None

    def _is_deaf(self, now: float) -> str | None:
        """Nothing came for long: that is as it should be, unless something waits."""
        try:
            waiting = self._signs.depth()
        except BrokerUnavailable:
            waiting = 0
        if not waiting:
            self._forget(now)
            return None
        self._unheard += 1
        return "connection is stale" if self._unheard > 1 else None

    def _is_sure(self, now: float, answers: Callable[[], None]) -> bool:
        """A child without a store waits for it, and is not to blame."""
        try:
            answers()
        except StoreUnavailable:
            self._forget(now)
            return False
        return True

    def _forget(self, now: float) -> None:
        self._seen, self._lively, self._short_since, self._unheard = {}, now, now, 0
