"""A picture as a clip of one frame, upright, so that everything behind takes both."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from celery_worker.pipelines.video.decode import Sampling, Tick
from jobs.errors import BadInput

# Those that hold pixels themselves: Pillow knows others that start programs (EPS) or point elsewhere.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
WHITES = (1, 255, 1_023, 4_095, 16_383, 65_535)  # of 0 to 1, and of the depths that cameras and scanners have

Image.MAX_IMAGE_PIXELS = None  # the job's own limit is looked at before a pixel is decoded


class Still:
    """An open picture; an animation is its first frame. Raises BadInput with a sentence for its owner."""

    declared_s = None

    def __init__(self, path: Path, max_pixels: int) -> None:
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as opened:
                self.codec = str(opened.format).lower()
                if opened.width * opened.height > max_pixels:
                    size = f"{opened.width} x {opened.height}"
                    raise BadInput(f"The picture has {size} pixels; at most {max_pixels:,} pixels are allowed.")
                upright = ImageOps.exif_transpose(opened)
                self._rgb = np.asarray(_opaque(upright).convert("RGB"))
        except MemoryError:
            raise
        except UnidentifiedImageError as error:
            raise BadInput(
                f"The file is not a picture that can be read: {', '.join(FORMATS[:-1])} and {FORMATS[-1]} are."
            ) from error
        except (OSError, ValueError, SyntaxError, EOFError, KeyError, TypeError, IndexError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the picture
            raise BadInput("The picture is cut off or damaged.") from error

    def __enter__(self) -> Still:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def aspect(self, frame: av.VideoFrame) -> str:
        """Pixels are square."""
        return "1"

    def ticks(self, sampling: Sampling) -> Iterator[Tick]:
        """One, whatever the rate."""
        yield Tick(0, sampling.start * 0, av.VideoFrame.from_ndarray(np.ascontiguousarray(self._rgb), "rgb24"), True)


def _opaque(picture: Image.Image) -> Image.Image:
    """On white, where it can be seen through; deeper shades of grey become 8 bits."""
    if picture.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        return _shallow(np.asarray(picture))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture


def _shallow(shades: np.ndarray) -> Image.Image:
    """Nothing says how bright white is: it is the least of the usual depths that holds all of the picture."""
    values = np.nan_to_num(shades.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    most = float(values.max())
    whites = WHITES if shades.dtype.kind == "f" else WHITES[1:]
    white = next((white for white in whites if most <= white), most)
    return Image.fromarray(np.clip(values * (255 / white), 0, 255).astype(np.uint8))
