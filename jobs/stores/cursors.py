"""Cursors: behind which job the next page of GET /jobs begins, opaque to clients."""

from __future__ import annotations

import base64
import binascii
import json
from typing import TypeVar

from jobs.errors import CursorInvalid

LATEST = 2.0**53  # later times are not exact

Time = TypeVar("Time", int, float)


def write(created: float, job_id: str) -> str:
    """A cursor behind a job, by its time as the store counts it."""
    return base64.urlsafe_b64encode(json.dumps([created, job_id]).encode()).decode()


def read(cursor: str | None, kind: type[Time]) -> tuple[Time, str] | None:
    """What `write` was told; None stands before the first job. Raises CursorInvalid for what no store has written."""
    if cursor is None:
        return None
    try:
        created, job_id = json.loads(base64.b64decode(cursor.encode(), altchars=b"-_", validate=True))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise CursorInvalid() from None
    if type(created) is not kind or not 0 <= created < LATEST or not isinstance(job_id, str):
        raise CursorInvalid()
    return created, job_id
