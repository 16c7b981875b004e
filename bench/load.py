"""Many clients that POST the same body, in a process of their own: `python -m bench.load`. Leaves a file of JSON.

The clock runs from the first POST until the last answer, and on until as many signatures are on the queue.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import amqp
import uvloop

QUEUED_WITHIN_S = 60.0


class Client(asyncio.Protocol):
    """One connection: a POST, its answer, the next POST, as long as there are any left."""

    def __init__(self, request: bytes, left: list[int], ids: list[str], done: asyncio.Future[None]) -> None:
        self._request, self._left, self._ids, self._done = request, left, ids, done
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it; `go` begins."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def go(self) -> None:
        """Send the next, or say that there is none."""
        if self._left[0] > 0:
            self._left[0] -= 1
            self._transport.write(self._request)
        elif not self._done.done():
            self._done.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Read one answer whole, keep its id."""
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(next(line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")))
        if len(body) < length:
            return
        if head.split(b" ", 2)[1] != b"202":
            self._fail(f"{head.decode()}\n{body.decode(errors='replace')}")
            return
        self._ids.append(json.loads(body)["id"])
        self._buffer = b""
        self.go()

    def connection_lost(self, error: Exception | None) -> None:
        """Only after the end."""
        self._fail(f"a connection was lost: {error}")

    def _fail(self, why: str) -> None:
        if not self._done.done():
            self._done.set_exception(RuntimeError(why))


async def load(ports: Sequence[int], body: bytes, clients: int, requests: int) -> tuple[float, float, list[str]]:
    """When the first POST left, when the last answer came, and the ids. The clients are dealt out to the ports."""
    head = "POST /process HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    loop, left, ids = asyncio.get_running_loop(), [requests], []
    done, made = [], []
    for port in itertools.islice(itertools.cycle(ports), clients):
        done.append(loop.create_future())
        client = Client(request, left, ids, done[-1])
        made.append(await loop.create_connection(lambda client=client: client, "127.0.0.1", port))
    began = time.monotonic()
    for _, client in made:
        client.go()
    await asyncio.gather(*done)
    answered = time.monotonic()
    for transport, _ in made:
        transport.abort()
    return began, answered, ids


def connect(url: str) -> amqp.Connection:
    """A connection to a broker."""
    parts = urlsplit(url)
    connection = amqp.Connection(
        f"{parts.hostname}:{parts.port or 5672}",
        userid=unquote(parts.username or "guest"),
        password=unquote(parts.password or "guest"),
        virtual_host=unquote(parts.path[1:]) or "/",
    )
    connection.connect()
    return connection


def depth(connection: amqp.Connection, queue: str) -> int:
    """How many messages wait on a queue; 0 where there is none."""
    channel = connection.channel()
    try:
        return int(channel.queue_declare(queue, passive=True).message_count)
    except amqp.NotFound:
        return 0
    finally:
        if channel.is_open:
            channel.close()


def main() -> int:
    """Load, wait for the queue, tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, nargs="+", required=True)
    parser.add_argument("--body", required=True)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--broker", required=True)
    parser.add_argument("--queue", required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    connection = connect(asked.broker)
    before = depth(connection, asked.queue)
    began, answered, ids = uvloop.run(load(asked.port, asked.body.encode(), asked.clients, asked.requests))
    while (there := depth(connection, asked.queue) - before) < asked.requests:
        if time.monotonic() > answered + QUEUED_WITHIN_S:
            sys.exit(f"{there} of {asked.requests} signatures on the queue after {QUEUED_WITHIN_S:g} s")
        time.sleep(0.002)
    queued = time.monotonic()
    connection.close()
    asked.out.write_text(json.dumps({"answered_s": answered - began, "queued_s": queued - began, "ids": ids}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
