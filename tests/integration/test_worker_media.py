"""Media that bites, through a real worker: each is one clear failed job, and the worker goes on as before."""

import struct
import zipfile
import zlib

from celery_worker.pipelines.document.papers import pdf
from celery_worker.pipelines.features import rasters
from jobs.model import Status, Upload
from tests.mill import ROOT, Mill
from tests.web import Web, body_of

STREET = ROOT / "samples" / "street.mp4"


def samples(folder):
    """Files by name, and a word of why each is refused."""
    yield "playlist.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", "not a video"
    yield "concat.mp4", b"ffconcat version 1.0\nfile '/etc/passwd'\n", "not a video"
    yield "network.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n", "not a video"
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"".join(_chunk(kind, body) for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(90_000)))))
    yield "bomb.png", b"\x89PNG\r\n\x1a\n" + bomb + _chunk(b"IEND", b""), "60000 x 60000 pixels"
    for name, member, data, why in [
        ("out.zip", "../../evil.png", b"x", "leads out of its folder"),
        ("bomb.zip", "a.png", bytes(100_000_000), "more than 100 times"),
        ("nested.zip", "inner.zip", b"PK\x03\x04", "no picture and no video"),
    ]:
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, data)
        yield name, (folder / name).read_bytes(), why
    yield "cut.mp4", STREET.read_bytes()[:200_000], "cut off"
    yield "cut.jpg", b"\xff\xd8\xff\xe0" + bytes(300), "picture"


def test_each_file_that_bites_is_one_clear_failure_and_the_worker_lives(rabbitmq_url, redis_url, tmp_path):
    pages = {"/street.mp4": body_of(STREET.read_bytes())}
    with Web(pages) as web, Mill(rabbitmq_url, redis_url, tmp_path, ALLOWED_HOSTS=web.host) as mill:
        worker = mill.worker("preprocess,inference,postprocess", "-c", "1")
        waiting = {}
        for name, data, why in samples(tmp_path):
            stored = mill.files.put(f"uploads/{name}", data)
            mill.store.add_upload(Upload(name, f"uploads/{name}", stored.bytes, stored.sha256, "video/mp4", name), 600)
            waiting[mill.submit("video", given={"file": name})] = why
        # Then each failed in its first stage, at the first attempt, with a sentence and nothing kept
        for job_id, why in waiting.items():
            job = mill.wait(job_id, within_s=90)
            assert (job.status, job.error.code, job.error.stage) == (Status.FAILED, "bad-input", "preprocess")
            assert why in job.error.detail
            assert "root:" not in job.error.detail
            assert (job.stages[0].failures, job.stages[0].losses) == (0, 0)  # tried once
            assert list(mill.store.artifacts(job_id)) == []
        # Then no byte of them is left beside the uploads, and the same worker does the next job
        assert not (mill.folder / "files" / "jobs").exists()
        assert not list(tmp_path.rglob("evil*"))
        done = mill.result(mill.submit("video", given={"url": f"{web.url}/street.mp4"}, fps=1, end=2), within_s=90)
        assert (done["frames"], len(web.asked)) == (2, 1)
        assert worker.poll() is None


def papers_and_maps(folder):
    """The same for the pipelines that read maps and documents: pipeline, name, bytes, why."""
    secret = folder / "secret.tif"
    rasters.write(secret, rasters.meadow(8, 8))
    yield "features", "elsewhere.tif", (
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    ).encode(), "not a GeoTIFF, PNG or JPEG"  # fmt: skip
    yield "features", "bomb.tif", rasters.bomb(folder / "bomb.tif").read_bytes(), "decoded whole"
    yield "features", "bomb.png", rasters.png_bomb(folder / "map.png").read_bytes(), "19,000 x 19,000 pixels"
    yield "document", "loop.pdf", pdf(["A page."], kids="2 0 R"), "The PDF"
    yield "document", "deep.pdf", b"%PDF-1.7\n" + b"<<" * 200_000, "The PDF cannot be read"
    yield "document", "long.pdf", pdf(["A page."] * 201), "at most 200"
    yield "document", "paper.docx", (folder / "out.zip").read_bytes(), "neither text nor HTML nor PDF"


def test_maps_and_documents_that_bite_are_clear_failures_and_the_worker_lives(rabbitmq_url, redis_url, tmp_path):
    with Mill(rabbitmq_url, redis_url, tmp_path) as mill:
        worker = mill.worker("preprocess,preprocess.text", "-c", "1")
        list(samples(tmp_path))  # a zip of them is called a document below
        waiting = {}
        for pipeline, name, data, why in papers_and_maps(tmp_path):
            stored = mill.files.put(f"uploads/{name}", data)
            mill.store.add_upload(Upload(name, f"uploads/{name}", stored.bytes, stored.sha256, "", name), 600)
            waiting[mill.submit(pipeline, given={"file": name})] = why
        # Then each failed in its first stage, at the first attempt, with a sentence and nothing kept
        for job_id, why in waiting.items():
            job = mill.wait(job_id, within_s=90)
            assert (job.status, job.error.code, job.error.stage) == (Status.FAILED, "bad-input", "preprocess")
            assert why in job.error.detail
            assert str(tmp_path) not in job.error.detail
            assert (job.stages[0].failures, job.stages[0].losses) == (0, 0)  # tried once
        assert not (mill.folder / "files" / "jobs").exists()
        assert worker.poll() is None


def _chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
