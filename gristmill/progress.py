"""A job as it moves: a live bar for each stage on a terminal, one plain line for each change otherwise."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from gristmill.client import Job
from gristmill.errors import WaitTimedOut
from gristmill.records import Event


class Shown(Protocol):
    """Somewhere that events are shown."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def show(self, event: Event) -> None: ...


def shown_for(job: Job, *, quiet: bool = False) -> Shown:
    """On standard error, so that standard output stays the result's."""
    if quiet:
        return Quiet()
    return Bars(job) if sys.stderr.isatty() else Lines(job)


def follow(job: Job, shown: Shown, timeout: float | None = None) -> Job:
    """Show the job's events until it is final; the job as it stands then. Raises WaitTimedOut."""
    with shown:
        for event in _within(job, timeout):
            shown.show(event)
    return job.refresh()


class Quiet:
    """Nowhere."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, event: Event) -> None:
        """Nothing."""


class Lines(Quiet):
    """Plain lines, for logs and pipes: the first event of a kind in a tenth of a stage, not every one."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._last: dict[str, int] = {}

    def show(self, event: Event) -> None:
        """One line, unless it would say what the last one said."""
        text = self._text(event)
        if text:
            print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def _text(self, event: Event) -> str:
        data = event.data
        stage = _stage_name(self._job, data.get("stage"))
        if event.type == "progress":
            fraction = _fraction(data)
            if int(fraction * 10) <= self._last.get(stage, 0):
                return ""
            self._last[stage] = int(fraction * 10)
            parts = f", part {data['done']} of {data['total']} known" if "total" in data else ""
            return f"{stage} {fraction:.0%}{parts}"
        if event.type == "attempt_failed":
            return f"{stage} attempt failed: {data.get('detail', '')} ({data.get('code', '')})"
        if event.type == "artifact":
            return f"artifact {data.get('name', '')}"
        if event.type in ("stage_started", "stage_finished"):
            return f"{stage} {event.type.removeprefix('stage_')}"
        return f"{event.type}{': ' + str(data['detail']) if data.get('detail') else ''}"


class Bars(Quiet):
    """One live bar a stage."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._progress = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>4.0f} %"),
            TextColumn("{task.fields[parts]:<14}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._bars: dict[str, TaskID] = {
            stage.name: self._progress.add_task(stage.name, total=1.0, start=False, parts="") for stage in job.stages
        }

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Move a bar, or write a line above them."""
        data = event.data
        bar = self._bars.get(_stage_name(self._job, data.get("stage")))
        if event.type == "attempt_failed":
            self._progress.console.print(f"attempt failed: {data.get('detail', '')}", style="yellow", markup=False)
        elif bar is None:
            return
        elif event.type == "stage_started":
            self._progress.start_task(bar)
        elif event.type == "progress":
            parts = f"{data['done']}/{data['total']} parts" if "total" in data else ""
            self._progress.update(bar, completed=self._moved(data), parts=parts)
        elif event.type == "stage_finished":
            self._progress.update(bar, completed=1.0)
            self._progress.stop_task(bar)

    def _moved(self, data: Any) -> float:
        """A stage whose parts are still being emitted is no further than what emits them."""
        names = list(self._bars)
        at = names.index(_stage_name(self._job, data.get("stage")))
        if "total" not in data or at == 0:
            return _fraction(data)
        return _fraction(data) * self._progress.tasks[at - 1].completed


def _fraction(data: Any) -> float:
    if "total" in data:
        return data.get("done", 0) / data["total"] if data["total"] else 0.0
    return float(data.get("progress", 0.0))


def _stage_name(job: Job, stage: Any) -> str:
    if isinstance(stage, int) and stage < len(job.stages):
        return job.stages[stage].name
    return "" if stage is None else str(stage)


def _within(job: Job, timeout: float | None) -> Iterator[Event]:
    """The job's events, read beside, so that a silent stream cannot outlast the timeout. Raises WaitTimedOut."""
    end = None if timeout is None else time.monotonic() + timeout
    arrived: queue.Queue[Event | BaseException | None] = queue.Queue()

    def read() -> None:
        try:
            for event in job.events():
                arrived.put(event)
            arrived.put(None)
        except Exception as error:  # noqa: BLE001 -- raised where the events are awaited
            arrived.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            found = arrived.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise WaitTimedOut(f"Job {job.id} is not finished after {timeout:g} s; it goes on.") from None
        if found is None:
            return
        if isinstance(found, BaseException):
            raise found
        yield found
