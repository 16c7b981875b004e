"""A real name server that turns a name round, and the real resolver: the connection goes where was checked."""

import pytest

from celery_worker.fetch import Terms
from celery_worker.inputs import fetch_into
from jobs.addresses import NOT_PUBLIC, allowed
from jobs.errors import BadInput, TryAgain
from tests.name_server import name_server
from tests.web import Web, body_of, leads_to

OPEN, INNER = "127.0.0.2", "127.0.0.1"  # the first one is allowed, as a public address would be


def fetched(folder, port, path):
    terms = Terms(allowed([f"{OPEN}/32"]), 1_000, 20)
    return fetch_into(folder, f"http://turns.example:{port}{path}", terms, lambda: None, {})


@pytest.fixture
def hosts():
    """Two hosts that listen on one port; the name leads to the open one first, and to the inner one ever after."""
    with (  # the port is found where everybody's are, and is hardly taken on the other address
        Web({"/a": body_of(b"inner"), "/again": body_of(b"inner")}) as inner,
        Web({"/a": body_of(b"open"), "/again": leads_to("/a")}, address=OPEN, port=inner.port) as web,
    ):
        yield web, inner


def test_a_name_is_resolved_once_for_each_connection(hosts, tmp_path):
    web, inner = hosts
    with name_server({"turns.example": [OPEN, INNER]}) as asked:
        # When it is fetched, Then what was checked is what was reached: it was not resolved a second time
        assert fetched(tmp_path, web.port, "/a").path.read_bytes() == b"open"
        assert asked.names() == ["turns.example"]
    assert [path for path, _ in web.asked] == ["/a"]
    assert inner.asked == []


def test_a_name_that_turns_inside_at_a_redirect_is_refused(hosts, tmp_path):
    # Given a host that leads on to itself, by the same name
    web, inner = hosts
    with name_server({"turns.example": [OPEN, INNER]}) as asked:
        with pytest.raises(BadInput, match=NOT_PUBLIC.split(";")[0]):
            fetched(tmp_path, web.port, "/again")
        # Then the name was resolved and checked anew, and nobody inside was asked for anything
        assert asked.names() == ["turns.example"] * 2
    assert [path for path, _ in web.asked] == ["/again"]
    assert inner.asked == []
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_leads_inside_from_the_first_is_refused(hosts, tmp_path):
    web, inner = hosts
    with name_server({"turns.example": [INNER]}), pytest.raises(BadInput, match="not public"):
        fetched(tmp_path, web.port, "/a")
    with name_server({"other.example": [OPEN]}), pytest.raises((BadInput, TryAgain)):
        fetched(tmp_path, web.port, "/a")
    assert (web.asked, inner.asked) == ([], [])
