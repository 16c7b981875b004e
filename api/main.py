"""The gateway's entry point: `gunicorn -c python:api.gunicorn_conf api.main:app`. Settings are read here."""

from __future__ import annotations

import sys

from starlette.types import ASGIApp

from api.app import create_app
from api.services import open_services
from jobs import log
from jobs.errors import JobsError
from jobs.settings import load_or_exit


def _app() -> ASGIApp:
    settings = load_or_exit()
    log.setup(settings.log_level)
    try:
        return create_app(open_services(settings))
    except JobsError as error:
        sys.exit(f"gristmill: {type(error).__name__}: {error}")


app = _app()
