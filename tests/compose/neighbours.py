"""Stand-ins that stacks reach by name: S3, a mail server, a web site. Each is a container, removed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.compose.stack import ROOT, docker

IMAGE = "gristmill-test/neighbours"
COMMANDS = {
    "s3": ("moto_server", "-H", "0.0.0.0", "-p", "9000"),
    "mail": ("python", "-m", "aiosmtpd", "-n", "-l", "0.0.0.0:2525", "-c", "aiosmtpd.handlers.Debugging", "stdout"),
    "site": ("python", "-m", "http.server", "8000", "-d", "/site"),
}
_built: list[bool] = []


@contextmanager
def running(name: str, network: str = "bridge") -> Iterator[str]:
    """One of them as a container, reached by its name on a network of that kind; the container's name."""
    if not _built:
        dockerfile = ROOT / "tests" / "compose" / "neighbours.Dockerfile"
        docker("build", "--quiet", "-f", str(dockerfile), "-t", IMAGE, str(ROOT), timeout=900)
        _built.append(True)
    container = f"gristmill-neighbour-{name}"
    where = ("--network", network, *(("--network-alias", name) if network != "bridge" else ()))
    site = ("-v", f"{ROOT}/samples/site:/site:ro") if name == "site" else ()
    docker("run", "-d", "--name", container, *where, *site, IMAGE, *COMMANDS[name])
    try:
        yield container
    finally:
        docker("rm", "-f", "-v", container)
