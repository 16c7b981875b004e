"""Who may import whom, seen from a running process: import-linter reads the source, this looks at the modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENTRANCES = {
    "api": ["api.app", "api.handlers", "api.intake"],
    "jobs": ["jobs.dispatch", "jobs.files", "jobs.pipeline", "jobs.settings", "jobs.store", "jobs.sweeper"],
    "gristmill": ["gristmill", "gristmill.cli"],
}


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("api", ["celery_worker", "cv2", "onnxruntime", "av", "gristmill"]),
        ("jobs", ["api", "celery_worker", "gristmill", "connexion", "cv2", "av", "psycopg2"]),
        ("gristmill", ["jobs", "api", "celery_worker", "celery", "redis"]),
    ],
)
def test_a_package_never_brings_what_it_must_not_know(package, never):
    # Given a fresh Python, When the package's entrances are imported
    probe = f"import sys, {', '.join(ENTRANCES[package])}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    found = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    # Then nothing of it came along
    assert set(found.stdout.split()) & set(never) == set()
