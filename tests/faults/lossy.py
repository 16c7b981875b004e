"""A door to a server that loses replies: the command went in and was done, and its client never hears of it."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import suppress
from typing import Self

BYTES = 65_536


class Lossy:
    """Listens at `port` and passes everything on, but one reply in so many, in whose place it hangs up.

    By chance: a new connection begins with replies of its own, and every third one would always be the wrong one.
    """

    def __init__(self, server_port: int, *, one_in: int) -> None:
        self._server_port, self._one_in = server_port, one_in
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._lock = threading.Lock()
        self._chance = random.Random(server_port)
        self.lost = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                for one, other, replies in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass_on, args=(one, other, replies), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket, replies: bool) -> None:
        with suppress(OSError):
            while data := one.recv(BYTES):
                if replies and self._is_lost():
                    break
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _is_lost(self) -> bool:
        with self._lock:
            lost = self._chance.random() < 1 / self._one_in
            self.lost += lost
            return lost
