"""The process that parses an HTML page or a PDF aside: `python -m celery_worker.pipelines.document.parse pdf FILE`.

It prints JSON: `{"pages": [text], "title"}` or `{"error": sentence}`. Parsers can be led into loops, deep recursion
and gigabytes; here this costs a process that nobody else needs.
"""

from __future__ import annotations

import json
import logging
import re
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery_worker.characters import NotText, decode
from celery_worker.hypertext import MAX_DEPTH, Page
from celery_worker.pipelines.document.read import MAX_CHARACTERS, MAX_PAGES, NOT_TEXT, READ_S

MEMORY_BYTES = 1_610_612_736  # of address space, libraries included
NEAR = 100_000  # characters: so far ahead a line is looked for on its page
HYPHEN = re.compile(r"(?<=[^\W\d_])-\n(?=[a-z])")
WRAPPED = re.compile(r"(?<=[^\n.!?:;])[ \t]*\n[ \t]*(?=[^\n\s\W\d_])")


def main(arguments: Sequence[str]) -> int:
    """Limits first, then the parser."""
    kind, file = arguments
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (int(READ_S), int(READ_S) + 1))
    logging.disable(logging.CRITICAL)
    found = pdf(Path(file)) if kind == "pdf" else html(Path(file).read_bytes())
    json.dump(found, sys.stdout)
    return 0


def pdf(path: Path) -> dict[str, Any]:
    """The text of each page, with lines that were only broken for the page put together again."""
    from pypdf import PasswordType, PdfReader
    from pypdf.errors import PyPdfError

    pages: list[str] = []
    characters = 0
    try:
        reader = PdfReader(path, strict=False)
        if reader.is_encrypted and reader.decrypt("") is PasswordType.NOT_DECRYPTED:
            return {"error": "The PDF is encrypted; send it without a password."}
        for page in reader.pages:
            if len(pages) == MAX_PAGES:
                return {"error": f"The PDF has {len(reader.pages)} pages; at most {MAX_PAGES} are read."}
            pages.append(unwrap(page.extract_text()))
            characters += len(pages[-1])
            if characters > MAX_CHARACTERS:
                return {"error": f"The PDF has more than {MAX_CHARACTERS} characters of text."}
        title = (reader.metadata.title if reader.metadata else None) or ""
    except (PyPdfError, RecursionError, ValueError, KeyError, TypeError, AttributeError, IndexError, OSError) as error:
        # pypdf means to raise its own errors only, but a damaged file finds other ways.
        return {"error": f"The PDF cannot be read: {type(error).__name__}."}
    if not pages:
        return {"error": "The PDF has no pages."}
    return {"pages": pages, "title": title}


def unwrap(page: str) -> str:
    """Words and sentences that a line's end had cut."""
    return WRAPPED.sub(" ", HYPHEN.sub("", page.replace("\r\n", "\n"))).strip()


def html(data: bytes) -> dict[str, Any]:
    """What the page is about, without menus and footers; all of its text where that cannot be told."""
    try:
        page = decode(data, is_html=True)
    except NotText:
        return {"error": NOT_TEXT}
    seen = Page(page)
    if len(seen.text) > MAX_CHARACTERS:
        return {"error": f"The page has more than {MAX_CHARACTERS} characters of text."}
    text = mended(_main_text(page), seen.text) if seen.deepest <= MAX_DEPTH else ""
    return {"pages": ["\n\n".join((text or seen.text).splitlines())], "title": seen.title}


def mended(main: str, whole: str) -> str:
    """The main text, its lines as they stand on the page: of a short page the extractor breaks them at each link."""
    lines: list[str] = []
    at, is_followed = 0, False  # how far on the page, and whether the line before was found there
    for line in main.splitlines():
        stop = whole.find("\n", at)
        begin = whole.find(line, at, stop if stop >= 0 else len(whole)) if is_followed else -1
        if begin >= 0:
            lines[-1] += whole[at:begin] + line
        else:
            begin = whole.find(line, at, at + NEAR)
            lines.append(line)
        is_followed = begin >= 0
        at = begin + len(line) if is_followed else at
    return "\n".join(lines)


def _main_text(page: str) -> str:
    from trafilatura import extract

    return extract(page, include_comments=False, include_tables=True, deduplicate=False) or ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
