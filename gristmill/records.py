"""What the gateway tells, as typed, frozen values. Members that this client does not know stay in `raw`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """Where a job stands."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    SUCCESSFUL = "successful"
    FAILED = "failed"
    DISMISSED = "dismissed"

    @property
    def is_final(self) -> bool:
        """A final status never changes."""
        return self not in (Status.ACCEPTED, Status.RUNNING)


@dataclass(frozen=True)
class Stage:
    """One stage of a job. `total` counts the parts known so far."""

    name: str
    status: str
    total: int
    done: int
    progress: float
    failures: int
    losses: int
    waited_s: float
    ran_s: float
    device: str


@dataclass(frozen=True)
class Failure:
    """Why a job failed."""

    code: str
    detail: str
    stage: str | None = None
    index: int | None = None


@dataclass(frozen=True)
class Record:
    """A job as it stood when the gateway was asked."""

    id: str
    pipeline: str
    status: Status
    progress: float
    priority: int
    labels: Mapping[str, str]
    params: Mapping[str, Any]
    input: Mapping[str, Any]
    created: datetime | None
    started: datetime | None
    finished: datetime | None
    deadline: datetime | None
    retry_of: str | None
    queue_position: int | None
    estimated_start: datetime | None
    stages: tuple[Stage, ...]
    result: Any
    error: Failure | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Event:
    """One line of a job's log of events."""

    id: int
    type: str
    data: Mapping[str, Any]

    @property
    def is_final(self) -> bool:
        """After it the log ends."""
        return self.type in (Status.SUCCESSFUL, Status.FAILED, Status.DISMISSED)


@dataclass(frozen=True)
class Artifact:
    """A file that a job keeps for its client."""

    name: str
    bytes: int
    sha256: str
    type: str


@dataclass(frozen=True)
class Pipeline:
    """What can be run, with the schema of its params."""

    id: str
    title: str
    description: str
    raw: Mapping[str, Any] = field(repr=False, compare=False)


def record(data: Mapping[str, Any]) -> Record:
    """From the gateway's document of a job."""
    error = data.get("error")
    return Record(
        id=str(data["id"]),
        pipeline=str(data.get("pipeline", "")),
        status=Status(data["status"]),
        progress=float(data.get("progress") or 0.0),
        priority=int(data.get("priority", 4)),
        labels=data.get("labels") or {},
        params=data.get("params") or {},
        input=data.get("input") or {},
        created=_time(data.get("created")),
        started=_time(data.get("started")),
        finished=_time(data.get("finished")),
        deadline=_time(data.get("deadline")),
        retry_of=data.get("retry_of"),
        queue_position=data.get("queue_position"),
        estimated_start=_time(data.get("estimated_start")),
        stages=tuple(_stage(stage) for stage in data.get("stages") or ()),
        result=data.get("result"),
        error=_failure(error) if error else None,
        raw=data,
    )


def artifact(data: Mapping[str, Any]) -> Artifact:
    """From one entry of a job's list of artifacts."""
    return Artifact(str(data["name"]), int(data["bytes"]), str(data.get("sha256", "")), str(data.get("type", "")))


def pipeline(data: Mapping[str, Any]) -> Pipeline:
    """From one entry of GET /processes, or from its description."""
    return Pipeline(str(data["id"]), str(data.get("title", "")), str(data.get("description") or ""), data)


def _stage(data: Mapping[str, Any]) -> Stage:
    return Stage(
        name=str(data["name"]),
        status=str(data.get("status", "")),
        total=int(data.get("total") or 0),
        done=int(data.get("done") or 0),
        progress=float(data.get("progress") or 0.0),
        failures=int(data.get("failures") or 0),
        losses=int(data.get("losses") or 0),
        waited_s=float(data.get("waited_s") or 0.0),
        ran_s=float(data.get("ran_s") or 0.0),
        device=str(data.get("device") or ""),
    )


def _failure(data: Mapping[str, Any]) -> Failure:
    return Failure(str(data.get("code", "")), str(data.get("detail", "")), data.get("stage"), data.get("index"))


def _time(value: Any) -> datetime | None:
    if value is None:
        return None
    return datetime.fromtimestamp(value, UTC) if isinstance(value, int | float) else datetime.fromisoformat(value)
