"""Pictures, zips and lists are one row of sources; archives and pictures that bite are refused with a sentence."""

import io
import json
import resource
import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from celery_worker.pipelines.video import clips, sources
from celery_worker.testing import run
from celery_worker.workbench import Limits
from jobs.errors import BadInput

FOLDER = Path(__file__).parent
STREET = FOLDER.parents[2] / "samples" / "street.mp4"
ONLY_LINES = {"outputs": ["detections"]}


@pytest.fixture(scope="module")
def street():
    """A picture of a street with cars."""
    file = cv2.VideoCapture(str(STREET))
    file.set(cv2.CAP_PROP_POS_FRAMES, 165)
    return cv2.cvtColor(file.read()[1], cv2.COLOR_BGR2RGB)


def lines(done):
    return [json.loads(line) for line in done.artifacts["detections.jsonl"].read_text().splitlines()]


def zip_of(path, members, **how):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data, **how)
    return path


def png(picture):
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


def refusal(path, tmp_path, **how):
    with pytest.raises(BadInput) as refused:
        run(FOLDER, ONLY_LINES, [path], folder=tmp_path / "run", **how)
    assert not list((tmp_path / "run" / "files").rglob("*"))
    return str(refused.value)


# -- what is taken ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.bmp", "a.tif", "a.avif"])
def test_a_picture_is_one_frame(street, tmp_path, name):
    Image.fromarray(street).save(tmp_path / name)
    done = run(FOLDER, {}, [tmp_path / name], folder=tmp_path / "run")
    result = done.result
    assert (result["frames"], result["duration"], result["size"]) == (1, 0.0, [640, 272])
    assert result["counts"]["car"] >= 2
    assert set(done.artifacts) == {"detections.jsonl", "annotated.jpg", "crops.zip"}
    assert cv2.imread(str(done.artifacts["annotated.jpg"])).shape == (272, 640, 3)
    assert not {"sources", "fps"} & set(result)


def test_a_picture_stands_upright_and_on_white(street, tmp_path):
    # Given a photograph whose camera was turned, and a drawing that can be seen through
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(street).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(np.dstack([street, np.zeros(street.shape[:2], np.uint8)])).save(tmp_path / "clear.png")
    Image.fromarray(street[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    turned, clear, deep = (
        run(FOLDER, {}, [tmp_path / name], folder=tmp_path / name.partition(".")[0])
        for name in ("turned.jpg", "clear.png", "deep.png")
    )
    # Then they are seen as they are shown
    assert turned.result["size"] == [272, 640]
    assert cv2.imread(str(clear.artifacts["annotated.jpg"])).mean() > 250
    assert abs(cv2.imread(str(deep.artifacts["annotated.jpg"])).mean() - street[:, :, 0].mean()) < 12


@pytest.mark.parametrize(
    ("dtype", "white"), [("uint16", 65_535), ("uint16", 4_095), ("uint16", 255), ("int32", 1_023), ("float32", 1)]
)
def test_deep_shades_are_seen_as_bright_as_they_are(street, tmp_path, dtype, white):
    # Given a scan whose file does not say how bright white is
    grey = street[:, :, 1] / 255 * white
    grey = np.where(np.arange(len(grey))[:, None] < 2, np.nan if dtype == "float32" else 0, grey)
    Image.fromarray(grey.astype(dtype)).save(tmp_path / "deep.tif")
    done = run(FOLDER, {"tasks": ["edges"]}, [tmp_path / "deep.tif"], folder=tmp_path / "run")
    plain = run(FOLDER, {"tasks": ["edges"]}, [_saved(street, tmp_path / "plain.png")], folder=tmp_path / "plain")
    # Then it has the edges of the picture that people would see
    share = plain.result["edges"]["mean_share"]
    assert done.result["edges"]["mean_share"] == pytest.approx(share, rel=0.1)


def _saved(street, path):
    grey = street[:, :, 1].copy()
    grey[:2] = 0
    Image.fromarray(grey).save(path)
    return path


def test_a_picture_in_the_boxes_of_a_video_is_no_video(tmp_path):
    # Given what telephones take, whose tiles FFmpeg would show as videos
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    assert refusal(tmp_path / "a.heic", tmp_path).startswith("The file is not a picture that can be read: JPEG,")


def test_a_zip_of_pictures_and_videos_is_grouped_by_source(street, tmp_path):
    # Given a zip with a video between two pictures, and what systems leave in archives
    clip = clips.write(tmp_path / "clip.mp4", [street] * 6, fps=10).read_bytes()
    members = {"b/one.png": png(street), "a/clip.mp4": clip, "c.JPG": png(street), "read me.txt": b"Hello",
               "__MACOSX/b/._one.png": b"x", "b/.DS_Store": b"x", "b/": b""}  # fmt: skip
    archive = zip_of(tmp_path / "some.zip", members)
    done = run(FOLDER, {"fps": 10, "segment_seconds": 0.3}, [archive], folder=tmp_path / "run")
    # Then the result lists each source, in the order of their names
    told = done.result["sources"]
    assert [(one["name"], one["frames"]) for one in told] == [("a/clip.mp4", 6), ("b/one.png", 1), ("c.JPG", 1)]
    assert [(part["source"], part["first"]) for part in done.outputs["inference"]] == [(0, 0), (0, 3), (1, 0), (2, 0)]
    assert done.result["frames"] == 8
    assert done.result["counts"] == {
        name: sum(one["counts"].get(name, 0) for one in told) for name in done.result["counts"]
    }
    found = lines(done)
    assert {line["source"] for line in found} == {"a/clip.mp4", "b/one.png", "c.JPG"}
    assert told[1]["counts"] == told[2]["counts"]
    assert {"001-annotated.mp4", "001-contact-sheet.jpg", "annotated.zip", "crops.zip"} <= set(done.artifacts)


def test_a_list_of_files_is_taken_as_it_is_given(street, tmp_path):
    for name in ("z.png", "a.png"):
        (tmp_path / name).write_bytes(png(street))
    done = run(FOLDER, ONLY_LINES, [tmp_path / "z.png", tmp_path / "a.png"], folder=tmp_path / "run")
    assert [one["name"] for one in done.result["sources"]] == ["z.png", "a.png"]


def test_a_zip_with_one_picture_names_it(street, tmp_path):
    done = run(FOLDER, ONLY_LINES, [zip_of(tmp_path / "a.zip", {"x.png": png(street)})], folder=tmp_path / "run")
    assert [one["name"] for one in done.result["sources"]] == ["x.png"]


def test_parts_of_all_sources_are_counted_together(street, tmp_path, monkeypatch):
    from celery_worker.pipelines.video import split

    monkeypatch.setattr(split, "MAX_PARTS", 2)
    archive = zip_of(tmp_path / "a.zip", {f"{n}.png": png(street[:40, :40]) for n in range(3)})
    assert refusal_of_many(archive, tmp_path).startswith("2.png: The video gives more than 2 segments")


def test_a_job_takes_so_many_sources_and_frames_and_no_more(street, tmp_path, monkeypatch):
    from celery_worker.pipelines.video import split

    # Given a zip with more pictures than a job may have, and a clip with more frames
    monkeypatch.setattr(sources, "MAX_SOURCES", 2)
    monkeypatch.setattr(split, "MAX_FRAMES", 5)
    archive = zip_of(tmp_path / "a.zip", {f"{n}.png": png(street[:40, :40]) for n in range(3)})
    assert refusal_of_many(archive, tmp_path) == "There are more than 2 pictures and videos."
    clip = clips.write(tmp_path / "a.mp4", clips.counting(12), fps=10)
    with pytest.raises(BadInput, match="gives more than 5 frames: lower fps"):
        run(FOLDER, {"fps": 10, "outputs": ["detections"]}, [clip], folder=tmp_path / "clip")


def refusal_of_many(path, tmp_path):
    with pytest.raises(BadInput) as refused:
        run(FOLDER, ONLY_LINES, [path], folder=tmp_path / "run")
    return str(refused.value)


# -- what bites ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "..\\evil.png", "C:/evil.png"])
def test_a_member_that_leads_out_of_its_folder_is_refused(street, tmp_path, name):
    archive = zip_of(tmp_path / "a.zip", {"good.png": png(street)})
    with zipfile.ZipFile(archive, "a") as file:
        member = zipfile.ZipInfo("x")
        member.filename = member.orig_filename = name
        file.writestr(member, png(street))
    assert refusal(archive, tmp_path) == "The zip has a member whose name leads out of its folder."
    assert not list(tmp_path.rglob("evil*"))


def test_a_zip_bomb_is_refused_by_what_it_says_and_by_what_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "FREE_GROWTH", 1_000_000)
    bomb = zip_of(tmp_path / "a.zip", {"a.png": bytes(50_000_000)})
    assert bomb.stat().st_size < 100_000
    assert refusal(bomb, tmp_path) == "The zip unpacks to more than 100 times its size."
    # Given one whose directory says that it is small
    data = bytearray(bomb.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = data.index(signature) + offset
        data[at : at + 4] = struct.pack("<I", 1_000)
    bomb.write_bytes(data)
    assert "The zip" in refusal(bomb, tmp_path)
    assert sum(file.stat().st_size for file in (tmp_path / "run").rglob("*") if file.is_file()) < 2_000_000


@pytest.mark.parametrize("kind", ["link", "encrypted", "nested", "nothing", "damaged", "many"])
def test_an_archive_that_is_no_album_is_refused(street, tmp_path, monkeypatch, kind):
    path, whole = tmp_path / "a.zip", png(street)
    if kind == "link":
        link = zipfile.ZipInfo("a.png")
        link.external_attr = 0o120777 << 16
        zip_of(path, {link: "/etc/passwd"})
        why = "The zip has a member that is a link."
    elif kind == "encrypted":
        data = bytearray(zip_of(path, {"a.png": whole}).read_bytes())
        data[data.index(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(data)
        why = "The zip is encrypted."
    elif kind == "nested":
        zip_of(path, {"inner.zip": zip_of(tmp_path / "inner.zip", {"a.png": whole}).read_bytes()})
        why = "There is no picture and no video in the zip."
    elif kind == "nothing":
        zip_of(path, {"a.txt": "Hello"})
        why = "There is no picture and no video in the zip."
    elif kind == "damaged":
        data = bytearray(zip_of(path, {"a.png": whole}).read_bytes())
        data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
        path.write_bytes(data)
        why = "The zip cannot be read: it is damaged, or packed in a way that is not known here."
    else:
        monkeypatch.setattr(sources, "MAX_MEMBERS", 3)
        zip_of(path, {f"{n}.txt": "x" for n in range(4)})
        why = "The zip has more than 3 members."
    assert refusal(path, tmp_path) == why


def test_a_picture_that_unpacks_to_too_many_pixels_is_refused_by_its_header(tmp_path, monkeypatch):
    # Given some kilobytes of PNG that would be 40,000 x 40,000 pixels
    row = zlib.compressobj(9)
    packed = b"".join(row.compress(bytes(40_001)) for _ in range(200)) + row.flush()
    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in ((b"IHDR", head), (b"IDAT", packed)))
    (tmp_path / "a.png").write_bytes(data + _chunk(b"IEND", b""))
    Image.init()  # some formats draw pictures of their own when they are first looked for
    # Then no pixel of it is decoded
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("a pixel was decoded"))
    assert "40000 x 40000 pixels" in refusal(tmp_path / "a.png", tmp_path)


def test_a_picture_s_remark_that_unpacks_without_end_is_refused(street, tmp_path):
    # Given a small picture with a packed remark of 300 MB
    squeeze, whole = zlib.compressobj(9), png(street[:40, :40])
    packed = b"".join(squeeze.compress(bytes(1_000_000)) for _ in range(300)) + squeeze.flush()
    (tmp_path / "a.png").write_bytes(whole[:33] + _chunk(b"zTXt", b"Comment\0\0" + packed) + whole[33:])
    # Then it is one refused picture, and the remark was never unpacked
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(tmp_path / "a.png", tmp_path) == "The picture is cut off or damaged."
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_picture_takes_no_more_memory_than_a_stage_may_have(tmp_path):
    # Given a picture that its header lets through, and a stage that may have less than it would take
    Image.new("RGB", (8_000, 8_000)).save(tmp_path / "a.png", compress_level=1)
    few = Limits(max_pixels=67_108_864, max_memory_mb=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Then it is refused the memory, whoever asks for it
    with pytest.raises(MemoryError):
        run(FOLDER, ONLY_LINES, [tmp_path / "a.png"], folder=tmp_path / "run", limits=few)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000


def _chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_the_limit_of_pixels_is_the_jobs_own(street, tmp_path):
    (tmp_path / "a.png").write_bytes(png(street))
    small = Limits(max_pixels=100_000, max_memory_mb=1_000)
    assert "640 x 272 pixels; at most 100,000" in refusal(tmp_path / "a.png", tmp_path, limits=small)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.tif"])
def test_a_picture_cut_off_is_refused(street, tmp_path, name):
    out = io.BytesIO()
    Image.fromarray(street).save(out, Image.registered_extensions()["." + name.split(".")[1]])
    (tmp_path / name).write_bytes(out.getvalue()[: len(out.getvalue()) // 2])
    assert refusal(tmp_path / name, tmp_path) == "The picture is cut off or damaged."


def test_what_only_claims_to_be_a_picture_reaches_nothing(tmp_path):
    # Given files of kinds that name other files or start programs, one of them behind a picture's first bytes
    (tmp_path / "secret.png").write_bytes(b"secret")
    files = {
        "a.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="secret.png"/></svg>',
        "b.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(secret.png) run\n",
        "c.m3u8": b"#EXTM3U\n#EXTINF:1,\nsecret.png\n#EXT-X-ENDLIST\n",
        "d.png": b"\x89PNG\r\n\x1a\n#EXTM3U\n#EXTINF:1,\nsecret.png\n",
        "e.vrt": b"<VRTDataset><SourceFilename>secret.png</SourceFilename></VRTDataset>",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert refusal(tmp_path / name, tmp_path) in (
            "The file is not a video that can be read, and no picture.",
            "The file is not a picture that can be read: JPEG, PNG, WEBP, GIF, BMP, TIFF and AVIF are.",
            "The picture is cut off or damaged.",
        )


def test_a_playlist_inside_a_zip_reaches_nothing_and_names_its_member(street, tmp_path):
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n00000\n#EXT-X-ENDLIST\n"
    archive = zip_of(tmp_path / "a.zip", {"a.mp4": png(street), "b.mp4": playlist})
    assert refusal_of_many(archive, tmp_path) == "b.mp4: The file is not a video that can be read, and no picture."
