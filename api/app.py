"""The gateway as an ASGI app: swagger.yaml read as data, Connexion in the middle, the intake and Flask behind it."""

from __future__ import annotations

import copy
import json
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import yaml
from a2wsgi import WSGIMiddleware
from connexion import FlaskApp
from connexion.exceptions import ProblemException
from connexion.middleware import ConnexionMiddleware, MiddlewarePosition
from connexion.middleware.request_validation import RequestValidationMiddleware
from connexion.middleware.routing import RoutingMiddleware
from connexion.middleware.swagger_ui import SwaggerUIMiddleware
from connexion.options import SwaggerUIOptions
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from api import problems
from api.checks import Checking
from api.desk import Desk
from api.door import Door
from api.intake import Intake
from api.services import Services
from api.shortcuts import Routing, Ui
from jobs.errors import JobsError, PipelineBroken
from jobs.pipeline import Pipelines

if TYPE_CHECKING:
    from api.spans import RequestSpans

SPEC = Path(__file__).resolve().parent.parent / "swagger.yaml"
FLASK_THREADS = 64  # Connexion's own bridge has 10


def create_app(services: Services, *, validate_responses: bool = False) -> ASGIApp:
    """The only seam: everything that the gateway talks to comes in `services`."""
    spec = read_spec(services.pipelines)
    desk = Desk(services, spec["components"]["schemas"]["Submission"])
    app = FlaskApp(
        "gristmill",
        lifespan=_lifespan(desk),
        middlewares=_middlewares(services.settings.max_body_bytes),
        validate_responses=validate_responses,
        swagger_ui_options=SwaggerUIOptions(serve_spec=False),
    )
    app.app.extensions["gristmill"] = services
    app.app.extensions["gristmill.spec"] = json.dumps(spec).encode()
    bridge: Any = app._middleware_app
    bridge.asgi_app = WSGIMiddleware(app.app.wsgi_app, workers=FLASK_THREADS)
    app.add_middleware(Intake, position=MiddlewarePosition.BEFORE_CONTEXT, desk=desk)
    for kind in (JobsError, ProblemException, HTTPException, Exception):
        app.add_error_handler(kind, problems.answer)
    app.add_api(copy.deepcopy(spec))
    _quiet()
    return Door(app, _spans(services, spec))


def _spans(services: Services, spec: Mapping[str, Any]) -> RequestSpans | None:
    if services.spans is None:
        return None
    from api.spans import RequestSpans

    return RequestSpans(services.spans, spec)


def _middlewares(max_body_bytes: int) -> list[Any]:
    """Connexion's own, some of them replaced by their subclasses here."""
    ours = {
        SwaggerUIMiddleware: Ui,
        RoutingMiddleware: Routing,
        RequestValidationMiddleware: partial(Checking, max_body_bytes=max_body_bytes),
    }
    return [ours.get(each, each) for each in ConnexionMiddleware.default_middlewares]


def read_spec(pipelines: Pipelines) -> dict[str, Any]:
    """swagger.yaml, with each pipeline's example for POST /process. A dict: as a file it would be a template."""
    spec: dict[str, Any] = yaml.safe_load(SPEC.read_text())
    body = spec["paths"]["/process"]["post"]["requestBody"]["content"]["application/json"]
    body["examples"] = dict(sorted(_examples(pipelines).items(), key=lambda each: "input" in each[1]["value"]))
    return spec


def _examples(pipelines: Pipelines) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for name, pipeline in sorted(pipelines.items()):
        try:
            found[name] = {"summary": pipeline.title, "value": pipeline.example}
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise PipelineBroken(f"{pipeline.folder / 'example.json'}: {error}") from error
    return found


def _lifespan(desk: Desk) -> Callable[[Any], Any]:
    """On a signal those who wait are let go at once; the server would wait for them until it is killed."""

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                _before(number, desk.waiting.close)
        yield
        desk.waiting.close()
        desk.close()

    return lifespan


def _before(number: signal.Signals, act: Callable[[], None]) -> None:
    server = signal.getsignal(number)

    def handle(received: int, frame: FrameType | None) -> None:
        act()
        if callable(server):
            server(received, frame)

    signal.signal(number, handle)


def _quiet() -> None:
    """Connexion warns about every request that we refuse, and about each operation with two media types."""
    for name in ("connexion.operations.openapi3", "connexion.middleware.exceptions", "connexion.middleware.validation"):
        logging.getLogger(name).setLevel(logging.ERROR)
