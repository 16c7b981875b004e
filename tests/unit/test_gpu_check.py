"""`make gpu-check` says that there is no GPU, and tells what differs between a GPU and the CPU."""

import os
import subprocess
import sys
from pathlib import Path

from bench.gpu_check import by_frame, differences
from bench.gpu_share import shares
from celery_worker.workbench import Device

ROOT = Path(__file__).resolve().parent.parent.parent
CAR = {"frame": 3, "class": "car", "score": 0.8, "box": [10.0, 20.0, 50.0, 40.0]}


def moved(**changes):
    return {3: [{**CAR, **changes}]}


def test_without_a_gpu_it_says_so_and_fails():
    environment = {**os.environ, "DEVICE": "cpu"}
    command = [sys.executable, "-m", "bench.gpu_check"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no GPU here" in done.stderr


def test_what_is_as_near_as_floats_are_is_equal():
    assert differences({3: [CAR]}, moved(score=0.806, box=[10.5, 20.0, 50.0, 39.2]), 0.4) == []
    # and what one side only just sees may be missing on the other
    assert differences(moved(score=0.405), {}, 0.4) == []


def test_what_differs_is_told_from_both_sides():
    for other in (moved(**{"class": "bus"}), moved(score=0.75), moved(box=[12.0, 20.0, 50.0, 40.0]), {4: [CAR]}):
        found = differences({3: [CAR]}, other, 0.4)
        assert len(found) == 2
        assert {line.split("only the ")[1].split()[0] for line in found} == {"device", "cpu"}


def test_detections_are_read_by_frame(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"frame": 0, "class": "car"}\n{"frame": 2, "class": "bus"}\n')
    assert {frame: len(found) for frame, found in by_frame(tmp_path / "d.jsonl").items()} == {0: 1, 2: 1}


def test_a_device_that_is_a_clock_tells_what_share_of_the_time_it_was_given_work():
    # Given a device so slow that the host hardly counts
    device = Device("simulated:0 a clock", "simulated", memory_bytes=1 << 30)
    [share] = shares(device, 16, 200, 1)
    assert 0.5 < share <= 1.0
