"""Makes small real pictures and models for tests: good ones, and some that bite."""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import yaml
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

HERE = Affine(0.5, 0, 593_000, 0, -0.5, 5_747_000)  # half a metre, in UTM zone 31 north
COLOURS = ("red", "green", "blue", "nir")


def write(
    path: Path,
    bands: np.ndarray,
    *,
    names: Sequence[str] | None = COLOURS,
    transform: Affine | None = HERE,
    crs: Any = "EPSG:32631",
    mask: np.ndarray | None = None,
    **profile: Any,
) -> Path:
    """A picture of these bands. `names` become the bands' descriptions."""
    count, height, width = bands.shape
    profile = {"driver": "GTiff", **profile}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, GDAL_PAM_ENABLED="NO"),
            rasterio.open(
                path, "w", width=width, height=height, count=count, dtype=bands.dtype, crs=crs, transform=transform,
                **profile,
            ) as file,
        ):  # fmt: skip
            file.write(bands)
            if names is not None:
                file.descriptions = tuple(names[:count])
            if mask is not None:
                file.write_mask(mask)
    return path


def meadow(height: int, width: int, water: Sequence[tuple[int, int, int, int]] = ()) -> np.ndarray:
    """Bare ground in four bands of bytes, with rectangles of water: x1, y1, x2, y2."""
    bands = np.stack([np.full((height, width), value, np.uint8) for value in (120, 110, 100, 130)])
    for x1, y1, x2, y2 in water:
        bands[:, y1:y2, x1:x2] = np.array([30, 60, 70, 10], np.uint8)[:, None, None]
    return bands


def tiff(path: Path, tags: dict[int, tuple[int, Sequence[float]]], data: bytes = b"") -> Path:
    """A TIFF with exactly these tags, each (type, values); offset 8 holds the data."""
    body, extra = bytearray(b"II*\0" + struct.pack("<I", 8 + len(data)) + data), bytearray()
    start = len(body) + 2 + 12 * len(tags) + 4
    body += struct.pack("<H", len(tags))
    for tag, (kind, values) in sorted(tags.items()):
        code = {1: "B", 2: "B", 3: "H", 4: "I", 12: "d"}[kind]
        packed = struct.pack(f"<{len(values)}{code}", *values)
        if len(packed) <= 4:
            body += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
        else:
            body += struct.pack("<HHII", tag, kind, len(values), start + len(extra))
            extra += packed + b"\0" * (len(packed) % 2)
    path.write_bytes(bytes(body + b"\0\0\0\0" + extra))
    return path


def zeros(count: int) -> bytes:
    """So many zeros, deflated; made by repeating a piece of the stream."""
    squeeze, piece = zlib.compressobj(9), 1_000_000
    start = squeeze.compress(bytes(piece)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    again = squeeze.compress(bytes(piece)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    end = squeeze.compress(bytes(count % piece)) + squeeze.flush()
    return start + again * (count // piece - 1) + end[:-4] + struct.pack(">I", (count % 65_521) << 16 | 1)


def bomb(path: Path, width: int = 20_000, height: int = 20_000, bands: int = 1) -> Path:
    """A few hundred kilobytes that say to be one deflated block of 400 million pixels; all bands are the same one."""
    rows = zeros(width * height)
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32631)
    return tiff(
        path,
        {
            256: (4, (width,)), 257: (4, (height,)), 258: (3, (8,) * bands), 259: (3, (8,)), 262: (3, (1,)),
            277: (3, (bands,)), 284: (3, (2,)), 322: (4, (width,)), 323: (4, (height,)),
            324: (4, (8,) * bands), 325: (4, (len(rows),) * bands),
            33550: (12, (0.5, 0.5, 0.0)), 33922: (12, (0.0, 0.0, 0.0, 593_000.0, 5_747_000.0, 0.0)), 34735: (3, keys),
        },
        rows,
    )  # fmt: skip


def png_bomb(path: Path, side: int = 19_000) -> Path:
    """A PNG of so many black pixels on a side, some hundred kilobytes long."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zeros(side * (side + 1))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def declare(folder: Path, name: str, file: Path, contract: dict[str, Any]) -> Path:
    """A models.yaml with one model of an operator's own; returns its folder."""
    entry = {
        "title": "A model of my own",
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "licence": "MIT",
        "source": "made by a test",
        "contract": contract,
    }
    (folder / "models.yaml").write_text(yaml.safe_dump({name: entry}))
    return folder
