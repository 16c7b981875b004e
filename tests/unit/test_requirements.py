"""Each worker installs what its own pipelines need: no lock drags in what another one is made of."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VISION = {"opencv-python-headless", "opencv-python", "av", "rasterio", "supervision", "trackers"}
TEXT = {"spacy", "tokenizers", "pypdf", "trafilatura", "vadersentiment"}


def locked(*names: str) -> set[str]:
    """The packages of a worker with these pipelines."""
    locks = [ROOT / "requirements" / "worker.txt"]
    locks += [ROOT / "celery_worker" / "pipelines" / name / "requirements.txt" for name in names]
    return {name for lock in locks for name in re.findall(r"^([a-z0-9-]+)==", lock.read_text(), re.M)}


@pytest.mark.parametrize(
    ("pipelines", "has", "never"),
    [
        (["document"], {"spacy", "pypdf"}, VISION),
        (["video"], {"av", "opencv-python-headless"}, TEXT | {"rasterio"}),
        (["features"], {"rasterio"}, TEXT | {"av"}),
        (["wordcount", "onboarding"], {"trafilatura", "sqlalchemy"}, VISION | {"spacy", "pypdf", "onnxruntime"}),
        (["addition"], {"celery"}, VISION | TEXT | {"onnxruntime"}),
    ],
)
def test_a_worker_has_what_its_pipelines_need_and_nothing_of_the_others(pipelines, has, never):
    packages = locked(*pipelines)
    assert has <= packages
    assert packages & never == set()
