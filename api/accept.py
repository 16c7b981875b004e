"""From a submission's body to an accepted job: everything is checked, then many are stored in one round trip."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import uuid_utils

from api import quick
from api.pressure import Promises
from api.problems import violations as sorted_violations
from api.services import Services
from api.strict_json import canonical
from jobs.addresses import Allowed, allowed, refusal
from jobs.errors import (
    BodyInvalid,
    InputInvalid,
    JobsError,
    ParamsInvalid,
    PipelineUnknown,
    TooManyWaiting,
    UploadNotFound,
)
from jobs.media_types import UNKNOWN
from jobs.model import Accepted, Job, Plan, Submission, Upload
from jobs.pipeline import Pipeline

LABEL = re.compile(r"[A-Za-z0-9._/-]{1,63}")
PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]*")
BATCH = 64  # submissions in one round trip; more would make the first of them wait


def new_id() -> str:
    """An opaque string that sorts by time."""
    return str(uuid_utils.uuid7())


@dataclass(frozen=True)
class Checker:
    """Turns bodies into submissions."""

    services: Services

    def refs(self, body: Any) -> tuple[str, ...]:
        """The ids of the uploads that a body names."""
        given = body.get("input") if isinstance(body, dict) else None
        if not isinstance(given, dict):
            return ()
        many = given.get("files")
        ids = [given.get("file"), *(many if isinstance(many, list) else ())]
        return tuple(dict.fromkeys(each for each in ids if isinstance(each, str)))

    def uploads(self, ids: Sequence[str]) -> dict[str, Upload]:
        """Their records; those that are unknown are left out."""
        found = {}
        for each in ids:
            try:
                found[each] = self.services.upload(each)
            except UploadNotFound:
                continue
        return found

    def submission(
        self,
        body: Mapping[str, Any],
        violations: Sequence[Mapping[str, str]] = (),
        uploads: Mapping[str, Upload] = {},
        key: str | None = None,
        trace: str = "",
    ) -> Submission:
        """Raises the error of the kind at fault, with all `violations`: those of the schema, and those found here."""
        pipeline = self._pipeline(body, violations)
        params, wrong = self._params(pipeline, body)
        input_wrong = self._input(pipeline, body, uploads) if not violations else []
        found = sorted_violations(violations, wrong, _labels(body), input_wrong)
        if found:
            raise _error(found)
        given = body.get("input") or {}
        id_ = new_id()
        job = Job(
            id=id_,
            family=id_,
            pipeline=pipeline.name,
            plan=self._plans[pipeline.name],
            params=params,
            input=given,
            priority=body.get("priority", 4),
            labels=body.get("labels") or {},
            deadline_s=body.get("deadline"),
            trace=trace,
        )
        without = self.services.settings.without
        key = None if "idempotency" in without else key
        same = digest(body, uploads) if key and "hash" not in without else ""
        return Submission(job, key, same, self.refs(body))

    def _pipeline(self, body: Any, violations: Sequence[Mapping[str, str]]) -> Pipeline:
        name = body.get("pipeline") if isinstance(body, dict) else None
        if not isinstance(name, str):
            raise BodyInvalid(errors=sorted_violations(violations))
        pipeline = self._by_name.get(name)
        if pipeline is None:
            unknown = [{"pointer": "/pipeline", "detail": f"Known are: {', '.join(self.services.names)}."}]
            raise PipelineUnknown(
                f"No pipeline is called {name[:40]!r}.",
                pipeline=name[:40],
                errors=sorted_violations(violations, unknown),
            )
        return pipeline

    def _params(self, pipeline: Pipeline, body: Mapping[str, Any]) -> tuple[dict[str, Any], list[Mapping[str, str]]]:
        given = body.get("params", {})
        if not isinstance(given, dict):
            return {}, []  # the schema has told
        fits, defaults = self._quick[pipeline.name]
        if fits(given):
            return {**defaults(), **given}, []
        try:
            return pipeline.check(given), []
        except ParamsInvalid as error:
            return {}, [{**one, "pointer": f"/params{one['pointer']}"} for one in error.fields["errors"]]

    def _input(
        self, pipeline: Pipeline, body: Mapping[str, Any], uploads: Mapping[str, Upload]
    ) -> list[Mapping[str, str]]:
        given = body.get("input") or {}
        if not given and pipeline.input_required:
            kinds = " or ".join(pipeline.input)
            return [{"pointer": "/input", "detail": f"This pipeline needs an input: {kinds}."}]
        found: list[Mapping[str, str]] = []
        for kind, value in given.items():
            if kind not in pipeline.input:
                found.append({"pointer": f"/input/{kind}", "detail": "This pipeline takes no such input."})
            elif kind == "url" and (why := refusal(value, self._allowed)):
                found.append({"pointer": "/input/url", "detail": why})
            elif kind in ("file", "files"):
                for n, each in enumerate([value] if kind == "file" else value):
                    pointer = f"/input/{kind}" + (f"/{n}" if kind == "files" else "")
                    found += self._file(pipeline, pointer, uploads.get(each))
        return found

    @staticmethod
    def _file(pipeline: Pipeline, pointer: str, upload: Upload | None) -> list[Mapping[str, str]]:
        """A type that was recognised and is not taken. What only a decoder can see is left to the stage."""
        if upload is None:
            return [{"pointer": pointer, "detail": "No uploaded file has that id."}]
        if upload.type in UNKNOWN or pipeline.takes(upload.type):
            return []
        return [{"pointer": pointer, "detail": f"The file is {upload.type}, which this pipeline does not take."}]

    @cached_property
    def _allowed(self) -> Allowed:
        return allowed(self.services.settings.allowed_hosts)

    @cached_property
    def _by_name(self) -> dict[str, Pipeline]:
        return dict(self.services.pipelines)

    @cached_property
    def _quick(self) -> dict[str, tuple[quick.Fits, Callable[[], dict[str, Any]]]]:
        """For each pipeline: whether params fit for certain, and what is filled in where they leave it out."""
        return {name: _quick(pipeline.params_schema) for name, pipeline in self._by_name.items()}

    @cached_property
    def _plans(self) -> dict[str, Plan]:
        settings = self.services.settings
        limits = {
            "window": settings.window,
            "max_failures": settings.max_failures,
            "max_losses": settings.max_losses,
        }
        return {name: pipeline.plan(**limits) for name, pipeline in self._by_name.items()}


def _quick(schema: Mapping[str, Any]) -> tuple[quick.Fits, Callable[[], dict[str, Any]]]:
    """Only for schemas whose defaults are all at the top; the others are left to the pipeline's own check."""
    members = schema.get("properties", {})
    defaults = {name: member["default"] for name, member in members.items() if "default" in member}
    inner = json.dumps([{**member, "default": None} for member in members.values()])
    nested = inner.count('"default"') > len(members)
    flat = not any(isinstance(value, dict | list) for value in defaults.values())
    return quick.never if nested else quick.compiled(schema), (lambda: defaults) if flat else partial(
        copy.deepcopy, defaults
    )


def digest(body: Mapping[str, Any], uploads: Mapping[str, Upload]) -> str:
    """What makes two bodies the same: their canonical JSON, a file by its content."""
    given = dict(body.get("input") or {})
    if "file" in given:
        given["file"] = uploads[given["file"]].sha256
    if "files" in given:
        given["files"] = [uploads[each].sha256 for each in given["files"]]
    return hashlib.sha256(canonical({**body, "input": given} if given else body)).hexdigest()


class Batches:
    """Stores submissions in one thread: what arrives while a round trip is under way goes with the next one."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._promises = Promises(services.store)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="accept")
        self._waiting: list[tuple[Submission, asyncio.Future[Accepted]]] = []
        self._busy = False

    async def add(self, submission: Submission) -> Accepted:
        """Once it returns, the job is on disk and its ring is offered. Raises what the store refused it with."""
        answer: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._waiting.append((submission, answer))
        if not self._busy:
            self._next()
        return await answer

    def close(self) -> None:
        """After the last submission."""
        self._thread.shutdown(wait=False)

    def _next(self) -> None:
        batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        self._busy = bool(batch)
        if batch:
            loop = asyncio.get_running_loop()
            stored = loop.run_in_executor(self._thread, self._store, [submission for submission, _ in batch])
            stored.add_done_callback(lambda done: self._tell(batch, done))

    def _store(self, submissions: list[Submission]) -> list[Accepted | JobsError]:
        most = self._services.settings.max_waiting
        answers = self._services.store.add(submissions, most_waiting=most)
        for answer in answers:
            if isinstance(answer, TooManyWaiting):
                answer.fields |= {"limit": most, "retry_after": self._promises.next(most)}
        rings = [ring for answer in answers if isinstance(answer, Accepted) for ring in answer.rings]
        if rings:
            self._services.ring(rings)
        return answers

    def _tell(
        self,
        batch: list[tuple[Submission, asyncio.Future[Accepted]]],
        done: asyncio.Future[list[Accepted | JobsError]],
    ) -> None:
        if broken := done.exception():
            # Who came while the store did not answer has waited as long; trying again would double the wait.
            batch, self._waiting = batch + self._waiting, []
            answers: Sequence[Accepted | BaseException] = [broken] * len(batch)
        else:
            answers = done.result()
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue  # the client left
            if isinstance(answer, Accepted):
                future.set_result(answer)
            else:
                future.set_exception(answer)
        self._next()


def _labels(body: Mapping[str, Any]) -> list[Mapping[str, str]]:
    labels = body.get("labels")
    if not isinstance(labels, dict):
        return []
    found: list[Mapping[str, str]] = []
    for name, value in labels.items():
        pointer = f"/labels/{name.replace('~', '~0').replace('/', '~1')[:80]}"
        if not LABEL.fullmatch(name):
            found.append({"pointer": pointer, "detail": "A label's name has 1 to 63 letters, digits, . _ / or -."})
        if isinstance(value, str) and not PRINTABLE.fullmatch(value):
            found.append({"pointer": pointer, "detail": "A label's value has no control characters."})
    return found


def _error(found: list[Mapping[str, str]]) -> JobsError:
    """Named after what is wrong, if it is one kind of thing."""
    tops = {one["pointer"].split("/")[1] if "/" in one["pointer"] else "" for one in found}
    detail = f"{found[0]['pointer'] or 'The body'}: {found[0]['detail']}"
    if len(found) > 1:
        detail += f" And {len(found) - 1} more."
    if tops == {"params"}:
        return ParamsInvalid(detail, errors=found)
    if tops == {"input"}:
        unknown = all(one["detail"] == "No uploaded file has that id." for one in found)
        return UploadNotFound(detail, errors=found) if unknown else InputInvalid(detail, errors=found)
    return BodyInvalid(detail, errors=found)
