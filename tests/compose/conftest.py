"""What the checks of the composed stack share: the stack itself, and the table at the end."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest

from tests.compose.dawdlers import BODY, HEADERS, Dawdler
from tests.compose.stack import Stack, docker

SERVERS = ("rabbitmq-redis", "rabbitmq-postgres", "redis-postgres")
OUR_IMAGES = ("api", "worker-vision", "worker-text", "worker-io", "worker-flower")
TAGS = ("after-api", "after-workers")
FIGURES: dict[str, float] = {}
ROWS: list[tuple[str, str, float]] = []
_built: list[bool] = []
_began = time.monotonic()


def built(stack: Stack) -> None:
    """Build the images, once a session."""
    if not _built:
        began = time.monotonic()
        stack.build()
        _built.append(True)
        FIGURES["build_s"] = time.monotonic() - began
        # On disk, unpacked; what they add to the image that they stand on.
        base = bytes_of(stack.variable("PYTHON_IMAGE"))
        for name in OUR_IMAGES:
            FIGURES[f"image_mb_{name.replace('-', '_')}"] = (bytes_of(f"gristmill/{name}:dev") - base) / 1e6


def bytes_of(image: str) -> int:
    """The size of an image."""
    return int(json.loads(docker("image", "inspect", image))[0]["Size"])


@pytest.fixture(scope="session", params=SERVERS)
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The stack with one combination of servers, up and empty; all checks of it come before the next one's."""
    name = request.param.replace("-", "_")
    neighbours = {"ONBOARDING_SMTP_URL": "smtp://mail:2525", "ALLOWED_HOSTS": "site"}
    with Stack(request.param, env=neighbours) as one:
        one.down("-v")
        built(one)
        FIGURES[f"load_before_{name}"] = os.getloadavg()[0]
        FIGURES[f"healthy_s_{name}"] = one.up()
        one.dawdlers = {
            "headers": Dawdler(one.ports["API_PORT"], HEADERS, drips=True),
            "body": Dawdler(one.ports["API_PORT"], BODY),
        }
        yield one


@pytest.fixture(scope="session", autouse=True)
def _no_tags_left() -> Iterator[None]:
    """The tags that stood for new versions go with the session."""
    yield
    for tag in TAGS:
        docker("image", "rm", *(f"gristmill/{name}:{tag}" for name in OUR_IMAGES), check=False)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # Collecting tests/ loads this file too, and then hears of every other test.
    if report.nodeid.startswith("tests/compose/") and (report.when == "call" or report.failed):
        file, _, name = report.nodeid.removeprefix("tests/compose/check_").partition(".py::test_")
        ROWS.append((f"{file}: {name.replace('_', ' ')}", report.outcome, report.duration))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not ROWS:
        return
    terminalreporter.section("checks of the composed stack")
    width = max(len(name) for name, _, _ in ROWS)
    for name, outcome, seconds in ROWS:
        terminalreporter.write_line(f"{name:<{width}}  {outcome:<7} {seconds:7.1f} s")
    FIGURES["acceptance_s"] = time.monotonic() - _began
    for name, value in FIGURES.items():
        terminalreporter.write_line(f"figure {name} {value:.1f}")
