"""What every store keeps of a fan-out: emitted parts, the window, and generations."""

from __future__ import annotations

import os

import pytest

from jobs.errors import ClaimLost, TooManyParts
from jobs.model import MAX_PARTS, Cause, Emitted, Ended, Output, StagePlan, Standing, Status
from tests.ageing import age
from tests.store_steps import (
    artifact,
    break_part,
    broke,
    data,
    emitter,
    indexes,
    keys,
    part,
    put,
    run,
    take,
)


def tolerant(share: float) -> StagePlan:
    """An `each` stage that may lose some parts."""
    return StagePlan("b", "b", each=True, min_success=share)


# -- emitting --------------------------------------------------------------------------------------------------


def test_an_emitted_part_is_ready_while_its_emitter_still_runs(store, make_job):
    # Given a running emitter
    job = put(store, make_job("a", "b*", "c", priority=6))
    source = take(store, part(job))
    # When it emits a part
    emitted = store.emit(source, 0, b"payload")
    # Then that is ready under the emitter's fence as its generation, and can be finished at once
    (ring,) = emitted.rings
    assert (ring.at, ring.task, ring.queue, ring.priority) == (part(job, 1, source.fence, 0), "echo.b", "b", 6)
    claim = take(store, ring.at)
    assert (claim.payload, claim.fence) == (b"payload", 1)
    assert store.finish(claim, b"out") == Ended(Status.RUNNING)
    stage = store.get(job.id).stages[1]
    assert (stage.total, stage.done, stage.closed, stage.generation, stage.status) == (1, 1, False, 1, "running")
    (told,) = data(store, job, "progress")
    expected = {"stage": "b", "index": 0, "generation": 1, "fence": 1, "done": 1, "total": 1}
    assert told == expected


def test_an_index_emitted_twice_is_one_part(store, make_job):
    # Given an emitter whose answers are lost, with a window of two
    job = put(store, make_job("a", "b*", window=2))
    source = take(store, part(job))
    # When each index is emitted twice, also with another payload
    for index, rings in ((0, 1), (1, 1), (2, 0), (3, 0)):
        first = store.emit(source, index, b"first")
        assert len(first.rings) == rings
        assert store.emit(source, index, b"second") == first
    # Then there are four, with what was emitted first, and the brake does not hide the first answers
    assert store.emit(source, 4, b"x") == Emitted(full=True)
    assert len(store.emit(source, 0, b"again").rings) == 1
    assert store.get(job.id).stages[1].total == 4
    assert take(store, part(job, 1, source.fence, 0)).payload == b"first"


def test_emitting_needs_the_living_claim(store, make_job):
    # Given an emitter that was lost, one that finished, and one that was never
    job = put(store, make_job("a", "b*"))
    stale = emitter(store, job, [b"0"])
    store.fail(stale, Cause.LOSS, broke("a"))
    with pytest.raises(ClaimLost):
        store.emit(stale, 1, b"x")
    fresh = take(store, part(job))
    with pytest.raises(ClaimLost):
        store.emit(stale, 0, b"x")
    store.finish(fresh, b"", emitted=0)
    # Then none of them may emit, not even what it has emitted before
    for claim in (stale, fresh):
        with pytest.raises(ClaimLost):
            store.emit(claim, 0, b"x")
    assert store.get(job.id).stages[1].total == 0


def test_a_lease_that_ran_out_but_was_not_ended_may_emit(store, store_url, make_job):
    job = put(store, make_job("a", "b*"))
    source = take(store, part(job), lease_s=10)
    age(store_url, 11)
    assert len(store.emit(source, 0, b"x").rings) == 1


def test_a_job_may_have_ten_thousand_parts_and_no_more(store, make_job):
    # Given an emitter
    job = put(store, make_job("a", "b*"))
    source = take(store, part(job))
    # When it emits the last index that there may be, it is a part; behind it there is none
    assert len(store.emit(source, MAX_PARTS - 1, b"x").rings) == 1
    for index in (MAX_PARTS, MAX_PARTS * 1_000, -1):
        with pytest.raises(TooManyParts):
            store.emit(source, index, b"x")
    # Then what was refused is not counted
    assert store.get(job.id).stages[1].total == 1


@pytest.mark.timeout(900)
def test_a_wide_stage_is_counted_and_kept_in_order(store, make_job):
    # Given a stage as wide as there may be (a tenth of it in the short run), and a consumer that keeps up
    width = MAX_PARTS if os.environ.get("HYPOTHESIS_PROFILE") == "soak" else MAX_PARTS // 10
    job = put(store, make_job("a", "b*", "c", window=100))
    source = take(store, part(job), lease_s=600)
    for start in range(0, width, 100):
        for index in range(start, start + 100):
            assert not store.emit(source, index, b"%d" % index).full
        claims = [take(store, part(job, 1, source.fence, start), lease_s=600)]
        claims += store.claim_more(claims[0], "w", [f"{start}.{n}" for n in range(63)], 600)
        claims += store.claim_more(claims[0], "w", [f"{start}.{n}" for n in range(63, 126)], 600)
        assert len(claims) == 100
        for claim in claims:
            store.finish(claim, claim.payload)
    # When the emitter finishes
    ended = store.finish(source, b"", emitted=width)
    # Then all are counted, all in order, and the next stage is ready
    assert keys(ended.rings) == [part(job, 2)]
    assert [output.value for output in store.outputs(job.id, 1)] == [b"%d" % n for n in range(width)]
    stage = store.get(job.id).stages[1]
    assert (stage.total, stage.done, stage.dead, stage.status) == (width, width, 0, "finished")


# -- the window and its brake -----------------------------------------------------------------------------------


def test_only_a_window_of_parts_is_rung_or_leased(store, make_job):
    # Given five parts emitted in any order, in a window of two
    job = put(store, make_job("a", "b*", window=3))
    source = take(store, part(job))
    first = [indexes(store.emit(source, index, b"").rings) for index in (4, 2, 5, 3, 0, 1)]
    # Then three are ready, in the order they came
    assert first == [[4], [2], [5], [], [], []]
    assert store.claim(part(job, 1, source.fence, 0), "w", "t", 60) is None
    # When ready ones are finished or leased, the others follow in index order
    held = take(store, part(job, 1, source.fence, 4))
    assert indexes(run(store, part(job, 1, source.fence, 2)).rings) == [0]
    assert indexes(store.finish(held, b"").rings) == [1]
    assert indexes(run(store, part(job, 1, source.fence, 1)).rings) == [3]
    assert indexes(run(store, part(job, 1, source.fence, 3)).rings) == []


def test_a_part_that_backs_off_keeps_its_place(store, store_url, make_job):
    # Given a window of one
    job = put(store, make_job("a", "b*", window=1))
    source = emitter(store, job, [b"0", b"1"])
    # When its part backs off, is given back, is lost
    first = part(job, 1, source.fence, 0)
    assert break_part(store, first, Cause.FAILURE, delay_s=30) == Ended(Status.RUNNING)
    assert store.claim(part(job, 1, source.fence, 1), "w", "t", 60) is None
    age(store_url, 31)
    assert indexes(store.due(10)) == [0]
    assert indexes(break_part(store, first, Cause.GIVEN_BACK).rings) == [0]
    # Then the next one comes only when it is over
    assert indexes(run(store, first).rings) == [1]


def test_the_emitter_waits_while_it_is_far_ahead(store, make_job):
    # Given a window of two with four parts unfinished
    job = put(store, make_job("a", "b*", window=2))
    source = emitter(store, job, [b"0", b"1", b"2", b"3"])
    # When more is emitted
    # Then nothing is stored until a part is over, whichever way
    assert [store.emit(source, n, b"") for n in (4, 5)] == [Emitted(full=True)] * 2
    assert store.get(job.id).stages[1].total == 4
    run(store, part(job, 1, source.fence, 0))
    assert store.emit(source, 4, b"") == Emitted()
    assert store.emit(source, 5, b"") == Emitted(full=True)
    # and a claim or a failure frees no place
    break_part(store, part(job, 1, source.fence, 1), Cause.FAILURE)
    take(store, part(job, 1, source.fence, 1))
    assert store.emit(source, 5, b"") == Emitted(full=True)


def test_a_dead_part_frees_its_place(store, make_job):
    job = put(store, make_job("a", tolerant(0.1), window=1))
    source = emitter(store, job, [b"0", b"1"])
    assert indexes(break_part(store, part(job, 1, source.fence, 0)).rings) == [1]
    assert store.emit(source, 2, b"") == Emitted()


def test_a_payloads_files_go_to_the_trash_once_its_part_is_done(store, make_job):
    # Given two emitted parts with files
    job = put(store, make_job("a", "b*"))
    source = take(store, part(job))
    store.emit(source, 0, b"", files=["jobs/x/0/a.raw", "jobs/x/0/b raw ü"])
    store.emit(source, 1, b"", files=["jobs/x/0/c.raw"])
    # When one fails and is done later
    break_part(store, part(job, 1, source.fence, 0), Cause.FAILURE)
    assert store.trash(10) == []
    claim = take(store, part(job, 1, source.fence, 0))
    store.finish(claim, b"")
    store.finish(claim, b"")
    # Then its files are trash, once
    assert sorted(store.trash(10)) == ["jobs/x/0/a.raw", "jobs/x/0/b raw ü"]


# -- generations -------------------------------------------------------------------------------------------------


def test_a_new_claim_on_the_emitter_voids_what_it_emitted_before(store, make_job):
    # Given an emitter that was lost after it emitted three parts: one done, one held, one ready
    job = put(store, make_job("a", "b*", "c"))
    lost = emitter(store, job, [b"0", b"1", b"2"])
    run(store, part(job, 1, lost.fence, 0), b"old", artifacts=[artifact("old")])
    held = take(store, part(job, 1, lost.fence, 1))
    store.fail(lost, Cause.LOSS, broke("a"))
    # When it is claimed again
    fresh = take(store, part(job))
    # Then everything of the old generation is gone
    stage = store.get(job.id).stages[1]
    assert (stage.total, stage.done, stage.dead, stage.closed, stage.generation) == (0, 0, 0, False, fresh.fence)
    assert (store.outputs(job.id, 1), store.artifacts(job.id)) == ([], [])
    assert store.claim(part(job, 1, lost.fence, 2), "w", "t", 60) is None
    # and who held a part of it is refused
    assert store.renew([held], 60) == [Standing.LOST]
    for late in (lambda: store.finish(held, b"late"), lambda: store.fail(held, Cause.BAD_INPUT, broke("b", 1))):
        with pytest.raises(ClaimLost):
            late()
    # When the new generation runs
    for index in range(2):
        store.emit(fresh, index, b"new")
        run(store, part(job, 1, fresh.fence, index), b"new")
    ended = store.finish(fresh, b"", emitted=2)
    # Then only its parts count
    assert keys(ended.rings) == [part(job, 2)]
    assert store.outputs(job.id, 1) == [Output(0, b"new"), Output(1, b"new")]


def test_the_files_of_void_payloads_go_to_the_trash(store, make_job):
    # Given an emitter that was lost after it emitted parts with files
    job = put(store, make_job("a", "b*"))
    lost = take(store, part(job))
    for index, files in enumerate((["jobs/x/0/0"], ["jobs/x/0/1", "jobs/x/0/1 too"], [])):
        store.emit(lost, index, b"", files)
    store.fail(lost, Cause.LOSS, broke("a"))
    assert store.trash(10) == []
    # When it is claimed again
    take(store, part(job))
    # Then nobody needs them any more
    assert sorted(store.trash(10)) == ["jobs/x/0/0", "jobs/x/0/1", "jobs/x/0/1 too"]


def test_a_loss_alone_voids_nothing_yet(store, make_job):
    # Given an emitter that was lost
    job = put(store, make_job("a", "b*"))
    lost = emitter(store, job, [b"0"])
    store.fail(lost, Cause.LOSS, broke("a"))
    # When its part is finished before anyone claims the emitter again
    run(store, part(job, 1, lost.fence, 0))
    # Then that counts as long as the generation lives
    assert store.get(job.id).stages[1].done == 1


def test_void_parts_are_in_no_list(store, store_url, make_job):
    # Given a void generation with a ready, a rung, a leased and a backing-off part
    job = put(store, make_job("a", "b*", window=8))
    lost = emitter(store, job, [b"0", b"1", b"2", b"3"])
    store.rung([store.emit(lost, 0, b"").rings[0]])
    take(store, part(job, 1, lost.fence, 1), lease_s=10)
    break_part(store, part(job, 1, lost.fence, 2), Cause.FAILURE, delay_s=30)
    store.fail(lost, Cause.LOSS, broke("a"))
    like = take(store, part(job), lease_s=10_000)
    assert store.rung_counts().get("b", 0) == 0
    # When everything would be due
    age(store_url, 4_000)
    # Then nothing is
    assert (store.unrung(10), store.due(10), store.overdue("b", 10), store.missing("b", 0, 10)) == ([], [], [], [])
    assert (store.end_leases(10, grace_s=0), sum(store.rung_counts().values())) == ([], 0)
    # and a part of the same index in the new generation is a part of its own
    store.emit(like, 1, b"new")
    claim = take(store, part(job, 1, like.fence, 1))
    assert (claim.payload, claim.fence) == (b"new", 1)
