"""A web server on loopback whose answers a test writes byte by byte, so that they can be wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Answer = Callable[[BaseHTTPRequestHandler], None]


class Web:
    """`with Web({"/a": body_of(b"...")}) as web`: serves these paths at `web.url`; `web.asked` are their requests."""

    def __init__(self, pages: Mapping[str, Answer], tls: Any = None, address: str = "127.0.0.1", port: int = 0) -> None:
        self.asked: list[tuple[str, Mapping[str, str]]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                self.close_connection = True
                with suppress(OSError):  # whoever asked has left
                    pages.get(self.path.partition("?")[0], status(404))(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((address, port), Handler)
        self._server.daemon_threads = True
        self._tls = tls
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def host(self) -> str:
        return f"{self._server.server_address[0]!s}:{self._server.server_port}"

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def raw(*pieces: bytes | Callable[[], None]) -> Answer:
    """These bytes, as they are, with something done in between."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        for piece in pieces:
            if isinstance(piece, bytes):
                request.wfile.write(piece)
                request.wfile.flush()
            else:
                piece()

    return answer


def body_of(data: bytes, **headers: str) -> Answer:
    """A plain 200."""
    return raw(head(200, **{"Content-Length": str(len(data)), **headers}), data)


def status(code: int, data: bytes = b"the page behind the wall", **headers: str) -> Answer:
    """Another status, with something in it."""
    return raw(head(code, **{"Content-Length": str(len(data)), **headers}), data)


def leads_to(url: str) -> Answer:
    """A redirect."""
    return status(302, b"", Location=url)


def head(code: int, **headers: str) -> bytes:
    """Status line and headers; `_` in their names stands for `-`."""
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    return f"HTTP/1.1 {code} x\r\n{''.join(lines)}\r\n".encode()
