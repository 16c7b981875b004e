"""An urgent document overtakes a backlog, in every stage."""

from __future__ import annotations

import pytest

from tests.mill import Mill

BACKLOG = 200
QUEUES = ("preprocess.text", "inference.text", "postprocess.text")


@pytest.mark.timeout(400)
def test_an_urgent_document_overtakes_200_that_wait(rabbitmq_url, redis_url, tmp_path):
    # Given 200 documents that wait, all of them rung, and an urgent one that comes last
    with Mill(rabbitmq_url, redis_url, tmp_path, LEASE_S=15) as mill:
        waiting = [mill.submit("document", priority=1, given={"text": f"Page {n} is dull."}) for n in range(BACKLOG)]
        urgent = mill.submit("document", priority=9, given={"text": "Marie Curie was born in Warsaw."})
        mill.until(lambda: sum(mill.store.rung_counts().values()) == BACKLOG + 1, 60, "all to be rung")
        # When the workers begin
        for queue in QUEUES:
            mill.worker(queue, "--concurrency", "1")
        result = mill.result(urgent, within_s=300)
        done = sum(mill.store.get(job_id).status.is_final for job_id in waiting)
    # Then it is done before nearly all of them; only what its workers held already may have come first
    assert result["entities"][0]["text"] == "Marie Curie"
    assert done <= 5, f"{done} of {BACKLOG} came first"
