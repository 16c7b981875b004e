"""What a job leaves to look at: the annotated video, the contact sheet, the crops."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from celery_worker.pipelines.video.draw import draw, label_tile
from celery_worker.pipelines.video.track import Sighting, by_track, label_of

PRESET, QUALITY = "superfast", "23"  # veryfast takes 1.4 times as long for files a quarter smaller
KEY_FRAME_S = 2  # a player can jump to every second second
THUMBS = 12  # pictures on a contact sheet
SHEET_WIDTH = 1_680
GAP = 8
GROUND = (24, 26, 30)
CROP_SIDE = 1_024  # a larger crop is made smaller
MARGIN = 0.06  # around an object in its crop
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 90]
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the same input gives the same bytes


class AnnotatedVideo:
    """An H.264 file that browsers play: yuv420p, index in front, even dimensions, constant frame rate."""

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        rate: Fraction,
        aspect: Fraction,
        threads: int,
        preset: str = PRESET,
        quality: str = QUALITY,
    ) -> None:
        width, height = size
        self._pad = (height % 2, width % 2)
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._rate = rate.limit_denominator(65_535)
        stream = self._container.add_stream("libx264", rate=self._rate)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        stream.options = {"preset": preset, "crf": quality, "g": str(max(1, round(KEY_FRAME_S * rate)))}
        context = stream.codec_context
        context.thread_count = threads
        context.colorspace, context.color_range = 6, 1  # BT.601 and limited range, as cvtColor makes them
        if aspect != 1:
            context.sample_aspect_ratio = aspect
        self._stream = stream
        self._count = 0

    def add(self, picture: np.ndarray) -> None:
        """The next frame, RGB."""
        if any(self._pad):
            picture = cv2.copyMakeBorder(picture, 0, self._pad[0], 0, self._pad[1], cv2.BORDER_REPLICATE)
        planes: Any = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420)
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts, frame.time_base = self._count, 1 / self._rate
        self._count += 1
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def finish(self) -> None:
        """Write what is left, and the index."""
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()

    def close(self) -> None:
        """Let go of the file, finished or not."""
        self._container.close()


class ContactSheet:
    """A dozen pictures of the clip on one page: of each stretch of it the one that shows most."""

    def __init__(self, frames: Sequence[Sequence[Sighting]], size: tuple[int, int]) -> None:
        count = min(THUMBS, len(frames))
        edges = [n * len(frames) // count for n in range(count + 1)]
        self.wanted = {
            max(range(a, b), key=lambda n: (sum(s.score for s in frames[n]), -n)) for a, b in pairwise(edges)
        }
        self._columns = _columns(count, size[0] / size[1])
        width = (SHEET_WIDTH - GAP) // self._columns - GAP
        self._scale = width / size[0]
        self._size = (width, max(16, round(size[1] * self._scale)))
        self._thumbs: list[np.ndarray] = []

    def add(self, picture: np.ndarray, sightings: Sequence[Sighting], at: float) -> None:
        """A picture that is wanted, without boxes: they are drawn at the thumb's size, so that labels stay legible."""
        kind = cv2.INTER_AREA if self._scale < 1 else cv2.INTER_CUBIC
        thumb = cv2.resize(picture, self._size, interpolation=kind)
        draw(thumb, sightings, self._scale)
        tile = label_tile(_clock(at), 15, GROUND)
        thumb[-tile.shape[0] :, -tile.shape[1] :] = tile[:, -thumb.shape[1] :][-thumb.shape[0] :]
        self._thumbs.append(thumb)

    def jpeg(self) -> bytes:
        """The page."""
        width, height = self._size
        rows = ceil(len(self._thumbs) / self._columns)
        page = np.full((rows * (height + GAP) + GAP, self._columns * (width + GAP) + GAP, 3), GROUND, np.uint8)
        for n, thumb in enumerate(self._thumbs):
            row, column = divmod(n, self._columns)
            y, x = GAP + row * (height + GAP), GAP + column * (width + GAP)
            page[y : y + height, x : x + width] = thumb
        return jpeg_of(page)


class Crops:
    """The best view of each track of a source, as `crops/track-0001-car.jpg` and so on."""

    def __init__(self, frames: Sequence[Sequence[Sighting]], size: tuple[int, int], prefix: str = "") -> None:
        self.jpegs: dict[str, bytes] = {}
        self.best: dict[int, list[tuple[Sighting, str]]] = {}
        for number, sightings in by_track(frames).items():
            chosen = max(sightings, key=lambda s: (_worth(s, size), -s.frame))
            label = label_of(sightings).replace(" ", "-")
            self.best.setdefault(chosen.frame, []).append((chosen, f"crops/{prefix}track-{number:04}-{label}.jpg"))

    def add(self, picture: np.ndarray, frame: int) -> None:
        """A picture without boxes; cut out what is best seen here."""
        height, width = picture.shape[:2]
        for sighting, name in self.best.get(frame, ()):
            x1, y1, x2, y2 = sighting.box
            dx, dy = MARGIN * (x2 - x1), MARGIN * (y2 - y1)
            left, top = max(0, int(x1 - dx)), max(0, int(y1 - dy))
            crop = picture[top : min(height, ceil(y2 + dy)), left : min(width, ceil(x2 + dx))]
            if (shrink := CROP_SIDE / max(crop.shape[:2])) < 1:
                crop = cv2.resize(crop, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
            self.jpegs[name] = jpeg_of(crop)


def write_zip(path: Path, folder: str, jpegs: Mapping[str, bytes]) -> None:
    """Pictures in order of their names; a JPEG cannot be packed any further."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr(zipfile.ZipInfo(f"{folder}/", ZIP_TIME), b"")
        for name in sorted(jpegs):
            file.writestr(zipfile.ZipInfo(name, ZIP_TIME), jpegs[name])


def _worth(sighting: Sighting, size: tuple[int, int]) -> float:
    """How good a view is: sure and large; an object cut by the picture's edge is worth less."""
    x1, y1, x2, y2 = sighting.box
    cut = x1 < 2 or y1 < 2 or x2 > size[0] - 2 or y2 > size[1] - 2
    return sighting.score * sqrt((x2 - x1) * (y2 - y1)) * (0.7 if cut else 1.0)


def _columns(count: int, ratio: float) -> int:
    """Columns that make the page about as wide as a screen."""
    return max(1, min(count, round(sqrt(count * 1.5 / ratio)), 6))


def jpeg_of(picture: np.ndarray) -> bytes:
    """An RGB picture as a file."""
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2BGR), JPEG)[1])


def _clock(at: float) -> str:
    minutes, seconds = divmod(round(at, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{seconds:04.1f}" if hours else f"{minutes}:{seconds:04.1f}"
