"""What a store protects from, seen without each protection and then with it, in both stores alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from jobs.errors import ClaimLost
from jobs.model import Output
from jobs.store import JobStore, open_store
from tests.ageing import age
from tests.store_steps import data, emitter, part, put, run, take, token


@pytest.fixture
def without(store_url):
    """A factory: `without("fence")` is the store that does without its fence."""
    with contextlib.ExitStack() as opened:

        def open_(*names: str) -> JobStore:
            return opened.enter_context(contextlib.closing(open_store(store_url, without=frozenset(names))))

        yield open_


@pytest.fixture
def lose(store, store_url) -> Callable[[], None]:
    """A function: every lease runs out, and is ended."""

    def now() -> None:
        age(store_url, 61)
        store.end_leases(10, grace_s=0)

    return now


def test_the_fence(store, without, make_job, lose):
    # Given an emitted part that one worker took, lost, and another one finished
    job = put(store, make_job("a", "b*", "c"))
    source = take(store, part(job), lease_s=10_000)
    store.emit(source, 0, b"")
    at = part(job, 1, source.fence)
    stale = take(store, at)
    lose()
    run(store, at, b"fresh")
    # When the first one finishes too, then only without the fence it is taken
    with pytest.raises(ClaimLost):
        store.finish(stale, b"stale")
    without("fence").finish(stale, b"stale")
    assert [told["fence"] for told in data(store, job, "progress")] == [2, 1]


def test_that_final_is_final(store, without, make_job):
    # Given a job that was dismissed while it ran
    job = put(store, make_job("a"))
    late = take(store, part(job))
    store.dismiss(job.id)
    # When its part is finished, then only without the protection (in Postgres the fence sees to it too) it is taken
    with pytest.raises(ClaimLost):
        store.finish(late, b"late")
    assert store.outputs(job.id, 0) == []
    without("final", "fence").finish(late, b"late")
    assert store.outputs(job.id, 0) == [Output(0, b"late")]


def test_the_generation(store, without, make_job, lose):
    # Given an emitter that cut its work into three parts, and was lost
    job = put(store, make_job("a", "b*"))
    emitter(store, job, [b"0", b"1", b"2"])
    lose()
    # When it is claimed again, then only without the generation the old parts stay
    loose = without("generation")
    take(loose, part(job))
    assert store.get(job.id).stages[1].total == 3
    lose()
    take(store, part(job))
    assert store.get(job.id).stages[1].total == 0


def test_the_token(store, without, make_job):
    # Given a claim and a finish whose answers were lost
    job = put(store, make_job("a", "b"))
    at, mine, loose = part(job), token(), without("token")
    claim = store.claim(at, "w", mine, 60)
    # When they are sent again, then only without the token they are nobody's
    assert loose.claim(at, "w", mine, 60) is None
    assert store.claim(at, "w", mine, 60) == claim
    ended = store.finish(claim, b"")
    with pytest.raises(ClaimLost):
        loose.finish(claim, b"")
    assert store.finish(claim, b"") == ended
