"""The composed stack as its operator has it: brought up, killed, scaled and taken down by `docker compose`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx2

from gristmill import Client
from jobs.up import free_port
from tests.compose.dawdlers import Dawdler

ROOT = Path(__file__).resolve().parent.parent.parent
LOGIN = ("gristmill", "insecure-flower")
RABBITMQ_LOGIN = ("gristmill", "insecure-rabbitmq")
UP_S = 240


class Stack:
    """One compose project on ports of its own. `servers` names a file of docker/env, or `env_file` is another one."""

    def __init__(
        self,
        servers: str,
        project: str = "",
        files: Sequence[str] = ("docker-compose.yml",),
        env: Mapping[str, str] | None = None,
        env_file: Path | None = None,
    ) -> None:
        self.servers, self.project, self._files = servers, project or f"gristmill-try-{servers}", files
        self._env_files = (".env", str(env_file or f"docker/env/{servers}.env"))
        self.ports = {
            name: str(free_port())
            for name in (
                *("API_PORT", "PROXY_TLS_PORT", "RABBITMQ_UI_PORT", "REDISINSIGHT_PORT", "FLOWER_PORT"),
                *("PROMETHEUS_PORT", "GRAFANA_PORT"),
            )
        }
        self.env = {**self.ports, "FILES_VOLUME": f"{self.project}-files", "WORKER_GRACE_S": "10", **(env or {})}
        self.url = f"http://127.0.0.1:{self.ports['API_PORT']}"
        self.dawdlers: dict[str, Dawdler] = {}

    def compose(self, *arguments: str, timeout: float = 300, check: bool = True) -> str:
        """`docker compose ...` of this project; what it said. AssertionError with that when it fails."""
        named = [word for file in self._files for word in ("-f", file)]
        told = [word for file in self._env_files for word in ("--env-file", file)]
        done = subprocess.run(
            ["docker", "compose", "--progress", "plain", *named, *told, "-p", self.project, *arguments],
            cwd=ROOT,
            env={**os.environ, **self.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"docker compose {' '.join(arguments)}\n{done.stdout[-4000:]}"
        return done.stdout

    def variable(self, name: str) -> str:
        """What a variable of the env files is for this project."""
        told = [(ROOT / file).read_text() for file in self._env_files]
        found = re.findall(rf"^{name}=(.*)$", "\n".join(told), re.M)
        return str(self.env.get(name, found[-1]))

    def build(self) -> None:
        """Build our images."""
        self.compose("build", timeout=1800)

    def up(self, *more: str, **env: str) -> float:
        """Bring it up, or to what `env` says now; the seconds until everything was healthy."""
        self.env |= env
        began = time.monotonic()
        try:
            self.compose("up", "-d", "--wait", "--wait-timeout", str(UP_S), *more, timeout=UP_S + 60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.compose('ps', '-a')}\n{self.said()}") from None
        return time.monotonic() - began

    def down(self, *more: str) -> None:
        """Take it down; volumes stay unless `-v` is said."""
        self.compose("down", "--remove-orphans", *more)

    def said(self) -> str:
        """The ends of all logs."""
        return self.compose("logs", "--tail", "30", "--no-color", check=False)[-12_000:]

    def containers(self, service: str = "") -> list[str]:
        """The running containers of a service, or all."""
        return self.compose("ps", "-q", *([service] if service else [])).split()

    def services(self) -> dict[str, list[Mapping[str, Any]]]:
        """What Docker knows of each running container, by service."""
        found: dict[str, list[Mapping[str, Any]]] = {}
        for one in json.loads(docker("inspect", *self.containers())):
            found.setdefault(one["Config"]["Labels"]["com.docker.compose.service"], []).append(one)
        return found

    def crash(self, service: str) -> None:
        """kill -9 of everything in one of our containers, from inside; Docker's restart policy brings it back."""
        docker("exec", self.containers(service)[0], "sh", "-c", "kill -9 -1", check=False)

    def kill(self, service: str) -> None:
        """kill -9 of a whole container, which stays down until `start`."""
        docker("kill", "--signal", "KILL", self.containers(service)[0])

    def start(self, service: str) -> None:
        """Start what was killed, and wait until it is healthy."""
        self.compose("start", service)
        self.wait_until_healthy(service)

    def wait_until_healthy(self, *services: str, within_s: float = 120) -> None:
        """Wait for what Docker or `start` brings back."""
        until = time.monotonic() + within_s
        while sick := [service for service in services if not self.is_healthy(service)]:
            assert time.monotonic() < until, f"{sick} did not become healthy\n{self.said()}"
            time.sleep(0.5)

    def is_healthy(self, service: str) -> bool:
        """Whether there is a container of it, and all of them are healthy."""
        found = [
            one
            for one in json.loads(docker("inspect", *self.compose("ps", "-aq", service).split()))
            if one["State"]["Status"] != "exited" or one["State"]["ExitCode"] != 0
        ]
        return bool(found) and all(one["State"].get("Health", {}).get("Status") == "healthy" for one in found)

    def shell(self, lines: str, folder: Path, timeout: float = 300) -> str:
        """Lines of the docs, as somebody types them in `folder`; what they printed. AssertionError when one fails.

        The docs say `gristmill`, and this project has a name and ports of its own.
        """
        for said, here in (
            ("gristmill_", f"{self.project}_"),
            ("gristmill-files", self.env["FILES_VOLUME"]),
            ("localhost:3333", f"localhost:{self.ports['API_PORT']}"),
        ):
            lines = lines.replace(said, here)
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", lines],
            cwd=folder,
            env={
                **os.environ,
                **self.env,
                "COMPOSE_PROJECT_NAME": self.project,
                "COMPOSE_FILE": ":".join(str(ROOT / file) for file in self._files),
                "COMPOSE_ENV_FILES": ",".join(str(ROOT / file) for file in self._env_files),
            },
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{lines}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def client(self) -> Client:
        """A client that outlives restarts."""
        return Client(self.url, patience=90)

    def get(self, window: str, path: str, **options: Any) -> httpx2.Response:
        """GET from a published port."""
        return httpx2.get(f"http://127.0.0.1:{self.ports[window]}{path}", **{"timeout": 30, **options})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down("-v", "--timeout", "0")


def docker(*arguments: str, check: bool = True, timeout: float = 300) -> str:
    """`docker ...`; its output."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False)
    assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr[-2000:]}"
    return done.stdout
