"""Entities, sentiment, category: preprocess reads, inference finds out the three side by side, postprocess merges."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from celery_worker.pipelines.document import category, entities, sentiment, vectors
from celery_worker.pipelines.document.page import highlighted
from celery_worker.pipelines.document.read import Text, read_file, read_text
from celery_worker.pipelines.document.sentences import chunks_of, is_english, language_of, sentences_of, warm_up
from celery_worker.workbench import Workbench

# Each is a part of its own. The sentiment also names the key sentences: both are read from the sentences' vectors.
TASKS = ("entities", "sentiment", "category")
MODELS = {"inference": (vectors.MODEL, vectors.TOKENIZER, sentiment.HEAD, category.HEAD)}
# What is not in models.yaml: a job would wait for it otherwise.
WARM_UP = {"preprocess": warm_up, "inference": entities.model}
MANY = 100  # entities in the result; all of them are in report.json


def preprocess(bench: Workbench, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the document, find its language, sentences and chunks, and emit what is to be found out about it."""
    read = _read(bench)
    language = {"code": "en", "confidence": 1.0} if bench.params["language"] == "en" else language_of(read.text)
    bench.checkpoint()
    sentences = sentences_of(read.text, read.pages)
    document = {
        "kind": read.kind,
        "title": read.title,
        "text": read.text,
        "pages": read.pages,
        "language": language,
        "sentences": sentences,
        "chunks": chunks_of(sentences, read.pages),
    }
    reference = bench.keep_json("document.json", document, listed=False)
    if is_english(language):
        for n, task in enumerate(TASKS):
            bench.emit(n, {"task": task, "document": reference})
    return {"document": reference}


def inference(bench: Workbench, part: Mapping[str, Any]) -> dict[str, Any]:
    """One of the three: what is named, how each sentence sounds, what it is about."""
    document = _load(bench, part["document"])
    find: Callable[[Workbench, Mapping[str, Any]], dict[str, Any]] = {
        "entities": _entities,
        "sentiment": _sentiment,
        "category": _category,
    }[part["task"]]
    return {"task": part["task"], "device": bench.device.name, **find(bench, document)}


def postprocess(bench: Workbench, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge what was found into a report, and picture it on a page."""
    document = _load(bench, bench.output("preprocess")["document"])
    by_task = {one["task"]: one for one in found}
    report = {
        "title": document["title"],
        "kind": document["kind"],
        "language": document["language"],
        "analysed": bool(by_task),
        "pages": [{"page": n + 1, "start": start, "end": end} for n, (start, end) in enumerate(document["pages"])],
        "sentences": _sentences(document, by_task.get("sentiment")),
        "entities": entities.grouped(
            document["text"], by_task.get("entities", {}).get("mentions", []), document["sentences"], document["pages"]
        ),
        "sentiment": by_task.get("sentiment", {}).get("whole"),
        "categories": by_task.get("category", {}).get("categories", []),
        "key_sentences": by_task.get("sentiment", {}).get("key_sentences", []),
        "text": document["text"],
    }
    bench.checkpoint()
    bench.keep_json("report.json", report)
    bench.keep("highlighted.html", highlighted(report))
    return _result(report, found)


def _result(report: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The report without what grows with the document."""
    text = report["text"]
    named = [{key: entity[key] for key in ("text", "kind", "count")} for entity in report["entities"]]
    return {
        "title": report["title"],
        "kind": report["kind"],
        "language": report["language"],
        "analysed": report["analysed"],
        "pages": len(report["pages"]),
        "characters": len(text),
        "sentences": len(report["sentences"]),
        "entity_counts": entities.counts(report["entities"]),
        "entities": named[:MANY],
        "sentiment": report["sentiment"],
        "categories": report["categories"],
        "key_sentences": [report["sentences"][n]["text"] for n in report["key_sentences"]],
        "device": ", ".join(sorted({one["device"] for one in found})),
    }


def _read(bench: Workbench) -> Text:
    if "text" in bench.input:
        return read_text(bench.input["text"])
    return read_file(bench.inputs[0], bench.checkpoint)


def _load(bench: Workbench, reference: str) -> Mapping[str, Any]:
    document: Mapping[str, Any] = json.loads(bench.open(reference).read_text())
    return document


def _entities(bench: Workbench, document: Mapping[str, Any]) -> dict[str, Any]:
    chunks = document["chunks"]
    kinds = frozenset(bench.params["entities"])
    return {
        "mentions": entities.mentions_of(
            document["text"], chunks, kinds, lambda done: bench.progress(done, len(chunks))
        )
    }


def _sentiment(bench: Workbench, document: Mapping[str, Any]) -> dict[str, Any]:
    texts = _texts(document, "sentences")
    found = _encoder(bench)(texts, lambda done: bench.progress(done, len(texts)))
    head = sentiment.Head.load(bench.model(sentiment.HEAD))
    scores = head.scores(found, texts).tolist()
    return {
        "scores": [[round(score, 4), head.label(score)] for score in scores],
        "whole": sentiment.whole(scores, head),
        "key_sentences": sentiment.telling(found, texts, bench.params["key_sentences"]),
    }


def _category(bench: Workbench, document: Mapping[str, Any]) -> dict[str, Any]:
    asked = bench.params["categories"] or category.DEFAULTS
    texts = _texts(document, "chunks")
    encode = _encoder(bench)
    head = category.Head.load(bench.model(category.HEAD))
    chunks = encode(texts, lambda done: bench.progress(done, len(texts)))
    found = category.judge(chunks, encode(list(asked.values())), _background(encode, head), head)
    return {"categories": category.shares(found, [len(text) for text in texts], list(asked))}


def _encoder(bench: Workbench) -> vectors.Encoder:
    return _encoder_of(bench.model(vectors.MODEL), bench.model(vectors.TOKENIZER))


@lru_cache(maxsize=1)
def _encoder_of(session: Any, tokenizer: Path) -> vectors.Encoder:
    return vectors.Encoder(session, tokenizer)


@lru_cache(maxsize=1)
def _background(encode: vectors.Encoder, head: category.Head) -> np.ndarray:
    """The same for every job of a process."""
    return encode(head.background)


def _texts(document: Mapping[str, Any], spans: str) -> list[str]:
    """What stands at the sentences or chunks, its line ends as blanks."""
    return [" ".join(document["text"][start:end].split()) for start, end in document[spans]]


def _sentences(document: Mapping[str, Any], found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    listed = []
    texts, starts = _texts(document, "sentences"), [start for start, _ in document["pages"]]
    scores = found["scores"] if found else [(None, None)] * len(texts)
    for (start, end), text, (score, label) in zip(document["sentences"], texts, scores, strict=True):
        page = bisect_right(starts, start)
        listed.append({"text": text, "start": start, "end": end, "page": page, "score": score, "label": label})
    return listed
