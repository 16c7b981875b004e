"""Our images: small, and each holds only what its pipelines need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.compose.conftest import FIGURES, built
from tests.compose.stack import ROOT, Stack, docker

SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
IMAGES = {"worker-vision": "worker-inference", "worker-text": "worker-text", "worker-io": "worker-io"}
INSTALLED = """
from importlib.metadata import distributions
print(*(found.metadata['Name'] for found in distributions(path=__import__('site').getsitepackages())))
"""


@pytest.fixture(scope="module", autouse=True)
def images() -> Iterator[None]:
    """The images, built."""
    with Stack("redis-postgres", "gristmill-images") as one:
        built(one)
        yield


def locked(*locks: Path) -> set[str]:
    """The packages that these locks name."""
    return {name for lock in locks for name in re.findall(r"^([a-z0-9-]+)==", lock.read_text(), re.M)}


def inside(image: str, *command: str) -> set[str]:
    """The words that a command in an image says."""
    return set(docker("run", "--rm", "--network", "none", f"gristmill/{image}:dev", *command).split())


def test_the_gateways_image_adds_little_to_its_base() -> None:
    # Given what the image is larger than the Python that it stands on
    assert FIGURES["image_mb_api"] < 250


@pytest.mark.parametrize("image", IMAGES)
def test_a_workers_image_holds_its_own_pipelines_and_no_others(image: str) -> None:
    # Given the pipelines that compose names for it
    pipelines = SERVICES[IMAGES[image]]["build"]["args"].get("PIPELINES", "").split()
    # Then it has their folders, and packages from their locks alone
    found = {name for name in inside(image, "ls", "celery_worker/pipelines") if not name.startswith("__")}
    assert found == set(pipelines)
    locks = [ROOT / "celery_worker" / "pipelines" / name / "requirements.txt" for name in pipelines]
    installed = {name.lower().replace("_", "-").replace(".", "-") for name in inside(image, "python", "-c", INSTALLED)}
    assert installed - locked(ROOT / "requirements" / "worker.txt", *locks) == set()
    assert "celery" in installed


def test_the_gateways_image_cannot_run_a_pipeline() -> None:
    # When its packages are listed, then they are those of its own lock
    installed = {name.lower().replace("_", "-").replace(".", "-") for name in inside("api", "python", "-c", INSTALLED)}
    assert installed - locked(ROOT / "requirements" / "api.txt") == set()
    assert "connexion" in installed
