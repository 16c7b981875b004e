"""Every error has an answer, and no answer tells too much."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from starlette.exceptions import HTTPException

from api import problems
from jobs import errors
from jobs.errors import JobsError
from jobs.model import Job, JobError, Plan, Status


def below(kind: type[JobsError]) -> Iterator[type[JobsError]]:
    for each in kind.__subclasses__():
        if each.__module__.split(".")[0] in ("jobs", "api"):
            yield each
            yield from below(each)


@pytest.mark.parametrize("kind", sorted(set(below(JobsError)), key=lambda kind: kind.__name__))
def test_every_error_has_a_status_and_a_sentence(kind: type[JobsError]) -> None:
    assert kind in problems.STATUS
    assert kind.summary().endswith(".")


def test_every_row_of_the_table_is_an_error_once() -> None:
    assert set(problems.STATUS) == {JobsError, *below(JobsError)}
    names = [problems.kebab(kind) for kind in problems.STATUS]
    assert len(names) == len(set(names))


def test_an_error_is_told_with_its_facts() -> None:
    answer = problems.response(errors.KeyReused(job_id="a", status="evil", type="evil"))
    assert (answer.status_code, answer.media_type) == (422, "application/problem+json")
    assert json.loads(answer.body) == {
        "type": "/problems/key-reused",
        "title": "That Idempotency-Key was used for another body.",
        "status": 422,
        "detail": "That Idempotency-Key was used for another body.",
        "job_id": "a",
    }


def test_what_is_ours_to_mend_is_not_told_to_clients() -> None:
    for error in (errors.StoreRefused("redis://:secret@host"), ValueError("secret"), KeyError("secret")):
        answer = problems.response(error)
        assert answer.status_code == 500
        assert b"secret" not in answer.body


def test_a_neighbour_that_is_away_says_when_to_come_again() -> None:
    assert problems.response(errors.StoreUnavailable()).headers["retry-after"] == "5"


def test_what_the_framework_refuses_looks_the_same() -> None:
    answer = problems.response(HTTPException(405, "No.", {"Allow": "GET"}))
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert json.loads(answer.body) == {
        "type": "/problems/method-not-allowed",
        "title": "Method Not Allowed",
        "status": 405,
        "detail": "No.",
    }


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (Status.ACCEPTED, None, errors.ResultNotReady),
        (Status.RUNNING, None, errors.ResultNotReady),
        (Status.DISMISSED, None, problems.JobDismissed),
        (Status.FAILED, JobError("bad-input", "No."), problems.JobBadInput),
        (Status.FAILED, JobError("time-limit", "No."), problems.JobFailed),
    ],
)
def test_a_job_without_a_result_says_why(status: Status, error: JobError | None, kind: type[JobsError]) -> None:
    job = Job("id", "addition", Plan(()), {}, status=status, error=error)
    assert type(problems.of_job(job)) is kind
