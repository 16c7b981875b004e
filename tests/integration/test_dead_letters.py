"""Signatures that no worker can take: where they end, what their parts show, and that the worker works on."""

from __future__ import annotations

import json

import kombu
import pytest

from jobs.brokers import DEAD_QUEUE, open_broker
from jobs.model import Status
from tests.mill import ROOT, Mill

EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
HEADERS = {"lang": "py", "task": "addition.add", "id": "letter", "root_id": "letter"}
GOOD = json.dumps([["job", 0, 0, 0], {}, EMBED])
BROKEN = {
    "no JSON": ("{", HEADERS, "application/json"),
    "not UTF-8": (b"\xff\xfe\x00", HEADERS, "application/json"),
    "a word": ('"x"', HEADERS, "application/json"),
    "a number": ("7", HEADERS, "application/json"),
    "nested": ("[" * 100_000, HEADERS, "application/json"),
    "three of something": ("[1,2,3]", HEADERS, "application/json"),
    "too few arguments": (json.dumps([["job"], {}, EMBED]), HEADERS, "application/json"),
    "a negative stage": (json.dumps([["job", -1, 0, 0], {}, EMBED]), HEADERS, "application/json"),
    "a pickle": (b"\x80\x04N.", HEADERS, "application/x-python-serialize"),
    "another media type": (GOOD, HEADERS, "text/plain"),
    "no headers": (GOOD, {}, "application/json"),
    "a task that is no text": (GOOD, {**HEADERS, "task": 7}, "application/json"),
    "an unknown task": (GOOD, {**HEADERS, "task": "nobody.knows"}, "application/json"),
}


@pytest.fixture
def mill(rabbitmq_url, redis_url, tmp_path):
    """Workers and sweepers on RabbitMQ, with quorum queues."""
    with Mill(rabbitmq_url, redis_url, tmp_path, QUEUE_TYPE="quorum") as mill:
        yield mill


def letters(mill):
    """How many lie in the dead-letter queue."""
    broker = open_broker(mill.settings.broker_url, mill.settings.queue_type)
    try:
        return broker.depth(DEAD_QUEUE)
    finally:
        broker.close()


def test_a_part_whose_stage_no_worker_knows_stays_ready_and_goes_on_once_one_does(mill):
    # Given a worker of an older version, without the pipeline, and a sweeper
    old = mill.worker("io", "-c", "1", PIPELINE_DIRS=ROOT / "tests" / "pipelines")
    mill.sweeper()
    job_id = mill.submit("addition", x=40, y=2)
    # When its signatures come back again and again
    mill.until(lambda: mill.store.get(job_id).stages[0].no_worker >= 2, within_s=60, what="two letters")
    # Then they are dead letters, a few of them, and the job says what it waits for
    assert 2 <= letters(mill) <= 6, mill.logs()
    job = mill.store.get(job_id)
    assert (job.status, job.stages[0].status) == (Status.ACCEPTED, "no worker")
    # When one comes in its place that knows the stage
    old.terminate()
    mill.worker("io", "-c", "1")
    # Then the job goes on by itself
    assert mill.result(job_id, within_s=60) == 42


def test_a_broken_signature_is_a_dead_letter_and_stops_nobody(rabbitmq_url, redis_url, tmp_path):
    # Given a worker, and a queue with everything that a signature must not be
    with Mill(rabbitmq_url, redis_url, tmp_path) as mill:
        mill.worker("io", "-c", "1")
        assert mill.result(mill.submit("addition", x=1, y=1), within_s=60) == 2
        with kombu.Connection(rabbitmq_url) as connection, connection.channel() as channel:
            for body, headers, content_type in BROKEN.values():
                message = channel.prepare_message(body, None, content_type, "utf-8", headers, {})
                channel.basic_publish(message, exchange="", routing_key="io")
        # When the worker has seen them
        mill.until(lambda: letters(mill) == len(BROKEN), within_s=30, what="every letter")
        # Then it still works, and has not been started anew
        assert mill.result(mill.submit("addition", x=40, y=2), within_s=30) == 42
        assert all(process.poll() is None for process in mill.processes)
