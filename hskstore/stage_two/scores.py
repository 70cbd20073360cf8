"""Scores of a model on rows, with a standard error."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import nn

from hskstore.losses import hard_cross_entropy, score_mse
from hskstore.methods.batch import Batch
from hskstore.models.run import put_back, run_model
from hskstore.stage_two.learner import Learner
from hskstore.stage_two.rows import TrainingRows
from hskstore.text.metrics import compute_metrics, standard_errors
from hskstore.text.tasks import Task
from hskstore.watch import Watch, unwatched

EVALUATION_BATCH = 64
REWARD_ROWS = 1000
"""Of the validation rows, at most: what a reward is found on, always the same ones."""


def predict(
    model: nn.Module, rows: TrainingRows, *, stage: str = "score", watch: Watch = unwatched
) -> Float[np.ndarray, "row class"]:
    """Logits in float32, in the rows' order, in eval mode, where the model is; its mode is then what it was."""
    order: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    done = 0
    with put_back(model), torch.inference_mode():
        model.eval()
        for batch_rows in rows.in_length_order(EVALUATION_BATCH):
            order.append(batch_rows)
            logits.append(logits_of(model, rows.batch(batch_rows)).cpu().numpy())
            done += len(batch_rows)
            watch(stage, done, len(rows))
    found = np.concatenate(logits)
    found[np.concatenate(order)] = found.copy()
    return found


def logits_of(model: nn.Module, batch: Batch) -> Float[torch.Tensor, "batch class"]:
    return run_model(model, *batch.inputs).logits


@dataclass(frozen=True)
class Scored:
    """A model's metrics on some rows, with one standard error each."""

    score: dict[str, float]
    standard_error: dict[str, float]
    rows: int


def score_rows(task: Task, logits: Float[np.ndarray, "row class"], label: Shaped[np.ndarray, " row"]) -> Scored:
    """Logits against gold labels."""
    return Scored(compute_metrics(task, logits, label), standard_errors(task, logits, label), len(label))


def predict_splits(
    model: nn.Module, splits: Mapping[str, TrainingRows], watch: Watch = unwatched
) -> dict[str, Float[np.ndarray, "row class"]]:
    """The logits of each split that has labels."""
    labelled = {name: rows for name, rows in splits.items() if rows.label is not None}
    return {name: predict(model, rows, stage=f"score {name}", watch=watch) for name, rows in labelled.items()}


def score_splits(
    task: Task, logits: Mapping[str, Float[np.ndarray, "row class"]], splits: Mapping[str, TrainingRows]
) -> dict[str, Scored]:
    """Each split of which there are logits, and so labels."""
    return {name: score_rows(task, said, label) for name, said in logits.items() if (label := splits[name].label) is not None}


@dataclass(frozen=True)
class DevScore:
    """A dev score: which metric decided, and all of them."""

    metric: str
    values: dict[str, float]

    @property
    def value(self) -> float:
        return self.values[self.metric]


OnScore = Callable[[DevScore, int, bool], None]
"""Told each dev score of a run, the how manyth of the run it is, from 1 on, and whether it is the last."""


def dev_score(task: Task, validation: TrainingRows, watch: Watch = unwatched) -> Callable[[Learner], DevScore] | None:
    """The dev score of a learner's student; None where the validation rows have no labels."""
    label = validation.label
    if label is None:
        return None

    def score(learner: Learner) -> DevScore:
        logits = predict(learner.student, validation, stage="dev score", watch=watch)
        return DevScore(task.metrics[0], compute_metrics(task, logits, label))

    return score


def dev_worth(task: Task, validation: TrainingRows, reward: Literal["loss", "metric"]) -> Callable[[Learner], float]:
    """How good a learner's student is on labelled validation rows, `REWARD_ROWS` of them at most: less its mean cross-entropy, or
    squared difference of a score; or the task's first metric."""
    rows = validation.at_most(REWARD_ROWS)
    label = rows.label
    assert label is not None

    def worth(learner: Learner) -> float:
        logits = predict(learner.student, rows, stage="reward")
        if reward == "metric":
            return compute_metrics(task, logits, label)[task.metrics[0]]
        own, gold = torch.from_numpy(logits), torch.from_numpy(label)
        term = hard_cross_entropy(own, gold.long()) if task.kind == "classes" else score_mse(own, gold)
        return -float(term.value)

    return worth
