"""The account itself goes red: made-up logs with one thing wrong each."""

import pytest

from jobs.model import Event, Job, JobError, Plan, StagePlan, StageState, Status
from tests.faults.accounts import Effect, Record, look_again, settle
from tests.faults.load import ACCEPTED, REFUSED, UNKNOWN, Attempt

STAGES = (StagePlan("split", "s"), StagePlan("grind", "g", each=True), StagePlan("gather", "e"))
PARTS = 2


def events_of(status=Status.SUCCESSFUL, generation=1):
    """What a job that went well wrote."""
    told = [("accepted", {}), ("running", {}), ("stage_finished", {"stage": "split"})]
    told += [
        ("progress", {"stage": "grind", "index": n, "generation": generation, "fence": 1, "done": n + 1})
        for n in range(PARTS)
    ]
    told += [("stage_finished", {"stage": "grind"}), ("stage_finished", {"stage": "gather"}), (str(status), {})]
    return [Event(n + 1, 0.0, type_, data) for n, (type_, data) in enumerate(told)]


def record_of(key="a", status=Status.SUCCESSFUL, events=None, **changes):
    totals = (1, PARTS, 1)
    states = tuple(
        StageState(one.name, total=total, done=total, closed=True) for one, total in zip(STAGES, totals, strict=True)
    )
    job = Job(
        id=f"id-{key}",
        pipeline="battery",
        plan=Plan(STAGES),
        params={"name": key, "parts": PARTS},
        status=status,
        stages=states,
        error=JobError("worker-lost", "") if status is Status.FAILED else None,
    )
    made = {"result": {"name": key, "sum": 1}, "torn": (), **changes}
    return Record(job, events if events is not None else events_of(status), **made)


def answered(key="a", outcome=ACCEPTED, job_id=None):
    return Attempt(key, 0.0, 0.1, outcome, 202, job_id or (f"id-{key}" if outcome == ACCEPTED else ""))


def counts(account):
    return len(account.lost), len(account.doubled), len(account.flipped), len(account.torn)


def test_an_account_of_jobs_that_went_well_has_nothing_wrong():
    # Given two accepted jobs, one after a refusal and an unknown answer, and every part executed once
    attempts = [answered("a", REFUSED), answered("a", UNKNOWN), answered("a"), answered("b")]
    effects = [
        Effect(f"id-{key}", *at, 1, 7, 0.0) for key in "ab" for at in ((0, 0, 0), (1, 1, 0), (1, 1, 1), (2, 0, 0))
    ]
    # When they are settled
    account = settle(attempts, [record_of("a"), record_of("b")], effects, {"id-a": Status.SUCCESSFUL})
    # Then the counts are right
    assert (counts(account), account.wrong) == ((0, 0, 0, 0), [])
    assert (account.accepted, account.refused, account.unknown) == (2, 1, 1)
    assert (account.executions, account.needed) == (8, 8)


LOST = {
    "it has no record": [],
    "it never ended": [record_of(status=Status.RUNNING, events=[])],
    "its record is another client's": [record_of("b")],
    "a stage of it was never closed": [record_of(events=[e for e in events_of() if e.data.get("stage") != "gather"])],
    "its result is wrong": [record_of(result={"name": "a", "sum": 0})],
}


@pytest.mark.parametrize("records", LOST.values(), ids=LOST)
def test_an_accepted_job_is_lost_if(records):
    attempts = [answered("a", job_id="id-b" if records and records[0].key == "b" else None)]
    assert counts(settle(attempts, records, []))[0] == 1


def test_a_job_that_no_client_knows_of_may_not_be_lost_either():
    attempts = [answered("a", UNKNOWN)]
    assert counts(settle(attempts, [record_of(status=Status.ACCEPTED, events=[])], [])) == (1, 0, 0, 0)
    assert counts(settle(attempts, [], [])) == (0, 0, 0, 0)


def test_a_part_finished_twice_or_a_stage_closed_twice_is_doubled():
    events = events_of()
    finished, closed = (next(e for e in events if e.type == kind) for kind in ("progress", "stage_finished"))
    assert counts(settle([answered()], [record_of(events=[*events, finished])], [])) == (0, 1, 0, 0)
    assert counts(settle([answered()], [record_of(events=[*events, closed])], [])) == (0, 1, 0, 0)
    # A part of an older generation is another part
    older = [e for e in events_of(generation=3) if e.type == "progress"]
    assert counts(settle([answered()], [record_of(events=[*older, *events])], [])) == (0, 0, 0, 0)


def test_a_key_with_two_records_or_two_ids_is_doubled():
    twin = Record(Job(**{**vars(record_of().job), "id": "id-twin"}), events_of(), {"name": "a", "sum": 1})
    assert counts(settle([answered()], [record_of(), twin], [])) == (0, 1, 0, 0)
    attempts = [answered(), answered(job_id="id-twin")]
    assert counts(settle(attempts, [record_of(), twin], [])) == (0, 2, 0, 0)


def test_a_final_status_that_changed_is_flipped():
    # Given a job that is successful now
    records = [record_of()]
    # When it was seen as failed while the fault was on
    assert counts(settle([answered()], records, [], {"id-a": Status.FAILED})) == (0, 0, 1, 0)
    # When it was seen as running then
    account = settle([answered()], records, [], {"id-a": Status.RUNNING})
    assert counts(account) == (0, 0, 0, 0)
    # When it is failed at the second look
    look_again(account, {"id-a": Status.FAILED})
    assert counts(account) == (0, 0, 1, 0)
    # When its events end twice, or otherwise than its record
    twice = [*events_of(), Event(99, 0.0, "failed", {})]
    assert counts(settle([answered()], [record_of(events=twice)], [])) == (0, 0, 1, 0)
    assert counts(settle([answered()], [record_of(events=events_of(Status.FAILED))], [])) == (0, 0, 1, 0)


def test_a_kept_file_that_is_missing_or_not_what_it_was_is_torn():
    account = settle([answered()], [record_of(torn=["sum.txt"])], [])
    assert (counts(account), account.wrong) == ((0, 0, 0, 1), ["torn: id-a: sum.txt"])


def test_failed_jobs_are_told_with_their_codes_and_need_no_executions():
    account = settle([answered()], [record_of(status=Status.FAILED)], [Effect("id-a", 0, 0, 0, 1, 7, 0.0)])
    assert (counts(account), account.failed) == ((0, 0, 0, 0), {"id-a": "worker-lost"})
    assert (account.executions, account.needed) == (1, 0)
