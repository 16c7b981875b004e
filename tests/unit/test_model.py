"""The moves a job may make are one table; the spec and the words of the code follow it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from jobs.model import ERROR_CODES, NEXT, Job, LogLine, PartKey, Plan, StagePlan, StageState, Status, each_progress

ROOT = Path(__file__).resolve().parents[2]


def test_every_status_has_its_moves_and_a_final_one_has_none():
    assert set(NEXT) == set(Status)
    assert {status for status in Status if status.is_final} == {Status.SUCCESSFUL, Status.FAILED, Status.DISMISSED}
    assert all(status not in after for status, after in NEXT.items())


def test_the_spec_knows_the_same_words():
    # Given every list of the spec that names a status or an error's code
    lists = [found["enum"] for found in _members(yaml.safe_load((ROOT / "swagger.yaml").read_text()), "enum")]
    statuses = [words for words in lists if Status.ACCEPTED in words]
    codes = [words for words in lists if set(words) & set(ERROR_CODES)]
    # Then they are the words of the code
    assert statuses
    assert all(sorted(words) == sorted(Status) for words in statuses)
    assert all(sorted(words) == sorted(ERROR_CODES) for words in codes)


def test_a_signature_carries_what_names_a_part():
    at = PartKey("0192", 2, 7, 11)
    assert PartKey(*json.loads(json.dumps(at.as_args()))) == at


@pytest.mark.parametrize(
    ("done", "dead", "total", "closed", "emitter", "expected"),
    [
        (0, 0, 0, False, 0.0, 0.0),
        (0, 0, 0, True, 1.0, 1.0),
        (1, 0, 2, False, 0.5, 0.25),
        (1, 1, 2, False, 0.5, 0.5),
        (1, 1, 4, True, 0.1, 0.5),
        (4, 0, 4, True, 1.0, 1.0),
    ],
)
def test_an_each_stage_is_as_far_as_its_parts_and_its_emitter(done, dead, total, closed, emitter, expected):
    assert each_progress(done, dead, total, closed, emitter) == expected


def test_a_job_is_as_far_as_its_stages_and_whole_when_successful():
    # Given a job of two stages
    plan = Plan((StagePlan("a", "io"), StagePlan("b", "io")))
    stages = (StageState("a", progress=1.0), StageState("b", progress=0.5))
    job = Job("1", "p", plan, {}, stages=stages)
    # Then each counts the same
    assert job.progress == 0.75
    assert Job("1", "p", plan, {}, stages=stages, status=Status.SUCCESSFUL).progress == 1.0
    assert Job("1", "p", plan, {}).progress == 0.0


def test_a_stage_is_waiting_then_running_then_finished():
    stages = (StageState("a"), StageState("a", started=1.0), StageState("a", started=1.0, finished=2.0))
    assert [stage.status for stage in stages] == ["waiting", "running", "finished"]


def test_error_codes_are_kebab_words():
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)+", code) for code in ERROR_CODES)


def _members(node: object, name: str) -> list[dict]:
    """Every mapping below `node` that has a member of that name."""
    if isinstance(node, list):
        return [found for item in node for found in _members(item, name)]
    if not isinstance(node, dict):
        return []
    return [node] * isinstance(node.get(name), list) + [f for item in node.values() for f in _members(item, name)]


def test_a_log_line_of_another_version_is_read():
    # Given what was stored before lines had a fence, and what a later version may store
    older = {"time": 1.5, "level": "info", "text": "hello", "stage": "cut", "index": 2}
    newer = {**older, "fence": 3, "weather": "fine"}
    # Then both are lines
    assert LogLine.of(older) == LogLine(1.5, "info", "hello", "cut", 2, fence=0)
    assert LogLine.of(newer) == LogLine(1.5, "info", "hello", "cut", 2, fence=3)
