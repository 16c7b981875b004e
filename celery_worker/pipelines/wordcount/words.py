"""The words of a text, which of them are stop words, and what language they are of."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

# Letters with their marks; an apostrophe or a hyphen between two letters belongs to the word.
WORD = re.compile(r"[^\W\d_]+(?:['\u2019\u00ad\u2010-][^\W\d_]+)*")
CHARACTERS = 60  # a longer word is none
GUESSED = 0.08  # of a text's words at least so many are stop words of its language
OTHER_NAMES = {"cs": "cz", "no": "nb", "nn": "nb"}


def words_of(text: str) -> Counter[str]:
    """How often each word stands in a text, in lower case."""
    found = WORD.findall(unicodedata.normalize("NFC", text).replace("\u00ad", "").replace("\u2019", "'"))
    return Counter(word.lower() for word in found if len(word) <= CHARACTERS)


def folded(word: str) -> str:
    """A word as `words_of` counts it."""
    return unicodedata.normalize("NFC", word.strip()).replace("\u2019", "'").lower()


def language_of(declared: str, words: Counter[str], otherwise: str | None) -> str | None:
    """What the page declares, what the caller says, or whose stop words it is full of; None where nothing tells."""
    code = declared.strip().lower().replace("_", "-").partition("-")[0]
    code = OTHER_NAMES.get(code, code)
    if code in _lists():
        return code
    if otherwise or not words:
        return otherwise
    share = {each: sum(words[word] for word in stop_words(each)) for each in _lists()}
    best = max(share, key=share.__getitem__)
    return best if share[best] >= GUESSED * words.total() else None


@cache
def stop_words(language: str | None) -> frozenset[str]:
    """None for a language that is not known. A part of a word that was cut at its apostrophe is none."""
    if language is None:
        return frozenset()
    return frozenset(folded(word) for word in _lists()[language])


@cache
def _lists() -> Mapping[str, Sequence[str]]:
    """By language, from stop-words 2018.7.23: it has no wheel, and what has one calls `fire` and `mill` stop words."""
    found: dict[str, list[str]] = json.loads(Path(__file__).with_name("stop-words.json").read_text())
    return found
