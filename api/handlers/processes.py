"""Pipelines, under the name that OGC API - Processes gives them."""

from __future__ import annotations

import flask

from api import views
from api.handlers import reply
from api.services import services


def getProcesses() -> flask.Response:
    """Every pipeline."""
    known = services().pipelines
    links = [{"href": "/processes", "rel": "self", "type": "application/json"}]
    return reply({"processes": [views.process_view(known[name]) for name in services().names], "links": links})


def getProcessDescription(id: str) -> flask.Response:
    """One pipeline with the schema of its params."""
    return reply(views.process_description(services().pipeline(id)))
