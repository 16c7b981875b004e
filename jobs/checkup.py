"""What `doctor` looks at beside the broker: the store, passwords, the clock, the disk, long waits, the GPU."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import redis

from jobs.pipeline import Pipelines
from jobs.settings import Settings
from jobs.store import JobStore

CLOCK_S = 2.0  # a clock that is further off makes times in logs and records disagree
FULL = 0.95  # of the disk
DEFAULT_PASSWORDS = frozenset({"guest", "postgres", "redis", "password", "admin"})
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", None})
PORTS = {"redis": 6379, "rediss": 6379}


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    verdict: Literal["ok", "unsafe", "unknown"]
    text: str


def records(settings: Settings, store: JobStore) -> Iterator[Finding]:
    """Whether the store answers, and whether a Redis keeps what it acknowledged. Raises the store's own refusals."""
    store.ping()
    yield Finding("store", "ok", "It answers.")
    for name, url in (("store", settings.store_url), ("broker", settings.broker_url)):
        if url.startswith("redis"):
            yield from _redis(name, url)


def _redis(name: str, url: str) -> Iterator[Finding]:
    with redis.Redis.from_url(url, socket_timeout=3.0, decode_responses=True) as client:
        try:
            said: dict[str, Any] = {}
            for wanted in ("appendonly", "appendfsync", "maxmemory-policy", "maxmemory"):
                said |= client.config_get(wanted)
        except redis.RedisError as error:
            yield Finding(f"{name} settings", "unknown", f"Redis does not show its settings: {error}")
            return
    if said.get("appendonly") != "yes":
        yield Finding(f"{name} AOF", "unsafe", "Redis has appendonly no: what it acknowledged is lost with it.")
    elif said.get("appendfsync") != "always":
        text = f"Redis has appendfsync {said.get('appendfsync')}: the last seconds are lost with it; set it to always."
        yield Finding(f"{name} AOF", "unsafe", text)
    else:
        yield Finding(f"{name} AOF", "ok", "appendonly yes, appendfsync always")
    policy, limited = said.get("maxmemory-policy"), said.get("maxmemory") not in (None, "0")
    if policy == "noeviction":
        yield Finding(f"{name} eviction", "ok", "noeviction")
    else:
        when = "once its memory is full" if limited else "as soon as maxmemory is set"
        text = f"Redis has maxmemory-policy {policy}: it forgets jobs {when}; set it to noeviction."
        yield Finding(f"{name} eviction", "unsafe", text)


def passwords(settings: Settings) -> Iterator[Finding]:
    """Whether anybody can use the store and the broker who finds them."""
    for name, url in (("store", settings.store_url), ("broker", settings.broker_url)):
        parts = urlsplit(url)
        password = unquote(parts.password or "")
        if password.startswith("insecure-") or password in DEFAULT_PASSWORDS:
            yield Finding(f"{name} password", "unsafe", "It is a default password; `make secrets` writes random ones.")
        elif not password and parts.hostname not in LOOPBACK:
            yield Finding(f"{name} password", "unsafe", f"{parts.hostname} takes who has no password.")
        elif not password:
            yield Finding(f"{name} password", "ok", "None, and it is reached over loopback.")
        else:
            yield Finding(f"{name} password", "ok", "It is not a default one.")


def clock(store: JobStore, here: Callable[[], float]) -> Iterator[Finding]:
    """Whether this machine's clock agrees with the store's, by which leases run."""
    before = here()
    theirs = store.now()
    off = theirs - (before + here()) / 2
    if abs(off) > CLOCK_S:
        yield Finding("clock", "unsafe", f"This machine's clock is {-off:+.1f} s off the store's.")
    else:
        yield Finding("clock", "ok", f"{abs(off):.2f} s off the store's.")


def disk(settings: Settings) -> Iterator[Finding]:
    """Whether the disk of the files is nearly full."""
    parts = urlsplit(settings.files_url)
    if parts.scheme != "file":
        yield Finding("disk", "unknown", "Files are not on a disk of this machine.")
        return
    folder = Path(unquote(parts.path))
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    free = f"{usage.free / 2**30:.1f} GiB of {usage.total / 2**30:.1f} are free at {folder}"
    if usage.used > FULL * (usage.used + usage.free):
        yield Finding("disk", "unsafe", f"Nearly full: {free}.")
    elif usage.free < settings.max_upload_bytes:
        yield Finding("disk", "unsafe", f"The largest allowed upload does not fit: {free}.")
    else:
        yield Finding("disk", "ok", f"{free}.")


def waits(store: JobStore, pipelines: Pipelines) -> Iterator[Finding]:
    """Whether parts wait for longer than their stage may run: workers are missing, or too few."""
    limits = {f"{p.name}.{stage.name}": stage.time_limit for p in pipelines.values() for stage in p.stages}
    late = False
    for task, seconds in sorted(store.longest_waits().items()):
        if seconds > limits.get(task, 900.0):
            late = True
            text = f"{task} waits for {seconds:.0f} s, longer than its time limit of {limits.get(task, 900.0):.0f} s."
            yield Finding("waits", "unsafe", text)
    if not late:
        yield Finding("waits", "ok", "No stage waits longer than its time limit.")


def gpu(settings: Settings) -> Iterator[Finding]:
    """Whether a GPU that was reserved for this process is seen."""
    visible = os.environ.get("NVIDIA_VISIBLE_DEVICES", "")
    reserved = settings.device.isdecimal() or visible not in ("", "void", "none")
    seen = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    if not reserved:
        yield Finding("gpu", "ok", "None is reserved here.")
    elif seen:
        yield Finding("gpu", "ok", f"Seen: {', '.join(seen)}.")
    else:
        yield Finding("gpu", "unsafe", "A GPU is reserved and none is seen: the worker computes on the CPU.")
