"""Serves what one process counts: `/metrics` in Prometheus' text format on METRICS_PORT, from a thread of its own.

The gateway serves its own at API_PORT; this is for processes that speak no HTTP otherwise: workers and sweepers.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server

from jobs import forks, log
from jobs.settings import Settings

AGAIN_S = 2.0  # between two tries of a port that somebody else has: a worker's killed predecessor may hold it a while

logger = log.get(__name__)


class Exposition:
    """Opened once a process, from its parent if it forks. A port that is taken is tried again: gauges stop no work."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self._registry, self._host, self._port = registry, host, port
        self._server: Any = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._insist, name="metrics", daemon=True)
        if not self._open():
            # To open asks a resolver for the host's name, with an import on the way: no child is forked in its middle.
            self._opening = threading.Lock()
            forks.wait_for(self._opening)
            self._thread.start()

    def forget(self) -> None:
        """In a forked child: the socket is the parent's, and must not outlive it there."""
        if self._server is not None:
            self._server.socket.close()

    def close(self) -> None:
        """Answer nobody any more."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(AGAIN_S)
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _open(self) -> bool:
        try:
            self._server, _ = start_http_server(self._port, self._host, self._registry)
        except OSError as error:
            logger.error("metrics_port_taken", port=self._port, host=self._host, error=str(error))
            return False
        logger.info("metrics_served", port=self._port, host=self._host)
        return True

    def _insist(self) -> None:
        while not self._closing.wait(AGAIN_S):
            with self._opening:
                if self._open():
                    return


def expose(registry: CollectorRegistry, settings: Settings) -> contextlib.AbstractContextManager[Exposition | None]:
    """An exposition where the settings want one, else None; closed at the end of the `with` block."""
    if not settings.metrics_port:
        return contextlib.nullcontext()
    return contextlib.closing(Exposition(registry, settings.metrics_host, settings.metrics_port))
