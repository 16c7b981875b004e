"""What a worker's parent process needs around Celery: a workplace, the heart, and a start for each child."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from billiard.util import get_logger
from celery import Celery, bootsteps, signals

from celery_worker import nvml, runtime, stages
from celery_worker.app import infers, served
from celery_worker.batch import Form, forms_of
from celery_worker.heartbeat import Heart
from celery_worker.letters import dead_letters
from celery_worker.line import VARIABLE
from celery_worker.metrics import WorkerCounts
from celery_worker.workbench import Device
from jobs import log
from jobs.exposition import Exposition
from jobs.model import PartKey, StagePlan
from jobs.pipeline import Pipeline
from jobs.settings import Settings
from jobs.trace import open_part_spans

if TYPE_CHECKING:
    from jobs.part_spans import PartSpans

GRACE_S = 60.0
TURN_S = 0.5  # between two looks of the main loop at its children
PLACE = "gristmill-worker-"

logger = log.get(__name__)


class Parent:
    """Ties the heart to Celery's signals. `grace_s`: how long a shutdown waits for running parts."""

    def __init__(self, app: Celery, settings: Settings, device: Device) -> None:
        self._settings, self._device = settings, device
        self._heart: Heart | None = None
        self._exposition: Exposition | None = None
        self._spans: PartSpans | None = None
        self._pid = 0
        self.grace_s = GRACE_S
        self.workplace = Path()
        connect: list[tuple[Any, Callable[..., None]]] = [
            (signals.setup_logging, lambda **_: self._set_up_logging()),
            (signals.worker_init, self._start),
            (signals.worker_shutting_down, self._shut_down),
            (signals.worker_shutdown, self._close),
            (signals.worker_process_init, self._start_child),
        ]
        for signal, receiver in connect:
            signal.connect(receiver, weak=False)
        app.steps["consumer"].add(_watched_loop(self))
        app.steps["consumer"].add(dead_letters(settings.queue_type, self._strand))

    @property
    def heart(self) -> Heart | None:
        """None in a child, and before the start."""
        return self._heart if os.getpid() == self._pid else None

    def _set_up_logging(self) -> None:
        log.setup(self._settings.log_level)
        get_logger().propagate = True  # billiard says on a logger of its own how a child ended

    def _start(self, **_: Any) -> None:
        """Before the pool makes its first child. Celery only logs what a receiver raises: this one exits."""
        try:
            self._start_heart()
        except Exception as error:
            logger.exception("worker_cannot_start")
            raise SystemExit(1) from error

    def _start_heart(self) -> None:
        _clear_abandoned()
        self._pid = os.getpid()
        self.workplace = Path(tempfile.mkdtemp(prefix=f"{PLACE}{self._pid}-"))
        counts = WorkerCounts(self._settings.queues, self._device, self._gpus)
        if self._settings.metrics_port:
            self._exposition = Exposition(counts.registry, self._settings.metrics_host, self._settings.metrics_port)
        self._spans = open_part_spans(self._settings, "gristmill-worker")
        self._heart = Heart(self._settings, self.workplace, self._device, counts, self._spans, grace_s=self.grace_s)
        self._heart.start()
        atexit.register(self._close)
        logger.info("worker_started", queues=self._settings.queues, device=self._device.name)

    def _gpus(self) -> Sequence[nvml.GpuUse]:
        """The GPU that `devices.pin` left visible to this worker."""
        return nvml.uses([(self._device.name, os.environ["CUDA_VISIBLE_DEVICES"])])

    def _strand(self, at: PartKey) -> None:
        if self.heart:
            self.heart.strand(at)

    def _shut_down(self, **_: Any) -> None:
        if self.heart:
            self.heart.shut_down()

    def _close(self, **_: Any) -> None:
        """After a warm shutdown, and at the exit after a cold one."""
        heart, self._heart = self.heart, None
        if heart:
            heart.close()
            if self._exposition:
                self._exposition.close()
            if self._spans:
                self._spans.close()

    def _start_child(self, **_: Any) -> None:
        """In the child, after its fork or spawn. The parent's folder is that of its socket."""
        if self._exposition:
            self._exposition.forget()
        if self._spans:
            self._spans.forget()
        try:
            made = runtime.Runtime(self._settings, self._device, Path(os.environ[VARIABLE]).parent)
            made.models.warm_up(models_of_queues(self._settings))
            for warm_up in warm_ups_of_queues(self._settings):
                warm_up()
            made.measure(forms_of_queues(self._settings))
            made.tell()
            runtime.start(made)
        except Exception:
            # Celery logs what a receiver raises and goes on; a child that is not ready must not take work.
            logger.exception("child_cannot_start")
            time.sleep(1.0)
            os._exit(1)


def models_of_queues(settings: Settings) -> list[str]:
    """The models that the stages of these queues want warmed up."""
    named = [name for pipeline, stage in _served(settings) for name in stages.models_of(pipeline).get(stage.name, ())]
    return list(dict.fromkeys((*named, *(settings.warm_models if infers(settings) else ()))))


def warm_ups_of_queues(settings: Settings) -> list[Callable[[], None]]:
    """What else the stages of these queues want done before they are asked for."""
    found = [stages.warm_ups_of(pipeline).get(stage.name) for pipeline, stage in _served(settings)]
    return [warm_up for warm_up in found if warm_up]


def forms_of_queues(settings: Settings) -> list[Form]:
    """The stages of these queues that batch."""
    found = [forms_of(pipeline).get(stage.name) for pipeline, stage in _served(settings)]
    return [form for form in found if form]


def _served(settings: Settings) -> list[tuple[Pipeline, StagePlan]]:
    return [
        (pipeline, stage)
        for pipeline in served(settings).values()
        for stage in pipeline.stages
        if stage.queue in settings.queues
    ]


def _watched_loop(parent: Parent) -> type:
    """A bootstep that notes when the main loop turns, and replaces dead children soon; stopped without a broker."""

    class WatchedLoop(bootsteps.StartStopStep):
        """Lets the sign of life stop when the main loop hangs, but not when the broker is away.

        Celery looks for a dead child when its pipe closes, and that may be a moment before it can be waited for; the
        next look would be up to 5 s later.
        """

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def __init__(self, consumer: Any, **options: Any) -> None:
            super().__init__(consumer, **options)
            self._timers: list[Any] = []

        def start(self, consumer: Any) -> None:
            self._turn()
            turns = (self._turn, consumer.pool.maintain_pool)
            self._timers = [consumer.timer.call_repeatedly(TURN_S, turn) for turn in turns]

        def stop(self, consumer: Any) -> None:
            for timer in self._timers:
                timer.cancel()
            if parent.heart:
                parent.heart.looped(None)

        def _turn(self) -> None:
            if parent.heart:
                parent.heart.looped(time.monotonic())

    return WatchedLoop


def _clear_abandoned() -> None:
    """Folders of workers that were killed: their scratch files may be large."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PLACE}*"):
        pid = folder.name.removeprefix(PLACE).split("-")[0]
        if pid.isdecimal() and not _is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        try:
            os.kill(pid, 0)
        except PermissionError:
            return True
        return True
    return False
