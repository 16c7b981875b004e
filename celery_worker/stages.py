"""Imports a pipeline's `stages.py`, and sees that it keeps the promise of its `pipeline.yaml`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jobs.errors import PipelineBroken
from jobs.pipeline import Pipeline

BUILT_IN = Path(__file__).resolve().parent / "pipelines"

Stage = Callable[..., Any]


def load(pipeline: Pipeline) -> dict[str, Stage]:
    """Every stage's function by its name. Raises PipelineBroken when one is missing, or the import fails."""
    module = load_module(pipeline)
    missing = [stage.name for stage in pipeline.stages if not callable(getattr(module, stage.name, None))]
    if missing:
        where = pipeline.folder / "stages.py"
        raise PipelineBroken(f"{where} has no function {', '.join(missing)}, which pipeline.yaml names.")
    return {stage.name: getattr(module, stage.name) for stage in pipeline.stages}


def models_of(pipeline: Pipeline) -> Mapping[str, tuple[str, ...]]:
    """`MODELS` of stages.py: by stage, the models to warm up before a child takes work."""
    return getattr(load_module(pipeline), "MODELS", {})


def warm_ups_of(pipeline: Pipeline) -> Mapping[str, Callable[[], None]]:
    """`WARM_UP` of stages.py: by stage, what a child calls before it takes work (an import that takes seconds)."""
    return getattr(load_module(pipeline), "WARM_UP", {})


def load_module(pipeline: Pipeline) -> ModuleType:
    """`stages.py` as a module. A folder elsewhere becomes a package of its own, so that `from . import x` works."""
    folder = pipeline.folder.resolve()
    try:
        if folder.parent == BUILT_IN:
            return importlib.import_module(f"celery_worker.pipelines.{pipeline.name}.stages")
        package = f"_pipeline_{pipeline.name}_{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
        if package not in sys.modules:
            found = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(package, None, is_package=True))
            found.__path__ = [str(folder)]
            sys.modules[package] = found
        return importlib.import_module(f"{package}.stages")
    except Exception as error:
        raise PipelineBroken(f"{folder / 'stages.py'}: {type(error).__name__}: {error}") from error
