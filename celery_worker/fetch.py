"""What lies behind a URL, as a file: streamed, bounded in size and time, resumed once, from public hosts only.

Each redirect and each resumption is checked anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from celery_worker.connections import Broken, TimeLimit, host_of, open_session, transfer_errors
from jobs.addresses import Allowed, refusal
from jobs.errors import BadInput, FileMissing, FilesUnavailable, TryAgain
from jobs.files import Stored, Writer
from jobs.media_types import HEAD, media_type

PIECE = 262_144
CONNECT_S, SILENCE_S = 10.0, 30.0  # how long a host may take to answer, and to send the next bytes
REDIRECTS = 5
TRIES = 2  # a broken transfer is resumed once
LATER = frozenset({408, 425, 429})  # with the 5xx: it may be there later
# Codings that are not undone here; what else a host may name beside gzip and deflate is no coding of the body.
UNREADABLE = frozenset({"br", "zstd", "compress", "x-compress", "dcb", "dcz"})
AGENT = "gristmill (a self-hosted job gateway)"


@dataclass(frozen=True)
class Terms:
    """What may be fetched, and how much of it."""

    allowed: Allowed
    most_bytes: int
    within_s: float

    def within(self, most_bytes: int | None, within_s: float | None) -> Terms:
        """The same, or less."""
        return Terms(
            self.allowed,
            self.most_bytes if most_bytes is None else min(most_bytes, self.most_bytes),
            self.within_s if within_s is None else min(within_s, self.within_s),
        )


@dataclass(frozen=True)
class Fetched:
    """A file that was fetched. `url` is where it was in the end; `type` is what its first bytes look like."""

    path: Path
    url: str
    type: str
    bytes: int
    sha256: str
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case


def fetch(
    url: str,
    writer: Callable[[], Writer],
    terms: Terms,
    checkpoint: Callable[[], None] = lambda: None,
    headers: Mapping[str, str] = {},
    *,
    check: Callable[[str], None] = lambda _: None,
    path: Path = Path(),
) -> Fetched:
    """Fetch a file into what `writer` opens; `check` sees its media type before it is kept, and may raise.

    Raises BadInput for what will not get better, TryAgain for what may; an HTTP status stands in `http_status`.
    """
    split = _checked(url, terms)
    sink = _Sink(writer, terms.most_bytes, checkpoint)
    try:
        with TimeLimit(terms.within_s) as time_limit:
            if split.scheme == "s3":
                found = _from_s3(split, sink, time_limit)
            else:
                found = _Transfer(url, sink, terms, time_limit, headers).run()
        type_ = media_type(sink.head, found.headers.get("content-type", ""))
        if not sink.bytes:
            raise BadInput("The file behind the address is empty.")
        check(type_)
        checkpoint()  # who has lost its claim must not store it over another's
        stored = sink.commit()
    finally:
        sink.close()
    return Fetched(path, found.url, type_, stored.bytes, stored.sha256, found.headers)


@dataclass(frozen=True)
class _Found:
    url: str
    headers: Mapping[str, str]


class _Sink:
    """Where the bytes go. What was written can be dropped, for a transfer that begins anew."""

    def __init__(self, writer: Callable[[], Writer], most_bytes: int, checkpoint: Callable[[], None]) -> None:
        self._open, self.most_bytes, self._checkpoint = writer, most_bytes, checkpoint
        self._writer: Writer | None = None
        self.bytes = 0
        self.head = b""

    def write(self, data: bytes) -> None:
        self._checkpoint()
        self.bytes += len(data)
        self.refuse_large(self.bytes)
        if len(self.head) < HEAD:
            self.head += data[: HEAD - len(self.head)]
        self._writer = self._writer or self._open()
        self._writer.write(data)

    def refuse_large(self, size: int) -> None:
        if size > self.most_bytes:
            raise BadInput(f"The file behind the address is larger than {self.most_bytes:,} bytes.")

    def begin_anew(self) -> None:
        self.close()
        self._writer, self.bytes, self.head = None, 0, b""

    def commit(self) -> Stored:
        assert self._writer
        return self._writer.commit()

    def close(self) -> None:
        if self._writer:
            self._writer.abort()


class _Transfer:
    """One file over HTTP."""

    def __init__(self, url: str, sink: _Sink, terms: Terms, time_limit: TimeLimit, headers: Mapping[str, str]) -> None:
        self.url, self.sink, self.terms, self.time_limit = url, sink, terms, time_limit
        self.headers = {"User-Agent": AGENT, "Accept": "*/*", "Accept-Encoding": "identity", **headers}
        self.validator = ""  # what tells that the file is still the same; without one it begins anew

    def run(self) -> _Found:
        for tries_left in reversed(range(TRIES)):
            try:
                with transfer_errors(self.url), self._answer() as answer:
                    return self._receive(answer)
            except Broken as error:
                self.time_limit.check()
                if not tries_left:
                    raise TryAgain(f"{host_of(self.url)}: {error}") from error
        raise AssertionError

    @contextmanager
    def _answer(self) -> Iterator[Any]:
        """The answer at the end of the redirects."""
        headers = dict(self.headers)
        if self.sink.bytes and self.validator:
            headers |= {"Range": f"bytes={self.sink.bytes}-", "If-Range": self.validator}
        else:
            self.sink.begin_anew()
        url = self.url
        for _ in range(REDIRECTS + 1):
            split = _checked(url, self.terms)
            if split.scheme == "s3":
                raise BadInput("The address leads on to S3, which is only read when it is asked for.")
            with open_session(split, self.terms.allowed, self.time_limit) as session:
                answer = session.get(
                    url, headers=headers, stream=True, allow_redirects=False, timeout=(CONNECT_S, SILENCE_S)
                )
                with answer:
                    if not answer.is_redirect:
                        self.url = url
                        yield answer
                        return
                    url = urljoin(url, answer.headers["location"])
        raise BadInput(f"The address leads on more than {REDIRECTS} times.")

    def _receive(self, answer: Any) -> _Found:
        status = answer.status_code
        if not self._is_continued(answer):
            self.sink.begin_anew()
            if status != 200:
                raise _refused(self.url, status)
        coding = answer.headers.get("content-encoding", "identity").lower()
        if lost := UNREADABLE & {one.strip() for one in coding.split(",")}:
            raise BadInput(f"{host_of(self.url)} sent it in the coding {min(lost)}, which was not asked for.")
        encoded = coding != "identity"
        declared = answer.headers.get("content-length", "")
        if declared.isdecimal() and not encoded:
            self.sink.refuse_large(self.sink.bytes + int(declared))
        e_tag = answer.headers.get("etag", "")
        # A range of an encoded body would count other bytes than were written.
        self.validator = "" if encoded else e_tag if e_tag.startswith('"') else answer.headers.get("last-modified", "")
        while piece := answer.raw.read1(PIECE, decode_content=True):
            self.sink.write(piece)
        self.time_limit.check()
        return _Found(self.url, {name.lower(): value for name, value in answer.headers.items()})

    def _is_continued(self, answer: Any) -> bool:
        """Whether this is the rest of what was written. Raises Broken for another piece of it."""
        if answer.status_code != 206:
            return False
        if not answer.headers.get("content-range", "").startswith(f"bytes {self.sink.bytes}-"):
            self.validator = ""
            raise Broken("It answered with another piece of the file than was asked for.")
        return True


def _from_s3(split: SplitResult, sink: _Sink, time_limit: TimeLimit) -> _Found:
    """An object, with the credentials of the worker's environment; obstore repeats what breaks."""
    from jobs.file_stores.s3 import S3Files

    key = unquote(split.path.lstrip("/"))
    bucket = S3Files(split.netloc, "")
    try:
        sink.refuse_large(bucket.size(key))
        for piece in bucket.read(key):
            time_limit.check()
            sink.write(piece)
    except FileMissing:
        raise BadInput(f"s3://{split.netloc} has no object of that key, or this worker may not read it.") from None
    except ValueError:
        raise BadInput("The key of the object is not one that can be read.") from None
    except FilesUnavailable as error:
        raise TryAgain(f"s3://{split.netloc} does not answer, or refuses this worker.") from error
    return _Found(split.geturl(), {})


def _checked(url: str, terms: Terms) -> SplitResult:
    """Raises BadInput for what is refused by its text."""
    if why := refusal(url, terms.allowed):
        raise BadInput(why)
    return urlsplit(url)


def _refused(url: str, status: int) -> BadInput | TryAgain:
    """The status alone: a host's own words do not reach the client."""
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "an unknown status"
    kind = TryAgain if status >= 500 or status in LATER else BadInput
    return kind(f"{host_of(url)} answered {status} {phrase}.", http_status=status)
