"""A site's words are counted once, slowly, and only where it is allowed; whatever the site answers."""

import gzip
import json
import time
from pathlib import Path

import pytest

from celery_worker.hypertext import MAX_LINKS, Page
from celery_worker.pipelines.wordcount import crawl
from celery_worker.pipelines.wordcount.crawl import normal
from celery_worker.pipelines.wordcount.words import language_of, words_of
from celery_worker.testing import run
from jobs.errors import BadInput, ParamsInvalid, TryAgain
from tests.web import Web, body_of, head, leads_to, raw, status

FOLDER = Path(__file__).parent
SITE = FOLDER.parents[2] / "samples" / "site"
HTML = {"Content_Type": "text/html"}


def html(body: str, **headers: str):
    return body_of(f"<!doctype html><html lang=en><body>{body}</body></html>".encode(), **{**HTML, **headers})


def links(*to: str) -> str:
    return "".join(f'<a href="{each}">word</a> ' for each in to)


def site() -> dict:
    return {f"/{file.relative_to(SITE)}": body_of(file.read_bytes(), **HTML) for file in SITE.rglob("*.*")}


def counted(web: Web, at: str = "/", **params):
    params = {"depth": 2, "pause": 0.1, "text": "all", **params}
    return run(FOLDER, params, input={"url": web.url + at}, allowed_hosts=("127.0.0.1",)).result


def of_pages(web: Web, result) -> dict[str, int]:
    return {page["url"].removeprefix(web.url): page["words"] for page in result["per_page"]}


def reasons(web: Web, result) -> dict[str, str]:
    return {each["url"].removeprefix(web.url): each["why"] for each in result["skipped"]}


def test_the_sample_site_is_counted_page_by_page():
    # Given the sample site, with a loop of links, a private page and a dead link
    with Web(site()) as web:
        result = counted(web, "/index.html", text="main", word="Mill")
    # Then each page counts once, in its own language
    assert {each["url"].removeprefix(web.url): each["language"] for each in result["per_page"]} == {
        "/index.html": "en",
        "/mill.html": "en",
        "/bread.html": "en",
        "/molen.html": "nl",
    }
    assert dict(result["top"])["mill"] == result["word"]["count"] == sum(p["count"] for p in result["per_page"])
    assert result["word"]["pages"] == 3
    assert not {"the", "de", "cookies", "home"} & {word for word, _ in result["top"]}
    # And what was left out is named
    assert reasons(web, result) == {
        "/private/recipe.html": "robots.txt does not allow it",
        "/wheel.html": "127.0.0.1 answered 404 Not Found",
    }
    # And no address was asked for twice, each time under our name
    paths = [path for path, _ in web.asked]
    assert len(paths) == len(set(paths)) == result["requests"]
    assert paths[0] == "/robots.txt"
    assert {headers["user-agent"] for _, headers in web.asked} == {crawl.AGENT}
    assert "gristmill" in crawl.AGENT


def test_one_page_is_one_page_and_its_words_are_exact():
    with Web({"/": html("<p>Mill, mill; the MILL&#x2019;s mill-wheel.</p><script>mill</script>" + links("/b"))}) as web:
        done = run(FOLDER, {"text": "all", "word": "the"}, input={"url": web.url}, allowed_hosts=("127.0.0.1",))
    # Then its words are counted without the stop words, one of which was asked for
    assert done.result["top"] == [["mill", 2], ["mill's", 1], ["mill-wheel", 1], ["word", 1]]
    assert done.result["word"] == {"word": "the", "count": 1, "pages": 1}
    # And the table has them all
    assert done.artifacts["words.csv"].read_text().splitlines()[:2] == ["word,count,pages", "mill,2,1"]
    assert json.loads(done.artifacts["report.json"].read_text())["pages"][0]["words"]["mill"] == 2
    assert [path for path, _ in web.asked] == ["/robots.txt", "/"]


def test_depth_and_number_of_pages_are_kept_and_loops_end():
    # Given pages that lead on for ever, and back
    pages = {f"/{n}": html(links(f"/{n + 1}", f"/{n}x", "/0", f"/{n}#again", "/0?")) for n in range(20)}
    pages |= {
        f"/{n}x": html("leaf" + links("/0", "javascript:alert(1)", "ftp://127.0.0.1/", "//[broken")) for n in range(20)
    }
    with Web(pages) as web:
        assert sorted(of_pages(web, counted(web, "/0", depth=2))) == ["/0", "/0x", "/1", "/1x", "/2"]
    with Web(pages) as web:
        result = counted(web, "/0", depth=5, pages=4)
        assert (len(of_pages(web, result)), result["left"] > 0) == (4, True)


def test_redirects_are_followed_and_a_page_behind_two_addresses_counts_once():
    with Web({"/": html("elsewhere")}) as elsewhere:
        pages = {
            "/": html(links("/old", "/new", "/circle", "/away")),
            "/old": leads_to("/new"),
            "/new": html("new"),
            "/circle": leads_to("/circle"),
            "/away": leads_to(elsewhere.url + "/"),
        }
        with Web(pages) as web:
            result = counted(web)
    assert of_pages(web, result) == {"/": 4, "/new": 1}
    assert reasons(web, result) == {
        "/old": "leads to a page that is known already",
        "/circle": "The address leads on more than 5 times",
        "/away": "leads to another host",
    }


def test_the_first_page_may_lead_to_the_host_that_is_then_the_site():
    pages = {"/": html("there" + links("/next")), "/next": html("next")}
    with Web(pages) as web, Web({"/": leads_to(web.url + "/")}) as old:
        assert sorted(of_pages(web, counted(old))) == ["/", "/next"]


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        ("Müller Käse".encode(), {"Content_Type": "text/html; charset=utf-8"}),
        ("Müller Käse".encode("cp1252"), {"Content_Type": "text/html; charset=ISO-8859-1"}),
        ("Müller Käse".encode(), {"Content_Type": "text/html; charset=ISO-8859-1"}),  # a lie
        ('<meta charset="cp1250">Müller Käse'.encode("cp1250"), {"Content_Type": "text/html"}),
        ("\ufeffMüller Käse".encode("utf-16"), {"Content_Type": "text/html"}),
        (gzip.compress("<p>Müller Käse".encode()), {"Content_Type": "text/html", "Content_Encoding": "gzip"}),
    ],
    ids=["utf-8", "header", "lying-header", "meta", "utf-16", "gzip"],
)
def test_a_page_is_read_in_its_charset_and_unpacked(data, headers):
    if b"\x1f\x8b" not in data and not data.startswith((b"\xff", b"\xfe")):
        data = b"<html><body>" + data
    with Web({"/": body_of(data, **headers)}) as web:
        assert {word for word, _ in counted(web)["top"]} == {"müller", "käse"}


def test_what_is_no_page_that_ends_is_left_out_and_named(monkeypatch):
    # Given a page that leads to everything that a crawler should not be held up by
    monkeypatch.setattr(crawl, "PAGE_S", 1.5)
    monkeypatch.setattr(crawl, "PAGE_BYTES", 300_000)

    def slowly() -> None:
        time.sleep(4)

    pages = {
        "/": html(
            links("/pdf", "/png", "/slow", "/endless", "/bomb", "/empty", "/gone", "/broken", "/cut", "/nest", "/text")
        ),
        "/pdf": body_of(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", Content_Type="application/pdf"),
        "/png": body_of(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1", **HTML),
        "/slow": raw(head(200, **HTML), slowly, b"late"),
        "/endless": raw(head(200, **HTML), *[b"<p>more and more</p>" * 5_000] * 5),
        "/bomb": body_of(gzip.compress(b"<p>a</p>" * 5_000_000), Content_Encoding="gzip", **HTML),
        "/empty": body_of(b"", **HTML),
        "/gone": status(410),
        "/broken": status(500),
        "/cut": raw(head(200, Content_Length="5000", **HTML), b"<p>half"),
        "/nest": html("<b><i>" * 20_000 + "deep" + "</i></b>"),
        "/text": body_of(b"plain text", Content_Type="text/plain"),
    }
    with Web(pages) as web:
        began = time.monotonic()
        result = counted(web, text="main")
    # Then the others are counted, and each of these is named with its reason
    assert time.monotonic() - began < 60
    assert of_pages(web, result) == {"/": 11, "/nest": 1, "/text": 2}
    why = reasons(web, result)
    assert set(why) == {"/pdf", "/png", "/slow", "/endless", "/bomb", "/empty", "/gone", "/broken", "/cut"}
    assert (why["/pdf"], why["/png"]) == ("is application/pdf, not HTML", "is image/png, not HTML")
    assert "300,000 bytes" in why["/endless"]
    assert "300,000 bytes" in why["/bomb"]
    assert "410" in why["/gone"]
    assert "500" in why["/broken"]


def test_robots_txt_is_honoured_for_us_by_name_and_for_everybody():
    rules = b"User-agent: gristmill\nDisallow: /not-us\nCrawl-delay: 0.3\n\nUser-agent: *\nDisallow: /\n"
    pages = {
        "/robots.txt": body_of(rules, Content_Type="text/plain"),
        "/": html(links("/not-us", "/hidden", "/fine", "/behind")),
        "/not-us": html("secret"),
        "/hidden": html('<meta name="robots" content="nofollow">hidden' + links("/deeper")),
        "/fine": html('fine <a rel="nofollow" href="/deeper">x</a>'),
        "/behind": leads_to("/not-us"),
        "/deeper": html("deeper"),
    }
    with Web(pages) as web:
        began = time.monotonic()
        result = counted(web, pause=0.1)
        took = time.monotonic() - began
    assert sorted(of_pages(web, result)) == ["/", "/fine", "/hidden"]
    assert reasons(web, result) == dict.fromkeys(("/not-us", "/behind"), "robots.txt does not allow it")
    # And its delay is kept between all requests but the first two, before it was known
    assert took >= 0.3 * (result["requests"] - 2)


@pytest.mark.parametrize(
    ("robots", "error", "words"),
    [
        (body_of(b"User-agent: *\nDisallow: /\n"), BadInput, "robots.txt does not allow it"),
        (body_of(b"User-agent: *\nCrawl-delay: 3600\n"), BadInput, "does not want to be crawled"),
        (status(503), TryAgain, "503"),
    ],
)
def test_a_site_that_does_not_want_us_or_cannot_say_is_left_alone(robots, error, words):
    with Web({"/robots.txt": robots, "/": html("secret")}) as web, pytest.raises(error, match=words):
        counted(web)
    assert [path for path, _ in web.asked if path != "/robots.txt"] == []


@pytest.mark.parametrize("robots", [status(404), status(403), body_of(b""), body_of(b"\xff\xfe\x00nonsense" * 50)])
def test_a_site_without_rules_may_be_read(robots):
    with Web({"/robots.txt": robots, "/": html("open")}) as web:
        assert counted(web)["words"] == 1


def test_dead_links_do_not_keep_a_crawl_for_ever(monkeypatch):
    # Given a page with more dead links than requests may be made for the two pages that are asked for
    monkeypatch.setattr(crawl, "SKIPPED", 5)
    dead = [f"/gone{n}" for n in range(40)]
    with Web({"/": html(links(*dead)), **{each: status(404) for each in dead}}) as web:
        result = counted(web, depth=1, pages=2)
    # Then it ends, and says how much was left; of what was left out so many are listed
    assert (result["requests"], result["pages"], result["left"]) == (16, 1, 26)
    assert len(result["skipped"]) == 5


def test_a_page_s_links_and_words_are_bounded():
    page = Page("<html><body>" + links(*(f"/{n}" for n in range(MAX_LINKS + 500))) + "</body></html>")
    assert len(page.links) == MAX_LINKS
    assert words_of("word " + "x" * 61 + " y" * 3) == {"word": 1, "y": 3}
    assert normal("http://example.org/" + "a" * 2_000) is None


@pytest.mark.parametrize(
    ("answer", "error"),
    [(status(404), BadInput), (status(500), TryAgain), (body_of(b"\x89PNG\r\n\x1a\n\0\0"), BadInput)],
)
def test_a_first_page_that_is_none_ends_the_job(answer, error):
    with Web({"/": answer}) as web, pytest.raises(error):
        counted(web)


def test_an_address_that_is_not_public_is_refused():
    with Web({"/": html("inside")}) as web, pytest.raises(BadInput):
        run(FOLDER, {}, input={"url": web.url})
    assert web.asked == []


def test_a_crawl_can_be_dismissed_between_two_requests():
    with Web(site()) as web:
        began = time.monotonic()
        done = run(
            FOLDER,
            {"depth": 3, "pause": 30},
            input={"url": web.url + "/index.html"},
            allowed_hosts=("127.0.0.1",),
            dismiss_at=("crawl", 6),
        )
    assert done.dismissed
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("url", "base", "expected"),
    [
        ("HTTP://Example.org:80/a#b", "", "http://example.org/a"),
        ("../c d?q=ü", "http://example.org/a/b/", "http://example.org/a/c%20d?q=%C3%BC"),
        ("//other.example/x", "https://example.org/", "https://other.example/x"),
        ("?page=2", "http://example.org/list", "http://example.org/list?page=2"),
        ("http://example.org", "", "http://example.org/"),
        ("http://[::1]:8080/", "", "http://[::1]:8080/"),
        ("mailto:a@b.c", "http://example.org/", None),
        ("http://example.org:port/", "", None),
        ("http://[broken/", "", None),
        ("/" + "a" * 3_000, "http://example.org/", None),
    ],
)
def test_each_address_has_one_spelling(url, base, expected):
    assert normal(url, base) == expected


def test_words_are_letters_and_what_holds_them_together():
    text = (
        "Don\u2019t re-read the co\u00adoperation of 42 na\u0131\u0308ve caf\u0065\u0301s' owners: it's x\u00b2 "
        + "a" * 61
    )
    found = words_of(text)
    assert found["don't"] == found["re-read"] == found["cooperation"] == found["caf\u00e9s"] == found["it's"] == 1
    assert max(map(len, found)) < 20


def test_what_stands_in_cells_and_lists_is_not_one_word():
    page = "<nav>Home</nav><table><tr><th>City</th><th>Land</th></tr></table><dl><dt>Name</dt><dd>An<b>na</b></dd></dl>"
    assert Page(page).text.split("\n") == ["Home", "City", "Land", "Name", "Anna"]


def test_a_language_is_declared_told_or_guessed():
    dutch = words_of("De molen staat aan de dijk en het water is hoog, maar de molenaar slaapt niet.")
    assert language_of("nl-BE", dutch, "en") == "nl"
    assert language_of("xx", dutch, "en") == "en"
    assert language_of("", dutch, None) == "nl"
    assert language_of("", words_of("zyx wvu tsr"), None) is None


@pytest.mark.parametrize(
    "params", [{"depth": 6}, {"pages": 0}, {"pause": 0}, {"text": "some"}, {"language": "xx"}, {"word": ""}]
)
def test_params_that_make_no_sense_are_refused_at_the_door(params):
    with pytest.raises(ParamsInvalid):
        run(FOLDER, params, input={"url": "http://example.org/"})
