"""What models.yaml says of a segmentation or detection model, so that an operator's own plugs in with no code.

buildings:
  title: ...        # and file, sha256, licence, source, as for every model
  contract:
    kind: segmentation                # or detection
    classes: [null, building, road]   # one for each channel or class number; null is not told
    bands: [red, green, blue]         # in the order of the input's channels
    size: 256                         # pixels on a side of the input
    margin: 32                        # of them, on each side, those whose answer is not used
    layout: nchw                      # or nhwc
    normalise: {divide: 255, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
    activation: softmax               # sigmoid, none: what the output still needs to be a probability
    threshold: 0.5                    # less sure pixels or boxes are left out
    overlap: 0.4                      # detection: boxes of one class that share more are one object
    pixel: [0.05, 0.5]                # metres on the ground that a pixel may have
    outputs: {mask: logits}           # or boxes, scores, class_ids: where the model calls them otherwise
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery_worker.pipelines.features.bands import need
from jobs.errors import BadInput

KINDS, LAYOUTS, ACTIVATIONS = ("segmentation", "detection"), ("nchw", "nhwc"), ("none", "sigmoid", "softmax")
MOST_CLASSES, MOST_SIZE = 32, 2_048


@dataclass(frozen=True)
class Contract:
    """How a model is asked, and what its answer means."""

    name: str
    kind: str
    classes: tuple[str | None, ...]
    bands: tuple[str, ...]
    size: int
    margin: int
    layout: str = "nchw"
    divide: float | str = 1.0  # or `levels`: each band by its 2nd and 98th percentile
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    activation: str = "none"
    threshold: float = 0.5
    overlap: float = 0.4
    pixel: tuple[float, float] | None = None
    outputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def core(self) -> int:
        """Pixels on a side whose answer is used."""
        return self.size - 2 * self.margin

    @property
    def halo(self) -> int:
        """How far a window may reach beyond the tile that it is for."""
        return self.size - self.margin - 1

    @property
    def told(self) -> tuple[str, ...]:
        """The classes that become features."""
        return tuple(name for name in self.classes if name is not None)

    def fits(self, bands: Sequence[str], pixel_side: float) -> None:
        """Raises BadInput for a picture that the model cannot look at."""
        need(bands, self.bands, f"The model {self.name}")
        if self.pixel is not None and not self.pixel[0] <= pixel_side <= self.pixel[1]:
            raise BadInput(
                f"The model {self.name} looks at pixels of {self.pixel[0]:g} to {self.pixel[1]:g} m; "
                f"this picture's have {pixel_side:.3g} m."
            )


def contract_of(name: str, declared: Mapping[str, Mapping[str, Any]]) -> Contract:
    """The contract of one model. Raises BadInput with what to mend."""
    if name not in declared or "contract" not in declared[name]:
        usable = [known for known, entry in declared.items() if "contract" in entry]
        raise BadInput(f"models.yaml has no model {name!r} with a contract; it has {', '.join(usable) or 'none'}.")
    said = declared[name]["contract"]
    try:
        return _read(name, {**said})
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BadInput(f"The contract of the model {name} in models.yaml is wrong: {error}.") from error


def _read(name: str, said: dict[str, Any]) -> Contract:
    normalise = {**said.pop("normalise", {})}
    contract = Contract(
        name=name,
        kind=said.pop("kind"),
        classes=tuple(said.pop("classes")),
        bands=tuple(said.pop("bands")),
        size=int(said.pop("size")),
        margin=int(said.pop("margin", 0)),
        layout=said.pop("layout", "nchw"),
        divide=normalise.pop("divide", 1.0),
        mean=tuple(map(float, normalise.pop("mean", ()))),
        std=tuple(map(float, normalise.pop("std", ()))),
        activation=said.pop("activation", "none"),
        threshold=float(said.pop("threshold", 0.5)),
        overlap=float(said.pop("overlap", 0.4)),
        pixel=_pair(said.pop("pixel", None)),
        outputs=dict(said.pop("outputs", {})),
    )
    if unknown := [*said, *normalise]:
        raise ValueError(f"unknown keys {', '.join(unknown)}")
    for value, allowed in (
        (contract.kind, KINDS),
        (contract.layout, LAYOUTS),
        (contract.activation, ACTIVATIONS),
    ):
        if value not in allowed:
            raise ValueError(f"{value!r} is none of {', '.join(allowed)}")
    if not (0 <= contract.margin * 2 < contract.size <= MOST_SIZE and 0 < len(contract.classes) <= MOST_CLASSES):
        raise ValueError(f"size is at most {MOST_SIZE} and more than two margins, classes at most {MOST_CLASSES}")
    if len(set(contract.told)) < len(contract.told) or not contract.told:
        raise ValueError("classes need names of their own, at least one")
    for each in (contract.mean, contract.std):
        if each and len(each) != len(contract.bands):
            raise ValueError("mean and std have a number for each band")
    if not (contract.divide == "levels" or float(contract.divide) > 0) or not all(contract.std or (1,)):
        raise ValueError("divide is a number above 0 or `levels`, and std is not 0")
    return contract


def _pair(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = value
    return float(low), float(high)
