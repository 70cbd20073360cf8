"""What `hsk` prints: results on standard output, warnings on standard error."""

from __future__ import annotations

import dataclasses
import json
import logging
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.text import Text


def _verbatim(*, stderr: bool = False) -> Console:
    """A console that prints strings as they are, cells of tables too: names and messages hold [brackets] and :colons:.

    What wants a style is a `Text`.
    """
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


out = _verbatim()
err = _verbatim(stderr=True)


def print_json(result: Any) -> None:
    """A result for scripts: one JSON document on standard output."""
    print(json.dumps(_plain(result), indent=2))


def _plain(result: Any) -> Any:
    if isinstance(result, list):
        return [_plain(item) for item in result]
    if isinstance(result, dict):
        return {name: _plain(item) for name, item in result.items()}
    return dataclasses.asdict(result) if dataclasses.is_dataclass(result) and not isinstance(result, type) else result


class Warnings(logging.Handler):
    """Prints what hskstore logs as warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def warn(message: str) -> None:
    err.print(Text("warning:", style="yellow"), message)


NARROWEST_PROSE = 24
"""Columns that prose is broken into at least; where there are fewer, every row becomes a record."""


class Grid:
    """A table without a frame, whose cells are printed whole however narrow the console is.

    Where a row is wider than the console, columns' names are broken at blanks, and prose is; if that is not enough, each row
    becomes a record: its first cell on a line of its own, below it the others with their columns' names.
    """

    def __init__(self, columns: Sequence[str], *, left: int, prose: bool) -> None:
        self._columns = columns
        self._left = left
        self._prose = prose
        self._rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        """Cells that are left out are empty."""
        self._rows.append((*cells, *[""] * (len(self._columns) - len(cells))))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        most = options.max_width
        widths = self._widths(self._columns)
        if _across(widths) > most:
            widths = self._widths([max(column.split(), key=cell_len, default="") for column in self._columns])
            room = most - _across(widths) + widths[-1]
            if self._prose and room >= NARROWEST_PROSE:
                widths[-1] = min(room, widths[-1])
        if _across(widths) > most:
            yield from (_line(line) for row in self._rows for line in self._record(row, most))
            return
        names = [_broken(name, width) for name, width in zip(self._columns, widths, strict=True)]
        lines = max(map(len, names))
        for cells in zip(*([*[""] * (lines - len(name)), *name] for name in names), strict=True):
            yield _line(self._padded(cells, widths), style="bold")
        for row in self._rows:
            first, *more = _broken(row[-1], widths[-1]) if self._prose else [row[-1]]
            yield _line(self._padded((*row[:-1], first), widths))
            yield from (_line(self._padded((*[""] * (len(row) - 1), words), widths)) for words in more)

    def _widths(self, names: Sequence[str]) -> list[int]:
        return [max(map(cell_len, column)) for column in zip(names, *self._rows, strict=True)]

    def _padded(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        pads = [" " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]
        return "  ".join(
            cell + pad if column < self._left else pad + cell for column, (cell, pad) in enumerate(zip(cells, pads, strict=True))
        ).rstrip()

    def _record(self, row: Sequence[str], width: int) -> Iterator[str]:
        name, *others = zip(self._columns, row, strict=True)
        if name[1]:
            yield name[1]
        line = ""
        for item in (f"{column}: {cell}" for column, cell in others if cell):
            if line and cell_len(line) + 2 + cell_len(item) > width:
                yield line
                line = ""
            line += f"; {item}" if line else f"  {item}"
        if line:
            yield line


def grid(*columns: str, left: int = 1, prose: bool = False) -> Grid:
    """A table; the first `left` columns are words, the others numbers, which belong to the right. `prose`: so is the last one."""
    return Grid(columns, left=left, prose=prose)


def _across(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ignore")


def _broken(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def paragraphs(text: str) -> str:
    """Prose with blank lines between its paragraphs, each broken anew for this console."""
    parts = (" ".join(part.split()) for part in text.split("\n\n"))
    return "\n\n".join("\n".join(_broken(part, out.width)) for part in parts)
