"""The one bridge from NumPy rows to torch batches: rows in memory, their order, and the batches made of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from hskstore.batch import Batch, HiddenTargets
from hskstore.errors import StoreError
from hskstore.rows import Rows
from hskstore.store import Store
from hskstore.store.values import unpack_mask, unpack_values
from hskstore.watch import Watch, unwatched

WINDOW_BATCHES = 64
"""Batches whose rows are sorted by length together: enough to pad little, few enough to stay a shuffle."""


@dataclass(frozen=True)
class HiddenRows:
    """Stored hidden states of N rows, still encoded: `values` [N, D, L, K], `mask` bits, `token` [N, D, L], `n_kept` [N, D].

    `layers` are the indexes into D that batches shall carry, lowest first.
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

    def targets(self, rows: np.ndarray) -> HiddenTargets:
        """The targets of some rows, decoded and cut to their longest."""
        layers = list(self.layers)
        n_kept = self.n_kept[rows][:, layers]
        length = int(n_kept.max())
        pick = (rows[:, None], np.array(layers)[None, :], slice(0, length))
        kept = np.arange(length) < n_kept[..., None]
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


def rows_from_store(store: Store, split: str, *, layers: Sequence[int] = (), watch: Watch = unwatched) -> TrainingRows:
    """A split of a store in memory; `layers` are indexes into the stored hidden layers (none: leave them on disk).

    Raises StoreError where a shard is damaged, or where the rows do not fit into memory.
    """
    names = ["input_ids", "token_type_ids", "n_tokens", "logits", "label"]
    if layers:
        names += [f"hidden/{name}" for name in ("values", "mask", "scale", "token", "n_kept")]
    paths = {name: f"{split}/{name}" for name in names if store.has(f"{split}/{name}")}
    _check_memory(store, list(paths.values()))
    specs = {name: store.plan.arrays[path] for name, path in paths.items()}
    arrays = {name: np.empty(spec.shape, spec.dtype) for name, spec in specs.items()}
    for unit in range(store.plan.splits[split].units):
        for name, path in paths.items():
            at = specs[name].rows(unit)
            arrays[name][at.start : at.stop] = store.read(path, unit)
        watch(f"read {split}", at.stop, store.plan.splits[split].rows)
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


def rows_from_data(rows: Rows, pad_token_id: int) -> TrainingRows:
    """Tokenised rows without a teacher's knowledge."""
    input_ids, token_type_ids = rows.padded(pad_token_id)
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


def _check_memory(store: Store, paths: Sequence[str]) -> None:
    specs = [store.plan.arrays[path] for path in paths]
    needed = sum(spec.shard_bytes * spec.shape[0] // spec.shard for spec in specs)
    free = psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise StoreError(
            f"{store.root}: its rows take {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free:"
            " extract a smaller configuration, such as --keep 1,9,0.1"
        )
