"""Bytes by reference: a local folder or S3. What is under a name is whole, and on disk before the name exists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from jobs.errors import SettingsInvalid
from jobs.model import PartKey

CHUNK_BYTES = 1_048_576  # the largest piece that `read` yields
ASIDE = ".aside"  # the folder of what is being written; no name begins with it


@dataclass(frozen=True)
class Stored:
    """What was stored: its size and its sha256, in hex."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Listed:
    """A file that is there: its name, its size, and for how long it has been so."""

    name: str
    bytes: int
    age_s: float


@dataclass(frozen=True)
class Space:
    """Bytes that may still be written, and that there are in all."""

    free: int
    size: int


class Writer(Protocol):
    """A file being written aside. Without `commit` nothing is left under its name."""

    def write(self, data: bytes) -> None:
        """Append. Raises FilesFull, FilesUnavailable."""
        ...

    def commit(self) -> Stored:
        """Sync to disk, then give it its name. Raises FilesFull, FilesUnavailable."""
        ...

    def abort(self) -> None:
        """Drop what was written; harmless after a commit."""
        ...


class Files(Protocol):
    """Where bytes live. Names are relative, `/` between folders. Raises FilesUnavailable when out of reach."""

    shared_paths: bool  # True: `local` is the file itself, so a worker on this host may memory-map it

    def writer(self, name: str) -> Writer:
        """Start a file; it replaces one of that name when committed."""
        ...

    def put(self, name: str, source: Path | bytes) -> Stored:
        """Store a whole file: a path's content (the path may be moved from) or some bytes."""
        ...

    def size(self, name: str) -> int:
        """In bytes. Raises FileMissing."""
        ...

    def read(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes in chunks of at most 1 MiB. Raises FileMissing before the first chunk."""
        ...

    def load(self, name: str) -> bytes:
        """All of it. Raises FileMissing."""
        ...

    def local(self, name: str, scratch: Path) -> Path:
        """A path on this host that holds the file: itself, or a copy below `scratch`. Raises FileMissing."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file, or with a trailing slash everything below. Nothing there: nothing."""
        ...

    def listed(self, folder: str) -> Iterator[Listed]:
        """Every file below a folder; those of one folder one after the other.

        Lazy: a million names are not held at once. What appears or goes meanwhile may be there or not.
        """
        ...

    def ping(self) -> None:
        """Raises FilesUnavailable or FilesFull."""
        ...

    def space(self) -> Space | None:
        """How full the place is; None where it has no end."""
        ...


def fill(writer: Writer, source: Path | bytes) -> Stored:
    """Write a path's content, or some bytes, and commit; whatever goes wrong leaves nothing under the name."""
    try:
        if isinstance(source, bytes):
            writer.write(source)
        else:
            with source.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    writer.write(chunk)
        return writer.commit()
    finally:
        writer.abort()


def open_files(url: str) -> Files:
    """The files behind file:///folder or s3://bucket/prefix (credentials and endpoint from AWS_* variables).

    Nothing is touched before the first call. Raises SettingsInvalid. S3 lives in threads that a fork does
    not copy: open it after the fork that uses it.
    """
    split = urlsplit(url)
    if split.scheme == "file" and split.netloc in ("", "localhost") and split.path.strip("/"):
        from jobs.file_stores.local import LocalFiles

        return LocalFiles(Path(unquote(split.path)))
    if split.scheme == "s3" and split.netloc:
        from jobs.file_stores.s3 import S3Files

        s3: Files = S3Files(split.netloc, unquote(split.path).strip("/"))
        return s3
    raise SettingsInvalid("FILES_URL must be file:///folder or s3://bucket/prefix.")


def check_name(name: str) -> str:
    """The name itself. Raises ValueError for one that leaves its place, or that a file system or S3 cannot hold."""
    folders = name.split("/")
    if not all(0 < len(part.encode()) <= 200 and part not in (".", "..") for part in folders):
        raise ValueError(f"{name!r} is no name of a file: a part of it is empty, too long, or leaves its folder")
    if len(name.encode()) > 900 or folders[0] == ASIDE or any(c < " " or c in "\\\x7f" for c in name):
        raise ValueError(f"{name!r} is no name of a file: it is too long, reserved, or has a character of control")
    return name


def part_folder(at: PartKey, fence: int) -> str:
    """Where one attempt at one part keeps its files; no two attempts share a name."""
    return f"jobs/{at.job_id}/{at.stage}/{at.generation}.{at.index}.{fence}/"


def upload_name(upload_id: str) -> str:
    """Where an upload's bytes are."""
    return f"uploads/{upload_id}"
