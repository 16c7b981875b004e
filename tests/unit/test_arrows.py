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
    "celery_worker": ["celery_worker.app", "celery_worker.parent"],
    "gristmill": ["gristmill", "gristmill.cli"],
}


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("api", ["celery_worker", "cv2", "onnxruntime", "av", "gristmill"]),
        ("jobs", ["api", "celery_worker", "gristmill", "connexion", "cv2", "av", "psycopg2"]),
        ("celery_worker", ["api", "gristmill", "connexion"]),
        ("gristmill", ["jobs", "api", "celery_worker", "celery", "redis"]),
    ],
)
def test_a_package_never_brings_what_it_must_not_know(package, never):
    # Given a fresh Python, When the package's entrances are imported
    brought = {module.partition(".")[0] for module in modules(*ENTRANCES[package])}
    # Then nothing of it came along
    assert brought & set(never) == set()


def test_who_names_no_collector_imports_no_exporter():
    # Given everything that opens spans, where settings name a collector (redis-py brings the library's metrics anyway)
    brought = modules(*ENTRANCES["api"], *ENTRANCES["celery_worker"], *ENTRANCES["jobs"])
    # Then what makes and sends them came not along
    never = ("jobs.spans", "jobs.part_spans", "api.spans", "opentelemetry.exporter", "google.protobuf")
    assert {module for module in brought if module.startswith(never)} == set()


def modules(*names: str) -> set[str]:
    """What a fresh Python has when it has imported those."""
    probe = f"import sys, {', '.join(names)}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    return set(found.stdout.split())
