"""A worker that stands still ends itself; one whose neighbours are away does not."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
from urllib.parse import urlsplit

import pytest

from celery_worker.heartbeat import STOOD_STILL
from celery_worker.watchdog import Signs, Watchdog
from jobs.errors import BrokerUnavailable, StoreUnavailable
from tests.mill import Mill, children


class Neighbours:
    """What the signs say, set by hand."""

    def __init__(self):
        self.reserved, self.waiting, self.broker, self.store = set(), 0, True, True

    def depth(self):
        if not self.broker:
            raise BrokerUnavailable()
        return self.waiting

    def ping(self):
        if not self.store:
            raise StoreUnavailable()


@pytest.fixture
def neighbours():
    return Neighbours()


@pytest.fixture
def dog(neighbours):
    """A watchdog that is patient for ten seconds; what it says of each second until `until`."""
    dog = Watchdog(Signs(lambda: neighbours.reserved, neighbours.depth, neighbours.ping), 10.0)

    def watch(first, until, *, looped=True, holds=0, young=0):
        turned = first if looped else None
        for second in range(first, until):
            if said := dog.verdict(float(second), float(second) if looped is True else turned, holds, young):
                return said
        return None

    watch.dog = dog
    return watch


def test_an_idle_worker_and_one_with_long_parts_are_left_alone(dog, neighbours):
    assert dog(0, 200) is None
    neighbours.reserved = {"a", "b"}
    assert dog(200, 2_000, holds=2) is None


def test_a_main_loop_that_hangs_is_told_and_one_that_waits_for_its_broker_is_not(dog):
    assert dog(0, 500, looped=None) is None
    assert dog(500, 600, looped=False) is None
    assert dog.dog.verdict(640.0, 620.0, 0) == "main loop hangs"


def test_messages_that_do_not_come_are_told_unless_the_broker_is_away(dog, neighbours):
    neighbours.waiting, neighbours.broker = 5, False
    assert dog(0, 200) is None
    neighbours.broker = True
    assert dog(200, 240) == "connection is stale"


def test_signatures_that_no_child_takes_are_told_unless_the_store_is_away(dog, neighbours):
    neighbours.reserved = {"a"}
    neighbours.store = False
    assert dog(0, 200) is None
    neighbours.store = True
    assert dog(200, 230) == "pool hangs"


def test_a_long_part_that_is_let_go_a_moment_before_its_signature_is_no_reason(dog, neighbours):
    neighbours.reserved = {"a"}
    assert dog(0, 600, holds=1) is None
    assert dog(600, 603) is None
    neighbours.reserved = set()
    assert dog(603, 700) is None


def test_a_child_that_was_just_made_has_time_to_load_its_models(dog, neighbours):
    neighbours.reserved = {"a"}
    assert dog(0, 180, young=1) is None
    assert dog(180, 195) == "pool hangs"


def test_a_young_child_excuses_one_signature_and_no_more(dog, neighbours):
    neighbours.reserved = {"a", "b"}
    assert dog(0, 40, young=1) == "pool hangs"


def test_a_worker_whose_pool_hangs_ends_itself_and_its_parts_run_elsewhere(rabbitmq_url, redis_url, tmp_path):
    # Given a worker that has worked, and whose child then stands still
    with Mill(rabbitmq_url, redis_url, tmp_path, WATCHDOG_S=8) as mill:
        worker = mill.worker("io", "-c", "1")
        assert mill.result(mill.submit("addition", x=1, y=1), within_s=60) == 2
        for pid in children(worker):
            os.kill(pid, signal.SIGSTOP)
        # When jobs come
        job_id = mill.submit("addition", x=40, y=2)
        # Then it ends itself, and whoever starts it again gets the job done
        assert worker.wait(60) == STOOD_STILL, mill.logs()
        assert why(mill) == ["pool hangs"]
        mill.worker("io", "-c", "1")
        assert mill.result(job_id, within_s=50) == 42


def why(mill):
    """What a worker that ended itself said of it."""
    return re.findall(r'"why": "([a-z ]+)"', mill.logs())


class Wire:
    """A TCP proxy that can stop moving the bytes of the connections it has; new ones work."""

    def __init__(self, port):
        self._to, self._frozen = port, set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self):
        """Nothing of what is connected now moves any more, and nobody is told."""
        self._frozen |= set(self._sockets)

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._sockets += [near, far]
                for a, b in ((near, far), (far, near)):
                    threading.Thread(target=self._move, args=(a, b), daemon=True).start()

    def _move(self, a, b):
        with contextlib.suppress(OSError):
            while (data := a.recv(65_536)) and a not in self._frozen:
                b.sendall(data)
            if a not in self._frozen:
                b.shutdown(socket.SHUT_WR)

    def close(self):
        for one in (self._server, *self._sockets):
            one.close()


def test_a_worker_whose_connection_is_stale_ends_itself(rabbitmq_url, redis_url, tmp_path):
    # Given a worker that reaches its broker through a wire that goes dead without a word
    port = urlsplit(rabbitmq_url).port
    wire = Wire(port)
    with Mill(rabbitmq_url, redis_url, tmp_path, WATCHDOG_S=8) as mill, contextlib.closing(wire):
        worker = mill.worker("io", "-c", "1", BROKER_URL=rabbitmq_url.replace(f":{port}/", f":{wire.port}/"))
        assert mill.result(mill.submit("addition", x=1, y=1), within_s=60) == 2
        wire.freeze()
        # When jobs wait on its queue
        for _ in range(3):
            mill.submit("addition", x=1, y=1)
        # Then it ends itself; the main loop may hang in that connection before anybody asks after the jobs
        assert worker.wait(90) == STOOD_STILL, mill.logs()
        assert why(mill) in (["connection is stale"], ["main loop hangs"])
