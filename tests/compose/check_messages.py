"""The table of docs/operating.md: each message is brought about, and seen as it stands there."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from tests.compose.conftest import built
from tests.compose.stack import ROOT, Stack, docker

PROJECT = "gristmill-trouble"
PAGE = (ROOT / "docs" / "operating.md").read_text().split("## Troubleshooting")[1]
ROWS = [row.split(" | ")[0].removeprefix("| ") for row in re.findall(r"^\| .*`.*$", PAGE, re.M)]
LATER_S = 60.0
SERVICES = ("api", "proxy", "sweeper", "worker-io", "rabbitmq", "migrate")


@pytest.fixture(scope="module")
def trouble() -> Iterator[Stack]:
    """A stack with every server, whose volume of files is 40 MB small."""
    env = {"COMPOSE_PROFILES": "rabbitmq,redis,postgres", "API_PROCESSES": "1"}
    with Stack("rabbitmq-redis", PROJECT, env=env) as one:
        one.down("-v")
        built(one)
        small = ("--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=40m,uid=10001,gid=10001,mode=750")
        label = f"com.docker.compose.project={PROJECT}"
        docker("volume", "create", "--label", label, "--label", "com.docker.compose.volume=files", *small, FILES)
        one.up(*SERVICES)
        yield one


FILES = f"{PROJECT}-files"


def no_settings(_: Stack) -> str:
    """A process of ours without its environment."""
    return run("docker", "run", "--rm", "gristmill/api:dev", "python", "-m", "jobs.sweeper")


def no_dot_env(_: Stack) -> str:
    """An env file that took the place of .env."""
    return run("docker", "compose", "--env-file", "docker/env/redis-postgres.env", "config")


def development_passwords(stack: Stack) -> str:
    """Production with the passwords of .env."""
    return stack.compose("run", "--rm", "--no-deps", "-e", "ENVIRONMENT=production", "sweeper", check=False)


def another_rabbitmq_password(stack: Stack) -> str:
    """A worker with a password that RabbitMQ was not made with."""
    url = "amqp://gristmill:other@rabbitmq:5672//"
    named = f"{PROJECT}-stranger"
    stack.compose("run", "-d", "--no-deps", "--name", named, "-e", f"BROKER_URL={url}", "worker-io")
    try:
        return until_said("ACCESS_REFUSED", lambda: run("docker", "logs", named))
    finally:
        docker("rm", "-f", "-v", named)


def another_postgres_password(stack: Stack) -> str:
    """The migration with a password that Postgres was not made with."""
    url = "postgresql://gristmill:other@postgres:5432/gristmill"
    return stack.compose("run", "--rm", "--no-deps", "-e", f"STORE_URL={url}", "migrate", check=False)


def port_of_another_program(stack: Stack) -> str:
    """A program that listens where the gateway should."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        said = run("docker", "run", "--rm", "-p", f"127.0.0.1:{port}:8080", "gristmill/api:dev", "true")
    return said.replace(port, stack.ports["API_PORT"])


def port_of_another_container(stack: Stack) -> str:
    """Another stack that is published where the gateway should be."""
    where = f"127.0.0.1:{stack.ports['API_PORT']}:8080"
    return run("docker", "run", "--rm", "-p", where, "gristmill/api:dev", "true")


def no_gateway(stack: Stack) -> str:
    """The proxy without a gateway."""
    stack.compose("stop", "--timeout", "2", "api")
    try:
        answer = stack.get("API_PORT", "/jobs")
        return f"{answer.status_code} {answer.text}"
    finally:
        stack.start("api")


def no_store(stack: Stack) -> str:
    """The gateway without its store, for so long that Docker notices."""
    stack.compose("stop", "--timeout", "2", "redis")
    try:
        said = until_said("store-unavailable", lambda: told(stack.get("API_PORT", "/jobs", timeout=110)))
        return said + until_said("(unhealthy)", lambda: stack.compose("ps"), within_s=150)
    finally:
        stack.start("redis")


def files_full(stack: Stack) -> str:
    """An upload that is larger than the volume."""
    url = f"{stack.url}/files"
    upload = ("curl", "-s", "-w", " %{http_code}", url, "-H", "Content-Type: video/mp4", "--data-binary", "@-")
    return run(*upload, given=bytes(48_000_000))


def no_broker(stack: Stack) -> str:
    """Jobs that were accepted without a broker, and are rung when it is back."""
    stack.compose("stop", "--timeout", "5", "rabbitmq")
    with stack.client() as client:
        jobs = [client.submit("addition", x=n, y=2) for n in range(3)]
        said = until_said("step_put_off", lambda: stack.compose("logs", "--no-log-prefix", "sweeper"))
        stack.start("rabbitmq")
        assert [job.wait(timeout=90).result for job in jobs] == [2, 3, 4]
    return said + until_said("rung_again", lambda: stack.compose("logs", "--no-log-prefix", "sweeper"))


def small_memory(stack: Stack) -> str:
    """A worker whose children may hold less than Python needs."""
    stack.up("--no-deps", "worker-io", MAX_MEMORY_MB="64")
    with stack.client() as client:
        job = client.submit("addition", x=40, y=2, delay=20).wait(timeout=120)
    stack.up("--no-deps", "worker-io", MAX_MEMORY_MB="4096")
    return str(job.error)


def full_redis(stack: Stack) -> str:
    """A Redis that may not grow: what the gateway answers, and what Redis says itself."""
    redis = stack.containers("redis")[0]
    docker("exec", redis, "redis-cli", "config", "set", "maxmemory", "1mb")
    try:
        said = until_said("store-unavailable", lambda: submit(stack))
        assert "store-unavailable" in said
        return said + stack.compose("exec", "-T", "redis", "redis-cli", "set", "a", "b", check=False)
    finally:
        docker("exec", redis, "redis-cli", "config", "set", "maxmemory", "0")


def rabbitmqs_alarm(stack: Stack) -> str:
    """A RabbitMQ that has too little memory."""
    rabbitmq = stack.containers("rabbitmq")[0]
    docker("exec", rabbitmq, "rabbitmqctl", "set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        asked = lambda: submit(stack) + stack.compose("logs", "--no-log-prefix", "api", "sweeper")  # noqa: E731
        return until_said("blocked its publishers", asked)
    finally:
        docker("exec", rabbitmq, "rabbitmqctl", "set_vm_memory_high_watermark", "0.5")


WAYS: tuple[Callable[[Stack], str], ...] = (
    no_settings,
    no_dot_env,
    development_passwords,
    another_rabbitmq_password,
    another_postgres_password,
    port_of_another_program,
    port_of_another_container,
    no_gateway,
    no_store,
    files_full,
    no_broker,
    small_memory,
    full_redis,
    rabbitmqs_alarm,
)


def run(*command: str, given: bytes = b"") -> str:
    """Both outputs of a command, whatever its end."""
    out = subprocess.run(command, cwd=ROOT, input=given, stdout=-1, stderr=subprocess.STDOUT, timeout=120, check=False)
    return out.stdout.decode(errors="replace")


def told(answer: object) -> str:
    """An answer's status and body."""
    return f"{answer.status_code} {answer.text}"  # type: ignore[attr-defined]


def submit(stack: Stack) -> str:
    """What the gateway answers to an addition now."""
    body = '{"pipeline": "addition", "params": {"x": 1, "y": 2}}'
    return run("curl", "-s", f"{stack.url}/process", "-H", "Content-Type: application/json", "-d", body)


def until_said(word: str, ask: Callable[[], str], within_s: float = LATER_S) -> str:
    """What is said once it has that word, or after a while."""
    until = time.monotonic() + within_s
    while word not in (said := ask()) and time.monotonic() < until:
        time.sleep(1)
    return said


def test_each_message_of_the_table_is_one_that_is_really_said(trouble: Stack) -> None:
    # Given what is said when each of these goes wrong
    said = {way.__name__: way(trouble) for way in WAYS}
    everything = "\n".join(said.values()).replace(trouble.ports["API_PORT"], "3333")
    # Then each message of the table was among it, word for word
    spans = [span for row in ROWS for span in re.findall(r"`([^`]+)`", row)]
    messages = [span for span in spans if not span.startswith("docker ")]
    assert said["no_gateway"].startswith("503 ")
    assert said["no_store"].startswith("503 ")
    assert said["files_full"].endswith(" 507")
    assert len(messages) > 10
    unheard = [message for message in messages if message not in everything]
    assert unheard == [], "\n\n".join(f"== {name}\n{text[-1500:]}" for name, text in said.items())
