"""The README's five lines, as a stranger types them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.compose.conftest import built
from tests.compose.stack import ROOT, Stack

ANNOTATED = ROOT / "annotated.mp4"


@pytest.fixture
def stranger() -> Iterator[Stack]:
    """A project of its own, on ports of its own; nothing else is set."""
    with Stack("rabbitmq-redis", "gristmill-readme") as one:
        built(one)
        yield one
        ANNOTATED.unlink(missing_ok=True)


def test_the_readmes_five_lines_give_a_finished_video(stranger: Stack) -> None:
    # Given the lines, and the ports that are free here
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"^```\n(docker compose up .*?)^```", readme, re.M | re.S)
    assert block
    lines = block.group(1).replace("localhost:3333", f"localhost:{stranger.ports['API_PORT']}")
    assert len(lines.splitlines()) == 5
    # When a shell runs them
    environment = {**os.environ, **stranger.env, "COMPOSE_PROJECT_NAME": stranger.project}
    command = ["bash", "-eu", "-o", "pipefail", "-c", lines]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    # Then the job succeeded, and its video is here
    assert done.returncode == 0, done.stderr[-3000:]
    assert '"status":"successful"' in done.stdout
    assert ANNOTATED.read_bytes()[4:8] == b"ftyp"
