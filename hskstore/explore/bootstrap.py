"""Which of several students are better, and which cannot be told apart: a paired bootstrap over the rows that are scored."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Shaped

from hskstore.text.tasks import Task

DRAWS = 1000
SHARES = (0.025, 0.975)
"""The ends of an interval that holds 95 % of the draws."""

BLOCK = 2**20
"""Draws times rows that are in memory at once."""


def draws(
    task: Task,
    logits: Mapping[str, Sequence[Float[np.ndarray, "row class"]]],
    gold: Shaped[np.ndarray, " row"],
) -> dict[str, Float[np.ndarray, " draw"]]:
    """The task's first metric of each configuration, mean over the logits of its seeds, on the same draws of the rows for all
    (Efron, 1979)."""
    measure = _correlations if task.kind == "score" else _counted
    found: dict[str, list[np.ndarray]] = {name: [] for name in logits}
    for chosen in _chosen(len(gold)):
        metric = measure(task, gold, chosen)
        for name, of_seeds in logits.items():
            found[name].append(np.mean([metric(said) for said in of_seeds], axis=0))
    return {name: np.concatenate(parts) for name, parts in found.items()}


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


def _chosen(rows: int) -> Iterator[np.ndarray]:
    """Rows drawn with replacement, DRAWS times, as many draws at a time as BLOCK allows."""
    rng = np.random.default_rng(0)
    at_once = max(1, BLOCK // rows)
    for start in range(0, DRAWS, at_once):
        yield rng.integers(0, rows, (min(at_once, DRAWS - start), rows))


def _counted(task: Task, gold: np.ndarray, chosen: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The first metric of a task of classes, of logits on some draws, as `compute_metrics` has it."""
    rows, metric = len(gold), task.metrics[0]
    times = np.stack([np.bincount(draw, minlength=rows) for draw in chosen]).astype(np.float32)

    def measure(logits: np.ndarray) -> np.ndarray:
        classes = logits.shape[1]
        each = np.zeros((rows, classes * classes), dtype=np.float32)
        each[np.arange(rows), gold * classes + logits.argmax(axis=1)] = 1
        counts = (times @ each).reshape(-1, classes, classes).astype(np.float64)  # draw, gold, said: whole numbers, exact
        if metric == "accuracy":
            return _right(counts) / rows
        return _matthews(counts) if metric == "matthews" else _f1(counts)

    return measure


def _correlations(task: Task, gold: np.ndarray, chosen: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The same of a task of scores: Pearson's, of the ranks where it is Spearman's; 0 where one of the two is constant."""
    from scipy.stats import rankdata

    def centred(scores: np.ndarray) -> np.ndarray:
        part = scores.astype(np.float64)[chosen]
        if task.metrics[0] == "spearman":
            part = rankdata(part, axis=1)
        return np.asarray(part - part.mean(axis=1, keepdims=True))

    theirs = centred(gold)
    spread_of_gold = (theirs**2).sum(axis=1)

    def measure(logits: np.ndarray) -> np.ndarray:
        mine = centred(logits[:, 0])
        spread = np.sqrt((mine**2).sum(axis=1) * spread_of_gold)
        return np.asarray(np.divide((mine * theirs).sum(axis=1), spread, out=np.zeros(len(chosen)), where=spread > 0))

    return measure


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
