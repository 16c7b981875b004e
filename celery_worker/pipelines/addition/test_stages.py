"""Addition adds."""

import json
import time
from pathlib import Path

import pytest

from celery_worker.testing import run
from jobs.errors import ParamsInvalid

FOLDER = Path(__file__).parent


def test_the_example_answers_42():
    example = json.loads((FOLDER / "example.json").read_text())
    assert run(FOLDER, example["params"]).result == 42


def test_integers_stay_exact_and_fractions_add():
    assert run(FOLDER, {"x": 10**15, "y": 1}).result == 10**15 + 1
    assert run(FOLDER, {"x": 0.5, "y": -0.25}).result == 0.25


def test_a_delay_takes_its_time_and_shows_progress():
    started = time.monotonic()
    done = run(FOLDER, {"x": 1, "y": 2, "delay": 0.35})
    assert (done.result, 0.35 <= time.monotonic() - started < 2) == (3, True)
    shown = [data["progress"] for kind, data in done.events if kind == "progress"]
    assert shown == sorted(shown)
    assert len(shown) >= 3


def test_a_delayed_addition_can_be_dismissed_in_the_middle():
    started = time.monotonic()
    assert run(FOLDER, {"x": 1, "y": 2, "delay": 60}, dismiss_at=("add", 3)).dismissed
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "params",
    [{}, {"x": 1}, {"x": "1", "y": 2}, {"x": 1, "y": 2, "z": 3}, {"x": 1, "y": 2, "delay": 61}, {"x": 1e16, "y": 0}],
)
def test_what_cannot_be_added_is_refused_at_the_door(params):
    with pytest.raises(ParamsInvalid):
        run(FOLDER, params)
