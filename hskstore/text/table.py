"""One split as it lies in a file or on the hub: columns of any values, asked for as texts"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal

from hskstore.errors import DataError
from hskstore.text.spool import Column, in_slices

log = logging.getLogger(__name__)

_MOST_LISTED, _MOST_LETTERS = 30, 60
_SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}
_AS_TEXT = {str, type(None), bool, int, float, Decimal}


@dataclass(frozen=True)
class Table:
    """The columns of one split; `classes` are the class names that the format itself knows, by column.

    `column` gives one of `columns` as it lies there; `values` and `strings` are what to ask for data.
    """

    where: str
    columns: tuple[str, ...]
    column: Callable[[str], Column[object]]
    classes: Mapping[str, tuple[object, ...]]

    def values(self, name: str) -> Column[object]:
        """Raises DataError unless the column is there, once, and has rows; also when they are read and cannot be."""
        if not self.columns:
            raise DataError(f"{self.where} has no rows")
        count = self.columns.count(name)
        if count != 1:
            fault = "has no column" if count == 0 else "has more than one column"
            raise DataError(
                f"{self.where} {fault} {name!r}; its columns are {listed_names(self.columns)}: choose with --text and --label"
                f"{separator_hint(self.columns)}"
            )
        with self._decoded(name):
            values = self.column(name)
        if not values:
            raise DataError(f"{self.where} has no rows")

        def read(start: int, stop: int) -> list[object]:
            with self._decoded(name):
                return values[start:stop]

        return Column(len(values), read)

    @contextmanager
    def _decoded(self, name: str) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # strings that are no UTF-8, times that no calendar has: each has its own class
            raise DataError(f"{self.where}: column {name!r} cannot be read: {one_line(error)}") from error

    def strings(self, name: str) -> Column[str]:
        """The values as text, "" for a null. Raises DataError for those that are none, such as lists; of numbers it tells."""
        values = self.values(name)
        kinds: set[type] = set()
        for start, block in in_slices(values):
            kinds |= {*map(type, block)}
            if not kinds <= _AS_TEXT:
                row, kind = next((row, type(v)) for row, v in enumerate(block, start + 1) if type(v) not in _AS_TEXT)
                raise DataError(f"{self.where}, row {row}: column {name!r} holds a {kind.__name__}, not a text")
            if half_a_character("".join(value for value in block if isinstance(value, str))):
                row, fault = next((row, f) for row, v in enumerate(block, start + 1) if (f := half_a_character(str(v))))
                raise DataError(f"{self.where}, row {row}: column {name!r} holds {fault}: mend or remove its text")
        if others := sorted(kind.__name__ for kind in kinds - {str, type(None)}):
            log.warning(
                "%s: column %r holds values that are no texts (%s) and are read as such", self.where, name, listed(others)
            )
        return values.map(lambda some: ["" if is_null(value) else str(value) for value in some])


def half_a_character(text: str) -> str | None:
    """What is wrong with a text that has half of a surrogate pair, which JSON can spell and nothing else reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a character, U+{ord(error.object[error.start]):04X} without its other half"
    return None


def is_null(value: object) -> bool:
    """Whether a value is not there, for which pandas has NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def one_line(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"{words[:300]} ({type(error).__name__})"


def listed(names: Sequence[str]) -> str:
    """Names for a message, the first of many."""
    rest = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + rest if names else "none"


def listed_names(names: Sequence[str]) -> str:
    """Names of classes or columns, that may be whole texts."""
    return listed([_shortened(name) for name in names])


def quoted(value: object) -> str:
    """A value for a message, as far as it shows which one it is."""
    return _shortened(repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."


def separator_hint(columns: tuple[str, ...]) -> str:
    """What to do about a header that is one column, but looks like several."""
    found = next((separator for separator in _SEPARATORS if len(columns) == 1 and separator in columns[0]), None)
    if found is None:
        return ""
    return f"; its header looks separated by {_SEPARATORS[found]} ({found!r}): a .csv is read with commas, a .tsv with tabs"
