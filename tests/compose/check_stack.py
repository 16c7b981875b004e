"""The stack with each combination of servers: it comes up, works, shows itself, and is closed."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path

from tests.compose.browser import Browser
from tests.compose.conftest import FIGURES
from tests.compose.examples import STREET, run_examples
from tests.compose.stack import LOGIN, RABBITMQ_LOGIN, ROOT, Stack, docker

WORKERS = {f"worker-{queues}" for queues in ("preprocess", "inference", "postprocess", "text", "io")}
OURS = WORKERS | {"api", "sweeper", "flower"}
OPERATING = (ROOT / "docs" / "operating.md").read_text()
PICTURES = ROOT / "docs" / "pictures"
# What the management page has in its column Total, in the row of the queue io.
DEPTH_OF_IO = """
[...document.querySelectorAll('table.list tbody tr')].map(row => row.innerText.split('\\t').map(cell => cell.trim()))
    .filter(cells => cells[1] === 'io').map(cells => Number(cells[7]))[0]
"""
PORTS = {
    "proxy": {"8080/tcp", "8443/tcp"},
    "rabbitmq": {"15672/tcp"},
    "redisinsight": {"5540/tcp"},
    "flower": {"5555/tcp"},
}


def seen_by_flower(stack: Stack, job_id: str) -> set[str]:
    """The stages of a job whose signatures Flower has seen."""
    tasks = stack.get("FLOWER_PORT", "/api/tasks", auth=LOGIN).json().values()
    return {task["name"] for task in tasks if job_id in (task["args"] or "")}


def test_it_is_healthy_within_half_a_minute(stack: Stack) -> None:
    # Given the stack, brought up with its images built
    took = FIGURES[f"healthy_s_{stack.servers.replace('-', '_')}"]
    # Then everything was healthy in time
    assert took < 30


def test_every_pipelines_example_runs_and_flower_shows_each_signature(stack: Stack, tmp_path: Path) -> None:
    # When every example is submitted, then each succeeds
    jobs = run_examples(stack)
    assert jobs["addition"].result == 42
    # And a video leaves its artifacts
    with stack.client() as client:
        kept = {path.name for path in client.job(jobs["video"].id).download(tmp_path)}
    assert {"annotated.mp4", "contact-sheet.jpg", "detections.jsonl"} <= kept
    # And Flower, which asks who is there, shows each stage's signatures with the id of their job
    assert stack.get("FLOWER_PORT", "/api/tasks").status_code == 401
    for name, job in jobs.items():
        promised = {f"{name}.{stage.name}" for stage in job.record.stages}
        until = time.monotonic() + 20
        while (seen := seen_by_flower(stack, job.id)) != promised and time.monotonic() < until:
            time.sleep(0.5)
        assert seen == promised


def test_the_windows_show_what_happens(stack: Stack) -> None:
    # Given a stack that has done some work
    # Then the gateway has Swagger UI, its description and its counters
    assert "swagger-ui" in stack.get("API_PORT", "/ui/").text
    assert stack.get("API_PORT", "/openapi.json").json()["openapi"].startswith("3.0")
    metrics = stack.get("API_PORT", "/metrics").text
    assert 'gristmill_jobs{pipeline="addition",status="successful"}' in metrics
    # And RabbitMQ shows every queue with its depth, to those who have its password
    if "rabbitmq" in stack.services():
        assert stack.get("RABBITMQ_UI_PORT", "/api/queues").status_code == 401
        queues = stack.get("RABBITMQ_UI_PORT", "/api/queues", auth=RABBITMQ_LOGIN).json()
        assert {"preprocess", "inference", "postprocess", "inference.text", "io"} <= {queue["name"] for queue in queues}
        assert all(isinstance(queue["messages"], int) for queue in queues)
        # And its own gauges are there for a Prometheus on the inner network
        ask = (
            "import urllib.request as r; print(r.urlopen('http://rabbitmq:15692/metrics', timeout=20).read().decode())"
        )
        assert "rabbitmq_queue_messages" in stack.compose("exec", "-T", "api", "python", "-c", ask)
    # And RedisInsight is well
    if "redis" in stack.services():
        assert stack.get("REDISINSIGHT_PORT", "/api/health/").status_code == 200


def test_the_pages_look_as_they_should_in_a_browser(stack: Stack) -> None:
    # Given a browser, and a finished job
    with stack.client() as client, Browser() as browser:
        job = client.submit("video", file=STREET, fps=2).wait(timeout=180)
        # Then Swagger UI draws the operations
        browser.open(f"{stack.url}/ui/", "/process")
        browser.picture(PICTURES / "swagger-ui.jpg")
        # And Flower lists each signature with its stage and its job
        listed = browser.open(f"http://127.0.0.1:{stack.ports['FLOWER_PORT']}/tasks", job.id, login=LOGIN)
        assert all(f"video.{stage}" in listed for stage in ("preprocess", "inference", "postprocess"))
        browser.picture(PICTURES / "flower.jpg")
        # And RabbitMQ's management lists the queues, with what waits on them
        if "rabbitmq" in stack.services():
            waiting = [client.submit("addition", x=n, y=1, delay=20) for n in range(20)]
            user, password = RABBITMQ_LOGIN
            browser.open(f"http://127.0.0.1:{stack.ports['RABBITMQ_UI_PORT']}/", "Username")
            browser.run(f"document.querySelector('[name=username]').value = '{user}'")
            browser.run(f"document.querySelector('[name=password]').value = '{password}'")
            browser.run("document.querySelector('input[type=submit]').click()")
            browser.wait("Overview")
            browser.run("location.hash = '#/queues'")
            listed = browser.wait("postprocess")
            assert all(name in listed for name in ("preprocess", "inference", "postprocess", "io"))
            # It counts every five seconds, and so often the page is drawn anew.
            until = time.monotonic() + 30
            while not (depth := browser.run(DEPTH_OF_IO)) and time.monotonic() < until:
                time.sleep(0.5)
            assert depth
            browser.picture(PICTURES / "rabbitmq.jpg")
            for one in waiting:
                one.dismiss()


def test_every_key_and_table_has_its_purpose_in_the_docs(stack: Stack) -> None:
    # Given the keys and the tables that the docs name
    page, tables = (ROOT / "docs" / "keys.md").read_text().split("## Postgres")
    if not stack.servers.endswith("-redis"):
        # When the tables of a stack that has worked are listed, then each is one of these
        asked = "select relname from pg_stat_user_tables where relname <> 'alembic_version'"
        postgres = stack.containers("postgres")[0]
        found = docker("exec", postgres, "psql", "-U", "gristmill", "-At", "-c", asked).split()
        named = re.findall(r"`(\w+)`", " ".join(row.split(" | ")[0] for row in re.findall(r"^\| `.*$", tables, re.M)))
        assert sorted(found) == sorted(named)
        return
    shapes: list[re.Pattern[str]] = []
    for row in re.findall(r"^\| `.*$", page, re.M):
        whole = ""
        for name in re.findall(r"`([^`]+)`", row.split(" | ")[0]):
            whole = whole.rsplit(":", 1)[0] + name if name.startswith(":") else name
            words = re.escape(whole).replace(r"\{line\}", ".+").replace(r"\*", ".+")
            shapes.append(re.compile(re.sub(r"\\\{\w+\\\}", "[^:]+", words)))
    # When the keys of a stack that has worked are listed
    redis = stack.containers("redis")[0]
    keys = docker("exec", redis, "redis-cli", "--scan").split()
    # Then each is one of these, and a job's record can be read as it stands
    assert keys
    assert [key for key in keys if not any(shape.fullmatch(key) for shape in shapes)] == []
    job = next(key for key in keys if re.fullmatch(r"job:[^:]+", key))
    assert "pipeline" in docker("exec", redis, "redis-cli", "HKEYS", job).split()
    assert docker("exec", redis, "redis-cli", "TYPE", f"{job}:events").strip() == "stream"


def test_the_doctor_finds_nothing_unsafe_but_the_passwords_of_development(stack: Stack) -> None:
    # When the doctor looks at the stack from one of its containers, as docs/operating.md says
    assert "docker compose exec api python -m jobs.doctor" in OPERATING
    said = stack.compose("exec", "-T", "api", "python", "-m", "jobs.doctor", "--json", check=False)
    found = json.loads(said.splitlines()[-1])
    # Then it sees both passwords of .env, and nothing else that is unsafe
    unsafe = {one["check"]: one["text"] for one in found if one["verdict"] == "unsafe"}
    assert set(unsafe) == {"store password", "broker password"}, unsafe
    # And what it could look at is as it should be: no write that was acknowledged is forgotten, every queue is served
    well = {one["check"] for one in found if one["verdict"] == "ok"}
    assert well >= {"store", "clock", "disk", "waits", "queues"}
    for name, server in zip(("broker", "store"), stack.servers.split("-"), strict=True):
        if server == "redis":
            assert {f"{name} AOF", f"{name} eviction"} <= well


def test_our_containers_have_no_rights_and_nothing_is_open(stack: Stack) -> None:
    # Given what Docker knows of each container
    services = stack.services()
    assert set(services) >= OURS
    for name, containers in services.items():
        for one in containers:
            host = one["HostConfig"]
            # Then nobody keeps capabilities that were not asked for, or can gain any
            assert host["CapDrop"] == ["ALL"], name
            assert "no-new-privileges:true" in host["SecurityOpt"], name
            assert not host["Privileged"], name
            # And only the proxy and the windows are published, on this machine alone
            published = {port: found for port, found in (host["PortBindings"] or {}).items() if found}
            assert set(published) == PORTS.get(name, set()), name
            assert {found["HostIp"] for bindings in published.values() for found in bindings} <= {"127.0.0.1"}, name
            if name in OURS | {"proxy"}:
                assert one["Config"]["User"] not in ("", "0", "root", "0:0"), name
                assert host["ReadonlyRootfs"], name
                assert not host["CapAdd"], name
                assert host["Init"], name
    # And inside it is as promised: no root, no capability, nothing to write
    for name in OURS:
        said = docker(
            "exec", services[name][0]["Id"], "sh", "-c", "id -u; grep CapEff /proc/self/status; touch /app/x 2>&1; true"
        )
        uid, capabilities, refused = said.splitlines()
        assert (uid, capabilities.split()[1].strip("0"), "Read-only" in refused) == ("10001", "", True), name
    # And broker and stores are on the inner network, which leads nowhere
    network = f"{stack.project}_inside"
    assert docker("network", "inspect", network, "--format", "{{.Internal}}").strip() == "true"
    for name in {"redis", "postgres"} & set(services):
        assert list(services[name][0]["NetworkSettings"]["Networks"]) == [network], name


def test_the_proxy_refuses_what_is_too_large_before_it_comes(stack: Stack) -> None:
    # When somebody announces more than the proxy lets through
    with socket.create_connection(("127.0.0.1", int(stack.ports["API_PORT"])), timeout=30) as line:
        line.sendall(
            b"POST /files HTTP/1.1\r\nHost: x\r\nContent-Type: video/mp4\r\nContent-Length: 11000000000\r\n\r\n"
        )
        answer = line.recv(65536)
        while b"}" not in answer and (chunk := line.recv(65536)):
            answer += chunk
    # Then it is refused as everything is, at once
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer
    assert b'"/problems/body-too-large"' in answer


def test_the_proxy_waits_for_nobody(stack: Stack) -> None:
    # Given a client that drips its headers, and one that stops in mid-body
    # Then both are cut off in time
    lasted = {name: dawdler.lasted() for name, dawdler in stack.dawdlers.items()}
    assert 8 < lasted["headers"] < 20
    assert 25 < lasted["body"] < 50
    # And of the half upload nothing is left
    files = docker("exec", stack.containers("api")[0], "find", "/var/lib/gristmill/files/.aside", "-type", "f")
    assert files == ""


def test_the_proxy_says_when_to_come_back_where_no_gateway_is(stack: Stack) -> None:
    # When the gateway is away
    stack.compose("stop", "--timeout", "5", "api")
    answer = stack.get("API_PORT", "/jobs")
    stack.start("api")
    # Then the proxy answers in its place: status, header and body say the same
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (answer.json()["type"], answer.json()["status"]) == ("/problems/gateway-away", 503)
