"""What is asked when somebody scrapes is asked the more seldom, the more it costs."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, generate_latest

from jobs import asked
from jobs.asked import Asked, one
from jobs.errors import StoreUnavailable


class Neighbour:
    """Counts how often it is asked. It may take a while, or be away."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.asked, self.takes_s, self.is_away = 0, takes_s, False

    def ask(self):
        self.asked += 1
        time.sleep(self.takes_s)
        if self.is_away:
            raise StoreUnavailable
        return [one("asked", "How often.", self.asked)]


def scraped(neighbour: Neighbour, fresh_s: float):
    """A function that scrapes, and gives what it found."""
    registry = CollectorRegistry()
    registry.register(Asked("up", "Whether it answers.", neighbour.ask, fresh_s))

    def scrape() -> dict[str, float]:
        lines = generate_latest(registry).decode().splitlines()
        return {name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}

    return scrape


def test_an_answer_is_kept_while_it_is_fresh():
    scrape = scraped(neighbour := Neighbour(), fresh_s=0.3)
    assert [scrape(), scrape()] == [{"asked": 1, "up": 1}] * 2
    time.sleep(0.35)
    assert scrape() == {"asked": 2, "up": 1}
    assert neighbour.asked == 2


def test_what_takes_long_is_asked_seldom():
    # Given a neighbour that takes its time, and somebody who scrapes all the time
    scrape = scraped(neighbour := Neighbour(takes_s=0.03), fresh_s=0.0)
    began = time.monotonic()
    while time.monotonic() - began < 1.0:
        scrape()
        time.sleep(0.001)
    # Then it is busy with that for its share only
    assert 1 <= neighbour.asked <= 1 + 1.0 / (0.03 * asked.SHARE)


def test_who_is_away_is_not_up_and_asked_again_soon():
    scrape = scraped(neighbour := Neighbour(takes_s=0.03), fresh_s=0.0)
    neighbour.is_away = True
    assert [scrape(), scrape()] == [{"up": 0}] * 2
    neighbour.is_away = False
    assert scrape() == {"asked": 3, "up": 1}
