"""Files that no record needs go; a file in use never does."""

from __future__ import annotations

import os
import time

import pytest

from jobs.errors import FilesUnavailable
from jobs.files import open_files, part_folder
from jobs.model import Artifact, Upload
from jobs.orphans import Orphans
from tests.ageing import age
from tests.store_steps import break_part, emitter, part, put, run, take

OLD_S = 3_600.0


@pytest.fixture
def files(tmp_path):
    return open_files(f"file://{tmp_path}/files")


@pytest.fixture
def keep(files, tmp_path):
    """A factory of files that were written two hours ago; the name."""

    def kept(name, age_s=2 * OLD_S):
        files.put(name, b"bytes")
        then = time.time() - age_s
        os.utime(tmp_path / "files" / name, (then, then))
        return name

    return kept


def collect(store, files):
    """One whole walk, in small steps; what is left."""
    orphans = Orphans(store, files, OLD_S)
    for _ in range(50):
        orphans.step(3)
    return [name for folder in ("uploads", "jobs") for name in sorted(one.name for one in files.listed(folder))]


def attempt(claim, name="kept.txt"):
    """A file that an attempt kept."""
    return part_folder(claim.at, claim.fence) + name


def test_an_upload_whose_gateway_died_before_its_record_goes_and_one_with_a_record_stays(store, files, keep):
    # Given uploads with a record, without one, and without one yet
    put_down = keep("uploads/known")
    store.add_upload(Upload("known", put_down, 5, "ab" * 32, "text/plain"), 60.0)
    keep("uploads/lost")
    coming = keep("uploads/coming", age_s=10)
    # When the orphans are looked for
    # Then only the old one without a record goes
    assert collect(store, files) == sorted([put_down, coming])


def test_a_whole_walk_counts_what_it_leaves(store, files, keep, tmp_path):
    # Given two uploads with a record, one whose gateway died, and files of jobs, one of them new
    for name in ("one", "two"):
        store.add_upload(Upload(name, keep(f"uploads/{name}"), 5, "ab" * 32, "text/plain"), 60.0)
    keep("uploads/lost")
    keep("jobs/gone/0/0.0.1/kept.txt")
    files.put("jobs/here/0/0.0.1/kept.txt", b"x" * 100)
    # When a walk is not over yet, then it has counted nothing
    orphans = Orphans(store, files, OLD_S)
    orphans.step(4)
    assert orphans.walked is None
    # When it is, then it tells what there is left
    began = time.time()
    orphans.step(4)
    walked = orphans.walked
    assert (walked.files, walked.bytes) == ({"uploads": 2, "jobs": 1}, {"uploads": 10, "jobs": 100})
    assert began <= walked.at <= time.time()
    # And a walk that breaks changes nothing of that; the next whole one does
    files.put("uploads/three", b"new")
    orphans.step(1)
    (tmp_path / "files" / "jobs").rename(tmp_path / "files" / "aside")
    (tmp_path / "files" / "jobs").symlink_to("jobs")
    with pytest.raises(FilesUnavailable):
        orphans.step(50)
    assert orphans.walked is walked
    (tmp_path / "files" / "jobs").unlink()
    (tmp_path / "files" / "aside").rename(tmp_path / "files" / "jobs")
    for _ in range(2):
        orphans.step(50)
    assert orphans.walked.bytes == {"uploads": 13, "jobs": 100}


def test_files_of_stale_attempts_go_and_those_of_living_and_accepted_ones_stay(store, store_url, files, keep, make_job):
    # Given an emitter whose first attempt was lost, with payloads of both generations
    job = put(store, make_job("cut", "look*", "join"))
    lost = emitter(store, job, [b"0"])
    stale = [keep(attempt(lost)), keep(attempt(lost, "_/0.frames"))]
    age(store_url, 100)
    store.end_leases(10, 0.0)
    emitting = emitter(store, job, [b"0", b"1"])
    needed = [keep(attempt(emitting)), keep(attempt(emitting, "_/1.frames"))]
    # And a part that was done at the second try, and one under way at the second
    for index in (0, 1):
        first = take(store, part(job, 1, emitting.fence, index))
        stale.append(keep(attempt(first)))
        age(store_url, 100)
        store.renew([emitting], 60.0)
        store.end_leases(10, 0.0)
    done, held = (take(store, part(job, 1, emitting.fence, index)) for index in (0, 1))
    store.finish(done, b"", [Artifact("kept.txt", attempt(done), 5, "ab" * 32, "text/plain")])
    needed += [keep(attempt(done)), keep(attempt(held))]
    # And what is no attempt's, and what is new
    needed += [keep(f"jobs/{job.id}/input"), keep(attempt(lost, "new"), age_s=10)]
    # When the orphans are looked for
    left = collect(store, files)
    # Then the stale attempts' files are gone, and nothing else
    assert left == sorted(needed)
    assert stale
    # And once the job is dismissed, those that were under way are left over too
    store.dismiss(job.id)
    for name in (attempt(held), attempt(emitting), attempt(emitting, "_/1.frames")):
        needed.remove(name)
    assert collect(store, files) == sorted(needed)


def test_files_of_a_forgotten_job_go_unless_a_relative_adopted_them(store, store_url, files, keep, make_job):
    # Given a failed job whose first stage a retry adopted, and one whose store forgot it
    job = put(store, make_job("one", "two"))
    claim = take(store, part(job))
    adopted = keep(attempt(claim))
    store.finish(claim, b"")
    break_part(store, part(job, 1))
    store.retry(job.id, "again")
    keep("jobs/restored-from-before/0/0.0.1/kept.txt")
    # When the first is removed
    age(store_url, 100)
    store.remove(job.id)
    # Then its files stay as long as the other one lives
    assert collect(store, files) == [adopted]
    run(store, part(store.get("again"), 1))
    assert collect(store, files) == [adopted]
    age(store_url, 100)
    store.remove("again")
    assert collect(store, files) == []
