"""A log-linear classifier of words in their order, which sees what it said of the words before: hashed features, NumPy alone"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Int, Shaped, UInt64
from scipy.sparse import csr_matrix

Template = tuple[tuple[int, int], ...]
"""What a feature is made of: attributes of words, each by its column and the word's place from the one that is classified."""

BUCKETS = 2**17
"""Rows of a classifier's weights. A feature's row is its hash, so that none is stored; those that share one learn together."""

EPOCHS, BATCH, RATE, SEED = 4, 1024, 0.2, 0
REACH = 2
"""Words before and behind the one that is classified, that are seen at most."""

BEYOND, FIRST = 1, 2
"""What stands in every column beyond the ends of a text; and the least that stands for an attribute, or, plus its number, a
label."""

_SLICE = 2**15
_ODD, _OTHER_ODD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_FOLD, _DOWN = np.uint64(29), np.uint64(64 - BUCKETS.bit_length() + 1)


@dataclass(frozen=True)
class Words:
    """The words of some texts, one after the other, with REACH empty places before and behind each text.

    `columns` are a word's attributes; `start` is the place of each text's first word, `n_words` how many it has.
    """

    columns: UInt64[np.ndarray, "place column"]
    start: Int[np.ndarray, " text"]
    n_words: Int[np.ndarray, " text"]

    @classmethod
    def laid(cls, attributes: UInt64[np.ndarray, "word attribute"], n_words: Int[np.ndarray, " text"], labels: int) -> Words:
        """The words of all texts, with so many columns for labels to come behind their attributes."""
        start = REACH + np.cumsum(n_words + REACH) - (n_words + REACH)
        shape = int(n_words.sum()) + REACH * (len(n_words) + 1), attributes.shape[1] + labels
        words = cls(np.full(shape, BEYOND, dtype=np.uint64), start, n_words)
        words.columns[words.places, : attributes.shape[1]] = attributes
        return words

    @property
    def places(self) -> Int[np.ndarray, " word"]:
        """Of the words, in their order."""
        before = np.cumsum(self.n_words) - self.n_words
        found: np.ndarray = np.arange(int(self.n_words.sum())) + np.repeat(self.start - before, self.n_words)
        return found

    def put(self, column: int, labels: Int[np.ndarray, " word"]) -> None:
        """Say the number of each word's label."""
        self.columns[self.places, column] = labels + FIRST


@dataclass(frozen=True)
class Classifier:
    """A label for every word: that of the largest sum of the `weights` of its features. `said` is the column of its own labels,
    of which `templates` see those of words before."""

    labels: tuple[str, ...]
    templates: tuple[Template, ...]
    said: int
    weights: Float16[np.ndarray, "bucket label"]

    def say(self, words: Words) -> Int[np.ndarray, " word"]:
        """The number of each word's label, which is put into the column `said` too. What it says of a text depends on no other
        text."""
        numbered = list(enumerate(self.templates))
        later = [(number, template) for number, template in numbered if any(column == self.said for column, _ in template)]
        now = [(number, template) for number, template in numbered if (number, template) not in later]
        weights = self.weights.astype(np.float32)
        places = words.places
        score = np.zeros((len(words.columns), len(self.labels)), dtype=np.float32)
        for start in range(0, len(places), _SLICE):
            at = places[start : start + _SLICE]
            score[at] = _ones(_buckets(words, now, at), BUCKETS) @ weights
        # All texts at once, word by word, the longest first: at each step those that have a word there.
        order = np.argsort(-words.n_words, kind="stable")
        lengths = -words.n_words[order]
        for step in range(int(words.n_words.max(initial=0))):
            at = words.start[order[: np.searchsorted(lengths, -step)]] + step
            total = score[at]
            for bucket in _buckets(words, later, at).T:
                total += weights[bucket]
            words.columns[at, self.said] = total.argmax(axis=1) + FIRST
        found: np.ndarray = words.columns[places, self.said].astype(np.int64) - FIRST
        return found


def train_classifier(
    words: Words, labels: Sequence[str], gold: Int[np.ndarray, " word"], templates: Sequence[Template], said: int
) -> Classifier:
    """Multinomial logistic regression, by AdaGrad with a rate for each row of weights; of words before it sees the gold labels.

    The same words and labels give the same weights.
    """
    words.put(said, gold)
    buckets = _buckets(words, list(enumerate(templates)), words.places)
    weights = np.zeros((BUCKETS, len(labels)), dtype=np.float32)
    squares = np.full((BUCKETS, 1), 1e-8, dtype=np.float32)
    rng = np.random.default_rng(SEED)
    for _ in range(EPOCHS):
        order = rng.permutation(len(buckets))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            rows, inside = np.unique(buckets[batch], return_inverse=True)
            features = _ones(inside.reshape(len(batch), -1), len(rows))
            score = features @ weights[rows]
            wrong = np.exp(score - score.max(axis=1, keepdims=True))
            wrong /= wrong.sum(axis=1, keepdims=True)
            wrong[np.arange(len(batch)), gold[batch]] -= 1
            gradient = features.T @ wrong / len(batch)
            squares[rows] += (gradient**2).sum(axis=1, keepdims=True)
            weights[rows] -= RATE * gradient / np.sqrt(squares[rows])
    return Classifier(tuple(labels), tuple(templates), said, weights.astype(np.float16))


def hashed(text: str) -> int:
    """What stands in a column for a text: the same on every machine."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) + FIRST


def _buckets(words: Words, templates: Sequence[tuple[int, Template]], at: np.ndarray) -> np.ndarray:
    """The row of weights of each feature [word, template] of the words at some places."""
    found = np.empty((len(at), len(templates)), dtype=np.int32)
    for index, (number, template) in enumerate(templates):
        mixed = np.full(len(at), number + 1, dtype=np.uint64) * _OTHER_ODD
        for column, place in template:
            mixed = (mixed ^ words.columns[at + place, column]) * _ODD
            mixed ^= mixed >> _FOLD
        found[:, index] = mixed * _OTHER_ODD >> _DOWN
    return found


def _ones(columns: Shaped[np.ndarray, "row entry"], width: int) -> csr_matrix:
    """A matrix of so many columns with a one wherever `columns` says."""
    rows, entries = columns.shape
    ends = np.arange(rows + 1) * entries
    return csr_matrix((np.ones(columns.size, dtype=np.float32), columns.ravel(), ends), shape=(rows, width))
