"""A column of labels as class ids or scores: what is a label, which labels are one class, and which numbers are scores"""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import cast

import numpy as np
from jaxtyping import Float32, Int64

from hskstore.config import LabelKind
from hskstore.errors import DataError
from hskstore.text.spool import ArrayFile, Column, in_slices
from hskstore.text.table import Table, half_a_character, is_null, listed, listed_names, quoted
from hskstore.text.tasks import TASKS, Task

log = logging.getLogger(__name__)

FEW_CLASSES = 20
"""Whole numbers of more values than these may well be scores: nothing is decided about them without a word."""
_SCORE_RANGE = {"stsb": (0.0, 5.0)}
_MOST_SCORE = float(np.finfo(np.float32).max)
# "1.0": an int column that had gaps, as pandas writes it. Python reads no integer of more digits.
_WHOLE = re.compile(r"([+-]?[0-9]{1,4000})(\.0*)?")
_HIDDEN = -1
"""What the hub has in place of a label that is not given."""
_NULL_WORDS = {"nan", "null", "none", "na", "n/a", "<na>"}
_ITEM = r"""(?:'[^']*'|"[^"]*"|[+-]?[0-9]+(?:\.[0-9]*)?)"""
_LIST = re.compile(rf"[\[({{]\s*{_ITEM}(?:[\s,;|]+{_ITEM})+\s*[\])}}]")
_SEVERAL = "several labels in one row (multi-label) are not supported"


@dataclass(frozen=True)
class Labels:
    """The labels of a split as strings, with no blanks around them; `declared` are the class names that the set itself tells."""

    table: Table
    column: str
    names: Column[str]
    declared: tuple[str, ...]

    @property
    def place(self) -> str:
        return f"{self.table.where}, column {self.column!r}"

    def distinct(self) -> Iterator[str]:
        """Every name, at most once a slice."""
        for _, block in in_slices(self.names):
            yield from {*block}

    def row(self, name: str) -> int:
        """The first that has it, counted from 1."""
        return next(start + block.index(name) + 1 for start, block in in_slices(self.names) if name in block)


def spelling(name: str) -> str:
    """What two labels share that differ in case, blanks, invisible characters or Unicode's forms alone, or are one number."""
    seen = "".join(letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf")
    folded = " ".join(seen.casefold().split())
    return folded if (number := _whole(folded)) is None else str(number)


def _whole(name: str) -> int | None:
    match = _WHOLE.fullmatch(name)
    return int(match[1]) if match else None


# --- values to names


def no_labels(table: Table) -> DataError:
    return DataError(f"{table.where} has no labels (its columns are {listed_names(table.columns)}): score on validation instead")


def read_labels(table: Table, column: str) -> Labels:
    """The labels of a column, whatever its format. Raises DataError for the first row whose value is none."""
    values = table.values(column)
    declared = _declared(table, column)
    names = values.map(lambda some: [_name(value, declared) for value in some])
    blanks: object = None
    missing, n_missing = 0, 0
    for start, block in in_slices(values):
        for row, value in enumerate(block, start + 1):
            if fault := _fault(value, declared):
                raise DataError(f"{table.where}, row {row}: column {column!r} holds {fault}")
            if (name := _name(value, declared)) == "":
                missing, n_missing = missing or row, n_missing + 1
            elif isinstance(value, str) and name != value:
                blanks = value
    if n_missing == len(values):
        raise no_labels(table)
    if missing:
        raise DataError(f"{table.where}, row {missing}: column {column!r} holds no label; remove such rows")
    if blanks is not None:
        log.warning("%s, column %r: blanks around labels, such as %s, are left out", table.where, column, quoted(blanks))
    return Labels(table, column, names, declared)


def _declared(table: Table, column: str) -> tuple[str, ...]:
    names = table.classes.get(column, ())
    sound = tuple(name for name in names if isinstance(name, str) and name.strip())
    if len({*sound}) == len(names):
        return sound
    log.warning("%s, column %r: its class names are not distinct texts and are passed over", table.where, column)
    return ()


def _fault(value: object, declared: tuple[str, ...]) -> str | None:
    """What a value is that is no label; a missing one is none of this."""
    if isinstance(value, list | tuple):
        return f"a list: {_SEVERAL}; give every row one class"
    if is_null(value):
        return None
    if isinstance(value, str):
        return half_a_character(value)
    if not isinstance(value, bool | int | float | Decimal):
        return f"a {type(value).__name__}, not a label: class names, class ids or scores"
    if declared and value not in (_HIDDEN, *range(len(declared))):
        return f"the class id {value}; those of its class names ({listed_names(declared)}) are 0 to {len(declared) - 1}"
    return None


def _name(value: object, declared: tuple[str, ...]) -> str:
    """A label as text, "" where there is none."""
    if isinstance(value, str):
        return value.strip()
    if is_null(value):
        return ""
    if not declared:
        return str(value)
    return "" if value == _HIDDEN else declared[int(cast(int, value))]


# --- names to classes


def kind_and_classes(labels: Labels, classes: Sequence[str] | None, kind: LabelKind | None) -> tuple[LabelKind, tuple[str, ...]]:
    """What labels of no known task are, and their classes by id: () of scores.

    `kind` says it; else the model whose class names are `classes` (() gives a score); else the labels: scores are numbers of
    which one has a fraction, or whole ones that are written as decimals (1.0) and have more than FEW_CLASSES values. Raises
    DataError where they are no classes.
    """
    if all(_whole(name) == _HIDDEN for name in labels.distinct()):
        raise no_labels(labels.table)
    if kind == "score":
        return "score", ()
    numeric = all(map(_is_number, labels.distinct()))
    whole = numeric and all(_whole(name) is not None for name in labels.distinct())
    numbers = sorted({number for name in labels.distinct() if (number := _whole(name)) is not None}) if whole else []
    few, decimal = len(numbers) <= FEW_CLASSES, any("." in name for name in labels.distinct())
    if kind is None and classes == ():
        if whole and few:
            _tell(labels, numbers, "scores, as the model gives one", "classes")
        return "score", ()
    if classes:
        known = {*map(spelling, classes)}
        if all(spelling(name) in known for name in labels.distinct()):
            return "classes", tuple(classes)
        if whole and numbers[0] >= 0 and numbers[-1] < len(classes):
            return "classes", tuple(map(str, range(len(classes))))
    if labels.declared:
        return "classes", _at_least_two(labels, labels.declared)
    if whole:
        found: LabelKind = "score" if kind is None and decimal and not few else "classes"
        if kind is None and (decimal or not few):
            _tell(labels, numbers, "scores" if found == "score" else "classes", "classes" if found == "score" else "score")
        return found, () if found == "score" else _at_least_two(labels, tuple(map(str, numbers)))
    if numeric and kind is None:
        return "score", ()
    if numeric and (endless := next((name for name in labels.distinct() if not math.isfinite(float(name))), None)):
        raise DataError(f"{labels.table.where}, row {labels.row(endless)}: label {quoted(endless)} is no finite number")
    names = tuple(sorted({*labels.distinct()}, key=(lambda name: (float(name), name)) if numeric else None))
    _check_words(labels, names)
    return "classes", _at_least_two(labels, names)


def _tell(labels: Labels, numbers: Sequence[int], taken: str, other: LabelKind) -> None:
    what = (
        f"the whole numbers {listed(list(map(str, numbers)))}" if len(numbers) <= FEW_CLASSES else f"{len(numbers)} whole numbers"
    )
    log.warning("%s: %s are taken as %s; --kind %s says otherwise", labels.place, what, taken, other)


def _at_least_two(labels: Labels, names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) < 2:
        raise DataError(f"{labels.place}: every label is {quoted(names[0])}; a classification needs two classes at least")
    return names


def _check_words(labels: Labels, names: Sequence[str]) -> None:
    """Raise DataError where a label is several, or says the same as another; tell of what may be no label."""
    alone = {*map(spelling, names)}
    parts = {name: _parts(name) for name in names}
    shared = Counter(spelling(part) for each in parts.values() for part in {*each})
    for name in names:
        numbers = bool(parts[name]) and all(_whole(part) is not None for part in parts[name])
        if numbers or _LIST.fullmatch(name) or (parts[name] and {*map(spelling, parts[name])} <= alone):
            comma = " (and a number has a point, not a comma)" if numbers and "," in name else ""
            raise DataError(
                f"{labels.table.where}, row {labels.row(name)}: label {quoted(name)} of column {labels.column!r} is a list: "
                f"{_SEVERAL}{comma}; give every row one class, and where this is one, a name that is not made of others"
            )
    alike: dict[str, str] = {}
    for name in names:
        one = spelling(name)
        first = alike.setdefault({"false": "0", "true": "1"}.get(one, one), name)
        if first != name:
            both = " and ".join(f"{quoted(each)} (row {labels.row(each)})" for each in (first, name))
            raise DataError(
                f"{labels.place}: the labels {both} say the same: write them one way; where they are two classes, rename one, or "
                "save the data with class names (ClassLabel)"
            )
    combined = next((name for name in names if parts[name] and all(shared[spelling(part)] > 1 for part in parts[name])), None)
    if combined is not None:
        log.warning(
            "%s: labels such as %s are made of parts; each combination is a class of its own", labels.place, quoted(combined)
        )
    if nothing := [name for name in names if name.casefold() in _NULL_WORDS]:
        log.warning("%s: %s is taken as a class like any other", labels.place, listed(nothing))
    if len(names) > FEW_CLASSES and 2 * len(names) > len(labels.names):
        log.warning("%s: %d classes in %d rows: are these labels?", labels.place, len(names), len(labels.names))


def _parts(name: str) -> list[str]:
    """What a label holds between commas, semicolons or bars, or between blanks if that is numbers; [] if it is one."""
    for separator in (",", ";", "|", None):
        parts = [part.strip() for part in name.split(separator) if part.strip()]
        if len(parts) > 1 and (separator is not None or all(_whole(part) is not None for part in parts)):
            return parts
    return []


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return "_" not in name  # Python's own digit separator, that no data set means


# --- names to ids


def label_array(labels: Labels, task: Task) -> Int64[np.ndarray, " row"] | Float32[np.ndarray, " row"]:
    """int64 ids [N], or float32 scores [N]. Raises DataError for the first label that the task does not have."""
    if str(_HIDDEN) not in task.labels and all(_whole(name) == _HIDDEN for name in labels.distinct()):
        raise no_labels(labels.table)
    ids = {name: index for index, name in enumerate(task.labels)}
    spellings = Counter(map(spelling, task.labels))
    by_spelling = {one: index for name, index in ids.items() if spellings[one := spelling(name)] == 1}
    low, high = _SCORE_RANGE.get(task.name, (-_MOST_SCORE, _MOST_SCORE))

    @lru_cache  # bounded: scores may all differ
    def value(name: str) -> float | int | None:
        if task.kind == "classes":
            number = _whole(name)
            if name in ids or task.name not in TASKS or number not in range(task.num_labels):
                return ids.get(name, by_spelling.get(spelling(name)))
            return number
        score = float(name) if _is_number(name) else math.nan
        return score if low <= score <= high else None

    array = ArrayFile(np.float32 if task.kind == "score" else np.int64)
    same = len(labels.names) > 1
    first = value(labels.names[0])
    for start, block in in_slices(labels.names):
        found = list(map(value, block))
        if None in found:
            at = found.index(None)
            allowed = f"classes {listed_names(task.labels)}"
            if task.kind == "score":
                allowed = f"a number from {low:g} to {high:g}" if task.name in _SCORE_RANGE else "a finite number"
            raise DataError(
                f"{labels.table.where}, row {start + at + 1}: label {quoted(block[at])} does not fit; allowed: {allowed}"
            )
        same = same and all(each == first for each in found)
        array.append(np.array(found))
    if same:
        log.warning("%s: every label is %s", labels.place, quoted(labels.names[0]))
    return array.done()
