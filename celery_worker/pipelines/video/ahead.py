"""Runs an iterator in a thread of its own, or calls in some, a few ahead: decoding, computing and drawing overlap."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

T = TypeVar("T")
DEPTH = 4  # pictures that wait between two threads; each may be large
WAIT_S = 0.5
CALLS = 2  # of a GPU at once: while the answers of one are on their way and one thread waits for its turn, it computes
END = object()


def ahead(
    items: Iterable[T], waiting: Callable[[], None] = lambda: None, depth: int = DEPTH
) -> Generator[T, None, None]:
    """The same items and the same error, made in a thread. `waiting` is called now and then while none is ready.

    Close it, for the thread to end: what the thread works on must not be taken away under it.
    """
    ready: queue.Queue[Any] = queue.Queue(depth)
    left = threading.Event()

    def put(item: Any) -> bool:
        while not left.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        source = iter(items)
        try:
            for item in source:
                if not put((item, None)):
                    break
            else:
                put((END, None))
        except BaseException as error:  # noqa: BLE001 - raised again where the items are read
            put((END, error))
        finally:
            if hasattr(source, "close"):
                source.close()

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item, error = ready.get(timeout=WAIT_S)
            except queue.Empty:
                waiting()
                continue
            if item is END:
                if error is not None:
                    raise error
                return
            yield item
    finally:
        left.set()
        thread.join()


def in_order(
    calls: Iterable[Callable[[], T]], waiting: Callable[[], None] = lambda: None, at_once: int = CALLS
) -> Generator[T, None, None]:
    """What each call returns, in order, or raises. So many run at once, and one more is ready to.

    `waiting` is called now and then while none is done. Close it: it ends when those that run have ended.
    """
    pool = ThreadPoolExecutor(at_once, "calls")
    under_way: deque[Future[T]] = deque()
    try:
        for call in calls:
            under_way.append(pool.submit(call))
            if len(under_way) > at_once:
                yield _returned(under_way.popleft(), waiting)
        while under_way:
            yield _returned(under_way.popleft(), waiting)
    finally:
        pool.shutdown(cancel_futures=True)


def _returned(call: Future[T], waiting: Callable[[], None]) -> T:
    while not wait([call], WAIT_S).done:
        waiting()
    return call.result()
