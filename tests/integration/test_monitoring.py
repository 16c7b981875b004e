"""What docker/monitoring promises: rules that fire, and a dashboard whose every query has an answer."""

from __future__ import annotations

import re
import time

import httpx2
import pytest
import yaml

from celery_worker.line import Loaded
from celery_worker.metrics import WorkerCounts
from celery_worker.nvml import GpuUse
from celery_worker.workbench import Device
from jobs.exposition import Exposition
from tests.gateways import Gateway
from tests.mill import ROOT, Mill
from tests.neighbours import free_port
from tests.prometheus import MONITORING, Prometheus, alerts, panels, promtool
from tests.scraping import answers

PIPELINES = f"{ROOT}/celery_worker/pipelines,{ROOT}/tests/pipelines"
GPU = Device("cuda:0 NVIDIA H100", "cuda", 0, 80 << 30)


def test_promtool_accepts_the_configuration_and_the_rules():
    assert "SUCCESS" in promtool("check", "rules", "rules.yml")
    assert "SUCCESS" in promtool("check", "config", "--syntax-only", "prometheus.yml")


def test_every_alert_fires_when_it_should_and_none_when_all_is_well():
    # Given a case for each alert, and one in which all is well
    cases = {case["name"]: case for case in yaml.safe_load((MONITORING / "rules.test.yml").read_text())["tests"]}
    assert cases.keys() == {*alerts(), "what is well fires nothing"}
    for name in alerts():
        [asked] = cases[name]["promql_expr_test"]
        assert (name in asked["expr"], len(asked["exp_samples"])) == (True, 1)
    # Then promtool finds them to be so
    assert "SUCCESS" in promtool("test", "rules", "rules.test.yml")


@pytest.fixture(scope="module")
def watched(valkey, tmp_path_factory):
    """A whole installation at work, with a worker on a GPU that is not there, and a Prometheus that asks all of it."""
    folder, gateway_port, ports = tmp_path_factory.mktemp("watched"), free_port(), [free_port() for _ in range(4)]
    broker, store = f"{valkey.url[:-1]}9", f"{valkey.url[:-1]}8"
    mill = Mill(broker, store, folder, MAX_LOSSES=1, MAX_FAILURES=1)
    gateway = Gateway(gateway_port, store, broker, folder, PIPELINE_DIRS=PIPELINES)
    counts = WorkerCounts(["inference"], GPU, lambda: [GpuUse(GPU.name, 20 << 30, GPU.memory_bytes, 0.93)])
    counts.loaded(Loaded("efficientdet-lite0", 0.4))
    targets = {"gristmill-gateway": [gateway_port], "gristmill-worker": ports[:3], "gristmill-sweeper": ports[3:]}
    on_gpu = Exposition(counts.registry, "127.0.0.1", ports[2])
    try:
        with mill, gateway, Prometheus(targets) as prometheus:
            for queue, port in (("io", ports[0]), ("poison", ports[1])):
                mill.worker(queue, "-c", "1", METRICS_PORT=port)
            mill.start("sweeper", ["-m", "jobs.sweeper"], METRICS_PORT=ports[3])
            mill.until(lambda: all(map(answers, ports)), within_s=90, what="everybody to serve")
            up = 'up{job=~"gristmill-.+"} == 1'
            mill.until(lambda: len(prometheus.query(up)) == 5, within_s=30, what="all to be up")
            mill.until(lambda: prometheus.query("gristmill_dead_parts"), within_s=30, what="the dead to be counted")
            yield mill, gateway, prometheus
    finally:
        on_gpu.close()


def test_the_dashboards_queries_have_answers_and_its_alerts_are_sound(watched):
    # Given jobs that end well, break, lose their child, are rung again, and one that keeps waiting
    mill, gateway, prometheus = watched
    with gateway.client() as client:
        for x in range(3):
            body = {"pipeline": "addition", "params": {"x": x, "y": 1}}
            assert client.post("/process", json=body, headers={"Prefer": "wait=60"}).status_code == 200
        assert client.post("/files", content=b"x" * 100, headers={"Content-Type": "video/mp4"}).status_code == 201
    for job_id in [mill.submit("poison", how=how) for how in ("sys_exit", "kill_self")]:
        mill.wait(job_id, within_s=60)
    mill.submit("mill", parts=1, ring=False)
    # When Prometheus has asked everybody since, then every panel shows something
    shown = panels()
    until = time.monotonic() + 60
    while (missing := unanswered(prometheus, shown)) and time.monotonic() < until:
        time.sleep(0.5)
    assert missing == []
    # And every alert can be worked out, about gauges that somebody serves
    assert {rule["name"]: rule["health"] for rule in prometheus.rules()} == dict.fromkeys(alerts(), "ok")
    known = set(httpx2.get(f"{prometheus.url}/api/v1/label/__name__/values").json()["data"])
    named = {name for expr in alerts().values() for name in re.findall(r"gristmill_\w+|\bup\b", expr)}
    assert named - known == set()
    # And the one that does not wait fires, because parts died
    mill.until(lambda: "GristmillPartsDie" in firing(prometheus), what="the alert to fire")


def unanswered(prometheus: Prometheus, shown: dict[str, list[str]]) -> list[tuple[str, str]]:
    """The queries that Prometheus has no data for."""
    return [(title, expr) for title, exprs in shown.items() for expr in exprs if not prometheus.query(expr)]


def firing(prometheus: Prometheus) -> set[str]:
    return {rule["name"] for rule in prometheus.rules() if rule["state"] == "firing"}
