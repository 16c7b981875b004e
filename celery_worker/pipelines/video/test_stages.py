"""Video finds, follows and pictures what is in a file, whatever the file is like, and never half of it."""

import json
import threading
import time
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from celery_worker import devices
from celery_worker.models import Models
from celery_worker.pipelines.video import clips
from celery_worker.pipelines.video.decode import Clip
from celery_worker.testing import MODELS, run
from celery_worker.workbench import Limits
from jobs.errors import BadInput, ParamsInvalid
from jobs.pipeline import read

FOLDER = Path(__file__).parent
STREET = FOLDER.parents[2] / "samples" / "street.mp4"
ARTIFACTS = {"detections.jsonl", "annotated.mp4", "contact-sheet.jpg", "crops.zip"}


def lines(done):
    return [json.loads(line) for line in done.artifacts["detections.jsonl"].read_text().splitlines()]


@pytest.fixture(scope="module")
def cars():
    """Ten pictures of a street with cars, a tenth of a second apart."""
    with av.open(str(STREET)) as file:
        found = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return found[160:180:2]


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """The sample, twice a second."""
    return run(FOLDER, {"fps": 2}, [STREET], folder=tmp_path_factory.mktemp("street"))


def test_the_example_fits_the_schema_and_lists_the_models_classes():
    pipeline = read(FOLDER)
    assert pipeline.check(pipeline.example["params"])["fps"] == 5
    listed = pipeline.params_schema["properties"]["classes"]["items"]["enum"]
    labels = Models(MODELS, devices.cpu()).labels("efficientdet-lite0")
    assert listed == [label for label in labels if label != "???"]


def test_frames_of_several_segments_in_one_call_are_seen_as_each_alone(street, tmp_path):
    # Given the same clip in segments of two frames each, one frame to a call
    params = {"fps": 2, "segment_seconds": 1, "tasks": ["detect", "pose"], "outputs": ["detections"]}
    alone = run(FOLDER, params, [STREET], folder=tmp_path / "alone")
    # When eight frames share a call, of four segments or of one
    for batch, given in ((8, params), (8, {**params, "segment_seconds": 10})):
        together = run(FOLDER, given, [STREET], folder=tmp_path / f"{batch}.{given['segment_seconds']}", batch=batch)
        # Then the same is seen, to the last digits of a float
        assert len(lines(together)) == len(lines(alone)) > 20
        for mine, other in zip(lines(together), lines(alone), strict=True):
            assert (mine["frame"], mine["class"]) == (other["frame"], other["class"])
            assert mine["box"] == pytest.approx(other["box"], abs=0.05)
            assert mine["score"] == pytest.approx(other["score"], abs=0.001)
    # And each part tells its own persons and time
    assert all(one["seconds"] > 0 and "persons" in one for one in together.outputs["inference"])


def test_the_result_counts_what_the_artifacts_show(street):
    found = lines(street)
    result = street.result
    assert set(street.artifacts) == ARTIFACTS
    assert (result["frames"], result["duration"], result["size"], result["fps"]) == (20, 10.0, [640, 272], 2.0)
    assert sum(result["counts"].values()) == len(found) > 20
    assert result["counts"]["car"] == sum(line["class"] == "car" for line in found)
    tracks = {line["track"] for line in found} - {None}
    assert sum(result["tracks"].values()) == len(tracks)
    assert tracks == set(range(1, len(tracks) + 1))
    assert result["device"] == "cpu"
    assert set(result["seconds"]) == {"preprocess", "inference", "postprocess"}
    assert all(seconds > 0 for seconds in result["seconds"].values())


def test_each_detection_has_its_time_and_a_box_inside_the_source(street):
    for line in lines(street):
        assert set(line) == {"frame", "time", "class", "score", "box", "track"}
        assert line["time"] == line["frame"] / 2
        x1, y1, x2, y2 = line["box"]
        assert 0 <= x1 < x2 <= 640
        assert 0 <= y1 < y2 <= 272
        assert 0.4 < line["score"] <= 1


def test_the_annotated_video_plays_in_a_browser(street):
    path = street.artifacts["annotated.mp4"]
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate) == (640, 272, 2)
        assert len(list(file.decode(video=0))) == 20


def test_the_crops_show_each_track_once(street):
    tracks = {line["track"] for line in lines(street)} - {None}
    with zipfile.ZipFile(street.artifacts["crops.zip"]) as file:
        names = file.namelist()
        assert names[0] == "crops/"
        assert {int(name.split("-")[1]) for name in names[1:]} == tracks
        for name in names[1:]:
            assert cv2.imdecode(np.frombuffer(file.read(name), np.uint8), cv2.IMREAD_COLOR).size > 0


def test_the_contact_sheet_is_one_page(street):
    page = cv2.imread(str(street.artifacts["contact-sheet.jpg"]))
    assert page.shape[1] > 1_000
    assert 400 < page.shape[0] < 2_000


def direct_loop(fps):
    """What someone would write by hand: decode, resize, detect, suppress. Shares no code with the pipeline."""
    session = Models(MODELS, devices.cpu()).load("efficientdet-lite0")
    found = []
    with av.open(str(STREET)) as file:
        for n, frame in enumerate(file.decode(video=0)):
            if n % (25 // fps):
                continue
            small = cv2.resize(frame.to_ndarray(format="rgb24"), (320, 136), interpolation=cv2.INTER_AREA)
            image = np.zeros((1, 320, 320, 3), np.uint8)
            image[0, :136] = small
            boxes, scores, ids = (out[0] for out in session.run(["boxes", "scores", "class_ids"], {"images": image}))
            keep = scores > 0.4
            boxes, scores, ids = boxes[keep], scores[keep], ids[keep]
            corners = [(float(x1), float(y1), float(x2 - x1), float(y2 - y1)) for x1, y1, x2, y2 in boxes]
            for k in cv2.dnn.NMSBoxesBatched(corners, scores.tolist(), ids.tolist(), 0.4, 0.5) if len(corners) else ():
                box = np.clip(boxes[k], 0, 320) / 0.5
                found.append((n // (25 // fps), session.labels[ids[k]], np.clip(box, 0, (640, 272, 640, 272))))
    return found


def overlap(one, other):
    wide, high = (min(one[n + 2], other[n + 2]) - max(one[n], other[n]) for n in (0, 1))
    shared = max(0, wide) * max(0, high)
    return shared / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - shared)


@pytest.fixture(scope="module")
def by_hand():
    return direct_loop(5)


@pytest.mark.parametrize("segment_seconds", [1, 3, 3600])
def test_the_pipeline_changes_nothing(by_hand, tmp_path, segment_seconds):
    # Given what a direct loop with the same model finds in the whole sample
    expected = list(by_hand)
    # When the pipeline looks at it in segments
    done = run(FOLDER, {"fps": 5, "segment_seconds": segment_seconds}, [STREET], folder=tmp_path)
    # Then each detection of one has its like in the other
    assert len(done.outputs["inference"]) == {1: 10, 3: 4, 3600: 1}[segment_seconds]
    found = lines(done)
    assert len(found) == len(expected) > 50
    for line in found:
        like = [e for e in expected if e[:2] == (line["frame"], line["class"]) and overlap(line["box"], e[2]) >= 0.99]
        assert len(like) == 1, line


def test_the_same_input_gives_the_same_result(cars, tmp_path):
    path = clips.write(tmp_path / "a.mp4", cars)
    one, other = (run(FOLDER, {"fps": 5}, [path], folder=tmp_path / name) for name in ("one", "other"))
    for name in ARTIFACTS:
        assert one.artifacts[name].read_bytes() == other.artifacts[name].read_bytes(), name
    assert {**one.result, "seconds": 0} == {**other.result, "seconds": 0}


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mov", "libx264"),
        ("a.mkv", "libx265"),
        ("a.mp4", "libx265"),
        ("a.webm", "libvpx-vp9"),
        ("a.avi", "mpeg4"),
    ],
)
def test_cars_are_found_in_every_kind_of_file(cars, tmp_path, name, codec):
    path = clips.write(tmp_path / name, cars, codec=codec, stream_options={"b": "2000000"})
    done = run(FOLDER, {"fps": 5}, [path], folder=tmp_path / "run")
    assert (done.result["frames"], done.result["size"]) == (5, [640, 272])
    assert done.result["counts"]["car"] >= 5
    assert done.result["tracks"]["car"] >= 1


def test_a_turned_clip_with_sound_is_seen_upright(cars, tmp_path):
    # Given a clip filmed with the camera on its side
    turned = [cv2.rotate(picture, cv2.ROTATE_90_COUNTERCLOCKWISE) for picture in cars]
    path = clips.write(tmp_path / "a.mp4", turned, rotation=-90, sound_s=1)
    # When it goes through
    done = run(FOLDER, {"fps": 5}, [path], folder=tmp_path / "run")
    # Then cars stand on their wheels, and the annotated video is upright
    assert done.result["size"] == [640, 272]
    assert done.result["counts"]["car"] >= 5
    with av.open(str(done.artifacts["annotated.mp4"])) as file:
        frame = next(file.decode(video=0))
        assert (frame.width, frame.height, frame.rotation) == (640, 272, 0)


def test_held_frames_are_detected_once_and_shown_at_each_tick(cars, tmp_path):
    # Given a clip of two frames, the second long after the first
    path = clips.write(tmp_path / "a.mkv", [cars[0], cars[5]], times_ms=[0, 1_900])
    # When it is looked at ten times a second
    params = {"fps": 10, "end": 2, "tasks": ["detect", "edges"]}
    done = run(FOLDER, params, [path], folder=tmp_path / "run")
    # Then all ticks of one frame have the same boxes, and count for what the result says of the whole
    shares = [json.loads(line)["share"] for line in done.artifacts["edges.jsonl"].read_text().splitlines()]
    assert (len(shares), len(set(shares))) == (20, 2)
    assert done.result["edges"]["mean_share"] == pytest.approx(np.mean(shares), abs=1e-4)
    found = lines(done)
    assert done.result["frames"] == 20
    first = [[line["box"] for line in found if line["frame"] == n] for n in range(20)]
    assert all(boxes == first[0] for boxes in first[:19])
    assert first[19] != first[0]


def test_odd_sizes_and_pixels_that_are_not_square_stay_playable(cars, tmp_path):
    small = [cv2.resize(picture, (161, 91)) for picture in cars[:4]]
    path = clips.write(tmp_path / "a.mkv", small, codec="ffv1", pixels="yuv444p")
    done = run(FOLDER, {"fps": 10}, [path], folder=tmp_path / "run")
    assert done.result["size"] == [161, 91]
    with av.open(str(done.artifacts["annotated.mp4"])) as file:
        assert [(frame.width, frame.height) for frame in file.decode(video=0)] == [(162, 92)] * 4


def test_grey_every_and_classes_do_what_they_say(cars, tmp_path):
    path = clips.write(tmp_path / "a.mp4", cars)
    grey = run(FOLDER, {"fps": 10, "every": 5, "color": "grey"}, [path], folder=tmp_path / "grey")
    assert (grey.result["frames"], grey.result["fps"]) == (2, 2.0)
    assert grey.result["counts"]["car"] >= 2
    dogs = run(FOLDER, {"fps": 2, "classes": ["dog"]}, [path], folder=tmp_path / "dogs")
    assert (dogs.result["counts"], dogs.result["tracks"], set(dogs.artifacts)) == ({}, {}, ARTIFACTS)
    only = run(FOLDER, {"fps": 2, "classes": ["car"]}, [path], folder=tmp_path / "cars")
    assert set(only.result["counts"]) == {"car"}


def test_segments_are_the_models_input_and_gone_once_they_are_seen(cars, tmp_path):
    path = clips.write(tmp_path / "a.mp4", cars)
    done = run(FOLDER, {"fps": 10, "segment_seconds": 0.5}, [path], folder=tmp_path / "run")
    assert [part["first"] for part in done.outputs["inference"]] == [0, 5]
    kept = sorted(file.name for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert kept == sorted(ARTIFACTS)


@pytest.mark.parametrize("where", [("preprocess", 2), ("inference", 1), ("postprocess", 2), ("postprocess", 4)])
def test_a_dismissed_job_stops_where_it_is(cars, tmp_path, monkeypatch, where):
    path = clips.write(tmp_path / "a.mp4", cars * 2)
    reading = []
    leave = Clip.__exit__

    def close(clip, *error):
        reading.extend(thread for thread in threading.enumerate() if thread.name == "ahead")
        leave(clip, *error)

    monkeypatch.setattr(Clip, "__exit__", close)
    done = run(FOLDER, {"fps": 10}, [path], folder=tmp_path / "run", dismiss_at=where)
    assert done.dismissed
    assert where[0] not in done.outputs
    assert "annotated.mp4" not in done.artifacts
    assert reading == []  # the file is closed under no thread
    assert list((tmp_path / "run" / "scratch").iterdir()) == []


def test_a_dismissed_job_does_not_decode_on_to_its_next_tick(tmp_path, monkeypatch):
    # Given a slow clip of 800 frames, of which only the first shows at a tick
    path = clips.write(tmp_path / "a.mp4", clips.counting(20) * 40, fps=25)
    read_in_threads = []
    packets = Clip._packets

    def slowly(clip):
        for packet in packets(clip):
            if threading.current_thread().name == "ahead":
                read_in_threads.append(packet.pts)
                time.sleep(0.005)
            yield packet

    monkeypatch.setattr(Clip, "_packets", slowly)
    # When its job is dismissed while postprocess waits for the next
    done = run(FOLDER, {"fps": 0.1, "every": 10}, [path], folder=tmp_path / "run", dismiss_at=("postprocess", 2))
    # Then the rest is not read
    assert done.dismissed
    assert len(read_in_threads) < 500


def test_a_bad_file_leaves_no_artifact_and_names_what_is_wrong(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("no video")
    with pytest.raises(BadInput, match="not a video"):
        run(FOLDER, {}, [path], folder=tmp_path / "run")
    assert [file for file in (tmp_path / "run").rglob("*") if file.is_file()] == []


def test_a_frame_larger_than_the_limit_is_refused(cars, tmp_path):
    path = clips.write(tmp_path / "a.mp4", cars[:2])
    with pytest.raises(BadInput, match="640 x 272 pixels; at most 100,000"):
        run(FOLDER, {}, [path], folder=tmp_path / "run", limits=Limits(max_pixels=100_000, max_memory_mb=1_000))


def test_too_many_segments_are_refused_with_the_param_that_helps(tmp_path):
    # Given a clip whose second frame comes most of an hour after the first
    path = clips.write(tmp_path / "a.mkv", clips.counting(2), times_ms=[0, 3_500_000])
    # When it is to be cut into tenths of a second
    with pytest.raises(BadInput, match="more than 10,000 segments: raise segment_seconds"):
        run(FOLDER, {"segment_seconds": 0.1, "fps": 10}, [path], folder=tmp_path / "run")
    # Then none is cut first
    assert not (tmp_path / "run" / "files").exists()


def test_a_clip_without_end_is_refused_when_the_parts_run_out(tmp_path, monkeypatch):
    # Given a live stream, which declares no duration
    from celery_worker.pipelines.video import split

    monkeypatch.setattr(split, "MAX_PARTS", 3)
    path = tmp_path / "live.mkv"
    path.write_bytes(clips.write(clips.Pipe(), clips.counting(20), fps=10, format="matroska").data)
    # Then it ends when the job has as many parts as it may have
    with pytest.raises(BadInput, match="more than 3 segments: raise segment_seconds"):
        run(FOLDER, {"segment_seconds": 0.1, "fps": 10}, [path], folder=tmp_path / "run")


@pytest.mark.parametrize(
    "params",
    [
        {"fps": 0},
        {"fps": 61},
        {"fps": "5"},
        {"every": 1.5},
        {"start": -1},
        {"end": 0},
        {"segment_seconds": 0},
        {"color": "RGB"},
        {"min_score": 1},
        {"classes": ["automobile"]},
        {"classes": ["car", "car"]},
        {"colour": "rgb"},
    ],
)
def test_params_that_make_no_sense_are_refused_at_the_door(params):
    with pytest.raises(ParamsInvalid):
        read(FOLDER).check(params)


def test_the_working_rate_of_a_broadcast_clip_is_exact():
    from celery_worker.pipelines.video.decode import sampling

    assert sampling({"fps": 29.97, "every": 1, "start": 0, "end": None}).rate == Fraction(2997, 100)
