"""The spec is true: what it describes never answers 5xx, whatever is sent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.gateways import Gateway


def test_nothing_that_the_spec_allows_or_forbids_breaks_the_gateway(fresh_gateway: Gateway, tmp_path: Path) -> None:
    # Given a gateway without jobs: one that failed answers 500 for its results, as OGC API Processes wants it
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{fresh_gateway.url}/openapi.json",
        "--checks=not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--phases=examples,coverage,fuzzing",
        "--max-examples=15",
        "--seed=1",
        "--request-timeout=10",
        "--no-color",
    ]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stdout[-6_000:]
