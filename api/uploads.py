"""Files on their way in: streamed to disk a megabyte at a time, whole under their name or not there at all."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Receive

from api import strict_json
from api.accept import new_id
from api.problems import BodyTooLarge, BodyUnreadable, ClientGone
from api.waiting import Threads
from jobs.errors import BodyInvalid, InputInvalid
from jobs.files import Files, Stored, Writer, upload_name
from jobs.media_types import HEAD, media_type
from jobs.model import Upload

PIECE = 1_048_576
MAX_PARTS = 20
FIELDS = frozenset({"pipeline", "params", "priority", "deadline", "labels"})
NAME = re.compile(r"[\x00-\x1f\x7f]")


class Incoming:
    """One file being received. Without `keep` nothing of it is left. Raises BodyTooLarge, FilesFull."""

    def __init__(self, files: Files, threads: Threads, limit: int, declared: str = "", name: str = "") -> None:
        self.id = new_id()
        self.file = upload_name(self.id)
        self._files, self._threads, self._limit = files, threads, limit
        self._declared, self._name = declared, NAME.sub("", name)[:255]
        self._writer: Writer | None = None
        self._buffer = bytearray()
        self._head = b""
        self._bytes = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._writer is not None:
            await self._threads(self._writer.abort)  # harmless when it was kept

    def take(self, data: bytes) -> None:
        """Note some bytes; `flush` writes them."""
        self._bytes += len(data)
        if self._bytes > self._limit:
            raise BodyTooLarge(limit=self._limit)
        if len(self._head) < HEAD:
            self._head += data[: HEAD - len(self._head)]
        self._buffer += data

    async def flush(self, at_least: int = PIECE) -> None:
        """Write what was noted, once it is worth a trip to the disk."""
        if len(self._buffer) >= at_least:
            piece, self._buffer = bytes(self._buffer), bytearray()
            await self._threads(self._write, piece)

    async def keep(self) -> Upload:
        """Sync it to disk under its name; its record, not stored yet. Raises InputInvalid for an empty file."""
        self.check()
        await self.flush(1)
        assert self._writer
        stored: Stored = await self._threads(self._writer.commit)
        return self.record(stored.sha256)

    def check(self) -> None:
        """Raises InputInvalid for an empty file."""
        if not self._bytes:
            raise InputInvalid("The file is empty.", errors=[{"pointer": "/file", "detail": "The file is empty."}])

    def record(self, sha256: str = "") -> Upload:
        """The record as far as it is known."""
        type_ = media_type(self._head, self._declared)
        return Upload(self.id, self.file, self._bytes, sha256, type_, self._name)

    def _write(self, piece: bytes) -> None:
        if self._writer is None:
            self._writer = self._files.writer(self.file)
        self._writer.write(piece)


async def pieces(receive: Receive) -> AsyncIterator[bytes]:
    """A body as it comes. Raises ClientGone when it ends early."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone()
        if data := message.get("body", b""):
            yield data
        if not message.get("more_body", False):
            return


class Form:
    """A multipart submission: at most one file, streamed; the other fields become the members of a JSON body."""

    def __init__(self, content_type: str, incoming: Callable[[str, str], Incoming], max_fields_bytes: int) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary:
            raise BodyUnreadable("The Content-Type names no boundary.")
        self.body: dict[str, Any] = {}
        self.file: Incoming | None = None
        self._incoming, self._left = incoming, max_fields_bytes
        self._parts = 0
        self._field = ""
        self._text: bytearray | None = None
        self._header: tuple[bytes, bytes] = (b"", b"")
        self._headers: dict[bytes, bytes] = {}
        self._ended = False
        try:
            self._parser = MultipartParser(boundary, self._callbacks())
        except FormParserError as error:
            raise BodyUnreadable(str(error)) from None

    async def read(self, receive: Receive) -> None:
        """Raises BodyUnreadable, BodyInvalid, BodyTooLarge, ClientGone."""
        async for data in pieces(receive):
            try:
                self._parser.write(data)
            except FormParserError as error:
                raise BodyUnreadable(f"The multipart body is broken: {error}") from None
            if self.file:
                await self.file.flush()
        if not self._ended:
            raise BodyUnreadable("The multipart body is cut short.")

    def _callbacks(self) -> Any:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_begin": self._on_header_begin,
            "on_header_field": lambda data, start, end: self._on_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._on_header(1, data[start:end]),
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": lambda data, start, end: self._on_data(data[start:end]),
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BodyUnreadable(f"The multipart body has more than {MAX_PARTS} parts.")
        self._headers = {}

    def _on_header_begin(self) -> None:
        self._header = (b"", b"")

    def _on_header(self, which: int, data: bytes) -> None:
        name, value = self._header
        self._header = (name, value + data) if which else (name + data, value)

    def _on_header_end(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        if self._field == "file":
            if self.file:
                raise BodyInvalid(
                    "Only one file may be sent.", errors=[{"pointer": "/file", "detail": "Only one file may be sent."}]
                )
            name = options.get(b"filename", b"").decode("utf-8", "replace")
            self.file = self._incoming(self._headers.get(b"content-type", b"").decode("latin-1"), name)
            self._text = None
        else:
            self._text = bytearray()

    def _on_data(self, data: bytes) -> None:
        if self._text is None:
            assert self.file
            self.file.take(data)
        else:
            self._left -= len(data)
            if self._left < 0:
                raise BodyTooLarge()
            self._text += data

    def _on_part_end(self) -> None:
        if self._text is not None:
            if self._field in self.body:
                raise BodyUnreadable(f"The field {self._field[:40]!r} is sent twice.")
            self.body[self._field] = _value(self._field, bytes(self._text))

    def _on_end(self) -> None:
        self._ended = True


def _value(field: str, data: bytes) -> Any:
    """The fields that are not text in JSON are JSON in a form; an unknown one is left to the schema."""
    if field in FIELDS - {"pipeline"}:
        try:
            return strict_json.read(data)
        except BodyUnreadable as error:
            if field in ("params", "labels"):
                raise BodyUnreadable(f"The field {field!r}: {error}") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise BodyUnreadable(f"The field {field[:40]!r} is not UTF-8.") from None
