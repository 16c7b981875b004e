"""Opens a picture as data: where it lies, what its bands are, which pixels hold anything. Reads by windows only.

GDAL may open these three formats, the file itself, and nothing that the file names: no VRT, no file beside it, no
address. What does not fit is refused by its header, before a pixel is decoded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from celery_worker.pipelines.features.bands import name_bands
from jobs.errors import BadInput

# The only formats that GDAL may open, told by a file's first bytes; what begins otherwise never reaches it.
DRIVERS = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
}
ENVIRONMENT = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no mask, overview or world file that happens to lie beside it
    "GDAL_PAM_ENABLED": "NO",  # neither read nor written: *.aux.xml
    "GDAL_CACHEMAX": 128,
    "GDAL_NUM_THREADS": 1,
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "GDAL_HTTP_MAX_RETRY": 0,
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": "{noext}.none",  # no file of a network has this ending
    "OGR_SQLITE_SYNCHRONOUS": "OFF",
    "PROJ_NETWORK": "OFF",
}
MAX_SIDE = 20_000
MAX_BANDS = 12  # and one for transparency
MAX_BLOCK_BYTES = 256 * 1024 * 1024  # a block is decoded whole, however small the window
MAX_EXPANSION = 500  # times the file's size, for what is large anyway
LARGE_BYTES = 4 * 1024**3
KINDS = frozenset("uif")
SAMPLES, SAMPLE_SIDE = 5, 256  # the levels of a picture are told from 5 x 5 windows spread over it
PERCENTILES = (2, 50, 98)


@dataclass(frozen=True)
class Header:
    """What is known of a picture without a look at its pixels. `bands` has a name for each band."""

    width: int
    height: int
    bands: tuple[str, ...]
    dtype: str
    transform: Affine
    crs: pyproj.CRS


class Picture:
    """A picture, open for reading by windows. Raises BadInput with a sentence for its sender."""

    def __init__(self, path: Path, params: Mapping[str, Any], max_pixels: int, world: Affine | None = None) -> None:
        self._environment = rasterio.Env(**ENVIRONMENT)
        self._environment.__enter__()
        try:
            self._file = _open(path)
            try:
                _refuse_sizes(self._file, path.stat().st_size, max_pixels)
                self.header = _header(self._file, params, world)
            except BaseException:
                self._file.close()
                raise
        except BaseException:
            self._environment.__exit__(None, None, None)
            raise
        flags = self._file.mask_flag_enums[0]
        # Many writers of TIFF call any fourth band of bytes "alpha", near infrared too: only its name counts.
        self._has_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
        self._empty = next((value for value in (params["nodata"], self._file.nodata) if value is not None), None)
        if self._empty is None and not self._has_mask and "alpha" not in self.header.bands:
            self._empty = 0.0

    def read(self, window: Window, wanted: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The wanted bands of a window (float64 as float32), and which of its pixels hold data."""
        bands = self.header.bands
        seen = [name for name in bands if name != "alpha"] if self._empty is not None else list(wanted)
        try:
            every = self._file.read([bands.index(name) + 1 for name in seen], window=window)
            valid = np.ones(every.shape[1:], bool)
            if self._empty is not None:
                valid = (every != self._empty).any(axis=0)
            if self._has_mask:
                valid &= self._file.read_masks(1, window=window) != 0
            if "alpha" in bands:
                valid &= self._file.read(bands.index("alpha") + 1, window=window) != 0
        except RasterioError as error:
            raise BadInput(
                f"The picture cannot be read at column {window.col_off}, row {window.row_off}: "
                "it is cut off, damaged, or in a coding that is not known."
            ) from error
        pixels = every if seen == list(wanted) else every[[seen.index(name) for name in wanted]]
        if pixels.dtype == np.float64:
            with np.errstate(over="ignore"):
                pixels = pixels.astype(np.float32)
        if pixels.dtype.kind == "f":
            finite = np.isfinite(pixels).all(axis=0)
            valid &= finite
            if not finite.all():
                pixels = np.where(finite, pixels, 0).astype(pixels.dtype, copy=False)
        return pixels, valid

    def __enter__(self) -> Picture:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._environment.__exit__(None, None, None)


def levels_of(picture: Picture, wanted: Sequence[str], checkpoint: Callable[[], None]) -> dict[str, list[float]]:
    """The 2nd, 50th and 98th percentile of each band over the whole picture, told from windows spread over it."""
    width, height = picture.header.width, picture.header.height
    found: list[np.ndarray] = []
    for y, x in product(_spread(height), _spread(width)):
        checkpoint()
        window = Window(x, y, min(SAMPLE_SIDE, width - x), min(SAMPLE_SIDE, height - y))
        values, valid = picture.read(window, wanted)
        found.append(values[:, valid][:, ::4].astype(np.float32))
    every = np.concatenate(found, axis=1)
    if not every.shape[1]:
        return {name: [0.0, 0.5, 1.0] for name in wanted}
    return dict(zip(wanted, np.percentile(every, PERCENTILES, axis=1).T.round(6).tolist(), strict=True))


def _spread(size: int) -> range:
    """Where the windows begin: side by side, and with gaps where the picture is larger than all of them."""
    return range(0, size, max(SAMPLE_SIDE, -(-size // SAMPLES)))


def find_picture(paths: Sequence[Path]) -> tuple[Path, Affine | None]:
    """The picture among the files that the client sent, and the transform of the world file beside it."""
    if len(paths) == 1:
        return paths[0], None
    worlds = [(path, world) for path in paths if (world := _world(path)) is not None]
    if len(paths) != 2 or len(worlds) != 1:
        raise BadInput("One picture is taken, or one picture and its world file of six numbers.")
    path, world = worlds[0]
    return next(other for other in paths if other != path), world


def _world(path: Path) -> Affine | None:
    """A world file's transform; its numbers are for the middle of the first pixel. None: it is no world file."""
    if path.stat().st_size > 1_000:
        return None
    try:
        a, d, b, e, c, f = (float(word) for word in path.read_text().split())
    except (ValueError, UnicodeDecodeError):
        return None
    return Affine(a, b, c, d, e, f) @ Affine.translation(-0.5, -0.5)


def _open(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(4)
    driver = next((driver for begin, driver in DRIVERS.items() if head.startswith(begin)), None)
    if driver is None:
        raise BadInput("The file is not a GeoTIFF, PNG or JPEG picture.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(path.resolve(), driver=driver)
    except (RasterioError, ValueError) as error:
        raise BadInput(f"The header of the {driver} picture is damaged, or says what no picture can be.") from error


def _refuse_sizes(file: Any, file_bytes: int, max_pixels: int) -> None:
    """What would cost too much to decode, told by the header alone."""
    width, height, count = file.width, file.height, file.count
    if max(width, height) > MAX_SIDE:
        raise BadInput(f"The picture has {width:,} x {height:,} pixels; at most {MAX_SIDE:,} on a side are taken.")
    if file.driver != "GTiff" and width * height > max_pixels:
        raise BadInput(f"The picture has {width:,} x {height:,} pixels; as {file.driver} at most {max_pixels:,}.")
    if count - (ColorInterp.alpha in file.colorinterp) > MAX_BANDS:
        raise BadInput(f"The picture has {count:,} bands; at most {MAX_BANDS} are taken.")
    types = {np.dtype(name) for name in file.dtypes}
    if any(each.kind not in KINDS for each in types):
        raise BadInput(f"Pixels of type {file.dtypes[0]} are not taken: integers and floating point numbers are.")
    size = max(each.itemsize for each in types)
    rows, columns = file.block_shapes[0]
    block = rows * columns * size * (count if file.interleaving and file.interleaving.name == "pixel" else 1)
    if block > MAX_BLOCK_BYTES:
        raise BadInput(
            f"The picture is stored in blocks of {block / 1e6:,.0f} MB, which are decoded whole; "
            f"at most {MAX_BLOCK_BYTES / 1e6:,.0f} MB. Write it with tiles of 256 x 256 or 512 x 512."
        )
    whole = width * height * size * count
    if whole > LARGE_BYTES and whole > MAX_EXPANSION * file_bytes:
        raise BadInput(
            f"The file would expand {whole / file_bytes:,.0f} times; at most {MAX_EXPANSION} times is taken."
        )


def _header(file: Any, params: Mapping[str, Any], world: Affine | None) -> Header:
    bands = name_bands(params["bands"], file.descriptions, [one.name for one in file.colorinterp], file.count)
    if file.colorinterp[0].name == "palette":
        raise BadInput("The picture has a colour table; expand it to red, green and blue.")
    transform = file.transform if world is None else world
    if transform.is_identity:
        told = (
            "; its control points are not used: warp it first" if file.gcps[0] else ": send a GeoTIFF or a world file"
        )
        raise BadInput(f"The picture does not say where it lies{told}.")
    if not np.isfinite(transform[:6]).all() or not abs(transform.determinant) > 0:
        raise BadInput("The picture's transform is degenerate: its pixels have no area.")
    return Header(file.width, file.height, bands, _common(file.dtypes), transform, _crs(file.crs, params["crs"]))


def _common(dtypes: Sequence[str]) -> str:
    found = np.result_type(*dtypes)
    return "float32" if found == np.float64 else found.name


def _crs(found: Any, asked: str | None) -> pyproj.CRS:
    """As the picture says, else as the params say. Raises BadInput for one in which nothing has a place on a map."""
    if not found and asked is None:
        raise BadInput("The picture does not name its coordinate system: say crs, such as EPSG:32631.")
    try:
        crs = pyproj.CRS.from_user_input(found.to_wkt() if found else asked)
        if crs.is_compound:
            crs = crs.sub_crs_list[0]
    except (pyproj.exceptions.CRSError, IndexError) as error:
        raise BadInput("The picture's coordinate system is not known.") from error
    if not (crs.is_projected or crs.is_geographic):
        raise BadInput("The picture's coordinate system is neither projected nor geographic.")
    return crs
