"""A whole installation on servers of its own: two gateways, a worker for every queue, two sweepers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from jobs.files import open_files
from jobs.store import open_store
from tests.conftest import migrate
from tests.faults.processes import ROOT, Keeper, Kept
from tests.neighbours import Postgres, RabbitMQ, Server, Started, Valkey, any_rabbitmq, free_port

LEASE_S = 6.0
READY_S = 180.0
ENDLESS = 5  # starts of one process, before anything was done to it
PIPELINES = (ROOT / "celery_worker" / "pipelines", ROOT / "tests" / "faults" / "pipelines")
CHILDREN = {"battery_grind": 3}  # eight of a job's ten parts are its own
QUEUES = ("battery_split", "battery_grind", "battery_gather")


@dataclass(frozen=True)
class Pair:
    """A store and a broker, and what their columns in the table say."""

    store: str
    broker: str

    @property
    def queue_type(self) -> str:
        """The setting."""
        return "quorum" if self.broker == "quorum" else "classic"


CLASSIC = Pair("redis", "classic")
QUORUM = Pair("postgres", "quorum")
POSTGRES_REDIS = Pair("postgres", "redis")
REDIS_REDIS = Pair("redis", "redis")
PAIRS = (CLASSIC, QUORUM, POSTGRES_REDIS, REDIS_REDIS)


class Installation(Started):
    """Used as a context manager, it leaves nothing behind; with `keep_logs` its folder stays.

    `settings` go to every process. Its servers are `store_server` and `broker_server`; its processes `gateways`,
    `workers` (by queue) and `sweepers`; `store` and `files` are the test's own eyes.
    """

    def __init__(self, pair: Pair, queues: tuple[str, ...] = QUEUES, **settings: object) -> None:
        self.pair, self.queues = pair, queues
        self.folder = Path(tempfile.mkdtemp(prefix="gristmill-faults-"))
        self.effects = self.folder / "effects.log"
        self.effects.touch()
        self.store_server: Server = Valkey() if pair.store == "redis" else Postgres()
        self.broker_server: Server = Valkey() if pair.broker == "redis" else own_rabbitmq()
        self.settings = {name: str(value) for name, value in settings.items()}
        self.ports = [free_port(), free_port()]
        self.keeper = Keeper()
        self.gateways: list[Kept] = []
        self.workers: dict[str, Kept] = {}
        self.sweepers: list[Kept] = []
        self.keep_logs = False
        self.borrowed = contextlib.ExitStack()  # mounts and namespaces: given back once everything has ended

    def start(self) -> Self:
        """Start everything, and wait until a job has come through."""
        (self.folder / "files").mkdir()
        self.broker_server.start()
        self.store_server.start()
        if self.pair.store == "postgres":
            migrate(self.store_server.url)
        self.store = open_store(self.store_server.url)
        self.files = open_files(self.env["FILES_URL"])
        self.gateways = [self.gateway(n) for n in range(2)]
        self.workers = {queue: self.worker(queue, children=CHILDREN.get(queue, 1)) for queue in self.queues}
        self.sweepers = [self.keep(f"sweeper-{n}", "-m", "jobs.sweeper") for n in range(2)]
        self.until(lambda: all(ready(port) for port in self.ports), "the gateways to be ready", READY_S)
        self.until(self._works, "a first job to come through", READY_S)
        return self

    def gateway(self, number: int, **env: str) -> Kept:
        """Start one of the two gateways."""
        return self.gateway_at(self.ports[number], f"gateway-{number}", **env)

    def gateway_at(self, port: int, name: str, **env: str) -> Kept:
        """Start a gateway: gunicorn with one process, as production runs it."""
        command = ("-m", "gunicorn", "-c", "python:api.gunicorn_conf", "-b", f"127.0.0.1:{port}", "--log-level")
        return self.keep(
            name, *command, "warning", "--graceful-timeout", "8", "api.main:app", WEB_CONCURRENCY="1", **env
        )

    def worker(self, queue: str, *flags: str, children: int = 1, name: str = "", **env: str) -> Kept:
        """Start a worker of one queue."""
        name = name or f"worker-{queue}"
        command = ("-m", "celery_worker", "--grace", "8", "-c", str(children), *flags)
        return self.keep(name, *command, QUEUES=queue, WORKER_NAME=name, **env)

    def keep(self, name: str, *argv: str, **env: str) -> Kept:
        """Start a Python process with the settings of this installation, and keep it running."""
        return self.keeper.keep(Kept(name, argv, {**self.env, **env}, self.folder / f"{name}.log"))

    @property
    def env(self) -> dict[str, str]:
        """What every process is told."""
        return {
            "BROKER_URL": broker_url(self.broker_server),
            "STORE_URL": self.store_server.url,
            "FILES_URL": (self.folder / "files").as_uri(),
            "PIPELINE_DIRS": ",".join(map(str, PIPELINES)),
            "QUEUE_TYPE": self.pair.queue_type,
            "MODELS_DIR": str(ROOT / "models"),
            "LEASE_S": str(LEASE_S),
            "DEVICE": "cpu",
            "LOG_LEVEL": "info",
            "TMPDIR": str(self.folder),
            "GRISTMILL_EFFECTS": str(self.effects),
            **self.settings,
        }

    @property
    def lease_s(self) -> float:
        """How long a claim holds without a heartbeat."""
        return float(self.env["LEASE_S"])

    def until(self, holds: Callable[[], object], what: str, within_s: float) -> None:
        """Wait until something holds. Raises TimeoutError with the ends of the logs."""
        until = time.monotonic() + within_s
        while not holds():
            if time.monotonic() > until:
                raise TimeoutError(f"waited {within_s:g} s for {what}\n{self.logs()}")
            time.sleep(0.05)

    def logs(self) -> str:
        """The last words of every process."""
        return "\n".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-1_500:]}" for log in sorted(self.folder.glob("*.log"))
        )

    def close(self) -> None:
        """End everything."""
        self.keeper.close()
        if hasattr(self, "store"):
            self.store.close()
        self.broker_server.close()
        self.store_server.close()
        self.borrowed.close()
        if not self.keep_logs:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _works(self) -> bool:
        again = [
            kept.name for kept in (*self.gateways, *self.workers.values(), *self.sweepers) if kept.starts > ENDLESS
        ]
        if again:
            raise RuntimeError(f"{', '.join(again)} cannot start\n{self.logs()}")
        named = {"pipeline": "battery", "params": {"name": f"first-{time.monotonic_ns()}"}}
        body = named if set(QUEUES) <= set(self.queues) else {"pipeline": "addition", "params": {"x": 1, "y": 1}}
        status, job = call(self.ports[0], "POST", "/process", body, {"Prefer": "wait=20"}, timeout=30)
        return status == 200 and job["status"] == "successful"


def own_rabbitmq() -> RabbitMQ:
    """Never the one that RABBITMQ_URL names: this one is killed."""
    named = os.environ.pop("RABBITMQ_URL", None)
    try:
        return any_rabbitmq()
    finally:
        if named is not None:
            os.environ["RABBITMQ_URL"] = named


def broker_url(server: Server) -> str:
    """Where a server's queues are: RabbitMQ's default virtual host, or the first database."""
    return f"{server.url}/" if isinstance(server, RabbitMQ) else server.url


def ready(port: int) -> bool:
    """Whether a gateway is ready for traffic."""
    try:
        return call(port, "GET", "/readyz", timeout=5)[0] == 200
    except OSError:
        return False


def call(
    port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 10
) -> tuple[int, Any]:
    """One request of JSON on a connection of its own; its status and JSON. Raises OSError when there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if content else None
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()
