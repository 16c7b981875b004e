"""From `make gpu` to jobs: a worker for each device, as the file that it wrote says, and seen wherever one looks."""

import json
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest
import yaml

from bench.servers import ROOT, Servers
from celery_worker import gpus
from celery_worker.devices import LIST
from gristmill import Client
from tests.neighbours import free_port
from tests.scraping import answers, scraped

GPUS = [
    {"number": 0, "uuid": "GPU-8f4c2d1e-0000-4000-8000-000000000000", "name": "NVIDIA L4", "memory_bytes": 24 << 30},
    {
        "number": 1,
        "uuid": "MIG-11112222-0000-4000-8000-000000000000",
        "name": "NVIDIA H100 MIG 1g.10gb",
        "memory_bytes": 10 << 30,
        "is_slice": True,
    },
]
L4, SLICE = "simulated:0 NVIDIA L4 GPU-8f4c2d1e", "simulated:1 NVIDIA H100 MIG 1g.10gb MIG-11112222"
STREET = ROOT / "samples" / "street.mp4"
MODELS = {"efficientdet-lite0", "pose-landmark-full"}
PARAMS = {"tasks": ["detect"], "outputs": ["detections"], "fps": 1, "end": 1}


@pytest.fixture
def services(tmp_path, monkeypatch):
    """What `make gpu` writes for this machine: its services by name, without the one on the CPU."""
    (tmp_path / "gpus.json").write_text(json.dumps(GPUS))
    monkeypatch.setenv(LIST, str(tmp_path / "gpus.json"))
    assert gpus.main(["--out", str(tmp_path / "written.yml")]) == 0
    written: dict[str, Any] = yaml.safe_load((tmp_path / "written.yml").read_text())["services"]
    assert written.pop("worker-inference")["deploy"]["replicas"] == 0
    return written


def test_each_device_has_a_worker_seen_in_the_version_the_metrics_and_the_records(services):
    with Servers(rabbitmq=False) as servers:
        # Given a gateway, and a worker with the settings of each service that was written, and nothing else
        gateway = servers.our_gateway(1)
        servers.our_sweeper()
        for queue in ("preprocess", "postprocess"):
            servers.our_worker(queue)
        ports = {name: free_port() for name in services}
        for name, service in services.items():
            told = {**servers.our_environment(), **service["environment"], "METRICS_PORT": str(ports[name])}
            servers.start(name, ["-m", "celery_worker"], **told)
        # Then each is listed, with one child, its memory and its models
        servers.until(lambda: {one["device"] for one in inferring(gateway) if one["children"]} == {L4, SLICE}, "both")
        for one in inferring(gateway):
            whole = next(gpu for gpu in GPUS if gpu["uuid"][:12] in one["device"])
            assert (one["children"], set(one["models"])) == (1, MODELS)
            assert one["memory_bytes"] == int(whole["memory_bytes"] * 0.95) >> 20 << 20
        # And tells in its metrics what it is
        for (name, port), device in zip(ports.items(), (L4, SLICE), strict=True):
            servers.until(lambda port=port: answers(port), f"the metrics of {name}")
            found = scraped(port)
            assert found[f'gristmill_worker_info{{device="{device}",queues="inference"}}'] == 1
            assert found["gristmill_worker_children"] == 1
        # And stands in the records of the jobs that it took part in
        client = Client(f"http://127.0.0.1:{gateway}")
        devices: set[str] = set()
        for _ in range(20):
            jobs = [client.submit("video", file=STREET, **PARAMS) for _ in range(4)]
            for job in jobs:
                servers.until(lambda job=job: job.refresh().status.is_final, "the job to end")
                stages = {stage.name: stage.device for stage in job.stages}
                assert (str(job.status), stages["preprocess"], stages["postprocess"]) == ("successful", "cpu", "cpu")
                assert stages["inference"] == job.result["device"]
                devices.add(stages["inference"])
            if devices == {L4, SLICE}:
                break
        assert devices == {L4, SLICE}


def inferring(gateway: int) -> list[Mapping[str, Any]]:
    """The workers of the inference queue, as the gateway lists them."""
    found = httpx2.get(f"http://127.0.0.1:{gateway}/version", timeout=20).json()["workers"]
    return [one for one in found if one["queues"] == ["inference"]]
