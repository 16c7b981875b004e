"""What workers and sweepers serve at METRICS_PORT, and that it stands in nobody's way."""

import json
import os
import signal
import socket
import time
from contextlib import closing

import httpx2
import psycopg2
import pytest
from prometheus_client import generate_latest

from api.metrics import of_store
from jobs.brokers import DEAD_QUEUE, redis_list
from jobs.model import Status
from jobs.store import open_store
from jobs.trace import new, span_id, trace_id
from tests.collector import Collector
from tests.mill import Mill
from tests.neighbours import Valkey, free_port
from tests.scraping import answers, scraped
from tests.store_steps import put

ADDED = 'pipeline="addition",stage="add"'
SWALLOWED = 'pipeline="poison",stage="swallow"'


UPS = ("gristmill_store_up", "gristmill_broker_up", "gristmill_files_up")
LIMITS = {"MAX_LOSSES": 1, "MAX_FAILURES": 1}


@pytest.fixture
def mill(redis_url, tmp_path):
    with Mill(f"{redis_url[:-1]}1", redis_url, tmp_path, **LIMITS) as mill:
        yield mill
        for process in mill.processes:  # politely: one that supervises others ends them
            process.terminate()
        for process in mill.processes:
            process.wait(30)


def test_a_worker_counts_its_parts_by_how_they_ended(mill):
    # Given a worker of two queues, and a sweeper
    port = free_port()
    mill.worker("io,poison", "-c", "1", "--grace", "1", METRICS_PORT=port)
    mill.start("sweeper", ["-m", "jobs.sweeper"])
    mill.until(lambda: answers(port) and answers(port + 1), within_s=60, what="both ports")
    # When parts end in every way
    dismissed = mill.submit("poison", how="nap", seconds=60)
    mill.until(lambda: scraped(port + 1).get(f"gristmill_parts_running{{{SWALLOWED}}}") == 1, what="the nap to begin")
    mill.store.dismiss(dismissed)
    for x in range(3):
        mill.result(mill.submit("addition", x=x, y=1))
    for job_id in [mill.submit("poison", how=how) for how in ("nothing", "sys_exit", "bad_input", "kill_self")]:
        mill.wait(job_id, within_s=60)
    mill.until(lambda: scraped(port + 1)["gristmill_worker_children"] == 1, what="the next child")
    # Then each queue's worker has counted its own, the children's deaths too
    finished = f'gristmill_part_ran_seconds_count{{outcome="finished",{ADDED}}}'
    mill.until(lambda: scraped(port).get(finished) == 3, what="the additions to be counted")
    io, poison = scraped(port), scraped(port + 1)
    assert io[f"gristmill_part_waited_seconds_count{{{ADDED}}}"] == 3
    assert io['gristmill_worker_info{device="cpu",queues="io"}'] == 1
    ended = {
        outcome: poison.get(f'gristmill_part_ran_seconds_count{{outcome="{outcome}",{SWALLOWED}}}')
        for outcome in ("finished", "failure", "loss", "bad_input", "lost", "given_back")
    }
    assert ended == {"finished": 1, "failure": 1, "loss": 1, "bad_input": 1, "lost": 1, "given_back": None}
    assert poison[f"gristmill_parts_running{{{SWALLOWED}}}"] == 0
    assert poison['gristmill_worker_children_died_total{why="worker-lost"}'] == 1
    assert poison["process_resident_memory_bytes"] > 1 << 20


def test_a_worker_counts_what_its_parts_kept_and_how_long_they_waited(mill):
    # Given a job that waits for its worker
    port = free_port()
    job_id = mill.submit("mill", parts=2)
    time.sleep(1)
    # When workers come, and its last stage keeps a file
    mill.worker("split", "-c", "1", METRICS_PORT=port)
    for queue in ("grind", "gather"):
        mill.worker(queue, "-c", "1", METRICS_PORT=(gathering := free_port()))
    mill.result(job_id, within_s=60)
    # Then the file's bytes and the wait are told
    [kept] = mill.store.artifacts(job_id)
    told = 'gristmill_kept_bytes_total{pipeline="mill",stage="gather"}'
    mill.until(lambda: scraped(gathering).get(told) == kept.bytes, what="the file's bytes")
    assert scraped(port)['gristmill_part_waited_seconds_sum{pipeline="mill",stage="split"}'] > 1


def test_without_a_port_nothing_listens(mill):
    # Given a worker as it starts by default
    worker = mill.worker("io", "-c", "1")
    mill.result(mill.submit("addition", x=1, y=1), within_s=60)
    # Then it has no listening TCP socket
    inodes = {os.readlink(f"/proc/{worker.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{worker.pid}/fd")}
    with open(f"/proc/{worker.pid}/net/tcp") as table:
        listening = [line.split()[9] for line in table if " 0A " in line]
    assert [inode for inode in listening if f"socket:[{inode}]" in inodes] == []


def test_a_port_that_is_taken_stops_no_work_and_is_tried_again(mill):
    # Given a port that somebody else listens on
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        # When a worker should serve its gauges there
        mill.worker("io", "-c", "1", METRICS_PORT=port)
        # Then it works all the same, and says what is wrong
        mill.result(mill.submit("addition", x=1, y=1), within_s=60)
        mill.until(lambda: "metrics_port_taken" in mill.logs(), what="the complaint")
    # And once the port is free, the gauges are there
    mill.until(lambda: answers(port), what="the port")
    finished = f'gristmill_part_ran_seconds_count{{outcome="finished",{ADDED}}}'
    mill.until(lambda: scraped(port).get(finished) == 1, what="the part to be counted")


def test_a_worker_that_was_killed_leaves_its_port_to_the_next(mill):
    # Given a worker with a child at work, killed
    port = free_port()
    first = mill.worker("poison", "-c", "1", METRICS_PORT=port)
    mill.started(mill.submit("poison", how="deaf", seconds=2))
    first.send_signal(signal.SIGKILL)
    # When another starts in its place, then it serves
    mill.worker("poison", "-c", "1", METRICS_PORT=port)
    first.wait()
    mill.until(lambda: answers(port) and scraped(port)["gristmill_worker_children"] == 1, within_s=40, what="the next")


def test_nonsense_sent_to_the_port_harms_nothing(mill):
    # Given a worker
    port = free_port()
    mill.worker("io", "-c", "1", METRICS_PORT=port)
    mill.until(lambda: answers(port), within_s=60, what="the port")
    # When clients send what is not HTTP, a form, an endless path, or nothing at all and stay
    for words in (b"\x00\xff" * 500, b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sending:
            sending.sendall(words)
    assert httpx2.post(f"http://127.0.0.1:{port}/metrics", content=b"x" * 1_000_000).status_code in (200, 405)
    silent = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(20)]
    # Then it answers others, and works
    assert answers(port)
    mill.result(mill.submit("addition", x=1, y=1))
    for one in silent:
        one.close()


def test_a_sweeper_tells_what_waits_what_is_dead_and_what_it_rang_again(mill):
    # Given a sweeper, two jobs that wait, one of them never rung, a dead part, and an upload
    port = free_port()
    mill.files.put("uploads/one", b"x" * 100)
    mill.worker("poison", "-c", "1")
    assert mill.wait(mill.submit("poison", how="sys_exit"), within_s=60).status is Status.FAILED
    mill.submit("addition", x=1, y=1)
    mill.submit("addition", x=1, y=2, ring=False)
    mill.start("sweeper", ["-m", "jobs.sweeper"], METRICS_PORT=port)
    mill.until(lambda: answers(port), within_s=30, what="the port")
    mill.until(lambda: scraped(port).get('gristmill_rings_repeated_total{why="unrung"}') == 1, what="the ring")
    mill.bell._broker._client.lpush(redis_list(DEAD_QUEUE, 0), "a letter")
    # Then all of it is told, once the answers that were kept are old
    waits = ('gristmill_queue_messages{queue="io"}', 'gristmill_parts_rung{queue="io"}')
    mill.until(lambda: {scraped(port).get(name) for name in waits} == {2}, what="both to be on the queue")
    mill.until(lambda: scraped(port)["gristmill_dead_letters"] == 1, what="the letter")
    told = scraped(port)
    assert told['gristmill_queue_messages{queue="inference"}'] == told['gristmill_parts_rung{queue="inference"}'] == 0
    assert told['gristmill_oldest_part_seconds{pipeline="addition",stage="add"}'] > 2
    assert (told["gristmill_jobs_waiting"], told["gristmill_dead_letters"]) == (2, 1)
    assert told["gristmill_dead_parts"] >= 1
    assert 0 < told["gristmill_files_free_bytes"] <= told["gristmill_files_size_bytes"]
    assert told['gristmill_files_stored{folder="uploads"}'] == 1
    assert told['gristmill_files_stored_bytes{folder="uploads"}'] == 100
    assert time.time() - 60 < told["gristmill_files_walked_timestamp_seconds"] <= time.time()
    assert told["gristmill_sweep_seconds_count"] >= 2
    assert [told[name] for name in UPS] == [1, 1, 1]


def test_a_sweeper_tells_who_is_away(tmp_path):
    # Given a sweeper whose neighbours answer
    port = free_port()
    with Valkey() as broker, Valkey() as store, Mill(broker.url, store.url, tmp_path) as mill:
        mill.start("sweeper", ["-m", "jobs.sweeper"], METRICS_PORT=port)
        mill.until(lambda: answers(port) and sum(scraped(port)[name] for name in UPS) == 3, within_s=30, what="all")
        # When broker and store are away
        broker.kill()
        store.kill()
        # Then it says so, and names no depth that it does not know
        mill.until(lambda: scraped(port)["gristmill_store_up"] == 0, what="the store's absence to be told")
        told = scraped(port)
        assert [told[name] for name in UPS] == [0, 0, 1]
        assert not any(name.startswith(("gristmill_queue_messages", "gristmill_parts_rung")) for name in told)
        # And is well again with them
        broker.start()
        store.start()
        mill.until(lambda: sum(scraped(port)[name] for name in UPS) == 3, within_s=30, what="both to be back")


def test_a_history_that_takes_too_long_to_count_does_not_make_the_store_look_away(postgres_url, make_job):
    # Given a store that answers, but does not count its jobs in time: somebody locks their table
    with closing(open_store(postgres_url)) as store, closing(psycopg2.connect(postgres_url)) as link:
        put(store, make_job())
        gauges = of_store(store)
        link.cursor().execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        # Then its jobs are not told, and it is up
        assert "gristmill_jobs{" not in (told := generate_latest(gauges).decode())
        assert "gristmill_store_up 1.0" in told
        # And it is not asked again at once
        began = time.monotonic()
        generate_latest(gauges)
        assert time.monotonic() - began < 1


def test_an_attempt_whose_whole_worker_was_lost_is_told_by_the_sweeper(mill):
    # Given a worker that dies with its part, parent and all, and a collector of spans
    port, trace = free_port(), new()
    with Collector() as collector:
        mill.start("sweeper", ["-m", "jobs.sweeper"], METRICS_PORT=port, OTLP_URL=collector.url)
        worker = mill.worker("poison", "-c", "1")
        mill.started(job_id := mill.submit("poison", trace=trace, how="deaf", seconds=60))
        worker.kill()
        # Then the end of its lease is counted
        ended = "gristmill_leases_ended_total"
        mill.until(lambda: answers(port) and scraped(port)[ended] == 1, what="the lease to end")
        # And its span is told, inside of the request's
        collector.until(lambda: collector.of(trace_id(trace)))
    [span] = collector.of(trace_id(trace))
    about = {"job_id": job_id, "stage": "swallow", "index": 0, "fence": 1}
    assert (span.service, span.name, span.parent) == ("gristmill-sweeper", "poison.swallow", span_id(trace))
    assert (span.about, span.error) == ({**about, "outcome": "loss"}, "worker-lost")
    assert mill.settings.lease_s - 1 < span.ended - span.began < 60
    # And so is a line of its log, with all that leads to it
    [line] = [line for line in mill.logs().splitlines() if '"lease_ended"' in line]
    told = json.loads(line)
    assert {name: told[name] for name in (*about, "trace_id")} == {**about, "trace_id": trace_id(trace)}
