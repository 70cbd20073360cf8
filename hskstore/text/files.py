"""Files of labelled text, of every type that is read, each as a `Table`."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

from hskstore.errors import DataError
from hskstore.text.spool import SLICE, Column, in_slices, spool, spool_bytes, spool_text
from hskstore.text.table import Table, one_line, separator_hint
from hskstore.text.tasks import Task

log = logging.getLogger(__name__)

FILE_TYPES = ("tsv", "txt", "csv", "jsonl", "json", "parquet")
"""The extensions that are read, in letters of any case, each also with .gz behind it."""

# These have no header line. STS-B's rows may end in two more columns, that name the licence of their text.
_HEADERLESS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "cola": (("source", "label", "mark", "sentence"), (4,)),
    "stsb": (("genre", "file", "year", "id", "score", "sentence1", "sentence2"), (7, 9)),
}
# GLUE's QQP holds a few rows torn by a line break in a question; the hub's copy leaves them out, and so do we.
_TORN_ROWS = ("qqp",)
_BLOCK = 2**20
"""Bytes that are read at once."""
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_JSON_ADVICE = "write one object per line, or one array of objects"


def type_of_file(path: Path) -> str | None:
    """The one of FILE_TYPES, in letters of any case."""
    _, dot, extension = path.name.lower().removesuffix(".gz").rpartition(".")
    return extension if extension in FILE_TYPES and dot else None


# --- file types


def read_file(path: Path, task: Task | None, text: Sequence[str]) -> Table:
    """One of the FILE_TYPES, told by its name; `task` and `text` as in `open_source`."""
    file_type = type_of_file(path)
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if file_type is None:
        raise DataError(f"{path}: unknown kind of file; those read are .{', .'.join(FILE_TYPES)}, each also .gz")
    if file_type == "parquet":
        return _read_parquet(path)
    if file_type in ("json", "jsonl"):
        return _read_json(path)
    if file_type == "csv":
        return _read_csv(path)
    return _read_tsv(path, task, text)


def _is_packed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _unpacked(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if _is_packed(path) else path.open("rb")


def _unpacked_bytes(path: Path) -> Iterator[bytes]:
    with _reading(path):
        file = _unpacked(path)
    with file:
        while True:
            with _reading(path):
                content = file.read(_BLOCK)
            if not content:
                return
            yield content


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from error


def _text_blocks(path: Path) -> Iterator[str]:
    """The text of a file in blocks that end where a line does. Raises DataError for what is not UTF-8."""
    encoding, n_lines = "utf-8-sig", 0
    with _reading(path):
        file = _unpacked(path)
    with file:
        while True:
            with _reading(path):
                content = file.read(_BLOCK) + file.readline()
            if not content:
                return
            try:
                decoded = content.decode(encoding)
            except UnicodeDecodeError as error:
                line = n_lines + content.count(b"\n", 0, error.start) + 1
                raise DataError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from error
            encoding, n_lines = "utf-8", n_lines + content.count(b"\n")
            yield decoded


def _lines(path: Path) -> Iterator[str]:
    for block in _text_blocks(path):
        # Not str.splitlines: it also splits at U+2028 and other characters that are part of a text.
        yield from block.removesuffix("\n").split("\n") if block else ()


def _read_tsv(path: Path, task: Task | None, text: Sequence[str]) -> Table:
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        return Table(str(path), (), _no_column, {})
    if first.endswith("\r"):
        first, lines = first.removesuffix("\r"), (line.removesuffix("\r") for line in lines)
    columns = tuple(first.split("\t"))
    widths: tuple[int, ...] = (len(columns),)
    first_line = 2
    if task is not None and task.name in _HEADERLESS and not {*task.text, *text} & {*columns}:
        names, headerless_widths = _HEADERLESS[task.name]
        if len(columns) in headerless_widths:
            columns, widths, first_line, lines = names, headerless_widths, 1, chain([first], lines)
    rows: Iterator[tuple[int, list[str]]] = enumerate((line.split("\t") for line in lines), start=first_line)
    if len(columns) > 1:
        rows = _without_blank_end(rows)
    if task is not None and task.name in _TORN_ROWS:
        rows = ((line, row) for line, row in rows if len(row) in widths)
    quotes = Counter[bool]()

    def counted() -> Iterator[tuple[int, list[str]]]:
        for line, row in rows:
            quotes.update(_QUOTED.fullmatch(field) is not None for field in row if '"' in field)
            yield line, row

    table = _of_rows(path, columns, widths, counted())
    if quotes[True] > quotes[False]:
        log.warning(
            "%s: most fields with quotes look quoted, as pandas writes them, and a .tsv is read as it stands, quotes and all: "
            "if they are no part of the text, save the data as .csv",
            path,
        )
    return table


def _without_blank_end(rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    """Of blank lines, only the first of those that have rows behind them; in a single column a blank line is a row."""
    blank: tuple[int, list[str]] | None = None
    for line, row in rows:
        if row == [""]:
            blank = blank or (line, row)
            continue
        if blank is not None:
            yield blank
            blank = None
        yield line, row


def _read_csv(path: Path) -> Table:
    old_limit = csv.field_size_limit(sys.maxsize)  # else a text of over 128 KiB is an error
    lines = chain.from_iterable(io.StringIO(block, newline="") for block in _text_blocks(path))
    reader = csv.reader(lines, strict=True)
    try:
        # A blank line is no row: an empty single column is written as "".
        rows = ((reader.line_num, row) for row in reader if row)
        columns = tuple(next(rows, (0, []))[1])
        return _of_rows(path, columns, (len(columns),), rows)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; quotes in a quoted field are doubled") from error
    finally:
        csv.field_size_limit(old_limit)


def _of_rows(path: Path, columns: tuple[str, ...], widths: tuple[int, ...], rows: Iterable[tuple[int, list[str]]]) -> Table:
    """The table of rows with the numbers of their lines."""

    def checked() -> Iterator[list[str]]:
        for line, row in rows:
            if len(row) not in widths:
                allowed = " or ".join(map(str, widths))
                raise DataError(
                    f"{path}, line {line}: {len(row)} fields, where {allowed} are expected; "
                    "a text may hold no tab or line break in .tsv, and no bare comma or line break in .csv"
                    f"{separator_hint(columns)}"
                )
            yield row

    held: Sequence[Column[Any]] = spool_text(checked(), len(columns))
    return Table(str(path), columns, lambda name: held[columns.index(name)], {})


def _no_column(name: str) -> Column[object]:
    raise KeyError(name)


def _read_json(path: Path) -> Table:
    lines = ((line, text) for line, text in enumerate(_lines(path), start=1) if text.strip())
    first = next(lines, None)
    if first is not None and first[1].lstrip().startswith("["):
        return _read_json_array(path)
    kinds: dict[str, set[type]] = {}

    def objects() -> Iterator[tuple[str]]:
        for number, (line, text) in enumerate(chain([first] if first else [], lines), start=1):
            try:
                value: Any = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {line}: not JSON; {_JSON_ADVICE}") from error
            if not isinstance(value, dict):
                raise DataError(f"{path}, row {number}: not a JSON object; {_JSON_ADVICE}")
            for name, held in value.items():
                kinds.setdefault(name, set()).add(type(held))
            yield (text,)

    (held,) = spool_text(objects(), 1)
    return Table(str(path), tuple(kinds), cache(lambda name: _json_column(held, name, kinds[name])), {})


def _json_column(lines: Column[str], name: str, kinds: set[type]) -> Column[object]:
    """The values by one name. Those of one plain type are parsed once, others each time that they are read."""
    import pyarrow as arrow

    values: Column[object] = lines.map(lambda some: [json.loads(line).get(name) for line in some])
    plain = {str: arrow.string(), bool: arrow.bool_(), int: arrow.int64(), float: arrow.float64()}
    kind = kinds - {type(None)}
    if len(kind) != 1 or not kind <= {*plain}:
        return values
    schema = arrow.schema([(name, plain[kind.pop()])])
    batches = (arrow.record_batch([arrow.array(block, schema.types[0])], schema=schema) for _, block in in_slices(values))
    try:
        return spool(schema, batches)[0]
    except (ValueError, OverflowError):  # half a character, or an integer of more than 64 bits: nothing for Arrow
        return values


def _read_json_array(path: Path) -> Table:
    try:
        rows: Any = json.loads("".join(_text_blocks(path)))
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise DataError(f"{path}, line {line}: not JSON; {_JSON_ADVICE}") from error
    for number, row in enumerate(cast(list[object], rows), start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}: not a JSON object; {_JSON_ADVICE}")
    columns = tuple(dict.fromkeys(chain.from_iterable(rows)))

    def column(name: str) -> Column[object]:
        return Column(len(rows), lambda start, stop: [row.get(name) for row in rows[start:stop]])

    return Table(str(path), columns, column, {})


def _read_parquet(path: Path) -> Table:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    broken = (arrow.ArrowException, OSError)
    # It is read from its end, which a stream of gzip has only when it is unpacked.
    place: Any = spool_bytes(_unpacked_bytes(path)) if _is_packed(path) else path

    def batches(name: str, schema: Any) -> Iterator[Any]:
        try:
            # Buffered, else a whole column of a row group, which may be the whole file, is in memory at once.
            with parquet.ParquetFile(place, buffer_size=_BLOCK) as file:
                for batch in file.iter_batches(batch_size=SLICE, columns=[name]):
                    yield arrow.record_batch([batch.column(0)], schema=schema)
        except broken as error:
            raise DataError(f"cannot read {path}: {one_line(error)}") from error

    try:
        with parquet.ParquetFile(place) as file:
            held = file.schema_arrow
    except broken as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from error

    def column(name: str) -> Column[object]:
        schema = arrow.schema([held.field(name)])
        return spool(schema, batches(name, schema))[0]

    written = (held.metadata or {}).get(b"huggingface", b"{}")
    return Table(str(path), tuple(held.names), cache(column), _class_names(path, written))


def _class_names(path: Path, written: bytes) -> dict[str, tuple[object, ...]]:
    """Those of ClassLabel columns in what `datasets` writes beside a schema: its features, as JSON."""
    try:
        said: Any = json.loads(written)
        features = dict(said.get("info", {}).get("features", {}))
    except (ValueError, RecursionError, AttributeError, TypeError):
        log.warning("%s: its `huggingface` metadata cannot be read; names of classes in it are passed over", path)
        return {}
    found = {name: f["names"] for name, f in features.items() if isinstance(f, dict) and "names" in f}
    return {name: tuple(names) if isinstance(names, list) else (None,) for name, names in found.items()}
