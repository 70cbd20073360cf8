"""Any labelled text as `Dataset`: the splits asked for, their text columns as strings, their labels as ids.

`read_dataset` is all that the rest of the package calls; where the text lies is `hskstore.text.sources`' business.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import compress
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Int64, Shaped
from numpy.typing import NDArray

from hskstore.errors import DataError, ModelError, OptionError
from hskstore.text.files import Table, listed, read_file
from hskstore.text.sources import Part, glue_task, open_source
from hskstore.text.spool import SLICE, ArrayFile, Column, in_slices, spool_text
from hskstore.text.tasks import DEFAULT_MAX_LENGTH, DEFAULTS, TASKS, Kind, Task, get_task

# GLUE's own files name some columns otherwise than the hub does (`Task.text`, `Task.label`).
_RAW_TEXT: dict[str, tuple[str, str]] = {"mrpc": ("#1 String", "#2 String"), "mnli": ("sentence1", "sentence2")}
_RAW_LABEL = {"mrpc": "Quality", "stsb": "score", "mnli": "gold_label", "qqp": "is_duplicate"}
_SCORE_RANGE = {"stsb": (0.0, 5.0)}
log = logging.getLogger(__name__)

VALIDATION_SEED = 0
_WHOLE = re.compile(r"\s*([+-]?[0-9]+)(?:\.0*)?\s*")  # "1.0": an int column that had gaps, as pandas writes it
_INTEGER = re.compile(r"[+-]?[0-9]+")
_HIDDEN = ("", "-1", "-1.0")
"""What stands for a label that is not given; the numbers are the hub's mark."""
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
        kind: Kind = "classes" if len(names) > 1 else "score"
        labels, metrics = (names, task.metrics) if kind == "classes" else ((), ("spearman", "pearson"))
        return replace(dataset, task=replace(task, kind=kind, labels=labels, metrics=metrics))
    if task.num_labels != len(names):
        wanted = "a score (one output)" if task.kind == "score" else f"{task.num_labels} classes ({', '.join(task.labels)})"
        raise ModelError(f"{model} has {len(names)} outputs; the task {task.name} needs {wanted}")
    return dataset.with_label_order(names) if task.kind == "classes" else dataset


def _looked_up(new_id: NDArray[np.int64], label: NDArray[Any]) -> NDArray[np.int64]:
    ids = ArrayFile(np.int64)
    for start in range(0, len(label), SLICE):
        ids.append(new_id[label[start : start + SLICE]])
    return ids.done()


def label_ids(own: Sequence[str], names: Sequence[str]) -> Int64[np.ndarray, " class"]:
    """The ids that the classes `own` have in a model whose class names by id are `names`.

    Names are compared exactly, then without case. Where they differ, and those of one side say nothing (LABEL_0, 0), the
    order stays as it is. Raises DataError where both say something else, or their numbers differ.
    """
    key = next((f for f in (str, str.casefold) if {*map(f, own)} == {*map(f, names)}), None)
    if len(own) == len(names) and key is not None:
        position = {key(name): i for i, name in enumerate(names)}
        return np.array([position[key(name)] for name in own], dtype=np.int64)
    if len(own) == len(names) and (_say_nothing(own) or _say_nothing(names)):
        return np.arange(len(own))
    raise DataError(
        f"the data set's classes ({', '.join(own)}) are not the model's ({', '.join(names)}): "
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
    validation: str | None = None,
    splits: Sequence[str] = ("train", "validation"),
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Read `splits` of `source`: a file, a folder of files, one of `save_to_disk`, or a data set's name on the hub.

    `task` names a GLUE task, whose columns and labels are known; `text` (one or two columns) and `label` stand in for
    them, and describe any other data; a file by itself is train, or the only split asked for. `validation` is a file, or
    the share of train, such as "0.1", that is taken out of it: always the same rows, so that no model is scored on rows
    that another one of the same data learnt from. With "validation", MNLI's mismatched one comes along where there is one.

    `classes` are the class names of the model that will read data of no known task, () for one that gives a score; without
    them the labels themselves tell.

    Raises DataError for what is wrong with the data, OptionError for what is wrong with the arguments.
    """
    known = get_task(task) if task is not None else glue_task(source)
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
    guide = tables.get("train", next(iter(tables.values())))
    if known is None and not text:
        raise OptionError(
            f"which columns of {guide.where} hold the text? Pass --text COLUMN (twice for pairs) and --label COLUMN, or "
            f"--task for a GLUE task; its columns are {listed(guide.columns)}"
        )
    completed = _complete(known, guide, text, label, classes)
    read = {split: _examples(table, completed, text, label, split) for split, table in tables.items()}
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


# --- labels


def _complete(known: Task | None, table: Table, text: Sequence[str], label: str | None, classes: Sequence[str] | None) -> Task:
    """The named task, or one for the labels of `table`."""
    if known is not None:
        return replace(known, text=tuple(text) or known.text, label=label or known.label)
    task = Task("custom", "classes", tuple(text), label, (), ("accuracy", "f1"), DEFAULT_MAX_LENGTH, DEFAULTS)
    if label is None:
        return task
    names = _label_names(table, label)
    if classes == ():
        return replace(task, kind="score", metrics=("spearman", "pearson"))
    folded = {name.casefold() for name in classes or ()}
    if classes and all(name.casefold() in folded for name in _distinct(names)):
        return replace(task, labels=tuple(classes))
    if classes and all(whole and int(whole[1]) in range(len(classes)) for whole in map(_WHOLE.fullmatch, _distinct(names))):
        return replace(task, labels=tuple(map(str, range(len(classes)))))
    if label in table.classes:
        return replace(task, labels=table.classes[label])
    if all(_INTEGER.fullmatch(name) for name in _distinct(names)):
        return replace(task, labels=tuple(map(str, sorted({int(name) for name in _distinct(names)}))))
    if all(_is_number(name) for name in _distinct(names)):
        return replace(task, kind="score", metrics=("spearman", "pearson"))
    return replace(task, labels=tuple(sorted({*_distinct(names)})))


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return "_" not in name  # Python's own digit separator, that no data set means


def _examples(table: Table, task: Task, text: Sequence[str], label: str | None, split: str) -> Examples:
    text_columns = tuple(text) or _present(table, task.text, _RAW_TEXT.get(task.name, ()))
    columns = tuple(table.strings(name) for name in text_columns)
    if not columns[0]:
        raise DataError(f"{table.where} has no rows")
    label_column = label
    if label is None and task.label is not None:
        (label_column,) = _present(table, (task.label,), filter(None, [_RAW_LABEL.get(task.name)]))
    if label_column is None:
        return Examples(columns, None)
    if label_column not in table.columns and split.startswith("test"):
        raise DataError(_no_labels(table))
    return Examples(columns, _label_ids(table, _label_names(table, label_column, task.labels), task))


def _present(table: Table, official: tuple[str, ...], raw: Any) -> tuple[str, ...]:
    """The raw names where the table has those and not the official ones."""
    raw = tuple(raw)
    return raw if raw and {*raw} <= {*table.columns} and not {*official} <= {*table.columns} else official


def _label_names(table: Table, column: str, known: Sequence[str] = ()) -> Column[str]:
    """The labels as strings, before they become ids. Raises DataError where one is missing."""
    values = table.values(column)
    classes = table.classes.get(column)

    def named(some: list[object]) -> list[str]:
        if classes is not None:
            some = [None if value is None or value == -1 else classes[cast(int, value)] for value in some]
        return [_label_name(value) for value in some]

    names = values.map(named)
    if "-1" not in known and all(name in _HIDDEN for name in _distinct(names)):
        raise DataError(_no_labels(table))
    for start, block in in_slices(names):
        if "" in block:
            row = start + block.index("") + 1
            raise DataError(f"{table.where}, row {row}: column {column!r} holds no label; remove such rows")
    return names


def _distinct(names: Column[str]) -> Iterator[str]:
    """Every name, at most once a slice."""
    for _, block in in_slices(names):
        yield from {*block}


def _label_name(value: object) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _no_labels(table: Table) -> str:
    return f"{table.where} has no labels (its columns are {listed(table.columns)}): score on validation instead"


def _label_ids(table: Table, names: Column[str], task: Task) -> NDArray[Any]:
    """int64 ids [N], or float32 scores [N]."""
    low, high = _SCORE_RANGE.get(task.name, (-math.inf, math.inf))

    @lru_cache  # bounded: scores may all differ
    def value(name: str) -> float | int | None:
        if task.kind == "classes":
            return _class_id(name, task)
        score = float(name) if _is_number(name) else math.nan
        return score if math.isfinite(score) and low <= score <= high else None

    label = ArrayFile(np.float32 if task.kind == "score" else np.int64)
    for start, block in in_slices(names):
        found = list(map(value, block))
        if None in found:
            at = found.index(None)
            allowed = f"classes {', '.join(task.labels)}"
            if task.kind == "score":
                allowed = "a finite number" if math.isinf(high) else f"a number from {low:g} to {high:g}"
            raise DataError(f"{table.where}, row {start + at + 1}: label {block[at]!r} does not fit; allowed: {allowed}")
        label.append(np.array(found))
    return label.done()


def _class_id(name: str, task: Task) -> int | None:
    if name in task.labels:
        return task.labels.index(name)
    whole = _WHOLE.fullmatch(name)
    integer = str(int(whole[1])) if whole else None
    if task.name in TASKS and integer is not None and 0 <= int(integer) < task.num_labels:
        return int(integer)
    if integer in task.labels:
        return task.labels.index(integer)
    folded = [label.casefold() for label in task.labels]
    return folded.index(name.casefold()) if name.casefold() in folded else None
