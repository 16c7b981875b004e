"""A trace is one tree: a request, and inside of it every attempt at a part; its collector stands in nobody's way."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest
from opentelemetry.trace import SpanKind
from structlog.testing import capture_logs

from jobs import spans
from jobs.trace import inside, new, span_id, trace_id
from tests.collector import Collector
from tests.gateways import Gateway, installed
from tests.neighbours import free_port

CLIENT = "00f067aa0ba902b7"  # the span that the requests of the tests come from
PIPELINE = """
title: Three stages, each on a queue of its own
stages:
  - {name: cut, queue: cut, time_limit: 60}
  - {name: look, queue: look, each: true, time_limit: 60}
  - {name: join, queue: join, time_limit: 60}
params: {type: object, additionalProperties: false, properties: {how: {type: string, default: well}}}
"""
STAGES = """
import os

from jobs.errors import BadInput

def cut(bench, given):
    for index in range(2):
        bench.emit(index, {"n": index})

def look(bench, given):
    if bench.params["how"] == "die" and given["n"] == 1:
        os.kill(os.getpid(), 9)
    if bench.params["how"] == "bad" and given["n"] == 1:
        raise BadInput("no picture")

def join(bench, given):
    return {}
"""


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture
def events():
    """What the process logs, by its first word."""
    with capture_logs() as found:
        yield found


@pytest.fixture(scope="module")
def stack(valkey, tmp_path_factory):
    """A gateway as it is started in earnest, a worker for each of three queues, and a collector."""
    folder, trio = tmp_path_factory.mktemp("stack"), ("trio", PIPELINE, STAGES)
    broker, store = f"{valkey.url[:-1]}9", f"{valkey.url[:-1]}8"
    with Collector() as collector:
        told = {"OTLP_URL": collector.url, "MAX_LOSSES": "2"}
        with installed(folder, broker, store, trio, **told) as (mill, gateway):
            yield mill, gateway, collector


def run(gateway: Gateway, how: str = "well", **headers: str) -> dict:
    with gateway.client(90) as client:
        body = {"pipeline": "trio", "params": {"how": how}}
        return client.post("/process", json=body, headers={"Prefer": "wait=60", **headers}).json()


def test_a_job_is_one_tree_from_the_request_to_the_last_stage(stack):
    mill, gateway, collector = stack
    # Given a request that is part of a trace
    trace = trace_id(new())
    job = run(gateway, traceparent=f"00-{trace}-{CLIENT}-01")
    assert job["status"] == "successful", mill.logs()
    # When its spans have come
    collector.until(lambda: len(collector.of(trace)) >= 5)
    request, *parts = collector.of(trace)
    # Then the request's is inside of the one that the client named, and the record names it
    assert (request.service, request.name, request.kind) == ("gristmill-gateway", "POST /process", "SERVER")
    assert (request.parent, request.error) == (CLIENT, None)
    assert request.about == {
        "http.request.method": "POST",
        "http.route": "/process",
        "http.response.status_code": 200,
        "job_id": job["id"],
    }
    assert mill.store.get(job["id"]).trace == f"00-{trace}-{request.id}-01"
    # And every part is inside of the request, and tells which it was
    assert [(part.name, part.about["index"]) for part in parts if part.name != "trio.look"] == [
        ("trio.cut", 0),
        ("trio.join", 0),
    ]
    assert sorted(part.about["index"] for part in parts if part.name == "trio.look") == [0, 1]
    for part in parts:
        assert (part.service, part.kind, part.parent) == ("gristmill-worker", "CONSUMER", request.id)
        assert part.error is None
        assert part.about["stage"] == part.name.removeprefix("trio.")
        assert part.about | {"stage": "", "index": 0} == {
            "job_id": job["id"],
            "stage": "",
            "index": 0,
            "fence": 1,
            "outcome": "finished",
        }
        assert request.began <= part.began <= part.ended <= request.ended + 0.5
    assert len({span.id for span in (request, *parts)}) == 5
    # And the lines of the logs have the same trace
    lines = [json.loads(line) for file in mill.folder.glob("*.log") for line in file.read_text().splitlines()]
    finished = [line["trace_id"] for line in lines if line["event"] == "part_finished" and line["job_id"] == job["id"]]
    assert finished == [trace] * 4


def test_every_attempt_is_told_also_that_of_a_child_that_was_killed(stack):
    mill, gateway, collector = stack
    # Given a job whose second part kills its child, twice, and a request that is in no trace
    job = run(gateway, how="die")
    assert job["status"] == "failed", mill.logs()
    trace = trace_id(mill.store.get(job["id"]).trace)

    def lost() -> list:
        return [span for span in collector.of(trace) if span.about.get("index") == 1]

    def requests() -> list:
        return [span for span in collector.of(trace) if span.service == "gristmill-gateway"]

    # Then both attempts are there, each with its fence and its error
    collector.until(lambda: len(lost()) == 2 and requests())
    assert [(span.about["fence"], span.about["outcome"], span.error) for span in lost()] == [
        (1, "loss", "worker-lost"),
        (2, "loss", "worker-lost"),
    ]
    # And the request is the root
    [request] = requests()
    assert request.parent == ""
    assert {span.parent for span in lost()} == {request.id}


def test_what_is_bad_or_refused_is_told_as_that(stack):
    _, gateway, collector = stack
    # Given a job whose input is bad, and a body that no job comes of
    trace, refused = trace_id(new()), trace_id(new())
    run(gateway, how="bad", traceparent=f"00-{trace}-{CLIENT}-01")
    with gateway.client() as client:
        client.post("/process", json={"pipeline": "none"}, headers={"traceparent": f"00-{refused}-{CLIENT}-01"})
        client.post("/nowhere", headers={"traceparent": f"00-{refused}-{CLIENT}-01"})
        client.get("/jobs", headers={"traceparent": f"00-{refused}-{CLIENT}-01"})
    # Then the part has its error, and the requests their answers; what only asks has no span
    collector.until(lambda: len(collector.of(refused)) == 2 and any(span.error for span in collector.of(trace)))
    [bad] = [span for span in collector.of(trace) if span.error]
    assert (bad.about["outcome"], bad.error) == ("bad_input", "bad-input")
    assert [(span.name, span.about["http.response.status_code"]) for span in collector.of(refused)] == [
        ("POST /process", 422),
        ("POST", 404),
    ]


def test_a_trace_that_is_not_to_be_recorded_is_not(stack):
    mill, gateway, collector = stack
    # Given a request whose trace is not sampled, and one after it that is
    trace, after = trace_id(new()), trace_id(new())
    for name, flag in ((trace, "00"), (after, "01")):
        job = run(gateway, traceparent=f"00-{name}-{CLIENT}-{flag}")
        assert job["status"] == "successful", mill.logs()
    # Then only the second one is told
    collector.until(lambda: len(collector.of(after)) == 5)
    assert collector.of(trace) == []


def test_a_collector_that_hangs_holds_up_neither_jobs_nor_new_children_nor_the_end(stack):
    mill, gateway, collector = stack
    # Given a collector that answers nothing, and processes that wait for it
    collector.mood, before = "hangs", collector.requests
    trace = trace_id(new())
    assert run(gateway, traceparent=f"00-{trace}-{CLIENT}-01")["status"] == "successful"
    collector.until(lambda: collector.requests >= before + 4)
    # When a child dies and is replaced, and jobs go on
    began = time.monotonic()
    assert run(gateway, how="die")["status"] == "failed"
    assert run(gateway)["status"] == "successful", mill.logs()
    assert time.monotonic() - began < 30
    # Then everything is told once it answers again
    collector.mood = "well"
    collector.until(lambda: len(collector.of(trace)) == 5, within_s=30)
    # And with a collector that hangs, a worker ends in time all the same
    collector.mood = "hangs"
    run(gateway)
    began = time.monotonic()
    for process in mill.processes:
        process.terminate()
    for process in mill.processes:
        process.wait(30)
    gateway.close()
    assert time.monotonic() - began < 25
    assert "worker_cannot_start" not in mill.logs()


# -- one process's way to it ------------------------------------------------------------------------------------------


def told(way: spans.Spans, name: str, error: str | None = None) -> str:
    """Tell of a span in a trace of its own; the trace's id."""
    trace = new()
    way.add(name, SpanKind.INTERNAL, inside(trace), trace, (1.0, 2.5), {"n": 1}, error)
    return trace_id(trace)


def test_what_is_left_is_sent_at_the_end(collector):
    # Given a way with a path and a slash, as an operator may write it
    way = spans.Spans(f"{collector.url}/v1/traces/", "tests")
    outer = new()
    way.add("one", SpanKind.INTERNAL, inner := inside(outer), outer, (1.0, 2.5), {"n": 1}, "it broke")
    # When the process ends at once
    way.close()
    # Then the span has come, as it was told
    [span] = collector.spans
    assert (span.trace, span.id, span.parent) == (trace_id(outer), span_id(inner), span_id(outer))
    assert (span.began, span.ended, span.about, span.error) == (1.0, 2.5, {"n": 1}, "it broke")


@pytest.mark.parametrize("mood", ["refuses", "hangs"])
def test_what_was_not_taken_is_sent_again(collector, monkeypatch, events, mood):
    # Given a collector in a bad mood
    monkeypatch.setattr(spans, "AGAIN_S", 0.1)
    monkeypatch.setattr(spans, "TRY_S", 0.3)
    monkeypatch.setattr(spans, "EVERY_S", 0.05)
    way = spans.Spans(collector.url, "tests")
    collector.mood = mood
    first = told(way, "one")
    collector.until(lambda: collector.requests >= 2)
    second = told(way, "two")
    assert collector.spans == []
    # When it is well again
    collector.mood = "well"
    # Then everything comes, in order, and the log says it once
    collector.until(lambda: len(collector.spans) == 2)
    way.close()
    assert [span.trace for span in collector.spans] == [first, second]
    assert [one["event"] for one in events] == ["collector_away", "collector_back"]
    assert ("500" if mood == "refuses" else "timeout") in events[0]["error"]


@pytest.mark.parametrize("mood", ["refuses", "hangs", "away"])
def test_what_nobody_takes_is_given_up_and_never_waited_for(collector, monkeypatch, events, mood):
    # Given a collector that takes nothing, and more spans than may wait
    monkeypatch.setattr(spans, "TRY_S", 0.5)
    monkeypatch.setattr(spans, "QUEUE", 20)
    monkeypatch.setattr(spans, "BATCH", 10)
    collector.mood = mood
    way = spans.Spans(f"http://127.0.0.1:{free_port()}" if mood == "away" else collector.url, "tests")
    # When they are told
    began = time.monotonic()
    for _ in range(200):
        told(way, "one")
    assert time.monotonic() - began < 0.5
    # Then the end comes all the same
    way.close()
    assert time.monotonic() - began < spans.CLOSE_S + 1
    assert collector.spans == []
    lost = sum(one["count"] for one in events if one["event"] == "spans_lost")
    assert spans.QUEUE <= lost <= spans.QUEUE + spans.BATCH


def test_the_end_comes_after_its_bound_however_long_a_request_takes(collector, monkeypatch):
    # Given a collector that hangs, and a request that would wait for it for longer than an end may take
    monkeypatch.setattr(spans, "TRY_S", 8.0)
    monkeypatch.setattr(spans, "CLOSE_S", 0.5)
    collector.mood = "hangs"
    way = spans.Spans(collector.url, "tests")
    told(way, "one")
    # When the process ends, then it waits until the bound, and no longer
    began = time.monotonic()
    way.close()
    assert spans.CLOSE_S <= time.monotonic() - began < spans.TRY_S / 2
    assert (collector.requests, collector.spans) == (1, [])


def test_a_forked_child_leaves_the_spans_to_its_parent(collector):
    # Given spans that wait, and a collector that hangs in the middle of a request
    way = spans.Spans(collector.url, "tests")
    collector.mood = "hangs"
    told(way, "one")
    collector.until(lambda: collector.requests == 1)
    told(way, "two")
    # When a child is forked, then that does not wait for the collector, and there is no thread of the library's in it
    began = time.monotonic()
    if not (child := os.fork()):
        way.forget()
        os._exit(threading.active_count())
    assert time.monotonic() - began < spans.FORK_S + 1
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    # And each span comes once
    collector.mood = "well"
    collector.until(lambda: len(collector.spans) == 2)
    way.close()
    assert sorted(span.name for span in collector.spans) == ["one", "two"]
