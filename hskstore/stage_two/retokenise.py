"""Stored rows in the words of a student whose tokenizer is not the teacher's: read from the text that the store keeps."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from hskstore.errors import StoreError
from hskstore.memory import check_memory
from hskstore.store import Store
from hskstore.text.align import align
from hskstore.text.dataset import Examples
from hskstore.text.rows import Rows, Text
from hskstore.text.tokenise import tokenise
from hskstore.text.tokenizers import Tokenizer
from hskstore.watch import Watch, unwatched

BYTES_OF_TEXT = 4
"""Of memory for each byte of kept text, while it is tokenised anew: as bytes, as strings, and copies on the way."""

ROWS_AT_ONCE = 65536
"""While positions are mapped, so that what is computed on the way stays small."""


def retokenise(
    store: Store,
    split: str,
    units: Sequence[int],
    arrays: dict[str, Shaped[np.ndarray, "row ..."]],
    tokenizer: Tokenizer,
    max_length: int,
    watch: Watch = unwatched,
) -> dict[str, Shaped[np.ndarray, "row ..."]]:
    """The inputs of some units as another tokenizer makes them of the kept text, and `hidden/token` as positions in these.

    Raises StoreError where what is kept of the text cannot be, or does not fit into memory.
    """
    hidden = "hidden/token" in arrays
    teacher, examples = _rows_with_text(store, split, units, arrays)
    student = tokenise(examples, tokenizer, max_length, offsets=hidden, split=split, watch=watch)
    input_ids, token_type_ids = student.padded(tokenizer.pad_token_id or 0)  # one without padding has none that counts
    anew: dict[str, np.ndarray] = {"input_ids": input_ids, "token_type_ids": token_type_ids, "n_tokens": student.n_tokens}
    if hidden:
        position = align(teacher, student)
        token = anew["hidden/token"] = np.full(arrays["hidden/token"].shape, -1, dtype=np.int32)
        for start in range(0, len(token), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            own = arrays["hidden/token"][rows]
            if (own < -1).any() or (own >= teacher.n_tokens[rows, None, None]).any():
                raise _wrong(store, "the positions of the kept tokens", split)
            found = position[teacher.bounds[:-1][rows, None, None] + np.maximum(own, 0)]
            token[rows] = np.where(own >= 0, found, -1)
    return anew


def _rows_with_text(store: Store, split: str, units: Sequence[int], arrays: dict[str, np.ndarray]) -> tuple[Rows, Examples]:
    """The rows as they were tokenised for the teacher, and their text. Raises StoreError where what is kept of it cannot be."""
    n_tokens, longest = arrays["n_tokens"], arrays["input_ids"].shape[1]
    if (n_tokens < 1).any() or (n_tokens > longest).any():
        raise _wrong(store, "the numbers of tokens", split)
    real = np.arange(longest) < n_tokens[:, None]
    n_bytes = np.concatenate([store.read(f"{split}/n_bytes", unit) for unit in units])
    total = n_bytes.sum(axis=1, dtype=np.int64)
    if (n_bytes < 0).any() or (total > store.plan.arrays[f"{split}/text"].shape[1]).any():
        raise _wrong(store, "the numbers of bytes", split)
    check_memory(store.root, BYTES_OF_TEXT * int(total.sum()))
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    start = 0
    for unit in units:
        utf8, offsets = (store.read(f"{split}/{name}", unit) for name in ("text", "offsets"))
        rows = slice(start, start + len(utf8))
        start = rows.stop
        parts.append((utf8[np.arange(utf8.shape[1]) < total[rows, None]], n_bytes[rows], offsets[real[rows]]))
    text = Text.joined(parts)
    try:
        examples = Examples(text.columns(), None)
    except UnicodeDecodeError:
        raise _wrong(store, "the text", split) from None
    first, end = text.offsets.T
    inside = (first >= 0) & (first < end) & (end <= np.repeat(text.n_chars.sum(axis=1), n_tokens))
    if not (inside | ((first == -1) & (end == -1))).all():
        raise _wrong(store, "the offsets", split)
    bounds = np.concatenate([[0], np.cumsum(n_tokens, dtype=np.int64)])
    ids, types = arrays["input_ids"][real], arrays["token_type_ids"][real]
    return Rows(ids, types, bounds, arrays.get("label"), np.arange(len(n_tokens)), text), examples


def _wrong(store: Store, what: str, split: str) -> StoreError:
    return StoreError(f"{store.root}: {what} of {split} cannot be right: the store is damaged")
