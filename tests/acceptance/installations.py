"""Whole installations of Gristmill: the one-machine mode, and processes with RabbitMQ between them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil

from gristmill import Client
from tests.neighbours import Started, Valkey, free_port

ROOT = Path(__file__).resolve().parent.parent.parent
HEALTHY_WITHIN_S = 120.0


def gristmill(*arguments: object, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the `gristmill` command as a script would: no terminal, its output caught."""
    argv = [sys.executable, "-m", "gristmill", *map(str, arguments)]
    environment = {**os.environ, **env}
    return subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


class OneMachine(Started):
    """`gristmill up` in a folder of its own; `env` are settings. As a context manager it leaves nothing behind."""

    def __init__(self, **env: str) -> None:
        self.env = env
        self.home = Path(tempfile.mkdtemp(prefix="gristmill-up-"))
        self.folder = self.home / ".gristmill"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it on a free port, and wait until it says that it is healthy."""
        argv = [sys.executable, "-m", "gristmill", "up", "--port", "0", "--until-eof"]
        with (self.home / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                cwd=self.home,
                env={**os.environ, **self.env},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(lambda: "url" in self.state() or self.process.poll() is not None, HEALTHY_WITHIN_S, self.said)
        assert self.process.poll() is None, self.said()
        return self

    @property
    def url(self) -> str:
        """Where its gateway is."""
        return str(self.state()["url"])

    def state(self) -> dict[str, Any]:
        """What it says of itself once it is healthy."""
        try:
            found = json.loads((self.folder / "up.json").read_text())
        except (OSError, ValueError):
            return {}
        mine = self.process is not None and found.get("pid") == self.process.pid  # a killed one left its own
        return found if mine and found.get("url") else {}

    def said(self) -> str:
        """What it printed, and the ends of its logs."""
        logs = sorted((self.folder / "logs").glob("*.log"))
        tails = [f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs]
        return "\n".join([(self.home / "up.log").read_text(), *tails])

    def processes(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        assert self.process is not None
        try:
            supervisor = psutil.Process(self.process.pid)
            return [supervisor, *supervisor.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it as Ctrl-C or a service manager does; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(timeout=40)
        self._forget()
        return code

    def kill(self) -> None:
        """kill -9 of the whole group, as when the machine loses its power."""
        processes = self.processes()
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=10)
        self._forget()

    def _forget(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait(timeout=10)
        self.process = None
        (self.folder / "up.json").unlink(missing_ok=True)

    def close(self) -> None:
        """End it if it runs, and remove its folder."""
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.home, ignore_errors=True)


class WithRabbitMQ(Started):
    """The gateway, the workers and the sweeper as processes; RabbitMQ between them, behind a door that can be shut.

    Its store is a Valkey of its own, or the one at `store_url`; `env` are further settings.
    """

    def __init__(self, broker_url: str, store_url: str = "", **env: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gristmill-processes-"))
        self.valkey = Valkey()
        self.store_url, self.env = store_url, env
        self.door = Door(broker_url)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> Self:
        """Start all of them, and wait until the gateway is ready."""
        if not self.store_url:
            self.valkey.start()
        gunicorn = ("gunicorn", "-c", "python:api.gunicorn_conf", "-b", f"127.0.0.1:{self.port}", "api.main:app")
        for name, *argv in (gunicorn, ("celery_worker", "--grace", "3"), ("jobs.sweeper",)):
            with (self.folder / f"{name}.log").open("ab") as log:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", name, *argv],
                        env={**os.environ, **self._environment()},
                        cwd=ROOT,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
        with Client(self.url) as client:
            wait_until(client.ready, HEALTHY_WITHIN_S, self.said)
        return self

    def said(self) -> str:
        """The ends of the logs."""
        return "\n".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in self.folder.glob("*.log")
        )

    def close(self) -> None:
        """End everything, and remove the folder."""
        for process in self._processes:
            process.terminate()
        psutil.wait_procs([psutil.Process(p.pid) for p in self._processes if p.poll() is None], timeout=12)
        for process in self._processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            finally:
                process.wait()
        self.door.close()
        self.valkey.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        (self.folder / "files").mkdir(exist_ok=True)
        return {
            "BROKER_URL": self.door.url,
            "STORE_URL": self.store_url or self.valkey.url,
            "FILES_URL": (self.folder / "files").as_uri(),
            "API_PORT": str(self.port),
            "WEB_CONCURRENCY": "1",
            **self.env,
        }


class Door:
    """A TCP port that leads to a server, and can be shut: for its clients the server is then gone."""

    def __init__(self, url: str) -> None:
        from urllib.parse import urlsplit, urlunsplit

        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5672)
        self._port = free_port()
        login = f"{parts.username}:{parts.password}@" if parts.username else ""
        self.url = urlunsplit(parts._replace(netloc=f"{login}127.0.0.1:{self._port}"))
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self.open()

    def open(self) -> None:
        """Let clients through."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Refuse new connections, and cut those that are open."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self._listener = None
        for connection in list(self._open):
            _cut(connection)

    close = shut

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(self._target, timeout=5)
                server.settimeout(None)
            except OSError:
                if self._listener is not listener:
                    return
                continue
            self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for each in (source, sink):
                _cut(each)
                self._open.discard(each)


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    finally:
        connection.close()


def wait_until(happened: Callable[[], object], within_s: float, said: Callable[[], str] = lambda: "") -> None:
    """Look ten times a second; AssertionError with what was `said` when the time is over."""
    end = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < end, f"did not happen within {within_s:g} s\n{said()}"
        time.sleep(0.1)
