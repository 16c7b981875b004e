"""Jobs do not need the broker to be accepted, only to run."""

from __future__ import annotations

import pytest

from gristmill import Client
from tests.acceptance.conftest import GIVEN_URL


@pytest.mark.timeout(180)
@pytest.mark.parametrize("installation", [] if GIVEN_URL else ["with_rabbitmq"])
def test_a_job_is_accepted_without_the_broker_and_runs_when_it_is_back(installation, request):
    processes = request.getfixturevalue(installation)
    with Client(processes.url) as client:
        # Given an installation that works, whose broker goes away
        assert client.submit("addition", x=1, y=2).wait(timeout=60).result == 3
        processes.door.shut()
        try:
            # When jobs are submitted, then they are accepted
            jobs = [client.submit("addition", x=40, y=n) for n in range(5)]
        finally:
            # And when the broker is back, they run
            processes.door.open()
        assert [job.wait(timeout=90).result for job in jobs] == [40, 41, 42, 43, 44]
