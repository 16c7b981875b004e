"""The trace that a job belongs to, as W3C Trace Context writes it: made or taken over at the door, kept in the record.

`00-<32 hex: the trace>-<16 hex: the span that caused this>-<2 hex: 01 if it is to be recorded>`; see
https://www.w3.org/TR/trace-context/. In the record, and not in a message, because a message may be lost.
"""

from __future__ import annotations

import re
from random import getrandbits  # seeded anew in a fork; the system's would let go of the interpreter each time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.part_spans import PartSpans
    from jobs.settings import Settings
    from jobs.spans import Spans

TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]([0-9a-f])(-.*)?"
)


def read(header: str) -> str:
    """The trace that a request says it is part of; empty where it names none that can be read."""
    found = TRACEPARENT.fullmatch(header)
    if found is None or (found[1] == "00" and found[5]):  # only later versions may say more
        return ""
    return f"00-{found[2]}-{found[3]}-0{int(found[4], 16) & 1}"


def taken_over(header: str) -> str:
    """The trace that a request is part of; a new one where it names none that can be read."""
    return read(header) or new()


def new() -> str:
    """A trace of its own."""
    return f"00-{getrandbits(128) or 1:032x}-{getrandbits(64) or 1:016x}-01"


def inside(trace: str) -> str:
    """A span of its own in the same trace."""
    return f"{trace[:36]}{getrandbits(64) or 1:016x}{trace[52:]}"


def trace_id(trace: str) -> str:
    """What all lines of a trace have in common; nothing for a job of an older version, which has none."""
    return trace[3:35]


def span_id(trace: str) -> str:
    """The span that it names."""
    return trace[36:52]


def is_sampled(trace: str) -> bool:
    """Whether it is to be recorded: whoever began it has decided that for all of it."""
    return trace.endswith("1")


def open_spans(settings: Settings, service: str) -> Spans | None:
    """The way to the collector of the settings; None, and no exporter imported, where they name none."""
    if not settings.otlp_url:
        return None
    from jobs.spans import Spans

    return Spans(settings.otlp_url, service)


def open_part_spans(settings: Settings, service: str) -> PartSpans | None:
    """The same, for who tells of attempts at parts."""
    if (spans := open_spans(settings, service)) is None:
        return None
    from jobs.part_spans import PartSpans

    return PartSpans(spans)
