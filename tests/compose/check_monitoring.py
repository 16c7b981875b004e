"""The profile `monitoring`: Prometheus finds every gateway, worker and sweeper, however many there are."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.compose.stack import ROOT, Stack, docker
from tests.prometheus import alerts

WATCHING = (ROOT / "docs" / "watching.md").read_text()
METRICS, GATEWAY = 9100, 3333
FOUND_WITHIN_S = 90.0


@pytest.fixture
def watched(stack: Stack) -> Iterator[Stack]:
    """The stack with Prometheus beside it, by the page's own line; it goes again at the end."""
    line = re.search(r"^COMPOSE_PROFILES=(\S*monitoring) docker compose up -d --wait", WATCHING, re.M)
    assert line
    stack.shell(line.group(0), ROOT)
    profiles = stack.variable("COMPOSE_PROFILES")
    stack.env["COMPOSE_PROFILES"] = line.group(1)
    try:
        yield stack
    finally:
        stack.compose("rm", "--stop", "--force", "prometheus")
        docker("volume", "rm", f"{stack.project}_prometheus")  # `down -v` leaves what belongs to no profile of the time
        stack.env["COMPOSE_PROFILES"] = profiles
        stack.up("--no-recreate")


def asked(stack: Stack, path: str) -> Any:
    """What Prometheus says at a path of its API."""
    return stack.get("PROMETHEUS_PORT", f"/api/v1/{path}").json()["data"]


def answering(stack: Stack) -> set[tuple[str, str, int]]:
    """Job, container and port of each target that was asked and answered; `nobody` for an address of none of ours."""
    at = {
        network["IPAddress"]: one["Id"]
        for containers in stack.services().values()
        for one in containers
        for network in one["NetworkSettings"]["Networks"].values()
    }
    found = set()
    for target in asked(stack, "targets")["activeTargets"]:
        host, port = target["labels"]["instance"].rsplit(":", 1)
        job = target["labels"]["job"] + ("" if target["health"] == "up" else f" {target['health']}")
        found.add((job, at.get(host, "nobody"), int(port)))
    return found


def promised(stack: Stack) -> set[tuple[str, str, int]]:
    """The same for each process of ours that runs: a worker has a port for each of its queues."""
    found = set()
    for name, containers in stack.services().items():
        for one in containers:
            told = dict(entry.partition("=")[::2] for entry in one["Config"]["Env"])
            if name == "api":
                found.add(("gristmill-gateway", one["Id"], GATEWAY))
            elif name == "sweeper":
                found.add(("gristmill-sweeper", one["Id"], METRICS))
            elif name.startswith("worker-"):
                queues = len(told["QUEUES"].split(","))
                found |= {("gristmill-worker", one["Id"], METRICS + n) for n in range(queues)}
    return found


def until_all_answer(stack: Stack) -> set[tuple[str, str, int]]:
    """Who answers once it is who there is, or after a while."""
    until = time.monotonic() + FOUND_WITHIN_S
    while (found := answering(stack)) != promised(stack) and time.monotonic() < until:
        time.sleep(1)
    return found


# Once: what Prometheus asks does not depend on the servers.
@pytest.mark.parametrize("stack", ["rabbitmq-redis"], indirect=True, scope="session")
def test_prometheus_asks_everybody_however_many(watched: Stack) -> None:
    # Given Prometheus beside a stack, and a job of each kind of worker
    with watched.client() as client:
        jobs = [client.submit("addition", x=40, y=2), client.submit("document", text="The mill grinds well.")]
        assert all(job.wait(timeout=120).error is None for job in jobs)
    # Then every process is asked and answers, and nobody else is asked
    assert until_all_answer(watched) == promised(watched)
    # And so it is when there are more of each kind
    more = [f"{name}=2" for name in ("api", "worker-inference", "worker-text", "sweeper")]
    watched.up("--no-recreate", *(word for scale in more for word in ("--scale", scale)))
    assert len(promised(watched)) == 2 + 2 + 1 + 2 + 1 + 6 + 1
    assert until_all_answer(watched) == promised(watched)
    # And what they counted is there, and our alerts, of which none has cause to fire
    ran = asked(watched, 'query?query=sum by (pipeline) (gristmill_part_ran_seconds_count{outcome="finished"})')
    assert {one["metric"]["pipeline"] for one in ran["result"]} >= {"addition", "document"}
    rules = {rule["name"]: rule for group in asked(watched, "rules")["groups"] for rule in group["rules"]}
    assert set(rules) == set(alerts())
    assert {name for name, rule in rules.items() if rule["health"] != "ok" or rule["state"] == "firing"} == set()
    # And its own container has no rights, and is open to this machine alone
    [prometheus] = watched.services()["prometheus"]
    host = prometheus["HostConfig"]
    assert (host["CapDrop"], host["CapAdd"], host["ReadonlyRootfs"]) == (["ALL"], None, True)
    assert prometheus["Config"]["User"] not in ("", "0", "root")
    assert {port: {found["HostIp"] for found in at} for port, at in host["PortBindings"].items()} == {
        "9090/tcp": {"127.0.0.1"}
    }
