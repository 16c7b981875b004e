"""The make targets of the stack, as an operator types them outside dev: in a copy of the tree, with made secrets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.conftest import built
from tests.compose.stack import LOGIN, RABBITMQ_LOGIN, ROOT, Stack

PROJECT = "gristmill-made"
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", ".gristmill*")


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Stack]:
    """A project on ports of its own; its secrets are those that `make secrets` wrote."""
    with Stack("rabbitmq-postgres", PROJECT) as one:
        built(one)
        shutil.copytree(ROOT, tmp_path / "tree", ignore=NOT_COPIED)
        yield one


def make(stack: Stack, tree: Path, *words: str) -> str:
    """`make ...` in the copy; what it printed."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    environment = {**alone, **stack.env, "COMPOSE_PROJECT_NAME": stack.project}
    done = subprocess.run(
        ["make", *words], cwd=tree, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"make {' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_make_brings_the_stack_up_outside_dev_and_down(operator: Stack, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    # Given random secrets
    make(operator, tree, "secrets")
    said = (tree / "secrets.env").read_text()
    assert "ENVIRONMENT=production" in said
    made = dict(re.findall(r"^(\w+)=(.*)$", said, re.M))
    # When the stack is brought up with other servers than the default's
    make(operator, tree, "up", "E=rabbitmq-postgres")
    # Then it works, outside dev
    assert {"rabbitmq", "postgres", "api"} <= set(operator.services())
    with operator.client() as client:
        assert client.submit("addition", x=40, y=2).wait(timeout=60).result == 42
    # And only the made passwords open the windows
    for window, path, login, password in (
        ("FLOWER_PORT", "/api/workers", LOGIN, made["FLOWER_PASSWORD"]),
        ("RABBITMQ_UI_PORT", "/api/overview", RABBITMQ_LOGIN, made["RABBITMQ_PASSWORD"]),
    ):
        assert operator.get(window, path, auth=login).status_code == 401
        assert operator.get(window, path, auth=(login[0], password)).status_code == 200
    # And it goes down again
    make(operator, tree, "down", "E=rabbitmq-postgres")
    assert operator.containers() == []
