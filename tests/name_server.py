"""A name server of a test's own: a process that answers over UDP, and this process's resolver asking it.

`python -m tests.name_server '{"a.example": ["127.0.0.2", "127.0.0.1"]}'` prints its port, then a line for each question
for an address. Answers have a time to live of 0 and come in the order of the list; the last one stays.
"""

from __future__ import annotations

import ctypes
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

A = 1
ANSWERED, UNKNOWN = 0x8180, 0x8183  # a response, recursion desired and available; and that there is no such name


class Asked:
    """What a name server was asked for."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def names(self) -> list[str]:
        """Those whose IPv4 address was asked for, in order; ends the server."""
        self._process.terminate()
        assert self._process.stdout
        return self._process.stdout.read().split()


@contextmanager
def name_server(known: Mapping[str, Sequence[str]]) -> Iterator[Asked]:
    """This thread's resolver asks a server that knows these names and no others, until the block ends."""
    command = [sys.executable, "-m", "tests.name_server", json.dumps(known)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            with _asking(int(process.stdout.readline())):
                yield Asked(process)
        finally:
            process.terminate()


@contextmanager
def _asking(port: int) -> Iterator[None]:
    """resolv.conf has no ports, so the resolver's own list is changed: glibc's `struct __res_state`, <resolv.h>."""
    libc = ctypes.CDLL(None)
    libc.__res_init()
    libc.__res_state.restype = ctypes.c_void_p
    state = libc.__res_state()
    servers = (ctypes.c_char * 20).from_address(state + 16)  # how many there are, and the first one's address
    before = servers.raw
    servers.raw = struct.pack("=iH", 1, socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton("127.0.0.1"))
    try:
        yield
    finally:
        servers.raw = before


def main(known: dict[str, list[str]]) -> None:
    """Answer until the end."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    print(server.getsockname()[1], flush=True)
    while True:
        question, sender = server.recvfrom(512)
        server.sendto(_answer(question, known), sender)


def _answer(question: bytes, known: dict[str, list[str]]) -> bytes:
    """RFC 1035: the header, the question as it came, and an address where one was asked for."""
    labels, at = [], 12
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode())
        at += 1 + length
    name, kind = ".".join(labels).lower(), struct.unpack_from("!H", question, at + 1)[0]
    asked = question[12 : at + 5]
    found = b""
    if kind == A and name in known:
        print(name, flush=True)
        answers = known[name]
        address = answers.pop(0) if len(answers) > 1 else answers[0]
        found = struct.pack("!HHHIH", 0xC00C, A, 1, 0, 4) + socket.inet_aton(address)
    code = ANSWERED if name in known else UNKNOWN
    return question[:2] + struct.pack("!HHHHH", code, 1, bool(found), 0, 0) + asked + found


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
