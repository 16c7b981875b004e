"""What an HTML page says, without building a tree of it: however deep it is nested, reading takes one pass."""

from __future__ import annotations

from html.parser import HTMLParser

MAX_DEPTH = 400  # of elements in each other, for extractors that do build a tree: their time grows with its square
MAX_LINKS = 10_000

SILENT = frozenset({"script", "style", "template", "noscript", "svg", "head", "iframe", "select", "button"})
VOID = frozenset({"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"})
# What a reader sees on lines of its own: without a line's end between them, the words of two cells would be one.
BLOCKS = frozenset(
    {
        "address", "article", "aside", "blockquote", "br", "caption", "center", "dd", "details", "dialog",
        "dir", "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3",
        "h4", "h5", "h6", "header", "hgroup", "hr", "label", "legend", "li", "main", "menu", "nav", "ol", "p",
        "pre", "search", "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul",
    }
)  # fmt: skip


class Page(HTMLParser):
    """All that a reader would see, and what else a page says of itself."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.language = ""  # as declared: `en`, or `pt-BR`
        self.base = ""  # what its links are relative to, if not its own address
        self.links: list[str] = []  # as written, without those that are not to be followed
        self.robots: frozenset[str] = frozenset()  # nofollow, noindex
        self.deepest = self._depth = 0
        self._title: list[str] = []
        self._pieces: list[str] = []
        self._silent: list[str] = []
        self._in_title = False
        self.feed(html)
        self.close()

    @property
    def title(self) -> str:
        """On one line."""
        return " ".join("".join(self._title).split())[:300]

    @property
    def text(self) -> str:
        """One line for each block."""
        lines = (" ".join(line.split()) for line in "".join(self._pieces).split("\n"))
        return "\n".join(line for line in lines if line)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._note(tag, given)
        if tag in BLOCKS:
            self._pieces.append("\n")
        if tag in VOID:
            return
        self._depth += 1
        self.deepest = max(self.deepest, self._depth)
        self._in_title = tag == "title" and not self._title
        if tag in SILENT:
            self._silent.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        self._depth = max(0, self._depth - 1)
        self._in_title = False
        if tag in self._silent:
            while self._silent.pop() != tag:
                pass
        elif tag in BLOCKS:
            self._pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self._title.append(data)
        elif not self._silent:
            self._pieces.append(data.replace("\n", " "))

    def _note(self, tag: str, given: dict[str, str]) -> None:
        """What an element says of the whole page, or where it leads."""
        if tag == "html":
            self.language = self.language or given.get("lang", "")[:20]
        elif tag == "base":
            self.base = self.base or given.get("href", "")
        elif tag == "meta" and given.get("name", "").lower() in ("robots", "gristmill"):
            self.robots |= {word.strip().lower() for word in given.get("content", "").split(",")}
        elif tag == "a" and "href" in given and "nofollow" not in given.get("rel", "").lower().split():
            self.links += [given["href"].strip()][: MAX_LINKS - len(self.links)]
