"""The short set: seven of the battery's cases with few jobs, on an installation of each store."""

import pytest

from tests.faults import cases, table
from tests.faults.case import CASES
from tests.faults.installation import CLASSIC, POSTGRES_REDIS
from tests.faults.runner import Stage

assert cases.__doc__  # importing it registers them
TURNS = [(1, CLASSIC), (3, CLASSIC), (6, CLASSIC), (15, CLASSIC)]
TURNS += [(1, POSTGRES_REDIS), (2, POSTGRES_REDIS), (5, POSTGRES_REDIS), (10, POSTGRES_REDIS)]


@pytest.fixture(scope="module")
def stage():
    """One installation at a time, kept while the pair is the same."""
    made = Stage()
    yield made
    made.close()


def test_every_case_of_the_short_set_is_in_it():
    assert {number for number, case in CASES.items() if case.few} == {number for number, _ in TURNS}


@pytest.mark.alone
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "pair"), TURNS, ids=lambda one: str(one) if isinstance(one, int) else one.store)
def test_nothing_accepted_is_lost_in_case(stage, number, pair):
    row = stage.run(CASES[number], pair, short=True)
    print(table.line(row))
    assert (row.account is not None, list(row.missed)) == (True, []), table.notes(row)
