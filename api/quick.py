"""A quick yes to what fits a schema. The rest is left to jsonschema, which knows why, and takes ten times as long.

The schema becomes nested functions, once. They say True only when the value fits for certain; False means "ask
jsonschema", also for every keyword that is not known here. A test holds the two against each other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Fits = Callable[[Any], bool]

PLAIN = frozenset({"title", "description", "default", "example", "examples", "components", "x-also-checked"})
_TYPES: Mapping[str, Fits] = {
    "object": lambda value: type(value) is dict,
    "array": lambda value: type(value) is list,
    "string": lambda value: type(value) is str,
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) is int or (type(value) is float and math.isfinite(value)),
    "boolean": lambda value: type(value) is bool,
    "null": lambda value: value is None,
}


def compiled(schema: Any) -> Fits:
    """Whether a value fits for certain."""
    if schema in (True, {}):
        return _anything
    if not isinstance(schema, Mapping) or not isinstance(schema.get("type"), str) or schema["type"] not in _TYPES:
        return never
    checks = [_TYPES[schema["type"]]]
    for keyword, given in schema.items():
        if keyword in ("type", "required", "additionalProperties", *PLAIN):
            continue
        make = _KEYWORDS.get(keyword)
        if make is None:
            return never
        checks.append(make(given, schema))
    if schema["type"] == "object":
        checks.append(_members(schema))
    return checks[0] if len(checks) == 1 else lambda value: all(check(value) for check in checks)


def _members(schema: Mapping[str, Any]) -> Fits:
    known = {name: compiled(inner) for name, inner in schema.get("properties", {}).items()}
    required = tuple(schema.get("required", ()))
    others = schema.get("additionalProperties", True)
    other = (lambda value: False) if others is False else compiled(others)

    def fits(value: dict[str, Any]) -> bool:
        return all(name in value for name in required) and all(
            known.get(name, other)(inner) for name, inner in value.items()
        )

    return fits


def _least(given: Any, schema: Mapping[str, Any]) -> Fits:
    if schema.get("exclusiveMinimum") is True:  # as OpenAPI 3.0 says it
        return lambda value: value > given
    return lambda value: value >= given


def _most(given: Any, schema: Mapping[str, Any]) -> Fits:
    if schema.get("exclusiveMaximum") is True:
        return lambda value: value < given
    return lambda value: value <= given


def _above(given: Any, schema: Mapping[str, Any]) -> Fits:
    return _anything if isinstance(given, bool) else lambda value: value > given


def _below(given: Any, schema: Mapping[str, Any]) -> Fits:
    return _anything if isinstance(given, bool) else lambda value: value < given


def _matching(given: Any, schema: Mapping[str, Any]) -> Fits:
    pattern = re.compile(given)
    return lambda value: pattern.search(value) is not None


def _each(given: Any, schema: Mapping[str, Any]) -> Fits:
    item = compiled(given)
    return lambda value: all(item(each) for each in value)


def _one_of(given: Any, schema: Mapping[str, Any]) -> Fits:
    words = frozenset(each for each in given if isinstance(each, str))
    return lambda value: type(value) is str and value in words


def _anything(value: Any) -> bool:
    return True


def never(value: Any) -> bool:
    """For a schema that is not understood here."""
    return False


# Lengths of another type than the schema's are not seen here: its `type` is checked first.
_KEYWORDS: Mapping[str, Callable[[Any, Mapping[str, Any]], Fits]] = {
    "properties": lambda given, schema: _anything,  # with the members
    "minimum": _least,
    "maximum": _most,
    "exclusiveMinimum": _above,
    "exclusiveMaximum": _below,
    "minLength": lambda given, schema: lambda value: len(value) >= given,
    "maxLength": lambda given, schema: lambda value: len(value) <= given,
    "minItems": lambda given, schema: lambda value: len(value) >= given,
    "maxItems": lambda given, schema: lambda value: len(value) <= given,
    "minProperties": lambda given, schema: lambda value: len(value) >= given,
    "maxProperties": lambda given, schema: lambda value: len(value) <= given,
    "pattern": _matching,
    "items": _each,
    "enum": _one_of,
}
