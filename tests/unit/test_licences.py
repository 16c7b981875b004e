"""What we install and pass on is named with its terms."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "licences.md").read_text()


def test_the_table_of_packages_is_what_the_locks_and_the_packages_say():
    checked = subprocess.run([sys.executable, "requirements/licences.py", "--check"], cwd=ROOT, timeout=60, check=False)
    assert checked.returncode == 0, "run: python requirements/licences.py"


def test_no_package_is_of_unknown_terms_or_agpl():
    table = PAGE.partition("<!-- packages: begin -->")[2]
    assert "not stated" not in table
    assert "AGPL" not in table
    assert "Affero" not in table


def test_what_has_terms_of_its_own_is_named():
    for name in ("av", "psycopg2", "redis:8", "RedisInsight", "x264", "EfficientDet", "BlazePose"):
        assert name in PAGE
