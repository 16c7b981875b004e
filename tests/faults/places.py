"""Small disks and cut-off networks, into which some cases put an installation. As root; given back at the end."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.neighbours import NeighbourMissing, need

OWN = "gristmill-"  # and the battery's pid: names a mount's source, and a namespace
MIB = 1_048_576
INTO_IT = "import os, sys; os.execvp('ip', ['ip', 'netns', 'exec', sys.argv[1], sys.executable, *sys.argv[2:]])"


@contextlib.contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[None]:
    """Inside, a folder is a file system of its own, with what was in it. Nothing may be open in it at the beginning."""
    _as_root("a disk of its own")
    aside = folder.with_name(f"{folder.name}.aside")
    folder.rename(aside)
    folder.mkdir()
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={mib}m", f"{OWN}{os.getpid()}", str(folder))
        _run("cp", "-a", f"{aside}/.", str(folder))
        shutil.rmtree(aside)
        yield
    finally:
        _run("umount", "-l", str(folder), check=False)


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Inside, a folder's disk has not one byte left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * MIB)
    try:
        yield
    finally:
        filler.unlink()


class Island:
    """A network of its own from which this host's loopback servers are reached at `address`; it can be cut off."""

    def __init__(self, pid: int | None = None) -> None:
        pid = pid or os.getpid()
        self.name = f"{OWN}{pid}"
        subnet = f"10.213.{pid // 64 % 256}.{pid % 64 * 4}".rpartition(".")
        self.address, self._inside = (f"{subnet[0]}.{int(subnet[2]) + n}" for n in (1, 2))
        self._here, self._there = f"gm{pid % 10**9}a", f"gm{pid % 10**9}b"
        # To the servers it looks as if the island's connections came from this host: no server needs to be told.
        self._rules = (
            ("PREROUTING", "-i", self._here, "-p", "tcp", "-d", self.address, "-j", "DNAT", "--to", "127.0.0.1"),
            ("INPUT", "-s", self._inside, "-p", "tcp", "-j", "SNAT", "--to", "127.0.0.1"),
        )

    def __enter__(self) -> Island:
        _as_root("a network of its own")
        need(lambda: shutil.which("ip"), "iproute2")
        need(lambda: shutil.which("iptables"), "iptables")
        try:
            _run("ip", "netns", "add", self.name)
            _run("ip", "link", "add", self._here, "type", "veth", "peer", "name", self._there)
            _run("ip", "link", "set", self._there, "netns", self.name)
            _run("ip", "addr", "add", f"{self.address}/30", "dev", self._here)
            _run("ip", "link", "set", self._here, "up")
            for words in (
                ("addr", "add", f"{self._inside}/30", "dev", self._there),
                ("link", "set", self._there, "up"),
            ):
                self._inside_run("ip", *words)
            self._inside_run("ip", "link", "set", "lo", "up")
            Path(f"/proc/sys/net/ipv4/conf/{self._here}/route_localnet").write_text("1")
            for chain, *rule in self._rules:
                _run("iptables", "-w", "-t", "nat", "-A", chain, *rule)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for chain, *rule in self._rules:
            _run("iptables", "-w", "-t", "nat", "-D", chain, *rule, check=False)
        _run("ip", "netns", "del", self.name, check=False)
        _run("ip", "link", "del", self._here, check=False)

    def url(self, url: str) -> str:
        """A loopback URL as the island knows it."""
        return url.replace("127.0.0.1", self.address)

    def python(self, *argv: str) -> tuple[str, ...]:
        """What to tell Python, so that it becomes `python argv` inside, under the same pid."""
        return ("-c", INTO_IT, self.name, *argv)

    @contextlib.contextmanager
    def cut_off(self, *chains: str) -> Iterator[None]:
        """Inside, packets are dropped: INPUT those that come to the island, OUTPUT those that leave it."""
        for chain in chains:
            self._inside_run("iptables", "-w", "-A", chain, "-p", "tcp", "-j", "DROP")
        try:
            yield
        finally:
            for chain in chains:
                self._inside_run("iptables", "-w", "-D", chain, "-p", "tcp", "-j", "DROP")

    def _inside_run(self, *command: str) -> None:
        _run("ip", "netns", "exec", self.name, *command)


def give_back_leftovers() -> None:
    """Mounts and namespaces of batteries that were killed."""
    for line in Path("/proc/mounts").read_text().splitlines():
        source, where = line.split()[:2]
        if _is_left(source):
            _run("umount", "-l", where, check=False)
    for name in Path("/run/netns").glob(f"{OWN}*"):
        if _is_left(name.name):
            Island(int(name.name.removeprefix(OWN))).__exit__()


def _is_left(name: str) -> bool:
    found = re.fullmatch(rf"{OWN}(\d+)", name)
    return bool(found) and not psutil.pid_exists(int(found[1]))


def _as_root(what: str) -> None:
    if os.geteuid() != 0:
        raise NeighbourMissing(f"This case needs {what}, which only root can make: sudo make faults CASE=...")


def _run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
