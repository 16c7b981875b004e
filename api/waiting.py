"""Who waits for a job: one listener per process wakes all of them, and everybody looks for himself now and then."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.types import Receive

from api import metrics
from jobs import log
from jobs.model import Change, Job
from jobs.store import JobStore

FIRST_LOOK_S, SLOWEST_LOOK_S = 0.5, 5.0  # a wake-up is a hint that may be missed
IDLE_S = 30.0  # the listener goes home when nobody has waited for so long

R = TypeVar("R")

logger = log.get(__name__)


class Threads:
    """Some threads for calls that block: `await threads(store.get, job_id)`."""

    def __init__(self, name: str, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)

    async def __call__(self, method: Callable[..., R], *args: Any) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._pool, method, *args)

    def close(self) -> None:
        """Without waiting for what still runs."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Waiting:
    """Wakes those who wait for a job. Lives in one event loop."""

    def __init__(self, store: JobStore, threads: Threads) -> None:
        self._store = store
        self.threads = threads
        self._waiters: dict[str, dict[asyncio.Event, bool]] = {}  # True: wants to hear of the end alone
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: threading.Thread | None = None
        self._last_left = 0.0
        self.closing = False

    @contextlib.contextmanager
    def on(self, job_id: str, *, end_only: bool = False) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job may have changed; `end_only`: whenever it may have ended."""
        changed = asyncio.Event()
        self._waiters.setdefault(job_id, {})[changed] = end_only
        metrics.WAITING.inc()
        self._listen()
        try:
            yield changed
        finally:
            metrics.WAITING.dec()
            waiters = self._waiters[job_id]
            del waiters[changed]
            if not waiters:
                del self._waiters[job_id]
            self._last_left = time.monotonic()

    async def until(self, job_id: str, enough: Callable[[Job], bool], seconds: float) -> Job:
        """The job, once it is `enough`, or as it stands after so many seconds. Raises JobNotFound."""
        with self.on(job_id) as changed:
            job = await self.threads(self._store.get, job_id)
            return await self._until(changed, job, enough, seconds)

    async def ended(self, ended: asyncio.Event, job: Job, seconds: float) -> Job:
        """The same for a job's end. `ended` is of `on(job.id, end_only=True)`, entered before `job` was accepted."""
        return await self._until(ended, job, lambda job: job.status.is_final, seconds)

    async def _until(self, changed: asyncio.Event, job: Job, enough: Callable[[Job], bool], seconds: float) -> Job:
        end = time.monotonic() + seconds
        look_s = FIRST_LOOK_S
        while not enough(job) and (left := end - time.monotonic()) > 0 and not self.closing:
            await wait_for(changed, min(left, look_s))
            look_s = min(look_s * 2, SLOWEST_LOOK_S)
            changed.clear()
            job = await self.threads(self._store.get, job.id)
        return job

    def close(self) -> None:
        """Let everybody go with what they have."""
        self.closing = True
        self._wake_all()

    def _listen(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._listener is None or not self._listener.is_alive():
            self._listener = threading.Thread(target=self._run, name="watch", daemon=True)
            self._listener.start()

    def _run(self) -> None:
        while self._wanted():
            missed = True  # what happened before the store listened
            try:
                with contextlib.closing(self._store.watch()) as changes:  # type: ignore[type-var]
                    for change in changes:
                        if missed or (change is not None and change.job_id in self._waiters):
                            self._tell(None if missed else change)
                        missed = False
                        if change is None and not self._wanted():
                            break
            except Exception as error:  # noqa: BLE001 - a listener that dies would leave everybody to looking
                if not self.closing:
                    logger.warning("watch_broke", error=str(error))
                    time.sleep(1.0)

    def _wanted(self) -> bool:
        recently = time.monotonic() - self._last_left < IDLE_S
        return not self.closing and (bool(self._waiters) or recently)

    def _tell(self, change: Change | None) -> None:
        assert self._loop
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(*((self._wake, change) if change else (self._wake_all,)))

    def _wake(self, change: Change) -> None:
        for changed, end_only in self._waiters.get(change.job_id, {}).items():
            if change.is_final or not end_only:
                changed.set()

    def _wake_all(self) -> None:
        for waiters in self._waiters.values():
            for changed in waiters:
                changed.set()


async def wait_for(changed: asyncio.Event, seconds: float) -> bool:
    """Whether it was set in time."""
    try:
        async with asyncio.timeout(seconds):
            return await changed.wait()
    except TimeoutError:
        return False


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, R]) -> R | None:
    """The work's result; None, and the work cancelled, when the client leaves first."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await working


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
