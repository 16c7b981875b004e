"""Every pipeline's example, through HTTP, in each kind of installation: it comes out as it is stored."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest

from bench.examples import PIPELINES, Street, differences, examples_of, unequal
from gristmill import Client
from tests.acceptance.conftest import GIVEN_URL, QUEUES
from tests.acceptance.installations import WithRabbitMQ
from tests.conftest import migrate
from tests.neighbours import Postgres, RabbitMQ

pytestmark = [pytest.mark.timeout(400)]


@pytest.fixture
def with_postgres(rabbitmq: RabbitMQ, postgres: Postgres, street: Street) -> Iterator[WithRabbitMQ]:
    """RabbitMQ between the processes, and records in Postgres."""
    connection = psycopg2.connect(postgres.url)
    connection.autocommit = True
    connection.cursor().execute("create database examples")
    connection.close()
    store_url = postgres.database_url("examples")
    migrate(store_url)
    with WithRabbitMQ(rabbitmq.vhost("examples"), store_url, **street.environment, QUEUES=QUEUES) as processes:
        yield processes
    rabbitmq.drop_vhost("examples")


INSTALLATIONS = (
    [] if GIVEN_URL else ["one_machine", "with_rabbitmq", "with_postgres"]
)  # a given one reaches no loopback


@pytest.mark.parametrize("installation", INSTALLATIONS)
def test_every_pipeline_s_example_comes_out_as_stored(installation, request, street, tmp_path):
    # Given an installation with workers for every queue
    url = request.getfixturevalue(installation).url
    examples = examples_of(PIPELINES)
    mails = len(street.mails)
    # When all examples are submitted at once, each under an address of its own where it is welcomed
    with Client(url) as client, ThreadPoolExecutor(len(examples)) as pool:
        for example in examples:
            if example.name == "onboarding":
                example.body["params"]["email"] = example.answer["result"]["mail"]["to"] = f"{installation}@example.org"
        found = dict(
            zip([e.name for e in examples], pool.map(lambda e: differences(e, client, street), examples), strict=True)
        )
    # Then each is as it is stored, and the welcome has arrived once
    assert found == {example.name: [] for example in examples}
    assert len(street.mails) == mails + 1


def test_what_differs_is_found_and_named():
    stored = {"a": 1, "b": [1, "x"], "c": {"d": 100.0}, "e": {"1": "y"}}
    assert list(unequal(stored, {"a": 1.01, "b": [1, "x"], "c": {"d": 101.0, "more": 1}, "e": ["x", "y"]})) == []
    different = {"a": True, "b": [1, "y", 2], "c": {"d": 103.0}, "e": ["y"]}
    assert list(unequal(stored, different)) == [
        "result/a is True, not 1",
        "result/b has 3 entries, not 2: [1, 'y', 2]",
        "result/b/1 is 'y', not 'x'",
        "result/c/d is 103.0, not 100.0",
        "result/e/1 is missing",
    ]
