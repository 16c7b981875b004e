"""Connexion's validation step: the spec's schemas compiled once, every violation reported, nothing guessed.

Its own validators report the first violation only, compile their schema for each request, take a missing
Content-Type for JSON, and answer 500 for bodies that Python cannot read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs

from connexion.datastructures import MediaTypeDict
from connexion.json_schema import Draft4RequestValidator
from connexion.middleware.request_validation import (
    RequestValidationAPI,
    RequestValidationMiddleware,
    RequestValidationOperation,
)
from connexion.operations import AbstractOperation
from jsonschema import Draft4Validator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import quick, strict_json
from api.problems import BodyTooLarge, ClientGone, MediaTypeUnsupported, ParametersInvalid
from jobs.errors import BodyInvalid

Violations = list[Mapping[str, str]]

BODY = "gristmill.body"  # in the scope: the parsed body and its violations, for the operation behind

_PATTERNS = {"pattern": "The text has characters that are not allowed here."}


class Shape:
    """A schema of the spec, compiled."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        # References are resolved already; the components that Connexion hangs on would only cost.
        own = {name: value for name, value in schema.items() if name != "components"}
        self.is_file = own.get("format") == "binary"
        self.also_checked = "x-also-checked" in own
        self._fits = quick.compiled(own)
        self._validator = Draft4RequestValidator(own, format_checker=Draft4Validator.FORMAT_CHECKER)

    def violations(self, value: Any) -> Violations:
        """Everything in which a value does not fit."""
        if self._fits(value):
            return []
        return [each for error in self._validator.iter_errors(value) for each in _entries(error)]


class CheckedOperation:
    """One operation: its parameters and, where it takes JSON, its body, parsed once and left in the scope.

    A schema marked `x-also-checked` is checked further by its operation, which reports everything together.
    """

    def __init__(self, next_app: ASGIApp, operation: AbstractOperation, max_body_bytes: int) -> None:
        self._next_app, self._operation, self._limit = next_app, operation, max_body_bytes
        self._shapes: dict[str, Shape | None] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_parameters(scope)
        if self._operation.consumes:
            media_type = _media_type(scope)
            try:
                shape = self._shapes[media_type]
            except KeyError:
                shape = self._shape(media_type)
            if shape:
                receive = await self._read(shape, scope, receive)
        await self._next_app(scope, receive, send)

    def _shape(self, media_type: str) -> Shape | None:
        """The schema of a JSON body; None for what is streamed. Raises MediaTypeUnsupported."""
        taken = MediaTypeDict(dict.fromkeys(self._operation.consumes))
        if not media_type and "*/*" not in taken:
            raise MediaTypeUnsupported(f"The Content-Type is missing; send {' or '.join(self._operation.consumes)}.")
        if media_type and media_type not in taken:
            raise MediaTypeUnsupported(
                f"This operation takes {' or '.join(self._operation.consumes)}, not {media_type[:100]}."
            )
        shape = Shape(self._operation.body_schema(media_type)) if media_type == "application/json" else None
        if shape and shape.is_file:
            shape = None  # a file that happens to be JSON
        if media_type in self._operation.consumes:
            self._shapes[media_type] = shape
        return shape

    async def _read(self, shape: Shape, scope: Scope, receive: Receive) -> Receive:
        _require_utf8(scope)
        body = await read_body(receive, scope, self._limit)
        value = strict_json.read(body)
        found = shape.violations(value)
        if found and not shape.also_checked:
            raise BodyInvalid(errors=found)
        scope[BODY] = (value, found)
        return _again(body, receive)

    @cached_property
    def _headers(self) -> dict[bytes, tuple[str, Shape]]:
        return {
            each["name"].lower().encode(): (each["name"], Shape(each["schema"]))
            for each in self._operation.parameters
            if each["in"] == "header"
        }

    @cached_property
    def _query(self) -> dict[str, Shape]:
        return {each["name"]: Shape(each["schema"]) for each in self._operation.parameters if each["in"] == "query"}

    def _check_parameters(self, scope: Scope) -> None:
        """Query and headers; ids in a path are looked up, not checked. Raises ParametersInvalid."""
        found: Violations = []
        for header, value in scope["headers"]:
            if header in self._headers:
                name, shape = self._headers[header]
                for each in shape.violations(value.decode("latin-1")):
                    found.append({"pointer": f"header:{name}", "detail": each["detail"]})
        if scope["query_string"]:
            found += self._check_query(scope["query_string"].decode("ascii"))
        if found:
            raise ParametersInvalid(f"{found[0]['pointer']}: {found[0]['detail']}", errors=found)

    def _check_query(self, query: str) -> Violations:
        found: Violations = []
        if query.count("&") > 100:
            return [{"pointer": "query:", "detail": "There are too many query parameters."}]
        for name, values in parse_qs(query, keep_blank_values=True).items():
            pointer = f"query:{name[:50]}"
            if name not in self._query:
                found.append({"pointer": pointer, "detail": "There is no query parameter of this name."})
            elif len(values) > 1:
                found.append({"pointer": pointer, "detail": "The parameter is given twice."})
            else:
                value = self._typed(name, values[0])
                found += [{"pointer": pointer, "detail": v["detail"]} for v in self._query[name].violations(value)]
        return found

    def _typed(self, name: str, text: str) -> Any:
        """Text is all that a query knows; the schema tells what it should be."""
        wanted = next(each["schema"].get("type") for each in self._operation.parameters if each["name"] == name)
        return int(text) if wanted == "integer" and text.isascii() and text.isdigit() and len(text) < 17 else text


class Checking(RequestValidationMiddleware):  # type: ignore[misc]
    """Takes the place of Connexion's own validation step."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        class API(RequestValidationAPI):  # type: ignore[misc]
            def make_operation(self, operation: AbstractOperation) -> RequestValidationOperation:
                checked: Any = CheckedOperation(self.next_app, operation, max_body_bytes)
                return checked

        self.api_cls = API
        super().__init__(app)


async def read_body(receive: Receive, scope: Scope, limit: int) -> bytes:
    """The whole body, chunked or not. Raises BodyTooLarge without reading on, ClientGone."""
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            raise BodyTooLarge(limit=limit)
    body: bytes = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone()
        body += message.get("body", b"")
        if len(body) > limit:
            raise BodyTooLarge(limit=limit)
        if not message.get("more_body", False):
            return body


def _media_type(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"content-type":
            return str(value.partition(b";")[0].decode("latin-1"))
    return ""


def _require_utf8(scope: Scope) -> None:
    """Raises MediaTypeUnsupported for JSON in another charset."""
    given = next(value for name, value in scope["headers"] if name == b"content-type")
    for parameter in given.decode("latin-1").split(";")[1:]:
        name, _, charset = parameter.strip().lower().partition("=")
        if name == "charset" and charset.strip('"') not in ("utf-8", "utf8", "us-ascii"):
            raise MediaTypeUnsupported("JSON is sent as UTF-8.")


def _entries(error: Any) -> Iterator[Mapping[str, str]]:
    """Missing and extra members point at themselves."""
    pointer = "".join(f"/{_escaped(part)}" for part in error.absolute_path)
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        for extra in sorted(set(error.instance) - set(error.schema.get("properties", {}))):
            yield {"pointer": f"{pointer}/{_escaped(extra)[:100]}", "detail": "There is no member of this name."}
    elif error.validator == "required":
        missing = next((name for name in error.validator_value if error.message.startswith(repr(name))), "")
        yield {"pointer": f"{pointer}/{missing}", "detail": "This member is missing."}
    else:
        yield {"pointer": pointer, "detail": _PATTERNS.get(error.validator, error.message)[:300]}


def _escaped(part: object) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")


def _again(body: bytes, receive: Receive) -> Receive:
    """The body once more, for who reads it behind the validation."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
