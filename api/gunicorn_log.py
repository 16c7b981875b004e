"""Gunicorn's own lines, and uvicorn's, in the form of all the others: JSON in a container, readable on a terminal."""

from __future__ import annotations

import logging
from typing import Any

from gunicorn.glogging import Logger

from jobs import log
from jobs.settings import load_or_exit


class OneForm(Logger):  # type: ignore[misc]
    """Gives its error log the root's handler, and so uvicorn's, which has gunicorn's. The access log stays off."""

    def setup(self, cfg: Any) -> None:
        """Called once, before the first process is made."""
        super().setup(cfg)
        log.setup(load_or_exit().log_level)
        self.error_log.handlers = logging.getLogger().handlers
