"""A smaller copy of the video, and how much of it is left: PSNR and SSIM against the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from celery_worker.pipelines.video.decode import Clip, Sampling, picture
from celery_worker.pipelines.video.export import AnnotatedVideo

PRESET, QUALITY = "medium", "28"
MOST_RATE = Fraction(60)
COMPARE_EVERY = 5  # frames
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # SSIM's constants


def smaller(
    source: Path, target: Path, moments: Sampling, open_clip: Callable[[Path], Clip], threads: int
) -> dict[str, Any]:
    """Write the copy, at the source's own rate, without sound; sizes in bytes, PSNR in dB of the light, SSIM 0 to 1."""
    with open_clip(source) as clip:
        rate = min(Fraction(clip.stream.average_rate or 25), MOST_RATE)
        own = Sampling(rate, moments.start, moments.end)
        film = None
        try:
            for tick in clip.ticks(own):
                rgb = picture(tick.frame)
                if film is None:
                    size = (rgb.shape[1], rgb.shape[0])
                    aspect = Fraction(clip.aspect(tick.frame))
                    film = AnnotatedVideo(target, size, rate, aspect, threads, PRESET, QUALITY)
                film.add(fitted(rgb, size))
            assert film
            film.finish()
        finally:
            if film:
                film.close()
    psnr, ssim = _compare(_lights(source, own, open_clip), _lights(target, Sampling(rate), open_clip), size)
    return {
        "bytes": target.stat().st_size,
        "source_bytes": source.stat().st_size,
        "psnr": None if psnr is None else round(psnr, 2),
        "ssim": round(ssim, 4),
    }


def fitted(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A clip may change its size in the middle; all of it is brought to the first frame's."""
    if (rgb.shape[1], rgb.shape[0]) == size:
        return rgb
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)


def square_of(one: np.ndarray, other: np.ndarray) -> float:
    """The mean square of the difference; `_compare` turns their mean into dB."""
    return float(np.mean((one.astype(np.float32) - other.astype(np.float32)) ** 2))


def ssim_of(one: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity of two pictures of light, with a Gaussian window of 11 pixels, as its authors define it."""
    a, b = one.astype(np.float32), other.astype(np.float32)

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (11, 11), 1.5)

    ma, mb = mean(a), mean(b)
    va, vb, both = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    return float(np.mean((2 * ma * mb + C1) * (2 * both + C2) / ((ma * ma + mb * mb + C1) * (va + vb + C2))))


def _lights(path: Path, moments: Sampling, open_clip: Callable[[Path], Clip]) -> Iterator[np.ndarray]:
    with open_clip(path) as clip:
        for tick in clip.ticks(moments):
            if tick.index % COMPARE_EVERY == 0:
                yield cv2.cvtColor(picture(tick.frame), cv2.COLOR_RGB2GRAY)


def _compare(
    ones: Iterator[np.ndarray], others: Iterator[np.ndarray], size: tuple[int, int]
) -> tuple[float | None, float]:
    width, height = size
    squares, likeness = [], []
    for one, other in zip(ones, others, strict=False):
        one, other = fitted(one, size), other[:height, :width]  # an odd side was padded
        squares.append(square_of(one, other))
        likeness.append(ssim_of(one, other))
    square = float(np.mean(squares))
    return (10 * float(np.log10(255**2 / square)) if square else None), float(np.mean(likeness))
