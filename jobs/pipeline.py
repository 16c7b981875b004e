"""A pipeline, read as data: its stages, its queues, what it takes. Imports none of its code."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, SchemaError
from jsonschema.validators import extend

from jobs.errors import ParamsInvalid, PipelineBroken, PipelineNotFound
from jobs.model import Plan, StagePlan

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
INPUTS = frozenset({"file", "files", "url", "text"})
STAGE_KEYS = frozenset({"name", "queue", "each", "time_limit", "min_success", "batch"})
KEYS = frozenset({"title", "description", "input", "stages", "params", "rate", "concurrency"})
MOST_BATCH, MOST_BATCH_WAIT_MS = 1_024, 1_000
MOST_RATE = MOST_CONCURRENCY = 1_000  # a store remembers so many starts of a pipeline


@dataclass(frozen=True)
class Batch:
    """How many inputs one call of a stage may take at most, and how long it may wait for more parts at most."""

    max: int
    wait_ms: float = 0.0

    def __post_init__(self) -> None:
        if type(self.max) is not int or not 1 <= self.max <= MOST_BATCH or not 0 <= self.wait_ms <= MOST_BATCH_WAIT_MS:
            raise ValueError(f"batch: max is in [1, {MOST_BATCH}], wait_ms in [0, {MOST_BATCH_WAIT_MS}]")


@dataclass(frozen=True)
class Pipeline:
    """A named list of stages with one params schema.

    `input` maps what may be given (file, files, url, text) to accepted media types; `input_required` says that one
    of them must be. `rate` limits the jobs that start in a minute, `concurrency` those under way at once.
    """

    name: str
    title: str
    description: str
    folder: Path
    stages: tuple[StagePlan, ...]
    batches: Mapping[str, Batch]
    input: Mapping[str, tuple[str, ...]]
    input_required: bool
    params_schema: Mapping[str, Any]
    rate: int | None = None
    concurrency: int | None = None

    def plan(self, *, window: int, max_failures: int, max_losses: int) -> Plan:
        """What is frozen into a job of this pipeline."""
        return Plan(self.stages, window, max_failures, max_losses, self.rate, self.concurrency)

    def check(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Params with their defaults filled in. Raises ParamsInvalid with every violation in `errors`."""
        filled = copy.deepcopy(dict(params))
        found = sorted(self._validator.iter_errors(filled), key=lambda e: list(map(str, e.absolute_path)))
        if errors := [violation for error in found for violation in _violations(error)]:
            raise ParamsInvalid(f"{len(errors)} of the params do not fit.", errors=errors)
        return filled

    def takes(self, media_type: str, *kinds: str) -> bool:
        """Whether a file of that media type may be this pipeline's input: uploaded, or as one of the `kinds` named."""
        accepted = [pattern for kind in kinds or ("file", "files") for pattern in self.input.get(kind, ())]
        return any(fnmatch(media_type, pattern) for pattern in accepted)

    @cached_property
    def _validator(self) -> Draft202012Validator:
        filling: Draft202012Validator = _Filling(self.params_schema)
        return filling

    @cached_property
    def example(self) -> Mapping[str, Any]:
        """`example.json`: a body that POST /process takes."""
        found: Mapping[str, Any] = json.loads((self.folder / "example.json").read_text())
        return found


class Pipelines(Mapping[str, Pipeline]):
    """Every pipeline of some folders, by name. Raises PipelineBroken at once, PipelineNotFound when asked."""

    def __init__(self, folders: Iterable[str | Path]) -> None:
        found = [read(file.parent) for folder in folders for file in sorted(Path(folder).glob("*/pipeline.yaml"))]
        self._by_name = {pipeline.name: pipeline for pipeline in found}
        if len(self._by_name) < len(found):
            raise PipelineBroken("Two pipelines have one name.")

    def __getitem__(self, name: str) -> Pipeline:
        try:
            return self._by_name[name]
        except KeyError:
            raise PipelineNotFound(pipeline=name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @property
    def queues(self) -> tuple[str, ...]:
        """Every queue that some stage names."""
        return tuple(sorted({stage.queue for pipeline in self.values() for stage in pipeline.stages}))


def read(folder: Path) -> Pipeline:
    """The pipeline of one folder. Raises PipelineBroken, naming the file."""
    file = folder / "pipeline.yaml"
    try:
        data = yaml.safe_load(file.read_text())
        _known(data, KEYS, "the pipeline")
        stages = tuple(_stage(entry) for entry in data["stages"])
        schema = data.get("params") or {"type": "object", "additionalProperties": False}
        Draft202012Validator.check_schema(schema)
        given = dict(data.get("input") or {})
        required = bool(given.pop("required", False))
        _known(given, INPUTS, "input")
        pipeline = Pipeline(
            name=folder.name,
            title=data["title"],
            description=data.get("description", ""),
            folder=folder,
            stages=stages,
            batches={e["name"]: Batch(**e["batch"]) for e in data["stages"] if "batch" in e},
            input={kind: tuple(types or ()) for kind, types in given.items()},
            input_required=required,
            params_schema=schema,
            rate=_limit(data, "rate", MOST_RATE),
            concurrency=_limit(data, "concurrency", MOST_CONCURRENCY),
        )
        _check_stages(pipeline)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, SchemaError) as error:
        raise PipelineBroken(f"{file}: {type(error).__name__}: {error}", file=str(file)) from error
    return pipeline


def _stage(entry: Mapping[str, Any]) -> StagePlan:
    _known(entry, STAGE_KEYS, f"stage {entry.get('name')}")
    return StagePlan(
        name=entry["name"],
        queue=entry["queue"],
        each=bool(entry.get("each", False)),
        time_limit=float(entry.get("time_limit", 900)),
        min_success=float(entry.get("min_success", 1.0)),
    )


def _limit(data: Mapping[str, Any], name: str, most: int) -> int | None:
    """How many jobs a pipeline may start in a minute, or have under way at once; None: as many as come."""
    value = data.get(name)
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} is a whole number from 1 to {most:,}")
    return value


def _check_stages(pipeline: Pipeline) -> None:
    """The rules of a plan: names, and who may emit."""
    names = [stage.name for stage in pipeline.stages]
    if not names or len(set(names)) < len(names):
        raise ValueError("stages must have names of their own, at least one")
    for word in (pipeline.name, *names):
        if not NAME.fullmatch(word):
            raise ValueError(f"{word!r} is not a name: lower-case letters, digits and underscores")
    if pipeline.stages[0].each:
        raise ValueError("the first stage cannot be `each`: nothing emits to it")
    for before, stage in zip(pipeline.stages, pipeline.stages[1:], strict=False):
        if before.each and stage.each:
            raise ValueError(f"{stage.name}: `each` after `each`; only a one-part stage may emit")
        if stage.each and before.name in pipeline.batches:
            raise ValueError(f"{before.name}: a stage that emits cannot batch")
    for stage in pipeline.stages:
        if not (0 < stage.min_success <= 1 and 0 < stage.time_limit <= 86_400):
            raise ValueError(f"{stage.name}: min_success is in (0, 1], time_limit in (0, 86400]")


def _known(entry: Mapping[str, Any], allowed: frozenset[str], where: str) -> None:
    if unknown := set(entry) - allowed:
        raise ValueError(f"{where} has unknown keys: {', '.join(sorted(unknown))}")


def _fill_defaults(validator: Any, properties: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """jsonschema's documented way to fill in defaults: before the properties are validated."""
    if isinstance(instance, dict):
        for name, sub in properties.items():
            if isinstance(sub, dict) and "default" in sub:
                instance.setdefault(name, copy.deepcopy(sub["default"]))
    yield from Draft202012Validator.VALIDATORS["properties"](validator, properties, instance, schema)


def _is_finite_number(checker: Any, value: Any) -> bool:
    """Python's JSON reader lets NaN and 1e999 through; JSON knows neither."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_Filling = extend(
    Draft202012Validator,
    validators={"properties": _fill_defaults},
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("number", _is_finite_number),
)


def _violations(error: Any) -> Iterator[dict[str, str]]:
    """One entry a violation; missing and extra members point at themselves."""
    path = [str(p).replace("~", "~0").replace("/", "~1") for p in error.absolute_path]
    pointer = "".join(f"/{p}" for p in path)
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        for extra in sorted(set(error.instance) - set(error.schema.get("properties", {}))):
            escaped = extra.replace("~", "~0").replace("/", "~1")
            yield {"pointer": f"{pointer}/{escaped}", "detail": "There is no param of this name."}
    elif error.validator == "required":
        missing = next((n for n in error.validator_value if error.message.startswith(repr(n))), "")
        escaped = missing.replace("~", "~0").replace("/", "~1")
        yield {"pointer": f"{pointer}/{escaped}", "detail": "This param is missing."}
    else:
        yield {"pointer": pointer, "detail": error.message[:300]}
