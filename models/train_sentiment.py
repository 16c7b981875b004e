"""Trains sentiment-head.json: `python -m models.train_sentiment`, from the repository's root; half an hour on one core.

A ridge regression from a sentence's vector, VADER's lexicon scores and the words and pairs of words in it to what
people said of it. The sentences of one document in five are left out, for `make bench-document` to measure.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import lsqr

from bench.rated import SHA256, Rated, fetch
from celery_worker import devices
from celery_worker.models import Models
from celery_worker.pipelines.document import sentiment, vectors

HERE = Path(__file__).parent
SEEN = 10  # a word or a pair counts when so many training sentences have it
VECTOR, GRAM = 3.0, 0.4  # how much a unit of each weighs: the fewer, the surer
DAMP = 3.0
STEEP = 3.0  # of a rating only its sign matters in the end: a strong one counts little more than a clear one
CLEAR = 0.5  # a rating nearer to 0 is called neutral


def main() -> int:
    """Train on what is not held out; write the head beside this file."""
    rated = [one for one in fetch() if not one.is_held_out]
    models = Models(HERE, devices.cpu())
    encoder = vectors.Encoder(models.load(vectors.MODEL), models.load(vectors.TOKENIZER))
    found = encoder([one.text for one in rated], lambda n: print(n, flush=True) if n % 1_000 == 0 else None)
    head = train(rated, found)
    (HERE / "sentiment-head.json").write_text(json.dumps(head, separators=(",", ":"), ensure_ascii=False) + "\n")
    return 0


def train(rated: list[Rated], found: np.ndarray) -> dict:
    """The head as it is stored."""
    texts = [one.text for one in rated]
    lexicon = np.array([sentiment.lexicon_scores(text) for text in texts])
    grams = [sentiment.grams(text) for text in texts]
    counted = Counter(gram for each in grams for gram in each)
    known = sorted(gram for gram, count in counted.items() if count >= SEEN)
    column = {gram: n for n, gram in enumerate(known)}
    at = [(row, column[gram]) for row, each in enumerate(grams) for gram in sorted(each) if gram in column]
    rows, columns = zip(*at, strict=True)
    has = sparse.csr_matrix((np.full(len(rows), GRAM), (rows, columns)), shape=(len(texts), len(known)))
    dense = np.hstack([found, lexicon]).astype(float) * VECTOR
    target = np.tanh(STEEP * np.array([one.rating for one in rated]) / 4)
    middle = target.mean()
    weights = lsqr(sparse.hstack([sparse.csr_matrix(dense), has]).tocsr(), target - middle, damp=DAMP, iter_lim=300)[0]
    width = dense.shape[1]
    rounded = [round(float(weight), 4) for weight in np.concatenate([weights[:width] * VECTOR, weights[width:] * GRAM])]
    head = {
        "vector": rounded[: vectors.WIDTH],
        "lexicon": rounded[vectors.WIDTH : width],
        "grams": {gram: weight for gram, weight in zip(known, rounded[width:], strict=True) if weight},
        "bias": round(float(middle), 4),
        "band": 0.0,
        "data_sha256": SHA256,
    }
    scores = sentiment.Head.of(head).scores(found, texts)
    head["band"] = best_band(scores, np.array([one.rating for one in rated]))
    return head


def best_band(scores: np.ndarray, ratings: np.ndarray) -> float:
    """How near to 0 a score is called neutral, so that the three words are right most evenly."""

    def evenness(band: float) -> float:
        said, true = np.sign(scores) * (np.abs(scores) > band), np.sign(ratings) * (np.abs(ratings) >= CLEAR)
        hits = [
            (np.sum((said == word) & (true == word)), np.sum(said == word), np.sum(true == word)) for word in (-1, 0, 1)
        ]
        return float(np.mean([2 * hit / max(1, a + b) for hit, a, b in hits]))

    return float(max((round(band, 2) for band in np.arange(0.02, 0.4, 0.02)), key=evenness))


if __name__ == "__main__":
    sys.exit(main())
