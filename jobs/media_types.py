"""What a file is, by its first bytes. The gateway asks for uploads, the workers for what they fetch."""

from __future__ import annotations

import re

import puremagic

HEAD = 8_192  # enough for what a file's first bytes tell
SURE = 0.4  # how sure puremagic must be
MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,60}/[a-z0-9!#$&^_.+-]{1,80}")
# What puremagic does not know: packets of 188 bytes, or 192 with a time before each, that begin with G; MXF's key; a
# film in Ogg, which it takes for sound. A `.ts` is a transport stream far more often than a translation.
SIGNS = {
    "video/mp2t": re.compile(rb"G(?:.{187}G){3}|.{4}G(?:.{191}G){3}", re.DOTALL),
    "application/mxf": re.compile(rb"\x06\x0e\x2b\x34\x02\x05\x01\x01"),
    "video/ogg": re.compile(rb"OggS.{24,400}\x80theora", re.DOTALL),
}
UNKNOWN = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})


def media_type(head: bytes, declared: str) -> str:
    """What the first bytes look like; where they tell nothing, what their sender said."""
    declared = declared.partition(";")[0].strip().lower()
    if told := next((kind for kind, sign in SIGNS.items() if sign.match(head)), ""):
        return told
    try:
        matches = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        matches = []
    seen = [match.mime_type for match in matches if match.mime_type and match.confidence >= SURE]
    if seen and declared not in seen:
        return str(seen[0])
    return declared if MEDIA_TYPE.fullmatch(declared) else "application/octet-stream"
