"""A job whose input is a URL, through a real worker: one file for all its stages, or one clear failure."""

import hashlib
from pathlib import Path

import pytest

from celery_worker.testing import run
from jobs.errors import BadInput
from jobs.model import Status
from tests.mill import ROOT, Mill
from tests.web import Web, body_of, leads_to, status

CLIP = (ROOT / "samples" / "street.mp4").read_bytes()
PAGES = {"/beside.txt": body_of(b"beside", Content_Type="text/plain"), "/street.mp4": body_of(CLIP)}


def test_what_lies_behind_a_url_is_fetched_once_for_all_stages(rabbitmq_url, redis_url, tmp_path):
    # Given a worker that may fetch from one host
    with Web(PAGES) as web, Mill(rabbitmq_url, redis_url, tmp_path, ALLOWED_HOSTS=web.host, MAX_FAILURES=1) as mill:
        mill.worker("errand", "-c", "1")
        job_id = mill.submit("errand", given={"url": f"{web.url}/street.mp4?size=large"})
        digest = hashlib.sha256(CLIP).hexdigest()
        # Then both stages see one file, which was asked for once
        assert mill.result(job_id) == {
            "first": digest,
            "second": digest,
            "name": "street.mp4",
            "beside": "beside",
            "type": "text/plain",
        }
        assert sorted(path for path, _ in web.asked) == ["/beside.txt", "/street.mp4?size=large"]
        assert mill.files.size(f"jobs/{job_id}/input/0") == len(CLIP)


REFUSED = [
    ("/page.html", "bad-input", "text/html, which this pipeline does not take"),
    ("/inside.mp4", "bad-input", "not public"),
    ("/gone.mp4", "bad-input", "answered 404 Not Found"),
    ("/broken.mp4", "stage-broke", "answered 503 Service Unavailable"),
]


def test_what_cannot_be_fetched_is_one_clear_failure_and_the_worker_lives(rabbitmq_url, redis_url, tmp_path):
    pages = {
        **PAGES,
        "/page.html": body_of(b"<!DOCTYPE html><html><body>Hello</body></html>", Content_Type="text/html"),
        "/inside.mp4": leads_to("http://169.254.169.254/latest/meta-data/"),
        "/broken.mp4": status(503),
    }
    with Web(pages) as web, Mill(rabbitmq_url, redis_url, tmp_path, ALLOWED_HOSTS=web.host, MAX_FAILURES=1) as mill:
        worker = mill.worker("errand", "-c", "1")
        for path, code, why in REFUSED:
            job = mill.wait(mill.submit("errand", given={"url": web.url + path}))
            assert (job.status, job.error.code, job.error.stage) == (Status.FAILED, code, "first")
            assert why in job.error.detail
        assert mill.result(mill.submit("errand", given={"url": f"{web.url}/street.mp4"}))["first"]
        assert worker.poll() is None


def test_a_pipeline_can_be_tried_with_a_url(tmp_path):
    pipeline = Path(__file__).parents[1] / "pipelines" / "errand"
    with Web(PAGES) as web:
        done = run(pipeline, {}, input={"url": f"{web.url}/street.mp4"}, folder=tmp_path, allowed_hosts=[web.host])
        assert done.result["second"] == hashlib.sha256(CLIP).hexdigest()
        with pytest.raises(BadInput, match="not public"):
            run(pipeline, {}, input={"url": f"{web.url}/street.mp4"})
