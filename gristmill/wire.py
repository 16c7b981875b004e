"""One question to the gateway and its answer: tried again where that is safe, errors raised as classes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2

from gristmill import errors

BUSY = frozenset({429, 502, 503, 504})  # the gateway, or what stands before it, asks to come again
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
USER_AGENT = "gristmill-client"


class Pauses:
    """Back-off with jitter that ends `patience` seconds after the last sign of life."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.alive()

    def alive(self) -> None:
        """The gateway answered: start over."""
        self._pause = FIRST_PAUSE_S
        self._end = time.monotonic() + self._patience

    def wait(self, at_least: float = 0.0) -> bool:
        """Sleep until the next try; False, without sleeping, when patience is over."""
        pause = max(self._pause * random.uniform(0.5, 1.0), at_least)
        if time.monotonic() + pause > self._end:
            return False
        time.sleep(pause)
        self._pause = min(self._pause * 2, LONGEST_PAUSE_S)
        return True


class Wire:
    """HTTP to one gateway. `patience`: seconds that one question is tried again while nobody can answer it."""

    def __init__(self, url: str, patience: float) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.patience = patience
        self.http = httpx2.Client(
            base_url=self.url,
            headers={"User-Agent": USER_AGENT},
            timeout=httpx2.Timeout(30.0, connect=5.0),
            follow_redirects=False,
        )

    def ask(
        self,
        method: str,
        path: str,
        *,
        repeatable: bool = True,
        patience: float | None = None,
        read_timeout: float = 30.0,
        body: Callable[[], Any] | None = None,
        **request: Any,
    ) -> httpx2.Response:
        """The answer, below 400. `repeatable`: asking twice does no harm. `body` opens the content anew for each try.

        Raises GatewayUnreachable, or the problem's class.
        """
        pauses = Pauses(self.patience if patience is None else patience)
        timeout = httpx2.Timeout(30.0, connect=5.0, read=read_timeout)
        while True:
            content = {"content": body()} if body else {}
            try:
                answer = self.http.request(method, path, timeout=timeout, **content, **request)
            except httpx2.TransportError as error:
                if not (repeatable or _never_sent(error)) or not pauses.wait():
                    raise self._unreachable(error) from error
                continue
            if answer.status_code in BUSY and (repeatable or answer.status_code == 429) and pauses.wait(_later(answer)):
                continue
            check(answer)
            return answer

    @contextmanager
    def stream(self, path: str, *, headers: Mapping[str, str], read_timeout: float = 30.0) -> Iterator[httpx2.Response]:
        """One try at an answer that is read as it comes. Raises httpx2.TransportError, or the problem's class."""
        timeout = httpx2.Timeout(30.0, connect=5.0, read=read_timeout)
        with self.http.stream("GET", path, headers=headers, timeout=timeout) as answer:
            if answer.status_code >= 400:
                answer.read()
                check(answer)
            yield answer

    def _unreachable(self, error: Exception) -> errors.GatewayUnreachable:
        return errors.GatewayUnreachable(f"No gateway answers at {self.url}: {error or type(error).__name__}")


def check(answer: httpx2.Response) -> None:
    """Raise the error that an answer stands for, if it does."""
    if answer.status_code < 400:
        return
    try:
        body = answer.json()
    except ValueError:
        body = None
    raise errors.from_answer(answer.status_code, body)


def _never_sent(error: httpx2.TransportError) -> bool:
    return isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)


def _later(answer: httpx2.Response) -> float:
    """Seconds of Retry-After; 0 where there is none, or a date."""
    value = answer.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0
