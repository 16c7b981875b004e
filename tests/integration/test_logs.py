"""One trace id leads from the request to the last stage, through the lines of every process; each of them is JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gateways import installed

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
PIPELINE = """
title: Says where it is, on two queues
stages:
  - {name: here, queue: here, time_limit: 60}
  - {name: there, queue: there, each: true, time_limit: 60}
params:
  {type: object, additionalProperties: false, properties: {die: {type: boolean, default: false}}}
"""
STAGES = """
import os

def here(bench, given):
    bench.log.info("in here")
    for index in range(2):
        bench.emit(index, {"n": index})

def there(bench, given):
    if bench.params["die"]:
        os.kill(os.getpid(), 9)
    bench.log.warning("out there %d", given["n"])
"""


@pytest.fixture(scope="module")
def trail(valkey, tmp_path_factory):
    """A gateway as it is started in earnest, and a worker for each of two queues."""
    folder, trail = tmp_path_factory.mktemp("trail"), ("trail", PIPELINE, STAGES)
    broker, store = f"{valkey.url[:-1]}7", f"{valkey.url[:-1]}6"
    with installed(folder, broker, store, trail, processes=2, MAX_LOSSES="1") as both:
        yield both


def lines(folder: Path) -> list[dict]:
    """What every process has logged so far. AssertionError for a line that is not JSON."""
    found = []
    for file in folder.glob("*.log"):
        for line in file.read_text().splitlines():
            try:
                found.append({"file": file.name.split("-0")[0].split("-1")[0], **json.loads(line)})
            except ValueError:
                raise AssertionError(f"{file.name}: {line}") from None
    return found


def test_one_trace_id_leads_from_the_request_to_the_last_stage(trail):
    mill, gateway = trail
    # Given a request that is part of a trace
    with gateway.client(90) as client:
        headers = {"traceparent": PARENT, "Prefer": "wait=60"}
        job = client.post("/process", json={"pipeline": "trail"}, headers=headers).json()
        assert job["status"] == "successful", mill.logs()
        # Then the job's own log has the lines of both workers
        told = client.get(f"/jobs/{job['id']}/logs").text.splitlines()
    assert sorted(line.split(" ", 1)[1] for line in told) == [
        "INFO    here[0]#1 in here",
        "WARNING there[0]#1 out there 0",
        "WARNING there[1]#1 out there 1",
    ]
    # And that trace leads to the gateway's line and to those of every part, each with all that it is about
    mine = [line for line in lines(mill.folder) if line.get("trace_id") == TRACE]
    expected = {
        ("job_accepted", None, None),
        *((event, "here", 0) for event in ("in here", "part_finished")),
        *((event, "there", n) for n in range(2) for event in (f"out there {n}", "part_finished")),
    }
    assert expected <= {(line["event"], line.get("stage"), line.get("index")) for line in mine}
    assert all(line["job_id"] == job["id"] for line in mine)
    assert all(line["fence"] >= 1 for line in mine if "stage" in line)


def test_a_request_without_a_trace_begins_one_and_a_retry_goes_on_with_it(trail):
    mill, gateway = trail
    # Given a job that loses its worker's child, and its retry
    with gateway.client(90) as client:
        body = {"pipeline": "trail", "params": {"die": True}}
        job = client.post("/process", json=body, headers={"Prefer": "wait=60"}).json()
        assert job["status"] == "failed", mill.logs()
        again = client.post(f"/jobs/{job['id']}/retry").json()
    trace = mill.store.get(job["id"]).trace
    assert mill.store.get(again["id"]).trace == trace
    mill.wait(again["id"], within_s=60)
    # Then the parent's line about the dead child belongs to the trace as well
    told = [line for line in lines(mill.folder) if line["event"] == "child_died"]
    assert {line["job_id"] for line in told} == {job["id"], again["id"]}
    assert {(line["stage"], line["fence"] >= 1, line["trace_id"]) for line in told} == {("there", True, trace[3:35])}
    # And the line of the retry has the trace that it goes on with
    [retried] = [line for line in lines(mill.folder) if line["event"] == "job_retried"]
    assert (retried["job_id"], retried["job_trace_id"]) == (again["id"], trace[3:35])


def test_a_header_that_is_no_trace_harms_nothing(trail):
    mill, gateway = trail
    # When a request comes with nonsense in its place, or twice
    with gateway.client(90) as client:
        for headers in ([("traceparent", '00-"}{')], [("traceparent", PARENT), ("traceparent", "x" * 5_000)]):
            answer = client.post("/process", json={"pipeline": "trail"}, headers=headers)
            # Then it is accepted, in a trace of its own
            assert answer.status_code == 202
            trace = mill.store.get(answer.json()["id"]).trace
            assert len(trace) == len(PARENT)
            assert TRACE not in trace
