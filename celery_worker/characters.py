"""From the bytes of a text or a page to characters, and to characters that every reader can hold."""

from __future__ import annotations

import codecs
import re

BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
DECLARED = re.compile(rb"""<meta[^>]{0,300}?charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]{2,40})""", re.IGNORECASE)
# What Western European languages write with, in Windows-1252: letters, and signs that stand beside words.
WESTERN = re.compile(
    "[\u00c0-\u00cf\u00d1-\u00d4\u00d6\u00d8-\u00dc\u00df-\u00ef\u00f1-\u00f4\u00f6\u00f8-\u00fa\u00fc\u0152\u0153]"
    "|\u00f5(?=e)|(?<![^\\W\\d_])[\u2018\u201c\u201e\u00ab\u20ac\u00a3\u00a7\u00b0\u00bf\u00a1]"
    "|[\u2019\u201d\u00bb\u2026\u00ae\u2122\u20ac](?![^\\W\\d_])|(?<=[^\\W\\d_])\u2019|[\u00a0\u2013\u2014]"
)
FOREIGN = 0.25  # of a text's letters; more accented ones, and it is written in another alphabet
HEAD = 4_096  # where a page declares its charset, and where it is seen what a file is
# Everything without a shape of its own, but tab and line ends; one character each, so that offsets stay.
NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")


class NotText(ValueError):
    """These bytes are no text in any charset."""


def clean(text: str) -> str:
    """The same number of characters, none of which is a control, a lone surrogate or no character at all."""
    return NOT_TEXT.sub("\ufffd", text)


def decode(data: bytes, *, is_html: bool = False, told: str = "") -> str:
    """Text from bytes: by its mark, as UTF-8 if it is that, as it is declared, or by the look of its letters.

    `told` is the charset that came beside it, in a header; a page may declare its own.

    UTF-8 comes before what a page declares: hardly any other text happens to be valid UTF-8, and pages often lie.
    A few broken bytes among other characters of UTF-8 do not make it another charset.
    """
    for mark, charset in BOMS:
        if data.startswith(mark):
            return clean(data[len(mark) :].decode(charset, "replace"))
    if charset := _unmarked(data[:HEAD]):
        return clean(data.decode(charset, "replace"))
    text = data.decode("utf-8", "replace")
    if (broken := text.count("\ufffd")) == 0 or broken < sum(character > "\x7f" for character in text) / 2:
        return clean(text)
    inside = DECLARED.search(data[:HEAD]) if is_html else None
    for declared in filter(None, (told, inside[1].decode("ascii") if inside else "")):
        try:
            # What the web calls Latin-1 is Windows-1252, which has no gaps of controls.
            name = codecs.lookup(declared).name
            return clean(data.decode("cp1252" if name in ("iso8859-1", "ascii") else name))
        except (LookupError, ValueError):
            pass
    if b"\0" in data:
        raise NotText
    western = data.decode("cp1252", "replace")
    if _is_western(western):  # before anything is guessed: of a few accents that is no more than a guess
        return clean(western)
    from charset_normalizer import from_bytes  # only what is in an old charset needs it

    best = from_bytes(data).best()
    return clean(str(best) if best is not None else data.decode("cp1252", "replace"))


def _unmarked(head: bytes) -> str:
    """Two bytes a character without a mark: of most texts every other one is zero. Empty for everything else."""
    half = len(head) // 2
    if len(head) % 2 == 0 and half > 3:
        for first, charset in ((1, "utf-16-le"), (0, "utf-16-be")):
            if head[first::2].count(0) > half * 0.7 and head[1 - first :: 2].count(0) == 0:
                return charset
    return ""


def _is_western(text: str) -> bool:
    """Whether every character beyond ASCII is one that a Western European text would have at its place."""
    beyond = sum(character > "\x7f" for character in text)
    alphabetic = sum(character.isalpha() for character in text)
    return beyond <= FOREIGN * alphabetic and len(WESTERN.findall(text)) == beyond
