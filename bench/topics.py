"""The labelled passages of models/topics.tsv."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "models" / "topics.tsv"


@dataclass(frozen=True)
class Passage:
    """`use` is fit or held-out, `topic` a category or other."""

    use: str
    topic: str
    text: str


def passages(use: str) -> list[Passage]:
    """Those of one use."""
    lines = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]
    found = [Passage(*line.split("\t")) for line in lines[1:]]
    return [one for one in found if one.use == use]
