"""Rings on real brokers: what is confirmed is there, in order of priority, and an absent broker holds nobody up."""

import time

import kombu
import pytest

from jobs.brokers import AmqpBroker, RedisBroker, open_broker
from jobs.dispatch import Bell, Ringer
from jobs.model import PartKey, Ring
from tests.neighbours import Valkey, any_rabbitmq, free_port


class Listener:
    """Notes what the store is told; dispatch needs one method of it."""

    def __init__(self):
        self.rung_keys = []

    def rung(self, rings):
        self.rung_keys += [ring.at for ring in rings]


def rings(*priorities, queue="io"):
    return [Ring(PartKey(f"job-{n}", 0), "echo.only", queue, priority) for n, priority in enumerate(priorities)]


def taken(url, queue, count, options=None):
    """What a consumer that has kombu's own reading of the queue gets, in order."""
    with kombu.Connection(url, transport_options=options or {}) as connection:
        simple = connection.SimpleQueue(kombu.Queue(queue, kombu.Exchange(""), no_declare=True))
        found = []
        for _ in range(count):
            got = simple.get(timeout=5)
            found.append((got.payload[0][0], got.headers["task"]))
            got.ack()
        simple.close()
    return found


@pytest.fixture(params=["rabbitmq", "redis"])
def broker_url(request):
    return request.getfixturevalue(f"{request.param}_url")


def test_what_is_confirmed_is_on_the_queue_and_the_highest_priority_comes_first(broker_url):
    # Given five rings of different priorities
    broker = open_broker(broker_url)
    sent = rings(0, 9, 5, 3, 4)
    # When they are published
    assert {ring.at for ring in broker.publish(sent)} == {ring.at for ring in sent}
    # Then all are there, and come 9, 5, 4, 3, 0
    assert broker.depth("io") == 5
    found = taken(broker_url, "io", 5, {"priority_steps": list(range(10))} if "redis" in broker_url else None)
    assert found == [(f"job-{n}", "echo.only") for n in (1, 2, 4, 3, 0)]
    assert broker.depth("io") == 0
    broker.close()


def test_a_queue_nobody_declared_is_empty_and_the_connection_goes_on(broker_url):
    broker = open_broker(broker_url)
    assert broker.depth("nobody") == 0
    assert len(broker.publish(rings(4))) == 1
    assert broker.depth("io") == 1
    broker.close()


def test_a_queue_nobody_declared_may_be_asked_for_as_often_as_one_likes(rabbitmq_url):
    # Given RabbitMQ, whose connections have 2,047 channels at most, and answer such a question by closing one
    broker = open_broker(rabbitmq_url)
    # When a sweeper asks longer than that
    # Then it is answered
    assert {broker.depth("nobody") for _ in range(2_100)} == {0}
    broker.close()


def test_quorum_queues_have_names_of_their_own(rabbitmq_url):
    broker = AmqpBroker(rabbitmq_url, "quorum")
    assert len(broker.publish(rings(4, 4))) == 2
    assert taken(rabbitmq_url, "io.quorum", 2) == [("job-0", "echo.only"), ("job-1", "echo.only")]
    broker.close()


def test_a_queue_deleted_under_the_publisher_is_not_taken_for_confirmed(rabbitmq_url):
    # Given a publisher that has declared its queue
    broker = AmqpBroker(rabbitmq_url, "classic")
    broker.publish(rings(4))
    # When the queue is deleted
    with kombu.Connection(rabbitmq_url) as connection:
        connection.default_channel.queue_delete("io")
    # Then the next ring is not confirmed, and the one after it declares the queue anew
    assert broker.publish(rings(4)) == []
    assert len(broker.publish(rings(4))) == 1
    broker.close()


def test_a_ringer_publishes_and_tells_the_store(broker_url):
    told = Listener()
    ringer = Ringer(open_broker(broker_url), told)
    ringer.offer(offered := rings(*[4] * 1_000))
    assert ringer.drain(10)
    ringer.close()
    assert sorted(told.rung_keys) == sorted(ring.at for ring in offered)


def test_an_absent_broker_holds_up_nobody_who_offers():
    # Given a broker that is not there
    told = Listener()
    ringer = Ringer(open_broker(f"amqp://guest:guest@127.0.0.1:{free_port()}/"), told, waiting=100)
    # When far more is offered than fits
    started = time.monotonic()
    for _ in range(50):
        ringer.offer(rings(*[4] * 10))
    # Then each offer returned at once, and nothing is taken for rung
    assert time.monotonic() - started < 0.2
    ringer.close()
    assert told.rung_keys == []


def test_a_bell_finds_a_broker_that_came_back():
    with Valkey() as server:
        told = Listener()
        bell = Bell(RedisBroker(server.url, "classic"), told.rung)
        assert bell.ring(rings(4)) == 1
        server.kill()
        assert bell.ring(rings(4)) == 0
        started = time.monotonic()
        assert bell.ring(rings(4)) == 0  # left alone: costs nothing
        assert time.monotonic() - started < 0.05
        server.start()
        until = time.monotonic() + 10
        while not bell.ring(rings(4)):
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_broker_under_a_memory_alarm_is_given_up_within_seconds():
    with any_rabbitmq() as server:
        broker = open_broker(server.url)
        bell = Bell(broker, Listener().rung)
        assert bell.ring(rings(4)) == 1
        # Given an alarm
        server.control("set_vm_memory_high_watermark", "0.0001")
        time.sleep(1)
        # When rings are tried
        started = time.monotonic()
        assert bell.ring(rings(4)) == 0
        # Then it took seconds, not for ever
        assert time.monotonic() - started < 9
        server.control("set_vm_memory_high_watermark", "0.6")
        until = time.monotonic() + 15
        while not bell.ring(rings(4)):
            assert time.monotonic() < until
            time.sleep(0.1)
