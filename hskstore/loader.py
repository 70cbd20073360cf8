"""The one bridge from NumPy rows to torch batches: rows in memory, their order, and the batches made of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch

from hskstore.batch import Batch, HiddenTargets
from hskstore.data import Examples
from hskstore.errors import StoreError
from hskstore.rows import Rows, Text, align, tokenise
from hskstore.store import Store
from hskstore.store.values import unpack_mask, unpack_values
from hskstore.watch import Watch, unwatched

WINDOW_BATCHES = 64
"""Batches whose rows are sorted by length together: enough to pad little, few enough to stay a shuffle."""

ROWS_AT_ONCE = 65536
"""While positions are mapped, so that what is computed on the way stays small."""

BYTES_OF_TEXT = 4
"""Of memory for each byte of kept text, while it is tokenised anew: as bytes, as strings, and copies on the way."""


@dataclass(frozen=True)
class HiddenRows:
    """Stored hidden states of N rows, still encoded: `values` [N, D, L, K], `mask` bits, `token` [N, D, L], `n_kept` [N, D].

    `layers` are the indexes into D that batches shall carry, lowest first. A token of -1 is one that the student's tokenizer
    does not make: it counts as not kept.
    """

    values: np.ndarray
    mask: np.ndarray
    scale: np.ndarray | None
    token: np.ndarray
    n_kept: np.ndarray
    layers: tuple[int, ...]
    encoding: str
    width: int
    hidden_size: int

    @property
    def aligned(self) -> float:
        """The share of the kept tokens of `layers` that the student has too: 1 with the teacher's tokenizer."""
        kept = self.n_kept[:, self.layers].sum(dtype=np.int64)
        slots = np.arange(self.token.shape[2])
        found = sum(
            np.count_nonzero((self.token[:, layer] >= 0) & (slots < self.n_kept[:, layer, None])) for layer in self.layers
        )
        return found / max(1, int(kept))

    def targets(self, rows: np.ndarray) -> HiddenTargets:
        """The targets of some rows, decoded and cut to their longest."""
        layers = list(self.layers)
        n_kept = self.n_kept[rows][:, layers]
        length = int(n_kept.max())
        pick = (rows[:, None], np.array(layers)[None, :], slice(0, length))
        kept = (np.arange(length) < n_kept[..., None]) & (self.token[pick] >= 0)
        scale = None if self.scale is None else self.scale[pick][kept]
        values = unpack_values(self.values[pick][kept], scale, self.encoding, self.width)
        width_kept = np.zeros((*kept.shape, self.hidden_size), dtype=bool)
        width_kept[kept] = unpack_mask(self.mask[pick][kept], self.hidden_size)
        teacher = np.zeros(width_kept.shape, dtype=np.float32)
        teacher[width_kept] = values.ravel()
        position = np.where(kept, self.token[pick], 0).astype(np.int64)
        return HiddenTargets(*(torch.from_numpy(array).transpose(0, 1) for array in (position, kept, teacher, width_kept)))


@dataclass(frozen=True)
class TrainingRows:
    """N rows in memory, padded to the longest; what the source does not know is None."""

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    n_tokens: np.ndarray
    label: np.ndarray | None
    logits: np.ndarray | None
    hidden: HiddenRows | None

    def __len__(self) -> int:
        return len(self.n_tokens)

    def batch(self, rows: np.ndarray, *, hidden: bool) -> Batch:
        """Some rows as a batch, padded to their own longest; `hidden` asks for the hidden states' targets too."""
        lengths = self.n_tokens[rows]
        longest = int(lengths.max())
        return Batch(
            input_ids=torch.from_numpy(self.input_ids[rows, :longest].astype(np.int64)),
            token_type_ids=torch.from_numpy(self.token_type_ids[rows, :longest].astype(np.int64)),
            attention_mask=torch.from_numpy(np.arange(longest) < lengths[:, None]),
            label=None if self.label is None else torch.from_numpy(self.label[rows]),
            teacher_logits=None if self.logits is None else torch.from_numpy(self.logits[rows]),
            hidden=self.hidden.targets(rows) if hidden and self.hidden is not None else None,
        )

    def in_length_order(self, batch_size: int) -> Iterator[np.ndarray]:
        """Every row once, in batches of similar length: for evaluation."""
        order = np.argsort(self.n_tokens, kind="stable")
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]


def rows_from_store(
    store: Store,
    split: str,
    *,
    layers: Sequence[int] = (),
    tokenizer: Any = None,
    max_length: int | None = None,
    watch: Watch = unwatched,
) -> TrainingRows:
    """A split of a store in memory; `layers` are indexes into the stored hidden layers (none: leave them on disk).

    With `tokenizer`, a student's that is not the teacher's, the kept text is tokenised anew, cut to `max_length` (or where the
    teacher's rows were), and a hidden state stays where the student has a token of the very same characters.

    Raises StoreError where a shard is damaged, where the rows do not fit into memory, or where a tokenizer finds no text.
    """
    if tokenizer is not None and not store.has(f"{split}/text"):
        raise StoreError(
            f"{store.root} keeps no text, so only a student with the teacher's tokenizer can read it: extract with"
            " --keep-offsets; then its logits teach a student of any tokenizer, and its hidden states where tokens align"
        )
    names = ["input_ids", "token_type_ids", "n_tokens", "logits", "label"]
    if layers:
        names += [f"hidden/{name}" for name in ("values", "mask", "scale", "token", "n_kept")]
    paths = {name: f"{split}/{name}" for name in names if store.has(f"{split}/{name}")}
    specs = {name: store.plan.arrays[path] for name, path in paths.items()}
    _check_memory(store, sum(spec.shard_bytes * spec.shape[0] // spec.shard for spec in specs.values()))
    arrays = {name: np.empty(spec.shape, spec.dtype) for name, spec in specs.items()}
    for unit in range(store.plan.splits[split].units):
        for name, path in paths.items():
            at = specs[name].rows(unit)
            arrays[name][at.start : at.stop] = store.read(path, unit)
        watch(f"read {split}", at.stop, store.plan.splits[split].rows)
    if tokenizer is not None:
        length = max_length or min(store.plan.run.max_length, tokenizer.model_max_length)
        arrays |= _tokenised_anew(store, split, arrays, tokenizer, length, watch)
    hidden = None
    if layers:
        hidden = HiddenRows(
            values=arrays["hidden/values"],
            mask=arrays["hidden/mask"],
            scale=arrays.get("hidden/scale"),
            token=arrays["hidden/token"],
            n_kept=arrays["hidden/n_kept"],
            layers=tuple(layers),
            encoding=store.plan.strategy.values,
            width=store.plan.width,
            hidden_size=store.plan.hidden_size,
        )
    return TrainingRows(
        arrays["input_ids"], arrays["token_type_ids"], arrays["n_tokens"], arrays.get("label"), arrays["logits"], hidden
    )


def _tokenised_anew(
    store: Store, split: str, arrays: dict[str, np.ndarray], tokenizer: Any, max_length: int, watch: Watch
) -> dict[str, np.ndarray]:
    """The inputs as another tokenizer makes them of the kept text, and `hidden/token` as positions in these."""
    hidden = "hidden/token" in arrays
    teacher, examples = _rows_with_text(store, split, arrays)
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
            found = position[teacher.offsets[:-1][rows, None, None] + np.maximum(own, 0)]
            token[rows] = np.where(own >= 0, found, -1)
    return anew


def _rows_with_text(store: Store, split: str, arrays: dict[str, np.ndarray]) -> tuple[Rows, Examples]:
    """The rows as they were tokenised for the teacher, and their text. Raises StoreError where what is kept of it cannot be."""
    n_tokens, longest = arrays["n_tokens"], arrays["input_ids"].shape[1]
    if (n_tokens < 1).any() or (n_tokens > longest).any():
        raise _wrong(store, "the numbers of tokens", split)
    real = np.arange(longest) < n_tokens[:, None]
    n_bytes = store.read_all(f"{split}/n_bytes")
    total = n_bytes.sum(axis=1, dtype=np.int64)
    if (n_bytes < 0).any() or (total > store.plan.arrays[f"{split}/text"].shape[1]).any():
        raise _wrong(store, "the numbers of bytes", split)
    _check_memory(store, BYTES_OF_TEXT * int(total.sum()))
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for unit in range(store.plan.splits[split].units):
        utf8, offsets = (store.read(f"{split}/{name}", unit) for name in ("text", "offsets"))
        at = store.plan.arrays[f"{split}/text"].rows(unit)
        rows = slice(at.start, at.stop)
        parts.append((utf8[np.arange(utf8.shape[1]) < total[rows, None]], n_bytes[rows], offsets[real[rows]]))
    text = Text.joined(parts)
    try:
        examples = Examples(text.columns(), None)
    except UnicodeDecodeError:
        raise _wrong(store, "the text", split) from None
    start, end = text.offsets.T
    inside = (start >= 0) & (start < end) & (end <= np.repeat(text.n_chars.sum(axis=1), n_tokens))
    if not (inside | ((start == -1) & (end == -1))).all():
        raise _wrong(store, "the offsets", split)
    bounds = np.concatenate([[0], np.cumsum(n_tokens, dtype=np.int64)])
    ids, types = arrays["input_ids"][real], arrays["token_type_ids"][real]
    return Rows(ids, types, bounds, arrays.get("label"), np.arange(len(n_tokens)), text), examples


def _wrong(store: Store, what: str, split: str) -> StoreError:
    return StoreError(f"{store.root}: {what} of {split} cannot be right: the store is damaged")


def rows_from_data(rows: Rows, pad_token_id: int | None) -> TrainingRows:
    """Tokenised rows without a teacher's knowledge."""
    input_ids, token_type_ids = rows.padded(pad_token_id or 0)  # one without padding has none that counts
    return TrainingRows(input_ids, token_type_ids, rows.n_tokens, rows.label, None, None)


def epoch_batches(n_tokens: np.ndarray, *, batch_size: int, key: str, seed: int, epoch: int) -> list[np.ndarray]:
    """Every row of an epoch once, as batches of similar length in random order: a pure function of its arguments.

    `key` is the store's digest in hexadecimal: other data, another order.
    """
    rng = np.random.default_rng([int(key[:16], 16), seed, epoch])
    order = rng.permutation(len(n_tokens))
    window = WINDOW_BATCHES * batch_size
    batches: list[np.ndarray] = []
    for start in range(0, len(order), window):
        inside = order[start : start + window]
        inside = inside[np.argsort(n_tokens[inside], kind="stable")]
        batches += [inside[at : at + batch_size] for at in range(0, len(inside), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def _check_memory(store: Store, needed: int) -> None:
    free = psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise StoreError(
            f"{store.root}: its rows take {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free:"
            " extract a smaller configuration, such as --keep 1,9,0.1"
        )
