"""Files in a local folder: written aside, synced, renamed. A power cut leaves a whole file or none."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from io import FileIO
from pathlib import Path
from uuid import uuid4

from jobs.errors import FileMissing, FilesFull, FilesUnavailable
from jobs.files import ASIDE, CHUNK_BYTES, Listed, Space, Stored, check_name, fill

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
STALE_S = 86_400.0  # what nobody wrote to for so long was left by a crash
PRUNED_TRIES = 100
SPARE_BYTES = 16_777_216  # with less than this the folder counts as full, so that records can still be finished


class LocalFiles:
    """See jobs/files.py. The folder may be shared by many processes, and by hosts that mount it."""

    shared_paths = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self._cleared = False

    def writer(self, name: str) -> LocalWriter:
        """Start a file aside; it replaces one of that name when committed."""
        check_name(name)
        with _answers():
            return LocalWriter(self, name, self._aside() / uuid4().hex)

    def put(self, name: str, source: Path | bytes) -> Stored:
        """Store some bytes, or a path's content: moved where that is a rename, else copied."""
        check_name(name)
        if isinstance(source, Path) and (stored := self._moved(name, source)):
            return stored
        return fill(self.writer(name), source)

    def size(self, name: str) -> int:
        """In bytes. Raises FileMissing."""
        with _answers(name):
            found = self._inside(name).lstat()
            if not stat.S_ISREG(found.st_mode):
                raise FileMissing(file=name)
            return found.st_size

    def read(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes in chunks of at most 1 MiB. Raises FileMissing."""
        self.size(name)
        with _answers(name):
            return _chunks(open(self._inside(name), "rb", buffering=0), name, start, length)

    def load(self, name: str) -> bytes:
        """All of it. Raises FileMissing."""
        return b"".join(self.read(name))

    def local(self, name: str, scratch: Path) -> Path:
        """The file itself. Raises FileMissing."""
        self.size(name)
        return self._inside(name)

    def delete(self, name: str) -> None:
        """Remove a file, or with a trailing slash everything below, and the folders that this leaves empty."""
        with _answers(), suppress(FileNotFoundError, NotADirectoryError, FileMissing):
            path = self._inside(name.removesuffix("/"))
            if name.endswith("/"):
                while stat.S_ISDIR(path.lstat().st_mode):
                    with suppress(FileNotFoundError):  # another sweeper deletes here too; what it left is ours
                        shutil.rmtree(path)
            else:
                path.unlink()
            self._prune(path.parent)

    def listed(self, folder: str) -> Iterator[Listed]:
        """Every file below a folder. Links are not followed."""
        waiting = [self.root / check_name(folder)]
        while waiting:
            below: list[Path] = []
            with _answers():
                try:
                    entries = list(os.scandir(waiting.pop()))
                except (FileNotFoundError, NotADirectoryError):
                    continue
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(Path(entry.path))
                    continue
                with suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    name = os.path.relpath(entry.path, self.root)
                    yield Listed(name, found.st_size, time.time() - found.st_mtime)
            waiting += below

    def ping(self) -> None:
        """Raises FilesUnavailable or FilesFull."""
        with _answers():
            probe = self._aside() / uuid4().hex
            probe.touch()
            probe.unlink()
            free = os.statvfs(self.root)
            if free.f_bavail * free.f_frsize < SPARE_BYTES:
                raise FilesFull

    def space(self) -> Space:
        """Of the file system that the folder lies on, as far as this user may fill it."""
        with _answers():
            self.root.mkdir(parents=True, exist_ok=True)
            found = os.statvfs(self.root)
            return Space(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)

    def _aside(self) -> Path:
        """The folder of what is being written."""
        aside = self.root / ASIDE
        aside.mkdir(parents=True, exist_ok=True)
        self._clear(aside)
        return aside

    def _clear(self, aside: Path) -> None:
        """Remove what crashes left there, once a process."""
        if self._cleared:
            return
        self._cleared = True
        for entry in os.scandir(aside):
            with suppress(FileNotFoundError):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_S:
                    os.unlink(entry.path)

    @cached_property
    def _real_root(self) -> str:
        return os.path.realpath(self.root)

    def _inside(self, name: str) -> Path:
        """The path of a name. No link on the way may lead out of the folder."""
        path = self.root / check_name(name)
        if not f"{os.path.realpath(path.parent)}/".startswith(f"{self._real_root}/"):
            raise FileMissing(file=name)
        return path

    def _moved(self, name: str, source: Path) -> Stored | None:
        """Move `source` in, or None where only a copy will do: another mount, a link, a file with two names."""
        found = source.lstat()
        with _answers():
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                return None
            aside = self._aside() / uuid4().hex
            try:
                os.rename(source, aside)
            except OSError as error:
                # Two volumes of a container are two mounts, though of one device: only trying tells.
                if error.errno == errno.EXDEV:
                    return None
                raise
            with aside.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fchmod(file.fileno(), 0o644)  # the gateway may run as another user than the worker
                os.fsync(file.fileno())
            self._rename(aside, name)
            return Stored(found.st_size, digest)

    def _rename(self, source: Path, name: str) -> None:
        """Give a synced file its name, and sync the folders that lead to it, whoever made them."""
        target = self._inside(name)
        for tries_left in reversed(range(PRUNED_TRIES)):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)
                break
            except (FileNotFoundError, FileExistsError):
                if not tries_left:
                    raise
                # A deletion pruned an empty folder between two of these calls: it is made again.
        for folder in target.parents:
            with suppress(FileNotFoundError):  # deleted already, and pruned
                _sync(folder)
            if folder == self.root:
                break

    def _prune(self, folder: Path) -> None:
        while folder != self.root:
            try:
                folder.rmdir()
            except OSError:
                return  # it holds something
            folder = folder.parent


class LocalWriter:
    """A file being written aside."""

    def __init__(self, files: LocalFiles, name: str, aside: Path) -> None:
        self._files, self._name, self._aside = files, name, aside
        self._fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._done: Stored | None = None

    def write(self, data: bytes) -> None:
        """Append. Raises FilesFull, FilesUnavailable; nothing is left then."""
        with self._or_abort():
            left = memoryview(data)
            while left:
                left = left[os.write(self._fd, left) :]
        self._digest.update(data)
        self._bytes += len(data)

    def commit(self) -> Stored:
        """Sync to disk, then give it its name. Raises FilesFull, FilesUnavailable; nothing is left then."""
        if self._done:
            return self._done
        with self._or_abort():
            os.fsync(self._fd)
            self._files._rename(self._aside, self._name)
        self._done = Stored(self._bytes, self._digest.hexdigest())
        self._close()
        return self._done

    def abort(self) -> None:
        """Drop what was written; harmless after a commit."""
        if self._fd >= 0:
            self._close()
            with suppress(OSError):
                self._aside.unlink()

    def _close(self) -> None:
        with suppress(OSError):
            os.close(self._fd)
        self._fd = -1

    @contextmanager
    def _or_abort(self) -> Iterator[None]:
        try:
            with _answers():
                yield
        except BaseException:
            self.abort()
            raise


@contextmanager
def _answers(reading: str = "") -> Iterator[None]:
    """Turn what the system says into our errors; FileMissing only for the name that is being read."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise FilesFull from error
        if reading and error.errno in ABSENT:
            raise FileMissing(file=reading) from error
        raise FilesUnavailable from error


def _chunks(file: FileIO, name: str, start: int, length: int | None) -> Iterator[bytes]:
    with file, _answers(name):
        file.seek(start)
        left = length
        while chunk := file.read(CHUNK_BYTES if left is None else min(left, CHUNK_BYTES)):
            yield chunk
            if left is not None:
                left -= len(chunk)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
