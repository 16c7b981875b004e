"""What every store keeps of workers: who is there, until it leaves or is not heard of any more."""

from __future__ import annotations

import time
from dataclasses import replace

from jobs.model import Presence

GPU = Presence("host:1", "cuda:0 NVIDIA L4", ("inference",), 1, {"video.inference": 16}, {"detector": 5}, 24 << 30)
CPU = Presence("host:2", "cpu", ("preprocess", "io"))


def test_a_worker_is_there_for_as_long_as_it_says_so(store):
    # Given two workers, one of which said it for a moment only
    assert store.workers() == []
    store.announce(CPU, 60)
    store.announce(GPU, 0.3)
    assert store.workers() == [GPU, CPU]
    # When it says no more
    time.sleep(0.4)
    # Then it is there no longer, and nothing of it stays once another one speaks
    assert store.workers() == [CPU]
    store.announce(CPU, 60)
    store.announce(GPU, 60)
    assert store.workers() == [GPU, CPU]


def test_the_last_word_of_a_worker_stands_and_it_may_leave(store):
    store.announce(GPU, 60)
    store.announce(replace(GPU, children=0, batches={}), 60)
    assert store.workers() == [replace(GPU, children=0, batches={})]
    store.announce(GPU, 0)
    assert store.workers() == []


def test_what_a_newer_worker_says_besides_is_passed_over():
    told = {"name": "n", "device": "cpu", "queues": ["io"], "mood": "good"}
    assert Presence.of(told) == Presence("n", "cpu", ("io",))
