"""Errors as answers: one table from class to status, RFC 9457 for the rest."""

from __future__ import annotations

import http.client
import json
import logging
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from connexion.lifecycle import ConnexionRequest, ConnexionResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from jobs import errors
from jobs.errors import JobsError
from jobs.model import Job, Status

logger = logging.getLogger(__name__)

# What only HTTP can say.


class BodyUnreadable(JobsError):
    """The body cannot be read."""


class ParametersInvalid(JobsError):
    """The path, query or header parameters do not fit."""


class BodyTooLarge(JobsError):
    """The body is larger than allowed."""


class MediaTypeUnsupported(JobsError):
    """The Content-Type is missing, or not one that this operation takes."""


class RangeNotSatisfiable(JobsError):
    """The file has no such range."""


class ClientGone(JobsError):
    """The client left before the request was complete."""


class JobBadInput(JobsError):
    """The job failed because its input cannot be used."""


class JobFailed(JobsError):
    """The job failed."""


class JobDismissed(JobsError):
    """The job was dismissed."""


STATUS: Mapping[type[JobsError], int] = {
    JobsError: 500,
    # Unreadable.
    BodyUnreadable: 400,
    ParametersInvalid: 400,
    errors.FilterInvalid: 400,
    errors.CursorInvalid: 400,
    ClientGone: 400,
    # Named by the path, and not there.
    errors.JobNotFound: 404,
    errors.PipelineNotFound: 404,
    errors.ArtifactNotFound: 404,
    errors.ResultNotReady: 404,  # as OGC API - Processes asks
    JobDismissed: 410,
    # Readable, but wrong.
    errors.BodyInvalid: 422,
    errors.ParamsInvalid: 422,
    errors.InputInvalid: 422,
    errors.PipelineUnknown: 422,
    errors.UploadNotFound: 422,  # ids of uploads stand in bodies only
    errors.KeyReused: 422,
    errors.BadInput: 422,
    JobBadInput: 422,
    errors.JobNotFailed: 409,
    BodyTooLarge: 413,
    MediaTypeUnsupported: 415,
    errors.TooManyWaiting: 429,
    RangeNotSatisfiable: 416,
    # A neighbour's fault.
    errors.StoreUnavailable: 503,
    errors.BrokerUnavailable: 503,
    errors.FilesUnavailable: 503,
    errors.FilesFull: 507,
    # Ours.
    JobFailed: 500,
    errors.StoreRefused: 500,
    errors.FileMissing: 500,
    errors.ClaimLost: 500,
    errors.TooManyParts: 500,
    errors.PipelineBroken: 500,
    errors.ModelBroken: 500,
    errors.SettingsInvalid: 500,
    errors.TryAgain: 500,
}

RETRY_AFTER_S: Mapping[type[JobsError], int] = {
    errors.ResultNotReady: 1,
    errors.StoreUnavailable: 5,
    errors.FilesUnavailable: 5,
    errors.BrokerUnavailable: 5,
}

# Not for clients: they tell of the inside of the installation.
HIDDEN = frozenset({"type", "title", "status", "detail", "instance"})


def of_job(job: Job) -> JobsError:
    """Why a final job has no result."""
    if job.status is Status.DISMISSED:
        return JobDismissed(job_id=job.id)
    if job.error is None:
        return errors.ResultNotReady(f"The job is {job.status}.", job_id=job.id, job_status=str(job.status))
    kind = JobBadInput if job.error.code == "bad-input" else JobFailed
    return kind(job.error.detail, job_id=job.id, code=job.error.code, stage=job.error.stage, index=job.error.index)


def response(error: Exception) -> Response:
    """Any exception as an answer; what is not ours is told as 500 and logged."""
    if isinstance(error, JobsError):
        return _of_error(error)
    if isinstance(error, HTTPException):
        return _of_status(error.status_code, str(error.detail or ""), dict(error.headers or {}))
    logger.error("request_broke", exc_info=error)
    return _of_status(500, "Something broke in the gateway; its log says what.", {})


async def answer(_request: ConnexionRequest, error: Exception) -> ConnexionResponse:
    """The same, registered with Connexion."""
    made = response(error)
    headers = {name: value for name, value in made.headers.items() if name not in ("content-length", "content-type")}
    return ConnexionResponse(
        made.status_code, "application/problem+json", "application/problem+json", body=made.body, headers=headers
    )


@cache
def kebab(kind: type[JobsError]) -> str:
    """JobNotFound is job-not-found."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()


def _of_error(error: JobsError) -> Response:
    kind = next(each for each in type(error).mro() if each in STATUS)
    status = STATUS[kind]
    if status >= 500 and not isinstance(error, JobFailed):
        logger.error("request_failed", extra={"problem": kebab(kind)}, exc_info=error if status == 500 else None)
    fields = {name: value for name, value in error.fields.items() if name not in HIDDEN}
    title = type(error).summary()
    detail = str(error) if status != 500 or isinstance(error, JobFailed) else title
    after_s = fields.pop("retry_after", RETRY_AFTER_S.get(kind))
    headers = {} if after_s is None else {"Retry-After": str(after_s)}
    if content_range := fields.pop("content_range", None):
        headers["Content-Range"] = str(content_range)
    return _problem(status, kebab(kind), title, detail, fields, headers)


def _of_status(status: int, detail: str, headers: Mapping[str, str]) -> Response:
    """What Connexion, Starlette or Flask refused: named after its status."""
    title = http.client.responses.get(status, "Error")
    return _problem(status, re.sub(r"[^a-z]+", "-", title.lower()), title, detail or title, {}, headers)


def _problem(
    status: int, name: str, title: str, detail: str, fields: Mapping[str, Any], headers: Mapping[str, str]
) -> Response:
    body = {"type": f"/problems/{name}", "title": title, "status": status, "detail": detail, **fields}
    content = json.dumps(body, default=str).encode()
    return Response(content, status, dict(headers), media_type="application/problem+json")


def violations(*found: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Several lists of violations as one, in the order of their pointers."""
    return sorted((one for each in found for one in each), key=lambda one: one["pointer"])
