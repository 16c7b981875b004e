"""The connection to Redis: scripts that are sent once and run by their digest, and what keeps it from answering."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from functools import cache
from hashlib import sha1
from importlib.resources import files as package_files
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from jobs.errors import StoreRefused, StoreUnavailable

ANSWER_S = 2.5  # a call that gets no answer for so long has failed; a client is told within 3 s
PROTECTS = " -- protection: "  # ends a script's line that the fault battery can leave out


class Link:
    """Redis and its scripts. Raises StoreRefused in cluster mode, StoreUnavailable while it does not answer."""

    def __init__(self, url: str, without: Set[str]) -> None:
        self._without = frozenset(without)
        self._checked = False
        self.client: Any = redis.Redis.from_url(  # its types allow text and bytes everywhere; this one gives bytes
            url,
            socket_timeout=ANSWER_S,
            socket_connect_timeout=1.0,
            health_check_interval=15,
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2, supported_errors=(redis.ConnectionError,)),
        )

    def ping(self) -> None:
        """Whether it answers, and may be used."""
        with answering():
            self.client.ping()
        self._check()

    def now(self) -> float:
        """The server's clock, seconds since 1970."""
        with answering():
            seconds, us = self.client.time()
        return float(seconds + us / 1e6)

    def _check(self) -> None:
        """Once, at the first call: refuse what cannot keep the promises."""
        if not self._checked:
            with answering():
                mode = self.client.info("server").get("redis_mode")
            if mode == "cluster":
                raise StoreRefused("Redis in cluster mode cannot change a job in one step; use one primary.")
            self._checked = True

    def run(self, name: str, *args: Any) -> Any:
        """One transition: the answer of its script."""
        self._check()
        text, digest = _script(name, self._without)
        sent = [wire(arg) for arg in args]
        with answering():
            try:
                return self.client.evalsha(digest, 0, *sent)
            except redis.exceptions.NoScriptError:
                return self.client.eval(text, 0, *sent)

    def run_all(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """Each call is one atomic step; all of them are one round trip."""
        self._check()
        with answering():
            pipe = self.client.pipeline(transaction=False)
            for name, args in calls:
                pipe.evalsha(_script(name, self._without)[1], 0, *map(wire, args))
            answers: list[Any] = pipe.execute(raise_on_error=False)
        for n, answer in enumerate(answers):
            if isinstance(answer, redis.exceptions.NoScriptError):
                answers[n] = self.run(calls[n][0], *calls[n][1])
            elif isinstance(answer, Exception):
                with answering():
                    raise answer
        return answers

    def read(self, key: str, *reads: Callable[[Any], Any]) -> list[Any]:
        """Whether a key exists, and some reads, as of one moment."""
        with answering():
            pipe = self.client.pipeline(transaction=True)
            pipe.exists(wire(key))
            for read in reads:
                read(pipe)
            answers: list[Any] = pipe.execute()
        return answers


@cache
def _script(name: str, without: frozenset[str]) -> tuple[str, str]:
    """A transition's text and digest; the shared parts stand before it. `without`: lines that are left out."""
    folder = package_files("jobs.stores") / "lua"
    shared = ["common", "claiming"] if name.startswith("claim") else ["common"]
    lines = [line for part in (*shared, name) for line in (folder / f"{part}.lua").read_text().splitlines()]
    text = "\n".join(line for line in lines if line.rpartition(PROTECTS)[2] not in without)
    return text, sha1(text.encode(), usedforsecurity=False).hexdigest()


@contextmanager
def answering() -> Iterator[None]:
    """Turn whatever keeps Redis from answering into StoreUnavailable."""
    try:
        yield
    except (
        redis.ConnectionError,  # also BusyLoadingError
        redis.TimeoutError,
        redis.exceptions.ReadOnlyError,
        redis.exceptions.OutOfMemoryError,
    ) as error:
        raise StoreUnavailable() from error
    except redis.ResponseError as error:
        if any(word in str(error) for word in ("MISCONF", "BUSY", "OOM", "LOADING", "READONLY")):
            raise StoreUnavailable() from error
        raise


def wire(arg: Any) -> Any:
    """Text that may come from outside has lone surrogates at times; the client's own encoder breaks at them."""
    return arg.encode(errors="surrogatepass") if isinstance(arg, str) and not arg.isascii() else arg
