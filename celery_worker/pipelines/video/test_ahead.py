"""An iterator that runs ahead gives the same items and errors, and leaves no thread behind."""

import threading
import time
from contextlib import closing

import pytest

from celery_worker.pipelines.video.ahead import ahead


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
