"""`gristmill submit NAME ...` on one machine, as each pipeline's page says it: every kind of input, every pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.examples import Street
from celery_worker.pipelines.document.papers import pdf
from celery_worker.pipelines.features import rasters
from tests.acceptance.conftest import GIVEN_URL
from tests.acceptance.installations import ROOT, gristmill

pytestmark = [pytest.mark.timeout(240)]

HARBOUR, STREET = ROOT / "samples" / "rotterdam-harbour.tif", ROOT / "samples" / "street.mp4"
PAPER = "Angela Merkel lived in Berlin for many years. It was a wonderful time."

Case = tuple[list[object], Callable[[Any], object], object]


def cases(folder: Path, site: str) -> dict[str, Case]:
    """By the kind of input: what is typed behind `submit`, what of the result is looked at, and what that is."""
    (folder / "paper.pdf").write_bytes(pdf([PAPER]))
    basin = rasters.meadow(80, 100)[:3]
    basin[:, 10:50, 20:60] = np.array([40, 180, 200], np.uint8)[:, None, None]
    picture = rasters.write(folder / "a.png", basin, driver="PNG", names=None, crs=None, transform=None)
    (folder / "a.pgw").write_text("0.5\n0\n0\n-0.5\n593000.25\n5746999.75\n")
    bands = 'bands=["blue","green","red","nir"]'
    return {
        "params": (["addition", "-p", "x=40", "-p", "y=2"], lambda found: found, 42),
        "params, and a mail server": (
            ["onboarding", "-p", "name=Grace Hopper", "-p", "email=submit@example.org"],
            lambda found: found["mail"]["to"],
            "submit@example.org",
        ),
        "text": (
            ["document", "--text", PAPER, "-p", "key_sentences=1"],
            lambda found: [one["text"] for one in found["entities"]][:2],
            ["Angela Merkel", "Berlin"],
        ),
        "a file of text": (["document", folder / "paper.pdf"], lambda found: found["analysed"], True),
        "a page behind an address": (
            ["document", "--input-url", f"{site}mill.html"],
            lambda found: found["language"]["code"],
            "en",
        ),
        "a site": (
            ["wordcount", "--input-url", f"{site}index.html", "-p", "depth=2", "-p", "pause=0.1", "-p", "word=mill"],
            lambda found: (found["pages"], found["word"]["pages"]),
            (4, 3),
        ),
        "a raster": (["features", HARBOUR, "-p", bands], lambda found: found["counts"]["water"], 3),
        "a picture and its world file": (
            ["features", picture, folder / "a.pgw", "-p", 'classes=["pool"]', "-p", "crs=EPSG:32631"],
            lambda found: found["counts"],
            {"pool": 1},
        ),
        "a video": (["video", STREET, "-p", "fps=1", "-p", "end=3"], lambda found: found["frames"], 3),
    }


@pytest.mark.parametrize("installation", [] if GIVEN_URL else ["one_machine"])  # a given one reaches no loopback
def test_every_pipeline_is_submitted_by_the_command_with_every_kind_of_input(
    installation: str, request: pytest.FixtureRequest, street: Street, tmp_path: Path
) -> None:
    # Given an installation on one machine
    url = request.getfixturevalue(installation).url
    found, expected = {}, {}
    for kind, (typed, look, wanted) in cases(tmp_path, street.site_url).items():
        # When a pipeline is submitted and waited for
        done = gristmill("submit", *typed, "--wait", timeout=200, GRISTMILL_URL=url)
        # Then the exit code says that it was successful, and standard output is its result
        assert done.returncode == 0, (kind, done.stderr)
        found[kind], expected[kind] = look(json.loads(done.stdout)), wanted
    assert found == expected
