"""Writes the locks (`*.txt`) from what was asked for (`*.in`); with `--check` it only says which are stale.

A pipeline's lock lies in its own folder, beside what it asks for: a new one is found by its folder. Each lock ends with
a digest of the files it was made from, so that a stale one is told without a network.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "requirements"
PIPELINES = sorted(ROOT.glob("celery_worker/pipelines/*/requirements.in"))
DEV = HERE / "dev.in"  # everything at once: the images take the versions that were tested together
LOCKS = (DEV, HERE / "api.in", HERE / "worker.in", HERE / "flower.in", HERE / "gpu.in", *PIPELINES, HERE / "uv.in")
SIGN = "# made from sha256 "


def main(arguments: list[str]) -> int:
    """Lock, or check."""
    if arguments == ["--check"]:
        stale = [lock(asked) for asked in LOCKS if not _is_fresh(asked)]
        for file in stale:
            print(f"{file.relative_to(ROOT)} is older than what it was made from: run `make lock`", file=sys.stderr)
        return 1 if stale else 0
    uv = Path(sys.executable).with_name("uv")
    for asked in LOCKS:
        subprocess.run([uv, *_arguments(asked, upgrade="--upgrade" in arguments)], cwd=ROOT, check=True)
        with lock(asked).open("a") as file:
            file.write(signature(asked) + "\n")
    return 0


def lock(asked: Path) -> Path:
    """The lock beside what it is made from."""
    return asked.with_suffix(".txt")


def signature(asked: Path) -> str:
    """The line that a fresh lock ends with."""
    digest = hashlib.sha256()
    for source in (*_sources(asked), HERE / "overrides.txt"):
        for file in _named(source):
            digest.update(file.read_bytes())
    return SIGN + digest.hexdigest()


def _is_fresh(asked: Path) -> bool:
    return lock(asked).exists() and signature(asked) in lock(asked).read_text()


def _sources(asked: Path) -> list[Path]:
    return [asked, *PIPELINES] if asked == DEV else [asked]


def _named(file: Path) -> list[Path]:
    """A file of requirements and those that it names by `-r`, in order."""
    named = [line.removeprefix("-r").strip() for line in file.read_text().splitlines() if line.startswith("-r")]
    return [file, *(found for name in named for found in _named((file.parent / name).resolve()))]


def _arguments(asked: Path, upgrade: bool) -> list[str]:
    arguments = ["pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"]
    arguments += ["--no-emit-index-url", "--no-emit-find-links", "--override", "requirements/overrides.txt"]
    if asked not in (DEV, HERE / "uv.in"):
        arguments += ["--constraint", "requirements/dev.txt"]
    if upgrade:
        arguments += ["--upgrade"]
    sources = [str(source.relative_to(ROOT)) for source in _sources(asked)]
    return [*arguments, *sources, "-o", str(lock(asked).relative_to(ROOT))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
