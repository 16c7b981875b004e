"""A collector that takes spans and forgets them, for `make bench-gauges`: `python -m bench.sink PORT`.

As cheap as one can be: what a collector costs is not what is measured, yet it is on the same machine. `GET /` tells how
many requests it has taken.
"""

from __future__ import annotations

import asyncio
import sys

taken = 0


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Request after request of one connection."""
    global taken
    while head := await reader.readuntil(b"\r\n\r\n"):
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        await reader.readexactly(length)
        taken += lines[0].startswith(b"post /v1/traces ")
        told = b"%d" % taken
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(told), told))


async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the client leaves."""
    try:
        await answer(reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main(port: int) -> None:
    """For ever."""
    server = await asyncio.start_server(connected, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
