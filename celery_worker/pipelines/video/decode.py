"""From a video file to pictures at a constant frame rate, by presentation time. Both passes over a file use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideData

from jobs.errors import BadInput

# Containers that hold a video themselves. FFmpeg knows others that open further files or addresses (playlists,
# concat lists, SDP), and would read a text file as ANSI art: none of those may be reached by an upload.
CONTAINERS = (
    "mov,mp4,3gp,3g2,matroska,webm,avi,flv,live_flv,mpeg,mpegts,mpegvideo,asf,ogg,nut,mxf,ivf,rm,wtv,gxf,dv,"
    "h264,hevc,m4v,av1,obu,vc1,h263,h261,cavsvideo,vvc,yuv4mpegpipe,swf,amv,nsv,bink,smk,roq,film_cpk"
)
CHECK_EVERY = 16  # decoded frames between two checkpoints
MAX_HOLD_S = 3_600  # a longer jump of timestamps is damage, not a still picture
ROUNDING = Fraction(1, 1000)  # containers round times to their clock's ticks, at worst milliseconds
FAR_S = 10  # a start beyond this is worth a seek
LACK_S, LACK_SHARE = 5, 0.1  # how much shorter than it says a video may be
MIRRORS = {(1, 1): None, (-1, 1): 1, (1, -1): 0, (-1, -1): -1}  # cv2.flip's code, by which axes are turned round
OURS = (av.error.MemoryError, av.error.FileNotFoundError, av.error.PermissionError)  # not the video's fault

cv2.setNumThreads(1)  # every core has a child of its own; a pool in each would fight for them


@dataclass(frozen=True)
class Sampling:
    """Which moments of a clip are looked at: from `start` (before `end`), `rate` times a second."""

    rate: Fraction
    start: Fraction = Fraction(0)
    end: Fraction | None = None

    def at(self, index: int) -> Fraction:
        """The moment of a tick, in seconds from the first frame."""
        return self.start + index / self.rate


def sampling(params: Any) -> Sampling:
    """The moments that a job's params ask for. Raises BadInput."""
    rate = Fraction(params["fps"]).limit_denominator(1001) / params["every"]
    start = Fraction(params["start"]).limit_denominator(1_000_000)
    end = None if params.get("end") is None else Fraction(params["end"]).limit_denominator(1_000_000)
    if end is not None and end <= start:
        raise BadInput(f"Nothing lies between start ({params['start']} s) and end ({params['end']} s).")
    return Sampling(rate, start, end)


@dataclass(frozen=True)
class Tick:
    """One moment: the frame that shows then. `fresh` is False while the frame of the tick before is held."""

    index: int
    at: Fraction
    frame: av.VideoFrame
    fresh: bool


class Clip:
    """An open video file: its first stream that can be decoded. Raises BadInput with a sentence for its owner."""

    def __init__(self, path: Path, max_pixels: int, checkpoint: Callable[[], None], threads: int = 1) -> None:
        self.path = path
        self.max_pixels = max_pixels
        self.checkpoint = checkpoint
        self.threads = threads
        self._seen_s = Fraction(0)  # where the packets of all streams end
        self._zero = Fraction(0)  # the time of the first frame
        self._decoded = 0
        self._open()

    def __enter__(self) -> Clip:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    @property
    def codec(self) -> str:
        """The name of the video's codec."""
        return str(self.stream.codec_context.codec.name)

    def aspect(self, frame: av.VideoFrame) -> str:
        """Width by height of one pixel, once the picture is upright: "1" for most videos."""
        found = self.stream.sample_aspect_ratio or Fraction(1)
        return str(1 / found if found and round(frame.rotation / 90) % 2 else found or Fraction(1))

    @property
    def declared_s(self) -> float | None:
        """How long the file says the video is; None when it does not."""
        if self.stream.duration:
            return float(self.stream.duration * self._base)
        return self.container.duration / av.time_base if self.container.duration else None

    def ticks(self, sampling: Sampling) -> Iterator[Tick]:
        """The frame showing at each moment. Variable rates, held frames and a missing duration come out right."""
        tolerance = min(ROUNDING, self._base) / 2
        index = 0
        shown, fresh, since, lasts = None, True, Fraction(0), Fraction(0)
        for time, duration, frame in self._frames(sampling):
            if shown is not None and time - since > MAX_HOLD_S:
                raise BadInput(
                    f"The video's timestamps jump from {_seconds(since)} to {_seconds(time)}: the file is damaged."
                )
            while shown is not None and (at := sampling.at(index)) < time - tolerance:
                if sampling.end is not None and at >= sampling.end:
                    return
                yield Tick(index, at, shown, fresh)
                index, fresh = index + 1, False
            lasts = duration or (time - since if shown is not None else Fraction(0)) or self._interval()
            shown, fresh, since = frame, True, time
        if shown is None:
            if not self.stream.codec_context.width:
                raise BadInput(f"The size of its frames cannot be read, or is over {self.max_pixels:,} pixels.")
            raise BadInput("Not one frame of the video can be decoded: the file is damaged.")
        ends = since + (lasts if lasts <= MAX_HOLD_S else self._interval())
        self._compare_with_declared(ends)
        while (at := sampling.at(index)) < ends - tolerance and (sampling.end is None or at < sampling.end):
            yield Tick(index, at, shown, fresh)
            index, fresh = index + 1, False
        if index == 0:
            raise BadInput(f"The video ends after {_seconds(ends)}, before start ({_seconds(sampling.start)}).")

    def _open(self) -> None:
        # FFmpeg decodes frames already to probe a file: the limit must hold there, and for a size that changes later.
        limit = {"max_pixels": str(self.max_pixels)}
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file", **limit}
        try:
            self.container = av.open(str(self.path), options=options)
        except OURS:
            raise
        except (av.FFmpegError, UnicodeError) as error:
            raise BadInput(_unreadable(self.path)) from error
        try:
            self.stream = self._first_decodable()
        except BaseException:
            self.container.close()
            raise
        # AVI knows the order of decoding only; FFmpeg's guess at presentation times goes wrong with B-frames.
        self._without_pts = self.container.format.name == "avi"
        self._base = self.stream.time_base or Fraction(1, av.time_base)
        context = self.stream.codec_context
        context.options = limit
        context.thread_count = self.threads
        context.thread_type = "AUTO"

    def _first_decodable(self) -> av.VideoStream:
        videos = [s for s in self.container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not videos:
            raise BadInput("There is no video in the file" + (", only sound." if self.container.streams.audio else "."))
        stream = next((s for s in videos if s.codec_context is not None), None)
        if stream is None:
            raise BadInput("The video is in a codec that cannot be decoded here.")
        self._check_size(stream.codec_context.width, stream.codec_context.height)
        return stream

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise BadInput(
                f"A frame has {width} x {height} pixels; at most {self.max_pixels:,} pixels are allowed.",
            )

    def _frames(self, sampling: Sampling) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        """Time from the first frame, duration (0 if unknown) and picture of each frame, in order of presentation.

        With a far `start` it begins at a key frame before it.
        """
        if sampling.start <= FAR_S:
            yield from self._decode(None)
            return
        if next(self._decode(None), None) is None:
            return
        zero = self._zero
        landed = None
        try:
            wanted = zero + sampling.start - 1
            self.container.seek(int(wanted / self._base), stream=self.stream, backward=True)
            landed = next(frames := self._decode(zero), None)
        except av.FFmpegError:
            pass
        if landed is None or landed[0] > sampling.start:
            # Beyond the end, or the file's index leads astray: read it from its beginning.
            self.container.close()
            self._open()
            yield from self._decode(None)
            return
        yield landed
        yield from frames

    def _decode(self, zero: Fraction | None) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        """Every frame that can be decoded; broken ones are left out. `zero`: the time of the clip's first frame."""
        last = Fraction(-1)
        for packet in self._packets():
            try:
                frames = packet.decode()
            except OURS:
                raise
            except av.FFmpegError:
                continue
            for frame in frames:
                self._decoded += 1
                if self._decoded % CHECK_EVERY == 0:
                    self.checkpoint()
                self._check_size(frame.width, frame.height)
                base = frame.time_base or self._base
                stamp = frame.dts if self._without_pts else frame.pts
                if stamp is None:  # a bare stream: count
                    time = last + self._interval() if last >= 0 else Fraction(0)
                else:
                    if zero is None:
                        zero = stamp * base
                    time = stamp * base - zero
                if time <= last:
                    continue
                if last < 0:
                    self._zero = zero or Fraction(0)
                yield time, Fraction(frame.duration or 0) * base, frame
                last = time

    def _packets(self) -> Iterator[av.Packet[Any]]:
        """The video's packets; the other streams only tell how far the file goes. A file cut short is refused."""
        partial = False
        try:
            for packet in self.container.demux():
                partial = packet.is_corrupt or (partial and packet.size == 0)  # a flush follows the last packet
                base = packet.time_base
                if packet.pts is not None and base:
                    self._seen_s = max(self._seen_s, (packet.pts + (packet.duration or 0)) * base)
                if packet.stream_index == self.stream.index:
                    yield packet
        except OURS:
            raise
        except av.FFmpegError as error:
            raise _cut_off(self._seen_s) from error
        if partial:
            raise _cut_off(self._seen_s)

    def _interval(self) -> Fraction:
        """How long a frame shows when nothing says it."""
        rate = self.stream.average_rate or self.stream.guessed_rate or 0
        return 1 / Fraction(rate) if rate else Fraction(1, 25)

    def _compare_with_declared(self, ends: Fraction) -> None:
        """A file whose header promises much more than there is was cut short, or lies."""
        declared, there = self.declared_s, float(max(ends, self._seen_s - self._zero))
        if declared is not None and declared - there > max(LACK_S, LACK_SHARE * declared):
            raise BadInput(f"The file says that it lasts {_seconds(declared)}, but it ends after {_seconds(there)}.")


def picture(frame: av.VideoFrame) -> np.ndarray:
    """A frame as RGB, upright: turned and mirrored as its display matrix asks."""
    rgb = frame.to_ndarray(format="rgb24")
    beside: Any = frame.side_data
    matrix = beside.get(SideData.DISPLAYMATRIX)
    return rgb if matrix is None else _upright(rgb, memoryview(bytes(matrix)).cast("i"))


def _upright(rgb: np.ndarray, matrix: memoryview) -> np.ndarray:
    """The matrix maps a pixel to ax + cy, bx + dy; it stands for the nearest of the eight ways to lay a picture."""
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if abs(a) + abs(d) < abs(b) + abs(c):  # columns become rows
        rgb, a, d = cv2.transpose(rgb), c, b
    mirror = MIRRORS[-1 if a < 0 else 1, -1 if d < 0 else 1]
    return rgb if mirror is None else cv2.flip(rgb, mirror)


def _cut_off(seen: Fraction) -> BadInput:
    return BadInput(f"The video is cut off or damaged after {_seconds(seen)}: the file ends in the middle of a frame.")


def _unreadable(path: Path) -> str:
    """Why FFmpeg found nothing to open."""
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return "The MP4 file has no usable index: it was cut off, or its recording was never finished."
    return "The file is not a video that can be read, and no picture."


def _seconds(value: Fraction | float) -> str:
    return f"{float(value):,.1f} s"
