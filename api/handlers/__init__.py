"""Ordinary operations: Flask handlers, named by swagger.yaml. They find, check, act and present."""

from __future__ import annotations

import json
from collections.abc import Mapping

import flask


def reply(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> flask.Response:
    """A document as JSON."""
    body = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return flask.Response(body, status, dict(headers or {}), mimetype="application/json")
