"""Runs cases on pairs and makes a row of each: nothing that a case does, hanging included, ends the battery."""

from __future__ import annotations

import contextlib
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.faults.accounts import Account
from tests.faults.case import Case, Scene
from tests.faults.installation import QUEUES, Installation, Pair

ACCOUNT_S = 60.0  # for the account of a case that broke


@dataclass(frozen=True)
class Row:
    """A line of the table. `missed` has a sentence for each figure that was not met."""

    case: Case
    pair: Pair
    account: Account | None
    recovery_s: float | None
    took_s: float
    figures: Sequence[str]
    missed: Sequence[str]


class CaseHung(Exception):
    """The case did not end in its time."""


class Stage:
    """Installations, one at a time: kept from case to case while pair, settings and queues are the same."""

    def __init__(self, say: Callable[[str], None] = print, *, keeps_logs: bool = True) -> None:
        self._say, self._keeps_logs = say, keeps_logs
        self._made: Installation | None = None
        self._for: object = None

    def run(
        self, case: Case, pair: Pair, *, short: bool = False, jobs: int = 0, settings: Mapping[str, object] = {}
    ) -> Row:
        """One case on one pair. `settings` come on top of the case's own: `WITHOUT`, to see it go red."""
        began = time.monotonic()
        scene: Scene | None = None
        missed: list[str] = []
        account: Account | None = None
        try:
            with _within(case.limit_s):
                installation = self._installation(case, pair, {**case.settings, **settings})
                scene = Scene(installation, jobs or (case.few if short else case.jobs), short=short)
                case.run(scene)
                account = scene.settle()
        except Exception as error:  # noqa: BLE001 - a row that says so, and the next case
            missed.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            self._say("".join(traceback.format_exception(error)))
        if scene is not None:
            missed = [*scene.missed, *missed]
            with contextlib.suppress(Exception), _within(ACCOUNT_S):
                account = scene.settle()  # also of a case that broke: what it lost must show
        if account is not None:
            missed += account.wrong
        if self._made is not None and (missed or case.alone):
            self._made.keep_logs = bool(missed) and self._keeps_logs
            if self._made.keep_logs:
                self._say(f"The logs of case {case.number} are kept in {self._made.folder}")
            self.close()
        recovery_s, figures = (scene.recovery_s, scene.figures) if scene else (None, [])
        return Row(case, pair, account, recovery_s, time.monotonic() - began, figures, missed)

    def close(self) -> None:
        """End the installation."""
        made, self._made = self._made, None
        if made is not None:
            made.close()

    def _installation(self, case: Case, pair: Pair, settings: Mapping[str, object]) -> Installation:
        wanted = (pair, tuple(sorted((name, str(value)) for name, value in settings.items())), case.queues or QUEUES)
        if self._made is None or self._for != wanted or case.alone:
            self.close()
            made = Installation(pair, case.queues or QUEUES, **settings)
            try:
                self._made = made.start()
            except BaseException:
                made.close()
                raise
            self._for = wanted
        return self._made


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise CaseHung in the main thread once the time is over. Whatever timer there was goes on afterwards."""

    def ring(*_: object) -> None:
        raise CaseHung(f"it had not ended after {seconds:g} s")

    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, ring)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, max(0.1, left - (time.monotonic() - began)) if left else 0)
        signal.signal(signal.SIGALRM, before)
