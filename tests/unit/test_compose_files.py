"""What the compose files and the Dockerfile promise, read without an engine: rights, ports, settings, images."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ("docker-compose.yml", "docker-compose.cluster.yml", "docker-compose.worker.yml")
STACK = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
SHARED = ("dispatch.py", "exposition.py")  # what a worker runs of jobs/ with the settings in its hand
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()


def services(file: str) -> dict[str, Any]:
    """The services of a compose file that it defines itself; what only adds to another file's has no image."""
    found = yaml.safe_load((ROOT / file).read_text())["services"]
    return {name: service for name, service in found.items() if "image" in service}


def variables(file: Path) -> dict[str, str]:
    """The lines of an env file."""
    return dict(re.findall(r"^([A-Z_]+)=(.*)$", file.read_text(), re.M))


@pytest.mark.parametrize("file", FILES)
def test_no_container_keeps_rights(file):
    # When a compose file is read
    for name, service in services(file).items():
        # Then every container drops its capabilities and can gain none
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name
        assert "docker.sock" not in str(service.get("volumes")), name
        assert service["restart"] == ("on-failure" if name == "migrate" else "unless-stopped"), name
        # And ours cannot write to their own files, nor take a capability back
        if "build" in service:
            assert (service["read_only"], service["init"], "cap_add" in service) == (True, True, False), name


@pytest.mark.parametrize("file", FILES)
def test_only_the_proxy_and_the_windows_are_published(file):
    # When the published ports are read
    published = {name: service["ports"] for name, service in services(file).items() if "ports" in service}
    # Then no broker or store is among them, and each is bound to the address of .env
    inner = {port.rsplit(":", 1)[1] for ports in published.values() for port in ports}
    assert inner <= {"8080", "8443", "15672", "5540", "5555", "9090", "3000"}
    assert all(port.startswith("${PUBLISH_ON?}:") for ports in published.values() for port in ports)
    assert variables(ROOT / ".env")["PUBLISH_ON"] == "127.0.0.1"


def test_our_images_run_as_a_user_without_rights_and_can_be_asked_how_they_are():
    # When the Dockerfile's last stages are read
    stages = dict(re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S))
    for name in ("api", "worker"):
        # Then they run as a number that is not 0, stop by SIGTERM, and have a health check
        assert re.search(r"^USER 10001:10001$", stages[name], re.M)
        assert re.search(r"^HEALTHCHECK ", stages[name], re.M)
    assert "STOPSIGNAL SIGTERM" in stages["own"]
    assert "--require-hashes" in stages["packages"]


def test_every_setting_reaches_our_containers():
    # Given the settings
    names = {name.upper() for name in Settings.model_fields}
    for service in ("api", "worker-io", "sweeper"):
        # Then compose passes each of them
        assert names - set(STACK[service]["environment"]) == set()


def test_a_worker_on_another_host_is_told_all_that_it_reads():
    # Given the settings that the workers' code reads, and those of what it uses of jobs/
    read = set()
    for file in (*(ROOT / "celery_worker").glob("*.py"), *(ROOT / "jobs" / name for name in SHARED)):
        read |= set(re.findall(r"\bsettings\.([a-z_]+)", file.read_text()))
    names = {name.upper() for name in read & Settings.model_fields.keys()}
    assert {"MAX_FETCH_S", "WATCHDOG_S", "BROKER_URL"} <= names
    # Then the second host's compose file passes each of them
    for name, service in services("docker-compose.worker.yml").items():
        assert names - set(service["environment"]) == set(), name


def test_every_image_port_and_number_of_containers_comes_from_the_env_file():
    # Given every service of the stack, of a cluster and of a second host
    for file in FILES:
        for name, service in services(file).items():
            # Then its image has its tag from a variable
            assert re.fullmatch(r"\$\{IMAGES\?\}/[a-z-]+:\$\{\w+_TAG\?\}|\$\{\w+_IMAGE\?\}", service["image"]), name
            # And so have its ports, and how many there are of ours
            for port in service.get("ports", ()):
                assert re.fullmatch(r"\$\{PUBLISH_ON\?\}:\$\{\w+_PORT\?\}:\d+", port), name
            if "build" in service and name not in ("flower", "migrate"):
                assert re.fullmatch(r"\$\{\w+_REPLICAS\?\}", service["deploy"]["replicas"]), name


def test_every_variable_of_the_compose_file_is_in_the_env_file():
    # Given what compose is told
    known = set(variables(ROOT / ".env"))
    # Then the stack asks for nothing else, and what .env says for compose alone is used somewhere
    asked = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    assert asked - known == set()
    assert known - asked - {"COMPOSE_PROFILES"} == set()


def test_every_queue_has_a_worker_and_every_pipeline_an_image_with_what_it_needs():
    # Given the pipelines
    for folder in sorted((ROOT / "celery_worker" / "pipelines").glob("*/pipeline.yaml")):
        queues = {stage["queue"] for stage in yaml.safe_load(folder.read_text())["stages"]}
        for queue in queues:
            # Then each of their queues has one kind of worker
            serving = [n for n, s in STACK.items() if queue in s.get("environment", {}).get("QUEUES", "").split(",")]
            serving = [name for name in serving if name.startswith("worker-")]
            assert len(serving) == 1, queue
            # And its image holds what the pipeline's own lock names
            assert folder.parent.name in STACK[serving[0]]["build"]["args"]["PIPELINES"].split()


def test_the_ready_env_files_start_the_servers_that_their_urls_name():
    # Given the ready combinations
    for servers in ("rabbitmq-redis", "rabbitmq-postgres", "redis-postgres"):
        told = variables(ROOT / "docker" / "env" / f"{servers}.env")
        # Then the profiles are the hosts of the two URLs
        hosts = {re.search(r"@(\w+):", told[name]).group(1) for name in ("BROKER_URL", "STORE_URL")}
        assert set(told["COMPOSE_PROFILES"].split(",")) == hosts == set(servers.split("-"))


def test_the_default_is_the_first_of_the_ready_combinations():
    # Given .env and the file of its combination
    development = variables(ROOT / ".env")
    told = variables(ROOT / "docker" / "env" / "rabbitmq-redis.env")
    # Then they say the same, with the development passwords filled in
    for name, value in told.items():
        assert development[name] == re.sub(r"\$\{(\w+)\}", lambda found: development[found.group(1)], value)


def test_broker_and_stores_have_no_way_out_but_for_the_brokers_window():
    # Given the two networks
    whole = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert whole["networks"]["inside"] == {"internal": True}
    # Then the stores are on the inner one alone, and so is whoever publishes nothing and fetches nothing
    out = {name for name, service in STACK.items() if "outside" in service.get("networks", ())}
    assert out == {
        *("proxy", "rabbitmq", "redisinsight", "flower", "prometheus", "grafana"),  # windows
        *("worker-preprocess", "worker-text", "worker-io"),  # fetch
    }


def test_prometheus_finds_every_kind_of_process_and_grafana_comes_only_when_asked_for():
    # Given what Prometheus asks, by the names and ports of the stack's network
    told = yaml.safe_load((ROOT / "docker" / "monitoring" / "prometheus.yml").read_text())["scrape_configs"]
    asked = {(name, one["port"]) for job in told for one in job["dns_sd_configs"] for name in one["names"]}
    first = int(variables(ROOT / ".env")["METRICS_PORT"])
    # Then each gateway and sweeper is among it, and each worker, with a port for each of its queues
    expected = {("api", 3333), ("sweeper", first)}
    for name, service in STACK.items():
        if name.startswith("worker-"):
            assert service["networks"]["inside"]["aliases"] == ["workers"], name
            queues = service["environment"]["QUEUES"].split(",")
            expected |= {("workers" if n == 0 else name, first + n) for n in range(len(queues))}
    assert asked == expected
    # And nobody gets Grafana, whose licence is AGPL, without naming it
    started = {name for name, service in STACK.items() if "monitoring" in service.get("profiles", ())}
    assert (started, STACK["grafana"]["profiles"]) == ({"prometheus"}, ["grafana"])
    assert variables(ROOT / ".env")["COMPOSE_PROFILES"] == "rabbitmq,redis"


def test_an_image_gets_the_models_that_its_pipelines_name(tmp_path):
    # When the models are picked for each worker's image
    pick = [sys.executable, str(ROOT / "docker" / "pick_models.py")]
    folders = [str(ROOT / "models"), str(ROOT / "celery_worker" / "pipelines")]
    found = {}
    for name in ("worker-inference", "worker-text", "worker-io"):
        pipelines = STACK[name]["build"]["args"]["PIPELINES"].split()
        subprocess.run([*pick, *folders, str(tmp_path / name), *pipelines], check=True, timeout=60)
        found[name] = yaml.safe_load((tmp_path / name / "models.yaml").read_text())
        # Then each has its file, unless that comes with a package
        assert all((tmp_path / name / one["file"]).is_file() for one in found[name].values() if "package" not in one)
    # And the detector goes to those who look, the tokenizer to those who read, and nothing to those who wait
    assert "efficientdet-lite0" in found["worker-inference"]
    assert "minilm-tokenizer" in found["worker-text"]
    assert not set(found["worker-inference"]) & set(found["worker-text"])
    assert found["worker-io"] == {}
