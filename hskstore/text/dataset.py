"""Any labelled text as `Dataset`: the splits asked for, their text columns as strings, their labels as ids.

`read_dataset` is all that the rest of the package calls; where the text lies is `hskstore.text.sources`' business.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Int64, Shaped
from numpy.typing import NDArray

from hskstore.config import LabelKind, check_choice
from hskstore.errors import DataError, ModelError, OptionError
from hskstore.text.files import read_file
from hskstore.text.labels import Labels, kind_and_classes, label_array, no_labels, read_labels, spelling
from hskstore.text.sources import Part, glue_task, open_source
from hskstore.text.spool import SLICE, ArrayFile, Column, spool_text
from hskstore.text.table import Table, listed_names
from hskstore.text.tasks import DEFAULT_MAX_LENGTH, DEFAULTS, Task, get_task

# GLUE's own files name some columns otherwise than the hub does (`Task.text`, `Task.label`).
_RAW_TEXT: dict[str, tuple[str, str]] = {"mrpc": ("#1 String", "#2 String"), "mnli": ("sentence1", "sentence2")}
_RAW_LABEL = {"mrpc": "Quality", "stsb": "score", "mnli": "gold_label", "qqp": "is_duplicate"}
log = logging.getLogger(__name__)

VALIDATION_SEED = 0
_GENERIC_LABEL = re.compile(r"LABEL_[0-9]+|[+-]?[0-9]+")


@dataclass(frozen=True)
class Examples:
    """One split of N rows: one or two columns of N strings; `label` [N], int64 ids or float32 scores (None: unlabelled).

    As `read_dataset` makes them, both lie on disk: slices of a column are lists, and `label` is read-only.
    """

    text: tuple[Sequence[str], ...]
    label: Shaped[np.ndarray, " row"] | None

    def __len__(self) -> int:
        return len(self.text[0])


@dataclass(frozen=True)
class Dataset:
    """`task` has its label names and kind filled in; `empty` counts, per split, rows without text (they are kept)."""

    task: Task
    splits: dict[str, Examples]
    empty: dict[str, int]

    def with_label_order(self, names: Sequence[str]) -> Dataset:
        """The same data with the ids of a model whose class names by id are `names`. Raises DataError as `label_ids` does."""
        if self.task.kind == "score" or not self.task.labels:
            return self
        new_id = label_ids(self.task.labels, names)
        labels = tuple(self.task.labels[i] for i in np.argsort(new_id))
        splits = {
            split: replace(examples, label=None if examples.label is None else _looked_up(new_id, examples.label))
            for split, examples in self.splits.items()
        }
        return replace(self, task=replace(self.task, labels=labels), splits=splits)


def fit_labels(dataset: Dataset, names: tuple[str, ...], model: str) -> Dataset:
    """The data set with its labels in the order of the classifier `model`, whose outputs have these names; without labels of
    its own it gets the classifier's. Raises ModelError where their numbers differ, DataError as `label_ids` does."""
    task = dataset.task
    if task.label is None:
        kind: LabelKind = "classes" if len(names) > 1 else "score"
        labels, metrics = (names, task.metrics) if kind == "classes" else ((), ("spearman", "pearson"))
        return replace(dataset, task=replace(task, kind=kind, labels=labels, metrics=metrics))
    if task.num_labels != len(names):
        wanted = "a score (one output)" if task.kind == "score" else f"{task.num_labels} classes ({listed_names(task.labels)})"
        raise ModelError(f"{model} has {len(names)} outputs; the task {task.name} needs {wanted}")
    return dataset.with_label_order(names) if task.kind == "classes" else dataset


def _looked_up(new_id: NDArray[np.int64], label: NDArray[Any]) -> NDArray[np.int64]:
    ids = ArrayFile(np.int64)
    for start in range(0, len(label), SLICE):
        ids.append(new_id[label[start : start + SLICE]])
    return ids.done()


def label_ids(own: Sequence[str], names: Sequence[str]) -> Int64[np.ndarray, " class"]:
    """The ids that the classes `own` have in a model whose class names by id are `names`.

    Names are compared exactly, then by their `spelling`. Where they differ, and those of one side say nothing (LABEL_0, 0), the
    order stays as it is. Raises DataError where both say something else, or their numbers differ.
    """
    key = next((f for f in (str, spelling) if {*map(f, own)} == {*map(f, names)} and len({*map(f, own)}) == len(own)), None)
    if len(own) == len(names) and key is not None:
        position = {key(name): i for i, name in enumerate(names)}
        return np.array([position[key(name)] for name in own], dtype=np.int64)
    if len(own) == len(names) and (_say_nothing(own) or _say_nothing(names)):
        return np.arange(len(own))
    raise DataError(
        f"the data set's classes ({listed_names(own)}) are not the model's ({listed_names(names)}): "
        "use a model fine-tuned on this task, or rename the labels in the data"
    )


def _say_nothing(names: Sequence[str]) -> bool:
    return all(_GENERIC_LABEL.fullmatch(name) for name in names)


def read_dataset(
    source: str,
    *,
    task: str | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    kind: LabelKind | None = None,
    validation: str | None = None,
    splits: Sequence[str] = ("train", "validation"),
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Read `splits` of `source`: a file, a folder of files, one of `save_to_disk`, or a data set's name on the hub.

    `task` names a GLUE task, whose columns and labels are known; `text` (one or two columns) and `label` stand in for
    them, and describe any other data; a file by itself is train, or the only split asked for. `validation` is a file, or
    the share of train, such as "0.1", that is taken out of it: always the same rows, so that no model is scored on rows
    that another one of the same data learnt from. With "validation", MNLI's mismatched one comes along where there is one.

    What the labels of data of no known task are says `kind`; without it `classes`, the class names of the model that will read
    them, () for one that gives a score; without them the labels themselves tell, see `kind_and_classes`.

    Raises DataError for what is wrong with the data, OptionError for what is wrong with the arguments.
    """
    known = get_task(task) if task is not None else glue_task(source)
    if kind is not None:
        check_choice("--kind", kind, get_args(LabelKind))
        if known is None and label is None:
            raise OptionError(f"--kind {kind} says what labels are: pass --label COLUMN too")
        if known is not None and kind != known.kind:
            raise OptionError(f"--kind {kind}: the task {known.name} is one of {known.kind}; leave out --task for other labels")
    if len(text) > 2:
        raise OptionError(f"--text was given {len(text)} times: a model reads one text column or two")
    share = _share(validation) if "validation" in splits else None

    place = open_source(source, known, text, splits=("train",) if share is not None and len(splits) == 1 else splits)
    parts = {split: place.need(split) for split in splits if split != "validation" or validation is None}
    if "validation" in splits:
        if share is not None:
            parts.setdefault("train", place.need("train"))
        elif validation is not None:
            path = Path(validation).expanduser()
            parts["validation"] = Part("validation", str(path), lambda: read_file(path, known, text))
        mismatched = place.find("validation_mismatched")
        if known is not None and known.name == "mnli" and mismatched is not None:
            parts["validation_mismatched"] = mismatched

    tables = {split: part.read() for split, part in parts.items()}
    guide = "train" if "train" in tables else next(iter(tables))
    if known is None and not text:
        raise OptionError(
            f"which columns of {tables[guide].where} hold the text? Pass --text COLUMN (twice for pairs) and --label COLUMN, or "
            f"--task for a GLUE task; its columns are {listed_names(tables[guide].columns)}"
        )
    labels = {split: _labels(table, known, label, split) for split, table in tables.items()}
    completed = _complete(known, text, label, labels[guide], classes, kind)
    read = {
        split: Examples(_text(table, completed, text), None if own is None else label_array(own, completed))
        for (split, table), own in zip(tables.items(), labels.values(), strict=True)
    }
    if share is not None:
        read["train"], read["validation"] = _divide(read["train"], share, parts["train"].where)
    order = [*splits, *(split for split in read if split not in splits and split == "validation_mismatched")]
    chosen = {split: read[split] for split in order}
    empty = {split: _without_text(examples) for split, examples in chosen.items()}
    for split, count in empty.items():
        if count:
            log.warning("%d rows of %s have no text; they are kept", count, split)
    return Dataset(task=completed, splits=chosen, empty=empty)


def _without_text(examples: Examples) -> int:
    return sum(not any(map(str.strip, row)) for row in zip(*examples.text, strict=True))


def _share(validation: str | None) -> float | None:
    """The share that `--validation` asks for, None where it is a file or not given."""
    if validation is None:
        return None
    try:
        share = float(validation)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise OptionError(f"--validation {validation}: a share of train lies between 0 and 1, such as 0.1; else pass a file")
    return share


def _divide(train: Examples, share: float, where: str) -> tuple[Examples, Examples]:
    """Train without the share, and the share; both keep the order of their rows."""
    n_taken = max(1, round(share * len(train)))
    if n_taken >= len(train):
        raise DataError(f"{where}: {len(train)} rows are too few to take a share of {share} for validation: pass a file")
    taken = np.zeros(len(train), dtype=np.bool_)
    taken[np.random.default_rng(VALIDATION_SEED).permutation(len(train))[:n_taken]] = True
    return _selected(train, ~taken), _selected(train, taken)


def _selected(examples: Examples, wanted: NDArray[np.bool_]) -> Examples:
    """The rows [N] that are wanted, in their order."""
    label = None if examples.label is None else ArrayFile(examples.label.dtype)

    def rows() -> Iterator[tuple[str, ...]]:
        for start in range(0, len(examples), SLICE):
            at = slice(start, start + SLICE)
            if label is not None and examples.label is not None:
                label.append(examples.label[at][wanted[at]])
            yield from compress(zip(*(column[at] for column in examples.text), strict=True), wanted[at])

    text = spool_text(rows(), len(examples.text))
    return Examples(text, None if label is None else label.done())


def _complete(
    known: Task | None,
    text: Sequence[str],
    label: str | None,
    labels: Labels | None,
    classes: Sequence[str] | None,
    kind: LabelKind | None,
) -> Task:
    """The named task, or one for the labels of the split that tells of all."""
    if known is not None:
        return replace(known, text=tuple(text) or known.text, label=label or known.label)
    task = Task("custom", "classes", tuple(text), label, (), ("accuracy", "f1"), DEFAULT_MAX_LENGTH, DEFAULTS)
    if labels is None:
        return task
    found, names = kind_and_classes(labels, classes, kind)
    return replace(task, kind=found, labels=names, metrics=task.metrics if found == "classes" else ("spearman", "pearson"))


def _text(table: Table, task: Task, text: Sequence[str]) -> tuple[Column[str], ...]:
    columns = tuple(text) or _present(table, task.text, _RAW_TEXT.get(task.name, ()))
    return tuple(table.strings(name) for name in columns)


def _labels(table: Table, known: Task | None, label: str | None, split: str) -> Labels | None:
    """The labels of a split as they stand there; None where none were asked for."""
    column = label
    if column is None and known is not None and known.label is not None:
        (column,) = _present(table, (known.label,), filter(None, [_RAW_LABEL.get(known.name)]))
    if column is None:
        return None
    if column not in table.columns and split.startswith("test"):
        raise no_labels(table)
    return read_labels(table, column)


def _present(table: Table, official: tuple[str, ...], raw: Any) -> tuple[str, ...]:
    """The raw names where the table has those and not the official ones."""
    raw = tuple(raw)
    return raw if raw and {*raw} <= {*table.columns} and not {*official} <= {*table.columns} else official
