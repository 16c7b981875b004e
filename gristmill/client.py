"""Gristmill from Python: `Client(url).submit("video", file="street.mp4", fps=5).wait().result`."""

from __future__ import annotations

import mimetypes
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

from gristmill import records
from gristmill.downloads import download, safe
from gristmill.errors import GatewayUnreachable, GristmillError, JobDismissed, JobFailed, Unavailable, WaitTimedOut
from gristmill.records import Artifact, Event, Failure, Pipeline, Record, Stage, Status
from gristmill.wire import Pauses, Wire

DEFAULT_URL = "http://127.0.0.1:3333"
POLL_S = 25  # one waiting request; short enough for the proxies in between
HEARTBEATS_MISSED_S = 45.0  # three of the gateway's heartbeats without a byte: the stream is dead
UPLOAD_ANSWER_S = 300.0  # the gateway syncs the whole upload to disk before it answers

Source = str | os.PathLike[str] | bytes


class Client:
    """One gateway. `url` defaults to GRISTMILL_URL, else to this machine.

    `patience`: seconds that a question is tried again while the gateway is away; `outage`: the same while waiting
    for a job, so that a restarting gateway does not end the wait.
    """

    def __init__(self, url: str | None = None, *, patience: float = 10.0, outage: float = 300.0) -> None:
        self._wire = Wire(url or os.environ.get("GRISTMILL_URL") or DEFAULT_URL, patience)
        self._outage = outage

    @property
    def url(self) -> str:
        """Where the gateway is."""
        return self._wire.url

    def submit(
        self,
        pipeline: str,
        *,
        file: Source | None = None,
        files: Sequence[Source] = (),
        url: str | None = None,
        text: str | None = None,
        params: Mapping[str, Any] | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        labels: Mapping[str, str] | None = None,
        key: str | None = None,
        **more_params: Any,
    ) -> Job:
        """Submit one job: its params by name, or in `params` where a name is taken.

        `file` is a path or some bytes. `key` is the idempotency key; each submission has one of its own, so that a
        try that is repeated on the way does not run twice. Raises the problem's class, GatewayUnreachable.
        """
        body: dict[str, Any] = {"pipeline": pipeline, "params": {**(params or {}), **more_params}}
        given: dict[str, Any] = {}
        if file is not None:
            given["file"] = self.upload(file)
        if files:
            given["files"] = [self.upload(each) for each in files]
        if url is not None:
            given["url"] = url
        if text is not None:
            given["text"] = text
        chosen = {"input": given or None, "priority": priority, "deadline": deadline, "labels": labels}
        body |= {name: value for name, value in chosen.items() if value is not None}
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return Job(self, self._wire.ask("POST", "/process", json=body, headers=headers).json())

    def upload(self, source: Source) -> str:
        """Store a file with the gateway; the id that `input.file` takes."""
        headers = {"Content-Type": _media_type(source), "Content-Length": str(_size(source))}
        answer = self._wire.ask(
            "POST",
            "/files",
            params=_called(source),
            body=lambda: _content(source),
            headers=headers,
            read_timeout=UPLOAD_ANSWER_S,
        )
        return str(answer.json()["id"])

    def job(self, job_id: str) -> Job:
        """A job by its id. Raises JobNotFound."""
        return Job(self, self._wire.ask("GET", _path(job_id)).json())

    def jobs(
        self,
        *,
        status: str | None = None,
        pipeline: str | None = None,
        label: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Jobs, newest first; `label` is `name:value`. Pages are asked for as they are needed."""
        query: dict[str, Any] = {"status": status, "processID": pipeline, "label": label}
        wanted = {name: value for name, value in query.items() if value is not None}
        path: str | None = "/jobs"
        left = limit
        while path is not None:
            page = {"limit": min(left, 100) if left is not None else 100}
            answer = self._wire.ask("GET", path, params={**wanted, **page} if path == "/jobs" else None)
            for found in answer.json()["jobs"]:
                if left == 0:
                    return
                left = None if left is None else left - 1
                yield Job(self, found)
            # Only the query is taken: behind a proxy the gateway may not know its own address.
            after = answer.links.get("next", {}).get("url")
            path = f"/jobs?{httpx2.URL(after).query.decode()}" if after and left != 0 else None

    def pipelines(self) -> list[Pipeline]:
        """What can be run."""
        return [records.pipeline(each) for each in self._wire.ask("GET", "/processes").json()["processes"]]

    def pipeline(self, name: str) -> Pipeline:
        """One pipeline with the schema of its params. Raises PipelineNotFound."""
        return records.pipeline(self._wire.ask("GET", f"/processes/{quote(name, safe='')}").json())

    def ready(self) -> bool:
        """Whether the gateway can serve now."""
        try:
            return self._wire.http.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def close(self) -> None:
        """Give back the connections."""
        self._wire.http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Job:
    """One job at the gateway. What it says of itself is as of the last time that it was asked: `refresh`, `wait`."""

    def __init__(self, client: Client, document: Mapping[str, Any]) -> None:
        self._client = client
        self._wire = client._wire
        self.record: Record = records.record(document)

    @property
    def id(self) -> str:
        """The job's id: an opaque string."""
        return self.record.id

    @property
    def pipeline(self) -> str:
        """The pipeline's name."""
        return self.record.pipeline

    @property
    def status(self) -> Status:
        """Where the job stands."""
        return self.record.status

    @property
    def progress(self) -> float:
        """0 to 1."""
        return self.record.progress

    @property
    def stages(self) -> tuple[Stage, ...]:
        """How far each stage is."""
        return self.record.stages

    @property
    def error(self) -> Failure | None:
        """Why the job failed, if it did."""
        return self.record.error

    @property
    def result(self) -> Any:
        """What the last stage returned. Raises JobFailed, JobDismissed; WaitTimedOut if the job is not finished."""
        if self.error is not None:
            raise JobFailed(self.error.detail, job_id=self.id, code=self.error.code, stage=self.error.stage)
        if self.status is Status.DISMISSED:
            raise JobDismissed(job_id=self.id)
        if not self.status.is_final:
            raise WaitTimedOut(f"Job {self.id} is {self.status}: `wait()` for it first.")
        if "result" not in self.record.raw:
            return self._wire.ask("GET", _path(self.id, "results")).json()
        return self.record.result

    def refresh(self) -> Job:
        """Ask the gateway anew; this job."""
        self.record = records.record(self._wire.ask("GET", _path(self.id)).json())
        return self

    def wait(self, timeout: float | None = None) -> Job:
        """Wait until the job is final; this job. Restarts of the gateway on the way are waited out.

        Raises WaitTimedOut after `timeout` seconds, GatewayUnreachable when the gateway stays away.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while not self.status.is_final:
            left = POLL_S if end is None else min(POLL_S, end - time.monotonic())
            if left <= 0:
                raise WaitTimedOut(f"Job {self.id} is {self.status} after {timeout:g} s; it goes on.")
            asked = time.monotonic()
            self._long_poll(left, patience=self._client._outage if end is None else min(self._client._outage, left))
            if not self.status.is_final and time.monotonic() - asked < min(1.0, left):
                time.sleep(min(1.0, left))  # something in between answers at once: do not spin
        return self

    def events(self, after: int = 0) -> Iterator[Event]:
        """Events as they happen, until the final one. A broken stream is taken up again where it broke.

        Raises JobNotFound, GatewayUnreachable when the gateway stays away.
        """
        last = after
        pauses = Pauses(self._client._outage)
        while True:
            try:
                for event in self._stream(last):
                    last = event.id
                    pauses.alive()
                    yield event
                    if event.is_final:
                        return
                cause: Exception = GristmillError("The stream of events ended early.")
            except _NoMore:
                return
            except (httpx2.TransportError, Unavailable) as error:
                cause = error
            if not pauses.wait():
                raise GatewayUnreachable(f"No events from {self._client.url}: {cause}") from cause

    def logs(self) -> str:
        """What the stages logged."""
        return self._wire.ask("GET", _path(self.id, "logs")).text

    def artifacts(self) -> list[Artifact]:
        """The files that the job keeps for its client."""
        found = self._wire.ask("GET", _path(self.id, "artifacts")).json()["artifacts"]
        return [records.artifact(each) for each in found]

    def download(
        self,
        folder: str | os.PathLike[str] = ".",
        names: Sequence[str] | None = None,
        told: Callable[[Artifact, int], None] | None = None,
    ) -> list[Path]:
        """Bring the artifacts (all, or those of `names`) into a folder, which is made; their paths.

        Interrupted ones are continued by the next call. Raises NameRefused before anything is written, DownloadBroken.
        """
        wanted = [each for each in self.artifacts() if names is None or each.name in names]
        for each in wanted:
            safe(each.name)
        into = Path(folder)
        into.mkdir(parents=True, exist_ok=True)
        paths = []
        for each in wanted:
            paths.append(download(self._wire, self.id, each, into, told and _telling(told, each)))
        return paths

    def dismiss(self) -> Job:
        """End the job, or remove it when it finished over a minute ago; this job."""
        answer = self._wire.ask("DELETE", _path(self.id))
        if answer.content and "status" in (document := answer.json()):
            self.record = records.record(document)
        return self

    def retry(self, key: str | None = None) -> Job:
        """A new job that adopts what this failed one has done. Raises JobNotFailed."""
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return Job(self._client, self._wire.ask("POST", _path(self.id, "retry"), headers=headers).json())

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.pipeline} {self.status}>"

    def _long_poll(self, seconds: float, patience: float) -> None:
        answer = self._wire.ask(
            "GET",
            _path(self.id),
            headers={"Prefer": f"wait={max(1, int(seconds))}"},
            read_timeout=seconds + 15,
            patience=patience,
        )
        self.record = records.record(answer.json())

    def _stream(self, after: int) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        with self._wire.stream(_path(self.id, "events"), headers=headers, read_timeout=HEARTBEATS_MISSED_S) as answer:
            if answer.status_code == 204:
                raise _NoMore
            for sent in httpx2.EventSource(answer):
                if sent.id.isdigit() and int(sent.id) > after:
                    yield Event(int(sent.id), sent.event, _object(sent))


class _NoMore(Exception):
    """The gateway has sent every event that there will be."""


def _path(job_id: str, *more: str) -> str:
    return "/".join(("/jobs", quote(job_id, safe=""), *more))


def _object(sent: httpx2.ServerSentEvent) -> Mapping[str, Any]:
    data = sent.json() if sent.data else {}
    return data if isinstance(data, Mapping) else {}


def _telling(told: Callable[[Artifact, int], None], artifact: Artifact) -> Callable[[int], None]:
    return lambda there: told(artifact, there)


def _media_type(source: Source) -> str:
    guessed = None if isinstance(source, bytes) else mimetypes.guess_type(Path(source).name)[0]
    return guessed or "application/octet-stream"


def _called(source: Source) -> dict[str, str]:
    return {} if isinstance(source, bytes) else {"name": Path(source).name[-255:]}


def _size(source: Source) -> int:
    return len(source) if isinstance(source, bytes) else Path(source).stat().st_size


def _content(source: Source) -> bytes | Iterator[bytes]:
    return source if isinstance(source, bytes) else _chunks(Path(source))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk
