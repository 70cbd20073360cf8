"""A smaller store cut from a sealed one, without the teacher: a smaller configuration of `hidden`, fewer layers of the others.

Kept layers, tokens and coordinates are nested where the strategy nests them, so the cut is bit for bit what an extraction that
was asked for it would have written, down to the digest.
"""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
from jaxtyping import Int

from hskstore.config import Keep, Strategy, Values, check_choice, resolve
from hskstore.errors import OptionError, StoreError
from hskstore.interrupts import interrupts
from hskstore.layers import LayerPair
from hskstore.store.codebooks import BOOKS, CODEBOOKS, coded
from hskstore.store.commit import MANIFEST, PLAN, TEACHER, Receipt, begin, codebooks_named, commit_unit, examine, seal
from hskstore.store.encode import encode_unit
from hskstore.store.features import LISTED, Feature, LayerVectors, OfLayers, Spans
from hskstore.store.hidden import Hidden, plan_hidden
from hskstore.store.layout import Columns
from hskstore.store.masks import is_admitted, static_mask
from hskstore.store.objects import PARALLEL, Objects
from hskstore.store.plan import Plan, planned_anew
from hskstore.store.reader import Store, open_store
from hskstore.store.shard import unit_fingerprints
from hskstore.store.vectors import ENCODINGS, Codes
from hskstore.store.verify import verify
from hskstore.store.words import put_codebooks
from hskstore.version import __version__
from hskstore.watch import Watch, unwatched

UNITS_AT_ONCE = 2
"""That are cut side by side: each is decoded whole, so that more would take more memory than a laptop can spare."""


@dataclass(frozen=True)
class Derived:
    """A store that was cut from another. `source` is the digest of the other, `bytes` what it takes itself."""

    root: str
    digest: str
    source: str
    bytes: int
    seconds: float


@dataclass(frozen=True)
class _Cut:
    """How to cut: the places of the source's layers to take, by feature; the tokens each train row [N] may still keep in
    `hidden`; whether codes are copied, which name the source's words."""

    source: Store
    plan: Plan
    places: Mapping[str, tuple[int, ...]]
    n_kept: np.ndarray | None
    copies_codes: bool


def derive(
    source: str | Path,
    out: str | Path,
    *,
    keep: Keep | None = None,
    layers: Mapping[str, Sequence[int]] = MappingProxyType({}),
    values: Values | None = None,
    watch: Watch = unwatched,
) -> Derived:
    """Cut the configuration `keep` of `hidden`, and teacher `layers` of other features by their names, out of the sealed store
    `source` and seal them at `out`; stopped, it goes on. A feature that is not asked for is left out; spans are of no layers, ().
    `values` are shorter codes than the store's, such as "rq4" of "rq8".

    Of layers that are not kept nothing is fetched. Where `out` is sealed already, what is damaged of it is cut again: of a
    folder every byte is checked, elsewhere presence and sizes. Raises OptionError where what is asked for is not nested in
    what the store keeps, saying why; StoreError as `open_store` and the commit do.
    """
    store = open_store(source)
    return _derive(_plan_cut(store, keep, layers, values), out, watch)


def derive_as(source: Store, plan: Plan, out: str | Path, *, watch: Watch = unwatched) -> Derived:
    """Seal at `out` the store of a plan all of whose arrays can be read from `source` as they are; stopped, it goes on."""
    return _derive(_Cut(source, plan, {}, None, copies_codes=False), out, watch)


def _derive(cut: _Cut, out: str | Path, watch: Watch) -> Derived:
    began, store = time.monotonic(), cut.source
    objects = Objects(out)
    if objects.get(PLAN) == cut.plan.to_bytes() and objects.get(MANIFEST) is not None:
        verify(objects.root, deep=objects.local, condemn=True)
    standing = examine(objects, cut.plan)
    digest = standing.digest
    if digest is None:
        files = {f"tokenizer/{name}": data for name, data in store.tokenizer_files().items()}
        begin(objects, cut.plan, {**files, TEACHER: store.file(TEACHER)})
        attempt = uuid.uuid4().hex
        done, rows = 0, sum(split.rows for split in cut.plan.splits.values())
        with interrupts() as held, ThreadPoolExecutor(UNITS_AT_ONCE) as writers, ThreadPoolExecutor(PARALLEL) as readers:
            missing = [unit for unit in cut.plan.units() if unit not in standing.finished]
            if cut.copies_codes or BOOKS in missing:  # whose receipt the others name
                put_codebooks(objects, cut.plan, _cut_codebooks(cut), _made(cut), no_others=cut.copies_codes)
                missing = [unit for unit in missing if unit != BOOKS]
            under_way = {unit: writers.submit(_write_unit, cut, objects, readers, *unit, attempt) for unit in missing}
            try:
                for split, unit in cut.plan.units():
                    if (split, unit) in under_way:
                        held.result_of(under_way.pop((split, unit)))
                    done += cut.plan.rows_of((split, unit))
                    watch("derive", done, rows)
            finally:
                writers.shutdown(cancel_futures=True)
        digest = seal(objects, cut.plan)
    size = sum(objects.sizes().values())
    return Derived(objects.root, digest, store.digest, size, round(time.monotonic() - began, 3))


def _write_unit(cut: _Cut, objects: Objects, readers: Executor, split: str, unit: int, attempt: str) -> None:
    pieces = list(_pieces(cut, readers, split, unit))
    columns = {path: np.concatenate([piece[path] for piece in pieces]) for path in cut.plan.arrays_of(split)}
    blobs = encode_unit(cut.plan, split, unit, columns)
    made = _made(cut) | (codebooks_named(objects, cut.plan) if split == "train" else {})
    entries = unit_fingerprints(cut.plan.arrays_of(split), unit, blobs)
    rows = cut.plan.rows_of((split, unit))
    commit_unit(objects, Receipt(split, unit, rows, attempt, entries, made), blobs)


def _made(cut: _Cut) -> dict[str, Any]:
    """What receipts say besides."""
    return {
        "derived_from": cut.source.digest,
        "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "versions": {"hskstore": __version__, "zarr": version("zarr")},
    }


def _pieces(cut: _Cut, readers: Executor, split: str, unit: int) -> Iterator[Columns]:
    """The arrays of one unit to come, source unit by source unit."""
    start = unit * cut.plan.splits[split].unit_rows
    stop = start + cut.plan.splits[split].rows_of(unit)
    size = cut.source.plan.splits[split].unit_rows
    paths = list(cut.plan.arrays_of(split))
    for other in range(start // size, (stop - 1) // size + 1):
        rows = range(max(start, other * size), min(stop, (other + 1) * size))
        inside = slice(rows.start - other * size, rows.stop - other * size)
        read = readers.map(lambda path: cut.source.read(path, other, _places(cut, path))[inside], paths)  # noqa: B023
        columns = {path: array[..., : _stages(cut.plan, path)] for path, array in zip(paths, read, strict=True)}
        if split == "train" and cut.n_kept is not None:
            hidden = {path: columns[path] for path in paths if path.startswith("train/hidden/")}
            columns.update(_cut_hidden(cut, hidden, cut.n_kept[rows.start : rows.stop]))
        yield columns


def _stages(plan: Plan, path: str) -> int | None:
    """How many bytes of a code are taken of an array; None where it has none."""
    _, name, *rest = path.split("/")
    feature = coded(plan.features).get(name)
    return feature.encoding.stored_width(feature.width) if feature is not None and rest == ["values"] else None


def _cut_codebooks(cut: _Cut) -> Columns:
    """The layers and stages that stay of the source's codebooks, and what these leave of the variance."""
    columns: dict[str, np.ndarray] = {}
    for name, feature in coded(cut.plan.features).items():
        stages = feature.encoding.stored_width(feature.width)
        layers = list(cut.places.get(name, range(len(feature.layers))))
        for array, axis in (("words", -3), ("error", -1)):
            path = f"{CODEBOOKS}/{name}/{array}"
            columns[path] = cut.source.read(path, 0)[layers].take(range(stages), axis=axis)
    return columns


def _places(cut: _Cut, path: str) -> tuple[int, ...] | None:
    """The layers to read of an array; None where it has none."""
    return cut.places.get(path.split("/")[1])


def _cut_hidden(cut: _Cut, hidden: Columns, n_kept: np.ndarray) -> Columns:
    """The hidden arrays [rows, layer, slot, ...] of fewer tokens and coordinates; `n_kept` [rows] are those to keep."""
    asked, stored = cut.plan.hidden, cut.source.plan.hidden
    assert asked is not None and stored is not None
    slots, layers = asked.length, len(asked.pairs)
    found = {path.removeprefix("train/hidden/"): array for path, array in hidden.items()}
    kept = np.broadcast_to(np.arange(slots) < n_kept[:, None, None], (len(n_kept), layers, slots))
    for name, beyond in (("values", 0), ("mask", 0), ("token", -1), ("scale", 0)):
        if name in found:
            array = found[name][:, :, :slots]
            found[name] = np.where(kept[(..., *(None for _ in array.shape[3:]))], array, np.array(beyond, array.dtype))
    found["n_kept"] = np.broadcast_to(n_kept[:, None].astype(found["n_kept"].dtype), found["n_kept"].shape)
    if asked.width < stored.width:
        values = np.zeros((*kept.shape, asked.width), dtype=found["values"].dtype)
        mask = np.zeros_like(found["mask"])
        values[kept], mask[kept] = _narrow(asked, cut.plan.pass_.seed, found["values"][kept], found["mask"][kept])
        found["values"], found["mask"] = values, mask
    return {f"train/hidden/{name}": array for name, array in found.items()}


def _narrow(asked: Hidden, seed: int, values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fewer coordinates: `values` [M, K] and `mask` bits [M, octets] of those that stay. Ties go to the lower index."""
    bits = np.unpackbits(mask, axis=-1, count=asked.hidden_size).astype(bool)
    if asked.strategy.mask == "magnitude":
        order = np.argsort(-np.abs(values), axis=-1, kind="stable")[:, : asked.width]
        stays = np.zeros(values.shape, dtype=bool)
        np.put_along_axis(stays, order, True, axis=-1)
        narrow = np.zeros_like(bits)
        narrow[bits] = stays.ravel()
    else:
        static = static_mask(asked.strategy.mask, hidden_size=asked.hidden_size, kept=asked.width, seed=seed)
        narrow = np.broadcast_to(static, bits.shape)
        stays = narrow[bits].reshape(values.shape)
    return values[stays].reshape(len(values), asked.width), np.packbits(narrow, axis=-1)


def _plan_cut(store: Store, keep: Keep | None, layers: Mapping[str, Sequence[int]], values: Values | None) -> _Cut:
    """The plan that an extraction asked for this would have made. Raises OptionError where it is not nested in the store's."""
    old = store.plan
    strange = sorted(layers.keys() - LISTED.keys())
    if strange:
        raise OptionError(f"{', '.join(strange)} is no feature whose layers can be chosen: choose from {', '.join(LISTED)}")
    hidden, n_kept = (None, None) if keep is None else _cut_of_hidden(store, keep, values)
    others = [_fewer_layers(store, name, layers[name], values) for name in LISTED if name in layers]
    features: list[Feature] = [*([] if hidden is None else [hidden]), *others]
    places = {
        each.name: old.features[each.name].places([LayerPair(0, layer) for layer in each.layers])
        for each in others
        if each.layers
    }
    if hidden is not None and old.hidden is not None:
        places["hidden"] = tuple(old.hidden.pairs.index(pair) for pair in hidden.pairs)
    plan = planned_anew(old, features)
    return _Cut(store, plan, places, n_kept, copies_codes=bool(coded(plan.features)))


def _fewer_layers(store: Store, name: str, layers: Sequence[int], values: Values | None) -> Any:
    """A stored feature of these teacher layers alone, its codes cut to `values`. Raises OptionError where the store has not all
    of that."""
    stored = store.plan.features.get(name)
    lacking = sorted(set(layers) - set(() if stored is None else stored.layers))
    if isinstance(stored, Spans) and not layers:
        return stored
    if not isinstance(stored, OfLayers) or lacking:
        of = f" of teacher layers {', '.join(map(str, lacking))}" if lacking else ""
        raise OptionError(f"{store.root} holds no {name}{of}: they cannot be cut from it")
    shorter = {"values": _fewer_values(store, stored.values, values)} if isinstance(stored, LayerVectors) else {}
    return replace(stored, layers=tuple(sorted(set(layers))), **shorter)


def _fewer_values(store: Store, stored: Values, asked: Values | None) -> Values:
    """Codes as short as is asked for. Raises OptionError where they are not the first bytes of what is stored."""
    if asked in (None, stored):
        return stored
    check_choice("--values", asked, get_args(Values))
    old, new = ENCODINGS[stored], ENCODINGS[asked]
    if not isinstance(old, Codes) or not isinstance(new, Codes) or new.stages > old.stages:
        raise OptionError(
            f"--values {asked} cannot be cut from {store.root}, whose vectors are {stored}: only codes can be, as rq4 from rq8;"
            f" extract with --values {asked}"
        )
    return asked


def _cut_of_hidden(store: Store, keep: Keep, values: Values | None) -> tuple[Hidden, np.ndarray]:
    """The configuration, and how many tokens of each train row [N] it keeps. Raises OptionError where it is not nested."""
    old = store.plan.hidden
    if old is None:
        raise OptionError(
            f"--keep {keep} cannot be cut from {store.root}, which holds none of `hidden`; of a rich store hsk derive"
            " cuts it with --student-layers"
        )
    admitted = admitted_tokens(store, old.strategy)
    hidden = plan_hidden(
        keep,
        replace(old.strategy, values=_fewer_values(store, old.values, values)),
        teacher_layers=store.plan.teacher["layers"],
        hidden_size=old.hidden_size,
        most_admitted=int(admitted.max()),
    )
    ranks = {pair.student: pair.rank for pair in old.pairs}  # where not every layer can rank, another than the strategy's does
    hidden = replace(hidden, pairs=tuple(replace(pair, rank=ranks.get(pair.student, pair.rank)) for pair in hidden.pairs))
    refusal = f"--keep {keep} cannot be cut from {store.root}, which keeps {old.keep}: "
    absent = [pair.student for pair in hidden.pairs if pair not in old.pairs]
    if absent:
        raise OptionError(f"{refusal}it has no teacher layer for the student's layers {', '.join(map(str, absent))}")
    _check_width(old, hidden, store.plan.pass_.seed, refusal)
    wanted = {count: min(resolve(keep.length, count), count, hidden.length) for count in np.unique(admitted).tolist()}
    n_kept = np.array([wanted[count] for count in admitted.tolist()])
    places = tuple(old.pairs.index(pair) for pair in hidden.pairs)
    train = store.plan.splits["train"]
    for unit in range(train.units):
        has = store.read("train/hidden/n_kept", unit, places).min(axis=1)
        start = unit * train.unit_rows
        short = np.flatnonzero(has < n_kept[start : start + len(has)])
        if len(short):
            row = start + int(short[0])
            raise OptionError(f"{refusal}row {row} would keep {n_kept[row]} tokens and has only {has[short[0]]}")
    return hidden, n_kept


def _check_width(old: Hidden, asked: Hidden, seed: int, refusal: str) -> None:
    """Raise OptionError unless the coordinates to keep are among those that are kept, exactly as they are stored."""
    if asked.width == old.width:
        return
    if asked.width > old.width:
        raise OptionError(f"{refusal}it has {old.width} coordinates of a vector, not {asked.width}")
    if isinstance(old.encoding, Codes):
        raise OptionError(f"{refusal}its vectors are codes ({old.values}), which have no coordinates: extract this width")
    if not old.encoding.exact:
        raise OptionError(
            f"{refusal}quantised values ({old.strategy.values}) were masked before they were rounded; only their depth and"
            " length can be cut: extract this width, or keep a store of f16 or f32 to cut from"
        )
    if old.strategy.mask != "magnitude" and old.width < old.hidden_size:
        sizes = {"hidden_size": old.hidden_size, "seed": seed}
        has, wants = (static_mask(old.strategy.mask, kept=width, **sizes) for width in (old.width, asked.width))
        if (wants & ~has).any():
            raise OptionError(
                f"{refusal}its {old.strategy.mask} mask of {old.width} coordinates does not contain that of {asked.width}:"
                " extract this width, or cut it from a store of width all"
            )


def admitted_tokens(store: Store, strategy: Strategy) -> Int[np.ndarray, " row"]:
    """Tokens of each train row that a rank may choose among."""
    plan = store.plan
    counts: list[np.ndarray] = []
    for unit in range(plan.splits["train"].units):
        ids, n_tokens = store.read("train/input_ids", unit), store.read("train/n_tokens", unit)
        real = np.arange(ids.shape[1]) < n_tokens[:, None]
        counts.append((real & is_admitted(ids, plan.tokenizer["separators"], strategy)).sum(axis=1))
    found = np.concatenate(counts)
    if found.min() < 1:
        raise StoreError(f"{store.root}: a row of train has no token that can be ranked: the store is damaged")
    return found
