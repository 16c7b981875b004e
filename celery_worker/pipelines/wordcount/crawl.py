"""Finds the pages of a site, one request after the other: as slowly as asked, and only where robots.txt lets it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, quote, urldefrag, urljoin, urlsplit, urlunsplit

from protego import Protego

from celery_worker.characters import NotText, decode
from celery_worker.fetch import Fetched
from celery_worker.hypertext import Page
from jobs.errors import BadInput, TryAgain

NAME = "gristmill"  # what robots.txt calls us
AGENT = f"{NAME}-wordcount (a self-hosted job gateway; honours robots.txt)"
HEADERS = {
    "User-Agent": AGENT,
    "Accept": "text/html, application/xhtml+xml, text/plain;q=0.5",
    "Accept-Encoding": "gzip",
}
HTML = ("text/html", "application/xhtml+xml")
PAGE_BYTES, PAGE_S = 5_242_880, 20.0
ROBOTS_BYTES, ROBOTS_S = 524_288, 10.0
LONGEST_PAUSE_S = 60.0  # a site that asks for more does not want to be crawled
REQUESTS_A_PAGE = 3  # so many are made at most for each page that is asked for: dead links must not keep us for ever
URL_CHARS = 2_000
SKIPPED = 1_000  # of the addresses left out, so many are listed
NAP_S = 0.1

Fetch = Callable[..., Fetched]


@dataclass(frozen=True)
class Found:
    """A page that was fetched; its links have been followed up already."""

    url: str
    depth: int
    file: Fetched
    charset: str


@dataclass
class Crawl:
    """One walk over a site. `skipped` says of every other address why it was left out."""

    fetch: Fetch
    checkpoint: Callable[[], None]
    depth: int
    pages: int
    pause_s: float
    skipped: list[dict[str, str]] = field(default_factory=list)
    left: int = 0  # addresses known but not asked for, because enough pages were found
    requests: int = 0
    _next_at: float = 0.0

    def walk(self, start: str) -> Iterator[Found]:
        """Each page once, the nearer ones first. Raises what the first page is refused with."""
        first = normal(start)
        if first is None:
            raise BadInput("The address is not one of a page.")
        rules: Mapping[str, Protego] = {}
        waiting, known, given, site = deque([(first, 0)]), {first}, 0, ""
        while waiting:
            if given == self.pages or self.requests >= REQUESTS_A_PAGE * self.pages + 10:
                self.left = len(waiting)
                return
            url, depth = waiting.popleft()
            rules = rules if host_of(url) in rules else {**rules, host_of(url): self._rules(url)}
            if not rules[host_of(url)].can_fetch(url, NAME):
                self._skip(url, "robots.txt does not allow it", first)
                continue
            fetched = self._page(url, first)
            if fetched is None:
                continue
            at = normal(fetched.url) or url
            site = site or host_of(at)  # the first page may lead on to another host: that is then the site
            if reason := self._unfit(at, url, fetched, site, known, rules):
                self._skip(url, reason, first)
                continue
            known.add(at)
            charset = charset_of(fetched)
            page = self._read(fetched, charset) if depth < self.depth else None
            for link in self._links(page, at, site) if page else ():
                if link not in known:
                    known.add(link)
                    waiting.append((link, depth + 1))
            given += 1
            yield Found(at, depth, fetched, charset)

    def _page(self, url: str, first: str) -> Fetched | None:
        """None for one that cannot be had; the first must be."""
        try:
            return self._get(url, PAGE_BYTES, PAGE_S)
        except (BadInput, TryAgain) as error:
            if url == first:
                raise
            self._skip(url, str(error).rstrip("."), first)
            return None

    def _unfit(
        self, at: str, asked: str, fetched: Fetched, site: str, known: set[str], rules: Mapping[str, Protego]
    ) -> str:
        """Why a page that was fetched is none that counts; empty if it is."""
        if host_of(at) != site:
            return "leads to another host"
        if at != asked and host_of(at) in rules and not rules[host_of(at)].can_fetch(at, NAME):
            return "robots.txt does not allow it"
        if at != asked and at in known:
            return "leads to a page that is known already"
        if fetched.type not in (*HTML, "text/plain"):
            return f"is {fetched.type or 'of an unknown type'}, not HTML"
        return ""

    def _links(self, page: Page, at: str, site: str) -> Iterator[str]:
        if "nofollow" in page.robots:
            return
        base = normal(urljoin(at, page.base)) or at if page.base else at
        for link in page.links:
            url = normal(link, base)
            if url and host_of(url) == site:
                yield url

    @staticmethod
    def _read(fetched: Fetched, charset: str) -> Page | None:
        try:
            return Page(decode(fetched.path.read_bytes(), is_html=True, told=charset)) if fetched.type in HTML else None
        except NotText:
            return None

    def _rules(self, url: str) -> Protego:
        """What the host's robots.txt says; a host without one allows everything. Raises TryAgain when it is broken."""
        split = urlsplit(url)
        address = urlunsplit((split.scheme, split.netloc, "/robots.txt", "", ""))
        try:
            text = decode(self._get(address, ROBOTS_BYTES, ROBOTS_S).path.read_bytes())
        except (BadInput, NotText) as error:
            if isinstance(error, BadInput) and "http_status" not in error.fields and "is empty" not in str(error):
                raise
            text = ""
        rules = Protego.parse(text)
        asked = float(rules.crawl_delay(NAME) or 0)
        if rate := rules.request_rate(NAME):
            asked = max(asked, rate.seconds / max(1, rate.requests))
        if asked > LONGEST_PAUSE_S:
            raise BadInput(f"The site asks for {asked:g} s between two requests; it does not want to be crawled.")
        self.pause_s = max(self.pause_s, asked)
        return rules

    def _get(self, url: str, most_bytes: int, within_s: float) -> Fetched:
        """One request, not before the pause since the last one is over."""
        while (wait := self._next_at - time.monotonic()) > 0:
            self.checkpoint()
            time.sleep(min(wait, NAP_S))
        self.checkpoint()
        self.requests += 1
        try:
            return self.fetch(url, most_bytes=most_bytes, within_s=within_s, headers=HEADERS)
        finally:
            self._next_at = time.monotonic() + self.pause_s

    def _skip(self, url: str, why: str, first: str) -> None:
        if url == first:
            raise BadInput(f"The page {why}.")
        if len(self.skipped) < SKIPPED:
            self.skipped.append({"url": url, "why": why})


def normal(url: str, base: str = "") -> str | None:
    """One spelling for each address, absolute and without a fragment; None for what is no page's."""
    try:
        split = urlsplit(urldefrag(urljoin(base, url.strip()) if base else url.strip()).url)
        if split.scheme.lower() not in ("http", "https") or not split.hostname or len(url) > URL_CHARS:
            return None
        port = split.port
    except ValueError:
        return None
    known = {"http": 80, "https": 443}[split.scheme.lower()]
    host = split.hostname if ":" not in split.hostname else f"[{split.hostname}]"
    place = host if port in (None, known) else f"{host}:{port}"
    path, query = (quote(part, safe="/%:@!$&'()*+,;=~-._?") for part in (split.path or "/", split.query))
    return urlunsplit(SplitResult(split.scheme.lower(), place, path, query, ""))


def host_of(url: str) -> str:
    """Host and port: the same host on http and https is one site."""
    split = urlsplit(url)
    return split.netloc


def charset_of(fetched: Fetched) -> str:
    """As the header tells; empty if it does not."""
    for part in fetched.headers.get("content-type", "").split(";")[1:]:
        name, _, value = part.partition("=")
        if name.strip().lower() == "charset":
            return value.strip(" \"'")[:40]
    return ""


def described(found: Found) -> dict[str, Any]:
    """What the next stage is told of a page."""
    return {"url": found.url, "depth": found.depth, "type": found.file.type, "charset": found.charset}
