"""`python -m tests.faults.red`: one protection switched off at a time, and what falls; `--without fence` narrows it.

Each scene runs twice: with its protection, where it must be green, and without it. What stays green without, and is
not slower to recover either, buys nothing: then this exits with 1.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.settings import PROTECTIONS
from tests.faults.case import Case
from tests.faults.missed import MISSED, Missed
from tests.faults.places import give_back_leftovers
from tests.faults.processes import end_leftovers
from tests.faults.runner import Row, Stage

COLUMNS = ("protection", "case", "pair", "switched off", "what fell", "recovery s: with", "without", "seconds")
BOUGHT_S = 1.5  # a layer that another one covers must recover so much sooner
LIMIT_S = 200.0


@dataclass(frozen=True)
class Pulled:
    """A protection, with it and without."""

    missed: Missed
    green: Row
    red: Row

    @property
    def fell(self) -> str:
        """What happened without it; empty when nothing did."""
        account = self.red.account
        counted: Mapping[str, Sequence[str]] = (
            {"LOST": account.lost, "DOUBLED": account.doubled, "FLIPPED": account.flipped, "TORN": account.torn}
            if account
            else {}
        )
        words = [f"{name} {len(all_)}" for name, all_ in counted.items() if all_]
        wrong = set(account.wrong) if account else set()
        words += [sentence for sentence in self.red.missed if sentence not in wrong]
        if not words and self.bought_s >= BOUGHT_S:
            words = [f"late: it buys {self.bought_s:.1f} s"]
        return "; ".join(words)

    @property
    def bought_s(self) -> float:
        """How much sooner work goes on with it."""
        return (self.red.recovery_s or 0.0) - (self.green.recovery_s or 0.0)

    @property
    def wrong(self) -> str:
        """Why this row is not as it should be; empty when it is."""
        if self.green.missed:
            return f"{self.missed.name}: not green with it: {'; '.join(self.green.missed)}"
        return "" if self.fell else f"{self.missed.name}: nothing fell without it, so it buys nothing"

    @property
    def line(self) -> str:
        """Its row of the table."""
        recovery = ("-" if row.recovery_s is None else f"{row.recovery_s:.1f}" for row in (self.green, self.red))
        pair = f"{self.missed.pair.store} + {self.missed.pair.broker}"
        off = ", ".join((self.missed.name, *self.missed.with_))
        cells = (self.missed.name, str(self.missed.case), pair, off, self.fell or "NOTHING", *recovery)
        return f"| {' | '.join(cells)} | {self.green.took_s + self.red.took_s:.0f} |"


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.red", description=__doc__.splitlines()[0])
    parser.add_argument("--without", default="", help=f"by commas, of: {', '.join(MISSED)}")
    asked = [name for name in parser.parse_args().without.split(",") if name] or list(MISSED)
    if unknown := set(asked) - MISSED.keys():
        parser.error(f"no such protection: {', '.join(sorted(unknown))}; there are {', '.join(MISSED)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything below is ended
    give_back_leftovers()
    end_leftovers()
    began = time.monotonic()
    say(f"{len(asked)} protections; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.")
    pulled = pull([MISSED[name] for name in asked])
    say(f"\n| {' | '.join(COLUMNS)} |\n| {' | '.join('---' for _ in COLUMNS)} |")
    for one in pulled:
        say(one.line)
    wrong = [one.wrong for one in pulled if one.wrong]
    for sentence in wrong:
        say(f"WRONG {sentence}")
    say(f"figure load {os.getloadavg()[0]:.1f}\nfigure seconds {time.monotonic() - began:.0f}")
    say(f"figure protections {len(pulled)}\nfigure missed_when_off {sum(bool(one.fell) for one in pulled)}")
    say(f"figure wrong {len(wrong)}")
    return int(bool(wrong))


def pull(chosen: Sequence[Missed]) -> list[Pulled]:
    """First every scene with its protection, those of one installation in a row; then each without."""
    stage = Stage(say, keeps_logs=False)
    try:
        greens = {one.name: _run(stage, one, one.with_) for one in sorted(chosen, key=_installation)}
        pulled = []
        for one in chosen:
            pulled.append(Pulled(one, greens[one.name], _run(stage, one, (one.name, *one.with_))))
            say(pulled[-1].line)
        return pulled
    finally:
        stage.close()


def _run(stage: Stage, one: Missed, without: tuple[str, ...]) -> Row:
    """The scene once."""
    told = PROTECTIONS[one.name] if one.name in without else f"with {one.name}"
    case = Case(one.case, told, one.run, (one.pair,), 0, settings=one.settings, queues=one.queues, limit_s=LIMIT_S)
    row = stage.run(case, one.pair, settings={"WITHOUT": ",".join(without)})
    outcome = "; ".join((*row.figures, *(row.missed or ("green",))))
    say(f"  {one.name}, without {', '.join(without) or 'nothing'}: {row.took_s:.0f} s; {outcome}")
    return row


def _installation(one: Missed) -> tuple[object, ...]:
    return (str(one.pair), one.queues, sorted((k, str(v)) for k, v in one.settings.items()), one.with_)


def say(text: str) -> None:
    """At once, also into a pipe."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
