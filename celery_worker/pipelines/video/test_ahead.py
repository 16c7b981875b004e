"""An iterator that runs ahead gives the same items and errors, and leaves no thread behind."""

import threading
import time
from contextlib import closing

import pytest

from celery_worker.pipelines.video.ahead import ahead, in_order


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


def test_it_gives_the_same_items_in_order():
    assert list(ahead(iter(range(100)))) == list(range(100))
    assert threads() == []


def test_an_error_arrives_where_the_items_are_read():
    def breaks():
        yield 1
        raise ValueError("broken")

    items = ahead(breaks())
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)
    assert threads() == []


def test_a_reader_that_leaves_ends_the_thread_and_closes_its_source():
    closed = []

    def endless():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    with closing(ahead(endless())) as items:
        next(items)
    assert (closed, threads()) == ([True], [])


def test_a_reader_can_leave_while_it_waits():
    def slow():
        time.sleep(0.8)
        yield 1

    def leave():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(ahead(slow(), waiting=leave))
    assert threads() == []


def callers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("calls")]


def test_calls_return_in_order_whichever_ends_first():
    calls = [lambda n=n: time.sleep(0.002 * (n % 3)) or n for n in range(30)]
    assert list(in_order(calls)) == list(range(30))
    assert callers() == []


def test_the_next_call_is_under_way_while_the_one_before_it_runs():
    # Given a first call that ends only once the second one has begun: a GPU would else idle between the two
    begun = threading.Event()
    first, second = in_order([lambda: begun.wait(10), lambda: begun.set() or 2])
    assert (first, second) == (True, 2)


def test_a_call_that_breaks_is_told_at_its_place_and_the_others_are_left():
    ran = []

    def breaks():
        raise ValueError("broken")

    said = in_order([lambda: 1, breaks, *(lambda n=n: ran.append(n) for n in range(20))])
    assert next(said) == 1
    with pytest.raises(ValueError, match="broken"):
        next(said)
    assert len(ran) < 20
    assert callers() == []


def test_a_reader_that_leaves_waits_for_the_calls_that_run():
    ended = []
    with closing(in_order([lambda: 1, *[lambda: time.sleep(0.2) or ended.append(True)] * 5])) as said:
        next(said)
    assert 1 <= len(ended) <= 3  # what they read may be taken away now
    assert callers() == []


def test_a_reader_can_leave_while_a_call_runs():
    def leave():
        raise KeyError("dismissed")

    with pytest.raises(KeyError):
        next(in_order([lambda: time.sleep(1.2)], waiting=leave))
    assert callers() == []
