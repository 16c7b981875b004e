"""What else can be found in a video, beside objects: one module a task, all of one shape.

A module has `Look`, made once for each source. It sees the frames in order, remembers what it finds in each, draws it,
and says at the end what there was. What needs a model is computed in the inference stage; `Look` then only reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from typing import Any, Protocol

import numpy as np

# In this order they are drawn over each other: what changes the whole picture first, what is thin last.
ORDER = ("mask", "motion", "edges", "lines", "boxes", "pose", "spectrum")
LOOKS = frozenset(ORDER) - {"boxes"}
WITH_PERSONS = frozenset({"pose", "mask"})  # these look at each person that was detected
WITH_DETECTIONS = frozenset({"detect", "track"}) | WITH_PERSONS


@dataclass(frozen=True)
class Scene:
    """What a task knows of its source. `persons` and `mask` give what inference found in a frame."""

    size: tuple[int, int]
    rate: Fraction
    params: Mapping[str, Any]
    persons: Sequence[Sequence[Mapping[str, Any]]] = ()
    mask: Callable[[int], np.ndarray | None] = lambda _: None


class Look(Protocol):
    """One task on one source."""

    def look(self, picture: np.ndarray, frame: int) -> dict[str, Any]:
        """What is in the next frame, RGB in the source's size; for its line in `<task>.jsonl`."""
        ...

    def draw(self, picture: np.ndarray) -> np.ndarray:
        """The picture with what was found in it; drawn in place, or another one."""
        ...

    def found(self, shown: Sequence[int]) -> dict[str, Any]:
        """What the result says of the whole source; `shown`: at how many ticks each frame that was looked at showed."""
        ...


def look_of(task: str, scene: Scene) -> Look:
    """The task's `Look`, its module imported only when it is asked for."""
    made: Look = import_module(f"{__name__}.{task}").Look(scene)
    return made
