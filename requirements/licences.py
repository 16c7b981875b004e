"""The licence of every locked package: `python requirements/licences.py` writes the table of docs/licences.md anew."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"
BEGIN, END = "<!-- packages: begin -->\n", "<!-- packages: end -->\n"
LOCKS = {
    "gateway": ROOT / "requirements" / "api.txt",
    "worker": ROOT / "requirements" / "worker.txt",
    "flower": ROOT / "requirements" / "flower.txt",
    **{lock.parent.name: lock for lock in sorted(ROOT.glob("celery_worker/pipelines/*/requirements.txt"))},
}
LONGEST = 60
ONLY_SOME = {"async-timeout": "Apache-2.0"}  # installed for the first Pythons 3.11 only: no machine tells for all


def main() -> int:
    """Write the page; with --check, only say whether it is fresh."""
    before = PAGE.read_text()
    head, _, rest = before.partition(BEGIN)
    after = head + BEGIN + table() + END + rest.partition(END)[2]
    if "--check" in sys.argv:
        return int(after != before)
    PAGE.write_text(after)
    return 0


def table() -> str:
    """A line for each package of the images, with where it is used."""
    used: dict[str, list[str]] = {}
    for where, lock in LOCKS.items():
        for name in re.findall(r"^([A-Za-z0-9._-]+)==", lock.read_text(), re.M):
            used.setdefault(name, []).append(where)
    lines = [f"| {name} | {licence(name)} | {', '.join(where)} |" for name, where in sorted(used.items())]
    return "\n".join(["| package | licence | in |", "| --- | --- | --- |", *lines, ""])


def licence(name: str) -> str:
    """What a package says of itself: the SPDX expression, else its classifiers, else the first line of its text."""
    if name in ONLY_SOME:
        return ONLY_SOME[name]
    try:
        told = metadata(name)
    except PackageNotFoundError:
        return "not installed by these locks on Linux"
    if expression := told.get("License-Expression"):
        return str(expression)
    classified = [c.rpartition(" :: ")[2] for c in told.get_all("Classifier", []) if c.startswith("License ::")]
    if classified and classified != ["OSI Approved"]:
        return ", ".join(sorted(classified))
    text = next((line.strip() for line in (told.get("License") or "").splitlines() if line.strip()), "not stated")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


if __name__ == "__main__":
    sys.exit(main())
