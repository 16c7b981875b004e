"""What used up its attempts, and what no worker could take: `python -m jobs.dead` lists it, `--retry` sends it back.

The list of parts comes from the store. RabbitMQ also keeps the signatures that no worker could take; a Redis broker
keeps none.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jobs.brokers import DEAD_QUEUE, open_broker
from jobs.dispatch import open_bell
from jobs.errors import BrokerUnavailable, JobNotFailed, JobNotFound, JobsError
from jobs.model import DeadPart, Job, Status
from jobs.settings import Settings, load_or_exit
from jobs.store import JobStore, open_store

LISTED = 1_000
LOOKED = 20  # pages of waiting and running jobs that are looked through for stages without a worker
NOTHING, LEFT, NO_ANSWER = 0, 1, 3


@dataclass(frozen=True)
class Found:
    """Parts that died, by job; jobs with a stage that no worker knows; letters on the broker, None if it is away."""

    dead: tuple[DeadPart, ...]
    no_worker: tuple[Job, ...]
    letters: int | None

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "dead": [
                {
                    "job": one.at.job_id,
                    "pipeline": one.pipeline,
                    "status": one.status.value,
                    "stage": one.stage,
                    "index": one.at.index,
                    "code": one.error.code,
                    "detail": one.error.detail,
                    "time": _moment(one.time),
                }
                for one in self.dead
            ],
            "no_worker": [
                {"job": job.id, "pipeline": job.pipeline, "stage": stage.name, "letters": stage.no_worker}
                for job in self.no_worker
                for stage in job.stages
                if stage.no_worker
            ],
            "letters": self.letters,
        }


def find(store: JobStore, settings: Settings) -> Found:
    """Everything, but what was sent back already."""
    dead = tuple(one for one in store.dead(LISTED) if not _is_sent_back(store, one.at.job_id))
    return Found(dead, tuple(_without_worker(store)), _letters(settings))


def send_back(store: JobStore, settings: Settings, found: Found) -> dict[str, str]:
    """Retry every failed job of the list; by its id, the new job's. Asked twice, each runs once.

    Parts that no worker took are rung again by themselves; their letters are only evidence, and are dropped.
    """
    bell = open_bell(settings, store.rung)
    sent: dict[str, str] = {}
    try:
        for job_id in dict.fromkeys(one.at.job_id for one in found.dead if one.status is Status.FAILED):
            try:
                accepted = store.retry(job_id, retry_id(job_id))
            except (JobNotFound, JobNotFailed):
                continue  # removed meanwhile
            bell.ring(accepted.rings)
            sent[job_id] = accepted.job.id
    finally:
        bell.close()
    if found.letters:
        _drop_letters(settings)
    return sent


def retry_id(job_id: str) -> str:
    """The same for each `--retry` of a job, so that asking again does not run it again."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{job_id}/dead/retry"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit 0 when nothing is dead, or everything that can be was sent back; 1 when something is; 3 without a store."""
    parser = argparse.ArgumentParser(prog="gristmill dead", description=__doc__)
    parser.add_argument("--retry", action="store_true", help="run the failed jobs again, as new jobs")
    parser.add_argument("--json", action="store_true", help="write JSON to standard output")
    asked = parser.parse_args(arguments)
    settings = load_or_exit()
    store = open_store(settings.store_url, result_ttl_s=settings.result_ttl_s)
    try:
        found = find(store, settings)
        sent = send_back(store, settings, found) if asked.retry else {}
    except JobsError as error:
        print(f"gristmill dead: {error}", file=sys.stderr)
        return NO_ANSWER
    finally:
        store.close()
    if asked.json:
        print(json.dumps({**found.as_json(), "sent_back": sent}))
    else:
        print("\n".join(_lines(found, sent)))
    return LEFT if (found.dead or found.no_worker or found.letters) and not asked.retry else NOTHING


def _lines(found: Found, sent: dict[str, str]) -> list[str]:
    told = found.as_json()
    lines = [
        f"{one['job']}  {one['pipeline']}.{one['stage']}[{one['index']}]  {one['code']}  {one['time']}"
        + f"  job {one['status']}"
        + (f"  -> {sent[one['job']]}" if one["job"] in sent else "")
        for one in told["dead"]
    ]
    lines += [
        f"{one['job']}  {one['pipeline']}.{one['stage']}  no worker, asked {one['letters']} times"
        for one in told["no_worker"]
    ]
    letters = "unknown: the broker does not answer" if found.letters is None else str(found.letters)
    return [*(lines or ["Nothing is dead."]), f"Dead letters on the broker: {letters}."]


def _is_sent_back(store: JobStore, job_id: str) -> bool:
    try:
        store.get(retry_id(job_id))
    except JobNotFound:
        return False
    return True


def _without_worker(store: JobStore) -> list[Job]:
    """Jobs that wait for a worker that knows their stage; among the newest few thousand that are not final."""
    found: list[Job] = []
    for status in (Status.ACCEPTED, Status.RUNNING):
        cursor = None
        for _ in range(LOOKED):
            page = store.page(status=status, cursor=cursor, limit=200)
            found += [job for job in page.jobs if any(stage.status == "no worker" for stage in job.stages)]
            if (cursor := page.next) is None:
                break
    return found


def _letters(settings: Settings) -> int | None:
    broker = open_broker(settings.broker_url, settings.queue_type)
    try:
        return broker.depth(DEAD_QUEUE)
    except BrokerUnavailable:
        return None
    finally:
        broker.close()


def _drop_letters(settings: Settings) -> None:
    broker = open_broker(settings.broker_url, settings.queue_type)
    try:
        broker.purge(DEAD_QUEUE)
    except BrokerUnavailable as error:
        print(f"gristmill dead: the letters stay: {error}", file=sys.stderr)
    finally:
        broker.close()


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main())
