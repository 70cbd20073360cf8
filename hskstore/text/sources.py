"""Where text lies: files of every type, folders, `save_to_disk` folders, the hub.

`open_source` finds the splits of a source without reading them; each reads as a `Table`, whatever its format. Reading goes
through a file from front to end, and what is read lies on disk: a split of any number of rows takes the same memory, unless
it is one JSON array.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from hskstore.errors import DataError, OptionError
from hskstore.text.files import read_file, type_of_file
from hskstore.text.spool import Column, joined
from hskstore.text.table import Table, listed, one_line
from hskstore.text.tasks import TASKS, Task, get_task

SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "validation": ("validation", "dev", "valid", "val", "validation_matched", "dev_matched"),
    "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
    "test": ("test", "test_matched"),
}
"""What a split may be called where it lies; any other split has only its own name."""
# As the hub's clones have them: train-00000-of-00002.parquet, and with a hash behind it where it is some years old.
_SHARD = re.compile(r"(.+)-([0-9]+)-of-([0-9]+)(?:-[0-9a-f]+)?\.parquet", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """A split under the name that it has where it lies, unread."""

    split: str
    where: str
    read: Callable[[], Table]


class _Shard(NamedTuple):
    number: int
    total: int
    path: Path


@dataclass(frozen=True)
class Source:
    """What a source holds: its splits, and files that may be none."""

    name: str
    parts: tuple[Part, ...]

    def find(self, split: str) -> Part | None:
        """The split by any of its SPLIT_NAMES. Raises DataError where two have one."""
        names = SPLIT_NAMES.get(split, (split,))
        found = [part for part in self.parts if part.split in names] or [
            part for part in self.parts if part.split.lower() in names
        ]
        if len(found) > 1:
            raise DataError(
                f"{self.name}: {listed([part.where for part in found])} could each be the {split} split: "
                "leave one of them there, or pass the file itself"
            )
        return found[0] if found else None

    def need(self, split: str) -> Part:
        """The split; DataError, with what is there, where it is not."""
        part = self.find(split)
        if part is not None:
            return part
        message = f"{self.name} has no {split} split"
        if split == "validation":
            message += ": pass --validation FILE, or --validation 0.1 for a tenth of train"
        raise DataError(f"{message}; it has {listed([part.where for part in self.parts])}")


def open_source(source: str, task: Task | None, text: Sequence[str], splits: Sequence[str]) -> Source:
    """A file, a folder of files or of Parquet shards, one of `save_to_disk`, or a data set's name on the hub.

    `task` and `text` tell GLUE's files without a header from those with one. Data without a split's name, such as a
    file, are the one of `splits` if that is only one, else train. Raises DataError for what is not there.
    """
    path = Path(source).expanduser()
    only = splits[0] if len(splits) == 1 else "train"
    if path.is_file():
        return Source(source, (Part(only, source, lambda: read_file(path, task, text)),))
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _open_saved(path, only)
        files = [file for file in sorted(path.iterdir()) if file.is_file() and type_of_file(file)]
        whole = [_file_part(file, task, text) for file in files if not _SHARD.fullmatch(file.name)]
        return Source(source, (*whole, *_shard_parts([*files, *sorted((path / "data").glob("*"))])))
    if source.startswith((".", "/", "~")) or type_of_file(path):
        raise DataError(f"no such file or folder: {source}")
    return _open_hub(source)


def glue_task(source: str) -> Task | None:
    """The task that a source called "glue/..." names."""
    glue = re.fullmatch(r"glue/(.+)", source)
    try:
        task = get_task(glue[1]) if glue else None
    except OptionError:
        return None
    return task if task is not None and task.name in TASKS else None


def _file_part(path: Path, task: Task | None, text: Sequence[str]) -> Part:
    stem = re.sub(rf"\.{type_of_file(path)}(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    return Part(stem, str(path), lambda: read_file(path, task, text))


def _shard_parts(files: Sequence[Path]) -> list[Part]:
    """One part for the shards of each split and folder; files of other names are left out."""
    shards: dict[tuple[Path, str], list[_Shard]] = {}
    for path in files:
        match = _SHARD.fullmatch(path.name)
        if match:
            shards.setdefault((path.parent, match[1]), []).append(_Shard(int(match[2]), int(match[3]), path))
    return [_shard_part(folder, split, sorted(found)) for (folder, split), found in shards.items()]


def _shard_part(folder: Path, split: str, shards: Sequence[_Shard]) -> Part:
    where = str(shards[0].path if len(shards) == 1 else folder / f"{split}-*.parquet")

    def read() -> Table:
        total = shards[0].total
        if [(shard.number, shard.total) for shard in shards] != [(number, total) for number in range(total)]:
            raise DataError(
                f"{where}: the shards there are {listed([shard.path.name for shard in shards])}, which is not each of "
                f"{total} once: fetch those missing, remove those left from another version"
            )
        return _joined(where, [read_file(shard.path, None, ()) for shard in shards])

    return Part(split, where, read)


def _joined(where: str, tables: Sequence[Table]) -> Table:
    first = tables[0]
    for table in tables[1:]:
        if {*table.columns} != {*first.columns} or table.classes != first.classes:
            raise DataError(f"{table.where} has other columns or classes than {first.where}: shards of one split share them")
    return Table(where, first.columns, lambda name: joined([table.column(name) for table in tables]), first.classes)


def _open_saved(path: Path, only: str) -> Source:
    import datasets

    hub = cast(Any, datasets)
    try:
        saved = hub.load_from_disk(str(path))
    except Exception as error:  # whatever the files' damage makes `datasets` raise
        raise DataError(f"cannot read the saved data set {path}: {one_line(error)}") from error
    return _of_datasets(str(path), saved if isinstance(saved, hub.DatasetDict) else {only: saved})


def _open_hub(source: str) -> Source:
    import datasets

    glue = glue_task(source)
    if glue is not None:
        name, config = "nyu-mll/glue", glue.name
    else:
        name, _, config = source.partition(":")
    try:
        loaded = cast(Any, datasets).load_dataset(name, config or None)
    except Exception as error:  # network, cache, unknown name, a script: each has its own class
        raise DataError(
            f"no file or folder {source} here, and the hub's data set of that name cannot be loaded: {one_line(error)}"
        ) from error
    return _of_datasets(source, loaded)


def _of_datasets(name: str, saved: Mapping[str, Any]) -> Source:
    def part(split: str, dataset: Any) -> Part:
        where = f"{name}, split {split}"
        classes = {column: tuple(f.names) for column, f in dataset.features.items() if type(f).__name__ == "ClassLabel"}

        def column(name: str) -> Column[object]:
            rows = dataset.select_columns([name]).with_format("arrow")
            return Column(len(rows), lambda start, stop: rows[start:stop].column(name).to_pylist())

        return Part(split, where, lambda: Table(where, tuple(dataset.column_names), column, classes))

    return Source(name, tuple(part(split, dataset) for split, dataset in saved.items()))
