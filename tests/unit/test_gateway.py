"""The gateway's parts that need no neighbour."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from api import strict_json, uploads
from api.accept import digest
from api.app import read_spec
from api.intake import WAIT
from api.problems import BodyUnreadable
from api.views import moment
from jobs.model import ERROR_CODES, Status, Upload
from jobs.pipeline import Pipelines

ROOT = Path(__file__).resolve().parents[2]
SPEC = yaml.safe_load((ROOT / "swagger.yaml").read_text())
PIPELINES = Pipelines([ROOT / "celery_worker" / "pipelines"])
OPERATIONS = {
    operation["operationId"]: operation
    for path in SPEC["paths"].values()
    for method, operation in path.items()
    if method in ("get", "post", "put", "delete")
}


def test_the_gateway_never_imports_the_worker() -> None:
    probe = (
        "import sys, api.app; heavy = ('celery_worker', 'cv2', 'onnxruntime', 'av', 'numpy');"
        "print(*(m for m in sys.modules if m.split('.')[0] in heavy))"
    )
    ran = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout.strip()) == (0, ""), ran.stderr


def test_the_spec_knows_the_words_of_the_model() -> None:
    schemas = SPEC["components"]["schemas"]
    assert schemas["Status"]["enum"] == [status.value for status in Status]
    assert schemas["JobError"]["properties"]["code"]["enum"] == list(ERROR_CODES)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_operation_is_described_and_tells_its_answers(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation["summary"]
    assert operation["tags"]
    assert any(status.startswith("2") for status in operation["responses"])
    # An example that is filled in for a key or an id would make the second try fail.
    own = [each for each in operation.get("parameters", ()) if "$ref" not in each and "example" in each]
    assert [each["name"] for each in own] in ([], ["id"] if name == "getProcessDescription" else [])


def test_swagger_ui_offers_an_example_of_every_pipeline_and_begins_with_one_that_works() -> None:
    body = read_spec(PIPELINES)["paths"]["/process"]["post"]["requestBody"]["content"]["application/json"]
    assert next(iter(body["examples"])) == "addition"
    assert {name: each["value"] for name, each in body["examples"].items()} == {
        name: pipeline.example for name, pipeline in PIPELINES.items()
    }


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_the_example_of_every_pipeline_passes_its_schema(name: str) -> None:
    example = PIPELINES[name].example
    assert example["pipeline"] == name
    PIPELINES[name].check(example.get("params", {}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(json_values)
def test_json_is_read_as_it_was_written(value: Any) -> None:
    assert strict_json.read(strict_json.canonical(value)) == value


@given(st.binary() | st.text().map(str.encode))
def test_whatever_comes_is_read_or_refused(body: bytes) -> None:
    try:
        value = strict_json.read(body)
    except BodyUnreadable:
        return
    assert not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize("depth", [99, 100, 101, 500, 5_000])
def test_json_may_be_nested_a_hundred_deep(depth: int) -> None:
    body = b"[" * depth + b"]" * depth
    if depth <= strict_json.MAX_DEPTH:
        strict_json.read(body)
    else:
        with pytest.raises(BodyUnreadable):
            strict_json.read(body)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("wait=10", "10"),
        ("respond-async, wait=3", "3"),
        ('Wait = "7"; x=y', "7"),
        ("respond-async;wait=5", "5"),
        ("wait=", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("await=3", None),
        ("", None),
    ],
)
def test_a_preference_for_waiting_is_understood(header: str, seconds: str | None) -> None:
    found = WAIT.search(header)
    assert (found[1] if found else None) == seconds


def test_a_file_counts_by_its_content() -> None:
    def body(file: str) -> dict[str, Any]:
        return {"pipeline": "video", "input": {"file": file}}

    known = {name: Upload(name, name, 1, sha, "video/mp4") for name, sha in (("a", "1"), ("b", "1"), ("c", "2"))}
    assert digest(body("a"), known) == digest(body("b"), known) != digest(body("c"), known)
    assert digest({"x": 1, "y": 2}, {}) == digest({"y": 2, "x": 1}, {})


@pytest.mark.parametrize(
    ("head", "declared", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "video/mp4", "image/png"),
        (b"plain words", "video/mp4", "video/mp4"),
        (b"plain words", "", "application/octet-stream"),
        (b"plain words", "Text/Plain; charset=utf-8", "text/plain"),
        (b"plain words", "not a type", "application/octet-stream"),
        (bytes(100), "", "application/octet-stream"),
        ((b"G" + bytes(187)) * 5, "text/vnd.trolltech.linguist", "video/mp2t"),  # what Python takes `.ts` for
        ((bytes(4) + b"G" + bytes(187)) * 5, "", "video/mp2t"),
        (b"Goods " * 400, "text/plain", "text/plain"),
        (b"OggS" + bytes(24) + b"\x80theora" + bytes(90), "", "video/ogg"),
        (b"\x06\x0e\x2b\x34\x02\x05\x01\x01" + bytes(90), "", "application/mxf"),
        (b"\x1aE\xdf\xa3" + bytes(20) + b"webm" + bytes(50), "video/webm", "video/webm"),
    ],
)
def test_a_file_is_what_its_first_bytes_say(head: bytes, declared: str, expected: str) -> None:
    assert uploads.media_type(head, declared) == expected


def test_moments_are_rfc_3339() -> None:
    assert (moment(1_700_000_000.5), moment(None)) == ("2023-11-14T22:13:20.500Z", None)
