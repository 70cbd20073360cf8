"""Rows in memory, of a store or of a data set: still encoded, and in NumPy until a batch of them is asked for in torch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Integer, Shaped, UInt8
from torch import nn

from hskstore.errors import StoreError
from hskstore.memory import check_memory
from hskstore.methods.batch import Batch, HiddenTargets
from hskstore.models.run import Inputs, usual_length
from hskstore.stage_two.retokenise import retokenise
from hskstore.store import Store
from hskstore.store.values import unpack_mask, unpack_values
from hskstore.text.rows import Rows
from hskstore.text.tokenizers import Tokenizer, tokenizer_sha256
from hskstore.watch import Watch, unwatched

INPUTS = ("input_ids", "token_type_ids", "n_tokens", "logits", "label")
HIDDEN = ("hidden/values", "hidden/mask", "hidden/scale", "hidden/token", "hidden/n_kept")


@dataclass(frozen=True)
class HiddenRows:
    """Stored hidden states of N rows, still encoded.

    A token of -1 is one that the student's tokenizer does not make: it counts as not kept.
    """

    values: Shaped[np.ndarray, "row layer slot stored"]
    mask: UInt8[np.ndarray, "row layer slot octet"]
    scale: Float[np.ndarray, "row layer slot"] | None
    token: Int[np.ndarray, "row layer slot"]
    n_kept: Int[np.ndarray, "row layer"]
    encoding: str
    width: int
    hidden_size: int

    @property
    def aligned(self) -> float:
        """The share of the kept tokens that the student has too: 1 with the teacher's tokenizer."""
        slots = np.arange(self.token.shape[2])
        found = np.count_nonzero((self.token >= 0) & (slots < self.n_kept[..., None]))
        return found / max(1, int(self.n_kept.sum(dtype=np.int64)))

    def targets(self, rows: Int[np.ndarray, " batch"]) -> HiddenTargets:
        """The targets of some rows, cut to the most tokens that one of them keeps. Raises StoreError for masks that cannot be."""
        n_kept = self.n_kept[rows]
        length = int(n_kept.max())
        token = self.token[rows, :, :length]
        kept = (np.arange(length) < n_kept[..., None]) & (token >= 0)
        whole = bool(kept.all())  # as a rule; then nothing need be blanked
        mask = self.mask[rows, :, :length]
        coordinate = None
        if self.width < self.hidden_size:
            shape = (*token.shape, self.width)
            coordinate = self._coordinates(mask).reshape(shape) if whole else np.zeros(shape, dtype=np.int64)
            if not whole:
                coordinate[kept] = self._coordinates(mask[kept])
        values = self.values[rows, :, :length]
        if self.encoding not in ("f16", "f32"):
            assert self.scale is not None
            values = unpack_values(values, self.scale[rows, :, :length], self.encoding, self.width)
        return HiddenTargets(
            position=_by_layer((token if whole else np.where(kept, token, 0)).astype(np.int64)),
            token_kept=_by_layer(kept),
            values=_by_layer(values if whole else np.where(kept[..., None], values, 0)),
            coordinate=None if coordinate is None else _by_layer(coordinate),
            width=self.hidden_size,
        )

    def _coordinates(self, mask: np.ndarray) -> np.ndarray:
        """The kept coordinates [vector, K], from masks' bits [..., octets]."""
        where = np.flatnonzero(unpack_mask(mask, self.hidden_size))
        vectors = math.prod(mask.shape[:-1])
        if len(where) != vectors * self.width:
            raise StoreError(f"a mask does not keep {self.width} units: the store is damaged")
        return where.reshape(vectors, self.width) - self.hidden_size * np.arange(vectors)[:, None]


def _by_layer(array: np.ndarray) -> torch.Tensor:
    """[batch, layer, ...] -> a tensor of [layer, batch, ...]."""
    return torch.from_numpy(np.ascontiguousarray(array.swapaxes(0, 1)))


@dataclass(frozen=True)
class TrainingRows:
    """N rows in memory, padded to the longest; what the source does not know is None."""

    input_ids: Int[np.ndarray, "row token"]
    token_type_ids: Integer[np.ndarray, "row token"]
    n_tokens: Int[np.ndarray, " row"]
    label: Shaped[np.ndarray, " row"] | None
    logits: Float[np.ndarray, "row class"] | None
    hidden: HiddenRows | None

    def __len__(self) -> int:
        return len(self.n_tokens)

    def batch(self, rows: Int[np.ndarray, " batch"], *, hidden: bool) -> Batch:
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

    def in_length_order(self, batch_size: int) -> Iterator[Int[np.ndarray, " batch"]]:
        """Every row once, in batches of similar length: for evaluation."""
        order = np.argsort(self.n_tokens, kind="stable")
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]


def rows_from_store(
    store: Store,
    split: str,
    *,
    layers: Sequence[int] = (),
    units: Sequence[int] | None = None,
    tokenizer: Tokenizer | None = None,
    max_length: int | None = None,
    watch: Watch = unwatched,
) -> TrainingRows:
    """A split of a store in memory, or those `units` of it, in that order.

    `layers` are indexes into the stored hidden layers, the only ones that are read, lowest first (none: no hidden states).
    With `tokenizer`, a student's that is not the teacher's, the kept text is tokenised anew, cut to `max_length` (or where the
    teacher's rows were), and a hidden state stays where the student has a token of the very same characters.

    Raises StoreError where a shard is damaged, where the rows do not fit into memory, or where a tokenizer finds no text.
    """
    if tokenizer is not None and not store.has(f"{split}/text"):
        raise StoreError(
            f"{store.root} keeps no text, so only a student with the teacher's tokenizer can read it: extract with"
            " --keep-offsets; then its logits teach a student of any tokenizer, and its hidden states where tokens align"
        )
    if units is None:
        units = range(store.plan.splits[split].units)
    held = _held(store, split, layers)
    total = sum(store.plan.splits[split].rows_of(unit) for unit in units)
    check_memory(store.root, total * bytes_per_row(store, split, layers))
    arrays = {name: np.empty((total, *shape), dtype) for name, (shape, dtype) in held.items()}
    done = 0
    for unit in units:
        rows = slice(done, done + store.plan.splits[split].rows_of(unit))
        for name in held:
            arrays[name][rows] = _read(store, split, name, unit, layers)
        done = rows.stop
        watch(f"read {split}", done, total)
    if tokenizer is not None:
        length = max_length or min(store.plan.pass_.max_length, tokenizer.model_max_length)
        arrays |= retokenise(store, split, units, arrays, tokenizer, length, watch)
    hidden = None
    if layers:
        hidden = HiddenRows(
            values=arrays["hidden/values"],
            mask=arrays["hidden/mask"],
            scale=arrays.get("hidden/scale"),
            token=arrays["hidden/token"],
            n_kept=arrays["hidden/n_kept"],
            encoding=store.plan.strategy.values,
            width=store.plan.width,
            hidden_size=store.plan.hidden_size,
        )
    return TrainingRows(
        arrays["input_ids"], arrays["token_type_ids"], arrays["n_tokens"], arrays.get("label"), arrays["logits"], hidden
    )


def bytes_per_row(store: Store, split: str, layers: Sequence[int] = ()) -> int:
    """Of memory, for one row as `rows_from_store` holds it."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in _held(store, split, layers).values())


def rows_from_data(rows: Rows, pad_token_id: int | None) -> TrainingRows:
    """Tokenised rows without a teacher's knowledge."""
    input_ids, token_type_ids = rows.padded(pad_token_id or 0)  # one without padding has none that counts
    return TrainingRows(input_ids, token_type_ids, rows.n_tokens, rows.label, None, None)


def reading_options(model: nn.Module, own: Tokenizer | None, store: Store) -> dict[str, Any]:
    """How a model reads a store's rows: as they are, or, with a tokenizer `own` that is not the store's, tokenised anew."""
    if own is None or tokenizer_sha256(own) == store.plan.tokenizer["sha256"]:
        return {}
    return {"tokenizer": own, "max_length": usual_length(model, own, store.plan.pass_.max_length)}


def telling_rows(rows: TrainingRows) -> Inputs:
    """A batch to see what a model makes of: the longest row, and one with the largest token id."""
    return rows.batch(np.array([rows.n_tokens.argmax(), rows.input_ids.max(axis=1).argmax()]), hidden=False).inputs


def single_rows(rows: TrainingRows, most: int) -> list[Inputs]:
    """At most so many rows from all over the split, each as a batch of its own length."""
    chosen = np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)
    return [rows.batch(np.array([row]), hidden=False).inputs for row in chosen]


def _held(store: Store, split: str, layers: Sequence[int]) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """The arrays that are read of a split, by their names in it: shape of a row, and type."""
    held: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    for name in [*INPUTS, *(HIDDEN if layers else ())]:
        spec = store.plan.arrays.get(f"{split}/{name}")
        if spec is not None:
            shape = (len(layers), *spec.shape[2:]) if name in HIDDEN else spec.shape[1:]
            held[name] = shape, np.dtype(spec.dtype)
    return held


def _read(store: Store, split: str, name: str, unit: int, layers: Sequence[int]) -> np.ndarray:
    """One array of one unit; of hidden states those layers alone, which alone are fetched where they lie apart."""
    path = f"{split}/{name}"
    if name not in HIDDEN:
        return store.read(path, unit)
    if store.plan.arrays[path].layered:
        return store.read(path, unit, layers)
    return store.read(path, unit)[:, list(layers)]
