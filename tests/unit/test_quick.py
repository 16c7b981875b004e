"""The quick check says yes only where jsonschema does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from connexion.json_schema import Draft4RequestValidator
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from api import quick
from jobs.pipeline import Pipelines

ROOT = Path(__file__).resolve().parents[2]
SUBMISSION = yaml.safe_load((ROOT / "swagger.yaml").read_text())["components"]["schemas"]["Submission"]
PIPELINES = Pipelines([ROOT / "celery_worker" / "pipelines"])

values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 12) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
given_inputs = values | st.just("http://a")
inputs = st.dictionaries(st.sampled_from(["file", "files", "url", "text", "x"]), given_inputs, max_size=2)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "pipeline": st.text(max_size=45) | values,
        "params": values,
        "input": inputs | values,
        "priority": values,
        "deadline": values,
        "labels": values,
        "webhook": values,
    },
)


@given(bodies | values)
def test_a_submission_that_fits_quickly_fits(body: Any) -> None:
    if quick.compiled(SUBMISSION)(body):
        assert Draft4RequestValidator(SUBMISSION).is_valid(body)


def test_a_plain_submission_is_checked_quickly() -> None:
    body = PIPELINES["addition"].example
    assert quick.compiled(SUBMISSION)(body)
    assert quick.compiled(PIPELINES["addition"].params_schema)(body["params"])


@given(
    st.sampled_from(
        [
            {"type": "number", "minimum": 0, "maximum": 9},
            {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 9},
            {"type": "integer", "enum": [1, 2]},
            {"type": "string", "enum": ["a", 1], "minLength": 1},
            {"type": ["number", "null"]},
            {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 1},
            {"type": "array", "uniqueItems": True},
            {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}},
            {"type": "object", "required": ["a"], "properties": {"a": {"oneOf": [{"type": "null"}]}}},
            {"type": "object", "patternProperties": {"^a": {"type": "null"}}},
            {"anyOf": [{"type": "null"}]},
            False,
            True,
            {},
        ]
    ),
    values,
)
def test_every_keyword_is_understood_or_left_to_jsonschema(schema: Any, value: Any) -> None:
    if quick.compiled(schema)(value):
        assert Draft202012Validator(schema).is_valid(value)
