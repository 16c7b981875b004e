"""Interleaved rounds and what they say: A B A B ..., the median of the paired ratios, and its spread."""

from __future__ import annotations

import itertools
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

Pair = tuple[float, float]


def interleave(ours: Callable[[], float], peer: Callable[[], float], rounds: int, unit: str) -> list[Pair]:
    """Measure both in turn; who begins changes with every round, so that a drift of the machine favours nobody."""
    turn = itertools.cycle((True, False))

    def one() -> Pair:
        if next(turn):
            mine = ours()
            return mine, peer()
        other = peer()
        return ours(), other

    return paired(one, rounds, unit)


def paired(measure: Callable[[], Pair], rounds: int, unit: str) -> list[Pair]:
    """So many rounds of a measurement that gives both sides at once."""
    pairs: list[Pair] = []
    for n in range(rounds):
        pairs.append(measure())
        print(f"  round {n + 1}: ours {pairs[-1][0]:.2f} {unit}, peer {pairs[-1][1]:.2f} {unit}", flush=True)
    return pairs


def figure(name: str, values: Sequence[float], goal: str) -> str:
    """One last line: the median, and how far the rounds lie apart."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return (
        f"figure {name} {statistics.median(ordered):.3f} "
        f"(rounds {len(ordered)}, middle half {ordered[quarter]:.3f}..{ordered[-1 - quarter]:.3f}, "
        f"all {ordered[0]:.3f}..{ordered[-1]:.3f}; goal {goal})"
    )


def ratios(pairs: Sequence[Pair]) -> list[float]:
    """Ours over the peer's, round by round."""
    return [mine / other for mine, other in pairs]


def machine() -> str:
    """Where this was measured, and how busy it was when it began."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0))
    return f"machine: {cores} cores, {model}, {platform.release()}, load average {os.getloadavg()[0]:.1f}"
