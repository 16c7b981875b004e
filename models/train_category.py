"""Fits category-head.json: `python -m models.train_category`, from the repository's root; a minute on one core.

Two numbers, a slope and a bias, are chosen so that the labelled passages of topics.tsv are as likely as can be; with
so few of either, nothing is learned by heart. The passages are the background too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from bench.topics import passages
from celery_worker import devices
from celery_worker.models import Models
from celery_worker.pipelines.document import category, vectors

HERE = Path(__file__).parent
FOLDS = 6


def main() -> int:
    """Fit; write the head beside this file."""
    models = Models(HERE, devices.cpu())
    encode = vectors.Encoder(models.load(vectors.MODEL), models.load(vectors.TOKENIZER))
    fit = passages("fit")
    names = [*category.DEFAULTS, category.OTHER]
    true = np.array([names.index(one.topic) for one in fit])
    texts = [one.text for one in fit]
    found = encode(texts)
    categories = encode(list(category.DEFAULTS.values()))
    fold = np.arange(len(texts)) % FOLDS
    nearer = np.zeros((len(texts), len(categories)))
    for each in range(FOLDS):  # a passage is no part of its own background, as a document never is
        nearer[fold == each] = category.distances(found[fold == each], categories, found[fold != each])

    def unlikeliness(numbers: np.ndarray) -> float:
        return float(-np.log(category.probabilities(nearer, *numbers)[np.arange(len(true)), true]).mean())

    slope, bias = minimize(unlikeliness, [3.0, -4.0], method="Nelder-Mead").x
    head = {"slope": round(float(slope), 3), "bias": round(float(bias), 3), "background": texts}
    (HERE / "category-head.json").write_text(json.dumps(head, indent=1, ensure_ascii=False) + "\n")
    print(f"slope {slope:.3f}, bias {bias:.3f}, mean log loss {unlikeliness(np.array([slope, bias])):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
