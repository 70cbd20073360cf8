"""The token ids of `Examples`, as `Rows`: ragged arrays that are cut, padded and hashed without a tokenizer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hskstore.data import Examples
from hskstore.errors import DataError, ModelError, OptionError
from hskstore.watch import Watch, unwatched

_TOKENISE_BATCH = 4096


@dataclass(frozen=True)
class Rows:
    """One split of N rows, tokenised; ragged, so that a million rows stay small.

    `input_ids` [total] int32 and `token_type_ids` [total] uint8 hold row i at `offsets[i]:offsets[i + 1]`; `offsets` is
    [N + 1] int64; `label` [N] or None; `row_id` [N] int64 is the row's number, from 0, in the split it was made from.
    """

    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    label: NDArray[Any] | None
    row_id: NDArray[np.int64]

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
        n_tokens = np.diff(self.offsets)[positions]
        offsets = np.concatenate([[0], np.cumsum(n_tokens)]).astype(np.int64)
        token = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][positions] - offsets[:-1], n_tokens)
        return Rows(
            input_ids=self.input_ids[token],
            token_type_ids=self.token_type_ids[token],
            offsets=offsets,
            label=None if self.label is None else self.label[positions],
            row_id=self.row_id[positions],
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
        digest = hashlib.sha256()
        for field in fields(self):
            array: NDArray[Any] | None = getattr(self, field.name)
            if array is None:
                digest.update(f"{field.name} none\n".encode())
            else:
                digest.update(f"{field.name} {array.dtype.str} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def tokenise(examples: Examples, tokenizer: Any, max_length: int, *, split: str = "rows", watch: Watch = unwatched) -> Rows:
    """Token ids by a Hugging Face fast tokenizer, special tokens included, each row cut to `max_length`.

    `split` is what the watch is told. Raises OptionError for a `max_length` that the tokenizer cannot keep, ModelError
    if it pads or does not cut, and DataError for a row that has no token at all.
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
    for start in range(0, n_rows, _TOKENISE_BATCH):
        batch = [column[start : start + _TOKENISE_BATCH] for column in examples.text]
        # Explicit: a tokenizer.json may have padding and truncation of its own switched on.
        encoded = tokenizer(*batch, padding=False, truncation=True, max_length=max_length, return_attention_mask=True)
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
        watch(f"tokenise {split}", start + len(ids), n_rows)
    return Rows(
        input_ids=np.concatenate([np.zeros(0, dtype=np.int32), *input_ids]),
        token_type_ids=np.concatenate([np.zeros(0, dtype=np.uint8), *token_type_ids]),
        offsets=np.concatenate([[0], np.cumsum(n_tokens)]).astype(np.int64),
        label=examples.label,
        row_id=np.arange(n_rows, dtype=np.int64),
    )
