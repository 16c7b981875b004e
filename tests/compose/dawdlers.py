"""Clients that dawdle, and how the proxy ends them; they wait in the background while other checks run."""

from __future__ import annotations

import socket
import threading
import time

HEADERS = b"GET /jobs HTTP/1.1\r\nHost: x\r\nX-Slow: "
BODY = b"POST /files HTTP/1.1\r\nHost: x\r\nContent-Type: video/mp4\r\nContent-Length: 1000000\r\n\r\nsome bytes"
PATIENCE_S = 90.0


class Dawdler:
    """One that sends some bytes of a request, then nothing (or a byte each second, with `drips`)."""

    def __init__(self, port: str, first: bytes, *, drips: bool = False) -> None:
        self._port, self._first, self._drips = int(port), first, drips
        self._lasted = PATIENCE_S
        self._thread = threading.Thread(target=self._dawdle, daemon=True)
        self._thread.start()

    def lasted(self) -> float:
        """The seconds until it was cut off, or PATIENCE_S."""
        self._thread.join()
        return self._lasted

    def _dawdle(self) -> None:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", self._port), timeout=30) as line:
            line.sendall(self._first)
            line.settimeout(1.0)
            while time.monotonic() - began < PATIENCE_S:
                try:
                    if self._drips:
                        line.sendall(b"x")
                    if not line.recv(1000):
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
            self._lasted = time.monotonic() - began
