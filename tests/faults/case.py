"""What a case is, and the scene in which it runs: an installation, a load, a fault, an account, a row."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import StoreUnavailable
from tests.faults.accounts import Account, Effect, EffectLog, Record, look_again, read_records, read_statuses, settle
from tests.faults.installation import Installation, Pair
from tests.faults.load import Attempt, Load
from tests.faults.processes import Kept

DRAIN_S = 240.0
SECOND_LOOK_S = 1.5


@dataclass(frozen=True)
class Case:
    """One fault. `run` gets a scene; `pairs` are those where it differs, all four are tried with MATRIX=full.

    `jobs` of the full run; if `shared`, they are divided between its pairs. `few` of the short set, 0 if it is not in
    that. `settings` of the processes. `alone`: the installation is used for nothing else before or after. `is_quiet`:
    no other case runs beside it, since it measures rates or memory. `limit_s`: then the case has hung.
    """

    number: int
    fault: str
    run: Callable[[Scene], None]
    pairs: tuple[Pair, ...]
    jobs: int
    few: int = 0
    shared: bool = False
    settings: Mapping[str, object] = field(default_factory=dict)
    queues: tuple[str, ...] = ()
    alone: bool = False
    is_quiet: bool = False
    limit_s: float = 420.0


CASES: dict[int, Case] = {}


def case(number: int, fault: str, **about: Any) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    """Register a function as a case."""

    def register(run: Callable[[Scene], None]) -> Callable[[Scene], None]:
        assert number not in CASES, number
        CASES[number] = Case(number, fault, run, **about)
        return run

    return register


class Scene:
    """What a case has to play with. It says what it expects with `expect`, and how long recovery took."""

    def __init__(self, installation: Installation, jobs: int, *, short: bool = False) -> None:
        self.installation, self.jobs, self.short = installation, jobs, short
        self.prefix = f"j{time.monotonic_ns()}-"
        self.recovery_s: float | None = None
        self.figures: list[str] = []  # what was measured, as words
        self.missed: list[str] = []
        self.account: Account | None = None
        self.loads: list[Load] = []
        self.submitted = 0  # by other means than a load
        self._since = time.time() - 5.0
        self._effects = EffectLog(installation.effects)

    # -- the load ---------------------------------------------------------------------------------------------

    def names(self, jobs: int | None = None) -> list[str]:
        """Names of jobs, all of them new."""
        begin = sum(len(load.names) for load in self.loads)
        return [f"{self.prefix}{n}" for n in range(begin, begin + (self.jobs if jobs is None else jobs))]

    def load(self, jobs: int | None = None, **how: Any) -> Load:
        """Clients that submit so many jobs (all of the case's if not said); used as a context manager."""
        load = Load(self.installation.ports, self.installation.store_server.url, self.names(jobs), **how)
        self.loads.append(load)
        return load

    @property
    def attempts(self) -> list[Attempt]:
        """Every request of every load so far."""
        return [attempt for load in self.loads for attempt in load.attempts]

    def effects(self) -> list[Effect]:
        """Every execution so far."""
        return self._effects.read()

    # -- time ---------------------------------------------------------------------------------------------------

    @property
    def lease_s(self) -> float:
        """How long a claim holds without a heartbeat."""
        return self.installation.lease_s

    def until(self, holds: Callable[[], object], what: str, within_s: float = 60.0) -> None:
        """Wait until something holds. Raises TimeoutError."""
        self.installation.until(holds, what, within_s)

    def recovered_after(self, ended: float) -> None:
        """Recovery is from the end of the fault to the first execution after it; the longest of several counts."""
        before = len(self.effects())
        self.until(lambda: len(self.effects()) > before or self._is_drained(), "work to go on", DRAIN_S)
        later = [effect.at for effect in self.effects() if effect.at >= ended]
        if later:
            self.recovery(min(later) - ended)

    def recovery(self, seconds: float) -> None:
        """The longest counts."""
        self.recovery_s = max(seconds, self.recovery_s or 0.0)

    # -- figures ------------------------------------------------------------------------------------------------

    def expect(self, name: str, value: float, *, most: float | None = None, least: float | None = None) -> None:
        """A figure of the case with its bounds; outside, the case is missed."""
        bounds = [f"at most {most:g}"] if most is not None else []
        bounds += [f"at least {least:g}"] if least is not None else []
        told = f"{name} {value:.4g}"
        self.figures.append(told)
        if (most is not None and not value <= most) or (least is not None and not value >= least):
            self.missed.append(f"{told}, asked {' and '.join(bounds)}")

    def require(self, holds: object, otherwise: str) -> None:
        """Something that must hold; `otherwise` says what was seen instead."""
        if not holds:
            self.missed.append(otherwise)

    def tell(self, name: str, value: float) -> None:
        """A figure without a bound."""
        self.figures.append(f"{name} {value:.4g}")

    # -- the end --------------------------------------------------------------------------------------------------

    def drain(self, within_s: float = DRAIN_S) -> float:
        """Wait until no job is unfinished, or the time is over: the account finds what is left. Seconds it took."""
        for load in self.loads:
            load.stop()
        began = time.monotonic()
        while not self._is_drained() and time.monotonic() - began < within_s:
            time.sleep(0.2)
        return time.monotonic() - began

    def records(self) -> Iterator[Record]:
        """What the store and the files have of each of its jobs."""
        installation = self.installation
        return read_records(installation.store, installation.files, self.prefix, self._since)

    def settle(self, within_s: float = DRAIN_S) -> Account:
        """Drain, then account for every id. Once a scene; later calls answer the same account."""
        if self.account is None:
            self.drain(within_s)
            first_seen = {id_: status for load in self.loads for id_, status in load.watch.first_seen.items()}
            account = settle(self.attempts, self.records(), self.effects(), first_seen)
            time.sleep(SECOND_LOOK_S)
            look_again(account, read_statuses(self.installation.store, account.found))
            self.account = account
        return self.account

    @contextmanager
    def frozen(self, program: Kept) -> Iterator[None]:
        """Inside, a whole process group does not run."""
        program.signal_group(signal.SIGSTOP)
        try:
            yield
        finally:
            program.signal_group(signal.SIGCONT)

    def unfinished(self) -> int:
        """How many jobs have not ended. Raises StoreUnavailable."""
        counts = self.installation.store.counts()
        return sum(count for (_, status), count in counts.items() if not status.is_final)

    def _is_drained(self) -> bool:
        try:
            return self.unfinished() == 0
        except StoreUnavailable:
            return False
