"""Each task finds in a real or a drawn picture what a person sees there, and each output says the same."""

import csv
import json
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from celery_worker.pipelines.video import clips, smaller, summary
from celery_worker.pipelines.video.cuts import Cuts
from celery_worker.pipelines.video.tasks import Scene, look_of
from celery_worker.pipelines.video.track import Sighting
from celery_worker.testing import run

FOLDER = Path(__file__).parent
STREET = FOLDER.parents[2] / "samples" / "street.mp4"
EVERYTHING = ["pose", "mask", "edges", "lines", "spectrum", "motion"]
OUTPUTS = ["detections", "annotated", "coco", "mot", "csv", "side-by-side", "summary", "timeline", "smaller"]


@pytest.fixture(scope="module")
def ride(tmp_path_factory):
    """Two seconds with a cyclist, looked at in every way."""
    params = {"fps": 4, "start": 4, "end": 6, "tasks": ["detect", "track", *EVERYTHING], "outputs": OUTPUTS}
    return run(FOLDER, params, [STREET], folder=tmp_path_factory.mktemp("ride"))


def lines(done, name):
    return [json.loads(line) for line in done.artifacts[name].read_text().splitlines()]


def video(path):
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def look(task, *pictures, **params):
    height, width = pictures[0].shape[:2]
    made = look_of(task, Scene((width, height), Fraction(5), params))
    return [made.look(picture, n) for n, picture in enumerate(pictures)], made


# -- the real clip ---------------------------------------------------------------------------------------------


def test_a_body_has_33_landmarks_where_the_person_is(ride):
    found = [person for line in lines(ride, "pose.jsonl") for person in line["persons"]]
    assert len(found) >= 4
    for person in found:
        x1, y1, x2, y2 = person["box"]
        assert len(person["landmarks"]) == 33
        seen = [(x, y) for x, y, sure in person["landmarks"] if sure > 0.8]
        wide, high = x2 - x1, y2 - y1
        inside = [x1 - wide / 4 < x < x2 + wide / 4 and y1 - high / 4 < y < y2 + high / 4 for x, y in seen]
        assert np.mean(inside) > 0.9
    # Then heads are above feet
    upright = [person["landmarks"][0][1] < person["landmarks"][27][1] for person in found]
    assert np.mean(upright) > 0.8
    assert ride.result["pose"]["bodies"] == len(found)


def test_a_mask_covers_the_person_and_leaves_the_street(ride):
    shares = [line["share"] for line in lines(ride, "mask.jsonl")]
    with_person = [bool(line["persons"]) for line in lines(ride, "pose.jsonl")]
    assert all((share > 0.002) is there for share, there in zip(shares, with_person, strict=True))
    assert max(shares) < 0.4


def test_the_result_and_the_artifacts_name_every_task_once(ride):
    assert set(ride.artifacts) == {
        "annotated.mp4", "coco.json", "detections.csv", "detections.jsonl", "edges.jsonl", "lines.jsonl", "mask.jsonl",
        "mot.txt", "motion.jsonl", "pose.jsonl", "side-by-side.mp4", "smaller.mp4", "spectrum.jsonl", "summary.mp4",
        "timeline.png",
    }  # fmt: skip
    assert set(EVERYTHING) | {"counts", "tracks", "summary", "smaller"} <= set(ride.result)
    for task in EVERYTHING:
        assert [line["frame"] for line in lines(ride, f"{task}.jsonl")] == list(range(8))
        assert lines(ride, f"{task}.jsonl")[0]["time"] == 4


def test_the_annotations_say_the_same_in_every_format(ride):
    found = lines(ride, "detections.jsonl")
    table = list(csv.DictReader(ride.artifacts["detections.csv"].open()))
    coco = json.loads(ride.artifacts["coco.json"].read_text())
    mot = [line.split(",") for line in ride.artifacts["mot.txt"].read_text().splitlines()]
    assert len(found) == len(table) == len(coco["annotations"]) > 10
    classes = {one["id"]: one["name"] for one in coco["categories"]}
    images = {one["id"]: one for one in coco["images"]}
    for line, row, one in zip(found, table, coco["annotations"], strict=True):
        x1, y1, x2, y2 = line["box"]
        assert [float(row[name]) for name in ("x1", "y1", "x2", "y2")] == line["box"]
        assert (row["class"], row["source"], int(row["frame"])) == (line["class"], "street.mp4", line["frame"])
        assert one["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.011)
        assert one["area"] == pytest.approx(one["bbox"][2] * one["bbox"][3], abs=0.011)
        assert classes[one["category_id"]] == line["class"]
        assert images[one["image_id"]]["file_name"] == f"street.mp4#frame={line['frame']}"
    tracked = [line for line in found if line["track"] is not None]
    assert [(int(row[0]) - 1, int(row[1])) for row in mot] == [(line["frame"], line["track"]) for line in tracked]
    bodies = [one for one in coco["annotations"] if "keypoints" in one]
    assert bodies
    assert {len(one["keypoints"]) for one in bodies} == {51}


def test_side_by_side_shows_the_source_and_what_was_drawn(ride):
    both, drawn = video(ride.artifacts["side-by-side.mp4"]), video(ride.artifacts["annotated.mp4"])
    source = video(STREET)[100]
    assert both[0].shape == (272, 1280, 3)
    assert len(both) == len(drawn) == 8
    assert np.abs(both[0][:, :640].astype(int) - source).mean() < 8
    assert np.abs(both[0][:, 640:].astype(int) - drawn[0]).mean() < 8


def test_a_summary_is_shorter_and_a_smaller_copy_is_smaller_and_like_the_source(ride):
    pieces = ride.result["summary"]
    assert [round((end - first) * 4) for first, end in pieces] == [len(video(ride.artifacts["summary.mp4"]))]
    told = ride.result["smaller"]
    assert told["bytes"] == ride.artifacts["smaller.mp4"].stat().st_size
    assert told["psnr"] > 30
    assert 0.85 < told["ssim"] < 1
    copy = video(ride.artifacts["smaller.mp4"])
    assert (len(copy), copy[0].shape) == (50, (272, 640, 3))


def test_a_time_line_has_a_row_for_each_class(ride):
    page = cv2.imread(str(ride.artifacts["timeline.png"]))
    assert page.shape == (2 * summary.MARGIN + summary.ROW * (len(ride.result["counts"]) + 1), summary.WIDTH, 3)


def test_only_what_is_asked_for_is_made(tmp_path):
    # Given a task that needs no model
    params = {"fps": 2, "tasks": ["edges"], "outputs": ["annotated"]}
    done = run(FOLDER, params, [STREET], folder=tmp_path)
    # Then nothing is inferred, and nothing else kept
    assert done.outputs["inference"] == []
    assert set(done.artifacts) == {"annotated.mp4", "edges.jsonl"}
    assert set(done.result) == {"frames", "duration", "fps", "size", "edges", "device", "seconds"}


def test_detections_without_tracks_follow_nothing(tmp_path):
    done = run(FOLDER, {"fps": 1, "tasks": ["detect"], "outputs": ["detections"]}, [STREET], folder=tmp_path)
    assert (done.result["tracks"], set(done.artifacts)) == ({}, {"detections.jsonl"})
    assert {line["track"] for line in lines(done, "detections.jsonl")} == {None}


def test_persons_are_found_also_when_only_cars_are_reported(tmp_path):
    params = {"fps": 2, "start": 4.5, "end": 5.5, "tasks": ["detect", "pose"], "classes": ["car"], "outputs": []}
    done = run(FOLDER, params, [STREET], folder=tmp_path)
    assert set(done.result["counts"]) <= {"car"}
    assert done.result["pose"]["bodies"] > 0


# -- drawn pictures, whose answer is known ---------------------------------------------------------------------


def test_lines_have_their_angle_and_length():
    picture = np.zeros((400, 400, 3), np.uint8)
    for end in ((380, 200), (200, 20), (340, 60)):
        cv2.line(picture, (200, 200) if end != (340, 60) else (220, 180), end, (255, 255, 255), 3)
    [found], made = look("lines", picture)
    angles = np.array([line["angle"] for line in found["lines"]])
    for wanted in (0, 45, 90):
        assert np.min(np.abs((angles - wanted + 90) % 180 - 90)) < 3
    assert max(line["length"] for line in found["lines"]) == pytest.approx(180, abs=12)
    assert made.found([1])["directions"]["falling"] < 0.1


def test_edges_lie_where_light_meets_dark_also_when_it_is_dim():
    for light in (255, 60):
        picture = np.zeros((200, 200, 3), np.uint8)
        picture[:, 100:] = light
        _, made = look("edges", picture)
        drawn = made.draw(picture.copy())
        columns = np.flatnonzero((drawn != picture).any(axis=(0, 2)))
        assert 96 <= columns.min() <= columns.max() <= 103


def test_a_blurred_picture_is_less_sharp_than_the_picture_itself():
    sharp = video(STREET)[160]
    found, made = look("spectrum", sharp, cv2.GaussianBlur(sharp, (0, 0), 1), cv2.GaussianBlur(sharp, (0, 0), 4))
    scores = [one["sharpness"] for one in found]
    assert scores == sorted(scores, reverse=True)
    assert [one["blurred"] for one in found] == [False, False, True]
    assert made.found([1, 1, 7])["blurred_frames"] == 7  # held for seven ticks


def test_what_moves_is_framed_and_a_camera_that_turns_is_told():
    ground = np.random.default_rng(1).integers(60, 120, (240, 320, 3), np.uint8)
    still = [ground] * 8
    walk = []
    for n in range(6):
        walk.append(ground.copy())
        cv2.rectangle(walk[-1], (40 + 20 * n, 80), (80 + 20 * n, 180), (250, 240, 20), -1)
    found, _ = look("motion", *still, *walk, 255 - ground)
    assert all(not one["boxes"] for one in found[:8])
    for n, one in enumerate(found[8:14]):
        boxes = one["boxes"]
        assert any(abs(x1 - 40 - 20 * n) < 12 and abs(y1 - 80) < 12 and x2 - x1 < 90 for x1, y1, x2, _ in boxes)
    assert found[14]["camera"]
    assert found[14]["boxes"] == []


@pytest.mark.parametrize("background", ["blur", "remove"])
def test_a_mask_keeps_the_person_and_nothing_else(background):
    picture = np.random.default_rng(2).integers(0, 255, (120, 160, 3), np.uint8)
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 30:50] = 255
    scene = Scene((160, 120), Fraction(5), {"background": background}, mask=lambda _: mask)
    made = look_of("mask", scene)
    assert made.look(picture, 0)["share"] == pytest.approx(400 / 4800, abs=0.001)
    drawn = made.draw(picture.copy())
    assert np.abs(drawn[44:76, 64:96].astype(int) - picture[44:76, 64:96]).max() <= 1
    corner = drawn[:30, :40].astype(int)
    assert corner.std(axis=(0, 1)).max() < 40
    if background == "remove":
        assert (corner == (0, 177, 64)).all()


def test_a_cut_ends_every_track(tmp_path):
    # Given two shots of one street, each with a car that stands
    pictures = video(STREET)
    path = clips.write(tmp_path / "a.mp4", [*[pictures[165]] * 6, *[255 - pictures[20]] * 6, *[pictures[165]] * 6])
    done = run(FOLDER, {"fps": 10, "outputs": ["detections"]}, [path], folder=tmp_path / "run")
    # Then no track of the first is one of the second
    assert done.outputs["preprocess"]["sources"][0]["cuts"] == [6, 12]
    tracks = {}
    for line in lines(done, "detections.jsonl"):
        if line["track"] is not None:
            tracks.setdefault(line["track"], set()).add(line["frame"] // 6)
    assert len(tracks) >= 2
    assert all(len(shots) == 1 for shots in tracks.values())


def test_the_shots_of_the_sample_are_found_whatever_the_rate():
    pictures = video(STREET)
    found = {}
    for step in (1, 5):
        cuts = Cuts()
        for n in range(0, len(pictures), step):
            cuts.see(cv2.resize(pictures[n], (320, 136), interpolation=cv2.INTER_AREA), n)
        found[step] = np.array(cuts.at)
    assert found[1].tolist() == [30, 76, 137, 187, 242]
    assert ((found[5] - found[1] >= 0) & (found[5] - found[1] < 5)).all()


def test_a_summary_takes_the_pieces_where_most_is_seen():
    def sighting(frame, track):
        return Sighting(frame, "car", 2, 0.9, (0, 0, 9, 9), track)

    frames = [[sighting(n, 1)] * 3 if 40 <= n < 60 else [] for n in range(100)]
    assert summary.matters(frames, rate=5.0) == [(0, 10), (40, 60)]


def test_psnr_and_ssim_are_what_they_are_called():
    rng = np.random.default_rng(3)
    one = rng.integers(0, 255, (64, 64), np.uint8)
    noisy = np.clip(one + rng.normal(0, 10, one.shape), 0, 255).astype(np.uint8)
    assert 10 * np.log10(255**2 / smaller.square_of(one, noisy)) == pytest.approx(cv2.PSNR(one, noisy), abs=0.01)
    assert smaller.ssim_of(one, one) == pytest.approx(1)
    assert smaller.ssim_of(one, noisy) < 0.995
    assert smaller.ssim_of(one, 255 - one) < 0


def test_crops_and_annotated_pictures_of_several_sources_lie_in_one_zip(tmp_path):
    pictures = video(STREET)[160:166]
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), cv2.cvtColor(pictures[0], cv2.COLOR_RGB2BGR))
    done = run(FOLDER, {}, [tmp_path / "a.png", tmp_path / "b.png"], folder=tmp_path / "run")
    with zipfile.ZipFile(done.artifacts["annotated.zip"]) as file:
        assert file.namelist() == ["annotated/", "annotated/001-a.png.jpg", "annotated/002-b.png.jpg"]
