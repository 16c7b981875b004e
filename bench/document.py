"""How well `document` tells sentiment, entities and categories, on what it was not fitted to: `make bench-document`.

Sentences that people rated, of documents that the training never saw; passages of our own that the category's
numbers were not fitted on; and a page of our own, labelled by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import numpy as np

from bench.rated import fetch
from bench.rounds import machine
from bench.topics import passages
from celery_worker import devices
from celery_worker.models import Models
from celery_worker.pipelines.document import category, entities, sentiment, vectors
from celery_worker.pipelines.document.sentences import chunks_of, sentences_of

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "samples" / "documents" / "harbour.txt"
LABEL = re.compile(r"\[([^|\]]+)\|([A-Z_]+)\]")
CLEAR = 0.5  # of 4: what people called neutral lies nearer to 0


def main() -> int:
    """The three, and their figures last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=0, help="only so many of the rated ones, evenly spread")
    asked = parser.parse_args()
    print(machine(), flush=True)
    models = Models(ROOT / "models", devices.cpu())
    encoder = vectors.Encoder(models.load(vectors.MODEL), models.load(vectors.TOKENIZER))
    lines = [*of_entities(), *of_categories(models, encoder)]
    print("\n".join(lines), flush=True)
    print("\n".join(of_sentiment(models, encoder, asked.sentences)))
    return 0


def of_sentiment(models: Models, encoder: vectors.Encoder, most: int) -> list[str]:
    """Whether the sign is right, of all held-out sentences that people found other than exactly neutral."""
    held_out = [one for one in fetch() if one.is_held_out and one.rating]
    if most:
        held_out = held_out[:: max(1, len(held_out) // most)][:most]
    texts, ratings = [one.text for one in held_out], np.array([one.rating for one in held_out])
    head = sentiment.Head.load(models.load(sentiment.HEAD))
    scores = head.scores(encoder(texts), texts)
    alone = np.array([sentiment.lexicon_scores(text)[0] for text in texts])
    right, clear = np.sign(scores) == np.sign(ratings), np.abs(ratings) > CLEAR
    by_source = ", ".join(
        f"{source} {right[[one.source == source for one in held_out]].mean():.3f}"
        for source in sorted({one.source for one in held_out})
    )
    return [
        f"sentiment: {len(held_out)} sentences of {len({one.document for one in held_out})} documents; {by_source}",
        f"figure sentiment_polarity_accuracy {right.mean():.4f} (goal at least 0.80)",
        f"figure sentiment_polarity_accuracy_clear {right[clear].mean():.4f} ({clear.sum()} rated beyond {CLEAR} of 4)",
        f"figure sentiment_lexicon_alone {(np.sign(alone) == np.sign(ratings)).mean():.4f}",
    ]


def of_entities() -> list[str]:
    """Against every label of our page: the same characters and the same kind."""
    text, true = labelled(PAGE.read_text())
    pages = [(0, len(text))]
    chunks = chunks_of(sentences_of(text, pages), pages)
    found = set(entities.mentions_of(text, chunks, frozenset(), lambda _: None))
    for start, end, kind in sorted(true ^ found):
        print(f"  {'missed' if (start, end, kind) in true else 'extra '} {kind:8} {text[start:end]}")
    hits = len(true & found)
    precision, recall = hits / max(1, len(found)), hits / len(true)
    return [
        f"entities: {len(true)} on our page, {len(found)} found, {hits} of them right",
        f"figure entities_precision {precision:.3f}",
        f"figure entities_recall {recall:.3f}",
        f"figure entities_f1 {2 * hits / (len(true) + len(found)):.3f}",
    ]


def labelled(marked: str) -> tuple[str, set[entities.Mention]]:
    """The text without its marks, and where they stood."""
    text, at, true = "", 0, set()
    for mark in LABEL.finditer(marked):
        text += marked[at : mark.start()]
        true.add((len(text), len(text) + len(mark[1]), mark[2]))
        text += mark[1]
        at = mark.end()
    return text + marked[at:], true


def of_categories(models: Models, encoder: vectors.Encoder) -> list[str]:
    """How often the best category is the right one, `other` included, and how sure it says it is."""
    held_out = passages("held-out")
    names = [*category.DEFAULTS, category.OTHER]
    head = category.Head.load(models.load(category.HEAD))
    chunks, categories = encoder([one.text for one in held_out]), encoder(list(category.DEFAULTS.values()))
    found = category.judge(chunks, categories, encoder(head.background), head)
    true = np.array([names.index(one.topic) for one in held_out])
    right = found.argmax(axis=1) == true
    other = true == len(names) - 1
    return [
        f"figure category_accuracy {right.mean():.3f} ({len(held_out)} passages, {len(names)} answers)",
        f"figure category_accuracy_other {right[other].mean():.3f} ({other.sum()} passages about none of them)",
        f"figure category_mean_confidence {found.max(axis=1).mean():.3f} (calibrated: as high as the accuracy)",
    ]


if __name__ == "__main__":
    sys.exit(main())
