"""Payloads and outputs: JSON as opaque bytes, small ones inline, large ones by reference to a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

INLINE_BYTES = 65_536  # a larger value goes to a file
MAX_BYTES = 67_108_864  # a larger value is refused: `output-too-large`

_INLINE, _FILE = b"=", b"@"  # the first byte tells which


class ValueTooLarge(ValueError):
    """A value is larger than MAX_BYTES."""


def pack(value: Any, spill: Callable[[bytes], str]) -> bytes:
    """JSON to bytes for the store; `spill` stores a large one and returns its name in Files.

    Raises ValueTooLarge; TypeError or ValueError for what is not JSON (NaN too).
    """
    data = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True).encode()
    if len(data) > MAX_BYTES:
        raise ValueTooLarge(f"{len(data)} bytes; at most {MAX_BYTES} are allowed.")
    return _INLINE + data if len(data) <= INLINE_BYTES else _FILE + spill(data).encode()


def unpack(packed: bytes, load: Callable[[str], bytes]) -> Any:
    """The value again; `load` reads a file by its name."""
    kind, rest = packed[:1], packed[1:]
    return json.loads(rest if kind == _INLINE else load(rest.decode()))
