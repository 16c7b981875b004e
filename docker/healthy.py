"""Whether what runs in this container is well: `healthy.py api|worker|sweeper|flower`. Exit code 0, or 1 with why.

A broker or a store that is away makes no worker unhealthy: restarting it would not bring them back.
"""

import http.client
import os
import pathlib
import sys
import tempfile
import time

FRESH_S = 60.0


def api() -> str:
    """Ready to accept jobs: store and files answer."""
    return answers(3333, "/readyz")


def flower() -> str:
    """Flower answers."""
    return answers(5555, "/healthcheck")


def worker() -> str:
    """As many workers as there are queues, each of which touched its file lately."""
    wanted = len([name for name in os.environ.get("QUEUES", "").split(",") if name.strip()])
    alive = sum(is_fresh(file) for file in scratch().glob("gristmill-worker-*/alive"))
    return "" if alive >= max(1, wanted) else f"{alive} of {wanted} workers show signs of life"


def sweeper() -> str:
    """A sweep was tried lately."""
    return "" if is_fresh(scratch() / "gristmill-sweeper-alive") else "no sweep for a minute"


def answers(port: int, path: str) -> str:
    """What is wrong with an HTTP answer of this container."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return "" if answer.status == 200 else f"{answer.status}: {answer.read(500).decode(errors='replace')}"
    except OSError as error:
        return str(error)
    finally:
        connection.close()


def scratch() -> pathlib.Path:
    """Where the processes keep what is theirs."""
    return pathlib.Path(tempfile.gettempdir())


def is_fresh(file: pathlib.Path) -> bool:
    """Touched within the last minute."""
    try:
        return time.time() - file.stat().st_mtime < FRESH_S
    except OSError:
        return False


if __name__ == "__main__":
    wrong = {"api": api, "worker": worker, "sweeper": sweeper, "flower": flower}[sys.argv[1]]()
    if wrong:
        sys.exit(wrong)
