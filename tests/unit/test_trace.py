"""The trace of a request is taken over as W3C Trace Context says, and nothing else is."""

from __future__ import annotations

import pytest

from jobs import trace

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01"),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"00-{TRACE}-{SPAN}-ff", f"00-{TRACE}-{SPAN}-01"),  # only the last bit is known
        (f"cc-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01"),  # a later version
        (f"cc-{TRACE}-{SPAN}-01-more-of-it", f"00-{TRACE}-{SPAN}-01"),
    ],
)
def test_the_trace_of_a_request_is_taken_over(header, expected):
    assert trace.taken_over(header) == expected
    assert trace.trace_id(expected) == TRACE


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",  # this version has no more
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}é-{SPAN}-01",
        "00-" + "a" * 100_000,
        '00-"}\x00{"',
    ],
)
def test_what_cannot_be_read_begins_a_new_trace(header):
    made = trace.taken_over(header)
    assert trace.taken_over(made) == made
    assert TRACE not in made


def test_a_span_inside_is_of_the_same_trace_and_has_a_name_of_its_own():
    for outer in (f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"):
        inner = trace.inside(outer)
        assert (trace.trace_id(inner), trace.is_sampled(inner)) == (TRACE, trace.is_sampled(outer))
        assert trace.span_id(outer) == SPAN != trace.span_id(inner)
        assert trace.taken_over(inner) == inner


def test_no_two_traces_are_the_same_and_a_job_of_an_older_version_has_none():
    assert len({trace.new() for _ in range(1_000)}) == 1_000
    assert trace.trace_id("") == ""
