"""Which addresses may be fetched, as far as their text tells; where their names lead, the worker finds out."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import SplitResult, urlsplit

SCHEMES = frozenset({"http", "https", "s3"})
LOCAL_NAMES = ("localhost", "*.localhost", "localhost.localdomain")
PORTS = {"http": 80, "https": 443}
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # leads to the IPv4 address in its last 32 bits

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Allowed:
    """ALLOWED_HOSTS: hosts that may be fetched from although they are not public, and buckets that may be read."""

    hosts: frozenset[str] = frozenset()  # name, name:port, *.domain
    networks: tuple[Network, ...] = ()
    buckets: frozenset[str] = frozenset()

    def names(self, host: str, port: int | None) -> bool:
        """Whether a host is allowed by its name, wherever that leads."""
        return any(fnmatchcase(one, pattern) for pattern in self.hosts for one in (host, f"{host}:{port}"))

    def holds(self, address: Address) -> bool:
        """Whether an address lies in a network that is allowed."""
        return any(address in network for network in self.networks)


def allowed(entries: Iterable[str]) -> Allowed:
    """The setting, read. Raises ValueError for an entry that is none of these."""
    hosts, networks, buckets = set(), [], set()
    for entry in entries:
        if entry.startswith("s3://"):
            bucket = entry.removeprefix("s3://").strip("/")
            if not bucket or "/" in bucket:
                raise ValueError(f"{entry!r} is not s3://bucket")
            buckets.add(bucket)
        elif "/" in entry:
            networks.append(ipaddress.ip_network(entry))
        elif not entry.replace("*.", "", 1).replace(":", "").strip("[]") or "*" in entry.replace("*.", "", 1):
            raise ValueError(f"{entry!r} is not a host, host:port, *.domain, network or s3://bucket")
        else:
            hosts.add(entry.lower())
    return Allowed(frozenset(hosts), tuple(networks), frozenset(buckets))


def refusal(url: str, allowed: Allowed) -> str | None:
    """Why an address is not fetched, in a sentence; None where its text says nothing against it."""
    split = _split(url)
    if split is None:
        return "This is not an address that can be read."
    if split.scheme not in SCHEMES:
        return "Only http://, https:// and s3:// are fetched."
    if "@" in split.netloc:
        return "An address is kept in the job's record: it may hold no user name or password."
    if split.scheme == "s3":
        return _refused_bucket(split, allowed)
    host, port = (split.hostname or "").rstrip("."), split.port or PORTS[split.scheme]
    if not host:
        return "The address names no host."
    if allowed.names(host, port):
        return None
    address = address_of(host)
    if address is not None:
        return None if allowed.holds(address) or is_public(address) else NOT_PUBLIC
    is_local = any(fnmatchcase(host, pattern) for pattern in LOCAL_NAMES)
    return NOT_PUBLIC if is_local and not allowed.networks else None


NOT_PUBLIC = "The address leads to a host that is not public; the operator can allow it with ALLOWED_HOSTS."


def address_of(host: str) -> Address | None:
    """The address that a host is, in any way of writing that a resolver takes: decimal, octal, hex, shortened."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host)) if host[:1].isdigit() else None
    except (OSError, UnicodeError):
        return None


def is_public(address: Address) -> bool:
    """Whether anybody may reach it; an IPv4 address inside an IPv6 one counts as itself."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and (address in NAT64 or (int(address) >> 32 == 0 and int(address) > 1)):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def _split(url: str) -> SplitResult | None:
    if any(c <= " " or c in "\\\x7f" for c in url):
        return None
    try:
        split = urlsplit(url)
        _ = split.port  # it raises for a port that is none
    except ValueError:
        return None
    return split


def _refused_bucket(split: SplitResult, allowed: Allowed) -> str | None:
    if not split.netloc or not split.path.strip("/"):
        return "An object in S3 is s3://bucket/key."
    if split.netloc not in allowed.buckets:
        return f"Buckets are read with the operator's credentials: s3://{split.netloc} is not in ALLOWED_HOSTS."
    return None
