"""Many jobs at once: who is refused and when he may come again, and where those stand who wait."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from api.pressure import LONGEST_S, UNKNOWN_S, Promises
from jobs.model import PartKey, Pressure
from jobs.store import open_store
from tests.ageing import age
from tests.gateways import Gateway
from tests.neighbours import free_port

BODY = {"pipeline": "addition", "params": {"x": 1, "y": 2}}


@pytest.fixture
def narrow(redis_url, tmp_path):
    """A gateway in front of which two jobs may wait, with an empty store."""
    with Gateway(free_port(), redis_url, f"{redis_url[:-1]}1", tmp_path, MAX_WAITING="2") as gateway:
        yield gateway


def test_a_full_gateway_answers_429_and_says_when_there_is_room(narrow, redis_url):
    # Given a gateway that has started twenty jobs in the last ten seconds, and two that wait
    store = open_store(redis_url)
    with narrow.client() as client:
        for n in range(20):
            job_id = client.post("/process", json=BODY).json()["id"]
            assert store.claim(PartKey(job_id, 0), "test", f"token-{n}", 60.0)
        waiting = [client.post("/process", json=BODY, headers={"Idempotency-Key": f"k{n}"}).json() for n in range(2)]
        age(redis_url, 10)
        # When more come
        refused = [client.post("/process", json=BODY) for _ in range(5)]
        # Then they are refused as a problem, each told to come when its turn is likely
        assert {answer.status_code for answer in refused} == {429}
        assert refused[0].json() | {"detail": ""} == {
            "type": "/problems/too-many-waiting",
            "title": "Too many jobs are waiting; try again later.",
            "status": 429,
            "detail": "",
            "waiting": 2,
            "limit": 2,
        }
        waits = [int(answer.headers["retry-after"]) for answer in refused]
        assert (waits[0], waits) == (1, sorted(waits))
        assert 3 <= waits[-1] <= 6  # five, at two a second or, on a slow machine, a little less
        # And who only repeats what was accepted is answered
        again = client.post("/process", json=BODY, headers={"Idempotency-Key": "k0"})
        assert (again.status_code, again.json()["id"]) == (202, waiting[0]["id"])
        # And there is room once one has begun
        assert store.claim(PartKey(waiting[0]["id"], 0), "test", "token-x", 60.0)
        assert client.post("/process", json=BODY).status_code == 202


def test_a_job_tells_its_place_and_when_it_is_likely_to_start(narrow, redis_url):
    # Given a line that starts one job a second, and two jobs that wait
    store = open_store(redis_url)
    with narrow.client() as client:
        for n in range(10):
            job_id = client.post("/process", json=BODY).json()["id"]
            assert store.claim(PartKey(job_id, 0), "test", f"token-{n}", 60.0)
        age(redis_url, 10)
        first, second = (client.post("/process", json=BODY).json()["id"] for _ in range(2))
        # When the second one is asked for
        answer = client.get(f"/jobs/{second}")
        # Then it is the second, and likely to start in two seconds
        assert answer.json()["queue_position"] == 2
        start = datetime.fromisoformat(answer.json()["estimated_start"]).timestamp()
        assert start == pytest.approx(time.time() + 2, abs=3)
        # When the first begins, the answer is another one; until then it is the same
        known = {"If-None-Match": answer.headers["etag"]}
        assert client.get(f"/jobs/{second}", headers=known).status_code == 304
        assert store.claim(PartKey(first, 0), "test", "token-y", 60.0)
        assert client.get(f"/jobs/{second}", headers=known).json()["queue_position"] == 1
        # And who waits for a change is not woken by that
        began = time.monotonic()
        assert client.get(f"/jobs/{second}", headers={**known, "Prefer": "wait=1"}).status_code == 200
        assert time.monotonic() - began > 0.9
        # And one that has begun has no place any more
        assert "queue_position" not in client.get(f"/jobs/{first}").json()


def test_a_promise_counts_those_who_were_refused_before_and_forgets_them_with_time():
    # Given a store that starts two jobs a second and has one too many, and a clock that is set by hand
    class Store:
        waiting, per_s = 11, 2.0

        def pressure(self):
            return Pressure(self.waiting, self.per_s)

    now = [100.0]
    promises = Promises(Store(), clock=lambda: now[0])
    # Then each one who is refused stands behind the ones before
    assert [promises.next(10) for _ in range(4)] == [1, 2, 2, 3]
    # And two seconds later four of them have had their time
    now[0] += 2.0
    assert promises.next(10) == 1
    # And where nothing moves, nobody knows; where it would take days, nobody waits
    Store.per_s = 0.0
    now[0] += 2.0
    assert promises.next(10) == UNKNOWN_S
    Store.waiting, Store.per_s = 10_000_000, 0.5
    now[0] += 2.0
    assert promises.next(10) == LONGEST_S
