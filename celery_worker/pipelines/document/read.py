"""From a file to its text, page by page: plain text, HTML or PDF."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery_worker.characters import HEAD, NotText, clean, decode
from jobs.errors import BadInput

MAX_PAGES = 200
MAX_CHARACTERS = 1_000_000  # 200 pages of 5,000
MAX_BYTES = 104_857_600
MAX_TEXT_BYTES = 4 * (MAX_CHARACTERS + 1)  # no charset takes more for a character; and the mark at the beginning
READ_S = 120.0
NOT_TEXT = "The file is neither text nor HTML nor PDF."
TICK_S = 0.1
LOOKS_LIKE_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body|title|div|p|article|h1|table)[\s>]", re.IGNORECASE)
PARSER = "celery_worker.pipelines.document.parse"
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Text:
    """What was read. Page n is `text[start:end]` of `pages[n]`; sentences do not reach over `gap`."""

    kind: str  # text, html, pdf
    text: str
    pages: Sequence[tuple[int, int]]
    title: str = ""


def read_text(text: str) -> Text:
    """A text as it was sent, each character in its place; a form feed begins a page. Raises BadInput."""
    return _joined("text", clean(text).split("\f"), gap="\f")


def read_file(path: Path, tick: Callable[[], None]) -> Text:
    """Raises BadInput for what is no text, has none, or is too long. `tick` is called while it is parsed aside."""
    if path.stat().st_size > MAX_BYTES:
        raise BadInput(f"The document is larger than {MAX_BYTES} bytes.")
    kind = kind_of(path)
    if kind == "text":
        if path.stat().st_size > MAX_TEXT_BYTES:  # before its charset is looked for, which takes longer than reading
            raise BadInput(f"The document has more than {MAX_CHARACTERS} characters of text; no more are read.")
        try:
            return read_text(decode(path.read_bytes()))
        except NotText:
            raise BadInput(NOT_TEXT) from None
    found = aside(kind, path, tick)
    if error := found.get("error"):
        raise BadInput(error)
    return _joined(kind, [clean(page) for page in found["pages"]], gap="\n\n", title=clean(found["title"])[:300])


def kind_of(path: Path) -> str:
    """By what the file begins with, whatever its name says."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if b"%PDF-" in head[:1024]:
        return "pdf"
    return "html" if LOOKS_LIKE_HTML.search(head.replace(b"\0", b"")) else "text"


def aside(kind: str, path: Path, tick: Callable[[], None], within_s: float = READ_S) -> dict[str, Any]:
    """Parse in a process of its own, which is ended when it takes too long or too much memory."""
    process = subprocess.Popen(
        [sys.executable, "-m", PARSER, kind, str(path.resolve())],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + within_s
    try:
        while time.monotonic() < until:
            tick()
            try:
                out, _ = process.communicate(timeout=TICK_S)
            except subprocess.TimeoutExpired:
                continue
            if process.returncode:
                return {"error": f"The {kind.upper()} cannot be read: it is damaged, or takes too much memory."}
            found: dict[str, Any] = json.loads(out)
            return found
        return {"error": f"The {kind.upper()} cannot be read within {within_s:g} s."}
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _joined(kind: str, texts: Sequence[str], *, gap: str, title: str = "") -> Text:
    """Pages one after the other, with `gap` between two. Raises BadInput."""
    if len(texts) > MAX_PAGES:
        raise BadInput(f"The document has {len(texts)} pages; at most {MAX_PAGES} are read.")
    pages, at = [], 0
    for text in texts:
        pages.append((at, at + len(text)))
        at += len(text) + len(gap)
    text = gap.join(texts)
    if len(text) > MAX_CHARACTERS:
        raise BadInput(f"The document has {len(text)} characters of text; at most {MAX_CHARACTERS} are read.")
    if not any(character.isalnum() for character in text):
        scanned = " Pages that are pictures are not read." if kind == "pdf" else ""
        raise BadInput(f"There is no text in the document.{scanned}")
    return Text(kind, text, pages, title)
