"""How far long work is, on standard error: a bar for each of its stages, or a line now and then where nobody sees one move."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from hskstore.cli.console import err
from hskstore.readable import duration
from hskstore.watch import Watch, unwatched

QUIET_SECONDS = 2.0
"""What is done sooner is not shown."""

LINE_SECONDS = 30.0
"""Between two lines in a file or a pipe, but for those at the end of a stage."""


class NotedProgress(Progress):
    """A bar with a line below it on how it goes."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(f"  {self.note}", no_wrap=True, overflow="ellipsis")


class Bar:
    """Progress of something counted in rows, shown once it has taken two seconds: rows done, rows a second, time left."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._began = time.monotonic()
        self._first: int | None = None
        self._shown: NotedProgress | None = None
        self._task: Any = None

    def update(self, rows: int, total: int, note: str = "") -> None:
        """`rows` of `total` are done."""
        elapsed = time.monotonic() - self._began
        if self._first is None:  # a resumed run does not start at nothing
            self._first = rows
        if self._shown is None:
            if elapsed < QUIET_SECONDS:
                return
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=12),
                MofNCompleteColumn(),
                TextColumn("rows, {task.fields[speed]}/s,"),
                TimeRemainingColumn(),
                TextColumn("left"),
            )
            self._shown = NotedProgress(*columns, console=err)
            self._shown.start()
            self._task = self._shown.add_task(self.title, total=total, speed="?")
        self._shown.note = note
        self._shown.update(self._task, completed=rows, total=total, speed=f"{(rows - self._first) / elapsed:.0f}")

    def close(self) -> None:
        if self._shown is not None:
            self._shown.stop()


def lines() -> Watch:
    """Stages as lines: at most one each LINE_SECONDS, and one at the end of each. Stages may take turns."""
    began: dict[str, tuple[float, int]] = {}
    told = time.monotonic()

    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        nonlocal told
        now = time.monotonic()
        since, first = began.setdefault(stage, (now, done))
        ended = done >= total and now - since >= QUIET_SECONDS
        if ended or (done < total and now - told >= LINE_SECONDS):
            speed = (done - first) / (now - since) if now > since else 0.0
            left = "" if ended or not speed else f", {duration((total - done) / speed)} left"
            pace = f", {speed:.0f} rows/s" if speed else ""
            err.print(f"{stage}: {done} of {total} rows{pace}{left}" + (f"; {note}" if note else ""))
            told = now
        if done >= total:
            del began[stage]

    return watch


@contextmanager
def bars(*, shown: bool = True) -> Iterator[Watch]:
    """A bar for each stage of some work, one after the other; hand what it yields to whatever can be watched.

    In a file or a pipe they are `lines`.
    """
    if not shown:
        yield unwatched
        return
    if not err.is_terminal:
        yield lines()
        return
    current: Bar | None = None

    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        nonlocal current
        if current is None or current.title != stage:
            if current is not None:
                current.close()
            current = Bar(stage)
        current.update(done, total, note)

    try:
        yield watch
    finally:
        if current is not None:
            current.close()
