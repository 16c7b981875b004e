"""Sentences to vectors: all-MiniLM-L6-v2 with int8 weights, mean over tokens, length 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

MODEL, TOKENIZER = "minilm", "minilm-tokenizer"  # in models.yaml
WIDTH = 384
MAX_TOKENS = 256  # what the model was trained with; the rest of a longer text is not seen


class Encoder:
    """Texts to an array [n, 384] of rows of length 1."""

    def __init__(self, session: Any, tokenizer: Path) -> None:
        self._session = session
        self._tokenizer = _tokenizer(tokenizer)
        self._names = {given.name for given in session.get_inputs()}

    def __call__(self, texts: Sequence[str], tick: Callable[[int], None] = lambda n: None) -> np.ndarray:
        """`tick` hears how many are done, after each."""
        vectors = np.zeros((len(texts), WIDTH), np.float32)
        for n, text in enumerate(texts):
            vectors[n] = self._one(text)
            tick(n + 1)
        return vectors

    def _one(self, text: str) -> np.ndarray:
        # One text a run: the weights' activations are quantised over the whole batch, so that a text's vector would
        # depend on its neighbours. On a CPU a batch of padded texts is not faster either.
        encoding = self._tokenizer.encode(text)
        ids = np.array([encoding.ids], np.int64)
        mask = np.ones_like(ids)
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden = self._session.run(None, {name: given[name] for name in self._names})[0][0]
        pooled: np.ndarray = hidden.mean(axis=0)
        pooled /= max(float(np.linalg.norm(pooled)), 1e-12)
        return pooled


@lru_cache(maxsize=2)
def _tokenizer(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(max_length=MAX_TOKENS)
    tokenizer.no_padding()
    return tokenizer
