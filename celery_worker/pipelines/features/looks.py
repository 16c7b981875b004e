"""What a job looks for: the classes of its indices and of its models, the bands that they need, how far they look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery_worker.pipelines.features import indices
from celery_worker.pipelines.features.components import Sizes
from celery_worker.pipelines.features.contract import Contract, contract_of
from celery_worker.pipelines.features.picture import Header
from jobs.errors import BadInput

LEAST_PIXELS = 9  # of an area


@dataclass(frozen=True)
class Looks:
    """`indices` and the classes of `segmenting` have a plane each, in this order; those of `detecting` have boxes."""

    indices: tuple[str, ...]
    segmenting: tuple[Contract, ...]
    detecting: tuple[Contract, ...]

    @property
    def masks(self) -> tuple[str, ...]:
        """The classes that have planes."""
        return (*self.indices, *(name for contract in self.segmenting for name in contract.told))

    @property
    def names(self) -> tuple[str, ...]:
        """Every class."""
        return (*self.masks, *(name for contract in self.detecting for name in contract.told))

    @property
    def halo(self) -> int:
        """Pixels around a tile's core that some answer inside depends on."""
        reaches = [contract.halo for contract in (*self.segmenting, *self.detecting)]
        return max([*reaches, *(indices.INDICES[name].reach for name in self.indices)])

    def bands(self, header: Header, pixel_side: float) -> list[str]:
        """Those that something looks at, and those that people look at, in the picture's order. Raises BadInput."""
        wanted = set().union(*(indices.bands_of(name, header.bands) for name in self.indices))
        for contract in (*self.segmenting, *self.detecting):
            contract.fits(header.bands, pixel_side)
            wanted.update(contract.bands)
        return [name for name in header.bands if name in wanted | set(indices.RGB)]

    def sizes(self, name: str, min_area: float, pixel_area: float) -> Sizes:
        """What is smaller is a sliver; what is larger than its class can be is something else."""
        least, most = indices.INDICES[name].sizes if name in self.indices else (0.0, None)
        least_m2 = min_area if most is None else least
        most_pixels = None if most is None else max(LEAST_PIXELS, round(most / pixel_area))
        return Sizes(max(LEAST_PIXELS, round(least_m2 / pixel_area)), most_pixels)


def looks_of(params: Mapping[str, Any], declared: Mapping[str, Mapping[str, Any]]) -> Looks:
    """What the params ask for. Raises BadInput for a model that is not there, or whose contract is wrong."""
    contracts = [contract_of(name, declared) for name in params["models"]]
    looks = Looks(
        tuple(name for name in indices.INDICES if name in params["classes"]),
        tuple(contract for contract in contracts if contract.kind == "segmentation"),
        tuple(contract for contract in contracts if contract.kind == "detection"),
    )
    if not looks.names:
        raise BadInput("Nothing is looked for: name some classes or models.")
    if twice := _twice(looks.names):
        raise BadInput(f"Two of the classes and models find {twice}: ask for one of them.")
    return looks


def _twice(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)
