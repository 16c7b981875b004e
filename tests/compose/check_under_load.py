"""The stack with each combination of servers, with jobs under way: what dies, scales or is replaced loses nothing."""

from __future__ import annotations

import json
import time

import pytest

from gristmill import Status
from tests.compose.conftest import OUR_IMAGES
from tests.compose.examples import STREET
from tests.compose.load import Load
from tests.compose.stack import Stack, docker


def test_a_crash_of_any_of_ours_loses_nothing(stack: Stack) -> None:
    workers = [name for name in stack.services() if name.startswith("worker-")]
    with stack.client() as client:
        # Given jobs under way, a video among them
        video = client.submit("video", file=STREET, fps=5)
        with Load(stack.url) as load:
            # When everything in a container dies at once: in the sweeper's, in the gateway's, in all of the workers'
            for services in (["sweeper"], ["api"], workers):
                for service in services:
                    stack.crash(service)
                # Then Docker starts it again
                time.sleep(3)
        # And every job that was accepted is accounted for
        assert load.account() > 0
        assert video.wait(timeout=240).status is Status.SUCCESSFUL
    stack.wait_until_healthy("sweeper", "api", *workers)


def test_a_killed_server_loses_nothing(stack: Stack) -> None:
    # Given jobs under way
    with Load(stack.url) as load:
        # When the broker is killed and comes back a little later, and then the store
        for service in stack.servers.split("-"):
            stack.kill(service)
            time.sleep(3)
            stack.start(service)
    # Then every job that was accepted is accounted for
    assert load.account() > 0


def test_workers_scale_up_and_down(stack: Stack) -> None:
    # Given jobs under way
    with Load(stack.url) as load:
        # When there are three workers, and one again
        stack.up("--no-recreate", "--scale", "worker-io=3", "--scale", "worker-inference=3")
        counts = [len(stack.containers(name)) for name in ("worker-io", "worker-inference")]
        stack.up("--no-recreate")
        counts += [len(stack.containers(name)) for name in ("worker-io", "worker-inference")]
    # Then nothing was lost
    assert counts == [3, 3, 1, 1]
    assert load.account() > 0


# Once: what a worker does when it is stopped does not depend on the servers.
@pytest.mark.parametrize("stack", ["rabbitmq-redis"], indirect=True, scope="session")
def test_a_stopped_worker_finishes_what_it_can_and_gives_back_the_rest(stack: Stack) -> None:
    with stack.client() as client:
        # Given a part that is done within a worker's grace, and one that is not
        short, long = (client.submit("addition", x=40, y=2, delay=delay) for delay in (5, 40))
        until = time.monotonic() + 30
        while {client.job(job.id).status for job in (short, long)} != {Status.RUNNING} and time.monotonic() < until:
            time.sleep(0.3)
        # When the worker is stopped as Docker stops it
        worker = stack.containers("worker-io")[0]
        began = time.monotonic()
        stack.compose("stop", "worker-io")
        took = time.monotonic() - began
        # Then it ended by itself, soon after its grace; the one part is done, the other waits
        assert json.loads(docker("inspect", worker))[0]["State"]["ExitCode"] == 0
        assert took < float(stack.variable("WORKER_GRACE_S")) + 15
        assert client.job(short.id).status is Status.SUCCESSFUL
        assert not client.job(long.id).status.is_final
        # And with a worker it is done too, and was charged nothing
        stack.start("worker-io")
        assert long.wait(timeout=120).result == 42
        for job in (short, long):
            [stage] = client.job(job.id).record.stages
            assert (stage.done, stage.failures, stage.losses) == (1, 0, 0)


def test_an_upgrade_in_either_order_loses_nothing(stack: Stack) -> None:
    # Given images under new tags: the same code, and containers that are all replaced
    for name in OUR_IMAGES:
        for tag in ("after-api", "after-workers"):
            docker("tag", f"gristmill/{name}:dev", f"gristmill/{name}:{tag}")
    before = containers(stack)
    gateways = {"api", "sweeper"}
    workers = {*(name for name in before if name.startswith("worker-")), "flower"}
    steps = (
        ("API_TAG", "after-api", gateways),  # the gateway first ...
        ("WORKER_TAG", "after-api", workers),
        ("WORKER_TAG", "after-workers", workers),  # ... and the workers first
        ("API_TAG", "after-workers", gateways),
    )
    # When one side is replaced and then the other, with jobs under way
    with Load(stack.url) as load:
        for variable, tag, side in steps:
            stack.up(**{variable: tag})
            # Then each step replaces its side, and leaves the other, the servers and the proxy alone
            now = containers(stack)
            assert {name for name in now if now[name] != before[name]} == side
            before = now
    # And nothing was lost
    assert load.account() > 0


def containers(stack: Stack) -> dict[str, set[str]]:
    """The running containers of each service."""
    return {name: {one["Id"] for one in found} for name, found in stack.services().items()}
