"""The token ids of `Examples`, as `Rows`: ragged arrays that are cut, padded and hashed without a tokenizer."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, Shaped, UInt8
from numpy.typing import ArrayLike, NDArray

from hskstore.errors import DataError, ModelError, OptionError
from hskstore.text.dataset import Examples
from hskstore.text.spool import ArrayFile, open_array
from hskstore.watch import Watch, unwatched

_TOKENISE_BATCH = 4096
_ALIGN_BATCH = 65536
_BLOCK_ROWS = 16384
_BLOCK_SIZE = 2**18
"""Of rows that are moved or looked at together: the most rows, and the most tokens and bytes unless one row has more."""
_INDEX = "rows.json"
_MOST_KEYS = 2**62
_WHITE_SPACE = np.array([chr(point).isspace() for point in range(0x3002)])
"""By code point; the last that is white space is the ideographic space, U+3000."""


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
class Rows:
    """One split of N rows, tokenised; ragged, so that a million rows stay small. The arrays may be mapped from files.

    `input_ids` [total] int32 and `token_type_ids` [total] uint8 hold row i at `offsets[i]:offsets[i + 1]`; `offsets` is
    [N + 1] int64; `label` [N] or None; `row_id` [N] int64 is the row's number, from 0, in the split it was made from; `text`
    is None where only the tokens were asked for.
    """

    input_ids: Int32[np.ndarray, " token"]
    token_type_ids: UInt8[np.ndarray, " token"]
    offsets: Int64[np.ndarray, " bound"]
    label: Shaped[np.ndarray, " row"] | None
    row_id: Int64[np.ndarray, " row"]
    text: Text | None = None

    def __len__(self) -> int:
        return len(self.row_id)

    @property
    def n_tokens(self) -> Int32[np.ndarray, " row"]:
        """Special tokens counted. Of some rows of many: `slice(start, stop).n_tokens`."""
        return np.diff(self.offsets).astype(np.int32)

    @property
    def longest(self) -> int:
        """Tokens of the longest row; 0 where there are no rows."""
        return _longest(self.offsets)

    def slice(self, start: int, stop: int) -> Rows:
        """The rows from `start` to the one before `stop`, of which little is read before it is asked for."""
        offsets = self.offsets[start : stop + 1]
        tokens = slice(int(offsets[0]), int(offsets[-1]))
        text = self.text
        if text is not None:
            bounds = text.bounds[start : stop + 1]
            utf8 = text.utf8[bounds[0] : bounds[-1]]
            text = Text(utf8, bounds - bounds[0], text.n_bytes[start:stop], text.offsets[tokens])
        return Rows(
            input_ids=self.input_ids[tokens],
            token_type_ids=self.token_type_ids[tokens],
            offsets=offsets - offsets[0],
            label=None if self.label is None else self.label[start:stop],
            row_id=self.row_id[start:stop],
            text=text,
        )

    def take(self, index: ArrayLike) -> Rows:
        """The rows of these positions, in that order, in memory; no other is read."""
        positions = np.asarray(index)
        assert positions.dtype != np.bool_, "a mask is no index: np.flatnonzero makes one"
        positions = positions.astype(np.int64)
        starts, ends = self.offsets[:-1][positions], self.offsets[1:][positions]
        offsets, token = _gather(starts, ends - starts)
        text = self.text
        if text is not None:
            n_bytes = text.n_bytes[positions]
            bounds, byte = _gather(text.bounds[:-1][positions], n_bytes.sum(axis=1, dtype=np.int64))
            text = Text(text.utf8[byte], bounds, n_bytes, text.offsets[token])
        return Rows(
            input_ids=self.input_ids[token],
            token_type_ids=self.token_type_ids[token],
            offsets=offsets,
            label=None if self.label is None else self.label[positions],
            row_id=self.row_id[positions],
            text=text,
        )

    def reordered(self, index: Int64[np.ndarray, " row"], folder: Path | None = None) -> Rows:
        """As `take`, but block by block, and into the files of `folder` if there is one."""
        columns = None if self.text is None else self.text.n_bytes.shape[1]
        growing = _GrowingRows(folder, None if self.label is None else self.label.dtype, columns)
        for start in range(0, len(index), _BLOCK_ROWS):
            positions = index[start : start + _BLOCK_ROWS]
            sizes = self.offsets[1:][positions] - self.offsets[:-1][positions]
            if self.text is not None:
                sizes = np.maximum(sizes, self.text.bounds[1:][positions] - self.text.bounds[:-1][positions])
            for at in _runs(sizes, _BLOCK_SIZE):
                growing.append(self.take(positions[at]))
        return growing.done()

    def blocks(self) -> Iterator[Rows]:
        """All rows, some after the other, none in memory before it is asked for."""
        for start in range(0, len(self), _BLOCK_ROWS):
            sizes = np.diff(self.offsets[start : start + _BLOCK_ROWS + 1])
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
        """Hex digest of all arrays with their names, dtypes and shapes."""
        digest = hashlib.sha256()
        for name, array in self.arrays().items():
            if array is None:
                digest.update(f"{name} none\n".encode())
            else:
                digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).reshape(-1).data)
        return digest.hexdigest()

    def arrays(self) -> dict[str, Shaped[np.ndarray, "_ ..."] | None]:
        """All of them by name, those of the text as "text.utf8" and the like."""
        arrays: dict[str, NDArray[Any] | None] = {name: array for name, array in vars(self).items() if name != "text"}
        if self.text is not None:
            arrays |= {f"text.{name}": array for name, array in vars(self.text).items()}
        return arrays


def _of_arrays(arrays: Mapping[str, NDArray[Any] | None]) -> Rows:
    """The inverse of `Rows.arrays`."""
    own = {name: array for name, array in arrays.items() if not name.startswith("text.")}
    text = {name.removeprefix("text."): array for name, array in arrays.items() if name.startswith("text.")}
    return Rows(**own, text=Text(**text) if text else None)  # type: ignore[arg-type]


class _GrowingRows:
    """Rows as they come, some after the other: in the files of a folder, else in memory."""

    def __init__(self, folder: Path | None, label: np.dtype[Any] | None, text_columns: int | None) -> None:
        """`label` is its dtype, if there are labels; `text_columns` how many there are, if the text is kept."""
        kinds: dict[str, tuple[Any, tuple[int, ...]]] = {
            "input_ids": (np.int32, ()),
            "token_type_ids": (np.uint8, ()),
            "offsets": (np.int64, ()),
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
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._arrays = {
            name: None if dtype is None else ArrayFile(dtype, shape, None if folder is None else folder / name)
            for name, (dtype, shape) in kinds.items()
        }
        self._ends = {name: 0 for name in ("offsets", "text.bounds") if name in kinds}
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


def _gather(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ragged rows that begin at `starts`: their bounds once they lie one after the other, and where each element is now."""
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return bounds, np.arange(bounds[-1]) + np.repeat(starts - bounds[:-1], lengths)


def tokenise(
    examples: Examples,
    tokenizer: Any,
    max_length: int,
    *,
    offsets: bool = False,
    split: str = "rows",
    watch: Watch = unwatched,
    folder: Path | None = None,
) -> Rows:
    """Token ids by a Hugging Face fast tokenizer, special tokens included, each row cut to `max_length`.

    `offsets` keeps the text and where each token stands in it. `split` is what the watch is told. The arrays are mapped from
    files, of their names in `folder`, else without a name. Raises OptionError for a `max_length` that the tokenizer cannot
    keep, ModelError if it pads or does not cut, and DataError for a row that has no token at all, for characters that are
    none, and where there is no room for the files.
    """
    n_special = int(tokenizer.num_special_tokens_to_add(pair=len(examples.text) == 2))
    if not n_special < max_length <= tokenizer.model_max_length:
        raise OptionError(
            f"--max-length {max_length}: this tokenizer takes {n_special + 1} to {tokenizer.model_max_length} tokens"
        )
    n_rows = len(examples)
    growing = _GrowingRows(
        folder, None if examples.label is None else examples.label.dtype, len(examples.text) if offsets else None
    )
    # Explicit: a tokenizer.json may have padding and truncation of its own switched on.
    options = {"padding": False, "truncation": True, "max_length": max_length, "return_attention_mask": True}
    for start in range(0, n_rows, _TOKENISE_BATCH):
        batch = [list(column[start : start + _TOKENISE_BATCH]) for column in examples.text]
        stop = start + len(batch[0])
        with _no_garbage():
            try:
                encoded = tokenizer(*batch, **options, return_offsets_mapping=offsets)
            except (TypeError, UnicodeEncodeError):
                _check_characters(batch, start)
                raise
            ids: list[list[int]] = encoded["input_ids"]
            types: list[list[int]] | None = encoded.get("token_type_ids")
            lengths = [len(row) for row in ids]
            if max(lengths) > max_length or any(0 in mask for mask in encoded["attention_mask"]):
                raise ModelError(
                    f"the tokenizer pads, or does not cut to {max_length} tokens, when told otherwise: use its fast form"
                )
            if 0 in lengths:
                row = start + lengths.index(0) + 1
                raise DataError(f"row {row} has no token, not even a special one: remove rows without text")
            total = sum(lengths)
            rows = Rows(
                input_ids=np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=total),
                token_type_ids=(
                    np.zeros(total, dtype=np.uint8)
                    if types is None
                    else np.fromiter(chain.from_iterable(types), dtype=np.uint8, count=total)
                ),
                offsets=np.cumsum([0, *lengths]),
                label=None if examples.label is None else examples.label[start:stop],
                row_id=np.arange(start, stop),
                text=Text.joined([_text(batch, np.array(lengths), encoded)]) if offsets else None,
            )
        growing.append(rows)
        watch(f"tokenise {split}", stop, n_rows)
    return growing.done()


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Put the collector of cycles off: it would look through each of the many lists that tokens come in, again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _check_characters(batch: Sequence[list[str]], start: int) -> None:
    """Raise DataError for the first row with half of a surrogate pair, which JSON can spell and no tokenizer reads."""
    for row, strings in enumerate(zip(*batch, strict=True)):
        try:
            "".join(strings).encode()
        except UnicodeEncodeError as error:
            what = f"half a character, U+{ord(error.object[error.start]):04X} without its other half"
            raise DataError(f"row {start + row + 1} holds {what}: mend or remove its text") from None


def _text(
    batch: Sequence[list[str]], n_tokens: NDArray[np.int64], encoded: Any
) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.int32]]:
    """`utf8`, `n_bytes` and `offsets` of rows just tokenised."""
    total, shape = int(n_tokens.sum()), (len(n_tokens), len(batch))
    sequences = ([-1 if column is None else column for column in row.sequence_ids] for row in encoded.encodings)
    column = np.fromiter(chain.from_iterable(sequences), dtype=np.int64, count=total)
    numbers = chain.from_iterable(chain.from_iterable(encoded["offset_mapping"]))
    offsets = np.fromiter(numbers, dtype=np.int64, count=2 * total).reshape(total, 2)
    row = np.repeat(np.arange(len(n_tokens)), n_tokens)
    # All strings of the batch as one, so that a token is trimmed by looking up where the next word begins and the last ended.
    strings = list(chain.from_iterable(zip(*batch, strict=True)))
    lengths = np.array([len(string) for string in strings], dtype=np.int64)
    origin = (np.cumsum(lengths) - lengths).reshape(shape)
    points = np.frombuffer("".join(strings).encode("utf-32-le"), dtype=np.uint32)
    word = ~_WHITE_SPACE[np.minimum(points, len(_WHITE_SPACE) - 1)]
    place = np.arange(len(points))
    begins = np.minimum.accumulate(np.append(np.where(word, place, len(points)), len(points))[::-1])[::-1]
    ended = np.maximum.accumulate(np.append(0, np.where(word, place + 1, 0)))
    own = origin[row, column]
    start, end = begins[own + offsets[:, 0]] - own, ended[own + offsets[:, 1]] - own
    real = (column >= 0) & (start < end)
    n_chars = lengths.reshape(shape)
    cut = np.array([bool(each.overflowing) for each in encoded.encodings])
    n_chars[cut] = 0
    in_cut = real & cut[row]
    np.maximum.at(n_chars, (row[in_cut], column[in_cut]), end[in_cut])
    kept = [string[:length].encode() for string, length in zip(strings, n_chars.ravel().tolist(), strict=True)]
    n_bytes = np.array([len(each) for each in kept], dtype=np.int32).reshape(shape)
    before = (np.cumsum(n_chars, axis=1) - n_chars)[row, column]
    offsets = np.where(real[:, None], np.stack([start + before, end + before], axis=1), -1)
    return np.frombuffer(b"".join(kept), dtype=np.uint8), n_bytes, offsets.astype(np.int32)


# --- two tokenizers


def align(teacher: Rows, student: Rows) -> Int32[np.ndarray, " token"]:
    """For each of the teacher's tokens: the position, in the student's row, of the token of the very same characters.

    -1 where there is none. Where several tokens of a row are of the same characters, as the bytes of an emoji, both must have
    as many. A row's first token that has no characters ([CLS], <s>) aligns with the other's. Both are of the same text, which
    either may have cut.
    """
    assert teacher.text is not None and student.text is not None and len(teacher) == len(student)
    found = np.full(len(teacher.text.offsets), -1, dtype=np.int32)
    first = [rows.offsets[:-1] for rows in (teacher, student)]
    found[first[0][(teacher.text.offsets[first[0], 0] < 0) & (student.text.offsets[first[1], 0] < 0)]] = 0
    n_chars = [rows.text.n_chars for rows in (teacher, student) if rows.text is not None]
    longest = 1 + max(int(counts.sum(axis=1).max(initial=0)) for counts in n_chars)
    step = max(1, min(_ALIGN_BATCH, _MOST_KEYS // (2 * longest**2)))
    for start in range(0, len(teacher), step):
        stop = min(start + step, len(teacher))
        (token, keys, at, count), (other, other_keys, other_at, other_count) = (
            _spans(rows, counts, start, stop, longest) for rows, counts in zip((teacher, student), n_chars, strict=True)
        )
        _, here, there = np.intersect1d(keys, other_keys, assume_unique=True, return_indices=True)
        same = count[here] == other_count[there]
        here, there = here[same], there[same]
        _, nth = _gather(at[here], count[here])
        _, other_nth = _gather(other_at[there], count[here])
        matched = other[other_nth]
        row = np.searchsorted(student.offsets, matched, side="right") - 1
        found[token[nth]] = matched - student.offsets[row]
    return found


def _spans(rows: Rows, n_chars: NDArray[np.int64], start: int, stop: int, longest: int) -> tuple[NDArray[np.int64], ...]:
    """The tokens of some rows that have characters, sorted by these; one number for each run of the same characters, where
    the run begins, and how many tokens it has."""
    assert rows.text is not None
    token = np.arange(rows.offsets[start], rows.offsets[stop])
    row = np.repeat(np.arange(stop - start), np.diff(rows.offsets[start : stop + 1]))
    real = rows.text.offsets[token, 0] >= 0
    token, row = token[real], row[real]
    first, last = rows.text.offsets[token].astype(np.int64).T
    # Each side may have cut the first column elsewhere, so that characters are counted from where their own column begins.
    begin = n_chars[start:stop, 0][row]
    second = (first >= begin) & (n_chars.shape[1] == 2)
    first, last = first - begin * second, last - begin * second
    key = ((row * 2 + second) * longest + first) * longest + last
    order = np.argsort(key, kind="stable")
    keys, at, count = np.unique(key[order], return_index=True, return_counts=True)
    return token[order], keys, at, count
