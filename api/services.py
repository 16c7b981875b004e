"""What handlers need, in one object, and how production opens it."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import flask
from prometheus_client import CollectorRegistry

from api import metrics
from jobs.dispatch import open_ringer
from jobs.errors import ArtifactNotFound, JobNotFound, UploadNotFound
from jobs.files import Files, open_files
from jobs.model import Artifact, Job, Ring, Upload
from jobs.pipeline import Pipeline, Pipelines
from jobs.settings import Settings
from jobs.store import JobStore, open_store
from jobs.trace import open_spans
from jobs.values import unpack

if TYPE_CHECKING:
    from jobs.spans import Spans

ID = re.compile(r"[0-9A-Za-z._-]{1,64}")  # nothing else was ever given out; some stores refuse a NUL or a brace
PORTS = {"amqp": 5672, "amqps": 5671, "redis": 6379, "rediss": 6379}
RESULT_PARTS = 100  # a result of more parts is not put into the job's document; /results has it


@dataclass(frozen=True)
class Services:
    """The seam of `create_app`: production passes the real ones, a test passes what it wants to look at.

    `ring` must not wait: it takes rings and publishes them later, or leaves them to the sweeper. `spans` is the way to
    the collector of traces, where there is one.
    """

    settings: Settings
    store: JobStore
    files: Files
    pipelines: Pipelines
    ring: Callable[[Sequence[Ring]], None]
    broker_answers: Callable[[], bool] = lambda: True
    close: Callable[[], None] = lambda: None
    spans: Spans | None = None

    def job(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        return self.store.get(self.job_id(job_id))

    def job_id(self, job_id: str) -> str:
        """The id, if it can be one. Raises JobNotFound."""
        if not ID.fullmatch(job_id):
            raise JobNotFound(job_id=job_id)
        return job_id

    def upload(self, upload_id: str) -> Upload:
        """Raises UploadNotFound."""
        if not ID.fullmatch(upload_id):
            raise UploadNotFound(file=upload_id)
        return self.store.upload(upload_id)

    def artifact(self, job_id: str, name: str) -> Artifact:
        """Raises JobNotFound, ArtifactNotFound."""
        for artifact in self.store.artifacts(self.job_id(job_id)):
            if artifact.name == name:
                return artifact
        raise ArtifactNotFound(job_id=job_id, artifact=name)

    def result(self, job: Job) -> object:
        """What the last stage of a successful job returned: a list, in index order, for an `each` stage."""
        last = len(job.plan.stages) - 1
        values = [
            None if output.value is None else unpack(output.value, self.files.load)
            for output in self.store.outputs(job.id, last)
        ]
        return values if job.plan.stages[last].each else values[0]

    def small_result(self, job: Job) -> tuple[object, ...]:
        """The result of a successful job as a tuple of one, or an empty one: not successful, or too large to show."""
        if job.status != "successful" or (job.stages and job.stages[-1].total > RESULT_PARTS):
            return ()
        last = len(job.plan.stages) - 1
        outputs = self.store.outputs(job.id, last)
        try:
            values = [None if one.value is None else unpack(one.value, _refuse) for one in outputs]
        except _IsFile:
            return ()
        return (values,) if job.plan.stages[last].each else tuple(values[:1])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The pipelines' names."""
        return tuple(sorted(self.pipelines))

    @cached_property
    def gauges(self) -> CollectorRegistry:
        """What is asked of the store when somebody scrapes."""
        return metrics.of_store(self.store)

    def pipeline(self, name: str) -> Pipeline:
        """Raises PipelineNotFound."""
        return self.pipelines[name]


def open_services(settings: Settings) -> Services:
    """The real ones, opened once per process: the ringer's thread does not survive a fork."""
    store = open_store(settings.store_url, result_ttl_s=settings.result_ttl_s, without=settings.without)
    ringer = open_ringer(settings, store)
    spans = open_spans(settings, "gristmill-gateway")

    def close() -> None:
        ringer.close()
        store.close()
        if spans:
            spans.close()

    return Services(
        settings=settings,
        store=store,
        files=open_files(settings.files_url),
        pipelines=Pipelines(settings.pipeline_dirs),
        ring=ringer.offer,
        broker_answers=_answers(settings.broker_url),
        close=close,
        spans=spans,
    )


def services() -> Services:
    """Inside a Flask handler: the services that its app was created with."""
    return cast(Services, flask.current_app.extensions["gristmill"])


class _IsFile(Exception):
    """The value is kept in a file, because it is large."""


def _refuse(name: str) -> bytes:
    raise _IsFile(name)


def _answers(url: str) -> Callable[[], bool]:
    """Whether somebody listens behind a URL, asked within a second."""
    parts = urlsplit(url)
    where = (parts.hostname or "localhost", parts.port or PORTS[parts.scheme])

    def ask() -> bool:
        try:
            socket.create_connection(where, timeout=1.0).close()
        except OSError:
            return False
        return True

    return ask
