"""`python -m tests.faults`: the battery; `--case 6 --store postgres` narrows it. Exits with 1 if a figure is missed."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter

from tests.faults import cases, table
from tests.faults.case import CASES, Case
from tests.faults.installation import PAIRS, Pair
from tests.faults.places import give_back_leftovers
from tests.faults.processes import end_leftovers
from tests.faults.runner import Row, Stage

LONG_S = 1_000.0  # cases that may take longer come last


def main() -> int:
    """Run what was asked for, row by row."""
    asked = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything below is ended
    give_back_leftovers()
    if left := end_leftovers():
        say(f"Ended {left} processes that a killed battery had left.")
    turns = list(plan(asked))
    if not turns:
        sys.exit("No case fits what was asked for.")
    say(f"{len(turns)} rows; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.")
    say(table.heading())
    rows: list[Row] = []
    began = time.monotonic()
    of_case = Counter(case.number for case, _ in turns)
    stage = Stage(say)
    try:
        for case, pair in turns:
            if asked.minutes and time.monotonic() - began > 60 * asked.minutes:
                say(f"case {case.number} ({pair.store}, {pair.broker}) is left out: the time is over")
                continue
            jobs = asked.jobs or (case.jobs // of_case[case.number] if case.shared and not asked.matrix else case.jobs)
            rows.append(stage.run(case, pair, short=asked.short, jobs=0 if asked.short else jobs))
            say(table.line(rows[-1]))
            if notes := table.notes(rows[-1]):
                say(notes)
    finally:
        stage.close()
    say(f"\n{table.heading()}")
    for row in rows:
        say(table.line(row))
    for row in rows:
        if notes := table.notes(row):
            say(notes)
    say(f"figure load {os.getloadavg()[0]:.1f}")
    say(table.figures(rows))
    return int(any(row.missed for row in rows))


def plan(asked: argparse.Namespace) -> list[tuple[Case, Pair]]:
    """Cases and pairs, those of one installation in a row."""
    chosen = [CASES[n] for n in sorted(CASES) if not asked.case or n in asked.case]
    if asked.short:
        chosen = [case for case in chosen if case.few]
    turns = [
        (case, pair)
        for case in chosen
        for pair in (PAIRS if asked.matrix == "full" or asked.case else case.pairs)
        if asked.store in ("", pair.store) and asked.broker in ("", pair.broker)
    ]
    usual = [(case, pair) for case, pair in turns if pair in case.pairs]
    if usual and not asked.matrix:  # a case that was asked for on a pair where it usually does not run, runs there
        turns = usual
    return sorted(turns, key=_order)


def _order(turn: tuple[Case, Pair]) -> tuple[object, ...]:
    case, pair = turn
    return (case.limit_s > LONG_S, case.alone, PAIRS.index(pair), sorted(map(str, case.settings.items())), case.number)


def say(text: str) -> None:
    """At once, also into a pipe."""
    print(text, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    numbers = lambda text: [int(word) for word in text.split(",") if word]  # noqa: E731
    parser.add_argument("--case", type=numbers, default=[], help="numbers, by commas (default: all)")
    parser.add_argument("--store", choices=("", "redis", "postgres"), default="")
    parser.add_argument("--broker", choices=("", "classic", "quorum", "redis"), default="")
    parser.add_argument("--matrix", choices=("", "full"), default="", help="full: every case on all four pairs")
    parser.add_argument("--short", action="store_true", help="the smaller set of `make test`")
    parser.add_argument("--jobs", type=int, default=0, help="instead of each case's own number")
    parser.add_argument("--minutes", type=float, default=0, help="begin no row after so many")
    return parser.parse_args()


if __name__ == "__main__":
    assert cases.__doc__
    sys.exit(main())
