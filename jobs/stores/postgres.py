"""Records in Postgres: each method is one transaction, READ COMMITTED, on connections that answer or fail in time.

The steps stand beside this file: postgres_clients (what is accepted, retried, forgotten), postgres_pages (what is
read), postgres_work (what workers do), postgres_sweep (rings and the sweep), all on postgres_held (a job whose row is
locked).
"""

from __future__ import annotations

import contextlib
import select as waiting
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, replace
from typing import Any

import psycopg2
from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert as upsert

from jobs.errors import JobNotFound, JobsError, StoreUnavailable, TooManyParts, TooManyWaiting, UploadNotFound
from jobs.model import (
    MAX_PARTS,
    Accepted,
    Artifact,
    Cause,
    Change,
    Claim,
    DeadPart,
    Emitted,
    Ended,
    Event,
    Job,
    JobError,
    LogLine,
    Output,
    Page,
    PartKey,
    Place,
    Presence,
    Pressure,
    Ring,
    Standing,
    Status,
    Submission,
    Upload,
)
from jobs.stores import postgres_clients as clients
from jobs.stores import postgres_lines as lines
from jobs.stores import postgres_looks as looks
from jobs.stores import postgres_pages as pages
from jobs.stores import postgres_sweep as sweep
from jobs.stores import postgres_work as work
from jobs.stores.postgres_engine import Connections
from jobs.stores.postgres_held import CHANNEL, CLOCK, hold
from jobs.stores.postgres_schema import (
    DEAD,
    DONE,
    artifacts,
    events,
    log_lines,
    parts,
    trash,
    uploads,
)

TRIES = 5  # of a batch whose keys another batch takes at the same moment
COUNTED_S = 0.5  # for so long a count of waiting jobs is good
BATCH = 500  # confirmed rings in one transaction


class PostgresStore:
    """JobStore in Postgres. Raises StoreRefused when `python -m jobs.migrate` has not been run for this version."""

    def __init__(self, url: str, *, result_ttl_s: float, without: Set[str] = frozenset()) -> None:
        self._db = Connections(url, without)
        self._ttl_s = result_ttl_s
        self._waiting = (0, -COUNTED_S)  # jobs that wait, and when they were counted

    # -- a client's side ------------------------------------------------------------------------------------

    def add(self, submissions: Sequence[Submission], *, most_waiting: int | None = None) -> list[Accepted | JobsError]:
        room = None if most_waiting is None else max(0, most_waiting - self._count_waiting(most_waiting))
        for _ in range(TRIES):
            with contextlib.suppress(clients.KeyTaken):
                answers = self._db.write(lambda link: clients.add(link, submissions, room))
                new = sum(isinstance(one, Accepted) and not one.replayed for one in answers)
                waiting, at = self._waiting
                self._waiting = (waiting + new, at)
                for one in answers:
                    if isinstance(one, TooManyWaiting):
                        one.fields["waiting"] = waiting
                return answers
        raise StoreUnavailable("Too many submissions use the same keys at once.")

    def _count_waiting(self, most: int) -> int:
        """As of less than COUNTED_S ago, and with what was added here since: counting 100,000 takes some ms."""
        waiting, at = self._waiting
        if time.monotonic() - at > COUNTED_S:
            waiting = self._db.read(lambda link: lines.waiting(link, most))
            self._waiting = (waiting, time.monotonic())
        return waiting

    def get(self, job_id: str) -> Job:
        found = self._db.read(lambda link: pages.by_ids(link, [job_id]))
        if not found:
            raise JobNotFound(job_id=job_id)
        return found[0]

    def page(
        self,
        *,
        status: Status | None = None,
        pipeline: str | None = None,
        label: tuple[str, str] | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        return self._db.read(lambda link: pages.page(link, status, pipeline, label, cursor, limit))

    def place(self, job_id: str) -> Place | None:
        return self._db.read(lambda link: lines.place(link, job_id, link.scalar(select(CLOCK)) or 0.0))

    def pressure(self) -> Pressure:
        return self._db.read(lambda link: lines.pressure(link, link.scalar(select(CLOCK)) or 0.0))

    def dismiss(self, job_id: str) -> Job:
        def step(link: Any) -> None:
            held = hold(link, job_id)
            if held is None:
                raise JobNotFound(job_id=job_id)
            if not held.status.is_final:
                held.end(Status.DISMISSED)
                held.save()

        self._db.write(step)
        return self.get(job_id)

    def remove(self, job_id: str) -> None:
        self._db.write(lambda link: clients.remove(link, job_id))

    def retry(self, job_id: str, new_id: str) -> Accepted:
        return self._db.write(lambda link: clients.retry(link, job_id, new_id))

    def events(self, job_id: str, after: int = 0, limit: int = 1_000) -> list[Event]:
        some = select(events).where(events.c.job_id == job_id, events.c.id > after).order_by(events.c.id).limit(limit)
        found = self._of_job(job_id, some)
        return [Event(row["id"], row["time"], row["type"], row["data"]) for row in found]

    def logs(self, job_id: str) -> list[LogLine]:
        some = select(log_lines.c.line).where(log_lines.c.job_id == job_id).order_by(log_lines.c.number)
        return [LogLine.of(row["line"]) for row in self._of_job(job_id, some)]

    def outputs(self, job_id: str, stage: int) -> list[Output]:
        left = select(parts.c.index, parts.c.output, parts.c.error).order_by(parts.c.index)
        left = left.where(parts.c.job_id == job_id, parts.c.stage == stage, parts.c.state.in_([DONE, DEAD]))
        return [
            Output(
                row["index"],
                None if row["output"] is None else bytes(row["output"]),
                None if row["error"] is None else JobError(**row["error"]),
            )
            for row in self._of_job(job_id, left)
        ]

    def artifacts(self, job_id: str) -> list[Artifact]:
        kept = select(artifacts.c.artifact).where(artifacts.c.job_id == job_id)
        found = self._of_job(job_id, kept.order_by(artifacts.c.stage, artifacts.c.number))
        by_name = {row["artifact"]["name"]: Artifact(**row["artifact"]) for row in found}
        return sorted(by_name.values(), key=lambda one: one.name)

    def _of_job(self, job_id: str, some: Any) -> Sequence[Any]:
        """Rows that belong to a job. Raises JobNotFound; only asked when there are none."""

        def step(link: Any) -> Sequence[Any]:
            found: Sequence[Any] = link.execute(some).mappings().all()
            if not found:
                pages.check(link, job_id)
            return found

        return self._db.read(step)

    # -- uploads --------------------------------------------------------------------------------------------

    def add_upload(self, upload: Upload, ttl_s: float) -> Upload:
        told = {name: value for name, value in asdict(upload).items() if name not in ("created", "expires")}
        put = upsert(uploads).values(id=upload.id, created=CLOCK, expires=CLOCK + ttl_s, upload=told)
        self._db.write(lambda link: link.execute(put.on_conflict_do_nothing()))
        return self.upload(upload.id)

    def upload(self, upload_id: str) -> Upload:
        some = select(uploads).where(uploads.c.id == upload_id)
        row = self._db.read(lambda link: link.execute(some).mappings().one_or_none())
        if row is None:
            raise UploadNotFound(file=upload_id)
        return replace(Upload(**row["upload"]), created=row["created"], expires=row["expires"])

    # -- a worker's side ------------------------------------------------------------------------------------

    def claim(self, at: PartKey, worker: str, token: str, lease_s: float, device: str = "") -> Claim | None:
        return self._db.write(lambda link: work.claim(link, at, worker, token, lease_s, device))

    def claim_more(
        self, like: Claim, worker: str, tokens: Sequence[str], lease_s: float, device: str = ""
    ) -> list[Claim]:
        taken = self._db.read(lambda link: work.taken_by(link, tokens))
        # A repeated command: what these tokens took the first time, in the same order.
        asked = [(token, taken[token]) for token in tokens if token in taken]
        if not asked:
            ready = self._db.read(lambda link: work.ready_like(link, like, 2 * len(tokens)))
            asked = list(zip(tokens, ready, strict=False))
        claims: list[Claim] = []
        for token, at in asked:
            found = self.claim(at, worker, token, lease_s, device)
            if found is not None:
                claims.append(found)
        return claims

    def renew(self, claims: Sequence[Claim], lease_s: float, progress: Mapping[str, float] = {}) -> list[Standing]:
        if not claims:
            return []
        standings = self._db.write(lambda link: work.renew(link, claims, lease_s))
        for claim, standing in zip(claims, standings, strict=True):
            fraction = progress.get(claim.token)
            if standing is Standing.HELD and fraction is not None:
                self._db.write(lambda link, one=claim, told=fraction: work.progress(link, one, told))  # type: ignore[misc]
        return standings

    def emit(self, claim: Claim, index: int, payload: bytes, files: Sequence[str] = ()) -> Emitted:
        following = claim.at.stage + 1
        if following >= len(claim.plan.stages) or not claim.plan.stages[following].each:
            raise ValueError(f"Nothing behind {claim.stage.name} takes what it emits.")
        if not 0 <= index < MAX_PARTS:
            raise TooManyParts(most=MAX_PARTS)
        return self._db.write(lambda link: work.emit(link, claim, index, payload, files))

    def finish(
        self, claim: Claim, output: bytes, artifacts: Sequence[Artifact] = (), emitted: int | None = None
    ) -> Ended:
        return self._db.write(lambda link: work.finish(link, claim, output, artifacts, emitted))

    def fail(self, claim: Claim, cause: Cause, error: JobError, delay_s: float = 0.0) -> Ended:
        return self._db.write(lambda link: work.fail(link, claim, cause, error, delay_s))

    def log(self, job_id: str, lines: Sequence[LogLine]) -> None:
        if lines:
            self._db.write(lambda link: work.log(link, job_id, lines))

    # -- rings ----------------------------------------------------------------------------------------------

    def rung(self, keys: Sequence[Ring]) -> None:
        for start in range(0, len(keys), BATCH):
            some = keys[start : start + BATCH]
            self._db.write(lambda link, some=some: sweep.rung(link, some))  # type: ignore[misc]

    def unrung(self, limit: int) -> list[Ring]:
        return self._db.write(lambda link: sweep.unrung(link, limit))

    def rung_counts(self) -> dict[str, int]:
        return self._db.read(sweep.rung_counts)

    def missing(self, queue: str, messages: int, limit: int) -> list[Ring]:
        return self._db.write(lambda link: sweep.missing(link, queue, messages, limit))

    def overdue(self, queue: str, limit: int) -> list[Ring]:
        return self._db.write(lambda link: sweep.overdue(link, queue, limit))

    def strand(self, keys: Sequence[PartKey]) -> None:
        for at in keys:
            self._db.write(lambda link, at=at: work.strand(link, at))  # type: ignore[misc]

    # -- the sweep --------------------------------------------------------------------------------------------

    def release(self) -> list[Ring]:
        held = self._db.read(lines.lines_held)
        return self._db.write(lambda link: lines.release(link, held, link.scalar(select(CLOCK)) or 0.0)) if held else []

    def due(self, limit: int) -> list[Ring]:
        return self._db.write(lambda link: sweep.due(link, limit))

    def end_leases(self, limit: int, grace_s: float, delay_s: float = 0.0) -> list[Ended]:
        over = self._db.read(lambda link: sweep.leases_over(link, limit, grace_s))
        ended = [self._db.write(lambda link, at=at: work.lose(link, at, delay_s)) for at in over]  # type: ignore[misc]
        return [one for one in ended if one is not None]

    def end_deadlines(self, limit: int) -> list[str]:
        over = self._db.read(lambda link: sweep.deadlines_over(link, limit))
        return [one for one in over if self._db.write(lambda link, one=one: sweep.end_deadline(link, one))]  # type: ignore[misc]

    def expire(self, limit: int) -> int:
        old = self._db.read(lambda link: clients.expired(link, self._ttl_s, limit))
        gone = [self._db.write(lambda link, one=one: clients.expire(link, one, self._ttl_s)) for one in old]  # type: ignore[misc]
        return sum(gone) + self._db.write(lambda link: clients.expire_uploads(link, limit))

    def trash(self, limit: int) -> list[str]:
        oldest = select(trash.c.name).order_by(trash.c.since, trash.c.name).limit(limit)
        return self._db.read(lambda link: list(link.scalars(oldest)))

    def trashed(self, names: Sequence[str]) -> None:
        gone = trash.delete().where(trash.c.name.in_(names))
        self._db.write(lambda link: link.execute(gone))

    def needed(self, job_id: str) -> frozenset[tuple[PartKey, int]] | None:
        return self._db.read(lambda link: looks.needed(link, job_id))

    # -- looking ----------------------------------------------------------------------------------------------

    def dead(self, limit: int) -> list[DeadPart]:
        return self._db.read(lambda link: looks.dead(link, limit))

    def longest_waits(self) -> dict[str, float]:
        return self._db.read(looks.longest_waits)

    def now(self) -> float:
        return self._db.read(lambda link: link.scalar(select(CLOCK)) or 0.0)

    # -- watching ---------------------------------------------------------------------------------------------

    def watch(self, timeout_s: float = 1.0) -> Iterator[Change | None]:
        while True:
            try:
                with contextlib.closing(self._db.listen(CHANNEL)) as link:
                    yield from _heard(link, timeout_s)
            except (StoreUnavailable, psycopg2.Error, OSError):
                yield None
                time.sleep(timeout_s)

    def announce(self, worker: Presence, ttl_s: float) -> None:
        self._db.write(lambda link: looks.announce(link, worker, ttl_s))

    def workers(self) -> list[Presence]:
        return self._db.read(looks.present)

    def counts(self) -> dict[tuple[str, Status], int]:
        return self._db.read(sweep.counts)

    def ping(self) -> None:
        self._db.read(lambda link: link.execute(text("SELECT 1")))

    def close(self) -> None:
        self._db.close()


def _heard(link: Any, timeout_s: float) -> Iterator[Change | None]:
    """Changes as they are notified, and None whenever there were none for `timeout_s`."""
    while True:
        readable, _, _ = waiting.select([link], [], [], timeout_s)
        if not readable:
            yield None
            continue
        link.poll()
        while link.notifies:
            told = link.notifies.pop(0).payload
            yield Change(told[1:], is_final=told[0] == "!")
