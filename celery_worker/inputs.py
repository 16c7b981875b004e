"""What a job works on, as files on this host: the uploads it names, or what lies behind its URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, overload
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from celery_worker.fetch import Fetched, Terms, fetch
from jobs.errors import BadInput, FileMissing, UploadNotFound
from jobs.file_stores.local import LocalFiles
from jobs.files import Files, upload_name
from jobs.media_types import UNKNOWN
from jobs.model import Claim
from jobs.pipeline import Pipeline
from jobs.store import JobStore


class Inputs(Sequence[Path]):
    """The files that a job was given, brought here when they are looked at.

    What lies behind a URL is fetched once and kept with the job's files, so that all its stages, attempts and retries
    see the same bytes.
    """

    def __init__(
        self,
        claim: Claim,
        files: Files,
        scratch: Path,
        terms: Terms,
        pipeline: Callable[[], Pipeline],
        checkpoint: Callable[[], None],
    ) -> None:
        self._url = claim.input.get("url")
        self._stored = [upload_name(upload_id) for upload_id in _uploads(claim.input)]
        if self._url:
            self._stored = [f"jobs/{claim.family or claim.at.job_id}/input/0"]
        self._files, self._scratch, self._terms = files, scratch, terms
        self._pipeline, self._checkpoint = pipeline, checkpoint

    def __len__(self) -> int:
        return len(self._stored)

    @overload
    def __getitem__(self, at: int) -> Path: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Path]: ...
    def __getitem__(self, at: int | slice) -> Path | Sequence[Path]:
        if isinstance(at, slice):
            return [self[n] for n in range(*at.indices(len(self)))]
        name = self._stored[at]
        if not self._url:
            return self._files.local(name, self._scratch)
        try:
            return self._files.local(name, self._scratch)
        except FileMissing:
            fetch_input(self._url, self._files, name, self._terms, self._pipeline(), self._checkpoint)
        return self._files.local(name, self._scratch)


class Names(Sequence[str]):
    """What the client calls its files: as it named them when it stored them, or the end of the URL."""

    def __init__(self, given: Mapping[str, Any], store: JobStore | None) -> None:
        self._url = given.get("url")
        self._uploads = _uploads(given)
        self._store = store

    def __len__(self) -> int:
        return 1 if self._url else len(self._uploads)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return [self[n] for n in range(*at.indices(len(self)))]
        if self._url:
            split = urlsplit(self._url)
            return unquote(PurePosixPath(split.path).name) or split.netloc
        upload = self._uploads[at]
        try:
            return (self._store.upload(upload).name if self._store else "") or upload
        except UploadNotFound:
            return upload


def fetch_input(
    url: str, files: Files, name: str, terms: Terms, pipeline: Pipeline, checkpoint: Callable[[], None]
) -> None:
    """Store what lies behind a URL under a name. Raises BadInput for a type that the pipeline does not take."""

    def check(media_type: str) -> None:
        taken = pipeline.input.get("url")
        if taken and media_type not in UNKNOWN and not pipeline.takes(media_type, "url"):
            raise BadInput(f"The file behind the address is {media_type}, which this pipeline does not take.")

    fetch(url, lambda: files.writer(name), terms, checkpoint, check=check)


def fetch_into(
    folder: Path, url: str, terms: Terms, checkpoint: Callable[[], None], headers: Mapping[str, str]
) -> Fetched:
    """Fetch into a folder, under a new name."""
    name = uuid4().hex
    return fetch(url, lambda: LocalFiles(folder).writer(name), terms, checkpoint, headers, path=folder / name)


def _uploads(given: Mapping[str, Any]) -> list[str]:
    return [given["file"]] if "file" in given else list(given.get("files", []))
