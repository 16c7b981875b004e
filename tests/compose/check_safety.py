"""What an operator sets once: secrets outside dev, certificates, secrets in files, open ports."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import kombu
import psycopg2
import pytest
import redis

from jobs.up import free_port
from tests.compose.conftest import built
from tests.compose.stack import ROOT, Stack


@pytest.fixture(scope="module")
def images() -> Iterator[Stack]:
    """A project of which nothing runs yet."""
    with Stack("redis-postgres", "gristmill-safety") as one:
        built(one)
        yield one


@pytest.mark.parametrize("service", ["api", "sweeper", "worker-io", "worker-inference", "flower"])
def test_production_refuses_the_development_passwords(images: Stack, service: str) -> None:
    # When a process of ours starts outside dev with the passwords of .env
    images.env["ENVIRONMENT"] = "production"
    said = images.compose("run", "--rm", "--no-deps", service, check=False)
    # Then it ends, and names the variable but not the secret
    assert "has an insecure- secret, which production refuses" in said
    assert "insecure-redis" not in said


def test_made_secrets_are_random_and_for_one_pair_of_eyes(tmp_path: Path) -> None:
    # When secrets are made twice
    command = ["python3", str(ROOT / "docker" / "write_secrets.py")]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=30)
    first = (tmp_path / "secrets.env").read_text()
    again = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, timeout=30)
    # Then the first stay, nobody else may read them, and none is a development one
    assert (again.returncode, (tmp_path / "secrets.env").read_text()) == (1, first)
    assert (tmp_path / "secrets.env").stat().st_mode & 0o077 == 0
    assert "insecure-" not in first.split("\n", 1)[1]


def test_a_secret_may_come_in_a_file(images: Stack, tmp_path: Path) -> None:
    # Given a store's address in a file, where Docker mounts secrets
    (tmp_path / "store_url").write_text("postgresql://gristmill:a-secret@nowhere:5432/gristmill")
    tmp_path.chmod(0o755)
    # When the migration starts without the variable, then it asks that address
    run = ["run", "--rm", "-v", f"{tmp_path}:/run/secrets:ro", "gristmill/api:dev", "python", "-m", "jobs.migrate"]
    done = subprocess.run(["docker", *run], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "a-secret" not in done.stderr


def test_with_certificates_the_gateway_speaks_tls(images: Stack, tmp_path: Path) -> None:
    # Given a certificate for this machine
    key, certificate = tmp_path / "privkey.pem", tmp_path / "fullchain.pem"
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    request += f" -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    subprocess.run(request.split(), check=True, capture_output=True, timeout=30)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    os.chown(key, 101, 101)
    images.env["ENVIRONMENT"] = "dev"
    # When the stack comes up with it
    images.up("api", "proxy", "worker-io", PROXY_MODE="tls", PROXY_CERTIFICATES=str(tmp_path))
    try:
        # Then jobs go over TLS, and what comes in plain is sent there
        context = ssl.create_default_context(cafile=str(certificate))
        secure = f"https://localhost:{images.ports['PROXY_TLS_PORT']}"
        body = {"pipeline": "addition", "params": {"x": 40, "y": 2}}
        with httpx2.Client(verify=context, timeout=60) as client:
            answer = client.post(f"{secure}/process", json=body, headers={"Prefer": "wait=30"})
            assert answer.json()["result"] == 42
        plain = httpx2.get(f"http://localhost:{images.ports['API_PORT']}/jobs?limit=1", follow_redirects=False)
        assert (plain.status_code, plain.headers["Location"]) == (308, f"{secure}/jobs?limit=1")
    finally:
        images.down("-v")


@pytest.fixture(scope="module")
def opened() -> Iterator[Stack]:
    """The servers alone, with the override that publishes them on this machine."""
    ports = {f"OPEN_{name}_PORT": str(free_port()) for name in ("RABBITMQ", "REDIS", "POSTGRES")}
    env = {**ports, "COMPOSE_PROFILES": "rabbitmq,redis,postgres"}
    files = ("docker-compose.yml", "docker-compose.open.yml")
    with Stack("rabbitmq-redis", "gristmill-open", files=files, env=env) as one:
        one.up("rabbitmq", "redis", "postgres")
        yield one


def test_the_open_override_lets_this_machine_in_with_the_right_passwords_only(opened: Stack) -> None:
    # Given the servers' ports, on 127.0.0.1
    rabbitmq, cache, postgres = (opened.env[f"OPEN_{name}_PORT"] for name in ("RABBITMQ", "REDIS", "POSTGRES"))
    # When programs on this machine come with the passwords of .env, then they are let in
    kombu.Connection(f"amqp://gristmill:insecure-rabbitmq@127.0.0.1:{rabbitmq}//", connect_timeout=10).connect()
    assert redis.Redis(port=int(cache), password="insecure-redis").ping()
    psycopg2.connect(f"postgresql://gristmill:insecure-postgres@127.0.0.1:{postgres}/gristmill").close()
    # And with others they are not
    with pytest.raises(Exception, match="ACCESS_REFUSED"):
        kombu.Connection(f"amqp://gristmill:other@127.0.0.1:{rabbitmq}//", connect_timeout=10).connect()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=int(cache), password="other").ping()
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(f"postgresql://gristmill:other@127.0.0.1:{postgres}/gristmill")
    # And nobody else can ask: the ports are this machine's alone
    for containers in opened.services().values():
        for bindings in containers[0]["HostConfig"]["PortBindings"].values():
            assert {found["HostIp"] for found in bindings} == {"127.0.0.1"}
