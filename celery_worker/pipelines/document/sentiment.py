"""How positive each sentence is: a linear head on its vector, on VADER's lexicon and on its words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

HEAD = "sentiment-head"  # in models.yaml; made by models/train_sentiment.py
WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[!?]|[:;]-?[()dp]")
CHARACTERS = 2_000  # of a sentence; what is longer is hardly one


@dataclass(frozen=True)
class Head:
    """Weights of a vector, of the lexicon's scores, of words and pairs. Within `band` of 0 a score is neutral."""

    vector: np.ndarray
    lexicon: np.ndarray
    grams: Mapping[str, float]
    bias: float
    band: float

    @classmethod
    def load(cls, path: Path) -> Head:
        """From the JSON that the training wrote."""
        return cls.of(json.loads(path.read_text()))

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Head:
        """From what that JSON says."""
        vector, lexicon = (np.array(data[name], np.float32) for name in ("vector", "lexicon"))
        return cls(vector, lexicon, data["grams"], data["bias"], data["band"])

    def scores(self, vectors: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """-1 (as negative as people find a sentence) to 1, one for each text and its vector."""
        words = [sum(self.grams.get(gram, 0.0) for gram in sorted(grams(text))) for text in texts]
        lexicon = np.array([lexicon_scores(text) for text in texts], np.float32)
        whole: np.ndarray = vectors @ self.vector + lexicon @ self.lexicon + np.array(words) + self.bias
        return whole.clip(-1.0, 1.0)

    def label(self, score: float) -> str:
        """negative, neutral or positive."""
        return "neutral" if abs(score) <= self.band else "positive" if score > 0 else "negative"


def grams(text: str) -> set[str]:
    """The words of a sentence, and its pairs of words."""
    words = WORD.findall(text[:CHARACTERS].lower().replace("\u2019", "'"))
    return {*words, *(f"{one} {next_}" for one, next_ in pairwise(words))}


def lexicon_scores(text: str) -> list[float]:
    """VADER's compound score, and its shares of positive, negative and neutral words."""
    found = _lexicon().polarity_scores(text[:CHARACTERS])
    return [found[name] for name in ("compound", "pos", "neg", "neu")]


def whole(scores: Sequence[float], head: Head) -> dict[str, Any]:
    """The document's sentiment: the mean over its sentences, and how many of them are what."""
    labels = [head.label(score) for score in scores]
    mean = float(np.mean(scores)) if len(scores) else 0.0
    return {
        "score": round(mean, 4),
        "label": head.label(mean),
        "sentences": {name: labels.count(name) for name in ("positive", "neutral", "negative")},
    }


def telling(vectors: np.ndarray, texts: Sequence[str], wanted: int) -> list[int]:
    """The sentences nearest to what all say, each unlike those before it; their numbers, in order of reading."""
    middle = vectors.mean(axis=0)
    nearness = vectors @ (middle / max(float(np.linalg.norm(middle)), 1e-12))
    words = np.array([len(text.split()) for text in texts])
    nearness[(words < 5) | (words > 60)] -= 1.0  # a heading or a list is hardly a sentence
    chosen: list[int] = []
    repeats = np.zeros(len(texts))
    while len(chosen) < min(wanted, len(texts)):
        value = 0.7 * nearness - 0.3 * repeats
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
        repeats = np.maximum(repeats, vectors @ vectors[chosen[-1]])
    return sorted(chosen)


@cache
def _lexicon() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
