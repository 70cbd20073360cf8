"""What a data set asks of a model: columns, label names, metrics, and the hyperparameters the paper trained it with.

The hyperparameters are those of Table 4 of *Marginal Utility Diminishes* (Liu et al., 2021); columns and label names are
GLUE's on the hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from hskstore.config import LabelKind
from hskstore.errors import OptionError, StoreError

METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman")


@dataclass(frozen=True)
class PhaseDefaults:
    """The hyperparameters of one training phase."""

    lr: float
    batch_size: int
    epochs: int


@dataclass(frozen=True)
class TaskDefaults:
    """HSK first, at a constant rate; then the teacher's predictions, at one that decays linearly to 0 (Table 4)."""

    hidden: PhaseDefaults
    prediction: PhaseDefaults


DEFAULTS = TaskDefaults(hidden=PhaseDefaults(5e-5, 32, 10), prediction=PhaseDefaults(2e-5, 32, 5))
DEFAULT_MAX_LENGTH = 128


@dataclass(frozen=True)
class Task:
    """`text` names one or two columns, `label` one (None: unlabelled); `labels` are class names by id.

    `labels` is () for a score, and for classes whose names are unknown. The first of `metrics` decides which checkpoint is
    best.
    """

    name: str
    kind: LabelKind
    text: tuple[str, ...]
    label: str | None
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    max_length: int
    defaults: TaskDefaults

    @property
    def num_labels(self) -> int:
        """Width of the logits: 1 for a score; 0 while the classes are unknown."""
        return 1 if self.kind == "score" else len(self.labels)

    def as_json(self) -> dict[str, object]:
        """What a store keeps of its task; the defaults and `max_length` are the reader's."""
        return {
            "name": self.name,
            "kind": self.kind,
            "text": list(self.text),
            "label": self.label,
            "labels": list(self.labels),
            "metrics": list(self.metrics),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Task:
        """The inverse of `as_json`; `defaults` and `max_length` come from TASKS by name, else they are DEFAULTS.

        Raises StoreError for what `as_json` never wrote.
        """
        lists = [data.get(name) for name in ("text", "labels", "metrics")]
        words = [data.get("name"), data.get("label") or "", *(word for part in lists if isinstance(part, list) for word in part)]
        readable = all(isinstance(part, list) for part in lists) and all(isinstance(word, str) for word in words)
        if not readable or data.get("kind") not in get_args(LabelKind) or not set(METRICS) & set(data["metrics"]):
            raise StoreError("the store's plan has no task that this hskstore knows: it is damaged, or of a later version")
        known = TASKS.get(data["name"])
        return cls(
            name=data["name"],
            kind=data["kind"],
            text=tuple(data["text"]),
            label=data["label"],
            labels=tuple(data["labels"]),
            metrics=tuple(metric for metric in data["metrics"] if metric in METRICS),
            max_length=known.max_length if known else DEFAULT_MAX_LENGTH,
            defaults=known.defaults if known else DEFAULTS,
        )


_SMALL_PAIRS = TaskDefaults(hidden=PhaseDefaults(5e-5, 32, 20), prediction=PhaseDefaults(2e-5, 32, 5))
_MNLI = TaskDefaults(hidden=PhaseDefaults(5e-5, 64, 5), prediction=PhaseDefaults(5e-5, 64, 5))
_PAIR = ("sentence1", "sentence2")

TASKS: dict[str, Task] = {
    "cola": Task(
        name="cola",
        kind="classes",
        text=("sentence",),
        label="label",
        labels=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        max_length=64,
        defaults=TaskDefaults(hidden=PhaseDefaults(5e-5, 32, 30), prediction=PhaseDefaults(2e-5, 32, 5)),
    ),
    "sst2": Task(
        name="sst2",
        kind="classes",
        text=("sentence",),
        label="label",
        labels=("negative", "positive"),
        metrics=("accuracy",),
        max_length=64,
        defaults=TaskDefaults(hidden=PhaseDefaults(5e-5, 32, 10), prediction=PhaseDefaults(2e-5, 32, 5)),
    ),
    "mrpc": Task(
        name="mrpc",
        kind="classes",
        text=_PAIR,
        label="label",
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        max_length=128,
        defaults=_SMALL_PAIRS,
    ),
    "stsb": Task(
        name="stsb",
        kind="score",
        text=_PAIR,
        label="label",
        labels=(),
        metrics=("spearman", "pearson"),
        max_length=128,
        defaults=_SMALL_PAIRS,
    ),
    # The paper has no QQP; its size and its kind are MNLI's.
    "qqp": Task(
        name="qqp",
        kind="classes",
        text=("question1", "question2"),
        label="label",
        labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        max_length=128,
        defaults=_MNLI,
    ),
    "mnli": Task(
        name="mnli",
        kind="classes",
        text=("premise", "hypothesis"),
        label="label",
        labels=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        max_length=128,
        defaults=_MNLI,
    ),
    "qnli": Task(
        name="qnli",
        kind="classes",
        text=("question", "sentence"),
        label="label",
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        max_length=128,
        defaults=TaskDefaults(hidden=PhaseDefaults(5e-5, 64, 5), prediction=PhaseDefaults(2e-5, 64, 5)),
    ),
    "rte": Task(
        name="rte",
        kind="classes",
        text=_PAIR,
        label="label",
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        max_length=128,
        defaults=_SMALL_PAIRS,
    ),
    # The paper has no WNLI; it is RTE's kind of small set.
    "wnli": Task(
        name="wnli",
        kind="classes",
        text=_PAIR,
        label="label",
        labels=("not_entailment", "entailment"),
        metrics=("accuracy",),
        max_length=128,
        defaults=_SMALL_PAIRS,
    ),
}


def get_task(name: str) -> Task:
    """The GLUE task of this name in any spelling: `sst2`, `SST-2`, `sts_b`. Raises OptionError for any other."""
    task = TASKS.get(re.sub(r"[^a-z0-9]", "", name.lower()))
    if task is None:
        raise OptionError(
            f"unknown task {name!r}; the known ones are {', '.join(TASKS)}; for any other data pass --text and --label"
        )
    return task
