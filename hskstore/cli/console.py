"""What `hsk` prints: results on standard output, warnings on standard error."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # heavy: what prints a result is called by what has made one
    pass


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


def size(count: float) -> str:
    """Bytes as people read them, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def grid(*columns: str) -> Table:
    """A table without a frame; numbers belong to the right."""
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table


def duration(seconds: float) -> str:
    """A time as people read it: seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
