"""Texts to rows of token ids, by a Hugging Face fast tokenizer."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hskstore.errors import DataError, ModelError, OptionError
from hskstore.text.chunker import Chunker
from hskstore.text.dataset import Examples
from hskstore.text.rows import GrowingRows, Rows, Text, save_index
from hskstore.text.spans import find_spans
from hskstore.text.tally import TokenCounts
from hskstore.text.tokenizers import Tokenizer, encode
from hskstore.watch import Watch, unwatched

_TOKENISE_BATCH = 4096
_UNORDERED = "train-unordered"
_WHITE_SPACE = np.array([chr(point).isspace() for point in range(0x3002)])
"""By code point; the last that is white space is the ideographic space, U+3000."""


def tokenise(
    examples: Examples,
    tokenizer: Tokenizer,
    max_length: int,
    *,
    offsets: bool = False,
    split: str = "rows",
    watch: Watch = unwatched,
    folder: Path | None = None,
    counts: TokenCounts | None = None,
    chunker: Chunker | None = None,
) -> Rows:
    """Token ids by a Hugging Face fast tokenizer, special tokens included, each row cut to `max_length`.

    `offsets` keeps the text and where each token stands in it. `split` is what the watch is told. The arrays are mapped from
    files, of their names in `folder`, else without a name. `counts` are told of every row. With a `chunker` rows have spans.

    Raises OptionError for a `max_length` that the tokenizer cannot keep, ModelError if it pads or does not cut, and DataError for
    a row that has no token at all, for characters that are none, and where there is no room for the files.
    """
    _check_max_length(tokenizer, max_length, len(examples.text))
    growing = GrowingRows(
        folder,
        None if examples.label is None else examples.label.dtype,
        len(examples.text) if offsets else None,
        chunker is not None,
    )
    for start in range(0, len(examples), _TOKENISE_BATCH):
        with _no_garbage():
            rows = _tokenised(examples, start, tokenizer, max_length, offsets, counts, split, chunker)
        growing.append(rows)
        watch(f"tokenise {split}", start + len(rows), len(examples))
    return growing.done()


def stored_rows(
    splits: Mapping[str, Examples],
    tokenizer: Any,
    max_length: int,
    *,
    seed: int,
    offsets: bool = False,
    folder: Path | None = None,
    watch: Watch = unwatched,
    counts: Mapping[str, TokenCounts] = MappingProxyType({}),
    chunker: Chunker | None = None,
) -> dict[str, Rows]:
    """Every split tokenised, in stored order: train permuted once, so that a run of it is already a random sample.

    The rows are mapped from files: of `folder`, from where `open_rows` gives them to any other process, else without a name.
    `counts`, by split, are told of every row. With a `chunker` the rows of train have their spans. Raises as `tokenise` does.
    """
    rows: dict[str, Rows] = {}
    for name, examples in splits.items():
        own = folder and folder / (name if name != "train" else _UNORDERED)
        rows[name] = tokenise(
            examples,
            tokenizer,
            max_length,
            offsets=offsets,
            split=name,
            watch=watch,
            folder=own,
            counts=counts.get(name),
            chunker=chunker if name == "train" else None,
        )
    order = np.random.default_rng(seed).permutation(len(rows["train"]))
    rows["train"] = rows["train"].reordered(order, folder and folder / "train")
    if folder is not None:
        shutil.rmtree(folder / _UNORDERED)
        save_index(rows, folder)
    return rows


def _check_max_length(tokenizer: Any, max_length: int, columns: int) -> None:
    n_special = int(tokenizer.num_special_tokens_to_add(pair=columns == 2))
    if not n_special < max_length <= tokenizer.model_max_length:
        raise OptionError(
            f"--max-length {max_length}: this tokenizer takes {n_special + 1} to {tokenizer.model_max_length} tokens"
        )


def _tokenised(
    examples: Examples,
    start: int,
    tokenizer: Any,
    max_length: int,
    offsets: bool,
    counts: TokenCounts | None,
    split: str,
    chunker: Chunker | None,
) -> Rows:
    """A batch of rows, from the one at `start`."""
    batch = [list(column[start : start + _TOKENISE_BATCH]) for column in examples.text]
    stop = start + len(batch[0])
    # Explicit: a tokenizer.json may have padding and truncation of its own switched on.
    options = {"truncation": True, "max_length": max_length, "return_attention_mask": True}
    try:
        encoded = encode(tokenizer, *batch, **options, return_offsets_mapping=offsets or chunker is not None)
    except ModelError:
        _check_characters(batch, start)
        raise
    ids: list[list[int]] = encoded["input_ids"]
    types: list[list[int]] | None = encoded.get("token_type_ids")
    lengths = [len(row) for row in ids]
    if max(lengths) > max_length or any(0 in mask for mask in encoded["attention_mask"]):
        raise ModelError(f"the tokenizer pads, or does not cut to {max_length} tokens, when told otherwise: use its fast form")
    if 0 in lengths:
        row = start + lengths.index(0) + 1
        raise DataError(f"row {row} has no token, not even a special one, in {split}: remove rows without text")
    total = sum(lengths)
    input_ids = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=total)
    if counts is not None:
        full = (each for each, length in zip(encoded.encodings, lengths, strict=True) if length == max_length)
        counts.add(input_ids, lengths, sum(bool(each.overflowing) for each in full))
    text, spans = None, None
    if offsets or chunker is not None:
        text = Text.joined([_text(batch, np.array(lengths), encoded)])
    if text is not None and chunker is not None:
        numbers = ([-1 if word is None else word for word in row.word_ids] for row in encoded.encodings)
        word = np.fromiter(chain.from_iterable(numbers), dtype=np.int64, count=total)
        spans = find_spans(text, np.array(lengths, dtype=np.int32), word, chunker, tokenizer.name_or_path)
    return Rows(
        input_ids=input_ids,
        token_type_ids=(
            np.zeros(total, dtype=np.uint8)
            if types is None
            else np.fromiter(chain.from_iterable(types), dtype=np.uint8, count=total)
        ),
        bounds=np.cumsum([0, *lengths]),
        label=None if examples.label is None else examples.label[start:stop],
        row_id=np.arange(start, stop),
        text=text if offsets else None,
        spans=spans,
    )


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
