"""Words of a page or a site: crawl fetches and emits pages, count counts each, report adds them up."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from celery_worker.characters import NotText, decode
from celery_worker.hypertext import MAX_DEPTH, Page
from celery_worker.pipelines.wordcount.crawl import HTML, Crawl, described
from celery_worker.pipelines.wordcount.words import folded, language_of, stop_words, words_of
from celery_worker.workbench import Workbench

TOP_OF_A_PAGE = 10


def crawl(bench: Workbench, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fetch page after page, and emit each as soon as it is here.

    One stage makes all requests, because only one that does can keep a pause between them and fetch no page twice;
    what takes a processor, the counting, runs beside it.
    """
    params = bench.params
    walk = Crawl(bench.fetch, bench.checkpoint, params["depth"], params["pages"], params["pause"])
    count = 0
    for found in walk.walk(bench.input["url"]):
        bench.emit(count, described(found), {"page": found.file.path})
        count += 1
        bench.progress(count, params["pages"] if params["depth"] else 1)
    return {"pages": count, "requests": walk.requests, "left": walk.left, "skipped": walk.skipped}


def count(bench: Workbench, page: Mapping[str, Any]) -> dict[str, Any]:
    """The words of one page."""
    data = bench.open(page["files"]["page"]).read_bytes()
    seen = {"url": page["url"], "depth": page["depth"], "title": "", "language": None, "words": {}}
    is_html = page["type"] in HTML
    try:
        text = decode(data, is_html=is_html, told=page["charset"])
    except NotText:
        return {**seen, "skipped": "is no text in any charset"}
    declared = ""
    if is_html:
        read = Page(text)
        main = _main_text(text) if bench.params["text"] == "main" and read.deepest <= MAX_DEPTH else ""
        text, declared, seen["title"] = main or read.text, read.language, read.title
    words = words_of(text)
    seen["language"] = language_of(declared, words, bench.params["language"])
    if bench.params["word"]:  # it may be a stop word
        seen["asked"] = words[folded(bench.params["word"])]
    if not bench.params["stop_words"]:
        words = Counter({word: number for word, number in words.items() if word not in stop_words(seen["language"])})
    return {**seen, "words": dict(_sorted(words))}


def report(bench: Workbench, counted: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All pages together, and each."""
    crawled = bench.output("crawl")
    pages = [page for page in counted if page.get("words") is not None and "skipped" not in page]
    skipped = [
        *crawled["skipped"],
        *({"url": page["url"], "why": page["skipped"]} for page in counted if "skipped" in page),
        *({"url": "", "why": "could not be counted"} for page in counted if "error" in page),
    ]
    total: Counter[str] = Counter()
    on: Counter[str] = Counter()
    for page in pages:
        total.update(page["words"])
        on.update(page["words"].keys())
    word = bench.params["word"]
    asked = folded(word) if word else None
    bench.keep("words.csv", _table(total, on))
    bench.keep_json("report.json", {"pages": pages, "skipped": skipped, "left": crawled["left"]})
    return {
        "pages": len(pages),
        "words": total.total(),
        "distinct": len(total),
        "top": [[word, number] for word, number in _sorted(total)[: bench.params["top"]]],
        "word": _asked(asked, pages),
        "per_page": [_summary(page) for page in pages],
        "skipped": skipped,
        "left": crawled["left"],
        "requests": crawled["requests"],
    }


def _asked(word: str | None, pages: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if word is None:
        return None
    found = [page["asked"] for page in pages]
    return {"word": word, "count": sum(found), "pages": sum(number > 0 for number in found)}


def _summary(page: Mapping[str, Any]) -> dict[str, Any]:
    words: Counter[str] = Counter(page["words"])
    return {
        "url": page["url"],
        "depth": page["depth"],
        "title": page["title"],
        "language": page["language"],
        "words": words.total(),
        "top": [[word, number] for word, number in _sorted(words)[:TOP_OF_A_PAGE]],
        **({"count": page["asked"]} if "asked" in page else {}),
    }


def _main_text(html: str) -> str:
    from trafilatura import extract  # takes a second, which only this needs

    return extract(html, include_comments=False, include_tables=True, deduplicate=False) or ""


def _sorted(words: Counter[str]) -> list[tuple[str, int]]:
    """The most frequent first; of equals, by the alphabet."""
    return sorted(words.items(), key=lambda item: (-item[1], item[0]))


def _table(total: Counter[str], on: Counter[str]) -> str:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["word", "count", "pages"])
    table.writerows((word, number, on[word]) for word, number in _sorted(total))
    return out.getvalue()
