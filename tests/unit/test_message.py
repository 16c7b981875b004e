"""Our prepared bytes say what Celery itself would have said."""

import json

from amqp.basic_message import Message as AmqpMessage
from celery import Celery

from jobs.message import amqp_properties, message, redis_envelope
from jobs.model import PartKey, Ring

RING = Ring(PartKey('0190-"é', 2, 7, 31), "video.inference", "inference", 9)


def test_a_ring_over_amqp_carries_what_celery_needs_to_run_it():
    # Given a ring, and Celery's own message for the same call
    prepared = message(RING)
    celery = Celery(set_as_current=False)
    theirs = celery.amqp.as_task_v2(prepared.id, RING.task, args=RING.at.as_args(), ignore_result=True)
    # When the bytes are read by the AMQP library
    read = AmqpMessage()
    read._load_properties(60, amqp_properties(prepared), 0)
    # Then every header we send equals Celery's, and the body is the same call
    headers = read.properties["application_headers"]
    same = {"lang", "task", "id", "root_id", "argsrepr", "kwargsrepr", "retries", "ignore_result"}
    assert {name: headers[name] for name in same} == {name: theirs.headers[name] for name in same}
    assert set(headers) - same == {"origin"}
    assert json.loads(prepared.body) == json.loads(json.dumps(theirs.body))
    properties = {name: read.properties[name] for name in read.properties if name != "application_headers"}
    assert properties == {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "delivery_mode": 2,
        "priority": 9,
        "correlation_id": prepared.id,
    }


def test_each_ring_has_an_id_of_its_own():
    assert message(RING).id != message(RING).id


def test_a_ring_over_redis_is_the_envelope_that_kombu_reads():
    envelope = json.loads(redis_envelope(prepared := message(RING), "inference", 0))
    assert json.loads(envelope["body"])[0] == list(RING.at.as_args())
    assert envelope["headers"]["task"] == "video.inference"
    assert envelope["properties"]["delivery_tag"] == prepared.id
    assert envelope["properties"]["delivery_info"] == {"exchange": "", "routing_key": "inference"}
