"""What a job costs beside FastAPI and a Celery chain, and how fast jobs are accepted: `make bench-overhead`.

overhead: three empty stages, POST to result over HTTP, one client; the p50 of each round.
submit: 16 clients and 2 gateway processes, workers stopped, from the first POST to the last signature on its queue.
Both sides share one RabbitMQ and one Redis with AOF `always`, and stay up while the other one is measured.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from bench.load import connect, depth
from bench.rounds import figure, interleave, machine, ratios
from bench.servers import ROOT, Servers
from jobs.store import JobStore, open_store

WAITED = {"Content-Type": "application/json", "Prefer": "wait=30"}
EMPTIES = json.dumps({"pipeline": "empties"})
ADDITION = json.dumps({"pipeline": "addition", "params": {"x": 40, "y": 2}})


def main() -> int:
    """Both benches; the figures last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=100, help="of one round of the overhead")
    parser.add_argument("--submissions", type=int, default=3_000, help="of one round of the submit rate")
    parser.add_argument("--only", choices=("overhead", "submit"))
    asked = parser.parse_args()
    print(machine(), flush=True)
    lines = []
    if asked.only != "submit":
        lines += overhead(asked.rounds, asked.requests)
    if asked.only != "overhead":
        lines += submit(asked.rounds, asked.submissions)
    print("\n".join(lines))
    return 0


def overhead(rounds: int, requests: int) -> list[str]:
    """POST to result, beside the chain."""
    print(f"overhead: p50 of {requests} jobs of three empty stages, in ms", flush=True)
    with Servers() as servers:
        ours = servers.our_gateway()
        servers.our_sweeper()
        for queue in ("empty_one", "empty_two", "empty_three"):
            servers.our_worker(queue)
        peer = servers.peer_gateway("bench.peers.chain:app")
        servers.peer_worker("bench.peers.chain:celery", children=2)

        def our_round() -> float:
            return post_many(ours, EMPTIES, requests)

        def peer_round() -> float:
            return post_many(peer, "{}", requests, may_fail=True)

        our_round(), peer_round()
        pairs = interleave(our_round, peer_round, rounds, "ms")
    return [
        figure("overhead_ratio", ratios(pairs), "at most 1.25"),
        figure("overhead_added_ms", [mine - other for mine, other in pairs], "as few as can be"),
    ]


def post_many(port: int, body: str, requests: int, *, may_fail: bool = False) -> float:
    """The p50 in milliseconds of so many POSTs, one after the other on one connection; each must have a result.

    `may_fail`: Celery's Redis results lose one now and then when threads wait for them. That is the peer's to bear,
    but not a figure: it is left out and told.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    took, lost = [], 0
    while len(took) < requests:
        began = time.perf_counter()
        connection.request("POST", "/process", body, WAITED)
        answer = connection.getresponse()
        content = answer.read()
        seconds = time.perf_counter() - began
        document = json.loads(content) if answer.status == 200 else {}
        if "result" in document and document.get("status", "successful") == "successful":
            took.append(seconds)
        elif may_fail and lost < requests:
            lost += 1
        else:
            raise RuntimeError(f"{answer.status}: {content.decode(errors='replace')[:2_000]}")
    connection.close()
    if lost:
        print(f"  ({lost} results of {requests + lost} never came)")
    return statistics.median(took) * 1e3


def submit(rounds: int, submissions: int) -> list[str]:
    """Acceptances a second, beside `delay()`."""
    print(f"submit: {submissions} POSTs of 16 clients until all are queued, in jobs a second", flush=True)
    with Servers() as servers:
        ours = servers.our_gateway()
        servers.our_sweeper()
        peer = servers.peer_gateway("bench.peers.delay:app")
        store = open_store(servers.our_store)

        def our_round() -> float:
            found = load(servers, [ours], ADDITION, submissions, servers.our_broker, "io")
            # Ended before their signatures are taken away: a sweeper would miss those, and ring again.
            end_all(store, found["ids"])
            check(found["ids"], [arguments[0] for _, arguments in drain(servers.our_broker, "io")])
            return submissions / found["queued_s"]

        def peer_round() -> float:
            found = load(servers, [peer], ADDITION, submissions, servers.peer_broker, "peer-delay")
            check(found["ids"], [headers["id"] for headers, _ in drain(servers.peer_broker, "peer-delay")])
            return submissions / found["queued_s"]

        our_round(), peer_round()
        pairs = interleave(our_round, peer_round, rounds, "jobs/s")
        store.close()
    return [figure("submit_ratio", ratios(pairs), "at least 1.0, aim at 1.5")]


def load(servers: Servers, ports: Sequence[int], body: str, requests: int, broker: str, queue: str) -> dict:
    """Run the clients in a process of their own."""
    out = servers.folder / "load.json"
    where = ["--port", *map(str, ports), "--broker", broker, "--queue", queue]
    what = ["--requests", str(requests), "--body", body]
    command = [sys.executable, "-m", "bench.load", *where, *what, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(out.read_text())


def drain(broker: str, queue: str) -> list[tuple[dict, list]]:
    """Take every message off a queue: headers and arguments."""
    connection, found = connect(broker), []
    expected = depth(connection, queue)
    channel = connection.channel()
    channel.basic_consume(
        queue,
        no_ack=True,
        callback=lambda m: found.append((m.headers, json.loads(m.body)[0])),
    )
    while len(found) < expected:
        connection.drain_events(timeout=10)
    connection.close()
    return found


def end_all(store: JobStore, ids: list[str]) -> None:
    """Every 202 is in the store. Raises JobNotFound."""
    for job_id in ids:
        store.dismiss(job_id)


def check(accepted: list[str], queued: list[str]) -> None:
    """Every 202 has its signature, and had it when the clock stopped."""
    if missing := set(accepted) - set(queued):
        raise RuntimeError(f"{len(missing)} of {len(accepted)} accepted jobs have no signature on the queue")
    at = {job_id: n for n, job_id in reversed(list(enumerate(queued)))}
    late = sum(at[job_id] >= len(accepted) for job_id in accepted)
    if len(queued) > len(accepted):
        print(f"  ({len(queued) - len(accepted)} signatures twice; {late} came after the clock had stopped)")


if __name__ == "__main__":
    sys.exit(main())
