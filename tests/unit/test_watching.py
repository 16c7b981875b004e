"""docs/watching.md names every gauge there is, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("api/metrics.py", "celery_worker/metrics.py", "jobs/sweeper_metrics.py")
COUNTED = re.compile(r'(Counter|counter|Info)\(\s*"(gristmill_\w+)"')


def test_the_page_names_every_gauge_and_no_other():
    # Given the names in the code, as Prometheus will have them
    text = "".join((ROOT / source).read_text() for source in SOURCES)
    suffixes = {name: "_info" if kind == "Info" else "_total" for kind, name in COUNTED.findall(text)}
    known = {name + suffixes.get(name, "") for name in re.findall(r'"(gristmill_\w+)"', text)}
    # Then they are those of the page's tables
    tables = [line for line in (ROOT / "docs" / "watching.md").read_text().splitlines() if line.startswith("|")]
    assert set(re.findall(r"`(gristmill_\w+)`", "\n".join(tables))) == known
