"""Many workers, clients and sweepers on the same few jobs in Postgres: nothing deadlocks, nothing is counted twice."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

import psycopg2
import pytest

from jobs.errors import ClaimLost, JobNotFailed, JobNotFound, StoreUnavailable
from jobs.model import Artifact, Cause, Claim, Job, JobError, LogLine, Ring, StagePlan, Status, Submission
from jobs.store import JobStore, open_store

LASTS_S = 6.0
JOBS = 3
STAGES = ("prepare", "infer*", "join")


@dataclass
class Crowd:
    """What the threads share: the rings they were given, and what went wrong."""

    store: JobStore
    ids: list[str] = field(default_factory=list)
    rings: list[Ring] = field(default_factory=list)
    wrong: list[BaseException] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    until: float = field(default_factory=lambda: time.monotonic() + LASTS_S)

    def loop(self, act: Callable[[random.Random], object], seed: int) -> threading.Thread:
        """A thread that acts until the time is over. Being told no is part of the game; being told nothing is not."""
        chance = random.Random(seed)

        def run() -> None:
            while time.monotonic() < self.until and not self.wrong:
                try:
                    act(chance)
                except (ClaimLost, JobNotFound, JobNotFailed):
                    continue
                except BaseException as error:  # noqa: BLE001 - the test's own thread shows it
                    self.wrong.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def work(self, chance: random.Random) -> None:
        """Claim something, and end it in one of the ways that there are."""
        if not self.rings:
            time.sleep(0.005)
            return
        at = chance.choice(self.rings[-30:]).at
        claim = self.store.claim(at, "w", f"token-{next(self.numbers)}", chance.choice((0.02, 5.0)))
        if claim is None:
            return
        if claim.at.stage == 0:
            self._prepare(claim, chance)
        else:
            more = self.store.claim_more(claim, "w", [f"token-{next(self.numbers)}"], 5.0)
            for one in (claim, *more):
                self._end(one, chance)

    def _prepare(self, claim: Claim, chance: random.Random) -> None:
        emitted = 0
        for index in range(chance.randint(0, 6)):
            answer = self.store.emit(claim, index, b"=1", [f"jobs/{claim.at.job_id}/{index}"])
            if answer.full:
                break
            self.rings += answer.rings
            emitted += 1
        self.store.renew([claim], 5.0, {claim.token: chance.random()})
        self._end(claim, chance, emitted)

    def _end(self, claim: Claim, chance: random.Random, emitted: int | None = None) -> None:
        self.store.log(claim.at.job_id, [LogLine(0.0, "info", "x", claim.stage.name, 0)] * 3)
        if chance.random() < 0.25:
            error = JobError("stage-broke", "x", claim.stage.name, claim.at.index)
            cause = chance.choice((Cause.FAILURE, Cause.LOSS, Cause.GIVEN_BACK))
            self.rings += self.store.fail(claim, cause, error, chance.choice((0.0, 0.01))).rings
        elif chance.random() < 0.9:  # else the worker is lost with its claim
            kept = [Artifact(f"{claim.at.index}.txt", "f", 1, "0", "text/plain")]
            self.rings += self.store.finish(claim, b"=2", kept, emitted).rings

    def sweep(self, chance: random.Random) -> None:
        """What a sweeper does every second, without a pause."""
        store = self.store
        self.rings += store.due(50)
        for ended in store.end_leases(50, 0.0, 0.0):
            self.rings += ended.rings
        store.end_deadlines(50)
        due = store.unrung(50)
        store.rung([*due, *self.rings[-10:]])
        for queue in store.rung_counts():
            self.rings += store.missing(queue, 0, 50) + store.overdue(queue, 50)
        store.expire(50)
        store.trashed(store.trash(50))

    def client(self, chance: random.Random) -> None:
        """Dismiss and retry jobs, and accept new ones for those that are final."""
        place = chance.randrange(len(self.ids))
        job = self.store.get(self.ids[place])
        if not job.status.is_final and chance.random() < 0.05:
            job = self.store.dismiss(job.id)
        if job.status.is_final:
            self.done[job.id] = job.version
            new_id = f"job-{next(self.numbers)}"
            if job.status is Status.FAILED:
                self.rings += self.store.retry(job.id, new_id).rings
            else:
                self.add(new_id)
            self.ids[place] = new_id
        self.store.page(limit=10)
        time.sleep(0.005)

    def add(self, job_id: str) -> None:
        """Accept a job."""
        stages = tuple(StagePlan(name.rstrip("*"), name.rstrip("*"), name.endswith("*")) for name in STAGES)
        job = crowd_job(job_id, stages)
        (accepted,) = self.store.add([Submission(job, key=job_id)])
        self.rings += accepted.rings  # type: ignore[union-attr]


def crowd_job(job_id: str, stages: tuple[StagePlan, ...]) -> Job:
    from jobs.model import Plan

    return Job(id=job_id, pipeline="crowd", plan=Plan(stages, window=2), params={}, labels={"a": "b"}, deadline_s=3.0)


@pytest.fixture
def crowd(postgres_url: str) -> Crowd:
    """A store with some jobs to fight over."""
    return Crowd(open_store(postgres_url, result_ttl_s=1.0))


def test_a_crowd_on_the_same_jobs_never_deadlocks_and_its_counters_agree(crowd: Crowd, postgres_url: str) -> None:
    # Given a few jobs, eight workers, two clients and two sweepers
    crowd.ids = [f"first-{n}" for n in range(JOBS)]
    for job_id in crowd.ids:
        crowd.add(job_id)
    acts = [crowd.work] * 8 + [crowd.client] * 2 + [crowd.sweep] * 2
    # When all of them act at once
    threads = [crowd.loop(act, seed) for seed, act in enumerate(acts)]
    for thread in threads:
        thread.join()
    # Then every call was answered
    assert crowd.wrong == []
    assert len(crowd.done) > JOBS
    with closing(psycopg2.connect(postgres_url)) as link, link.cursor() as cursor:
        cursor.execute("select deadlocks from pg_stat_database where datname = current_database()")
        assert cursor.fetchone() == (0,)
        # And what the records count is what there is
        cursor.execute("select id from jobs")
        for (job_id,) in cursor.fetchall():
            _counters_agree(crowd.store, cursor, job_id)
    crowd.store.close()


def _counters_agree(store: JobStore, cursor: psycopg2.extensions.cursor, job_id: str) -> None:
    job = store.get(job_id)
    events = store.events(job_id)
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert [event.time for event in events] == sorted(event.time for event in events)
    assert [event.type for event in events].count(job.status.value) == 1
    finals = [event.type for event in events if event.type in {s.value for s in Status if s.is_final}]
    assert finals == ([job.status.value] if job.status.is_final else [])
    cursor.execute(
        "select stage, count(*) filter (where state = 'done'), count(*) filter (where state = 'dead'), count(*),"
        " count(*) filter (where state in ('unrung', 'rung', 'later', 'leased')) from parts where job_id = %s"
        " group by stage",
        [job_id],
    )
    for stage, done, dead, total, inside in cursor.fetchall():
        state = job.stages[stage]
        assert (state.done, state.dead, state.total) == (done, dead, total), (job_id, stage)
        assert inside <= job.plan.window
        assert state.generation in {0, *range(1, 10_000)}


def test_a_batch_whose_keys_another_batch_takes_in_another_order_is_answered(
    postgres_url: str, make_job: Callable[..., Job]
) -> None:
    # Given batches that share keys and job ids, in orders of their own
    with closing(open_store(postgres_url)) as store:
        orders = [random.Random(seed).sample(range(20), 20) for seed in range(8)]
        answers: list[list[str]] = []

        def submit(order: list[int]) -> None:
            for start in range(0, 20, 5):
                some = [Submission(make_job("only"), key=f"key-{n}", digest="1") for n in order[start : start + 5]]
                try:
                    answers.append([one.job.id for one in store.add(some)])  # type: ignore[union-attr]
                except StoreUnavailable as error:
                    answers.append([repr(error)])

        # When they come at once
        threads = [threading.Thread(target=submit, args=[order]) for order in orders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # Then there are twenty jobs, and everybody was told one of them
        assert len({job_id for some in answers for job_id in some}) == 20
        assert len(store.page(limit=50).jobs) == 20
