"""Frames per second beside a hand-written loop: `make bench-video`.

street.mp4 ten times in a row at 25 frames a second. Ours: warm workers, from the upload to `successful`, over HTTP.
The peer: a warm single process (bench/peers/video_loop.py) in the best of its thread settings, on a local file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av

from bench.rounds import figure, interleave, machine, ratios
from bench.servers import ROOT, Servers
from gristmill import Client

STREET = ROOT / "samples" / "street.mp4"
FPS = 25
QUEUES = ("preprocess", "inference", "postprocess")
ARTIFACTS = {"detections.jsonl", "annotated.mp4", "contact-sheet.jpg", "crops.zip"}


def main() -> int:
    """The bench; the figure last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=10, help="how often the clip is repeated")
    asked = parser.parse_args()
    print(machine(), flush=True)
    with Servers() as servers:
        clip = servers.folder / "street.mp4"
        frames = repeat(STREET, clip, asked.times)
        settings = best_threads(servers.folder)
        client = Client(f"http://127.0.0.1:{servers.our_gateway()}")
        servers.our_sweeper()
        for queue in QUEUES:
            servers.our_worker(queue)
        with Loop(*settings) as loop:
            ours_of(client, STREET)  # warm
            loop.run(STREET, servers.folder / "peer")

            def ours() -> float:
                seconds, counted = ours_of(client, clip)
                if counted != frames:
                    raise RuntimeError(f"{counted} frames of {frames}")
                return frames / seconds

            def peer() -> float:
                done = loop.run(clip, servers.folder / "peer")
                if done["frames"] != frames:
                    raise RuntimeError(f"{done['frames']} frames of {frames}")
                return frames / done["seconds"]

            print(f"video: {frames} frames at {FPS} fps, in frames a second", flush=True)
            pairs = interleave(ours, peer, asked.rounds, "fps")
    print(figure("video_ratio", ratios(pairs), "at least 1.0, aim at 1.2"))
    return 0


def ours_of(client: Client, clip: Path) -> tuple[float, int]:
    """Seconds from the first byte sent to `successful`, and the frames; every artifact must be there."""
    began = time.monotonic()
    job = client.submit("video", file=clip, fps=FPS).wait()
    seconds = time.monotonic() - began
    if (kept := {artifact.name for artifact in job.artifacts()}) != ARTIFACTS:
        raise RuntimeError(f"artifacts: {kept}")
    return seconds, job.result["frames"]


class Loop:
    """The peer: one process, warm, told what to do line by line."""

    def __init__(self, model_threads: int, codec_threads: int) -> None:
        command = [sys.executable, "-m", "bench.peers.video_loop", str(ROOT / "models")]
        self._process = subprocess.Popen(
            [*command, str(model_threads), str(codec_threads)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def run(self, clip: Path, out: Path) -> dict:
        """One clip."""
        self._process.stdin.write(json.dumps({"clip": str(clip), "out": str(out)}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the loop ended with code {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(30)


def best_threads(folder: Path) -> tuple[int, int]:
    """The loop's best setting on this machine: threads of the model and of the codecs; the better of two runs each."""
    cores = len(os.sched_getaffinity(0))
    found = {}
    for model_threads, codec_threads in sorted({(1, 1), (1, cores), (cores, cores)}):
        with Loop(model_threads, codec_threads) as loop:
            seconds = min(loop.run(STREET, folder / "peer")["seconds"] for _ in range(2))
        found[model_threads, codec_threads] = seconds
        print(f"  the loop with {model_threads} model and {codec_threads} codec threads: {seconds:.2f} s", flush=True)
    return min(found, key=found.__getitem__)


def repeat(source: Path, target: Path, times: int) -> int:
    """The same clip several times in a row, without encoding it again; the number of frames."""
    with av.open(str(target), "w") as out:
        written, offset, stream = 0, 0, None
        for _ in range(times):
            with av.open(str(source)) as given:
                video = given.streams.video[0]
                stream = stream or out.add_stream_from_template(video)
                last = 0
                for packet in _packets(given, video):
                    last = max(last, packet.pts + packet.duration)
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = stream
                    out.mux(packet)
                    written += 1
                offset += last
    return written


def _packets(container: av.container.InputContainer, video: av.VideoStream) -> Iterator[av.Packet]:
    return (packet for packet in container.demux(video) if packet.dts is not None)


if __name__ == "__main__":
    sys.exit(main())
