"""The table that `make faults` prints, and the figures under it."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.runner import Row

COLUMNS = (
    "case",
    "fault",
    "store",
    "broker",
    "accepted",
    "refused",
    "unknown",
    "LOST",
    "DOUBLED",
    "FLIPPED",
    "executions/needed",
    "recovery s",
    "seconds",
)


def line(row: Row) -> str:
    """One row, as Markdown wants it."""
    account = row.account
    if account is None:
        counted = ["-"] * 7
    else:
        counted = [
            str(account.accepted),
            str(account.refused),
            str(account.unknown),
            str(len(account.lost)),
            str(len(account.doubled)),
            str(len(account.flipped)),
            f"{account.executions}/{account.needed}",
        ]
    recovery = "-" if row.recovery_s is None else f"{row.recovery_s:.1f}"
    cells = [str(row.case.number), row.case.fault, row.pair.store, row.pair.broker, *counted, recovery]
    return "| " + " | ".join([*cells, f"{row.took_s:.0f}"]) + " |"


def heading() -> str:
    """The two lines above."""
    return f"| {' | '.join(COLUMNS)} |\n| {' | '.join('---' for _ in COLUMNS)} |"


def notes(row: Row) -> str:
    """What the case measured besides, and what it missed, each on a line of its own."""
    where = f"case {row.case.number} ({row.pair.store}, {row.pair.broker})"
    lines = [f"  {where}: {'; '.join(row.figures)}"] if row.figures else []
    return "\n".join([*lines, *(f"  {where} MISSED: {sentence}" for sentence in row.missed)])


def figures(rows: Sequence[Row]) -> str:
    """The last lines: what all rows come to."""
    accounts = [row.account for row in rows if row.account is not None]
    totals = {
        "rows": len(rows),
        "missed": sum(bool(row.missed) for row in rows),
        "accepted": sum(account.accepted for account in accounts),
        "seconds": round(sum(row.took_s for row in rows)),
        "lost": sum(len(account.lost) for account in accounts),
        "doubled": sum(len(account.doubled) for account in accounts),
        "flipped": sum(len(account.flipped) for account in accounts),
    }
    return "\n".join(f"figure {name} {value}" for name, value in totals.items())
