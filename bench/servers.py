"""The servers of a bench: ours and the peers', each a process of its own, on 127.0.0.1 and on free ports."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil

from tests.neighbours import RabbitMQ, Valkey, any_rabbitmq, free_port

ROOT = Path(__file__).resolve().parent.parent
READY_S = 90.0


class Servers:
    """One RabbitMQ, one Redis with AOF `always`, and the processes that use them. Ends what it started.

    Without `rabbitmq` Redis is our broker too: nothing is needed that does not come as a Python package.
    """

    def __init__(self, *, rabbitmq: bool = True) -> None:
        self._with_rabbitmq = rabbitmq
        self._vhosts: list[str] = []
        self._ending = contextlib.ExitStack()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # ended from outside, we end ours too
        try:
            self.folder = Path(self._ending.enter_context(tempfile.TemporaryDirectory(prefix="gristmill-bench-")))
            # Nothing is rewritten: one side would find that in its round, and the other not.
            self.valkey = self._ending.enter_context(Valkey("--auto-aof-rewrite-percentage", "0"))
            self.our_broker = self.valkey.url.removesuffix("/0") + "/2"
            if not self._with_rabbitmq:
                return self
            self.rabbitmq: RabbitMQ = self._ending.enter_context(any_rabbitmq())
            self._vhosts = [f"bench-{side}-{os.getpid()}" for side in ("ours", "peer")]
            self.our_broker, self.peer_broker = (self.rabbitmq.vhost(name) for name in self._vhosts)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, kind: object = None, error: object = None, traceback: object = None) -> None:
        if error is not None:
            print(self.logs(), file=sys.stderr)
        for process in self._processes.values():
            _tell(process, signal.SIGTERM)
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            _tell(process, signal.SIGKILL, group=True)
            process.wait()
        for name in self._vhosts:
            self.rabbitmq.drop_vhost(name)
        self._ending.close()

    @property
    def our_store(self) -> str:
        """Where our records are."""
        return self.valkey.url

    @property
    def peer_results(self) -> str:
        """Where the peer's results are: another database of the same server."""
        return self.valkey.url.removesuffix("/0") + "/1"

    def our_environment(self) -> dict[str, str]:
        """The settings of all our processes; everything else keeps its default."""
        return {
            "BROKER_URL": self.our_broker,
            "STORE_URL": self.our_store,
            "FILES_URL": f"file://{self.folder}/files",
            "PIPELINE_DIRS": f"{ROOT}/celery_worker/pipelines,{ROOT}/tests/pipelines",
            "MODELS_DIR": str(ROOT / "models"),
            "DEVICE": "cpu",
            "LOG_LEVEL": "warning",
        }

    def our_gateway(self, processes: int = 2, *, name: str = "gateway", app: str = "api.main:app", **env: str) -> int:
        """Start the gateway as `gristmill up` does; its port."""
        port = free_port()
        self.start(
            name,
            [*_gunicorn(port), "-c", "python:api.gunicorn_conf", app],
            **{**self.our_environment(), **env},
            WEB_CONCURRENCY=str(processes),
            API_PORT=str(port),
        )
        self.ready(port, "/readyz")
        return port

    def our_worker(self, queue: str) -> None:
        """Start the worker of one queue, with as many children as it thinks right."""
        self.start(f"worker-{queue}", ["-m", "celery_worker"], **self.our_environment(), QUEUES=queue)

    def our_sweeper(self) -> None:
        """Start a sweeper."""
        self.start("sweeper", ["-m", "jobs.sweeper"], **self.our_environment())

    def peer_gateway(self, app: str, processes: int = 2) -> int:
        """Start a FastAPI app under as many processes of the same server; its port."""
        port = free_port()
        workers = ["--workers", str(processes), "--worker-class", "uvicorn_worker.UvicornWorker"]
        self.start(f"peer-{app}", [*_gunicorn(port), *workers, app], **self.peer_environment())
        self.ready(port, "/openapi.json")
        return port

    def peer_worker(self, app: str, children: int) -> None:
        """Start Celery's own worker for a peer."""
        command = ["-m", "celery", "-A", app, "worker", "--loglevel", "WARNING", "--concurrency", str(children)]
        self.start("peer-worker", command, **self.peer_environment())

    def peer_environment(self) -> dict[str, str]:
        """Where a peer finds its neighbours."""
        return {"PEER_BROKER": self.peer_broker, "PEER_RESULTS": self.peer_results}

    def start(self, name: str, arguments: list[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start a Python process in a group of its own, its words in a log."""
        with (self.folder / f"{name.replace(':', '-')}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes[name] = process
        return process

    def processes(self, prefix: str) -> list[psutil.Process]:
        """Those whose name begins so."""
        return [psutil.Process(process.pid) for name, process in self._processes.items() if name.startswith(prefix)]

    def stop(self, name: str) -> None:
        """End one of them."""
        process = self._processes.pop(name)
        _tell(process, signal.SIGTERM)
        process.wait(60)

    def ready(self, port: int, path: str) -> None:
        """Wait until a server answers 200."""
        self.until(lambda: _answers(port, path), f"port {port} to answer {path}")

    def until(self, holds: Callable[[], object], what: str, within_s: float = READY_S) -> None:
        """Wait until something holds; a process that ended meanwhile, or too long a wait, is told with its log."""
        until = time.monotonic() + within_s
        while not holds():
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            if ended or time.monotonic() > until:
                raise RuntimeError(f"Waited for {what}. Ended: {ended or 'none'}.\n{self.logs()}")
            time.sleep(0.05)

    def logs(self) -> str:
        """The last words of every process."""
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-2_000:]}" for log in _logs(self.folder))


def _logs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def _gunicorn(port: int) -> list[str]:
    return ["-m", "gunicorn", "--no-control-socket", "--bind", f"127.0.0.1:{port}", "--log-level", "warning"]


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tell(process: subprocess.Popen[bytes], number: int, *, group: bool = False) -> None:
    """Signal a process that this bench started; `group` takes the children that it may have left."""
    with contextlib.suppress(ProcessLookupError):
        if group:
            os.killpg(process.pid, number)
        elif process.poll() is None:
            process.send_signal(number)
