"""`gristmill dead`: what used up its attempts is listed, and sent back once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from jobs.model import Cause, Status
from tests.conftest import ROOT
from tests.store_steps import break_part, part, put, run, status


def dead(store_url, broker_url, *arguments):
    """What the command answers: its exit code and its JSON."""
    env = {**os.environ, "STORE_URL": store_url, "BROKER_URL": broker_url, "FILES_URL": "file:///tmp/gristmill-none"}
    command = [sys.executable, "-m", "gristmill", "dead", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_what_is_dead_is_listed_and_sent_back_once(store, store_url, redis_url, make_job):
    # Given a job that failed by its limit after a whole stage, one with bad input, and one that no worker takes
    broker_url = f"{redis_url[:-1]}1"
    tired = put(store, make_job("one", "two", max_failures=1))
    run(store, part(tired), b"=1")
    break_part(store, part(tired, 1), Cause.FAILURE)
    break_part(store, part(put(store, make_job())), Cause.BAD_INPUT)
    lonely = put(store, make_job())
    store.strand([part(lonely)])
    # When it is asked
    code, found = dead(store_url, broker_url)
    # Then the first is listed with its part, and the last as without a worker
    (one,) = found["dead"]
    assert (code, one["job"], one["stage"], one["code"]) == (1, tired.id, "two", "stage-broke")
    assert found["no_worker"] == [{"job": lonely.id, "pipeline": "echo", "stage": "only", "letters": 1}]
    # When it is sent back, twice
    code, found = dead(store_url, broker_url, "--retry")
    again = found["sent_back"][tired.id]
    assert (code, list(found["sent_back"])) == (0, [tired.id])
    assert dead(store_url, broker_url, "--retry")[1]["sent_back"] == {}
    # Then one new job goes on where it was, and the list is empty
    new = store.get(again)
    assert (new.status, new.retry_of, new.stages[0].done) == (Status.ACCEPTED, tired.id, 1)
    assert dead(store_url, broker_url)[1]["dead"] == []
    run(store, part(new, 1), b"=2")
    assert status(store, new) is Status.SUCCESSFUL
