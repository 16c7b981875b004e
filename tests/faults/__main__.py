"""`python -m tests.faults`: the battery; `--case 6 --store postgres` narrows it. Exits with 1 if a figure is missed."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import groupby

from tests.faults import cases, lanes, table
from tests.faults.case import CASES, Case
from tests.faults.installation import PAIRS, Pair
from tests.faults.places import give_back_leftovers
from tests.faults.processes import end_leftovers
from tests.faults.runner import Row, Stage

Turn = tuple[Case, Pair]


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
    say(f"{len(turns)} rows in {asked.lanes} lanes; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.")
    say(table.heading())
    began = time.monotonic()
    of_case = Counter(case.number for case, _ in turns)

    def play(group: Sequence[Turn]) -> Iterator[Row]:
        stage = Stage(say)
        try:
            for case, pair in group:
                jobs = asked.jobs or (case.jobs // of_case[case.number] if case.shared and not asked.matrix else 0)
                yield stage.run(case, pair, short=asked.short, jobs=0 if asked.short else jobs)
        finally:
            stage.close()

    rows: list[Row] = []
    beside, quiet = ([turn for turn in turns if turn[0].is_quiet is is_quiet] for is_quiet in (False, True))
    for some, side_by_side in ((beside, asked.lanes), (quiet, 1)):
        with closing(lanes.rows(grouped(some), side_by_side, play)) as played:
            for row in played:
                rows.append(row)
                say("\n".join(filter(None, (table.line(row), table.notes(row)))))
    rows.sort(key=lambda row: (row.case.number, PAIRS.index(row.pair)))
    say(f"\n{table.heading()}")
    for row in rows:
        say(table.line(row))
    for row in rows:
        if notes := table.notes(row):
            say(notes)
    say(f"figure load {os.getloadavg()[0]:.1f}")
    say(table.figures(rows))
    say(f"figure minutes {(time.monotonic() - began) / 60:.1f}")
    return int(any(row.missed for row in rows))


def plan(asked: argparse.Namespace) -> list[Turn]:
    """Cases and pairs, in the order of the table."""
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
    return turns


def grouped(turns: Sequence[Turn]) -> list[list[Turn]]:
    """What can share an installation together, the longest first: the last one to end then ends soon."""

    def installation(turn: Turn) -> tuple[object, ...]:
        case, pair = turn
        alone = case.number if case.alone else 0
        return (alone, PAIRS.index(pair), sorted(map(str, case.settings.items())), case.queues)

    groups = [list(group) for _, group in groupby(sorted(turns, key=installation), key=installation)]
    return sorted(groups, key=len, reverse=True)


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
    parser.add_argument("--lanes", type=int, default=2, help="rows side by side, but for those that measure rates")
    return parser.parse_args()


if __name__ == "__main__":
    assert cases.__doc__
    sys.exit(main())
