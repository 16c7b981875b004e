"""Jobs: list, dismiss, fetch what they gave, run again. Submitting and watching are in api/intake.py."""

from __future__ import annotations

import uuid
from urllib.parse import urlencode

import flask

from api import problems, views
from api.accept import new_id
from api.handlers import reply
from api.services import services
from jobs import log
from jobs.errors import FilterInvalid
from jobs.model import Status
from jobs.trace import trace_id

logger = log.get(__name__)


def getJobs(
    status: str | None = None,
    processID: str | None = None,
    label: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> flask.Response:
    """One page of jobs, newest first."""
    page = services().store.page(
        status=Status(status) if status else None,
        pipeline=processID,
        label=_label(label) if label else None,
        cursor=cursor,
        limit=limit,
    )
    links, headers = [], {}
    if page.next:
        asked = {"status": status, "processID": processID, "label": label, "limit": limit, "cursor": page.next}
        after = f"/jobs?{urlencode({name: value for name, value in asked.items() if value is not None})}"
        links, headers = (
            [{"href": after, "rel": "next", "type": "application/json"}],
            {"Link": f'<{after}>; rel="next"'},
        )
    return reply(views.list_view(page.jobs, links), 200, headers)


def dismiss(id: str) -> flask.Response:
    """End a job; one that has been final for a while is removed."""
    job = services().store.dismiss(services().job_id(id))
    services().store.remove(job.id)
    return reply(views.job_view(job))


def getResult(id: str) -> flask.Response:
    """What the last stage returned, or why there is nothing."""
    job = services().job(id)
    if job.status is not Status.SUCCESSFUL:
        raise problems.of_job(job)
    return reply(services().result(job))


def retry(id: str) -> flask.Response:
    """A new job that adopts what a failed one has done."""
    key = flask.request.headers.get("Idempotency-Key")
    accepted = services().store.retry(services().job_id(id), _retry_id(id, key) if key else new_id())
    services().ring(accepted.rings)
    # The trace is the first job's, so that it can be followed on; the request has one of its own.
    logger.info("job_retried", job_id=accepted.job.id, retry_of=id, job_trace_id=trace_id(accepted.job.trace))
    headers = {"Location": f"/jobs/{accepted.job.id}", "Retry-After": "1"}
    if accepted.replayed:
        headers["Idempotency-Replayed"] = "true"
    return reply(views.job_view(accepted.job), 202, headers)


def getJobLogs(id: str) -> flask.Response:
    """What the stages logged, as text."""
    lines = services().store.logs(services().job_id(id))
    return flask.Response("".join(map(views.log_view, lines)), mimetype="text/plain")


def listArtifacts(id: str) -> flask.Response:
    """The files that a job keeps."""
    artifacts = services().store.artifacts(services().job_id(id))
    return reply({"artifacts": [views.artifact_view(id, artifact) for artifact in artifacts]})


def _label(label: str) -> tuple[str, str]:
    name, colon, value = label.partition(":")
    if not name or not colon or "\x00" in label:
        raise FilterInvalid("A label is asked for as name:value.")
    return name, value


def _retry_id(job_id: str, key: str) -> str:
    """The same key makes the same new job, so that a repeated retry runs once."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{job_id}/retry/{key}"))
