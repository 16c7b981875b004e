"""`make demo`: a real video through the whole pipeline, over HTTP like any client, and nothing left running."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gristmill import exits
from gristmill.client import Client, Job
from gristmill.errors import GristmillError
from gristmill.progress import follow, shown_for

VIDEO = Path("samples/street.mp4")
FOLDER = Path(".gristmill-demo")
OUTPUT = Path("demo-output")
UP_WITHIN_S = 120.0
JOB_WITHIN_S = 300.0


def main() -> int:
    """Start, submit, watch, fetch, show, stop."""
    # SIGTERM, too, stops what was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _one_machine() as url, Client(url) as client:
            print(f"Submitting {VIDEO} ...", flush=True)
            began = time.monotonic()
            job = client.submit("video", file=VIDEO, fps=5)
            job = follow(job, shown_for(job), JOB_WITHIN_S)
            took = time.monotonic() - began
            _ = job.result  # raises if there is none
            paths = job.download(OUTPUT)
            _show(job, paths, took)
    except KeyboardInterrupt:
        _complain("interrupted; everything is stopped.")
        return exits.INTERRUPTED
    except GristmillError as error:
        _complain(f"{error} The logs are in {FOLDER / 'logs'}.")
        return exits.of_error(error)
    return exits.OK


@contextmanager
def _one_machine() -> Iterator[str]:
    """The URL of a one-machine mode of its own, on free ports, in a folder that is removed afterwards."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    argv = [sys.executable, "-m", "gristmill", "up", "--port", "0", "--until-eof", "--folder", str(FOLDER)]
    print("Starting the gateway, the workers, the sweeper and an embedded Valkey ...", flush=True)
    # A session of its own: Ctrl-C reaches only the demo, which then ends it in order. Should the demo be killed,
    # its end of the pipe closes, and `up` ends by itself.
    with (FOLDER / "up.log").open("w") as log:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
    keep = False
    try:
        yield _url_once_healthy(process)
    except GristmillError:
        keep = True  # its logs say what went wrong
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end is bounded, and impatience would leave a half of it
        process.terminate()
        process.wait()
        if not keep:
            shutil.rmtree(FOLDER, ignore_errors=True)


def _url_once_healthy(process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + UP_WITHIN_S
    while process.poll() is None and time.monotonic() < end:
        state = _state()
        if state.get("pid") == process.pid and state.get("url"):
            return str(state["url"])
        time.sleep(0.1)
    sys.stderr.write((FOLDER / "up.log").read_text())
    raise GristmillError("The one-machine mode did not start.")


def _state() -> Mapping[str, Any]:
    """What `up` writes once it is healthy."""
    try:
        found = json.loads((FOLDER / "up.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _show(job: Job, paths: list[Path], took: float) -> None:
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 120)
    result = Table("RESULT", "", box=None, pad_edge=False)
    for name, value in job.result.items():
        result.add_row(name, json.dumps(value) if isinstance(value, dict | list) else str(value))
    result.add_row("from POST to result", f"{took:.1f} s")
    kept = Table("ARTIFACT", "BYTES", box=None, pad_edge=False)
    for path in paths:
        kept.add_row(str(path), f"{os.path.getsize(path):,}")
    console.print()
    console.print(result)
    console.print()
    console.print(kept)


def _complain(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
