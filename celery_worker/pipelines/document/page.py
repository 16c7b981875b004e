"""The highlighted document: one HTML page that needs nothing else, and runs nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f4f5f7; color: #1d2330; font: 16px/1.65 Georgia, "Times New Roman", serif; }
main, header { max-width: 52rem; margin: 0 auto; padding: 1.25rem 2rem; }
header { font: 14px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0.5rem 0 0.25rem; }
.facts { color: #5a6372; }
.columns { display: flex; flex-wrap: wrap; gap: 1rem 3rem; margin-top: 0.75rem; }
.columns section { flex: 1 1 20rem; }
h2 { font-size: 0.8rem; letter-spacing: 0.06em; text-transform: uppercase; color: #5a6372; margin: 0 0 0.35rem; }
.bar { display: grid; grid-template-columns: 6rem 1fr 3rem; gap: 0.5rem; align-items: center; }
.bar i { display: block; height: 0.6rem; border-radius: 3px; background: #4c6fb1; }
.page { background: #fff; border: 1px solid #dde1e7; border-radius: 6px; padding: 1.5rem 2rem; margin-bottom: 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.page > .number { font: 12px system-ui, sans-serif; color: #8a93a1; display: block; }
.s { border-radius: 3px; } .key { text-decoration: underline 2px #4c6fb1; text-underline-offset: 5px; }
mark { border-radius: 3px; padding: 0.05em 0.2em; color: inherit; }
mark::after { content: attr(data-kind); font: 600 0.6em system-ui, sans-serif; margin-left: 0.35em; opacity: 0.65; }
.legend span { margin-right: 0.75rem; white-space: nowrap; } .legend mark::after { content: none; }
"""
# One colour for kinds that are alike.
COLOURS = {
    "PERSON": "#ffd9b3",
    "NORP": "#ffe9c9",
    "ORG": "#c9e4ff",
    "GPE": "#c8efcf",
    "LOC": "#c8efcf",
    "FAC": "#c8efcf",
    "DATE": "#e9dcfa",
    "TIME": "#e9dcfa",
    "EVENT": "#ffd3e0",
    "WORK_OF_ART": "#ffd3e0",
    "PRODUCT": "#ffd3e0",
    "LAW": "#ffd3e0",
}
PLAIN = "#e6e9ee"


def highlighted(report: Mapping[str, Any]) -> str:
    """Entities marked, sentences shaded by how they sound, key sentences underlined, page by page."""
    title = escape(report["title"] or "Document")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body><header><h1>{title}</h1>{_facts(report)}</header>"
        f"<main>{''.join(_pages(report))}</main></body></html>\n"
    )


def _facts(report: Mapping[str, Any]) -> str:
    """Above the text: what was found."""
    pages, sentences = len(report["pages"]), len(report["sentences"])
    line = f"{pages} page{'s' * (pages != 1)} · {sentences} sentences · language {escape(report['language']['code'])}"
    if not report["analysed"]:
        return f'<p class="facts">{line} · not analysed: the models read English</p>'
    whole = report["sentiment"]
    bars = "".join(
        f'<div class="bar"><span>{escape(one["category"])}</span><i style="width:{100 * one["score"]:.0f}%"></i>'
        f"<span>{100 * one['score']:.0f} %</span></div>"
        for one in report["categories"][:4]
    )
    kinds = sorted({one["kind"] for one in report["entities"]})
    legend = " ".join(
        f'<span><mark style="background:{COLOURS.get(kind, PLAIN)}">{kind}</mark></span>' for kind in kinds
    )
    counted = ", ".join(f"{number} {name}" for name, number in whole["sentences"].items())
    return (
        f'<p class="facts">{line}</p><div class="columns"><section><h2>About</h2>{bars}</section>'
        f"<section><h2>Sentiment</h2>{whole['label']} ({whole['score']:+.2f}): {counted}"
        f'<p class="legend">{legend}</p></section></div>'
    )


def _pages(report: Mapping[str, Any]) -> Iterator[str]:
    text, keys = report["text"], frozenset(report["key_sentences"])
    mentions = _by_sentence(report)
    sentences = deque(enumerate(report["sentences"]))
    for page in report["pages"]:
        yield '<div class="page">'
        if len(report["pages"]) > 1:
            yield f'<span class="number">Page {page["page"]}</span>'
        at = page["start"]
        while sentences and sentences[0][1]["start"] < page["end"]:
            n, sentence = sentences.popleft()
            yield escape(text[at : sentence["start"]])
            marked = "".join(_marked(text, sentence["start"], sentence["end"], mentions.get(n, ())))
            yield f'<span class="{"s key" if n in keys else "s"}"{_shade(sentence)}>{marked}</span>'
            at = sentence["end"]
        yield escape(text[at : page["end"]]) + "</div>"


def _by_sentence(report: Mapping[str, Any]) -> dict[int, list[tuple[int, int, str]]]:
    """Where entities stand in each sentence, in order."""
    found: dict[int, list[tuple[int, int, str]]] = {}
    for entity in report["entities"]:
        for mention in entity["mentions"]:
            found.setdefault(mention["sentence"], []).append((mention["start"], mention["end"], entity["kind"]))
    return {n: sorted(mentions) for n, mentions in found.items()}


def _marked(text: str, start: int, end: int, mentions: Sequence[tuple[int, int, str]]) -> Iterator[str]:
    """One sentence; a mention that began in it may end beyond it."""
    at = start
    for begin, stop, kind in mentions:
        stop = min(stop, end)
        if begin >= at and begin < stop:
            colour = COLOURS.get(kind, PLAIN)
            yield escape(text[at:begin])
            yield f'<mark style="background:{colour}" data-kind="{kind}">{escape(text[begin:stop])}</mark>'
            at = stop
    yield escape(text[at:end])


def _shade(sentence: Mapping[str, Any]) -> str:
    """Green for what sounds positive, red for negative, stronger the further from neutral."""
    if sentence["label"] in (None, "neutral"):
        return ""
    strength = min(0.45, 0.12 + 0.4 * abs(sentence["score"]))
    colour = "46,160,67" if sentence["score"] > 0 else "218,54,51"
    return f' style="background:rgba({colour},{strength:.2f})" title="{sentence["label"]} {sentence["score"]:+.2f}"'
