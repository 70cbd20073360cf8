"""Which of several students are better, and which cannot be told apart: a paired bootstrap over the rows that are scored."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Shaped

from hskstore.text.tasks import Task

DRAWS = 1000
SHARES = (0.025, 0.975)
"""The ends of an interval that holds 95 % of the draws."""


def draws(
    task: Task,
    logits: Mapping[str, Sequence[Float[np.ndarray, "row class"]]],
    gold: Shaped[np.ndarray, " row"],
) -> dict[str, Float[np.ndarray, " draw"]]:
    """The task's first metric of each configuration, mean over the logits of its seeds, on the same draws of the rows for all
    (Efron, 1979)."""
    drawing = _Drawing(len(gold))
    return {name: np.mean([_drawn(task, said, gold, drawing) for said in of_seeds], axis=0) for name, of_seeds in logits.items()}


def groups(scores: Mapping[str, float], drawn: Mapping[str, Float[np.ndarray, " draw"]]) -> list[list[str]]:
    """The configurations, best first, in groups: in each the first one and those that cannot be told from it."""
    left = sorted(scores, key=lambda name: -scores[name])
    found: list[list[str]] = []
    while left:
        leader = left[0]
        group = [name for name in left if name == leader or not is_better(drawn[leader], drawn[name])]
        found.append(group)
        left = [name for name in left if name not in group]
    return found


def is_better(one: Float[np.ndarray, " draw"], other: Float[np.ndarray, " draw"]) -> bool:
    """Whether one is better than the other in 97.5 % of the draws."""
    return bool(np.quantile(one - other, SHARES[0]) > 0)


def interval(one: Float[np.ndarray, " draw"], other: Float[np.ndarray, " draw"]) -> tuple[float, float]:
    """How much better one is than the other: what 95 % of the draws lie between."""
    low, high = (float(np.quantile(one - other, share)) for share in SHARES)
    return low, high


def _drawn(task: Task, logits: np.ndarray, gold: np.ndarray, drawing: "_Drawing") -> np.ndarray:
    """The first metric of some logits on every draw of the rows, as `compute_metrics` has it."""
    metric = task.metrics[0]
    if task.kind == "score":
        said = logits[:, 0].astype(np.float64)[drawing.chosen]
        return _correlations(said, gold.astype(np.float64)[drawing.chosen], ranked=metric == "spearman")
    classes = logits.shape[1]
    each = np.zeros((len(gold), classes * classes), dtype=np.float32)
    each[np.arange(len(gold)), gold * classes + logits.argmax(axis=1)] = 1
    counts = (drawing.times @ each).reshape(-1, classes, classes).astype(np.float64)  # draw, gold, said: whole numbers, exact
    if metric == "accuracy":
        return _right(counts) / len(gold)
    return _matthews(counts) if metric == "matthews" else _f1(counts)


class _Drawing:
    """Rows drawn with replacement, DRAWS times: which, and how often each."""

    def __init__(self, rows: int) -> None:
        self.chosen = np.random.default_rng(0).integers(0, rows, (DRAWS, rows))
        self.times = np.stack([np.bincount(draw, minlength=rows) for draw in self.chosen]).astype(np.float32)


def _right(counts: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.trace(counts, axis1=1, axis2=2)
    return found


def _matthews(counts: np.ndarray) -> np.ndarray:
    """Of any number of classes (Gorodkin, 2004); 0 where all are of one class."""
    gold, said, rows = counts.sum(axis=2), counts.sum(axis=1), counts.sum(axis=(1, 2))
    spread = np.sqrt((rows**2 - (gold**2).sum(axis=1)) * (rows**2 - (said**2).sum(axis=1)))
    together = _right(counts) * rows - (gold * said).sum(axis=1)
    return np.asarray(np.divide(together, spread, out=np.zeros_like(together), where=spread > 0))


def _f1(counts: np.ndarray) -> np.ndarray:
    """Of class 1 where there are two, else the mean over the classes that occur."""
    both = counts.sum(axis=2) + counts.sum(axis=1)
    right = 2 * np.diagonal(counts, axis1=1, axis2=2)
    each = np.divide(right, both, out=np.zeros_like(both), where=both > 0)
    if counts.shape[1] == 2:
        return np.asarray(each[:, 1])
    found: np.ndarray = each.sum(axis=1) / (both > 0).sum(axis=1)
    return found


def _correlations(one: np.ndarray, other: np.ndarray, *, ranked: bool) -> np.ndarray:
    """Pearson's of each draw, of the ranks where `ranked` (Spearman's); 0 where one of the two is constant."""
    from scipy.stats import rankdata

    parts = [rankdata(part, axis=1) if ranked else part for part in (one, other)]
    mine, theirs = (part - part.mean(axis=1, keepdims=True) for part in parts)
    spread = np.sqrt((mine**2).sum(axis=1) * (theirs**2).sum(axis=1))
    return np.asarray(np.divide((mine * theirs).sum(axis=1), spread, out=np.zeros(len(one)), where=spread > 0))
