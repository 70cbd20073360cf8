"""The token ids of `Examples`, as `Rows`: ragged arrays that are cut, padded and hashed without a tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hskstore.data import Examples
from hskstore.errors import DataError, ModelError, OptionError
from hskstore.watch import Watch, unwatched

_TOKENISE_BATCH = 4096
_ALIGN_BATCH = 65536
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

    utf8: NDArray[np.uint8]
    bounds: NDArray[np.int64]
    n_bytes: NDArray[np.int32]
    offsets: NDArray[np.int32]

    @classmethod
    def joined(cls, parts: Sequence[tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.int32]]]) -> Text:
        """From `utf8`, `n_bytes` and `offsets` of some rows after the other."""
        utf8, n_bytes, offsets = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        bounds = np.concatenate([[0], np.cumsum(n_bytes.sum(axis=1, dtype=np.int64))])
        return cls(utf8, bounds, n_bytes, offsets)

    @property
    def n_chars(self) -> NDArray[np.int64]:
        """[N, columns]: a character begins at every byte that does not go on with another."""
        before = np.concatenate([[0], np.cumsum((self.utf8 & 0xC0) != 0x80)])
        ends = self.bounds[:-1, None] + np.cumsum(self.n_bytes, axis=1)
        return np.asarray(before[ends] - before[ends - self.n_bytes], dtype=np.int64)

    def columns(self) -> tuple[list[str], ...]:
        """The text columns, N strings each. Raises UnicodeDecodeError."""
        data, ends = self.utf8.tobytes(), np.cumsum(self.n_bytes.ravel(), dtype=np.int64).tolist()
        strings = [data[start:end].decode() for start, end in pairwise([0, *ends])]
        columns = self.n_bytes.shape[1]
        return tuple(strings[column::columns] for column in range(columns))

    def padded(self, n_tokens: NDArray[np.int32]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """`utf8` as [N, most bytes], the rest 0, and `offsets` as [N, S, 2], the rest -1."""
        lengths = np.diff(self.bounds)
        utf8 = np.zeros((len(lengths), int(lengths.max(initial=0))), dtype=np.uint8)
        utf8[np.arange(utf8.shape[1]) < lengths[:, None]] = self.utf8
        offsets = np.full((len(lengths), int(n_tokens.max(initial=0)), 2), -1, dtype=np.int32)
        offsets[np.arange(offsets.shape[1]) < n_tokens[:, None]] = self.offsets
        return utf8, offsets


@dataclass(frozen=True)
class Rows:
    """One split of N rows, tokenised; ragged, so that a million rows stay small.

    `input_ids` [total] int32 and `token_type_ids` [total] uint8 hold row i at `offsets[i]:offsets[i + 1]`; `offsets` is
    [N + 1] int64; `label` [N] or None; `row_id` [N] int64 is the row's number, from 0, in the split it was made from; `text`
    is None where only the tokens were asked for.
    """

    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    label: NDArray[Any] | None
    row_id: NDArray[np.int64]
    text: Text | None = None

    def __len__(self) -> int:
        return len(self.row_id)

    @property
    def n_tokens(self) -> NDArray[np.int32]:
        """[N], special tokens counted."""
        return np.diff(self.offsets).astype(np.int32)

    def take(self, index: ArrayLike) -> Rows:
        """The rows of these positions, in that order."""
        positions = np.asarray(index)
        assert positions.dtype != np.bool_, "a mask is no index: np.flatnonzero makes one"
        positions = positions.astype(np.int64)
        offsets, token = _gather(self.offsets[:-1][positions], np.diff(self.offsets)[positions])
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

    def padded(self, pad_token_id: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """`input_ids` and `token_type_ids` as [N, S], the rest `pad_token_id` and 0; S is the longest row's."""
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
        arrays: dict[str, NDArray[Any] | None] = {name: array for name, array in vars(self).items() if name != "text"}
        if self.text is not None:
            arrays |= {f"text.{name}": array for name, array in vars(self.text).items()}
        digest = hashlib.sha256()
        for name, array in arrays.items():
            if array is None:
                digest.update(f"{name} none\n".encode())
            else:
                digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


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
) -> Rows:
    """Token ids by a Hugging Face fast tokenizer, special tokens included, each row cut to `max_length`.

    `offsets` keeps the text and where each token stands in it. `split` is what the watch is told. Raises OptionError for a
    `max_length` that the tokenizer cannot keep, ModelError if it pads or does not cut, and DataError for a row that has no
    token at all, or characters that are none.
    """
    n_special = int(tokenizer.num_special_tokens_to_add(pair=len(examples.text) == 2))
    if not n_special < max_length <= tokenizer.model_max_length:
        raise OptionError(
            f"--max-length {max_length}: this tokenizer takes {n_special + 1} to {tokenizer.model_max_length} tokens"
        )
    n_rows = len(examples)
    n_tokens = np.zeros(n_rows, dtype=np.int64)
    input_ids: list[NDArray[np.int32]] = []
    token_type_ids: list[NDArray[np.uint8]] = []
    texts: list[tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.int32]]] = []
    # Explicit: a tokenizer.json may have padding and truncation of its own switched on.
    options = {"padding": False, "truncation": True, "max_length": max_length, "return_attention_mask": True}
    for start in range(0, n_rows, _TOKENISE_BATCH):
        batch = [column[start : start + _TOKENISE_BATCH] for column in examples.text]
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
            raise DataError(f"row {start + lengths.index(0) + 1} has no token, not even a special one: remove rows without text")
        n_tokens[start : start + len(ids)] = lengths
        total = sum(lengths)
        input_ids.append(np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=total))
        token_type_ids.append(
            np.zeros(total, dtype=np.uint8)
            if types is None
            else np.fromiter(chain.from_iterable(types), dtype=np.uint8, count=total)
        )
        if offsets:
            texts.append(_text(batch, np.array(lengths), encoded))
        watch(f"tokenise {split}", start + len(ids), n_rows)
    return Rows(
        input_ids=np.concatenate([np.zeros(0, dtype=np.int32), *input_ids]),
        token_type_ids=np.concatenate([np.zeros(0, dtype=np.uint8), *token_type_ids]),
        offsets=np.concatenate([[0], np.cumsum(n_tokens)]).astype(np.int64),
        label=examples.label,
        row_id=np.arange(n_rows, dtype=np.int64),
        text=Text.joined(texts) if texts else None,
    )


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


def align(teacher: Rows, student: Rows) -> NDArray[np.int32]:
    """For each of the teacher's tokens [total]: the position, in the student's row, of the token of the very same characters.

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
