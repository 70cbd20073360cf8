"""The token ids of `Examples`, as `Rows`: ragged arrays that are cut, padded and hashed without a tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64, Shaped, UInt8
from numpy.typing import ArrayLike, NDArray

from hskstore.text.spool import ArrayFile, open_array

_BLOCK_ROWS = 16384
_BLOCK_SIZE = 2**18
"""Of rows that are moved or looked at together: the most rows, and the most tokens and bytes unless one row has more."""
_INDEX = "rows.json"


@dataclass(frozen=True)
class Text:
    """What N rows were tokenised from, and where each token stands in it; ragged as `Rows`. Of rows that were cut to a length,
    a column ends with the last character of its tokens.

    `utf8` [total] uint8 holds row i at `bounds[i]:bounds[i + 1]`, its columns directly one after the other; `bounds` is
    [N + 1] int64, `n_bytes` [N, columns] int32. `offsets` [total tokens, 2] int32 are a token's first character (Unicode code
    point) in the row's text and the one behind its last, white space at its ends left out; -1, -1 where it has no character,
    as special tokens.
    """

    utf8: UInt8[np.ndarray, " byte"]
    bounds: Int64[np.ndarray, " bound"]
    n_bytes: Int32[np.ndarray, "row column"]
    offsets: Int32[np.ndarray, "token 2"]

    @property
    def most_bytes(self) -> int:
        """Of a row, all columns together; 0 where there are no rows."""
        return _longest(self.bounds)

    @classmethod
    def joined(
        cls,
        parts: Sequence[tuple[UInt8[np.ndarray, " _byte"], Int32[np.ndarray, "_row column"], Int32[np.ndarray, "_token 2"]]],
    ) -> Text:
        """From `utf8`, `n_bytes` and `offsets` of some rows after the other."""
        utf8, n_bytes, offsets = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        bounds = np.concatenate([[0], np.cumsum(n_bytes.sum(axis=1, dtype=np.int64))])
        return cls(utf8, bounds, n_bytes, offsets)

    @property
    def n_chars(self) -> Int64[np.ndarray, "row column"]:
        """A character begins at every byte that does not go on with another."""
        before = np.concatenate([[0], np.cumsum((self.utf8 & 0xC0) != 0x80)])
        ends = self.bounds[:-1, None] + np.cumsum(self.n_bytes, axis=1)
        return np.asarray(before[ends] - before[ends - self.n_bytes], dtype=np.int64)

    def columns(self) -> tuple[list[str], ...]:
        """The text columns, N strings each. Raises UnicodeDecodeError."""
        data, ends = self.utf8.tobytes(), np.cumsum(self.n_bytes.ravel(), dtype=np.int64).tolist()
        strings = [data[start:end].decode() for start, end in pairwise([0, *ends])]
        columns = self.n_bytes.shape[1]
        return tuple(strings[column::columns] for column in range(columns))

    def padded(
        self, n_tokens: Int32[np.ndarray, " row"]
    ) -> tuple[UInt8[np.ndarray, "row byte"], Int32[np.ndarray, "row token 2"]]:
        """`utf8`, the rest 0, and `offsets`, the rest -1, as wide as the longest row."""
        lengths = np.diff(self.bounds)
        utf8 = np.zeros((len(lengths), int(lengths.max(initial=0))), dtype=np.uint8)
        utf8[np.arange(utf8.shape[1]) < lengths[:, None]] = self.utf8
        offsets = np.full((len(lengths), int(n_tokens.max(initial=0)), 2), -1, dtype=np.int32)
        offsets[np.arange(offsets.shape[1]) < n_tokens[:, None]] = self.offsets
        return utf8, offsets


@dataclass(frozen=True)
class Spans:
    """The spans of N rows, those of row i at `bounds[i]:bounds[i + 1]`, in the order of their tokens: `tokens` [total, 2] int32
    are a span's first token in its row and the one behind its last."""

    bounds: Int64[np.ndarray, " bound"]
    tokens: Int32[np.ndarray, "span 2"]

    @property
    def most(self) -> int:
        """Of a row; 0 where there are no spans."""
        return _longest(self.bounds)

    @property
    def n_spans(self) -> Int32[np.ndarray, " row"]:
        return np.diff(self.bounds).astype(np.int32)

    def padded(self) -> Int32[np.ndarray, "row span 2"]:
        """`tokens` as wide as the row that has most of them, the rest 0."""
        n_spans = self.n_spans
        found = np.zeros((len(n_spans), int(n_spans.max(initial=0)), 2), dtype=np.int32)
        found[np.arange(found.shape[1]) < n_spans[:, None]] = self.tokens
        return found


@dataclass(frozen=True)
class Rows:
    """One split of N rows, tokenised; ragged, so that a million rows stay small. The arrays may be mapped from files.

    `input_ids` [total] int32 and `token_type_ids` [total] uint8 hold row i at `bounds[i]:bounds[i + 1]`; `bounds` is
    [N + 1] int64; `label` [N] or None; `row_id` [N] int64 is the row's number, from 0, in the split it was made from; `text`
    is None where only the tokens were asked for, and so are `spans`.
    """

    input_ids: Int32[np.ndarray, " token"]
    token_type_ids: UInt8[np.ndarray, " token"]
    bounds: Int64[np.ndarray, " bound"]
    label: Shaped[np.ndarray, " row"] | None
    row_id: Int64[np.ndarray, " row"]
    text: Text | None = None
    spans: Spans | None = None

    @classmethod
    def of_padded(
        cls,
        input_ids: Int32[np.ndarray, "row token"],
        token_type_ids: UInt8[np.ndarray, "row token"],
        n_tokens: Int32[np.ndarray, " row"],
        row_id: Int64[np.ndarray, " row"],
    ) -> Rows:
        """The inverse of `padded`: what stands behind a row's last token is left out."""
        real = np.arange(input_ids.shape[1]) < n_tokens[:, None]
        bounds = np.concatenate([[0], np.cumsum(n_tokens, dtype=np.int64)])
        return cls(input_ids[real], token_type_ids[real], bounds, None, row_id)

    def __len__(self) -> int:
        return len(self.row_id)

    @property
    def n_tokens(self) -> Int32[np.ndarray, " row"]:
        """Special tokens counted. Of some rows of many: `slice(start, stop).n_tokens`."""
        return np.diff(self.bounds).astype(np.int32)

    @property
    def longest(self) -> int:
        """Tokens of the longest row; 0 where there are no rows."""
        return _longest(self.bounds)

    def slice(self, start: int, stop: int) -> Rows:
        """The rows from `start` to the one before `stop`, of which little is read before it is asked for."""
        bounds = self.bounds[start : stop + 1]
        tokens = slice(int(bounds[0]), int(bounds[-1]))
        text = self.text
        if text is not None:
            of_bytes = text.bounds[start : stop + 1]
            utf8 = text.utf8[of_bytes[0] : of_bytes[-1]]
            text = Text(utf8, of_bytes - of_bytes[0], text.n_bytes[start:stop], text.offsets[tokens])
        spans = self.spans
        if spans is not None:
            of_spans = spans.bounds[start : stop + 1]
            spans = Spans(of_spans - of_spans[0], spans.tokens[of_spans[0] : of_spans[-1]])
        return Rows(
            input_ids=self.input_ids[tokens],
            token_type_ids=self.token_type_ids[tokens],
            bounds=bounds - bounds[0],
            label=None if self.label is None else self.label[start:stop],
            row_id=self.row_id[start:stop],
            text=text,
            spans=spans,
        )

    def take(self, index: ArrayLike) -> Rows:
        """The rows of these positions, in that order, in memory; no other is read."""
        positions = np.asarray(index)
        assert positions.dtype != np.bool_, "a mask is no index: np.flatnonzero makes one"
        positions = positions.astype(np.int64)
        starts, ends = self.bounds[:-1][positions], self.bounds[1:][positions]
        bounds, token = gather(starts, ends - starts)
        text = self.text
        if text is not None:
            n_bytes = text.n_bytes[positions]
            of_bytes, byte = gather(text.bounds[:-1][positions], n_bytes.sum(axis=1, dtype=np.int64))
            text = Text(text.utf8[byte], of_bytes, n_bytes, text.offsets[token])
        spans = self.spans
        if spans is not None:
            first = spans.bounds[:-1][positions]
            of_spans, span = gather(first, spans.bounds[1:][positions] - first)
            spans = Spans(of_spans, spans.tokens[span])
        return Rows(
            input_ids=self.input_ids[token],
            token_type_ids=self.token_type_ids[token],
            bounds=bounds,
            label=None if self.label is None else self.label[positions],
            row_id=self.row_id[positions],
            text=text,
            spans=spans,
        )

    def reordered(self, index: Int64[np.ndarray, " row"], folder: Path | None = None) -> Rows:
        """As `take`, but block by block, and into the files of `folder` if there is one."""
        columns = None if self.text is None else self.text.n_bytes.shape[1]
        growing = GrowingRows(folder, None if self.label is None else self.label.dtype, columns, self.spans is not None)
        for start in range(0, len(index), _BLOCK_ROWS):
            positions = index[start : start + _BLOCK_ROWS]
            sizes = self.bounds[1:][positions] - self.bounds[:-1][positions]
            if self.text is not None:
                sizes = np.maximum(sizes, self.text.bounds[1:][positions] - self.text.bounds[:-1][positions])
            for at in _runs(sizes, _BLOCK_SIZE):
                growing.append(self.take(positions[at]))
        return growing.done()

    def in_runs(self) -> Iterator[Rows]:
        """All rows, some after the other, none in memory before it is asked for."""
        for start in range(0, len(self), _BLOCK_ROWS):
            sizes = np.diff(self.bounds[start : start + _BLOCK_ROWS + 1])
            for at in _runs(sizes, _BLOCK_SIZE):
                yield self.slice(start + at.start, start + at.stop)

    def padded(self, pad_token_id: int) -> tuple[Int32[np.ndarray, "row token"], UInt8[np.ndarray, "row token"]]:
        """`input_ids` and `token_type_ids` as wide as the longest row, the rest `pad_token_id` and 0."""
        n_tokens = self.n_tokens
        shape = (len(self), int(n_tokens.max(initial=0)))
        real = np.arange(shape[1])[None, :] < n_tokens[:, None]
        input_ids = np.full(shape, pad_token_id, dtype=np.int32)
        token_type_ids = np.zeros(shape, dtype=np.uint8)
        input_ids[real] = self.input_ids
        token_type_ids[real] = self.token_type_ids
        return input_ids, token_type_ids

    def sha256(self) -> str:
        """Hex digest of all arrays with their names, dtypes and shapes; of all but the spans, which are found in them."""
        digest = hashlib.sha256()
        for name, array in replace(self, spans=None).arrays().items():
            name = "offsets" if name == "bounds" else name  # as it was called when the first stores were planned
            if array is None:
                digest.update(f"{name} none\n".encode())
            else:
                digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).reshape(-1).data)
        return digest.hexdigest()

    def arrays(self) -> dict[str, Shaped[np.ndarray, "_ ..."] | None]:
        """All of them by name, those of the text as "text.utf8" and the like, and so those of the spans."""
        parts = {"text": self.text, "spans": self.spans}
        arrays: dict[str, NDArray[Any] | None] = {name: array for name, array in vars(self).items() if name not in parts}
        for part, own in parts.items():
            arrays |= {} if own is None else {f"{part}.{name}": array for name, array in vars(own).items()}
        return arrays


def _of_arrays(arrays: Mapping[str, NDArray[Any] | None]) -> Rows:
    """The inverse of `Rows.arrays`."""
    own = {name: array for name, array in arrays.items() if "." not in name}
    text, spans = (
        {name.removeprefix(part): array for name, array in arrays.items() if name.startswith(part)}
        for part in ("text.", "spans.")
    )
    return Rows(**own, text=Text(**text) if text else None, spans=Spans(**spans) if spans else None)  # type: ignore[arg-type]


class GrowingRows:
    """Rows as they come, some after the other: in the files of a folder, else in memory."""

    def __init__(self, folder: Path | None, label: np.dtype[Any] | None, text_columns: int | None, spans: bool = False) -> None:
        """`label` is its dtype, if there are labels; `text_columns` how many there are, if the text is kept."""
        kinds: dict[str, tuple[Any, tuple[int, ...]]] = {
            "input_ids": (np.int32, ()),
            "token_type_ids": (np.uint8, ()),
            "bounds": (np.int64, ()),
            "label": (label, ()),
            "row_id": (np.int64, ()),
        }
        if text_columns is not None:
            kinds |= {
                "text.utf8": (np.uint8, ()),
                "text.bounds": (np.int64, ()),
                "text.n_bytes": (np.int32, (text_columns,)),
                "text.offsets": (np.int32, (2,)),
            }
        if spans:
            kinds |= {"spans.bounds": (np.int64, ()), "spans.tokens": (np.int32, (2,))}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._arrays = {
            name: None if dtype is None else ArrayFile(dtype, shape, None if folder is None else folder / name)
            for name, (dtype, shape) in kinds.items()
        }
        self._ends = {name: 0 for name in ("bounds", "text.bounds", "spans.bounds") if name in kinds}
        for name in self._ends:
            self._append(name, np.zeros(1, dtype=np.int64))

    def append(self, rows: Rows) -> None:
        for name, array in rows.arrays().items():
            if array is None:
                continue
            if name in self._ends:
                array = self._ends[name] + array[1:]
                self._ends[name] = int(array[-1]) if len(array) else self._ends[name]
            self._append(name, array)

    def _append(self, name: str, array: NDArray[Any]) -> None:
        file = self._arrays[name]
        assert file is not None
        file.append(array)

    def done(self) -> Rows:
        return _of_arrays({name: None if file is None else file.done() for name, file in self._arrays.items()})


def save_index(rows: Mapping[str, Rows], folder: Path) -> None:
    """Make the splits that lie in folders of their names below `folder` readable to `open_rows`."""
    splits = {
        split: {
            name: None if array is None else {"dtype": array.dtype.str, "shape": array.shape}
            for name, array in one.arrays().items()
        }
        for split, one in rows.items()
    }
    (folder / _INDEX).write_text(json.dumps(splits, indent=1))


def open_rows(folder: Path) -> dict[str, Rows]:
    """The splits that `save_index` described, mapped from the files of `folder`."""
    splits: dict[str, dict[str, Any]] = json.loads((folder / _INDEX).read_text())
    return {
        split: _of_arrays(
            {
                name: None if kind is None else open_array(folder / split / name, kind["dtype"], tuple(kind["shape"]))
                for name, kind in arrays.items()
            }
        )
        for split, arrays in splits.items()
    }


def _longest(bounds: NDArray[np.int64]) -> int:
    """The most between two neighbours."""
    return max(
        (int(np.diff(bounds[start : start + _BLOCK_ROWS + 1]).max(initial=0)) for start in range(0, len(bounds), _BLOCK_ROWS)),
        default=0,
    )


def _runs(sizes: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Cut rows of these sizes into runs of at most `most` together, or of one row."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield slice(start, stop)
        start = stop


def gather(
    starts: Int[np.ndarray, " row"], lengths: Int[np.ndarray, " row"]
) -> tuple[Int[np.ndarray, " bound"], Int[np.ndarray, " element"]]:
    """Ragged rows that begin at `starts`: their bounds once they lie one after the other, and where each element is now."""
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return bounds, np.arange(bounds[-1]) + np.repeat(starts - bounds[:-1], lengths)
