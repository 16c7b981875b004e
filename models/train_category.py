"""Fits category-head.json: `python -m models.train_category`, from the repository's root; a minute on one core.

Three numbers, a slope, a bias and a weight, are chosen so that the labelled passages of topics.tsv are as likely as
can be; with so few of either, nothing is learned by heart. The passages are the background too.
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


def main() -> int:
    """Fit; write the head beside this file."""
    models = Models(HERE, devices.cpu())
    encode = vectors.Encoder(models.load(vectors.MODEL), models.load(vectors.TOKENIZER))
    fit = sorted(passages("fit"), key=lambda one: one.topic == category.OTHER)  # the head knows the last of them
    names = [*category.DEFAULTS, category.OTHER]
    true = np.array([names.index(one.topic) for one in fit])
    texts = [one.text for one in fit]
    found = encode(texts)
    categories = encode(list(category.DEFAULTS.values()))
    everyday = sum(one.topic == category.OTHER for one in fit)
    nearer, homely = np.zeros((len(texts), len(categories))), np.zeros(len(texts))
    for n in range(len(texts)):  # a passage is no part of its own background, as a document never is
        others, left = np.delete(found, n, axis=0), everyday - (fit[n].topic == category.OTHER)
        nearer[n] = category.distances(found[n : n + 1], categories, others)
        homely[n] = category.homeliness(found[n : n + 1], others, left)[0]

    def unlikeliness(numbers: np.ndarray) -> float:
        return float(-np.log(category.probabilities(nearer, homely, *numbers)[np.arange(len(true)), true]).mean())

    slope, bias, weight = numbers = minimize(unlikeliness, [3.0, -4.0, 1.0], method="Nelder-Mead").x
    named = {"slope": slope, "bias": bias, "weight": weight}
    head = {name: round(float(value), 3) for name, value in named.items()} | {"everyday": everyday, "background": texts}
    (HERE / "category-head.json").write_text(json.dumps(head, indent=1, ensure_ascii=False) + "\n")
    print(f"slope {slope:.3f}, bias {bias:.3f}, weight {weight:.3f}, mean log loss {unlikeliness(numbers):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
