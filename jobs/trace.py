"""The trace that a job belongs to, as W3C Trace Context writes it: made or taken over at the door, kept in the record.

`00-<32 hex: the trace>-<16 hex: the span that caused this>-<2 hex: 01 if it is to be recorded>`; see
https://www.w3.org/TR/trace-context/. In the record, and not in a message, because a message may be lost.
"""

from __future__ import annotations

import os
import re

TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]([0-9a-f])(-.*)?"
)


def taken_over(header: str) -> str:
    """The trace that a request is part of; a new one where it names none that can be read."""
    found = TRACEPARENT.fullmatch(header)
    if found is None or (found[1] == "00" and found[5]):  # only later versions may say more
        return new()
    return f"00-{found[2]}-{found[3]}-0{int(found[4], 16) & 1}"


def new() -> str:
    """A trace of its own."""
    random = os.urandom(24).hex()
    return f"00-{random[:32]}-{random[32:]}-01"


def trace_id(trace: str) -> str:
    """What all lines of a trace have in common; nothing for a job of an older version, which has none."""
    return trace[3:35]
