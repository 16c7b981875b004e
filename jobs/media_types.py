"""What a file is, by its first bytes. The gateway asks for uploads, the workers for what they fetch."""

from __future__ import annotations

import re

import puremagic

HEAD = 8_192  # enough for what a file's first bytes tell
SURE = 0.4  # how sure puremagic must be
MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,60}/[a-z0-9!#$&^_.+-]{1,80}")
UNKNOWN = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})


def media_type(head: bytes, declared: str) -> str:
    """What the first bytes look like; where they tell nothing, what their sender said."""
    declared = declared.partition(";")[0].strip().lower()
    try:
        matches = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        matches = []
    seen = [match.mime_type for match in matches if match.mime_type and match.confidence >= SURE]
    if seen and declared not in seen:
        return str(seen[0])
    return declared if MEDIA_TYPE.fullmatch(declared) else "application/octet-stream"
