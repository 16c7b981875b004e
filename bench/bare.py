"""Our processes without what watches them, for `make bench-gauges`: nothing counts, nothing belongs to a trace.

`python -m bench.bare` is a worker; the gateway is `gunicorn ... bench.bare:app`. No setting does this: counting is
always on. Logs are turned down by LOG_LEVEL.
"""

from __future__ import annotations

import sys
from typing import Any


def nothing(*_: Any, **__: Any) -> None:
    """In place of what watches."""


def _app() -> Any:
    from api import door, metrics

    metrics.answered = metrics.accepted = door.log.bind = nothing
    door.taken_over = lambda header: ""
    from api.main import app

    return app


def _worker() -> int:
    from celery_worker.__main__ import main
    from celery_worker.metrics import WorkerCounts

    WorkerCounts.held = WorkerCounts.released = nothing  # type: ignore[method-assign]
    return main()


if __name__ == "__main__":
    sys.exit(_worker())
app = _app()
