"""How things look to a client: the documents of a job, its lists, a pipeline, an upload."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from jobs.model import Artifact, Event, Job, LogLine, Place, Presence, StageState, Status, Upload
from jobs.pipeline import Pipeline

VERSION = "0.1.0"
# Characters of control but the tab and the line's end, other line ends, and what turns the direction of text.
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def job_view(job: Job, result: tuple[object, ...] = (), place: Place | None = None) -> dict[str, Any]:
    """The job's document, with OGC's members beside ours. `result`: a tuple of one when it is to be shown.

    `place` is where it stands while it waits to be started.
    """
    path = f"/jobs/{job.id}"
    document: dict[str, Any] = {
        "id": job.id,
        "pipeline": job.pipeline,
        "status": job.status.value,
        "progress": round(job.progress, 4),
        "priority": job.priority,
        "labels": dict(job.labels),
        "owner": job.owner,
        "params": job.params,
        "input": job.input,
        "created": moment(job.created),
        "started": moment(job.started),
        "finished": moment(job.finished),
        "deadline": moment(job.deadline),
        "retry_of": job.retry_of,
        "stages": [_stage(stage) for stage in job.stages],
    }
    if place:
        document["queue_position"] = place.position
        document["estimated_start"] = moment(time.time() + place.position / place.per_s) if place.per_s else None
    if result:
        document["result"] = result[0]
    if job.error:
        error = job.error
        document["error"] = {"code": error.code, "detail": error.detail, "stage": error.stage, "index": error.index}
    document["links"] = _job_links(path, job)
    document["jobID"] = job.id
    document["type"] = "process"
    document["processID"] = job.pipeline
    document["updated"] = moment(job.updated or job.created)
    return document


def etag(job: Job, place: Place | None = None) -> str:
    """Changes with every change that a client can see."""
    return f'"{job.version}-{place.position}"' if place else f'"{job.version}"'


def list_view(jobs: Sequence[Job], links: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """One page of jobs."""
    return {"jobs": [job_view(job) for job in jobs], "links": list(links)}


def event_view(event: Event) -> dict[str, Any]:
    """One event."""
    return {"id": event.id, "time": moment(event.time), "type": event.type, "data": dict(event.data)}


def log_view(line: LogLine) -> str:
    """One line of the log, as text. It may quote a file, and must neither look like another nor steer a terminal."""
    text = UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), line.text.replace("\r\n", "\n"))
    text = text.replace("\n", "\n  ")
    fence = f"#{line.fence}" if line.fence else ""
    return f"{moment(line.time)} {line.level.upper():7} {line.stage}[{line.index}]{fence} {text}\n"


def artifact_view(job_id: str, artifact: Artifact) -> dict[str, Any]:
    """One file that a job keeps."""
    return {
        "name": artifact.name,
        "bytes": artifact.bytes,
        "sha256": artifact.sha256,
        "type": artifact.type,
        "href": f"/jobs/{job_id}/artifacts/{artifact.name}",
    }


def upload_view(upload: Upload) -> dict[str, Any]:
    """A stored file."""
    return {
        "id": upload.id,
        "bytes": upload.bytes,
        "sha256": upload.sha256,
        "type": upload.type,
        "name": upload.name,
        "expires": moment(upload.expires),
    }


def worker_view(worker: Presence) -> dict[str, Any]:
    """A worker that is there."""
    return asdict(worker)


def process_view(pipeline: Pipeline) -> dict[str, Any]:
    """A pipeline in the list, as OGC's process summary."""
    return {
        "id": pipeline.name,
        "title": pipeline.title,
        "description": pipeline.description,
        "version": VERSION,
        "jobControlOptions": ["async-execute", "dismiss"],
        "links": [{"href": f"/processes/{pipeline.name}", "rel": "self", "type": "application/json"}],
    }


def process_description(pipeline: Pipeline) -> dict[str, Any]:
    """A pipeline with everything that a submission needs to know."""
    return {
        **process_view(pipeline),
        "params": pipeline.params_schema,
        "input": {
            "required": pipeline.input_required,
            "takes": {kind: list(types) for kind, types in pipeline.input.items()},
        },
        "stages": [{"name": s.name, "queue": s.queue, "each": s.each} for s in pipeline.stages],
        **{name: limit for name in ("rate", "concurrency") if (limit := getattr(pipeline, name)) is not None},
        **_example(pipeline),
    }


def moment(seconds: float | None) -> str | None:
    """Unix seconds as RFC 3339."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _example(pipeline: Pipeline) -> dict[str, Any]:
    try:
        return {"example": dict(pipeline.example)}
    except FileNotFoundError:
        return {}


def _stage(stage: StageState) -> dict[str, Any]:
    return {
        "name": stage.name,
        "status": stage.status,
        "total": stage.total,
        "done": stage.done,
        "dead": stage.dead,
        "progress": round(stage.progress, 4),
        "failures": stage.failures,
        "losses": stage.losses,
        "waited_s": round(stage.waited_s, 3),
        "ran_s": round(stage.ran_s, 3),
        "device": stage.device,
    }


def _job_links(path: str, job: Job) -> list[dict[str, str]]:
    links = [
        {"href": path, "rel": "self", "type": "application/json"},
        {"href": f"{path}/events", "rel": "monitor", "type": "text/event-stream"},
        {"href": f"{path}/logs", "rel": "logs", "type": "text/plain"},
        {"href": f"{path}/artifacts", "rel": "artifacts", "type": "application/json"},
    ]
    if job.status is Status.SUCCESSFUL:
        links.append(
            {
                "href": f"{path}/results",
                "rel": "http://www.opengis.net/def/rel/ogc/1.0/results",
                "type": "application/json",
            }
        )
    if job.retry_of:
        links.append({"href": f"/jobs/{job.retry_of}", "rel": "predecessor-version", "type": "application/json"})
    return links
