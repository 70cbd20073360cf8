"""Stored rows in the words of a student whose tokenizer is not the teacher's: read from the text that the store keeps."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int, Shaped

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


def refuse_without_text(store: Store, split: str) -> None:
    """Raise StoreError unless the store keeps its text."""
    if not store.has(f"{split}/text"):
        raise StoreError(
            f"{store.root} keeps no text, so only a student with the teacher's tokenizer can read it: extract with"
            " --keep-offsets; then its logits teach a student of any tokenizer, and its hidden states where tokens align"
        )


def retokenise(
    store: Store,
    split: str,
    units: Sequence[int],
    arrays: Mapping[str, Shaped[np.ndarray, "row ..."]],
    tokenizer: Tokenizer,
    max_length: int,
    *,
    align_tokens: bool,
    watch: Watch = unwatched,
) -> tuple[dict[str, Shaped[np.ndarray, "row ..."]], Int[np.ndarray, "row token"] | None]:
    """The inputs of some units as another tokenizer makes them of the kept text; and, if `align_tokens`, the position among the
    student's tokens of each of the teacher's: -1 where the student has no such token, -2 behind a row's last.

    Raises StoreError where what is kept of the text cannot be, or does not fit into memory.
    """
    teacher, examples = _rows_with_text(store, split, units, arrays)
    student = tokenise(examples, tokenizer, max_length, offsets=align_tokens, split=split, watch=watch)
    input_ids, token_type_ids = student.padded(tokenizer.pad_token_id or 0)  # one without padding has none that counts
    anew = {"input_ids": input_ids, "token_type_ids": token_type_ids, "n_tokens": student.n_tokens}
    if not align_tokens:
        return anew, None
    rows, longest = arrays["input_ids"].shape
    aligned = np.full((rows, longest), -2, dtype=np.int32)
    aligned[np.arange(longest) < teacher.n_tokens[:, None]] = align(teacher, student)
    return anew, aligned


def placed_tokens(
    store: Store,
    split: str,
    token: Int[np.ndarray, "row layer slot"],
    n_tokens: Int[np.ndarray, " row"],
    aligned: Int[np.ndarray, "row token"],
) -> Int[np.ndarray, "row layer slot"]:
    """Positions `token` of kept tokens in rows of `n_tokens` of the teacher's, as the student's: -1 where it has no such token.

    Raises StoreError where the positions cannot be.
    """
    placed = np.full(token.shape, -1, dtype=np.int32)
    for start in range(0, len(token), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        own = token[rows]
        if (own < -1).any() or (own >= n_tokens[rows, None, None]).any():
            raise _wrong(store, "the positions of the kept tokens", split)
        found = np.take_along_axis(aligned[rows], np.maximum(own, 0).reshape(len(own), -1), axis=1).reshape(own.shape)
        placed[rows] = np.where(own >= 0, found, -1)
    return placed


def _rows_with_text(store: Store, split: str, units: Sequence[int], arrays: Mapping[str, np.ndarray]) -> tuple[Rows, Examples]:
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
