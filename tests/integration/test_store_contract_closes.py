"""What every store keeps of a fan-out: how a stage closes, and how many of its parts may be dead."""

from __future__ import annotations

import random

import pytest

from jobs.errors import ClaimLost
from jobs.model import Cause, Ended, Output, StagePlan, Standing, Status
from tests.store_steps import (
    at_once,
    break_part,
    broke,
    data,
    emitter,
    events,
    indexes,
    keys,
    part,
    put,
    run,
    status,
    take,
)


def tolerant(share: float) -> StagePlan:
    """An `each` stage that may lose some parts."""
    return StagePlan("b", "b", each=True, min_success=share)


# -- closing -----------------------------------------------------------------------------------------------------


def test_a_stage_closes_when_the_emitter_finishes_last(store, make_job):
    job = put(store, make_job("a", "b*", "c"))
    source = emitter(store, job, [b"0", b"1"])
    for index in (1, 0):
        assert run(store, part(job, 1, source.fence, index), b"%d" % index) == Ended(Status.RUNNING)
    ended = store.finish(source, b"", emitted=2)
    assert keys(ended.rings) == [part(job, 2)]
    assert store.finish(source, b"", emitted=2) == ended
    assert store.outputs(job.id, 1) == [Output(0, b"0"), Output(1, b"1")]


def test_a_stage_closes_when_a_part_finishes_last(store, make_job):
    job = put(store, make_job("a", "b*", "c"))
    source = emitter(store, job, [b"0", b"1"])
    assert store.finish(source, b"", emitted=2) == Ended(Status.RUNNING)
    assert store.get(job.id).stages[1].closed
    assert run(store, part(job, 1, source.fence, 1)) == Ended(Status.RUNNING)
    last = take(store, part(job, 1, source.fence, 0))
    ended = store.finish(last, b"")
    assert keys(ended.rings) == [part(job, 2)]
    assert store.finish(last, b"") == ended
    assert events(store, job).count("stage_finished") == 2


def test_a_stage_closes_when_nothing_was_emitted(store, make_job):
    # Given emitters that emit nothing: before a stage, and before the end
    job, short = put(store, make_job("a", "b*", "c")), put(store, make_job("a", "b*"))
    # When they finish
    ended = store.finish(take(store, part(job)), b"", emitted=0)
    # Then the stage behind the empty one is ready, or the job is over
    assert keys(ended.rings) == [part(job, 2)]
    assert store.finish(take(store, part(short)), b"") == Ended(Status.SUCCESSFUL)
    assert data(store, short, "stage_finished")[1] == {"stage": "b", "done": 0, "dead": 0, "total": 0}
    assert (store.outputs(short.id, 1), store.get(short.id).progress) == ([], 1.0)
    assert [stage.status for stage in store.get(job.id).stages] == ["finished", "finished", "waiting"]


def test_the_end_of_an_each_stage_can_be_the_end_of_the_job(store, make_job):
    job = put(store, make_job("a", "b*"))
    source = emitter(store, job, [b"0"])
    run(store, part(job, 1, source.fence, 0))
    assert store.finish(source, b"", emitted=1) == Ended(Status.SUCCESSFUL)


def test_indexes_may_have_gaps(store, make_job):
    # Given an emitter that emitted 7 and 3 only, of which 7 broke
    job = put(store, make_job("a", "b*", "c", window=1))
    source = take(store, part(job))
    assert [indexes(store.emit(source, index, b"").rings) for index in (3, 7)] == [[3], []]
    store.finish(source, b"", emitted=2)
    run(store, part(job, 1, source.fence, 3))
    break_part(store, part(job, 1, source.fence, 7))
    # When the job is retried
    accepted = store.retry(job.id, "second")
    # Then that part comes again and closes the stage
    assert indexes(accepted.rings) == [7]
    last = run(store, part(accepted.job, 1, source.fence, 7))
    assert keys(last.rings) == [part(accepted.job, 2)]
    assert [output.index for output in store.outputs("second", 1)] == [3, 7]


def test_stages_can_fan_out_twice(store, make_job):
    job = put(store, make_job("a", "b*", "c", "d*", "e"))
    for stage in (0, 2):
        source = emitter(store, job, [b"0", b"1"], stage=stage)
        for index in range(2):
            run(store, part(job, stage + 1, source.fence, index))
        store.finish(source, b"", emitted=2)
    assert run(store, part(job, 4)) == Ended(Status.SUCCESSFUL)


@pytest.mark.parametrize("stated", [None, 0, 1, 3])
def test_an_emitter_that_states_another_number_fails_the_job(store, make_job, stated):
    # Given an emitter that emitted two parts
    job = put(store, make_job("a", "b*", "c"))
    source = emitter(store, job, [b"0", b"1"])
    run(store, part(job, 1, source.fence, 0))
    # When it states another number, twice
    ended = store.finish(source, b"", emitted=stated)
    assert store.finish(source, b"", emitted=stated) == ended == Ended(Status.FAILED)
    # Then the job failed of it
    found = store.get(job.id)
    assert (found.error.code, found.error.stage, found.error.index) == ("emit-mismatch", "a", 0)
    assert events(store, job)[-1] == "failed"
    assert store.claim(part(job, 1, source.fence, 1), "w", "t", 60) is None


def test_the_last_two_parts_finished_at_the_same_moment_open_the_next_stage_once(store, make_job):
    for _ in range(25):
        # Given a closed stage with two parts left
        job = put(store, make_job("a", "b*", "c"))
        source = emitter(store, job, [b"0", b"1"])
        store.finish(source, b"", emitted=2)
        claims = [take(store, part(job, 1, source.fence, index)) for index in range(2)]
        # When both are finished at once
        ended = at_once(*[lambda c=claim: store.finish(c, b"") for claim in claims])
        # Then exactly one of them opened what follows
        assert sorted(len(one.rings) for one in ended) == [0, 1], ended
        assert events(store, job).count("stage_finished") == 2
        assert run(store, part(job, 2)) == Ended(Status.SUCCESSFUL)


def test_the_emitter_and_its_last_part_finished_at_the_same_moment_open_the_next_stage_once(store, make_job):
    for _ in range(25):
        job = put(store, make_job("a", "b*", "c"))
        source = emitter(store, job, [b"0"])
        claim = take(store, part(job, 1, source.fence, 0))
        calls = (lambda s=source: store.finish(s, b"", emitted=1), lambda c=claim: store.finish(c, b""))
        ended = at_once(*calls)
        assert sorted(len(one.rings) for one in ended) == [0, 1], ended
        assert store.get(job.id).stages[1].status == "finished"


def test_many_workers_finish_a_wide_stage_exactly_once(store, make_job):
    # Given sixty parts in a window of eight, and eight workers that take what is rung
    job = put(store, make_job("a", "b*", "c", window=8))
    source = take(store, part(job))
    opened, finished = [], []

    def work(first: list) -> None:
        rings = list(first)
        while rings:
            ring = rings.pop()
            claim = store.claim(ring.at, "w", f"{ring.at.index}.{random.random()}", 60)
            if claim is None:
                continue
            ended = store.finish(claim, b"%d" % ring.at.index)
            finished.append(ring.at.index)
            opened.extend(new for new in ended.rings if new.at.stage == 2)
            rings += [new for new in ended.rings if new.at.stage == 1]

    # When they work while the emitter emits and finishes
    sent = 0
    while sent < 60:
        rings = []
        while sent < 60 and not (emitted := store.emit(source, sent, b"x")).full:
            rings += emitted.rings
            sent += 1
        at_once(*[lambda one=ring: work([one]) for ring in rings or [None] if ring])
    opened += store.finish(source, b"", emitted=60).rings
    # Then each part was done once, in order, and the next stage opened once
    assert sorted(finished) == list(range(60))
    assert len(opened) == 1
    assert [output.index for output in store.outputs(job.id, 1)] == list(range(60))


# -- dead parts --------------------------------------------------------------------------------------------------


def test_by_default_one_dead_part_fails_the_job(store, make_job):
    # Given a fan-out with a part that broke for good
    job = put(store, make_job("a", "b*", "c", max_failures=1))
    source = emitter(store, job, [b"0", b"1"])
    held = take(store, part(job, 1, source.fence, 0))
    assert break_part(store, part(job, 1, source.fence, 1), Cause.FAILURE) == Ended(Status.FAILED)
    # Then the job failed of it, the emitter and the others are told
    assert store.get(job.id).error == broke("b", 1)
    assert store.renew([source, held], 60) == [Standing.ENDED] * 2
    with pytest.raises(ClaimLost):
        store.finish(held, b"")


def test_a_stage_may_close_with_some_parts_dead(store, make_job):
    # Given a stage that needs half of its four parts
    job = put(store, make_job("a", tolerant(0.5), "c", window=2))
    source = emitter(store, job, [b"0", b"1", b"2", b"3"])
    # When two are done and two die, the last one of bad input
    run(store, part(job, 1, source.fence, 0), b"zero")
    assert indexes(break_part(store, part(job, 1, source.fence, 1)).rings) == [3]
    store.finish(source, b"", emitted=4)
    run(store, part(job, 1, source.fence, 3), b"three")
    ended = break_part(store, part(job, 1, source.fence, 2))
    # Then the next stage is ready and finds the errors among the outputs
    assert (ended.status, keys(ended.rings)) == (Status.RUNNING, [part(job, 2)])
    zero, one, two, three = store.outputs(job.id, 1)
    assert (zero, three) == (Output(0, b"zero"), Output(3, b"three"))
    assert (one, two) == (Output(1, None, broke("b", 1)), Output(2, None, broke("b", 2)))
    assert data(store, job, "stage_finished")[1] == {"stage": "b", "done": 2, "dead": 2, "total": 4}
    assert run(store, part(job, 2)) == Ended(Status.SUCCESSFUL)
    assert store.get(job.id).error is None


@pytest.mark.parametrize("emitter_last", [True, False])
def test_a_stage_with_too_few_successes_fails_the_job_when_it_closes(store, make_job, emitter_last):
    # Given a stage that needs 0.6 of its three parts, that is two, and two die
    job = put(store, make_job("a", tolerant(0.6), "c"))
    source = emitter(store, job, [b"0", b"1", b"2"])
    if not emitter_last:
        store.finish(source, b"", emitted=3)
    # When the last part is over and the stage is closed
    assert break_part(store, part(job, 1, source.fence, 2)) == Ended(Status.RUNNING)
    assert break_part(store, part(job, 1, source.fence, 0)) == Ended(Status.RUNNING)
    ended = run(store, part(job, 1, source.fence, 1))
    if emitter_last:
        assert ended == Ended(Status.RUNNING)
        ended = store.finish(source, b"", emitted=3)
    # Then the job fails with the error of the part that died last
    assert ended == Ended(Status.FAILED)
    assert store.get(job.id).error == broke("b", 0)


def test_the_needed_share_is_exact(store, make_job):
    # 0.7 x 10 is 7, although 0.7 * 10 is a little more or less in floating point
    for dead, expected in ((3, Status.RUNNING), (4, Status.FAILED)):
        job = put(store, make_job("a", tolerant(0.7), "c", window=10))
        source = emitter(store, job, [b""] * 10)
        store.finish(source, b"", emitted=10)
        for index in range(10):
            at = part(job, 1, source.fence, index)
            ended = break_part(store, at) if index < dead else run(store, at)
        assert (ended.status, status(store, job)) == (expected, expected)


def test_the_progress_of_a_fan_out_follows_its_emitter(store, make_job):
    # Given an emitter that is half done and has emitted four parts
    job = put(store, make_job("a", "b*"))
    source = emitter(store, job, [b""] * 4)
    store.renew([source], 60, {source.token: 0.5})
    for index in range(2):
        run(store, part(job, 1, source.fence, index))
    # Then half of them done is a quarter of the stage
    assert [stage.progress for stage in store.get(job.id).stages] == [0.5, 0.25]
    store.finish(source, b"", emitted=4)
    assert [stage.progress for stage in store.get(job.id).stages] == [1.0, 0.5]
