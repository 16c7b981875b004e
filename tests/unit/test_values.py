"""Payloads and outputs come back as they went in, from inline bytes and from files."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import values
from jobs.values import INLINE_BYTES, ValueTooLarge, pack, unpack

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture
def files() -> dict[str, bytes]:
    return {}


@given(value=JSON)
def test_what_is_packed_is_unpacked(value):
    kept: dict[str, bytes] = {}
    assert unpack(pack(value, lambda data: kept.setdefault("f", data) and "f"), kept.__getitem__) == value


@pytest.mark.parametrize("value", [[], {}, 9007199254740993, 1.7976931348623157e308, "\0", "\ud800", "ü", [[]], None])
def test_what_stores_and_their_scripts_would_change_stays_as_it_is(value):
    packed = pack(value, _no_file)
    assert packed.isascii()
    assert unpack(packed, _no_file) == value


def test_a_value_up_to_the_limit_is_inline_and_a_larger_one_goes_to_a_file(files):
    def spill(data: bytes) -> str:
        files["jobs/1/0/0.0.1/output"] = data
        return "jobs/1/0/0.0.1/output"

    # Given a value that fits exactly
    fits = "x" * (INLINE_BYTES - 2)
    assert unpack(pack(fits, _no_file), _no_file) == fits
    # When it is one byte longer, then only a name is left of it
    longer = "x" * (INLINE_BYTES - 1)
    packed = pack(longer, spill)
    assert packed == b"@jobs/1/0/0.0.1/output"
    assert unpack(packed, files.__getitem__) == longer


def test_a_value_over_the_largest_is_refused_and_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(values, "MAX_BYTES", 100_000)
    with pytest.raises(ValueTooLarge, match="100001 bytes"):
        pack("x" * 99_999, _no_file)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [math.nan], b"bytes", {1, 2}, object()])
def test_what_is_not_json_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        pack(value, _no_file)


def _no_file(*_: object) -> str:
    raise AssertionError("a small value touched a file")
