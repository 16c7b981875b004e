"""Workers and sweepers as real processes on one broker and one store, without a gateway: for tests of the workers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

from jobs.dispatch import open_bell
from jobs.files import open_files
from jobs.model import Job, Status, Submission
from jobs.pipeline import Pipelines
from jobs.settings import Settings
from jobs.store import open_store
from jobs.values import unpack

ROOT = Path(__file__).resolve().parent.parent


class Mill:
    """Processes are started by `worker` and `sweeper`, and ended with the `with` block. `env` are settings."""

    def __init__(self, broker_url: str, store_url: str, folder: Path, **env: object) -> None:
        self.folder = folder
        self.env = {
            "BROKER_URL": broker_url,
            "STORE_URL": store_url,
            "FILES_URL": f"file://{folder}/files",
            "PIPELINE_DIRS": f"{ROOT}/celery_worker/pipelines,{ROOT}/tests/pipelines",
            "LEASE_S": "2",
            "DEVICE": "cpu",
            "LOG_LEVEL": "info",
            "TMPDIR": str(folder),
            **{name: str(value) for name, value in env.items()},
        }
        self.settings = Settings(**{name.lower(): value for name, value in self.env.items() if name != "TMPDIR"})
        self.pipelines = Pipelines(self.settings.pipeline_dirs)
        self.store = open_store(store_url)
        self.files = open_files(self.settings.files_url)
        self.bell = open_bell(self.settings, self.store.rung)
        self.processes: list[subprocess.Popen[bytes]] = []

    def worker(self, queues: str = "io", *flags: str, **env: object) -> subprocess.Popen[bytes]:
        """`python -m celery_worker` for some queues; returns once it consumes."""
        return self.start(f"worker-{queues}", ["-m", "celery_worker", *flags], QUEUES=queues, **env)

    def sweeper(self) -> subprocess.Popen[bytes]:
        """`python -m jobs.sweeper`."""
        return self.start("sweeper", ["-m", "jobs.sweeper"])

    def start(self, name: str, command: list[str], **env: object) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{name}-{len(self.processes)}.log").open("ab")
        environment = {**os.environ, **self.env, **{key: str(value) for key, value in env.items()}}
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stderr=log, stdout=log)
        self.processes.append(process)
        return process

    def submit(
        self, pipeline: str, *, priority: int = 4, ring: bool = True, given: Any = None, trace: str = "", **params: Any
    ) -> str:
        """Accept a job as the gateway would; `given` is its input."""
        found = self.pipelines[pipeline]
        plan = found.plan(
            window=self.settings.window, max_failures=self.settings.max_failures, max_losses=self.settings.max_losses
        )
        job_id = f"job-{time.monotonic_ns()}"
        job = Job(job_id, pipeline, plan, found.check(params), given or {}, priority, family=job_id, trace=trace)
        accepted = self.store.add([Submission(job)])[0]
        if ring:
            self.bell.ring(accepted.rings)
        return job_id

    def wait(self, job_id: str, within_s: float = 20) -> Job:
        """The job once it is final."""
        self.until(lambda: self.store.get(job_id).status.is_final, within_s, f"{job_id} to end")
        return self.store.get(job_id)

    def result(self, job_id: str, within_s: float = 20) -> Any:
        """What the last stage of a successful job returned."""
        job = self.wait(job_id, within_s)
        assert job.status is Status.SUCCESSFUL, (job.error, self.logs())
        return unpack(self.store.outputs(job_id, len(job.plan.stages) - 1)[0].value or b"", self.files.load)

    def until(self, holds: Callable[[], object], within_s: float = 20, what: str = "that") -> None:
        """Wait until something holds."""
        until = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < until, f"waited {within_s} s for {what}\n{self.logs()}"
            time.sleep(0.02)

    def started(self, job_id: str) -> None:
        """Wait until a worker has begun the job."""
        self.until(lambda: self.store.get(job_id).status is not Status.ACCEPTED, what=f"{job_id} to start")

    def events(self, job_id: str, *types: str) -> list[tuple[str, dict[str, Any]]]:
        return [(e.type, dict(e.data)) for e in self.store.events(job_id) if not types or e.type in types]

    def logs(self) -> str:
        """The last words of every process."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-4_000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            # A worker of several queues has one below it for each, which would outlive it.
            below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            for one in (process, *below):
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()
        self.bell.close()
        self.store.close()


def children(process: subprocess.Popen[bytes]) -> list[int]:
    """The pids of a process's children."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in listed.split()]
