"""Three RabbitMQ nodes with quorum queues: any one of them may die under load."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from gristmill import Status
from tests.compose.conftest import built
from tests.compose.examples import STREET
from tests.compose.load import Load
from tests.compose.stack import RABBITMQ_LOGIN, Stack

QUEUES = ("preprocess", "inference", "postprocess", "io")
FILES = ("docker-compose.yml", "docker-compose.cluster.yml")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Stack]:
    """The stack over a cluster, up and empty."""
    with Stack("cluster", files=FILES) as one:
        one.down("-v")
        built(one)
        one.up(
            "api", "proxy", "sweeper", *(f"worker-{name}" for name in ("preprocess", "inference", "postprocess", "io"))
        )
        yield one


def test_every_queue_has_three_replicas(cluster: Stack) -> None:
    # Given a stack over three nodes
    nodes = cluster.get("RABBITMQ_UI_PORT", "/api/nodes", auth=RABBITMQ_LOGIN).json()
    assert sum(node["running"] for node in nodes) == 3
    with cluster.client() as client:
        # When a video has been through the stages, and two numbers through io
        video = client.submit("video", file=STREET, fps=2)
        assert client.submit("addition", x=40, y=2).wait(timeout=60).result == 42
        assert video.wait(timeout=240).status is Status.SUCCESSFUL
    # Then the queues of the stages are quorum queues on all three
    queues = cluster.get("RABBITMQ_UI_PORT", "/api/queues", auth=RABBITMQ_LOGIN).json()
    replicas = {queue["name"]: len(queue["members"]) for queue in queues if queue["type"] == "quorum"}
    assert {f"{queue}.quorum": 3 for queue in QUEUES}.items() <= replicas.items()


@pytest.mark.parametrize("node", ["rabbitmq-1", "rabbitmq-2", "rabbitmq-3"])
def test_killing_any_one_node_loses_nothing(cluster: Stack, node: str) -> None:
    # Given jobs under way
    with Load(cluster.url) as load:
        # When a node is killed, stays away for a while, and comes back
        cluster.kill(node)
        before = load.finished()
        time.sleep(6)
        after = load.finished()
        cluster.start(node)
    # Then jobs went on without it, and every job that was accepted is accounted for
    assert after > before
    assert load.account() > 0
