"""The gateway itself: where things are, how it is, what it counts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import cast

import flask

from api import metrics, views
from api.handlers import reply
from api.services import services
from jobs.errors import JobsError, StoreUnavailable

LINKS = (
    ("/ui/", "service-doc", "text/html", "Try every operation (Swagger UI)"),
    ("/openapi.json", "service-desc", "application/json", "The description of this API"),
    ("/processes", "http://www.opengis.net/def/rel/ogc/1.0/processes", "application/json", "What can be run"),
    ("/jobs", "http://www.opengis.net/def/rel/ogc/1.0/job-list", "application/json", "Jobs, newest first"),
    ("/version", "version", "application/json", "What runs here"),
    ("/readyz", "health", "application/json", "Whether jobs can be accepted"),
    ("/metrics", "metrics", "text/plain", "Counters for Prometheus"),
)
TITLE, DESCRIPTION = "Gristmill", "Submit a job, get its id at once, watch it move, fetch the result."

PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    f"<title>{TITLE}</title><style>body{{font:16px/1.6 system-ui,sans-serif;max-width:40rem;margin:4rem auto;"
    f"padding:0 1rem}}</style><h1>{TITLE}</h1><p>{DESCRIPTION}</p><ul>"
    + "".join(f'<li><a href="{href}">{title}</a> <code>{href}</code></li>' for href, _, _, title in LINKS)
    + "</ul></html>"
)


def getLandingPage() -> flask.Response:
    """Links: as JSON, or as a page for a browser."""
    best = flask.request.accept_mimetypes.best_match(["application/json", "text/html"], "application/json")
    if best == "text/html":
        return flask.Response(PAGE, mimetype="text/html", headers={"Vary": "Accept"})
    links = [{"href": href, "rel": rel, "type": type_, "title": title} for href, rel, type_, title in LINKS]
    links.insert(0, {"href": "/", "rel": "self", "type": "application/json", "title": TITLE})
    return reply({"title": TITLE, "description": DESCRIPTION, "links": links}, headers={"Vary": "Accept"})


def getReadiness() -> flask.Response:
    """Store and files must answer. Without the broker jobs are still accepted: the sweeper rings them later."""
    found = services()
    checks = {"store": _check(found.store.ping), "files": _check(found.files.ping)}
    ready = all(answer == "ok" for answer in checks.values())
    checks["broker"] = "ok" if found.broker_answers() else "unavailable"
    return reply({"status": "ok" if ready else "unavailable", "checks": checks}, 200 if ready else 503)


def getVersion() -> flask.Response:
    """What runs here, and on what. The gateway's part is told without a store too."""
    found = services()
    workers = None
    with suppress(StoreUnavailable):
        workers = [views.worker_view(one) for one in found.store.workers()]
    told = {"name": "gristmill", "version": views.VERSION, "pipelines": list(found.names), "workers": workers}
    return reply(told)


def getMetrics() -> flask.Response:
    """Counters in Prometheus' text format."""
    return flask.Response(metrics.text(services().gauges), content_type="text/plain; version=0.0.4; charset=utf-8")


def getOpenApi() -> flask.Response:
    """The spec as it is served: made once, since Connexion would make it anew for each request."""
    return flask.Response(cast(bytes, flask.current_app.extensions["gristmill.spec"]), mimetype="application/json")


def _check(ping: Callable[[], None]) -> str:
    try:
        ping()
    except JobsError as error:
        return error.summary()
    return "ok"
