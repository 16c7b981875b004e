"""What tests share: real servers, started once and only when asked for, and a clean store for each test."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis
from hypothesis import HealthCheck, settings

from jobs.model import Job, Plan, StagePlan
from jobs.store import JobStore, open_store
from tests.neighbours import Postgres, RabbitMQ, Valkey, any_rabbitmq

ROOT = Path(__file__).resolve().parent.parent

_slow_is_fine = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    report_multiple_bugs=False,
    print_blob=True,
    suppress_health_check=_slow_is_fine,
)
settings.register_profile(
    "soak", deadline=None, print_blob=True, max_examples=2_000, suppress_health_check=_slow_is_fine
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is long begins first, so that on two cores nothing waits for it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """One Valkey for all tests. A test that kills its server starts one of its own: `with Valkey() as valkey`."""
    with Valkey() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One Postgres for all tests, with a migrated database `template_gristmill`. Its disk need not survive a crash."""
    with Postgres("fsync=off", "full_page_writes=off") as server:
        _sql(server, "create database template_gristmill")
        migrate(server.database_url("template_gristmill"))
        yield server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """One RabbitMQ for all tests."""
    with any_rabbitmq() as server:
        yield server


@pytest.fixture
def redis_url(valkey: Valkey) -> str:
    """An empty Redis with AOF `always`. Database 0 is this URL; /1 and on are empty too."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return valkey.url


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """A migrated, empty database of the test's own."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    _sql(postgres, f"create database {name} template template_gristmill")
    yield postgres.database_url(name)
    _sql(postgres, f"drop database {name} with (force)")


@pytest.fixture
def rabbitmq_url(rabbitmq: RabbitMQ) -> Iterator[str]:
    """An empty virtual host of the test's own."""
    name = f"test-{os.getpid()}-{next(_numbers)}"
    yield rabbitmq.vhost(name)
    rabbitmq.drop_vhost(name)


@pytest.fixture(params=["redis", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store, of each kind in turn."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def store(store_url: str) -> Iterator[JobStore]:
    """An empty store, of each kind in turn."""
    store = open_store(store_url)
    yield store
    store.close()


@pytest.fixture
def make_job() -> Callable[..., Job]:
    """A factory: `make_job("prepare", "infer*", "join", window=2, params={...})`; a star marks an `each` stage."""
    return new_job


def new_job(*stages: str | StagePlan, pipeline: str = "echo", id: str | None = None, **fields: Any) -> Job:
    """A job that is not in any store yet: each word a stage on the queue of its name, `word*` one that is `each`."""
    plans = tuple(
        stage if isinstance(stage, StagePlan) else StagePlan(stage.rstrip("*"), stage.rstrip("*"), stage.endswith("*"))
        for stage in stages or ("only",)
    )
    names = ("window", "max_failures", "max_losses", "rate", "concurrency")
    limits = {name: fields.pop(name) for name in names if name in fields}
    id_ = id or f"job-{next(_numbers):06}"
    return Job(id=id_, family=id_, pipeline=pipeline, plan=Plan(plans, **limits), **{"params": {}, **fields})


def migrate(url: str) -> None:
    """Bring a database to the newest schema, as an operator would."""
    command = [sys.executable, "-m", "jobs.migrate"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "STORE_URL": url}, check=True, timeout=60)


def _sql(server: Postgres, statement: str) -> None:
    connection = psycopg2.connect(server.url)
    try:
        connection.autocommit = True
        connection.cursor().execute(statement)
    finally:
        connection.close()
