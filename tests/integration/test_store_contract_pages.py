"""What every store keeps: lists of jobs, their filters, and cursors that clients may forge."""

from __future__ import annotations

import base64
import itertools
import json

import pytest

from jobs.errors import CursorInvalid
from jobs.model import Status, Submission
from tests.ageing import age
from tests.store_steps import break_job, part, put, run


@pytest.fixture
def many(store, make_job):
    """Thirty jobs of two pipelines, three labels and four statuses; newest first."""
    jobs = []
    for n in range(30):
        labels = {"site": ("north", "south", "a|b:c ü")[n % 3], "n": str(n)}
        job = put(store, make_job(pipeline=("video", "addition")[n % 2], labels=labels))
        if n % 5 == 0:
            store.dismiss(job.id)
        elif n % 5 == 1:
            run(store, part(job))
        elif n % 5 == 2:
            break_job(store, job)
        jobs.append(store.get(job.id))
    return sorted(jobs, key=lambda job: (job.created, job.id), reverse=True)


def walk(store, limit, **filters):
    """All pages of a list."""
    jobs, cursor = [], None
    for _ in range(100):
        page = store.page(cursor=cursor, limit=limit, **filters)
        assert len(page.jobs) <= limit
        jobs += page.jobs
        cursor = page.next
        if cursor is None:
            return jobs
    raise AssertionError("the list does not end")


def test_pages_hold_every_job_once_newest_first(store, many):
    for limit in (1, 7, 30, 31, 200):
        assert walk(store, limit) == many
    assert store.page(limit=30).next is None
    assert store.page().jobs == tuple(many)


def test_jobs_of_one_moment_are_ordered_by_their_ids(store, make_job):
    # Given jobs that were accepted in one call, perhaps in one millisecond
    jobs = [make_job() for _ in range(100)]
    store.add([Submission(job) for job in jobs])
    # When they are listed in small pages
    found = walk(store, 3)
    # Then each comes once, by time and id
    assert {job.id for job in found} == {job.id for job in jobs}
    assert len(found) == 100
    order = [(job.created, job.id) for job in found]
    assert order == sorted(order, reverse=True)


@pytest.mark.parametrize("limit", [1, 4, 50])
def test_filters_combine(store, many, limit):
    # Given every combination of filters
    labels = (None, ("site", "north"), ("site", "a|b:c ü"), ("n", "7"), ("n", "no"), ("no", "7"))
    for status, pipeline, label in itertools.product((None, *Status), (None, "video", "nothing"), labels):
        # When the list is walked
        found = walk(store, limit, status=status, pipeline=pipeline, label=label)
        # Then it holds exactly the jobs that fit
        expected = [
            job
            for job in many
            if (status is None or job.status is status)
            and (pipeline is None or job.pipeline == pipeline)
            and (label is None or job.labels.get(label[0]) == label[1])
        ]
        assert found == expected, (status, pipeline, label)


def test_new_jobs_do_not_disturb_who_is_paging(store, make_job, many):
    # Given a client in the middle of a list
    first = store.page(limit=10)
    # When a job is accepted and one further down changes its status
    put(store, make_job())
    store.dismiss(many[20].id)
    # Then the next pages go on where it was
    rest = [job.id for job in walk_from(store, first.next)]
    assert [*(job.id for job in first.jobs), *rest] == [job.id for job in many]


def walk_from(store, cursor):
    """What follows a cursor."""
    jobs = []
    while cursor:
        page = store.page(cursor=cursor, limit=10)
        jobs += page.jobs
        cursor = page.next
    return jobs


def test_a_cursor_outlives_its_job(store, make_job, many, store_url):
    # Given a cursor at a job that is removed then
    page = store.page(limit=1, status=Status.DISMISSED)
    age(store_url, 61)
    store.remove(page.jobs[0].id)
    # When the next page is asked for
    # Then a list can still be walked to its end
    assert isinstance(store.page(cursor=page.next, limit=5, status=Status.DISMISSED).jobs, tuple)


def _encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    "forged",
    [
        "",
        "x",
        "\u0000",
        "ü\ud800",
        "=" * 10,
        "A" * 10_000,
        "' or 1=1 --",
        base64.urlsafe_b64encode(b"\xff\x00" * 20).decode(),
        base64.urlsafe_b64encode(b"[" * 100_000).decode(),
        *map(
            _encoded,
            (
                None,
                1,
                [],
                {},
                [1],
                ["a", "b"],
                [True, "b"],
                [1, 2],
                [1.5, 2],
                [float("nan"), "a"],
                [float("inf"), "a"],
                [1e400, "a"],
                [10**400, "a"],
                [-(10**30), "a"],
                [-1, "a"],
                [1, ["a"]],
                [1, "a", "b"],
                {"created": 1},
            ),
        ),
    ],
)
def test_a_forged_cursor_is_refused_or_harmless(store, make_job, forged):
    put(store, make_job())
    try:
        page = store.page(cursor=forged)
    except CursorInvalid:
        return
    assert len(page.jobs) <= 1


@pytest.mark.parametrize("garbage", ["", "x", "\u0000", "' or 1=1 --", "A" * 10_000])
def test_a_cursor_that_nobody_gave_is_refused(store, make_job, garbage):
    put(store, make_job())
    with pytest.raises(CursorInvalid):
        store.page(cursor=garbage)


def test_names_that_look_like_patterns_are_only_names(store, make_job):
    # Given labels and pipelines that mean something to a database
    for n, name in enumerate(("*", "%", "a_b", "a'b", 'a"b', "{}", "\\", "\u0000", "\ud800")):
        job = put(store, make_job(id=f"job-{n}", labels={"k": name}))
        # When jobs are filtered by them
        # Then exactly that one is found
        assert [found.id for found in store.page(label=("k", name)).jobs] == [job.id]
        assert store.page(pipeline=name).jobs == ()
        assert store.page(pipeline="echo", label=("k", name), status=Status.ACCEPTED).jobs == (job,)
