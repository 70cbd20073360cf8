"""Rows in memory, of a store or of a data set: still encoded, and in NumPy until a batch of them is asked for in torch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Integer, Shaped
from torch import nn

from hskstore.features import FeatureRows, Want, check_kept, check_spans
from hskstore.memory import check_memory
from hskstore.methods.batch import Batch
from hskstore.models.run import Inputs, check_tokens, usual_length
from hskstore.models.token_types import give_types
from hskstore.stage_two.retokenise import placed_tokens, refuse_without_text, retokenise
from hskstore.store import Store
from hskstore.store.features import Spans, States
from hskstore.store.hidden import Hidden
from hskstore.text.rows import Rows
from hskstore.text.tasks import Task
from hskstore.text.tokenizers import Tokenizer, tokenizer_sha256
from hskstore.watch import Watch, unwatched

INPUTS = ("input_ids", "token_type_ids", "n_tokens", "logits", "label")
Places = Mapping[str, tuple[int, ...]]
"""Which stored layers are read of each feature, by its name."""

NOTHING: Places = MappingProxyType({})


@dataclass(frozen=True)
class TrainingRows:
    """N rows in memory, padded to the longest; a label or logits that the source does not know are None.

    `features` are what is known of a teacher besides, by name.
    """

    input_ids: Int[np.ndarray, "row token"]
    token_type_ids: Integer[np.ndarray, "row token"]
    n_tokens: Int[np.ndarray, " row"]
    label: Shaped[np.ndarray, " row"] | None
    logits: Float[np.ndarray, "row class"] | None
    features: Mapping[str, FeatureRows] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.n_tokens)

    def batch(self, rows: Int[np.ndarray, " batch"], reads: Sequence[Want[Any]] = ()) -> Batch:
        """Some rows as a batch, padded to their own longest, with the knowledge that is asked for."""
        lengths = self.n_tokens[rows]
        longest = int(lengths.max())
        return Batch(
            input_ids=torch.from_numpy(self.input_ids[rows, :longest].astype(np.int64)),
            token_type_ids=torch.from_numpy(self.token_type_ids[rows, :longest].astype(np.int64)),
            attention_mask=torch.from_numpy(np.arange(longest) < lengths[:, None]),
            label=None if self.label is None else torch.from_numpy(self.label[rows]),
            teacher_logits=None if self.logits is None else torch.from_numpy(self.logits[rows]),
            knowledge={want: self._targets(want, rows) for want in reads},
        )

    def _targets(self, want: Want[Any], rows: np.ndarray) -> Any:
        own = self.features[want.kind.name]
        return want.kind.targets(own, rows, want.places(own.feature), self.n_tokens[rows])

    def at_most(self, rows: int) -> "TrainingRows":
        """So many of the rows from all over, with what is read of the text and its labels alone."""
        chosen = np.linspace(0, len(self) - 1, min(rows, len(self))).astype(int)
        label, logits = (None if each is None else each[chosen] for each in (self.label, self.logits))
        return TrainingRows(self.input_ids[chosen], self.token_type_ids[chosen], self.n_tokens[chosen], label, logits)

    def in_length_order(self, batch_size: int) -> Iterator[Int[np.ndarray, " batch"]]:
        """Every row once, in batches of similar length: for evaluation."""
        order = np.argsort(self.n_tokens, kind="stable")
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]


def rows_from_store(
    store: Store,
    split: str,
    *,
    places: Places = NOTHING,
    units: Sequence[int] | None = None,
    tokenizer: Tokenizer | None = None,
    max_length: int | None = None,
    watch: Watch = unwatched,
) -> TrainingRows:
    """A split of a store in memory, or those `units` of it, in that order.

    Of each feature in `places` those stored layers alone are read, lowest first; of spans, which have none, all; of no other
    feature anything.
    With `tokenizer`, a student's that is not the teacher's, the kept text is tokenised anew, cut to `max_length` (or where the
    teacher's rows were), and a token's vector stays where the student has a token of the very same characters.

    Raises StoreError where a shard is damaged, where the rows do not fit into memory, or where a tokenizer finds no text.
    """
    if tokenizer is not None:
        refuse_without_text(store, split)
    if units is None:
        units = range(store.plan.splits[split].units)
    held = _held(store, split, places)
    total = sum(store.plan.splits[split].rows_of(unit) for unit in units)
    check_memory(store.root, total * bytes_per_row(store, split, places))
    arrays = {name: np.empty((total, *shape), dtype) for name, (shape, dtype) in held.items()}
    done = 0
    for unit in units:
        rows = slice(done, done + store.plan.splits[split].rows_of(unit))
        for name in held:
            arrays[name][rows] = store.read(f"{split}/{name}", unit, places.get(name.partition("/")[0]) or None)
        done = rows.stop
        watch(f"read {split}", done, total)
    if Spans.name in places:
        check_spans(arrays[f"{Spans.name}/tokens"], arrays[f"{Spans.name}/n_spans"], arrays["n_tokens"], store.root)
    if Hidden.name in places:
        check_kept(arrays[f"{Hidden.name}/n_kept"], held[f"{Hidden.name}/token"][0][1], store.root)
    aligned = None
    if tokenizer is not None:
        length = max_length or min(store.plan.pass_.max_length, tokenizer.model_max_length)
        wanted = not places.keys().isdisjoint((Hidden.name, States.name))
        anew, aligned = retokenise(store, split, units, arrays, tokenizer, length, align_tokens=wanted, watch=watch)
        if aligned is not None and Hidden.name in places:
            kept = f"{Hidden.name}/token"
            anew[kept] = placed_tokens(store, split, arrays[kept], arrays["n_tokens"], aligned)
        arrays |= anew
    features = {name: _feature_rows(store, name, chosen, arrays, aligned) for name, chosen in places.items()}
    return TrainingRows(
        arrays["input_ids"], arrays["token_type_ids"], arrays["n_tokens"], arrays.get("label"), arrays["logits"], features
    )


def _feature_rows(
    store: Store, name: str, places: tuple[int, ...], arrays: Mapping[str, np.ndarray], aligned: np.ndarray | None
) -> FeatureRows:
    own = {path.removeprefix(f"{name}/"): array for path, array in arrays.items() if path.startswith(f"{name}/")}
    words = {array: torch.from_numpy(found[list(places)]).float() for array, found in store.words(name).items()}
    return FeatureRows(store.plan.features[name], own, places, aligned if name == States.name else None, **words)


def bytes_per_row(store: Store, split: str, places: Places = NOTHING) -> int:
    """Of memory, for one row as `rows_from_store` holds it."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in _held(store, split, places).values())


def rows_from_data(rows: Rows, pad_token_id: int | None) -> TrainingRows:
    """Tokenised rows without a teacher's knowledge."""
    input_ids, token_type_ids = rows.padded(pad_token_id or 0)  # one without padding has none that counts
    return TrainingRows(input_ids, token_type_ids, rows.n_tokens, rows.label, None)


def reading_options(model: nn.Module, own: Tokenizer | None, store: Store) -> dict[str, Any]:
    """How a model reads a store's rows: as they are, or, with a tokenizer `own` that is not the store's, tokenised anew, with
    token types wherever the model has two."""
    if own is None or tokenizer_sha256(own) == store.plan.tokenizer["sha256"]:
        return {}
    give_types(model, own, len(Task.from_json(store.plan.task).text))
    return {"tokenizer": own, "max_length": usual_length(model, own, store.plan.pass_.max_length)}


def check_words(model: nn.Module, name: str, split: str, rows: TrainingRows, tokenizer: Tokenizer) -> None:
    """Raise ModelError where a row has an id or a token type that the model has no embedding of; the tokenizer made them."""
    numbered = np.arange(len(rows), dtype=np.int64)
    plain = Rows.of_padded(rows.input_ids, rows.token_type_ids, rows.n_tokens, numbered)
    check_tokens(model, name, {split: plain}, tokenizer)


def telling_rows(rows: TrainingRows) -> Inputs:
    """A batch to see what a model makes of: the longest row, and one with the largest token id."""
    return rows.batch(np.array([rows.n_tokens.argmax(), rows.input_ids.max(axis=1).argmax()])).inputs


def single_rows(rows: TrainingRows, most: int) -> list[Inputs]:
    """At most so many rows from all over the split, each as a batch of its own length."""
    chosen = np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)
    return [rows.batch(np.array([row])).inputs for row in chosen]


def _held(store: Store, split: str, places: Places) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """The arrays that are read of a split, by their names in it: shape of a row, and type."""
    plan = store.plan
    specs = {name: plan.arrays[f"{split}/{name}"] for name in INPUTS if store.has(f"{split}/{name}")}
    held = {name: (spec.shape[1:], np.dtype(spec.dtype)) for name, spec in specs.items()}
    for feature, chosen in places.items():
        for name, array in plan.features[feature].arrays(plan.splits[split].longest).items():
            shape = (len(chosen), *array.shape[1:]) if chosen else array.shape
            held[f"{feature}/{name}"] = shape, np.dtype(array.dtype)
    return held
