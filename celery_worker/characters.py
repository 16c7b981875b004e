"""From the bytes of a text or a page to characters, and to characters that every reader can hold."""

from __future__ import annotations

import codecs
import re
import unicodedata

BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
DECLARED = re.compile(rb"""<meta[^>]{0,300}?charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]{2,40})""", re.IGNORECASE)
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
    from charset_normalizer import from_bytes  # only what is in an old charset needs it

    best = from_bytes(data).best()
    return clean(str(best) if best is not None else data.decode("cp1252", "replace"))


def letters(text: str, most: int = 20_000) -> int:
    """How many letters or digits stand in the beginning of a text."""
    return sum(unicodedata.category(character)[0] in "LN" for character in text[:most])
