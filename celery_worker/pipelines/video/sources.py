"""The pictures and videos that a job was given: its files, and what lies in a zip among them."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from celery_worker.workbench import Workbench
from jobs.errors import BadInput

STILLS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")
NAMED = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv", ".3gp")
NAMED_STILLS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")  # pictures in an MP4's boxes
MAX_SOURCES = 1_000  # each has at least one part, and stands in the result
MAX_MEMBERS = 5_000  # entries of one zip, also those that are passed over
MAX_GROWTH = 100  # pictures and videos are packed already: what grows further is a bomb
MAX_UNPACKED = 16 << 30
FREE_GROWTH = 64 << 20  # a small zip may grow to this
PIECE = 1 << 20
BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError, UnicodeError)


@dataclass(frozen=True)
class Source:
    """One picture or video. `name` is what the client calls it: the file's name, or the member's in the zip."""

    number: int
    name: str
    path: Path
    is_still: bool


def sources(bench: Workbench) -> list[Source]:
    """All of them, in the same order in each stage. Raises BadInput with the name of what cannot be taken."""
    found: list[Source] = []
    for n in range(len(bench.inputs)):
        path, name = bench.inputs[n], bench.names[n]
        if _head(path).startswith(b"PK\x03\x04"):
            folder = bench.scratch / f"members-{n}"
            folder.mkdir(exist_ok=True)
            for member, unpacked in _unpacked(path, folder, bench):
                found.append(Source(len(found), member, unpacked, _is_still(unpacked)))
        else:
            found.append(Source(len(found), name, path, _is_still(path)))
        if len(found) > MAX_SOURCES:
            raise BadInput(f"There are more than {MAX_SOURCES:,} pictures and videos.")
    return found


def _unpacked(path: Path, folder: Path, bench: Workbench) -> Iterator[tuple[str, Path]]:
    """The pictures and videos of a zip, under names of our own: a member's name never becomes a path."""
    room = min(MAX_UNPACKED, max(FREE_GROWTH, MAX_GROWTH * path.stat().st_size))
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise BadInput(f"The zip has more than {MAX_MEMBERS:,} members.")
            for member in members:
                _refuse(member)
            wanted = [member for member in members if _is_wanted(member)]
            if sum(member.file_size for member in wanted) > room:
                raise BadInput(f"The zip unpacks to more than {MAX_GROWTH} times its size.")
            if not wanted:
                raise BadInput("There is no picture and no video in the zip.")
            for number, member in enumerate(sorted(wanted, key=lambda one: one.filename)):
                target = folder / f"{number:05}"
                if not target.exists():
                    room -= _unpack(archive, member, target, room, bench)
                yield member.filename, target
    except (*BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the zip
        raise BadInput("The zip cannot be read: it is damaged, or packed in a way that is not known here.") from error


def _refuse(member: zipfile.ZipInfo) -> None:
    """What no honest archive of pictures has."""
    name = member.orig_filename.replace("\\", "/")
    if name.startswith("/") or ".." in PurePosixPath(name).parts or ":" in name.split("/")[0] or "\0" in name:
        raise BadInput("The zip has a member whose name leads out of its folder.")
    if member.flag_bits & 1:
        raise BadInput("The zip is encrypted.")
    if member.external_attr >> 16 & 0o170000 == 0o120000:
        raise BadInput("The zip has a member that is a link.")


def _is_wanted(member: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(member.filename).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not member.is_dir() and not hidden and member.filename.lower().endswith(NAMED + NAMED_STILLS)


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, room: int, bench: Workbench) -> int:
    """Bytes that it took; what a member says of its size is not believed."""
    written = 0
    aside = target.with_suffix(".aside")
    with archive.open(member) as packed, aside.open("wb") as file:
        while piece := packed.read(PIECE):
            written += len(piece)
            if written > room:
                raise BadInput(f"The zip unpacks to more than {MAX_GROWTH} times its size.")
            file.write(piece)
            bench.checkpoint()
    aside.rename(target)
    return written


def _is_still(path: Path) -> bool:
    head = _head(path)
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return head.startswith(STILLS) or is_webp or (head[4:8] == b"ftyp" and head[8:12] in BRANDS)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(12)
