"""What every store keeps: accepting jobs, keys, pins, reading a record, dismissing, removing."""

from __future__ import annotations

import json

import pytest

from jobs.errors import JobNotFound, KeyReused, UploadNotFound
from jobs.model import Accepted, Cause, JobError, LogLine, PartKey, Ring, StageState, Status, Submission, Upload
from jobs.store import LOG_LINES
from tests.ageing import age
from tests.store_steps import artifact, at_once, break_job, emitter, events, keys, part, put, run, status, take

HARD = {
    "nul": "a\u0000b",
    "lone": "\ud800",
    "long": 9007199254740993,
    "longer": 12345678901234567890123456789,
    "empty": [],
    "nothing": {},
    "deep": [[], {"": [None, True, 0.1, -0.0, 1e-300]}],
    "text": 'Grüße, 世界 \U0001f600 "\\\n\x7f',
}


def upload(id_: str = "up-1", **fields: object) -> Upload:
    return Upload(**{"id": id_, "file": f"uploads/{id_}", "bytes": 3, "sha256": "ab", "type": "video/mp4", **fields})


def test_an_accepted_job_has_its_first_part_ready_and_one_event(store, make_job):
    # Given a job of three stages
    job = make_job("prepare", "infer*", "join", priority=7, labels={"site": "north"}, input={"text": "x"})
    # When it is accepted
    (accepted,) = store.add([Submission(job)])
    # Then the answer owes one ring, for the first part
    ring = Ring(PartKey(job.id, 0, 0, 0), "echo.prepare", "prepare", 7)
    assert (accepted.replayed, accepted.rings) == (False, (ring,))
    # and the record says the same as the answer
    assert store.get(job.id) == accepted.job
    stages = (
        StageState("prepare", total=1, closed=True),
        StageState("infer"),
        StageState("join", total=1, closed=True),
    )
    assert accepted.job.stages == stages
    assert (accepted.job.status, accepted.job.started, accepted.job.finished) == (Status.ACCEPTED, None, None)
    assert (accepted.job.family, accepted.job.retry_of, accepted.job.progress) == (job.id, None, 0.0)
    assert accepted.job.created == accepted.job.updated > 1_600_000_000
    assert [(e.id, e.type, dict(e.data)) for e in store.events(job.id)] == [(1, "accepted", {})]
    assert store.counts() == {("echo", Status.ACCEPTED): 1}


def test_what_a_client_sent_comes_back_unchanged(store, make_job):
    # Given params, input and labels that JSON engines like to change
    job = make_job(params=HARD, input={"text": "a\u0000\ud800"}, labels={"ключ": "a b|c:d\u0001"}, owner="local")
    # When the job is accepted, read, listed and claimed
    accepted = put(store, job)
    claim = take(store, part(job))
    # Then all of them are what was sent
    assert (accepted.params, accepted.input, accepted.labels) == (job.params, job.input, job.labels)
    found = store.get(job.id)
    assert (found.params, found.input, found.labels, found.plan) == (job.params, job.input, job.labels, job.plan)
    assert store.page().jobs == (found,)
    assert (claim.params, claim.input, claim.plan) == (job.params, job.input, job.plan)
    assert json.dumps(found.params) == json.dumps(claim.params) == json.dumps(HARD)  # 1 is not true, nor 1.0


def test_many_submissions_are_answered_in_their_order(store, make_job):
    # Given five submissions, of which one reuses a key and one names an unknown upload
    a, b, c, d, e = (make_job() for _ in range(5))
    submissions = [
        Submission(a, key="k", digest="1"),
        Submission(b, key="k", digest="2"),
        Submission(c, pins=("nowhere",)),
        Submission(d, key="k", digest="1"),
        Submission(e),
    ]
    # When they are added in one call
    answers = store.add(submissions)
    # Then each has its answer, and the refused ones wrote nothing
    assert [type(answer) for answer in answers] == [Accepted, KeyReused, UploadNotFound, Accepted, Accepted]
    assert (answers[3].job.id, answers[3].replayed, answers[3].rings) == (a.id, True, ())
    assert answers[2].fields["file"] == "nowhere"
    assert {job.id for job in store.page().jobs} == {a.id, e.id}
    assert store.add([]) == []


def test_an_add_that_is_repeated_answers_the_first_job(store, make_job):
    # Given a job that was accepted and has moved on
    job = make_job()
    put(store, job)
    take(store, part(job))
    # When the same submission comes again
    (again,) = store.add([Submission(job)])
    # Then it is a replay of the record as it stands, with nothing to ring and nothing written
    assert again == Accepted(store.get(job.id), replayed=True)
    assert again.job.status is Status.RUNNING
    assert events(store, job) == ["accepted", "running", "stage_started"]


def test_a_key_belongs_to_its_owner(store, make_job):
    # Given two owners with the same key
    ours, theirs = make_job(owner="local"), make_job(owner="other")
    # When both submit
    answers = store.add([Submission(ours, key="k", digest="1"), Submission(theirs, key="k", digest="2")])
    # Then neither sees the other
    assert [(answer.job.id, answer.replayed) for answer in answers] == [(ours.id, False), (theirs.id, False)]


def test_a_key_used_at_the_same_moment_makes_one_job(store, make_job):
    for n in range(10):
        # Given eight submissions with one key
        submissions = [Submission(make_job(), key=f"k{n}", digest="same") for _ in range(8)]
        # When they arrive together
        answers = at_once(*[lambda one=one: store.add([one])[0] for one in submissions])
        # Then one is accepted and the others are told of it
        assert sorted(answer.replayed for answer in answers) == [False] + [True] * 7
        assert len({answer.job.id for answer in answers}) == 1
    assert store.counts() == {("echo", Status.ACCEPTED): 10}


def test_a_hard_key_is_only_a_key(store, make_job):
    # Given keys that look like something else
    for key in ("a:b|c", "x" * 5_000, "*", "\x7f ü", "job:1"):
        first, second = make_job(), make_job()
        # When each is used twice
        put(store, first, key=key, digest="d")
        (again,) = store.add([Submission(second, key=key, digest="d")])
        # Then the second use is a replay
        assert (again.job.id, again.replayed) == (first.id, True)


def test_an_unknown_job_is_said_to_be_unknown(store):
    for ask in (store.get, store.dismiss, store.events, store.logs, store.artifacts):
        with pytest.raises(JobNotFound) as caught:
            ask("no-such-job")
        assert caught.value.fields["job_id"] == "no-such-job"
    with pytest.raises(JobNotFound):
        store.outputs("no-such-job", 0)
    with pytest.raises(JobNotFound):
        store.retry("no-such-job", "new")
    store.remove("no-such-job")
    store.log("no-such-job", [LogLine(0.0, "info", "x", "only", 0)])


@pytest.mark.parametrize("hard", ["\ud800", "a\u0000b", "", "*", "x" * 5_000, "ü/../|:"])
def test_an_id_that_nobody_gave_is_unknown_whatever_it_is_made_of(store, make_job, hard):
    # Given ids as a hostile client writes them
    for ask in (store.get, store.dismiss, store.events, store.logs, store.artifacts):
        with pytest.raises(JobNotFound):
            ask(hard)
    with pytest.raises(UploadNotFound):
        store.upload(hard)
    # When a job names one of them as its input
    (refused,) = store.add([Submission(make_job(), pins=(hard,))])
    # Then it is told which
    assert (type(refused), refused.fields) == (UploadNotFound, {"file": hard})
    assert store.claim(PartKey(hard, 0), "w", "t", 60) is None
    assert store.page().jobs == ()


def test_a_dismissed_job_stays_dismissed(store, make_job):
    # Given a running job with a held part
    job = put(store, make_job("a", "b"))
    take(store, part(job))
    # When it is dismissed twice
    first = store.dismiss(job.id)
    again = store.dismiss(job.id)
    # Then it is final, without an error, and the second time changed nothing
    assert (first.status, first.error) == (Status.DISMISSED, None)
    assert first.finished is not None
    assert again == first == store.get(job.id)
    assert events(store, job) == ["accepted", "running", "stage_started", "dismissed"]
    assert store.events(job.id)[-1].data == {}
    assert store.counts() == {("echo", Status.DISMISSED): 1}


def test_a_finished_job_cannot_be_dismissed(store, make_job):
    # Given a successful and a failed job
    good, bad = put(store, make_job()), put(store, make_job())
    run(store, part(good))
    break_job(store, bad)
    # When both are dismissed
    # Then both stay as they are
    for job in (good, bad):
        before = store.get(job.id)
        assert store.dismiss(job.id) == before == store.get(job.id)


def test_a_dismissed_job_leaves_every_list(store, store_url, make_job):
    # Given a job with a ready, a leased and a backing-off part
    job = put(store, make_job("a", "b*", window=4, deadline_s=500))
    source = emitter(store, job, [b"0", b"1", b"2", b"3", b"4"])
    held = take(store, part(job, 1, source.fence, 0))
    # When it is dismissed and much time passes
    store.dismiss(job.id)
    age(store_url, 10_000)
    # Then nothing of it is due, and no claim can be had
    assert (store.unrung(10), store.due(10), store.end_leases(10, 0), store.end_deadlines(10)) == ([], [], [], [])
    assert sum(store.rung_counts().values()) == 0
    assert store.claim(part(job, 1, source.fence, 1), "w", "t", 60) is None
    assert store.claim_more(held, "w", ["t1", "t2"], 60) == []
    assert status(store, job) is Status.DISMISSED


def test_a_job_is_removed_a_minute_after_it_finished_and_not_before(store, store_url, make_job):
    # Given a running job and a dismissed one, with a key and a log
    running = put(store, make_job())
    job = put(store, make_job(labels={"a": "b"}), key="k", digest="d")
    store.log(job.id, [LogLine(1.0, "info", "hello", "only", 0)])
    store.dismiss(job.id)
    # When it is removed at once
    store.remove(job.id)
    # Then it stays
    assert status(store, job) is Status.DISMISSED
    # When it is removed after a minute, twice
    age(store_url, 61)
    store.remove(running.id)
    store.remove(job.id)
    store.remove(job.id)
    # Then it is forgotten everywhere, and its folder is trash; the running job stays
    with pytest.raises(JobNotFound):
        store.get(job.id)
    with pytest.raises(JobNotFound):
        store.logs(job.id)
    assert [job.id for job in store.page().jobs] == [running.id]
    assert store.page(label=("a", "b")).jobs == ()
    assert store.counts() == {("echo", Status.ACCEPTED): 1}
    assert store.trash(10) == [f"jobs/{job.id}/"]
    # and its key is free again
    assert store.add([Submission(make_job(), key="k", digest="other")])[0].replayed is False


def test_the_files_of_a_family_go_with_its_last_member(store, store_url, make_job):
    # Given a failed job and its retry, both over
    job = put(store, make_job())
    break_job(store, job)
    store.retry(job.id, "second")
    store.dismiss("second")
    age(store_url, 61)
    # When the first is removed, then the second
    store.remove(job.id)
    assert store.trash(10) == []
    store.remove("second")
    # Then both folders are trash
    assert sorted(store.trash(10)) == sorted([f"jobs/{job.id}/", "jobs/second/"])


def test_a_log_keeps_its_last_lines(store, make_job):
    # Given a job that logs more than is kept
    job = put(store, make_job())
    lines = [LogLine(float(n), "info", f"line {n} \u0000\ud800 ü", "only", n, n % 3) for n in range(LOG_LINES + 50)]
    # When the lines come in several calls
    store.log(job.id, lines[:7])
    store.log(job.id, [])
    store.log(job.id, lines[7:600])
    store.log(job.id, lines[600:])
    # Then the newest are there, unchanged and in order
    kept = store.logs(job.id)
    assert kept[-LOG_LINES:] == lines[50:][-len(kept) :]
    assert len(kept) == LOG_LINES


def test_events_count_from_one_without_gaps_and_can_be_read_from_any(store, make_job):
    # Given a job that ran through
    job = put(store, make_job("a", "b*", "c"))
    source = emitter(store, job, [b"x", b"y"])
    for index in (1, 0):
        run(store, part(job, 1, source.fence, index))
    store.finish(source, b"", [artifact("list.txt")], emitted=2)
    run(store, part(job, 2), b"result")
    # When its events are read as a whole and in pages
    all_ = store.events(job.id)
    # Then the ids have no gap, times do not go back, and pages are slices
    assert [event.id for event in all_] == list(range(1, len(all_) + 1))
    assert [event.time for event in all_] == sorted(event.time for event in all_)
    assert store.events(job.id, after=3, limit=4) == all_[3:7]
    assert store.events(job.id, after=len(all_)) == []
    assert [event.type for event in all_] == [
        "accepted",
        "running",
        "stage_started",  # a
        "stage_started",  # b, while a still runs
        "progress",
        "progress",
        "artifact",
        "stage_finished",
        "stage_finished",
        "stage_started",
        "stage_finished",
        "successful",
    ]
    assert all_[6].data == {"stage": "a", "name": "list.txt", "bytes": 3, "type": "text/plain"}
    assert [e.data for e in all_ if e.type == "stage_finished"] == [
        {"stage": "a", "done": 1, "dead": 0, "total": 1},
        {"stage": "b", "done": 2, "dead": 0, "total": 2},
        {"stage": "c", "done": 1, "dead": 0, "total": 1},
    ]


def test_the_version_grows_with_every_change_and_only_then(store, make_job):
    # Given a job
    job = put(store, make_job("a", "b*", "c"))
    versions = [store.get(job.id).version]

    def grown() -> bool:
        versions.append(store.get(job.id).version)
        return versions[-1] > versions[-2]

    # When it is claimed, moves on, emits, finishes
    claim = take(store, part(job))
    assert grown()
    store.renew([claim], 60, {claim.token: 0.5})
    assert grown()
    store.emit(claim, 0, b"x")
    assert grown()
    # Then each change shows, and a beat or a repeated call does not
    store.renew([claim], 60, {claim.token: 0.5})
    store.emit(claim, 0, b"x")
    store.claim(claim.at, "worker", claim.token, 60)
    assert not grown()
    store.finish(claim, b"", emitted=1)
    assert grown()
    store.finish(claim, b"", emitted=1)
    assert not grown()


def test_an_upload_is_recorded_once(store):
    # Given an upload with a hard name
    first = store.add_upload(upload(), ttl_s=60)
    # When it is recorded again, otherwise
    again = store.add_upload(upload(bytes=99), ttl_s=600)
    # Then the first record stands
    assert again == first == store.upload("up-1")
    assert first.expires == pytest.approx(first.created + 60)
    with pytest.raises(UploadNotFound) as caught:
        store.upload("up-2")
    assert caught.value.fields["file"] == "up-2"


def test_an_upload_that_no_job_uses_expires(store, store_url):
    # Given an upload of a minute with a name in any script
    store.add_upload(upload("up-1", name="Ü \u0000.txt", type="text/plain"), ttl_s=60)
    # When less than a minute passes, nothing is forgotten
    age(store_url, 50)
    assert (store.expire(10), store.upload("up-1").id) == (0, "up-1")
    # When the rest has passed, it is forgotten once and its file is trash until it is deleted
    age(store_url, 20)
    assert (store.expire(10), store.expire(10)) == (1, 0)
    with pytest.raises(UploadNotFound):
        store.upload("up-1")
    assert store.trash(10) == ["uploads/up-1"]
    assert store.trash(10) == ["uploads/up-1"]
    store.trashed(["uploads/up-1"])
    store.trashed([])
    assert store.trash(10) == []


def test_a_pinned_upload_stays_as_long_as_a_job_pins_it(store, store_url, make_job):
    # Given an upload that two jobs use
    store.add_upload(upload(), ttl_s=60)
    one, two = put(store, make_job(), pins=("up-1",)), put(store, make_job(), pins=("up-1",))
    break_job(store, one)
    store.dismiss(two.id)
    # When its time is over and one of the jobs is removed
    age(store_url, 100)
    store.remove(one.id)
    # Then it stays; with the other one it goes
    assert (store.expire(10), store.upload("up-1").id) == (0, "up-1")
    store.remove(two.id)
    assert store.expire(10) == 1
    with pytest.raises(UploadNotFound):
        store.upload("up-1")
    # and a new job cannot pin it any more
    (refused,) = store.add([Submission(make_job(), pins=("up-1",))])
    assert isinstance(refused, UploadNotFound)


def test_a_retry_shares_the_pins(store, store_url, make_job):
    # Given a failed job with an upload, its retry, and the first one removed
    store.add_upload(upload(), ttl_s=60)
    job = put(store, make_job(), pins=("up-1",))
    break_job(store, job)
    store.retry(job.id, "second")
    age(store_url, 100)
    store.remove(job.id)
    # When the sweep comes by
    # Then the retry still holds it
    assert (store.expire(10), store.upload("up-1").id) == (0, "up-1")


def test_a_family_expires_together_after_its_last_member_finished(store, store_url, make_job):
    # Given a failed job with a finished retry, and a job that still runs
    job = put(store, make_job())
    break_job(store, job)
    age(store_url, 604_000)
    store.retry(job.id, "second")
    living = put(store, make_job())
    assert store.expire(10) == 0
    run(store, PartKey("second", 0))
    # When the first one's time is over but not the second's, nothing goes
    age(store_url, 604_000)
    assert (store.expire(10), len(store.page().jobs)) == (0, 3)
    # When the second one's is over too, both go, and their folders are trash
    age(store_url, 1_000)
    assert store.expire(10) == 2
    assert [job.id for job in store.page().jobs] == [living.id]
    assert sorted(store.trash(10)) == sorted([f"jobs/{job.id}/", "jobs/second/"])
    assert (store.expire(10), store.trash(1)) == (0, store.trash(10)[:1])


def test_an_error_is_kept_as_it_was(store, make_job):
    # Given an error with everything in its text
    job = put(store, make_job())
    error = JobError("bad-input", 'He said "no" \\ \u0000 \ud800 ü \n', "only", 0)
    # When the job fails of it
    store.fail(take(store, part(job)), Cause.BAD_INPUT, error)
    # Then the record, the output and both events have it
    found = store.get(job.id)
    assert (found.status, found.error) == (Status.FAILED, error)
    assert store.outputs(job.id, 0)[0].error == error
    failed = store.events(job.id)[-1]
    assert (failed.type, failed.data["code"], failed.data["detail"]) == ("failed", error.code, error.detail)


def test_the_first_stage_is_rung_under_its_own_name(store, make_job):
    accepted = store.add([Submission(make_job("x_1", pipeline="video_2", priority=0))])[0]
    assert [(ring.task, ring.queue, ring.priority) for ring in accepted.rings] == [("video_2.x_1", "x_1", 0)]
    assert keys(accepted.rings) == [part(accepted.job)]
