"""What each band of a picture is: by the params, by its description, by its colour."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jobs.errors import BadInput

# What producers write as a band's description, without blanks, dashes and case.
NAMES = {
    "coastal": r"coastal(blue|aerosol)?|b0?1",
    "blue": r"blue|b0?2|b",
    "green": r"green|b0?3|g",
    "yellow": r"yellow",
    "red": r"red|b0?4|r",
    "rededge": r"(red|veg)edge\d?",
    "nir": r"nir1?|nearinfrared1?|nearir|b0?8|n",
    "nir2": r"nir2|nearinfrared2|b8a",
    "swir1": r"swir1|b11",
    "swir2": r"swir2|b12",
    "thermal": r"thermal|tir|lwir",
    "pan": r"pan(chromatic)?",
    "alpha": r"alpha|mask",
}
COLOURS = frozenset({"red", "green", "blue", "alpha", "coastal", "rededge", "nir", "pan"})


def name_bands(
    asked: Sequence[str] | None, descriptions: Sequence[str | None], colours: Sequence[str], count: int
) -> tuple[str, ...]:
    """A name for each band; `band 3` for one that nobody names. Raises BadInput."""
    if asked is not None:
        if len(asked) != count:
            raise BadInput(f"The picture has {count} bands, and bands names {len(asked)}.")
        found = list(asked)
    else:
        found = [
            _described(text) or (colour if colour in COLOURS else "other")
            for text, colour in zip(descriptions, colours, strict=True)
        ]
    named = [name for name in found if name != "other"]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise BadInput(f"Two bands are called {twice[0]}: say in bands which is which.")
    return tuple(f"band {n}" if name == "other" else name for n, name in enumerate(found, 1))


def need(bands: Sequence[str], wanted: Sequence[str], what: str) -> None:
    """Raises BadInput where a band that something needs is not there."""
    if missing := [name for name in wanted if name not in bands]:
        known = [name for name in bands if not name.startswith("band ")]
        has = f"it has {', '.join(known)}: leave it out, or" if known else "it does not name its bands:"
        raise BadInput(
            f"{what} needs the band{'s' * (len(missing) > 1)} {', '.join(missing)} of the picture, and {has} "
            'say bands, such as ["blue", "green", "red", "nir"].'
        )


def _described(text: str | None) -> str | None:
    plain = re.sub(r"[^a-z0-9]", "", (text or "").lower())
    plain = re.sub(r"^band(?=[a-z])|band$", "", plain)
    return next((name for name, pattern in NAMES.items() if re.fullmatch(pattern, plain)), None)
