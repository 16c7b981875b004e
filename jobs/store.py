"""Where job records live: the protocol both stores keep. The record, not the broker, is the truth.

Each method is one atomic step in the store, unless it says otherwise. Time is the store's clock. Every transition
may be repeated: a repeated `add`, `claim`, `emit`, `finish` or `fail` with the same id or token returns the first
answer, because the clients of both stores repeat a command after a lost reply.

How parts move::

    blocked --(its stage's turn)--> ready --claim--> leased --finish--> done
                                      ^                 |--fail------> ready again, or dead over its limit
                                      '--(lease over)---'

An `each` stage has one part per emitted payload; its parts' generation is the fence of the claim that emitted them.
A new claim on the emitter voids every older generation: its claims, finishes, fails and emits are refused. A stage
is *closed* when its number of parts is known; the next stage becomes ready when it is closed and none remains.
At most `plan.window` parts of one `each` stage are rung, leased or backing off; further ones wait in index order.
A ready part inside the window is either *unrung* (nobody confirmed its ring yet) or *rung*.

An accepted job stands in a line: of the queue of its first stage, or of its pipeline if that has a `rate` or a
`concurrency`. Those of such a pipeline are held back, none of their parts ready, until it has room: fewer than
`concurrency` of its jobs let in and not final, and fewer than `rate` that began in the last minute or are about to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Protocol
from urllib.parse import urlsplit

from jobs.errors import JobsError, StoreRefused
from jobs.model import (
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

RING_UNCONFIRMED_S = 2.0  # a ring without a confirm is owed again after this
RING_FALLBACK_S = 60.0  # a confirmed ring nobody answered is repeated after this, doubling ...
RING_FALLBACK_MAX_S = 3600.0  # ... up to this
BACK_OFF_MAX_S = 300.0  # no part waits longer for its next attempt
NO_WORKER_S = (2.0, 60.0)  # before a part that no worker could take is rung again: the first, doubling up to the second
RUNG_COUNTED = 20_000  # rung parts of one queue that are counted at least
LINE_STARTS = 1_000  # starts of a line that are remembered ...
LINE_S = 300.0  # ... for so long
LINE_LEAST_S = 10.0  # and spread over this at least, unless there were that many
LOG_LINES = 1_000  # of one job; older lines fall out
FINAL_REMOVABLE_S = 60.0  # a job finished for longer is removed, not dismissed, by DELETE


class JobStore(Protocol):
    """See the module's text. Every method raises StoreUnavailable when the store does not answer."""

    # -- a client's side ------------------------------------------------------------------------------------

    def add(self, submissions: Sequence[Submission], *, most_waiting: int | None = None) -> list[Accepted | JobsError]:
        """Write each job with its first part, its pins and its key, and the event `accepted`; in order.

        One atomic step a submission, one round trip for all. A known key with the same digest answers the first job
        (`replayed`); with another digest, KeyReused. A pin without an upload: UploadNotFound (field `file`). While
        `most_waiting` jobs or more are accepted and not begun: TooManyWaiting (field `waiting`; a store may count up
        to a second late). These are returned in the list, not raised, and write nothing. A job id that exists already
        is a replay. The rings may be those of other jobs of a limited pipeline, whose turn it is.
        """
        ...

    def get(self, job_id: str) -> Job:
        """The record. Raises JobNotFound."""
        ...

    def page(
        self,
        *,
        status: Status | None = None,
        pipeline: str | None = None,
        label: tuple[str, str] | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        """Jobs, newest first by (created, id). Filters combine. Raises CursorInvalid.

        A page may hold fewer than `limit` jobs and still name a next one, so that its cost is bounded.
        """
        ...

    def place(self, job_id: str) -> Place | None:
        """Where an accepted job stands in its line; None once it has begun. Raises JobNotFound.

        By priority, then by age. A line's starts a second are those of its last 1,000 starts within five minutes,
        spread over ten seconds at least; 0 when there were none. Cheap with 100,000 jobs waiting.
        """
        ...

    def pressure(self) -> Pressure:
        """How many jobs are accepted and not begun, and the sum of what all lines start a second."""
        ...

    def dismiss(self, job_id: str) -> Job:
        """End a job that is not final: status, error none, event `dismissed`. A final job stays as it is.

        Raises JobNotFound.
        """
        ...

    def remove(self, job_id: str) -> None:
        """Forget a final job that finished over FINAL_REMOVABLE_S ago; otherwise do nothing.

        Its pins go with it. The files of a family go to the trash with its last member. No job of that id: nothing.
        """
        ...

    def retry(self, job_id: str, new_id: str) -> Accepted:
        """A new job of the same family that adopts the parts already done, with their outputs and artifacts.

        Emitted parts that were not done run again from their payloads if the emitter finished; otherwise the emitter
        runs again. `retry_of` is `job_id`, the deadline counts anew, the pins are shared, the counters of failures
        start at 0. Repeated with the same `new_id`: the same job. Raises JobNotFound, JobNotFailed.
        """
        ...

    def events(self, job_id: str, after: int = 0, limit: int = 1_000) -> list[Event]:
        """Events with an id above `after`, oldest first. Raises JobNotFound."""
        ...

    def logs(self, job_id: str) -> list[LogLine]:
        """The last LOG_LINES lines, oldest first. Raises JobNotFound."""
        ...

    def outputs(self, job_id: str, stage: int) -> list[Output]:
        """What the done and dead parts of a stage's living generation left, in index order. Raises JobNotFound."""
        ...

    def artifacts(self, job_id: str) -> list[Artifact]:
        """What the accepted finishes kept, by name. The later of two with one name stands. Raises JobNotFound."""
        ...

    # -- uploads --------------------------------------------------------------------------------------------

    def add_upload(self, upload: Upload, ttl_s: float) -> Upload:
        """Write the record of a stored file; it expires unless a job pins it. Repeated: the first record."""
        ...

    def upload(self, upload_id: str) -> Upload:
        """Raises UploadNotFound."""
        ...

    # -- a worker's side ------------------------------------------------------------------------------------

    def claim(self, at: PartKey, worker: str, token: str, lease_s: float, device: str = "") -> Claim | None:
        """Take a part: it is ready, its generation is the living one, its job neither final nor past its deadline.

        Then: leased, fence + 1, the stage's `waited_s` grows. The job's first claim makes it `running` (event), a
        stage's first claim writes `stage_started`. A claim on an emitter voids the generations it emitted before.
        None: nothing to claim (backing off, finished, leased elsewhere, void, blocked, unknown). A part whose lease
        is over is not taken here: `end_leases` makes it ready again, so that a loss is counted in one place.
        The same token again, while it holds the part: the same claim.
        """
        ...

    def claim_more(
        self, like: Claim, worker: str, tokens: Sequence[str], lease_s: float, device: str = ""
    ) -> list[Claim]:
        """Claim up to `len(tokens)` further ready parts of the same pipeline and stage, of any job, oldest first.

        Only those that have neither failed nor been lost: what breaks its worker must not take others with it.
        """
        ...

    def renew(self, claims: Sequence[Claim], lease_s: float, progress: Mapping[str, float] = {}) -> list[Standing]:
        """Lengthen leases to now + `lease_s`, one answer a claim; `progress` maps tokens to 0..1 of a one-part stage.

        A progress that moved is kept in the record, and is an event `progress`. Not one atomic step, but one round
        trip. A lease that ran out but was not ended yet is renewed.
        """
        ...

    def emit(self, claim: Claim, index: int, payload: bytes, files: Sequence[str] = ()) -> Emitted:
        """Make part `index` of the next stage ready, under the claim's fence as generation.

        `files` (names in Files) go to the trash once the part is done. An index twice is one part. Raises ClaimLost,
        TooManyParts. Must not be called for a stage whose next is not `each`.
        """
        ...

    def finish(
        self, claim: Claim, output: bytes, artifacts: Sequence[Artifact] = (), emitted: int | None = None
    ) -> Ended:
        """Record a part's output, move the counters, open what comes next, all in one step. Raises ClaimLost.

        An emitter states how many parts it `emitted`, and so closes the next stage; another number than the store
        has fails the job with `emit-mismatch`. A finished part of an `each` stage writes `progress` (stage, index,
        generation, fence, done, total); a stage's last one `stage_finished`; each artifact `artifact`; the last
        stage's last part the final status. An `each` stage that ends with fewer done than `min_success` x total fails
        the job with the error of its latest dead part.
        """
        ...

    def fail(self, claim: Claim, cause: Cause, error: JobError, delay_s: float = 0.0) -> Ended:
        """End an attempt. Raises ClaimLost. Event `attempt_failed` (stage, index, cause, code, detail, fence).

        BAD_INPUT ends the part at once. Otherwise the counter of the cause moves; at its limit (`max_failures` of
        FAILURE, `max_losses` of LOSS) the part is dead, else it is ready again, unrung, after `delay_s`; GIVEN_BACK
        has no limit. A dead part fails the job with `error`, unless its stage is `each` with a `min_success` that can
        still be met: under 1.0, that is judged when the stage is closed and none remains.
        """
        ...

    def log(self, job_id: str, lines: Sequence[LogLine]) -> None:
        """Append to the job's capped log. An unknown job: nothing."""
        ...

    # -- rings ----------------------------------------------------------------------------------------------

    def rung(self, keys: Sequence[Ring]) -> None:
        """The broker confirmed these: unrung becomes rung, and owed again after RING_FALLBACK_S x 2^n.

        Not atomic over all; one round trip. Parts that are not ready any more are passed over.
        """
        ...

    def unrung(self, limit: int) -> list[Ring]:
        """Ready parts whose ring nobody confirmed in RING_UNCONFIRMED_S, oldest first; each is owed again 2 s on."""
        ...

    def rung_counts(self) -> dict[str, int]:
        """By queue: how many rung parts are ready. Queues with none may be missing.

        It is asked each second, so a store that must count stops at RUNG_COUNTED of a queue: while so many messages
        wait there, nobody needs to know whether more are missing.
        """
        ...

    def missing(self, queue: str, messages: int, limit: int) -> list[Ring]:
        """Rings by deficit: the `rung - messages` rung parts of a queue whose next ring is due soonest.

        They count as rung anew. At most one call a second and queue gets any, however many sweepers there are; at
        most `limit` of them.
        """
        ...

    def overdue(self, queue: str, limit: int) -> list[Ring]:
        """The fallback: rung parts whose doubling interval is over, oldest first. They count as rung anew."""
        ...

    def strand(self, keys: Sequence[PartKey]) -> None:
        """No worker could take the signatures of these ready parts: each backs off, longer each time.

        From the first to the second of NO_WORKER_S; the stage's `no_worker` grows, and is 0 again with its next claim.
        Not atomic over all; one round trip. Parts that are not ready are passed over.
        """
        ...

    # -- the sweep --------------------------------------------------------------------------------------------

    def release(self) -> list[Ring]:
        """Let jobs that were held back begin, as far as their pipelines have room. A job's end does the same."""
        ...

    def due(self, limit: int) -> list[Ring]:
        """Parts whose back-off is over become unrung; returned so that they are rung at once."""
        ...

    def end_leases(self, limit: int, grace_s: float, delay_s: float = 0.0) -> list[Ended]:
        """Count a loss (`worker-lost`) for each lease that ran out, as `fail` would; each tells the attempt it was of.

        After its first loss a part does not wait: the lease was its pause. After the next ones it waits for 1, 3, 7 ...
        times `delay_s`, at most BACK_OFF_MAX_S. Nothing happens while the store itself has been up for less than
        `grace_s`: who holds a lease could not renew it.
        """
        ...

    def end_deadlines(self, limit: int) -> list[str]:
        """Fail the jobs whose deadline has passed with `deadline-passed`; their ids."""
        ...

    def expire(self, limit: int) -> int:
        """Forget families whose last member finished over `result_ttl_s` ago, and unpinned uploads past their time.

        Their files go to the trash: the folder `jobs/<id>/` of each job, the file of each upload. Returns how many
        were forgotten.
        """
        ...

    def trash(self, limit: int) -> list[str]:
        """Names in Files (a trailing slash: a whole folder) that no record needs any more. They stay listed."""
        ...

    def trashed(self, names: Sequence[str]) -> None:
        """These are deleted: take them off the list."""
        ...

    def needed(self, job_id: str) -> Set[tuple[PartKey, int]] | None:
        """Whose files below `jobs/<id>/` are needed: parts done or leased, with their fences; None: all of it.

        None is a removed job whose relatives live. Raises JobNotFound: no record needs any of it.
        """
        ...

    # -- looking ----------------------------------------------------------------------------------------------

    def dead(self, limit: int) -> list[DeadPart]:
        """Parts that used up their attempts, latest first."""
        ...

    def longest_waits(self) -> dict[str, float]:
        """By task: how many seconds the part that has been ready for longest waits.

        Every task that has a ready part is told, at a cost that grows with their number and not with the backlog.
        """
        ...

    def now(self) -> float:
        """The store's clock, in Unix seconds."""
        ...

    # -- watching ---------------------------------------------------------------------------------------------

    def watch(self, timeout_s: float = 1.0) -> Iterator[Change | None]:
        """Jobs that changed, as they change; None at least every `timeout_s`.

        A hint, not a promise: a change may be missed while the connection is renewed, so readers look for themselves
        now and then. Closing the iterator frees its connection.
        """
        ...

    def announce(self, worker: Presence, ttl_s: float) -> None:
        """A worker is there, until it says so again or `ttl_s` is over; 0: it leaves."""
        ...

    def workers(self) -> list[Presence]:
        """The workers that are there, by name."""
        ...

    def counts(self) -> dict[tuple[str, Status], int]:
        """Jobs by pipeline and status, for the gauges."""
        ...

    def ping(self) -> None:
        """Raises StoreUnavailable within 3 s."""
        ...

    def close(self) -> None:
        """Give back every connection."""
        ...


def open_store(url: str, *, result_ttl_s: float = 604_800.0, without: Set[str] = frozenset()) -> JobStore:
    """The store behind a URL: redis://, rediss:// or postgresql://. Its driver is imported only now.

    `without` names protections that the fault battery leaves out. Connecting is left to the first call. Raises
    StoreRefused for another scheme, or a store of a refused kind.
    """
    scheme = urlsplit(url).scheme
    if scheme in ("redis", "rediss"):
        from jobs.stores.redis import RedisStore

        redis: JobStore = RedisStore(url, result_ttl_s=result_ttl_s, without=without)
        return redis
    if scheme in ("postgresql", "postgresql+psycopg2"):
        from jobs.stores.postgres import PostgresStore

        postgres: JobStore = PostgresStore(url, result_ttl_s=result_ttl_s, without=without)
        return postgres
    raise StoreRefused(f"No store is known for {scheme}://.", scheme=scheme)
