"""Data on disk instead of in memory: columns and arrays that are written once, from front to end, and read in slices.

What has no path of its own lies in a file without a name in the temporary folder (TMPDIR): it is gone with the last who reads
it, however that ends.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, TypeVar, cast, overload

import numpy as np
from jaxtyping import Shaped
from numpy.typing import DTypeLike, NDArray

from hskstore.errors import DataError

T = TypeVar("T")
U = TypeVar("U")

SLICE = 8192
"""Values that are read together: enough that the reading counts and not the asking, few enough to be nothing in memory."""
_FULL_BATCH = 2**20
"""Characters after which rows of text are written, should they come before SLICE rows."""


class Column(Sequence[T]):
    """N values that need not be in memory; a slice is a list. `read(start, stop)` gives what lies there."""

    def __init__(self, length: int, read: Callable[[int, int], list[T]]) -> None:
        self._length = length
        self._read = read

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        places = range(self._length)[index]
        if isinstance(places, int):
            return self._read(places, places + 1)[0]
        if places.step != 1:
            return [self[place] for place in places]
        return self._read(places.start, places.stop) if places else []

    def __iter__(self) -> Iterator[T]:
        for _, block in in_slices(self):
            yield from block

    def __eq__(self, other: object) -> bool:
        """As lists are: to any sequence of the same values."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def map(self, convert: Callable[[list[T]], list[U]]) -> Column[U]:
        """The column of what `convert` makes of a slice, each time that one is read."""
        return Column(self._length, lambda start, stop: convert(self._read(start, stop)))


def in_slices(column: Sequence[T], size: int = SLICE) -> Iterator[tuple[int, Sequence[T]]]:
    """A column in slices, each with the number of its first value."""
    for start in range(0, len(column), size):
        yield start, column[start : start + size]


def joined(columns: Sequence[Column[T]]) -> Column[T]:
    """One column after the other."""
    ends = list(accumulate(map(len, columns)))

    def read(start: int, stop: int) -> list[T]:
        found: list[T] = []
        for column, end in zip(columns, ends, strict=True):
            first = end - len(column)
            if first < stop and start < end:
                found += column[max(start - first, 0) : stop - first]
        return found

    return Column(ends[-1] if ends else 0, read)


# --- Arrow


def spool(schema: Any, batches: Iterable[Any]) -> tuple[Column[Any], ...]:
    """Arrow record batches as columns that are mapped from a file. Raises DataError where there is no room for it."""
    import pyarrow as arrow
    from pyarrow import ipc

    with _room(_temporary_folder()), tempfile.TemporaryFile() as file:
        # A stream: unlike a file of Arrow's, it may hold a dictionary for each batch.
        with ipc.new_stream(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        file.flush()
        table = ipc.open_stream(arrow.py_buffer(_map(file))).read_all()
    return tuple(_arrow_column(column) for column in table.columns)


def spool_text(rows: Iterable[Sequence[str]], columns: int) -> tuple[Column[str], ...]:
    """The first `columns` strings of each row, as columns."""
    import pyarrow as arrow

    schema = arrow.schema([(str(index), arrow.string()) for index in range(columns)])

    def batch(held: list[Sequence[str]]) -> Any:
        strings = list(zip(*held, strict=False))[:columns]
        return arrow.record_batch([arrow.array(column, arrow.string()) for column in strings], schema=schema)

    def batches() -> Iterator[Any]:
        held: list[Sequence[str]] = []
        size = 0
        for row in rows:
            held.append(row)
            size += sum(map(len, row))
            if size >= _FULL_BATCH or len(held) == SLICE:
                yield batch(held)
                held, size = [], 0
        if held:
            yield batch(held)

    return spool(schema, batches())


def _arrow_column(values: Any) -> Column[Any]:
    return Column(len(values), lambda start, stop: cast(list[Any], values.slice(start, stop - start).to_pylist()))


def spool_bytes(chunks: Iterable[bytes]) -> IO[bytes]:
    """A file without a name that holds these. Raises DataError where there is no room for it."""
    with _room(_temporary_folder()):
        file = cast(IO[bytes], tempfile.TemporaryFile())  # noqa: SIM115
        file.writelines(chunks)
        file.flush()
    return file


# --- arrays


class ArrayFile:
    """An array that grows along its first axis, in a file: at `path`, else one without a name."""

    def __init__(self, dtype: DTypeLike, shape: tuple[int, ...] = (), path: Path | None = None) -> None:
        """`shape` is that of one element. Raises DataError where the file cannot be."""
        self._dtype, self._shape, self._length = np.dtype(dtype), shape, 0
        self._folder = str(path.parent) if path is not None else _temporary_folder()
        with _room(self._folder):
            self._file: IO[bytes] = cast(IO[bytes], tempfile.TemporaryFile() if path is None else path.open("w+b"))  # noqa: SIM115

    def append(self, array: Shaped[np.ndarray, "row ..."]) -> None:
        """Some more of it. Raises DataError where there is no room."""
        with _room(self._folder):
            self._file.write(np.ascontiguousarray(array, dtype=self._dtype).data)
        self._length += len(array)

    def done(self) -> Shaped[np.ndarray, "row ..."]:
        """The array, read-only and mapped from the file. Raises DataError where there is no room."""
        with _room(self._folder), self._file as file:
            file.flush()
            return _mapped(file, self._dtype, (self._length, *self._shape))


def open_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> Shaped[np.ndarray, "row ..."]:
    """What an ArrayFile wrote there, read-only and mapped."""
    with path.open("rb") as file:
        return _mapped(file, np.dtype(dtype), shape)


def _mapped(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if 0 in shape:  # nothing cannot be mapped
        return np.empty(shape, dtype=dtype)
    return np.frombuffer(_map(file), dtype=dtype).reshape(shape)


def _map(file: Any) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError as error:
        raise DataError(f"there is no temporary folder that can be written: name one with TMPDIR ({error})") from error


@contextmanager
def _room(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write to the folder {folder}: {error.strerror or error}; make room there, or name another for temporary"
            " files with TMPDIR"
        ) from error
