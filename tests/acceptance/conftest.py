"""A whole installation, spoken to by HTTP only: the one at GRISTMILL_URL, else one-machine mode, and RabbitMQ's."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bench.examples import PIPELINES, Street
from gristmill import Client
from jobs.pipeline import Pipelines
from tests.acceptance.installations import OneMachine, WithRabbitMQ
from tests.neighbours import RabbitMQ

GIVEN_URL = os.environ.get("GRISTMILL_URL")
QUEUES = ",".join(Pipelines([PIPELINES]).queues)
INSTALLATIONS = ["given"] if GIVEN_URL else ["one_machine", "with_rabbitmq"]


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    """What the examples reach for, on loopback; every installation of these tests may."""
    with Street(tmp_path_factory.mktemp("street")) as street:
        yield street


@pytest.fixture(scope="session")
def one_machine(street: Street) -> Iterator[OneMachine]:
    """The one-machine mode, started once. A test that ends it starts one of its own."""
    with OneMachine(**street.environment) as machine:
        yield machine


@pytest.fixture(scope="session")
def with_rabbitmq(rabbitmq: RabbitMQ, street: Street) -> Iterator[WithRabbitMQ]:
    """Processes with RabbitMQ between them, started once."""
    with WithRabbitMQ(rabbitmq.vhost("acceptance"), **street.environment, QUEUES=QUEUES) as processes:
        yield processes
    rabbitmq.drop_vhost("acceptance")


@pytest.fixture(scope="session", params=INSTALLATIONS)
def url(request: pytest.FixtureRequest) -> str:
    """Where the gateway of each installation is."""
    return str(GIVEN_URL or request.getfixturevalue(request.param).url)


@pytest.fixture(scope="session")
def any_url(request: pytest.FixtureRequest) -> str:
    """Where one gateway is, for tests to which it is all the same what stands behind it."""
    return str(GIVEN_URL or request.getfixturevalue("one_machine").url)


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    """The Python client of each installation in turn."""
    with Client(url) as client:
        yield client
