"""An error is a class whose docstring is its message, and whose fields can stand in a problem document."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from jobs import errors
from jobs.errors import JobNotFound, JobsError

ROOT = Path(__file__).resolve().parents[2]
RESERVED = {"type", "title", "status", "detail", "instance"}  # problem+json's own members
KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, JobsError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_sentence_of_its_own(kind):
    assert re.fullmatch(r"[A-Z].+\.", kind.summary()), kind.__name__
    assert "__doc__" in vars(kind)
    assert sum(other.summary() == kind.summary() for other in KINDS) == 1


def test_an_error_says_its_sentence_unless_it_is_given_another():
    assert str(JobNotFound(job_id="7")) == "No job has that id."
    assert str(JobNotFound("It is gone.")) == "It is gone."
    assert JobNotFound(job_id="7").fields == {"job_id": "7"}


def test_no_error_carries_a_field_that_would_overwrite_the_problem_itself():
    # Given every place that makes one of our errors
    names = {kind.__name__ for kind in KINDS}
    found = []
    for package in ("jobs", "api", "celery_worker"):
        for file in (ROOT / package).rglob("*.py"):
            for call in ast.walk(ast.parse(file.read_text())):
                called = getattr(call.func, "id", getattr(call.func, "attr", "")) if isinstance(call, ast.Call) else ""
                if called in names:
                    found += [(file.name, called, word.arg) for word in call.keywords]
    # Then none of its fields has a reserved name
    assert found
    assert [where for where in found if where[2] in RESERVED] == []


def test_every_error_of_the_domain_stands_in_one_file():
    # Given the classes of jobs/ that can be raised
    elsewhere = []
    for file in (ROOT / "jobs").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "JobsError" for base in node.bases):
                elsewhere.append(file.name)
    # Then the root's direct children are all in errors.py
    assert set(elsewhere) == {"errors.py"}
