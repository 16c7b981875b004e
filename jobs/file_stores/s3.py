"""Files in an S3 bucket, through obstore. S3 shows an object when its upload is complete, and never before."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from queue import Queue
from threading import Thread
from uuid import uuid4

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from jobs.errors import FileMissing, FilesFull, FilesUnavailable
from jobs.files import ASIDE, CHUNK_BYTES, Listed, Stored, check_name, fill

PART_BYTES = 8_388_608  # of a multipart upload; S3 takes 10,000 of them
PARALLEL_PARTS = 2  # a writer holds at most this many and the one it fills
RANGE_BYTES = 4_194_304  # of one read; a slow reader must not keep a response open until it times out
PING_S = 3  # somebody waits to hear whether it answers at all
FULL = ("StorageFull", "QuotaExceeded", "InsufficientStorage", "507 ")
_used_in: dict[str, int] = {}  # the process that obstore's threads are in; a forked one would wait for them for ever


class S3Files:
    """See jobs/files.py. A crash leaves at most an unfinished upload, which the bucket's lifecycle rule removes."""

    shared_paths = False

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = prefix

    def writer(self, name: str) -> S3Writer:
        """Start a file; it replaces one of that name when committed."""
        return S3Writer(self._store, check_name(name))

    def put(self, name: str, source: Path | bytes) -> Stored:
        """Store some bytes, or a path's content: copied, so the path stays."""
        return fill(self.writer(name), source)

    def size(self, name: str) -> int:
        """In bytes. Raises FileMissing."""
        with _answers(check_name(name)):
            return obstore.head(self._store, name)["size"]

    def read(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes in chunks of at most 1 MiB. Raises FileMissing."""
        with _answers(check_name(name)):
            found = obstore.head(self._store, name)
        end = found["size"] if length is None else min(start + length, found["size"])
        return self._chunks(name, start, end, found["e_tag"])

    def load(self, name: str) -> bytes:
        """All of it. Raises FileMissing."""
        with _answers(check_name(name)):
            return bytes(obstore.get(self._store, name).bytes())

    def local(self, name: str, scratch: Path) -> Path:
        """A copy below `scratch`, fetched once. Raises FileMissing."""
        path = scratch / check_name(name)
        if not path.exists():
            chunks = self.read(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.parent / f"{ASIDE}-{uuid4().hex}"
            try:
                with aside.open("wb") as file:
                    file.writelines(chunks)
                aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)
        return path

    def delete(self, name: str) -> None:
        """Remove a file, or with a trailing slash everything below. Nothing there: nothing."""
        check_name(name.removesuffix("/"))
        with _answers():
            if name.endswith("/"):
                for found in obstore.list(self._store, prefix=name, chunk_size=1_000):
                    obstore.delete(self._store, [one["path"] for one in found])
            else:
                obstore.delete(self._store, name)

    def listed(self, folder: str) -> Iterator[Listed]:
        """Every object below a folder; S3 lists them by name, 1,000 a request."""
        with _answers():
            for found in obstore.list(self._store, prefix=f"{check_name(folder)}/", chunk_size=1_000):
                for one in found:
                    age_s = (datetime.now(UTC) - one["last_modified"]).total_seconds()
                    yield Listed(one["path"], one["size"], age_s)

    def ping(self) -> None:
        """Raises FilesUnavailable, within some 3 s also where S3 accepts and never answers."""
        _check_process()
        with _answers():
            obstore.list(self._prober, prefix=ASIDE).collect()

    def space(self) -> None:
        """A bucket is never full."""

    @property
    def _store(self) -> S3Store:
        _check_process()
        return self._client

    @cached_property
    def _client(self) -> S3Store:
        return self._open(timeout_s=60, retries=3)

    @cached_property
    def _prober(self) -> S3Store:
        return self._open(timeout_s=PING_S, retries=0)

    def _open(self, timeout_s: int, retries: int) -> S3Store:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        return S3Store(
            self.bucket,
            prefix=self.prefix or None,
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "connect_timeout": "3s",
                "timeout": f"{timeout_s}s",
            },
            retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=10)},
        )

    def _chunks(self, name: str, start: int, end: int, e_tag: str | None) -> Iterator[bytes]:
        while start < end:
            until = min(start + RANGE_BYTES, end)
            with _answers(name):
                piece = obstore.get(self._store, name, options={"range": (start, until), "if_match": e_tag}).bytes()
            view = memoryview(piece)
            for at in range(0, len(view), CHUNK_BYTES):
                yield bytes(view[at : at + CHUNK_BYTES])
            start = until


class S3Writer:
    """A file being sent. Up to one part is sent whole at `commit`; a larger one goes as a multipart upload."""

    def __init__(self, store: S3Store, name: str) -> None:
        self._store, self._name = store, name
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._head = bytearray()
        self._upload: _Upload | None = None
        self._done: Stored | None = None

    def write(self, data: bytes) -> None:
        """Append. Raises FilesFull, FilesUnavailable; nothing is left then."""
        self._digest.update(data)
        self._bytes += len(data)
        if self._upload is None:
            self._head += data
            if len(self._head) <= PART_BYTES:
                return
            self._upload = _Upload(self._store, self._name)
            data, self._head = bytes(self._head), bytearray()
        with _answers():
            self._upload.send(data)

    def commit(self) -> Stored:
        """Complete the upload: only now is something under the name. Raises FilesFull, FilesUnavailable."""
        if self._done is None:
            with _answers():
                if self._upload is None:
                    obstore.put(self._store, self._name, bytes(self._head), use_multipart=False)
                else:
                    self._upload.complete()
            self._done = Stored(self._bytes, self._digest.hexdigest())
        return self._done

    def abort(self) -> None:
        """Drop what was sent; harmless after a commit."""
        if self._done is None and self._upload is not None:
            self._upload.drop()
        self._head = bytearray()


class _Dropped(Exception):
    """Ends the upload from inside, so that obstore aborts it at S3 too."""


class _Upload:
    """obstore pulls an upload's bytes from an iterator; this thread turns it round, so that they can be pushed."""

    def __init__(self, store: S3Store, name: str) -> None:
        self._queue: Queue[bytes | _Dropped | None] = Queue(maxsize=4)
        self._error: BaseException | None = None
        self._ended = False
        self._thread = Thread(target=self._run, args=(store, name), name="s3-upload", daemon=True)
        self._thread.start()

    def send(self, data: bytes) -> None:
        """Hand on some bytes, slowed to the speed of S3. Raises what broke the upload."""
        if self._error:
            raise self._error
        self._queue.put(data)

    def complete(self) -> None:
        """Wait until S3 has all of it. Raises what broke the upload."""
        self._queue.put(None)
        self._thread.join()
        if self._error:
            raise self._error

    def drop(self) -> None:
        """End it with nothing left at S3."""
        self._queue.put(_Dropped())
        self._thread.join()

    def _run(self, store: S3Store, name: str) -> None:
        try:
            obstore.put(store, name, self._pieces(), chunk_size=PART_BYTES, max_concurrency=PARALLEL_PARTS)
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits for it
            self._error = error
            while not self._ended and isinstance(self._queue.get(), bytes):
                pass  # whoever is sending must not wait for ever

    def _pieces(self) -> Iterator[bytes]:
        while isinstance(piece := self._queue.get(), bytes):
            yield piece
        self._ended = True
        if piece is not None:
            raise piece


def _check_process() -> None:
    if _used_in.setdefault("pid", os.getpid()) != os.getpid():
        raise FilesUnavailable("S3 was used before this process was forked, and obstore's threads stayed behind.")


@contextmanager
def _answers(reading: str = "") -> Iterator[None]:
    """Turn what obstore says into our errors; FileMissing only for the name that is being read."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileMissing(file=reading) if reading else FilesUnavailable() from error
    except (BaseError, ValueError, OSError) as error:
        if any(word in str(error) for word in FULL):
            raise FilesFull from error
        raise FilesUnavailable from error
