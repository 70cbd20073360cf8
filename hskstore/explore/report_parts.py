"""What a report is made of, as plain values: sections of words, figures with their numbers, tables, rows of tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LONGEST_TEXT = 300
"""Characters of one text that a page shows."""


@dataclass(frozen=True)
class Line:
    """Points that belong together, with what lies below and above each of them (None: nothing is drawn)."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    below: tuple[float, ...] | None = None
    above: tuple[float, ...] | None = None
    style: Literal["line", "points", "hollow", "steps", "dense"] = "line"


@dataclass(frozen=True)
class Plot:
    """Lines on two axes; `levels` are heights that are drawn right across, `marks` words beside points, `ticks` those of x."""

    x: str
    y: str
    lines: tuple[Line, ...]
    log: bool = False
    levels: tuple[tuple[str, float], ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()
    marks: tuple[tuple[float, float, str], ...] = ()


@dataclass(frozen=True)
class Bars:
    """Named bars that lie below each other, of several numbers each."""

    x: str
    names: tuple[str, ...]
    groups: tuple[tuple[str, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Table:
    """The first `words` columns are words, the others numbers; `left_out` says what of it is not shown."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    left_out: str = ""


@dataclass(frozen=True)
class Figure:
    """`name` is that of a file, `title` and `words` are what is read aloud in its place, `table` has its numbers."""

    name: str
    title: str
    words: str
    plot: Plot | Bars
    table: Table


@dataclass(frozen=True)
class Token:
    """`kept` is by how many of `of` layers."""

    text: str
    kept: int
    of: int

    @property
    def shade(self) -> int:
        """0 for a token that no layer keeps, 1 to 4 for more and more."""
        return math.ceil(4 * self.kept / self.of) if self.kept else 0


@dataclass(frozen=True)
class ShadedRow:
    """A row's tokens, and what is said of it."""

    title: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Part:
    """What stands below one heading, in this order; `quoted` is shown as it was typed."""

    title: str
    words: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    rows: tuple[ShadedRow, ...] = ()
    quoted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """What one argument gave: a sweep, a run or a store, and where it lies."""

    kind: Literal["sweep", "run", "store"]
    place: str
    words: tuple[str, ...]
    parts: tuple[Part, ...]


def plain(text: object, most: int = LONGEST_TEXT) -> str:
    """A stranger's text, of no more than so many characters and on one line: what cannot be printed is written as its escape."""
    line = " ".join(str(text)[: 4 * most].split())
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def percent(share: float) -> str:
    """Of everything, to three digits."""
    return f"{100 * share:.3g} %"


def digits(value: float) -> str:
    """To two digits, without an exponent where there is room: 100, 9.2, 0.037."""
    return f"{float(f'{value:.2g}'):g}"


def score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def deviation(values: Sequence[float]) -> float | None:
    """One standard deviation of a sample; None of a single value."""
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def bounded(rows: Sequence[tuple[str, ...]], most: int, where: str) -> tuple[tuple[tuple[str, ...], ...], str]:
    """The first rows of a table, and a word about the others."""
    more = len(rows) - most
    return tuple(rows[:most]), f"{more:,} more rows are not shown: {where}" if more > 0 else ""
