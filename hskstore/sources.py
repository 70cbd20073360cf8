"""Where text lies: files of every type, folders, `save_to_disk` folders, the hub.

`open_source` finds the splits of a source without reading them; each reads as a `Table`, whatever its format.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

from hskstore.errors import DataError, OptionError
from hskstore.tasks import TASKS, Task, get_task

FILE_TYPES = ("tsv", "txt", "csv", "jsonl", "json", "parquet")
"""The extensions that are read, each also with .gz behind it."""

SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "validation": ("validation", "dev", "valid", "val", "validation_matched", "dev_matched"),
    "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
    "test": ("test", "test_matched"),
}
"""What a split may be called where it lies; any other split has only its own name."""

# These have no header line. STS-B's rows may end in two more columns, that name the licence of their text.
_HEADERLESS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "cola": (("source", "label", "mark", "sentence"), (4,)),
    "stsb": (("genre", "file", "year", "id", "score", "sentence1", "sentence2"), (7, 9)),
}
# GLUE's QQP holds a few rows torn by a line break in a question; the hub's copy leaves them out, and so do we.
_TORN_ROWS = ("qqp",)
# As the hub's clones have them: train-00000-of-00002.parquet, and with a hash behind it where it is some years old.
_SHARD = re.compile(r"(.+)-([0-9]+)-of-([0-9]+)(?:-[0-9a-f]+)?\.parquet")
_JSON_ADVICE = "write one object per line, or one array of objects"


@dataclass(frozen=True)
class Table:
    """The columns of one split; `classes` are the class names that the format itself knows, by column.

    `column` gives one of `columns` as it lies there; `values` and `strings` are what to ask for data.
    """

    where: str
    columns: tuple[str, ...]
    column: Callable[[str], Sequence[object]]
    classes: Mapping[str, tuple[str, ...]]

    def values(self, name: str) -> Sequence[object]:
        """Raises DataError unless the column is there, once, and has rows."""
        if not self.columns:
            raise DataError(f"{self.where} has no rows")
        count = self.columns.count(name)
        if count != 1:
            fault = "has no column" if count == 0 else "has more than one column"
            raise DataError(
                f"{self.where} {fault} {name!r}; its columns are {listed(self.columns)}: choose with --text and --label"
            )
        values = self.column(name)
        if not values:
            raise DataError(f"{self.where} has no rows")
        return values

    def strings(self, name: str) -> list[str]:
        """The values as text, "" for a null. Raises DataError for those that are none, such as lists."""
        values = self.values(name)
        for row, value in enumerate(values, start=1):
            if isinstance(value, (list, dict, bytes)):
                held = type(cast(object, value)).__name__
                raise DataError(f"{self.where}, row {row}: column {name!r} holds a {held}, not a text")
        return ["" if value is None else str(value) for value in values]


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
        found = [part for part in self.parts if part.split in SPLIT_NAMES.get(split, (split,))]
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
        files = [file for file in sorted(path.iterdir()) if file.is_file() and _file_type(file)]
        whole = [_file_part(file, task, text) for file in files if not _SHARD.fullmatch(file.name)]
        return Source(source, (*whole, *_shard_parts([*files, *sorted((path / "data").glob("*.parquet"))])))
    if source.startswith((".", "/", "~")) or _file_type(path):
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
    stem = path.name.removesuffix(".gz").removesuffix(f".{_file_type(path)}")
    return Part(stem, str(path), lambda: read_file(path, task, text))


def _file_type(path: Path) -> str | None:
    extension = path.name.removesuffix(".gz").rpartition(".")[2]
    return extension if extension in FILE_TYPES and extension != path.name else None


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
    return Table(where, first.columns, lambda name: [v for table in tables for v in table.column(name)], first.classes)


def _open_saved(path: Path, only: str) -> Source:
    import datasets

    hub = cast(Any, datasets)
    try:
        saved = hub.load_from_disk(str(path))
    except Exception as error:  # whatever the files' damage makes `datasets` raise
        raise DataError(f"cannot read the saved data set {path}: {_one_line(error)}") from error
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
            f"no file or folder {source} here, and the hub's data set of that name cannot be loaded: {_one_line(error)}"
        ) from error
    return _of_datasets(source, loaded)


def _of_datasets(name: str, saved: Mapping[str, Any]) -> Source:
    def part(split: str, dataset: Any) -> Part:
        where = f"{name}, split {split}"
        classes = {column: tuple(f.names) for column, f in dataset.features.items() if type(f).__name__ == "ClassLabel"}

        def column(name: str) -> Sequence[object]:
            return cast(Sequence[object], dataset.select_columns([name]).to_dict()[name])

        return Part(split, where, lambda: Table(where, tuple(dataset.column_names), column, classes))

    return Source(name, tuple(part(split, dataset) for split, dataset in saved.items()))


def _one_line(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"{words[:300]} ({type(error).__name__})"


def listed(names: Sequence[str]) -> str:
    """Names for a message."""
    return ", ".join(names) if names else "none"


# --- file types


def read_file(path: Path, task: Task | None, text: Sequence[str]) -> Table:
    """One of the FILE_TYPES, told by its name; `task` and `text` as in `open_source`."""
    file_type = _file_type(path)
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if file_type is None:
        raise DataError(f"{path}: unknown kind of file; those read are .{', .'.join(FILE_TYPES)}, each also .gz")
    try:
        content = path.read_bytes()
        if path.name.endswith(".gz"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {_one_line(error)}") from error
    if file_type == "parquet":
        return _read_parquet(path, content)
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from error
    if file_type in ("json", "jsonl"):
        return _read_json(path, decoded)
    if file_type == "csv":
        return _read_csv(path, decoded)
    return _read_tsv(path, decoded, task, text)


def _read_tsv(path: Path, content: str, task: Task | None, text: Sequence[str]) -> Table:
    # Not str.splitlines: it also splits at U+2028 and other characters that are part of a text.
    lines = content.removesuffix("\n").split("\n") if content else []
    if lines and lines[0].endswith("\r"):
        lines = [line.removesuffix("\r") for line in lines]
    rows = [line.split("\t") for line in lines]
    columns = tuple(rows[0]) if rows else ()
    widths: tuple[int, ...] = (len(columns),)
    first_line = 2
    if task is not None and task.name in _HEADERLESS and not {*task.text, *text} & {*columns}:
        names, headerless_widths = _HEADERLESS[task.name]
        if len(columns) in headerless_widths:
            columns, widths, first_line = names, headerless_widths, 1
    rows = rows[first_line - 1 :]
    while len(columns) > 1 and rows and rows[-1] == [""]:  # blank lines at the end; in a single column they are rows
        rows.pop()
    if task is not None and task.name in _TORN_ROWS:
        rows = [row for row in rows if len(row) in widths]
    return _of_rows(path, columns, rows, widths, range(first_line, first_line + len(rows)))


def _read_csv(path: Path, content: str) -> Table:
    old_limit = csv.field_size_limit(sys.maxsize)  # else a text of over 128 KiB is an error
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    rows: list[list[str]] = []
    line_numbers: list[int] = []
    try:
        for row in reader:
            if row:  # a blank line is no row: an empty single column is written as ""
                rows.append(row)
                line_numbers.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; quotes in a quoted field are doubled") from error
    finally:
        csv.field_size_limit(old_limit)
    columns = tuple(rows[0]) if rows else ()
    return _of_rows(path, columns, rows[1:], (len(columns),), line_numbers[1:])


def _of_rows(
    path: Path, columns: tuple[str, ...], rows: list[list[str]], widths: tuple[int, ...], line_numbers: Sequence[int]
) -> Table:
    for line, row in zip(line_numbers, rows, strict=True):
        if len(row) not in widths:
            allowed = " or ".join(map(str, widths))
            raise DataError(
                f"{path}, line {line}: {len(row)} fields, where {allowed} are expected; "
                "a text may hold no tab in .tsv, and no bare comma or line break in .csv"
            )

    def column(name: str) -> Sequence[object]:
        index = columns.index(name)
        return [row[index] for row in rows]

    return Table(str(path), columns, column, {})


def _read_json(path: Path, content: str) -> Table:
    rows: list[dict[str, object]] = []
    whole = content.lstrip().startswith("[")
    pieces = [content] if whole else content.split("\n")
    for line, piece in enumerate(pieces, start=1):
        if not piece.strip():
            continue
        try:
            value: Any = json.loads(piece)
        except ValueError as error:
            at = error.lineno if whole and isinstance(error, json.JSONDecodeError) else line
            raise DataError(f"{path}, line {at}: not JSON; {_JSON_ADVICE}") from error
        rows.extend(value if whole else [value])
    for number, row in enumerate(cast(list[object], rows), start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}: not a JSON object; {_JSON_ADVICE}")
    columns = tuple(dict.fromkeys(chain.from_iterable(rows)))
    return Table(str(path), columns, lambda name: [row.get(name) for row in rows], {})


def _read_parquet(path: Path, content: bytes) -> Table:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        table = cast(Any, parquet).read_table(io.BytesIO(content))
    except (cast(Any, arrow).ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}: {_one_line(cast(Exception, error))}") from cast(Exception, error)
    # `datasets` writes its features, ClassLabel names among them, beside the schema.
    features = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    classes = {name: tuple(f["names"]) for name, f in features.items() if isinstance(f, dict) and "names" in f}
    return Table(str(path), tuple(table.column_names), lambda name: table.column(name).to_pylist(), classes)
