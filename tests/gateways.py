"""Real gateways for tests: a server process on a port of its own, beside real neighbours, or with workers behind it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import httpx2
from starlette.types import ASGIApp

from tests.mill import Mill
from tests.neighbours import Started, free_port

ROOT = Path(__file__).resolve().parent.parent

PIPELINES = {
    "addition": None,  # the real one
    "clip": """
title: Takes a video
input: {file: [video/*], files: [video/*], required: true}
stages:
  - {name: cut, queue: io}
  - {name: look, queue: io, each: true}
  - {name: join, queue: io}
params: {type: object, additionalProperties: false, properties: {fps: {type: number, default: 5, minimum: 1}}}
""",
    "tiles": """
title: Ends with a stage that runs for each part
stages:
  - {name: cut, queue: io}
  - {name: look, queue: io, each: true}
""",
    "page": """
title: Takes a URL or a text
input: {url: [], text: []}
stages: [{name: read, queue: io}]
params: {type: object}
""",
}


def make_pipelines(folder: Path) -> Path:
    """A folder of pipelines: the real `addition`, and some that no worker knows."""
    for name, text in PIPELINES.items():
        (folder / name).mkdir(parents=True)
        real = ROOT / "celery_worker" / "pipelines" / name
        if text is None:
            text = (real / "pipeline.yaml").read_text()
            (folder / name / "example.json").write_text((real / "example.json").read_text())
        (folder / name / "pipeline.yaml").write_text(text)
    return folder


def validated() -> ASGIApp:
    """The gateway with response validation, as uvicorn's factory."""
    from api.app import create_app
    from api.services import open_services
    from jobs.settings import load

    return create_app(open_services(load()), validate_responses=True)


class Gateway(Started):
    """One gateway. `production`: gunicorn as it is really started; else one uvicorn that validates its answers."""

    def __init__(self, port: int, store_url: str, broker_url: str, folder: Path, **settings: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.files = folder / "files"
        self.log = folder / "gateway.log"
        self.store_url = store_url
        pipelines = folder / "pipelines"
        if not pipelines.exists():
            make_pipelines(pipelines)
        self._port = port
        self._env = {
            **os.environ,
            "API_PORT": str(port),
            "STORE_URL": store_url,
            "BROKER_URL": broker_url,
            "FILES_URL": self.files.as_uri(),
            "PIPELINE_DIRS": str(pipelines),
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, production: bool = False, processes: int = 1) -> Self:
        """Start it and wait until it answers."""
        module = ("uvicorn", "--factory", "tests.gateways:validated", "--port", str(self._port), "--no-access-log")
        if production:
            module = ("gunicorn", "-c", "python:api.gunicorn_conf", "-b", f"127.0.0.1:{self._port}", "api.main:app")
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *module],
                cwd=ROOT,
                env={**self._env, "WEB_CONCURRENCY": str(processes)},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if httpx2.get(f"{self.url}/livez").status_code == 200:
                    return self
            except httpx2.TransportError:
                time.sleep(0.05)
        raise RuntimeError(f"The gateway did not start:\n{self.log.read_text()[-3_000:]}")

    def client(self, timeout: float = 20.0) -> httpx2.Client:
        """A client of this gateway."""
        return httpx2.Client(base_url=self.url, timeout=timeout)

    def words(self) -> str:
        """What it logged."""
        return self.log.read_text(errors="replace")

    def close(self) -> None:
        """End it politely, then by force."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)  # its processes too
                self.process.wait()


@contextmanager
def installed(
    folder: Path,
    broker_url: str,
    store_url: str,
    pipeline: tuple[str, str, str],
    *,
    processes: int = 1,
    **settings: str,
) -> Iterator[tuple[Mill, Gateway]]:
    """A gateway as it is started in earnest, a sweeper, and for each queue of one pipeline a worker with one child.

    `pipeline` is its name, its pipeline.yaml and its stages.py. Once all of them are ready.
    """
    name, told, stages = pipeline
    of_pipeline = folder / "pipelines" / name
    of_pipeline.mkdir(parents=True)
    (of_pipeline / "pipeline.yaml").write_text(told)
    (of_pipeline / "stages.py").write_text(stages)
    settings["PIPELINE_DIRS"] = str(folder / "pipelines")
    gateway = Gateway(free_port(), store_url, broker_url, folder, **settings)
    with Mill(broker_url, store_url, folder, LEASE_S=15, **settings) as mill:
        try:
            gateway.start(production=True, processes=processes)
            queues = mill.pipelines.queues
            for queue in queues:
                mill.worker(queue, "-c", "1")
            mill.start("sweeper", ["-m", "jobs.sweeper"])
            mill.until(lambda: mill.logs().count(" ready.") == len(queues), within_s=90, what="the workers")
            yield mill, gateway
        finally:
            gateway.close()
