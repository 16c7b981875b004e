"""Connections that lead only where they may, and end when their time is over.

A name's addresses are checked when it is resolved, and the connection goes to the one that was checked. Hosts that
ALLOWED_HOSTS names are taken wherever they lead.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import SplitResult, urlsplit

from jobs.addresses import NOT_PUBLIC, Allowed, address_of, is_public
from jobs.errors import BadInput


class TimeLimit:
    """Ends connections when the time is over, whatever they wait for: a timeout of reads begins anew with each byte."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._over = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(within_s, self._end)
        self._timer.daemon = True

    def __enter__(self) -> TimeLimit:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        for connected in self._sockets:
            connected.close()

    def watch(self, connected: socket.socket) -> None:
        self._sockets.append(connected.dup())  # TLS takes the first one over
        if self._over:
            self._end()

    def check(self) -> None:
        if self._over:
            raise BadInput(f"Fetching took longer than {self._within_s:,.0f} s.")

    def _end(self) -> None:
        self._over = True
        for connected in list(self._sockets):
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)


class Broken(Exception):
    """The transfer broke; the file may still be there."""


@contextmanager
def transfer_errors(url: str) -> Iterator[None]:
    """Turn what sockets, TLS and HTTP say into our errors. Nothing that the host sent stands in them."""
    import requests
    import urllib3
    from AntiSSRF import AntiSSRFError

    try:
        yield
    except AntiSSRFError:
        raise BadInput(NOT_PUBLIC) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, UnicodeError) as error:
        causes = list(_causes(error))
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
            raise BadInput(f"{host_of(url)}: its certificate cannot be trusted.") from error
        if any(isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN for cause in causes):
            raise BadInput(f"There is no host called {host_of(url)}.") from error
        if any(isinstance(cause, urllib3.exceptions.DecodeError) for cause in causes):
            raise BadInput(f"{host_of(url)}: what it sent is not in the encoding that it named.") from error
        raise Broken("The connection broke, or nothing came any more.") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what lies behind it: some libraries hand the first one on in their arguments."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]


def open_session(split: SplitResult, allowed: Allowed, time_limit: TimeLimit) -> Any:
    """A session whose connections go where the policy says. No proxy, no .netrc: they would know nothing of it."""
    import requests
    from AntiSSRF import AntiSSRFPolicy, PolicyConfigOptions

    port = split.port or (443 if split.scheme == "https" else 80)
    named = allowed.names((split.hostname or "").rstrip("."), port)
    if named:
        made = requests.Session()
    else:
        policy = AntiSSRFPolicy(PolicyConfigOptions.EXTERNAL_ONLY_LATEST)
        policy.allow_plain_text_http, policy.add_xff_header = True, False
        if allowed.networks:
            policy.add_allowed_addresses([str(network) for network in allowed.networks])
        made = policy.get_antissrf_session()
    made.trust_env = False
    made.verify = ssl.get_default_verify_paths().cafile or True
    adapter: Any = made.get_adapter(f"{split.scheme}://")
    host = split.netloc
    adapter.add_headers = lambda request, **_: request.headers.update(Host=host)  # the policy forgets the port
    adapter.poolmanager.pool_classes_by_scheme = _pools(time_limit, None if named else allowed)
    return made


def _pools(time_limit: TimeLimit, checked: Allowed | None) -> dict[str, type]:
    """Connections that the time limit can end, and that look once more at whom they have reached."""
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    def reached(connected: socket.socket) -> socket.socket:
        peer = address_of(connected.getpeername()[0])
        if checked is not None and (peer is None or not (is_public(peer) or checked.holds(peer))):
            connected.close()
            raise BadInput(NOT_PUBLIC)
        time_limit.watch(connected)
        return connected

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return reached(super()._new_conn())

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return reached(super()._new_conn())

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


def host_of(url: str) -> str:
    return urlsplit(url).hostname or "The host"
