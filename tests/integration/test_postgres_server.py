"""What is Postgres's own: its schema, its connections, its timeouts, what it writes for a heartbeat."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from jobs.errors import JobNotFound, StoreRefused, StoreUnavailable, UploadNotFound
from jobs.migrate import migrate
from jobs.model import Cause, Change, Job, JobError, LogLine, PartKey, Standing, Status, Submission, Upload
from jobs.store import open_store
from jobs.stores import postgres_work as work
from jobs.stores.postgres import PostgresStore
from jobs.stores.postgres_engine import driver_url
from jobs.stores.postgres_schema import tables
from tests.ageing import age
from tests.neighbours import Postgres, free_port

ROOT = Path(__file__).resolve().parents[2]
NewJob = Callable[..., Job]


@pytest.fixture
def store(postgres_url: str) -> Iterator[PostgresStore]:
    """An empty store in Postgres."""
    with opened(postgres_url) as store:
        yield store


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """A server that a test may kill."""
    with Postgres("fsync=off") as server:
        migrate(server.url)
        yield server


@contextmanager
def opened(url: str) -> Iterator[PostgresStore]:
    with closing(open_store(url)) as store:
        assert isinstance(store, PostgresStore)
        yield store


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def sql(url: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(url)) as link:
        link.autocommit = True
        cursor = link.cursor()
        cursor.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def empty_database(server: Postgres, name: str) -> str:
    sql(server.url, f"drop database if exists {name} with (force)")
    sql(server.url, f"create database {name}")
    return server.database_url(name)


def run_migrate(**environment: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if name not in ("STORE_URL", "BROKER_URL", "FILES_URL")}
    command = [sys.executable, "-m", "jobs.migrate"]
    return subprocess.run(
        command, cwd=ROOT, env={**known, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


# -- the schema -----------------------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_that_the_store_knows(postgres: Postgres) -> None:
    # Given one database that was migrated, and one made from the tables as the store knows them
    migrated, direct = empty_database(postgres, "by_migration"), empty_database(postgres, "by_tables")
    migrate(migrated)
    tables.create_all(create_engine(driver_url(direct)))
    # When both are looked at
    indexes = "select indexname, indexdef from pg_indexes where indexname !~ 'alembic' order by 1"
    columns = (
        "select table_name, column_name, data_type, is_nullable from information_schema.columns"
        " where table_schema = 'public' and table_name !~ 'alembic' order by 1, 2"
    )
    with create_engine(driver_url(migrated)).connect() as link:
        differences = compare_metadata(MigrationContext.configure(link), tables)
    # Then they are the same
    assert differences == []
    assert sql(migrated, indexes) == sql(direct, indexes)
    assert sql(migrated, columns) == sql(direct, columns)


def test_no_index_holds_the_end_of_a_lease(postgres_url: str) -> None:
    assert sql(postgres_url, "select indexdef from pg_indexes where indexdef ~ 'lease_until'") == []


def test_two_migrators_at_once_and_one_after_them_all_succeed(postgres: Postgres) -> None:
    url = empty_database(postgres, "migrated_twice")
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _: run_migrate(STORE_URL=url), range(2)))
    again = run_migrate(STORE_URL=url)
    assert [one.returncode for one in (*both, again)] == [0, 0, 0], [one.stderr for one in both]


def test_migrating_needs_nothing_for_redis_and_says_what_is_wrong() -> None:
    assert run_migrate(STORE_URL="redis://127.0.0.1:1/0").returncode == 0
    nowhere = run_migrate(STORE_URL=f"postgresql://postgres@127.0.0.1:{free_port()}/postgres")
    assert (nowhere.returncode, "Traceback" in nowhere.stderr) == (1, False)
    wrong = run_migrate(STORE_URL="mysql://x")
    assert (wrong.returncode, "STORE_URL" in wrong.stderr) == (2, True)


@pytest.mark.parametrize("damage", ["drop table alembic_version", "update alembic_version set version_num = '0000'"])
def test_a_missing_or_old_schema_is_refused_with_the_command_that_brings_it(postgres_url: str, damage: str) -> None:
    sql(postgres_url, damage)
    with opened(postgres_url) as store, pytest.raises(StoreRefused, match=r"python -m jobs\.migrate"):
        store.get("some-job")


def test_a_newer_schema_is_worked_with_so_that_versions_may_change_in_any_order(postgres: Postgres) -> None:
    # Given a database that a newer version has migrated
    url = empty_database(postgres, "newer")
    assert run_migrate(STORE_URL=url).returncode == 0
    sql(url, "update alembic_version set version_num = '9999'")
    # When this version's migration runs, and then its processes, then both find what they need
    again = run_migrate(STORE_URL=url)
    assert (again.returncode, again.stdout) == (0, "The schema is newer than this version, which works with it.\n")
    with opened(url) as store, pytest.raises(JobNotFound):
        store.get("some-job")


# -- connections ----------------------------------------------------------------------------------------------


def test_a_connection_keeps_every_acknowledged_write_whatever_the_database_prefers(postgres_url: str) -> None:
    # Given a database whose own default gives durability up
    name = postgres_url.rpartition("/")[2]
    sql(postgres_url, f"alter database {name} set synchronous_commit = off")
    sql(postgres_url, f"alter database {name} set default_transaction_isolation = 'serializable'")
    # When the store connects
    with opened(postgres_url) as fresh:
        shown = [
            fresh._db.write(lambda link, name=name: link.scalar(text(f"show {name}")))
            for name in ("synchronous_commit", "transaction_isolation", "statement_timeout")
        ]
    # Then its sessions do not
    assert shown == ["on", "read committed", "2500ms"]


def test_a_server_that_is_away_is_told_within_three_seconds() -> None:
    with opened(f"postgresql://postgres@127.0.0.1:{free_port()}/postgres") as store:
        with within(3), pytest.raises(StoreUnavailable) as caught:
            store.ping()
        assert caught.value.__cause__ is not None


def test_a_host_that_accepts_and_never_answers_is_told_within_three_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"postgresql://postgres@127.0.0.1:{deaf.getsockname()[1]}/postgres"
        with opened(url) as store, within(3), pytest.raises(StoreUnavailable):
            store.ping()


def test_a_server_that_freezes_is_told_within_three_seconds_and_used_again_once_it_thaws(own_server: Postgres) -> None:
    with opened(own_server.url) as store:
        # Given a store with an open connection
        store.ping()
        # When every process of the server stops, though its host still acknowledges
        assert own_server.process is not None
        backends = [pid for (pid,) in sql(own_server.url, "select pid from pg_stat_activity where pid is not null")]
        backends.insert(0, own_server.process.pid)
        for pid in backends:
            signal_if_alive(pid, signal.SIGSTOP)
        try:
            # Then each call fails in time
            for call in (store.ping, lambda: store.get("some-job"), lambda: store.end_deadlines(10)):
                with within(3), pytest.raises(StoreUnavailable):
                    call()
        finally:
            for pid in backends:
                signal_if_alive(pid, signal.SIGCONT)
        # And when it goes on, so does the store
        store.ping()


def signal_if_alive(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def test_connections_that_were_lost_are_renewed_without_an_error(postgres_url: str, store: PostgresStore) -> None:
    # Given some connections in the pool
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: store.ping(), range(8)))
    # When the server ends them all
    sql(
        postgres_url,
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()",
    )
    # Then nobody is told
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: store.ping(), range(8)))


def test_a_killed_server_loses_no_accepted_job(make_job: NewJob) -> None:
    with Postgres() as server:  # with its disk synced
        migrate(server.url)
        with opened(server.url) as store:
            # Given jobs that were accepted just before a power cut
            accepted = [store.add([Submission(make_job("only"))])[0] for _ in range(20)]
            server.kill()
            with within(3), pytest.raises(StoreUnavailable):
                store.ping()
            # When the server is back
            server.start()
            # Then each is there
            assert [store.get(one.job.id) for one in accepted] == [one.job for one in accepted]  # type: ignore[union-attr]


def test_a_lock_that_somebody_keeps_is_told_within_three_seconds(
    postgres_url: str, store: PostgresStore, make_job: NewJob
) -> None:
    # Given a job whose row another session holds
    job = make_job("only")
    store.add([Submission(job)])
    claim = store.claim(PartKey(job.id, 0), "w", "t", 15)
    assert claim is not None
    with closing(psycopg2.connect(postgres_url)) as other:
        other.cursor().execute("select 1 from jobs for update")
        # When its part is finished, then the call fails in time
        with within(3), pytest.raises(StoreUnavailable):
            store.finish(claim, b"=1")
        # And heartbeats, rings and the sweep do not wait for it
        with within(1):
            assert store.renew([claim], 15) == [Standing.HELD]
            assert (store.unrung(10), store.end_leases(10, 0), store.end_deadlines(10)) == ([], [], [])
            store.get(job.id)


def test_heartbeats_and_rings_pass_over_a_part_that_somebody_holds(
    postgres_url: str, store: PostgresStore, make_job: NewJob
) -> None:
    # Given two jobs, one with its part leased and one with its ring unconfirmed, whose parts another session holds
    leased, ready = make_job("only"), make_job("only")
    answers = store.add([Submission(leased), Submission(ready)])
    claim = store.claim(PartKey(leased.id, 0), "w", "t", 0.01)
    assert claim is not None
    age(postgres_url, 10)
    with closing(psycopg2.connect(postgres_url)) as other:
        other.cursor().execute("select 1 from parts for update")
        # When heartbeats and rings come along, then none waits: waiting for several is how deadlocks begin
        with within(1.5):
            assert store.renew([claim], 15) == [Standing.HELD]
            assert (store.unrung(10), store.due(10), store.overdue("only", 10)) == ([], [], [])
            store.rung(answers[1].rings)  # type: ignore[union-attr]
            assert store.rung_counts() == {}
    # And once it is free, it has its turn
    assert [ring.at for ring in store.unrung(10)] == [PartKey(ready.id, 0)]


def test_an_emitter_in_a_tight_loop_does_not_starve_its_own_heartbeat(
    postgres_url: str, store: PostgresStore, make_job: NewJob
) -> None:
    # Given an emit that has not committed yet
    job = make_job("cut", "infer*")
    store.add([Submission(job)])
    claim = store.claim(PartKey(job.id, 0), "w", "t", 15)
    assert claim is not None
    with store._db._engine.connect() as link:
        work.emit(link, claim, 0, b"=1", [])
        # When the lease is renewed meanwhile
        store.renew([claim], 500)
        link.commit()
    # Then it is longer
    again = store.claim(claim.at, "w", "t", 15)
    assert again is not None
    assert again.lease_until > claim.lease_until + 400


def test_a_client_that_freezes_in_mid_transaction_frees_its_lock(store: PostgresStore, make_job: NewJob) -> None:
    job = make_job("only")
    store.add([Submission(job)])
    with suppress(DBAPIError), store._db._engine.connect() as frozen:
        frozen.execute(text("select 1 from jobs for update"))
        until = time.monotonic() + 10
        while store.get(job.id).status is not Status.DISMISSED:
            assert time.monotonic() < until
            try:
                store.dismiss(job.id)
            except StoreUnavailable:
                continue


def test_a_forked_child_speaks_on_connections_of_its_own(store: PostgresStore, make_job: NewJob) -> None:
    # Given a store that its process has used before it forks, as Celery does
    store.add([Submission(make_job("only", id="before"))])
    child = os.fork()
    if child == 0:
        ok = all(store.get("before").id == "before" for _ in range(50))
        os._exit(0 if ok else 1)
    # When parent and child use it at the same time
    for _ in range(50):
        assert store.get("before").id == "before"
    # Then neither disturbs the other
    assert os.waitpid(child, 0)[1] == 0
    store.ping()


def test_watching_goes_on_after_the_server_was_killed(own_server: Postgres, make_job: NewJob) -> None:
    with opened(own_server.url) as store:
        job = make_job("only")
        store.add([Submission(job)])
        heard = store.watch(0.2)
        assert next(heard) is None
        # When the server is killed and comes back
        own_server.kill()
        assert next(heard) is None
        own_server.start()
        until = time.monotonic() + 10
        while time.monotonic() < until:
            found = next(heard)
            if found is None and store.get(job.id).status is Status.ACCEPTED:
                store.dismiss(job.id)
            if found is not None:
                break
        # Then a change is heard again, and the connection goes with the iterator
        assert found == Change(job.id, is_final=True)
        heard.close()  # type: ignore[attr-defined]
        query = "select count(*) from pg_stat_activity where query like 'LISTEN%%'"
        while sql(own_server.url, query)[0][0]:
            assert time.monotonic() < until


# -- what is written ------------------------------------------------------------------------------------------


def test_a_lease_that_was_renewed_after_the_sweep_read_it_is_left_alone(store: PostgresStore, make_job: NewJob) -> None:
    # Given a part whose lease is good again by the time the sweep comes to it
    job = make_job("only")
    store.add([Submission(job)])
    claim = store.claim(PartKey(job.id, 0), "w", "t", 15)
    assert claim is not None
    # When the sweep comes, then it counts no loss
    assert store._db.write(lambda link: work.lose(link, claim.at, 0.0)) is None
    assert store.renew([claim], 15) == [Standing.HELD]


def test_a_heartbeat_touches_no_index(postgres_url: str, store: PostgresStore, make_job: NewJob) -> None:
    # Given a part that is leased
    job = make_job("only")
    store.add([Submission(job)])
    claim = store.claim(PartKey(job.id, 0), "w", "t", 15)
    assert claim is not None

    def updates() -> tuple[int, int]:
        query = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'parts'"
        return sql(postgres_url, query)[0]  # type: ignore[return-value]

    store._db.write(lambda link: link.execute(text("select pg_stat_force_next_flush()")))
    before = updates()
    # When its lease is renewed twenty times
    for _ in range(20):
        store.renew([claim], 15)
    store._db.write(lambda link: link.execute(text("select pg_stat_force_next_flush()")))
    after = updates()
    # Then every one of these writes stayed on its page
    assert (after[0] - before[0], after[1] - before[1]) == (20, 20)


def test_no_lease_is_ended_while_the_server_has_just_come_up(own_server: Postgres, make_job: NewJob) -> None:
    with opened(own_server.url) as store:
        job = make_job("only")
        store.add([Submission(job)])
        store.claim(PartKey(job.id, 0), "w", "t", 0.01)
        time.sleep(0.05)
        assert store.end_leases(10, grace_s=3_600) == []
        assert [one.status for one in store.end_leases(10, grace_s=0)] == [Status.RUNNING]


def test_text_that_a_column_refuses_is_kept_or_not_found(store: PostgresStore, make_job: NewJob) -> None:
    # Given NUL and lone surrogates wherever a client or a stage may put them
    odd = "a\0b\ud800c"
    job = make_job("only", params={"text": odd}, input={"text": odd}, labels={odd: odd})
    store.add([Submission(job, key=odd, digest="1")])
    claim = store.claim(PartKey(job.id, 0), odd, odd, 15)
    assert claim is not None
    store.log(job.id, [LogLine(1.0, "info", odd, "only", 0)])
    upload = store.add_upload(Upload(id=odd, file="uploads/x", bytes=1, sha256="0", type=odd, name=odd), 60)
    store.fail(claim, Cause.BAD_INPUT, JobError("bad-input", odd, "only", 0))
    # When they are read, then they are what they were
    found = store.get(job.id)
    assert (found.params["text"], found.input["text"], found.labels[odd]) == (odd, odd, odd)
    assert found.error == JobError("bad-input", odd, "only", 0)
    assert store.logs(job.id)[0].text == odd
    assert store.upload(odd) == upload
    assert [one.id for one in store.page(label=(odd, odd)).jobs] == [job.id]
    assert store.add([Submission(make_job("only"), key=odd, digest="1")])[0].replayed  # type: ignore[union-attr]
    # And an id of that kind which nobody gave is not found
    for ask in (store.get, store.dismiss, store.events):
        with pytest.raises(JobNotFound):
            ask("x\0y\udfff")
    with pytest.raises(UploadNotFound):
        store.upload("x\0y")
    assert store.page(pipeline="x\0").jobs == ()
