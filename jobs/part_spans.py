"""The spans of attempts at parts. The worker's parent tells them, so that of a killed child is told as well.

The sweeper tells those of workers that were lost whole.
"""

from __future__ import annotations

from opentelemetry.trace import SpanKind

from jobs.model import Cause, Claim, Lost
from jobs.spans import Spans
from jobs.trace import inside

LOST = "lost"
WELL = ("finished", Cause.GIVEN_BACK.value, LOST)  # nothing broke; the outcome says which it is


class PartSpans:
    """Imported only where the settings name a collector."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans

    def close(self) -> None:
        """Send what is left, in bounded time."""
        self._spans.close()

    def forget(self) -> None:
        """In a forked child: the parent tells."""
        self._spans.forget()

    def ended(self, claim: Claim | Lost, times: tuple[float, float], outcome: str, code: str = "") -> None:
        """An attempt is over; see `celery_worker.metrics` for the outcomes. `code` is its error's.

        A job of an older version belongs to no trace.
        """
        if not claim.trace:
            return
        outcome = outcome or LOST
        about: dict[str, str | int] = {
            "job_id": claim.at.job_id,
            "stage": claim.stage.name,
            "index": claim.at.index,
            "fence": claim.fence,
            "outcome": outcome,
        }
        error = None if outcome in WELL else code or outcome
        name = f"{claim.pipeline}.{claim.stage.name}"
        self._spans.add(name, SpanKind.CONSUMER, inside(claim.trace), claim.trace, times, about, error)
