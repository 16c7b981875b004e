"""JSON as it comes from strangers: what Python's reader lets through and JSON does not know is refused."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from api.problems import BodyUnreadable

MAX_DEPTH = 100  # what works on a value later on may be recursive


def read(body: bytes) -> Any:
    """The value. Raises BodyUnreadable: not JSON, not UTF-8, NaN, a number out of range, too deep."""
    if not body.strip():
        raise BodyUnreadable("The body is empty.")
    try:
        text = body.decode("utf-8")
        value = _decoder.decode(text)
    except UnicodeDecodeError as error:
        raise BodyUnreadable(f"The body is not UTF-8: byte {error.start}.") from None
    except json.JSONDecodeError as error:
        raise BodyUnreadable(f"The body is not JSON: {error.msg} in line {error.lineno}.") from None
    except RecursionError:
        raise BodyUnreadable(_TOO_DEEP) from None
    except ValueError as error:
        raise BodyUnreadable(str(error)) from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise BodyUnreadable(_TOO_DEEP)
    if b"\\u" in body:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise BodyUnreadable("The body has half of a surrogate pair in a string.") from None
    return value


def canonical(value: Any) -> bytes:
    """One spelling for equal values, to be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


_TOO_DEEP = f"The body is nested deeper than {MAX_DEPTH} levels."


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        raise ValueError(f"The body has an integer of {len(digits)} digits.") from None


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("The body has a number that is out of range.")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"The body has {name}, which JSON does not know.")


_decoder = json.JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=_constant)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return depth
