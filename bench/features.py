"""Map features beside a hand-written loop, and what they must keep to: `make bench-features`.

Agreement: water shares of the samples, what ogrinfo says of the files, the same polygons whatever the tiles. Crowns:
precision, recall and F1 on the plot that nothing was trained on, beside a watershed. Throughput: a mosaic of 10,000 x
10,000 pixels, from the upload to `successful` over HTTP with warm workers, beside one process of
bench/peers/features_loop.py; and the peak memory of any worker's process meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyogrio
import rasterio
import shapely
import yaml

from bench import crowns, mosaic
from bench.rounds import figure, interleave, machine, ratios
from bench.servers import ROOT, Servers
from celery_worker.testing import MODELS, Run, run
from gristmill import Client
from tests.neighbours import need

SAMPLES, FOLDER = ROOT / "samples", ROOT / "celery_worker" / "pipelines" / "features"
BANDS = ["blue", "green", "red", "nir"]
CLASSES = ["vegetation", "water", "canopy", "pool", "bright-impervious"]
QUEUES = ("preprocess", "inference", "postprocess")
WATERSHED = {"sigma": 4.0, "apart": 12}  # pixels of 0.1 m: crowns of 2.4 m and more


def main() -> int:
    """The bench; the figures last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=10_000, help="pixels on a side of the mosaic")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("agreement", "crowns", "mosaic"))
    parser.add_argument("--models", type=Path, default=MODELS, help="where a models.yaml names tree-crowns")
    asked = parser.parse_args()
    print(machine(), flush=True)
    told: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as folder:
        if asked.only in (None, "agreement"):
            told += agreement(Path(folder))
        if asked.only in (None, "crowns"):
            told += found_crowns(Path(folder), asked.models)
    if asked.only in (None, "mosaic"):
        told += throughput(asked.side, asked.rounds)
    print("\n".join(told))
    return 0


def agreement(folder: Path) -> list[str]:
    """Water shares, and the least overlap of any class between tiles of some sizes and the whole picture."""
    told, least = [], 1.0
    for name, goal in (("harbour", "0.60 to 0.70"), ("park", "under 0.01")):
        runs = {}
        for tile in (512, 96, 128, 256):
            params = {"bands": BANDS, "classes": CLASSES, "tile": tile}
            runs[tile] = run(FOLDER, params, [SAMPLES / f"rotterdam-{name}.tif"], folder=folder / f"{name}-{tile}")
        told.append(f"figure features_water_{name} {runs[512].result['shares']['water']:.4f} (goal {goal})")
        told.append(f"figure features_ogrinfo_{name} {accepted(runs[512])} features (of the GDAL that Debian has)")
        for tile in (96, 128, 256):
            for one in CLASSES:
                whole, cut = (shapely.union_all(shapes(runs[side], one)) for side in (512, tile))
                both = shapely.union(whole, cut).area
                overlap = shapely.intersection(whole, cut).area / both if both else 1.0
                print(f"  {name}, tiles of {tile}, {one}: {overlap:.4f} of the whole picture's area", flush=True)
                least = min(least, overlap)
    return [*told, f"figure features_tiles_overlap {least:.4f} (least of all classes and tiles; goal at least 0.98)"]


def accepted(done: Run) -> int:
    """The features that ogrinfo finds in both files. Stops where it has a word to say, or counts others than we do."""
    need(lambda: shutil.which("ogrinfo"), "gdal-bin")
    ours = sum(done.result["counts"].values())
    for name in ("features.geojson", "features.gpkg"):
        command = ["ogrinfo", "-ro", "-al", "-so", str(done.artifacts[name]), "features"]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        if said.stderr or f"Feature Count: {ours}\n" not in said.stdout:
            raise SystemExit(f"ogrinfo does not accept {name}: {said.stderr or said.stdout}")
    return ours


def shapes(done: Run, name: str) -> np.ndarray:
    """The polygons of a class."""
    meta, _, found, columns = pyogrio.raw.read(done.artifacts["features.gpkg"])
    fields = dict(zip(meta["fields"], columns, strict=True))
    return shapely.from_wkb(found[fields["class"] == name])


def found_crowns(folder: Path, models: Path) -> list[str]:
    """The watershed's boxes, and the model's through the whole pipeline where there is one."""
    drawn = crowns.truth(SAMPLES / "tree-crowns.csv")
    with rasterio.open(SAMPLES / "tree-crowns.tif") as file:
        rgb, transform = file.read().transpose(1, 2, 0), file.transform
    found = {"watershed": crowns.watershed(rgb, **WATERSHED)}
    if "tree-crowns" in yaml.safe_load((models / "models.yaml").read_text()):
        params = {"classes": [], "models": ["tree-crowns"]}
        done = run(FOLDER, params, [SAMPLES / "tree-crowns.tif"], folder=folder / "crowns", models_dir=models)
        corners = shapely.bounds(shapes(done, "tree-crown"))
        x = (corners[:, [0, 2]] - transform.c) / transform.a
        y = (corners[:, [3, 1]] - transform.f) / transform.e
        found["model"] = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)
    told = []
    for name, boxes in found.items():
        for word, value in zip(("precision", "recall", "f1"), crowns.judge(boxes, drawn), strict=True):
            told.append(f"figure features_crowns_{name}_{word} {value:.3f} ({len(boxes)} found, {len(drawn)} drawn)")
    return told


def throughput(side: int, rounds: int) -> list[str]:
    """Millions of pixels a second, ours over the loop's, and the most memory that a worker's process had."""
    with Servers() as servers:
        picture = mosaic.make(servers.folder / "mosaic.tif", side)
        client = Client(f"http://127.0.0.1:{servers.our_gateway()}")
        servers.our_sweeper()
        for queue in QUEUES:
            servers.our_worker(queue)
        client.submit("features", file=SAMPLES / "rotterdam-park.tif", bands=BANDS).wait()  # warm
        seen: list[int] = []
        processor: tuple[list[float], list[float]] = ([], [])  # seconds of a processor: ours, the loop's

        def ours() -> float:
            began, used = time.monotonic(), worked(servers)
            with peaks(servers, seen):
                job = client.submit("features", file=picture).wait()
            seconds = time.monotonic() - began
            processor[0].append(worked(servers) - used)
            print(f"  ours: {seconds:.1f} s, {job.result['counts']}, seconds {job.result['seconds']}", flush=True)
            return side * side / 1e6 / seconds

        def peer() -> float:
            command = [sys.executable, "-m", "bench.peers.features_loop", str(picture), str(servers.folder / "peer")]
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
            over = resource.getrusage(resource.RUSAGE_CHILDREN)
            processor[1].append(over.ru_utime + over.ru_stime - used.ru_utime - used.ru_stime)
            print(f"  loop: {done['seconds']:.1f} s, {done['features']} features", flush=True)
            return side * side / 1e6 / done["seconds"]

        print(f"mosaic: {side:,} x {side:,} pixels, four bands, in millions of pixels a second", flush=True)
        pairs = interleave(ours, peer, rounds, "Mpx/s")
    return [
        f"figure features_peak_mb {max(seen) / 1e6:.0f} (most resident memory of a worker's process; goal under 1000)",
        figure("features_ratio", ratios(pairs), "at least 0.8"),
        # Whoever works beside us takes time from both, and not the same: this moves less.
        figure(
            "features_processor_ratio",
            [loop / mine for mine, loop in zip(*processor, strict=True)],
            "none: the loop's seconds of a processor over those of all our workers",
        ),
    ]


def worked(servers: Servers) -> float:
    """Seconds of a processor that the workers have used so far, with their children."""
    total = 0.0
    for process in servers.processes("worker-"):
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                total += times.user + times.system
    return total


@contextlib.contextmanager
def peaks(servers: Servers, seen: list[int]) -> Iterator[None]:
    """The most resident memory of any of the workers' processes, looked at ten times a second."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            for process in servers.processes("worker-"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    for one in (process, *process.children(recursive=True)):
                        with contextlib.suppress(psutil.NoSuchProcess):
                            seen.append(one.memory_info().rss)
            seen[:] = [max(seen, default=0)]

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


if __name__ == "__main__":
    sys.exit(main())
