"""Artifacts onto this machine: whole or resumed, written aside, checked, then renamed. No name leaves the folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import httpx2

from gristmill.errors import DownloadBroken, NameRefused
from gristmill.records import Artifact
from gristmill.wire import BUSY, Pauses, Wire, check

SAFE = re.compile(r"[A-Za-z0-9._-]{1,255}")
CHUNK = 1 << 20


def download(
    wire: Wire, job_id: str, artifact: Artifact, folder: Path, told: Callable[[int], None] | None = None
) -> Path:
    """Bring one artifact into `folder`; `told` hears how many bytes are there. What is there already is not fetched.

    Raises NameRefused, DownloadBroken.
    """
    target = folder / safe(artifact.name)
    if _is_whole(target, artifact):
        return target
    # The digest is part of the name: what is left of another version is never continued.
    aside = folder / f".{artifact.name}.{artifact.sha256[:16]}.part"
    if aside.is_symlink():  # not ours, and not to be written through
        aside.unlink()
    if not _fetched(wire, job_id, artifact, aside, told):
        # A part that was there before may be what is wrong with it: once more, from the first byte.
        aside.unlink(missing_ok=True)
        if not _fetched(wire, job_id, artifact, aside, told):
            aside.unlink(missing_ok=True)
            raise DownloadBroken(f"{artifact.name} arrived with another size or sha256 than it was listed with.")
    os.replace(aside, target)
    return target


def safe(name: str) -> str:
    """The name, if it is one plain file name. Raises NameRefused."""
    if not SAFE.fullmatch(name) or set(name) == {"."}:
        raise NameRefused(f"The artifact name {name!r} is not a plain file name.")
    return name


def _fetched(wire: Wire, job_id: str, artifact: Artifact, aside: Path, told: Callable[[int], None] | None) -> bool:
    """Continue `aside` until it has every byte; whether it is then what was listed."""
    pauses = Pauses(wire.patience)
    most = 0
    while not aside.exists() or aside.stat().st_size < artifact.bytes:
        cause: object = "the answer ended early"
        try:
            _append(wire, job_id, artifact.name, aside, told)
        except httpx2.TransportError as error:
            cause = str(error) or type(error).__name__
        there = aside.stat().st_size if aside.exists() else 0
        if there > most:
            most = there
            pauses.alive()
        elif there < artifact.bytes and not pauses.wait():
            raise DownloadBroken(f"{artifact.name}: {there} of {artifact.bytes} bytes are here ({cause}); try again.")
    return _is_whole(aside, artifact)


def _append(wire: Wire, job_id: str, name: str, aside: Path, told: Callable[[int], None] | None) -> None:
    """One answer's bytes behind those that are there; from the first byte if the gateway sends the whole."""
    have = aside.stat().st_size if aside.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with wire.http.stream("GET", f"/jobs/{quote(job_id, safe='')}/artifacts/{name}", headers=headers) as answer:
        if answer.status_code in BUSY:
            return
        if answer.status_code >= 400:
            answer.read()
        check(answer)
        start = have if answer.status_code == 206 else 0
        with aside.open("r+b" if have else "wb") as out:
            out.truncate(start)
            out.seek(start)
            for chunk in answer.iter_bytes(CHUNK):
                out.write(chunk)
                if told:
                    told(out.tell())


def _is_whole(path: Path, artifact: Artifact) -> bool:
    if not path.is_file() or path.stat().st_size != artifact.bytes:
        return False
    if not artifact.sha256:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == artifact.sha256
