"""Files that no record needs: uploads whose gateway died before their record, attempts that were not accepted.

A walk over all files, a little with every sweep. Names are listed first and records asked after, so that what is in
use is never taken for left over: an attempt that is neither held nor accepted now can never be again.

Each whole walk counts what it leaves: nobody else knows how much is stored on S3, and no list is made for that alone.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jobs import log
from jobs.errors import JobNotFound, UploadNotFound
from jobs.files import Files
from jobs.model import PartKey
from jobs.store import JobStore

UPLOADS, JOBS = "uploads", "jobs"
ATTEMPT = re.compile(r"jobs/([^/]+)/(\d+)/(\d+)\.(\d+)\.(\d+)/.+")  # as `part_folder` names them
OF_JOB = re.compile(r"jobs/([^/]+)/.+")

logger = log.get(__name__)


@dataclass(frozen=True)
class Walked:
    """What a whole walk found to be needed: files and bytes by folder. `at` is when it ended, in Unix seconds."""

    at: float
    files: Mapping[str, int]
    bytes: Mapping[str, int]


class Orphans:
    """One walk after the other; `step` goes on where the last one stopped. `walked` tells of the last whole one."""

    def __init__(self, store: JobStore, files: Files, older_than_s: float) -> None:
        self._store, self._files, self._older_than_s = store, files, older_than_s
        self._walk: Iterator[str | None] = self._names()
        self.walked: Walked | None = None

    def step(self, limit: int) -> int:
        """Look at `limit` files and delete what nobody needs; how many were deleted. At the end, begin anew."""
        deleted = 0
        for _ in range(limit):
            try:
                name = next(self._walk)
            except StopIteration:
                self._walk = self._names()
                break
            except BaseException:
                self._walk = iter(())  # a generator that broke has ended
                raise
            if name is not None:
                self._files.delete(name)
                logger.info("orphan_deleted", file=name)
                deleted += 1
        return deleted

    def _names(self) -> Iterator[str | None]:
        """For each file its name, if it is to be deleted."""
        files, sizes = {UPLOADS: 0, JOBS: 0}, {UPLOADS: 0, JOBS: 0}
        for folder, is_left in ((UPLOADS, self._is_lost_upload), (JOBS, self._is_left_over)):
            for one in self._files.listed(folder):
                if one.age_s > self._older_than_s and is_left(one.name):
                    yield one.name
                    continue
                files[folder] += 1
                sizes[folder] += one.bytes
                yield None
        self.walked = Walked(time.time(), files, sizes)

    def _is_lost_upload(self, name: str) -> bool:
        with contextlib.suppress(UploadNotFound):
            self._store.upload(name.removeprefix(f"{UPLOADS}/"))
            return False
        return True

    def _is_left_over(self, name: str) -> bool:
        """Of a job that is forgotten, or of an attempt that ended without being accepted."""
        of_job, attempt = OF_JOB.fullmatch(name), ATTEMPT.fullmatch(name)
        if of_job is None:
            return False
        try:
            needed = self._store.needed(of_job[1])
        except JobNotFound:
            return True
        if needed is None or attempt is None:
            return False
        job_id, stage, generation, index, fence = attempt.groups()
        return (PartKey(job_id, int(stage), int(generation), int(index)), int(fence)) not in needed
