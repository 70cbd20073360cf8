"""How good predictions are: a task's metrics, and one standard error of each over the choice of rows."""

from __future__ import annotations

import logging
import math
import statistics
import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray

from hskstore.text.tasks import Task

log = logging.getLogger(__name__)


def compute_metrics(task: Task, logits: Float[np.ndarray, "row class"], label: Shaped[np.ndarray, " row"]) -> dict[str, float]:
    """The task's metrics, in its order, each between -1 and 1.

    `logits` has one class for a score; `label` are class ids, or scores. F1 is that of class 1 where there are two classes, else
    the mean over the classes that occur.
    """
    assert logits.ndim == 2 and len(logits) == len(label) > 0, (logits.shape, label.shape)
    if task.kind == "score":
        assert logits.shape[1] == 1, logits.shape
        prediction = logits[:, 0].astype(np.float64)
    else:
        prediction = logits.argmax(axis=1)
    return {metric: _metric(metric, prediction, label, n_classes=logits.shape[1]) for metric in task.metrics}


def _metric(name: str, prediction: NDArray[Any], label: NDArray[Any], *, n_classes: int) -> float:
    if name == "accuracy":
        return float((prediction == label).mean())
    if name == "f1":
        from sklearn.metrics import f1_score

        classes = [1] if n_classes == 2 else None  # None: every class that stands in label or prediction
        return float(cast(Any, f1_score)(label, prediction, labels=classes, average="macro", zero_division=0))
    if name == "matthews":
        from sklearn.metrics import matthews_corrcoef

        return float(cast(Any, matthews_corrcoef)(label, prediction))
    assert name in ("pearson", "spearman"), name
    return _correlation(name, prediction, label.astype(np.float64))


def _correlation(name: str, prediction: NDArray[np.float64], label: NDArray[np.float64]) -> float:
    import scipy.stats

    if len(label) < 2:
        return 0.0
    correlate: Any = scipy.stats.pearsonr if name == "pearson" else scipy.stats.spearmanr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = float(correlate(prediction, label).statistic)
    # A constant (or diverged) prediction has no correlation, only 0/0. It tells nothing about the label: 0.0 says so, and
    # NaN would poison the comparisons that pick the best checkpoint.
    return 0.0 if np.isnan(value) else value


RESAMPLES = 200


def standard_errors(
    task: Task, logits: Float[np.ndarray, "row class"], label: Shaped[np.ndarray, " row"], *, seed: int = 0
) -> dict[str, float]:
    """One standard error of each metric over the choice of rows: the spread over bootstrap resamples (Efron, 1979)."""
    rng = np.random.default_rng(seed)
    drawn = [compute_metrics(task, logits[rows], label[rows]) for rows in rng.integers(0, len(label), (RESAMPLES, len(label)))]
    return {metric: statistics.stdev(scores[metric] for scores in drawn) for metric in drawn[0]}


FEWEST_GAINED = 0.1
"""What another order of the classes must gain, of all rows, to be worth a word."""

STANDARD_ERRORS = 4
"""By how many of them it must be better, over the rows in which the two orders differ."""


def better_order(
    logits: Float[np.ndarray, "row class"], label: Int[np.ndarray, " row"]
) -> tuple[Int[np.ndarray, " class"], float, float] | None:
    """The order of a model's outputs that fits the labels far better than theirs, if there is one: the output of each class; and
    the accuracy as it is, and in that order."""
    from scipy.optimize import linear_sum_assignment

    said, classes = logits.argmax(axis=1), logits.shape[1]
    together = np.zeros((classes, classes), dtype=np.int64)  # [class, output]
    np.add.at(together, (label, said), 1)
    _, order = linear_sum_assignment(together, maximize=True)
    own, best = int(np.trace(together)), int(together[np.arange(classes), order].sum())
    differing = int(((said == label) != (order[label] == said)).sum())
    gained = best - own >= max(1.0, FEWEST_GAINED * len(label), STANDARD_ERRORS * math.sqrt(differing))
    if not gained or best <= together.sum(axis=1).max():  # as good is a model that always says the same
        return None
    return order, own / len(label), best / len(label)


def tell_better_order(
    names: Sequence[str], logits: Float[np.ndarray, "row class"], label: Int[np.ndarray, " row"], *, model: str
) -> None:
    """Warn where a classifier, whose outputs are taken for the classes `names` in that order, fits the labels far better in
    another."""
    found = better_order(logits, label)
    if found is None:
        return
    order, own, best = found
    log.warning(
        "%s: its outputs fit the labels far better in another order: accuracy %.3f as they are taken (%s), %.3f as %s. If that is"
        " what they stand for, write it as id2label into its config.json and run this again; else labels and model do not belong"
        " together",
        model,
        own,
        ", ".join(names),
        best,
        ", ".join(names[at] for at in np.argsort(order).tolist()),
    )
