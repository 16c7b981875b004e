"""What waits, streams or must be fast, answered by ASGI after Connexion's routing and validation.

A Flask handler would hold one of few threads for as long as it waits, and the bridge to it halves the submit rate.
swagger.yaml names these functions like any handler; Connexion resolves them, and `Intake` answers in its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping

from connexion.middleware.abstract import ROUTING_CONTEXT
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api import metrics, streams, views
from api.checks import BODY
from api.desk import Desk
from api.door import TRACE
from api.problems import BodyTooLarge, MediaTypeUnsupported, ParametersInvalid
from api.uploads import Form, Incoming, pieces
from api.waiting import unless_gone
from jobs import log
from jobs.errors import JobsError
from jobs.model import Accepted, Job, Place, Status, Submission, Upload

WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=$|[,;])', re.IGNORECASE)
PLACE = re.compile(r'-\d+"')  # in the ETag of a job that waits
EVENT_STREAM = "text/event-stream"
LIVE = Response(b'{"status":"ok"}', media_type="application/json")

logger = log.get(__name__)

Operation = Callable[[Desk, Request], Awaitable[Response]]


async def submit(desk: Desk, request: Request) -> Response:
    """Accept one job and answer before any of it has run."""
    key = request.headers.get("idempotency-key")
    submission = await (_from_form if _is_form(request) else _from_json)(desk, request, key)
    seconds = wait_of(request, desk)
    if seconds is not None:
        return await _accept_and_wait(desk, request, submission, seconds)
    accepted = await _accept(desk, submission)
    result = () if not accepted.replayed else await desk.store_threads(desk.services.small_result, accepted.job)
    return _json(views.job_view(accepted.job, result), 202, _accepted_headers(accepted))


async def getStatus(desk: Desk, request: Request) -> Response:
    """The job as it stands; with `Prefer: wait` once it is final, or once it is another than the client knows."""
    services = desk.services
    job_id = services.job_id(request.path_params["id"])
    known = request.headers.get("if-none-match")
    seconds = wait_of(request, desk)
    if seconds is None:
        job = await desk.store_threads(services.store.get, job_id)
    else:

        def enough(job: Job) -> bool:
            same = streams.is_known(known and PLACE.sub('"', known), views.etag(job))  # to move up is no reason to wake
            return job.status.is_final or (known is not None and not same)

        found = await unless_gone(request.receive, desk.waiting.until(job_id, enough, seconds))
        if found is None:
            return Response(status_code=499)
        job = found
    place = await _place(desk, job)
    headers = {"etag": views.etag(job, place), "cache-control": "private, no-cache"}
    if seconds is not None:
        headers["preference-applied"] = f"wait={seconds:g}"
    if streams.is_known(known, headers["etag"]):
        return Response(status_code=304, headers=headers)
    if not job.status.is_final:
        headers["retry-after"] = "1"
    return _json(views.job_view(job, await _small_result(desk, job), place), 200, headers)


async def getJobEvents(desk: Desk, request: Request) -> Response:
    """A stream that ends with the final status, or the events so far as JSON."""
    store = desk.services.store
    job_id = desk.services.job_id(request.path_params["id"])
    after = _after(request)
    events = await desk.store_threads(store.events, job_id, after, streams.PAGE)
    if EVENT_STREAM not in request.headers.get("accept", ""):
        links = [{"href": f"/jobs/{job_id}/events?after={events[-1].id}", "rel": "next"}] if events else []
        return _json({"events": [views.event_view(event) for event in events], "links": links})
    if not events and (await desk.store_threads(store.get, job_id)).status.is_final:
        return Response(status_code=204)  # an EventSource comes again unless it is told that this was all
    return streams.event_stream(store, desk.waiting, job_id, after, events)


async def getArtifact(desk: Desk, request: Request) -> Response:
    """A file that the job keeps, or a range of it."""
    services = desk.services
    path = request.path_params
    artifact = await desk.store_threads(services.artifact, path["id"], path["name"])
    return streams.artifact_response(services.files, desk.disk_threads, artifact, request.headers)


async def createFile(desk: Desk, request: Request) -> Response:
    """Stream the body to disk, then write its record."""
    services = desk.services
    limit = services.settings.max_upload_bytes
    if _is_form(request):
        raise MediaTypeUnsupported("The body is the file itself, not a form.")
    if int(request.headers.get("content-length", 0)) > limit:
        raise BodyTooLarge(limit=limit)
    declared, name = request.headers.get("content-type", ""), request.query_params.get("name", "")
    async with Incoming(services.files, desk.disk_threads, limit, declared, name) as incoming:
        async for piece in pieces(request.receive):
            incoming.take(piece)
            await incoming.flush()
        upload = await _keep(desk, incoming)
    return _json(views.upload_view(upload), 201)


async def getLiveness(desk: Desk, request: Request) -> Response:
    """Answered by the event loop itself: no thread, no neighbour."""
    return LIVE


OPERATIONS: Mapping[str, Operation] = {
    f"{operation.__module__}.{operation.__name__}": operation
    for operation in (submit, getStatus, getJobEvents, getArtifact, createFile, getLiveness)
}


class Intake:
    """The ASGI layer: its own operations are answered here, the others go on to Flask."""

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self._app, self._desk = app, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        routing = scope.get("extensions", {}).get(ROUTING_CONTEXT, {})
        if scope["type"] == "http" and not routing.get("operation_id"):
            raise HTTPException(404, "Nothing is here.")  # Flask's own routing is more lenient, and lost behind it
        operation = OPERATIONS.get(routing.get("operation_id"))
        if operation is None:
            await self._app(scope, receive, send)
            return
        response = await operation(self._desk, Request(scope, receive))
        await response(scope, receive, send)


def wait_of(request: Request, desk: Desk) -> float | None:
    """Seconds of `Prefer: wait`, at most MAX_WAIT_S. An unknown preference is ignored, as RFC 7240 says."""
    found = WAIT.search(request.headers.get("prefer", ""))
    return min(float(found[1]), desk.services.settings.max_wait_s) if found else None


async def _from_json(desk: Desk, request: Request, key: str | None) -> Submission:
    body, found = request.scope[BODY]
    refs = desk.checker.refs(body)
    uploads = await desk.store_threads(desk.checker.uploads, refs) if refs else {}
    return desk.checker.submission(body, found, uploads, key, request.scope[TRACE])


async def _from_form(desk: Desk, request: Request, key: str | None) -> Submission:
    """Everything is checked before the file gets its name, so that a refused form leaves nothing."""
    services = desk.services
    limit, fields_limit = services.settings.max_upload_bytes, services.settings.max_body_bytes
    if int(request.headers.get("content-length", 0)) > limit + fields_limit:
        raise BodyTooLarge(limit=limit)

    def incoming(declared: str, name: str) -> Incoming:
        return Incoming(services.files, desk.disk_threads, limit, declared, name)

    form = Form(request.headers["content-type"], incoming, fields_limit)
    try:
        await form.read(request.receive)
        body, uploads = form.body, {}
        if form.file:
            form.file.check()
            body = {**body, "input": {"file": form.file.id}}
            uploads = {form.file.id: form.file.record()}
        desk.checker.submission(body, desk.submission.violations(body), uploads)
        if form.file:
            uploads = {form.file.id: await _keep(desk, form.file)}
        return desk.checker.submission(body, (), uploads, key, request.scope[TRACE])
    finally:
        if form.file:
            await form.file.__aexit__()


async def _keep(desk: Desk, incoming: Incoming) -> Upload:
    """Bytes first, fsynced; then the record."""
    upload = await incoming.keep()
    services = desk.services
    stored: Upload = await desk.store_threads(services.store.add_upload, upload, services.settings.upload_ttl_s)
    metrics.RECEIVED.inc(stored.bytes)
    return stored


async def _accept(desk: Desk, submission: Submission) -> Accepted:
    accepted = await desk.batches.add(submission)
    metrics.accepted(accepted)
    job = accepted.job
    logger.info("job_replayed" if accepted.replayed else "job_accepted", job_id=job.id, pipeline=job.pipeline)
    return accepted


def _accepted_headers(accepted: Accepted) -> dict[str, str]:
    headers = {"location": f"/jobs/{accepted.job.id}", "retry-after": "1"}
    if accepted.replayed:
        headers["idempotency-replayed"] = "true"
    return headers


async def _accept_and_wait(desk: Desk, request: Request, submission: Submission, seconds: float) -> Response:
    """200 when the job is final in time, else 202. Once it is accepted, no trouble on the way makes it an error."""
    with desk.waiting.on(submission.job.id, end_only=True) as ended:
        accepted = await _accept(desk, submission)
        job = accepted.job
        try:
            if accepted.replayed:  # another id than the one listened for
                waited = desk.waiting.until(job.id, lambda job: job.status.is_final, seconds)
            else:
                waited = desk.waiting.ended(ended, job, seconds)
            job = await unless_gone(request.receive, waited) or job
            result = await _small_result(desk, job)
        except JobsError:
            result = ()
    headers = {**_accepted_headers(accepted), "preference-applied": f"wait={seconds:g}"}
    if job.status.is_final:
        del headers["retry-after"]
    return _json(views.job_view(job, result), 200 if job.status.is_final else 202, headers)


async def _place(desk: Desk, job: Job) -> Place | None:
    """Where it stands while it waits to be started; a store that fails just now does not hide the job."""
    if job.status is not Status.ACCEPTED:
        return None
    try:
        return await desk.store_threads(desk.services.store.place, job.id)
    except JobsError:
        return None


async def _small_result(desk: Desk, job: Job) -> tuple[object, ...]:
    return await desk.store_threads(desk.services.small_result, job) if job.status == "successful" else ()


def _after(request: Request) -> int:
    """From where the events are wanted: Last-Event-ID, else `after`. Raises ParametersInvalid."""
    last = request.headers.get("last-event-id", "").strip() or request.query_params.get("after", "0")
    if not (last.isascii() and last.isdigit() and len(last) < 17):
        wrong = {"pointer": "header:Last-Event-ID", "detail": "It is the id of an event: a number."}
        raise ParametersInvalid(wrong["detail"], errors=[wrong])
    return int(last)


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("multipart/")


def _json(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    return Response(body, status, headers, media_type="application/json")
