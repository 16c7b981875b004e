"""Makes small real videos for tests, good ones and damaged ones."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

MS = Fraction(1, 1000)


def write(
    path: Path | Any,
    pictures: Iterable[np.ndarray],
    *,
    codec: str = "libx264",
    times_ms: Sequence[int] | None = None,
    fps: int = 10,
    pixels: str = "yuv420p",
    rotation: int = 0,
    sound_s: float = 0,
    format: str | None = None,
    options: dict[str, str] | None = None,
    stream_options: dict[str, str] | None = None,
) -> Path | Any:
    """A video of these RGB pictures, at a constant rate or at given times."""
    container = av.open(path if hasattr(path, "write") else str(path), "w", format=format, options=options or {})
    stream: Any = container.add_stream(codec, rate=fps, options=stream_options or {})
    stream.pix_fmt = pixels
    if times_ms is not None:
        stream.codec_context.time_base = MS
    if rotation:
        stream.set_display_rotation(rotation)
    sound: Any = container.add_stream("aac", rate=8_000) if sound_s else None
    if sound is not None:
        sound.layout = "mono"
    for n, picture in enumerate(pictures):
        if n == 0:
            stream.height, stream.width = picture.shape[:2]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = (n, Fraction(1, fps)) if times_ms is None else (times_ms[n], MS)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    if sound is not None:
        for n in range(int(sound_s * 8_000 / 1_024)):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1_024), np.float32), format="fltp", layout="mono")
            samples.rate, samples.pts = 8_000, n * 1_024
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    container.close()
    return path


def counting(count: int, size: tuple[int, int] = (64, 48)) -> list[np.ndarray]:
    """Plain pictures, each a shade lighter than the one before: `number_of` tells them apart."""
    return [np.full((size[1], size[0], 3), 10 + 8 * n, np.uint8) for n in range(count)]


def number_of(picture: np.ndarray) -> int:
    """Which of the counting pictures this is."""
    return round((float(picture.mean()) - 10) / 8)


class Pipe(io.RawIOBase):
    """A file that cannot seek back, as a live stream: its header can say no duration."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data)
        return len(data)


def huge_frames(path: Path) -> Path:
    """A bare H.264 stream whose header says 16,000 x 16,000 pixels."""
    write(path, counting(5), format="h264", stream_options={"profile": "baseline", "preset": "ultrafast"})
    header = "01100111" + f"{66:08b}" + "00000000" + f"{62:08b}"  # sequence parameter set, baseline, level 6.2
    header += "".join(map(_exp_golomb, (0, 0, 2, 1))) + "0" + _exp_golomb(999) * 2 + "1100" + "1"
    header += "0" * (-len(header) % 8)
    units = re.split(b"\x00\x00\x00?\x01", path.read_bytes())[1:]
    huge = int(header, 2).to_bytes(len(header) // 8, "big")
    path.write_bytes(b"".join(b"\x00\x00\x00\x01" + (huge if unit[0] & 31 == 7 else unit) for unit in units))
    return path


def without_content(path: Path) -> Path:
    """The MP4 file, with noise where its frames were."""
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    size = struct.unpack(">I", data[start - 8 : start - 4])[0] - 8
    data[start : start + size] = np.random.default_rng(1).bytes(size)
    path.write_bytes(data)
    return path


def with_declared_duration(path: Path, seconds: float) -> Path:
    """The Matroska file, with another duration in its header."""
    data = bytearray(path.read_bytes())
    start = data.index(b"\x44\x89\x88") + 3
    data[start : start + 8] = struct.pack(">d", seconds * 1_000)
    path.write_bytes(data)
    return path


def _exp_golomb(value: int) -> str:
    bits = f"{value + 1:b}"
    return "0" * (len(bits) - 1) + bits


def only_sound(source: Path, path: Path) -> Path:
    """The sound of a file, alone."""
    with av.open(str(source)) as given, av.open(str(path), "w", format="ipod") as made:
        stream = made.add_stream_from_template(given.streams.audio[0])
        for packet in given.demux(given.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    return path
