"""A store in codes, made without the teacher of one whose vectors are numbers: its codebooks are learnt from what is stored."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped

from hskstore.config import Keep, Strategy, Values
from hskstore.errors import OptionError, StoreError
from hskstore.features.codes import Codebooks, encode_codes
from hskstore.features.view import view
from hskstore.layers import LayerPair
from hskstore.stage_one.codebooks import MOST_ROWS, ROWS_AT_ONCE, are_enough, drawn, learn_codebooks
from hskstore.stage_one.teacher_pass import block_batches
from hskstore.store import Plan, Store
from hskstore.store.codebooks import BOOKS, CODEBOOKS, Words, codebook_arrays, coded
from hskstore.store.commit import examine, read_receipt, receipt_key
from hskstore.store.derive import Derived, derive_as
from hskstore.store.features import LISTED, Feature, LayerVectors, States
from hskstore.store.hidden import Hidden
from hskstore.store.layout import Columns
from hskstore.store.objects import Objects
from hskstore.store.plan import planned_anew
from hskstore.store.words import read_words
from hskstore.watch import Watch, unwatched


class Coded(Store):
    """A store, or a view of one, read as if its vectors were codes, while the store in codes at `out` is made. Its digest is that
    of the store of numbers.

    Codebooks are learnt when they are read; codes are in those that stand at `out`, whoever put them there.
    """

    def __init__(self, numbers: Store, features: Mapping[str, Feature], out: Objects, watch: Watch = unwatched) -> None:
        train, others = numbers.plan.splits["train"], numbers.plan.features
        arrays = {path: spec for path, spec in numbers.plan.arrays.items() if path.split("/")[1] not in others}
        for name, feature in features.items():
            for array, planned in feature.arrays(train.longest).items():
                arrays[f"train/{name}/{array}"] = planned.spec(train.rows, train.unit_rows)
        plan = replace(numbers.plan, features=dict(features), arrays=arrays | codebook_arrays(features))
        super().__init__(numbers.place, plan, numbers.manifest)
        self._numbers = numbers
        self.out = out
        self._watch = watch
        self._named: Words | None = None

    @property
    def identity(self) -> str:
        """Names what is read: the numbers, and what they are coded as."""
        return hashlib.sha256(f"{self._numbers.identity} {list(self.plan.features.values())!r}".encode()).hexdigest()

    @property
    def sealed_plan(self) -> Plan:
        """Of the store at `out`."""
        return planned_anew(self._numbers.plan, self.plan.features.values())

    @cached_property
    def learnt(self) -> Columns:
        """The arrays of the codebooks."""
        return learn_codebooks(self.plan, {name: self._sample(name) for name in coded(self.plan.features)}, self._watch)

    def read(self, path: str, unit: int, layers: Sequence[int] | None = None) -> Shaped[np.ndarray, "row ..."]:
        """As `Store.read`."""
        split, name, *array = path.split("/")
        if split == CODEBOOKS:
            return self.learnt[path]
        if array == ["values"] and name in coded(self.plan.features):
            return self._codes(name, unit, layers)
        return self._numbers.read(path, unit, self._places(name, layers))

    def _places(self, name: str, layers: Sequence[int] | None = None) -> list[int] | None:
        """Where some layers of a feature, or all that it has here, lie in the store of numbers; None of what has no layers."""
        here, there = self.plan.features.get(name), self._numbers.plan.features.get(name)
        if here is None or there is None or not here.layers:
            return None
        places = (
            range(len(here.layers)) if here.layers == there.layers else there.places([LayerPair(0, at) for at in here.layers])
        )
        return [places[layer] for layer in (range(len(here.layers)) if layers is None else layers)]

    def _vectors(self, name: str, unit: int, layers: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of a unit's rows [row, slot, layer, ..., width], and which slots have one [row, slot]. Of a feature
        that has one vector a row, there is one slot.

        Raises StoreError for vectors that are not finite, OptionError for numbers that are beyond f16.
        """
        feature = self.plan.said[name]
        stored = self._numbers.read(f"train/{name}/values", unit, self._places(name, layers))
        if isinstance(feature, LayerVectors) and "token" not in feature.axes:
            by_slot, filled = stored[:, None], np.ones((len(stored), 1), dtype=bool)
        else:
            by_slot = np.moveaxis(stored, -2, 1)
            of_slots = "train/n_tokens" if isinstance(feature, LayerVectors) else "train/hidden/n_kept"
            filled = _filled(self._numbers.read(of_slots, unit), by_slot.shape[1])
        with np.errstate(over="ignore"):
            vectors = by_slot.astype(np.float16, copy=False)  # as an extraction rounds them
        if not (finite := np.isfinite(vectors)).all() and not finite[filled].all():
            if np.isfinite(by_slot[filled]).all():
                raise OptionError(f"{self.root}: vectors of its {name} exceed 65504, the largest number of f16: codes are of f16")
            raise StoreError(f"{self.root}: vectors of its {name} are not finite: the store is damaged")
        return vectors, filled

    def _codes(self, name: str, unit: int, layers: Sequence[int] | None) -> Shaped[np.ndarray, "row ..."]:
        """The codes of a unit; zeros where there is no token."""
        if self._named is None:
            self._named = read_words(self.out, self.sealed_plan)
        words = self._named[name] if layers is None else self._named[name][list(layers)]
        vectors, filled = self._vectors(name, unit, layers)
        found = torch.from_numpy(np.ascontiguousarray(vectors[filled])).float()
        codes = np.zeros((*vectors.shape[:-1], words.shape[-3]), dtype=np.uint8)
        codes[filled] = encode_codes(found, Codebooks.of(words, found.device)).numpy()
        feature = self.plan.said[name]
        return codes[:, 0] if isinstance(feature, LayerVectors) and "token" not in feature.axes else np.moveaxis(codes, 1, -2)

    def _sample(self, name: str) -> Shaped[np.ndarray, "vector ..."]:
        """Vectors of some of the first rows, in the order in which an extraction runs them."""
        plan = self._numbers.plan
        train, found = plan.splits["train"], list[np.ndarray]()
        n_tokens = np.concatenate([self._numbers.read("train/n_tokens", unit) for unit in _units(train.unit_rows, train.rows)])
        held: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for _, batches in block_batches(n_tokens[: min(train.rows, MOST_ROWS)], ROWS_AT_ONCE, plan.pass_.batch_tokens):
            if are_enough(found):
                break
            units = np.unique(np.concatenate(batches) // train.unit_rows).tolist()
            held = {unit: held[unit] if unit in held else self._vectors(name, unit) for unit in units}
            vectors, filled = (np.concatenate(parts) for parts in zip(*held.values(), strict=True))
            for batch in batches:
                rows = batch - units[0] * train.unit_rows
                found.append(vectors[rows][filled[rows]])
        return drawn(found, plan.pass_.seed)


def derive_coded(made: Coded, *, watch: Watch = unwatched) -> Derived:
    """Seal the store in codes; stopped, it goes on. Its digest is not that of an extraction with the same options, which codes
    what the teacher says and not what is stored of it, and learns from other batches.

    Raises OptionError for numbers that are beyond f16, PlanError where another plan has units there, StoreError.
    """
    plan, threads = made.sealed_plan, torch.get_num_threads()
    if read_receipt(made.out, receipt_key(*BOOKS)) is None:
        examine(made.out, plan)
        _ = made.learnt  # on all cores
    torch.set_num_threads(1)  # of each unit: several are coded side by side
    try:
        return derive_as(made, plan, made.out.root, watch=watch)
    finally:
        torch.set_num_threads(threads)


def in_codes(
    numbers: Store,
    values: Values,
    out: str | Path,
    *,
    keep: Keep | None,
    layers: Mapping[str, Sequence[int]],
    watch: Watch = unwatched,
) -> Coded:
    """A store whose vectors are whole and in f16 or f32, as one in codes, `values` such as "rq8", to be made at `out`: its
    `hidden`, which is of the configuration `keep`, and teacher `layers` of other features by their names. Nothing is read yet.

    Raises OptionError where that cannot be.
    """
    names = [*([] if keep is None else [Hidden.name]), *(name for name in LISTED if name in layers)]
    features = {name: _coded(numbers, name, keep, layers.get(name, ()), values) for name in names}
    if not coded(features):
        raise OptionError(f"--values {values}: no vectors of {numbers.root} are asked for that could be coded")
    return Coded(numbers, features, Objects(out), watch)


def coded_view(rich: Store, keep: Keep, strategy: Strategy, out: str | Path, *, watch: Watch = unwatched) -> Coded:
    """One configuration of a rich store, in the codes that the strategy names. Raises OptionError."""
    states = rich.plan.said.get(States.name)
    if isinstance(states, States):
        _check_exact(rich, states)
    numbers = view(rich, keep, replace(strategy, values="f16"))
    return in_codes(numbers, strategy.values, out, keep=keep, layers={}, watch=watch)


def _coded(store: Store, name: str, keep: Keep | None, layers: Sequence[int], values: Values) -> Feature:
    """Raises OptionError where the feature is not there, or not whole."""
    feature = store.plan.features.get(name)
    if feature is None or set(layers) - set(feature.layers):
        of = f" of teacher layers {', '.join(map(str, layers))}" if layers else ""
        raise OptionError(f"{store.root} holds no {name}{of}: they cannot be coded")
    if isinstance(feature, Hidden):
        if feature.width < feature.hidden_size:
            raise OptionError(
                f"--keep {feature.keep} with --values {values}: codes are of whole vectors, of which no coordinates are left out;"
                " keep the width all, or choose --values f16, f32, q8 or q4"
            )
        _check_exact(store, feature)
        if keep != feature.keep:
            raise OptionError(f"--keep {keep}: {store.root} keeps {feature.keep}; cut it first (hsk derive), then code it")
        return replace(feature, strategy=replace(feature.strategy, values=values))
    fewer: Any = replace(feature, layers=tuple(sorted(set(layers)))) if feature.layers else feature  # type: ignore[type-var]
    if not isinstance(fewer, LayerVectors):
        return fewer  # type: ignore[no-any-return]
    _check_exact(store, fewer)
    return replace(fewer, values=values)


def _check_exact(store: Store, feature: Hidden | LayerVectors) -> None:
    """Raise OptionError where vectors were rounded to integers, or are codes: no replay could tell their codes from damage."""
    if not feature.encoding.exact:
        raise OptionError(
            f"{store.root} keeps its {feature.name} as {feature.values}, of which no codes are made: what is rounded twice is"
            " not what the teacher says; extract with --values f16 or f32, and code that"
        )


def _units(unit_rows: int, rows: int) -> range:
    """Those that have the first MOST_ROWS rows."""
    return range(-(-min(rows, MOST_ROWS) // unit_rows))


def _filled(counts: Int[np.ndarray, "row ..."], slots: int) -> Bool[np.ndarray, "row slot"]:
    """The slots that have a token; of every layer of `hidden` as many."""
    return np.arange(slots) < counts.reshape(len(counts), -1)[:, :1]
