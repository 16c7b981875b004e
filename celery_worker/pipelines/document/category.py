"""What a document is about: how much nearer its chunks are to a category's sentence than other texts are.

A nearness of vectors is no probability, and differs from sentence to sentence. So each category's nearness is
compared with that of a background of passages about anything, and three numbers, fitted on labelled passages, turn
the difference into probabilities. What is near to none, or near to passages of everyday life, is `other`. This holds
for a caller's own categories too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HEAD = "category-head"  # in models.yaml; made by models/train_category.py
OTHER = "other"
ALIKE = 5  # everyday passages: fewer follow single words, more are a mixture; by log loss on the passages for fitting
DEFAULTS: Mapping[str, str] = {
    "politics": "Politics: the government, the parliament and the parties argue about an election and a new policy.",
    "business": "Business: the company told investors about its revenue and profit, and markets and prices moved.",
    "technology": "Technology: engineers released new software, computers, networks and devices.",
    "science": "Science: researchers published an experiment, a measurement or a proof that explains how nature works.",
    "health": "Health: illness, symptoms, medicine and exercise, and what doctors and nurses advise.",
    "sports": "Sports: the players of the team won the match in the last minute of the season.",
    "arts": "Arts: the film, the novel, the music and the exhibition were praised by critics.",
    "travel": "Travel: tourists visit the island, its hotels and its sights on their journey.",
    "food": "Food: recipes, ingredients and restaurants, and what people cook, eat and drink.",
    "law": "Law: the court heard the case, the police found evidence, and the judge convicted the defendant.",
}


@dataclass(frozen=True)
class Head:
    """The three numbers, and the background; the last `everyday` passages of it are about none of the categories."""

    slope: float
    bias: float
    weight: float
    background: tuple[str, ...]
    everyday: int

    @classmethod
    def load(cls, path: Path) -> Head:
        """From the JSON that the training wrote."""
        data = json.loads(path.read_text())
        return cls(data["slope"], data["bias"], data["weight"], tuple(data["background"]), data["everyday"])


def judge(chunks: np.ndarray, categories: np.ndarray, background: np.ndarray, head: Head) -> np.ndarray:
    """How likely each chunk is about each category, and in the last column about none of them. [chunks, n + 1]."""
    nearer, homely = distances(chunks, categories, background), homeliness(chunks, background, head.everyday)
    return probabilities(nearer, homely, head.slope, head.bias, head.weight)


def distances(chunks: np.ndarray, categories: np.ndarray, background: np.ndarray) -> np.ndarray:
    """For each chunk and category: by how many deviations of the background the chunk is nearer. [chunks, n]."""
    usual = background @ categories.T
    nearer: np.ndarray = (chunks @ categories.T - usual.mean(axis=0)) / (usual.std(axis=0) + 1e-6)
    return nearer


def homeliness(chunks: np.ndarray, background: np.ndarray, everyday: int) -> np.ndarray:
    """By how many deviations of the background a chunk is nearer to the ALIKE nearest everyday passages. [chunks]."""
    passages = background[len(background) - everyday :]
    usual = background @ passages.T
    np.fill_diagonal(usual[len(background) - everyday :], -np.inf)  # none is its own neighbour
    of_background, of_chunks = (_nearest(found) for found in (usual, chunks @ passages.T))
    nearer: np.ndarray = (of_chunks - of_background.mean()) / (of_background.std() + 1e-6)
    return nearer


def probabilities(nearer: np.ndarray, homely: np.ndarray, slope: float, bias: float, weight: float) -> np.ndarray:
    """Of each category, and in the last column of none of them. [chunks, n + 1]."""
    logits = np.hstack([slope * nearer + bias, weight * homely[:, None]])
    grown = np.exp(logits - logits.max(axis=1, keepdims=True))
    shared: np.ndarray = grown / grown.sum(axis=1, keepdims=True)
    return shared


def shares(found: np.ndarray, lengths: Sequence[int], names: Sequence[str]) -> list[dict[str, float | str]]:
    """How much of the document is about each category, the largest first, with `other` among them."""
    weights = np.asarray(lengths, float)
    whole = (found * weights[:, None]).sum(axis=0) / weights.sum()
    order = np.argsort(-whole, kind="stable")
    return [{"category": [*names, OTHER][n], "score": round(float(whole[n]), 4)} for n in order]


def _nearest(found: np.ndarray) -> np.ndarray:
    mean: np.ndarray = np.sort(found, axis=1)[:, -ALIKE:].mean(axis=1)
    return mean
