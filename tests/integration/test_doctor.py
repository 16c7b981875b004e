"""`gristmill doctor` against real servers: each check with a case in which it must complain."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import checkup, checkup_broker
from jobs.errors import StoreUnavailable
from jobs.pipeline import Pipelines
from jobs.settings import Settings
from jobs.store import open_store
from tests.ageing import age
from tests.conftest import ROOT
from tests.mill import Mill
from tests.neighbours import Valkey, free_port
from tests.store_steps import put

REAL = Pipelines([ROOT / "celery_worker" / "pipelines"])
REDIS, RABBITMQ = "redis://:k4fXw@127.0.0.1/0", "amqp://mill:k4fXw@127.0.0.1//"


def settings(**changes):
    """Settings in which nothing is unsafe but what is changed."""
    return Settings(**{"store_url": REDIS, "broker_url": RABBITMQ, "files_url": "file:///tmp", **changes})


def verdicts(findings):
    """What was found, by check."""
    return {one.check: one.verdict for one in findings}


def test_a_redis_that_forgets_is_unsafe(redis_url):
    # Given Redis as the promises need it, and as it comes
    store = open_store(redis_url)
    well = verdicts(checkup.records(settings(store_url=redis_url), store))
    assert well == {"store": "ok", "store AOF": "ok", "store eviction": "ok"}
    # Then no AOF, an AOF that lags, and eviction are each told, of the broker too
    with Valkey("--appendonly", "no", "--maxmemory-policy", "allkeys-lru", "--maxmemory", "100mb") as loose:
        found = verdicts(checkup.records(settings(store_url=loose.url, broker_url=loose.url), open_store(loose.url)))
        assert {check for check, verdict in found.items() if verdict == "unsafe"} == {
            "store AOF",
            "store eviction",
            "broker AOF",
            "broker eviction",
        }
    with Valkey("--appendfsync", "everysec") as lagging:
        found = verdicts(checkup.records(settings(store_url=lagging.url), open_store(lagging.url)))
        assert found["store AOF"] == "unsafe"
    # And a store that is away is no ok
    with pytest.raises(StoreUnavailable):
        list(checkup.records(settings(), open_store(f"redis://127.0.0.1:{free_port()}/0")))


@pytest.mark.parametrize(
    ("url", "verdict"),
    [
        (REDIS, "ok"),
        ("redis://127.0.0.1/0", "ok"),
        ("redis://:insecure-redis@redis/0", "unsafe"),
        ("redis://10.0.0.7/0", "unsafe"),
        ("postgresql://postgres:postgres@db/gristmill", "unsafe"),
    ],
)
def test_open_and_default_passwords_are_unsafe(url, verdict):
    assert verdicts(checkup.passwords(settings(store_url=url)))["store password"] == verdict


def test_the_default_user_of_rabbitmq_is_unsafe():
    assert (
        verdicts(checkup.passwords(settings(broker_url="amqp://guest:guest@rabbitmq//")))["broker password"] == "unsafe"
    )


def test_a_clock_that_is_off_is_unsafe(store):
    # Given a clock that agrees, and clocks that are two hours off
    assert verdicts(checkup.clock(store, time.time)) == {"clock": "ok"}
    for off in (7_200, -7_200):
        (found,) = checkup.clock(store, lambda off=off: time.time() + off)
        # Then it is told which way
        assert (found.verdict, f"{off:+d}" in found.text.replace(".0", "")) == ("unsafe", True)


def test_a_disk_that_is_nearly_full_is_unsafe(tmp_path, monkeypatch):
    # Given files on a disk with room for a small upload
    small = settings(files_url=tmp_path.as_uri(), max_upload_bytes=1)
    assert verdicts(checkup.disk(small)) == {"disk": "ok"}
    # Then it is unsafe for an upload larger than the disk, and once it is nearly full
    assert verdicts(checkup.disk(settings(files_url=tmp_path.as_uri(), max_upload_bytes=10**18))) == {"disk": "unsafe"}
    monkeypatch.setattr(checkup, "FULL", 0.0)
    assert verdicts(checkup.disk(small)) == {"disk": "unsafe"}


def test_a_stage_that_waits_longer_than_its_time_limit_is_unsafe(store, store_url, make_job):
    # Given an addition that waits, which may run for as long as its pipeline says
    put(store, make_job("add", pipeline="addition"))
    assert verdicts(checkup.waits(store, REAL)) == {"waits": "ok"}
    age(store_url, REAL["addition"].stages[0].time_limit + 5)
    # Then it is told which one
    (found,) = checkup.waits(store, REAL)
    assert (found.verdict, found.text.split()[0]) == ("unsafe", "addition.add")


def test_a_gpu_that_was_reserved_and_is_not_seen_is_unsafe(monkeypatch):
    seen = "ok" if list(Path("/dev").glob("nvidia[0-9]*")) else "unsafe"
    monkeypatch.delenv("NVIDIA_VISIBLE_DEVICES", raising=False)
    assert verdicts(checkup.gpu(settings(device="auto"))) == {"gpu": "ok"}
    assert verdicts(checkup.gpu(settings(device="0"))) == {"gpu": seen}
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")
    assert verdicts(checkup.gpu(settings())) == {"gpu": seen}


@pytest.mark.parametrize("broker", ["rabbitmq", "redis"])
def test_a_queue_that_nobody_takes_from_is_unsafe(request, broker, redis_url, tmp_path):
    # Given a worker for one of the queues
    broker_url = request.getfixturevalue("rabbitmq_url") if broker == "rabbitmq" else f"{redis_url[:-1]}1"
    with Mill(broker_url, redis_url, tmp_path) as mill:
        mill.worker("io", "-c", "1")
        assert mill.result(mill.submit("addition", x=1, y=1), within_s=60) == 2
        # When the queues are looked at
        found = {one.text.split()[-1].strip("."): one for one in checkup_broker.queues(mill.settings, mill.store, REAL)}
        # Then the others are unsafe
        assert [one.text for one in found.values() if one.verdict == "ok"] == ["io has a worker."]
        assert found["preprocess"].verdict == "unsafe"


def test_a_consumer_timeout_below_a_stages_limit_is_unsafe(rabbitmq, tmp_path):
    # Given RabbitMQ as it comes, which gives a worker half an hour, and pipelines with short and with long stages
    binary = (
        "/usr/lib/rabbitmq/bin/rabbitmqctl" if Path("/usr/lib/rabbitmq/bin/rabbitmqctl").exists() else "rabbitmqctl"
    )
    tool = shlex.join(["env", *(f"{k}={v}" for k, v in rabbitmq._environment().items()), binary, "-n", rabbitmq.node])
    for name, limit in (("short", 60), ("long", 3_600)):
        (tmp_path / name).mkdir()
        text = f"title: A stage\nstages: [{{name: only, queue: io, time_limit: {limit}}}]\n"
        (tmp_path / name / "pipeline.yaml").write_text(text)
        found = checkup_broker.consumer_timeout(settings(), Pipelines([tmp_path]), tool)
        # Then only the long one is unsafe
        assert verdicts(found) == {"consumer timeout": "ok" if name == "short" else "unsafe"}
    # And where the tool cannot be called, it says what is wanted
    (unknown,) = checkup_broker.consumer_timeout(settings(), Pipelines([tmp_path]), "no-such-tool")
    assert (unknown.verdict, "3660 s" in unknown.text) == ("unknown", True)


def test_the_command_tells_every_check_and_exits_1_when_something_is_unsafe(redis_url):
    # Given an installation without a worker
    env = {**os.environ, "STORE_URL": redis_url, "BROKER_URL": f"{redis_url[:-1]}1", "FILES_URL": "file:///tmp"}
    command = [sys.executable, "-m", "gristmill", "doctor", "--json"]
    # When it is looked at
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    # Then every check has an answer
    found = json.loads(done.stdout)
    assert done.returncode == 1, done.stdout
    assert {one["check"] for one in found} >= {"store", "store AOF", "clock", "disk", "waits", "gpu", "queues"}
    assert [one["verdict"] for one in found if one["check"] == "queues"] == ["unsafe"] * len(REAL.queues)
