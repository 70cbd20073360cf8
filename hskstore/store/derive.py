"""A smaller configuration cut from a sealed store, without the teacher.

Kept layers, tokens and coordinates are nested where the strategy nests them, so the cut is bit for bit what an extraction with
the smaller --keep would have written, down to the digest.
"""

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from hskstore.config import Keep, resolve
from hskstore.errors import OptionError, StoreError
from hskstore.store.commit import MANIFEST, PLAN, TEACHER, Receipt, begin, commit_unit, examine, seal
from hskstore.store.encode import encode_unit
from hskstore.store.objects import PARALLEL, Objects
from hskstore.store.plan import Plan, make_plan
from hskstore.store.reader import Store, open_store
from hskstore.store.shard import unit_fingerprints
from hskstore.store.values import is_admitted, static_mask
from hskstore.store.verify import verify
from hskstore.version import __version__
from hskstore.watch import Watch, unwatched


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
    """How to cut: the source's layers to take, and the tokens each train row [N] may still keep."""

    source: Store
    plan: Plan
    layers: tuple[int, ...]
    n_kept: np.ndarray


def derive(source: str | Path, keep: Keep, out: str | Path, *, watch: Watch = unwatched) -> Derived:
    """Cut the configuration `keep` out of the sealed store `source` and seal it at `out`; stopped, it goes on.

    Of layers that are not kept nothing is fetched. Where `out` is sealed already, what is damaged of it is cut again: of a
    folder every byte is checked, elsewhere presence and sizes. Raises OptionError where `keep` is not nested in what the
    store keeps, saying why; StoreError as `open_store` and the commit do.
    """
    began = time.monotonic()
    store = open_store(source)
    cut = _plan_cut(store, keep)
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
        for split, unit in cut.plan.units():
            if (split, unit) not in standing.finished:
                _write_unit(cut, objects, split, unit, attempt)
            done += cut.plan.splits[split].rows_of(unit)
            watch("derive", done, rows)
        digest = seal(objects, cut.plan)
    size = sum(objects.sizes().values())
    return Derived(objects.root, digest, store.digest, size, round(time.monotonic() - began, 3))


def _write_unit(cut: _Cut, objects: Objects, split: str, unit: int, attempt: str) -> None:
    pieces = list(_pieces(cut, split, unit))
    columns = {path: np.concatenate([piece[path] for piece in pieces]) for path in cut.plan.arrays_of(split)}
    blobs = encode_unit(cut.plan, split, unit, columns)
    made = {
        "derived_from": cut.source.digest,
        "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "versions": {"hskstore": __version__, "zarr": version("zarr")},
    }
    entries = unit_fingerprints(cut.plan.arrays_of(split), unit, blobs)
    rows = cut.plan.splits[split].rows_of(unit)
    commit_unit(objects, Receipt(split, unit, rows, attempt, entries, made), blobs)


def _pieces(cut: _Cut, split: str, unit: int) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of one unit to come, source unit by source unit."""
    start = unit * cut.plan.splits[split].unit_rows
    stop = start + cut.plan.splits[split].rows_of(unit)
    size = cut.source.plan.splits[split].unit_rows
    paths = list(cut.plan.arrays_of(split))
    for other in range(start // size, (stop - 1) // size + 1):
        rows = range(max(start, other * size), min(stop, (other + 1) * size))
        inside = slice(rows.start - other * size, rows.stop - other * size)
        with ThreadPoolExecutor(PARALLEL) as pool:
            read = pool.map(lambda path: cut.source.read(path, other, cut.layers)[inside], paths)  # noqa: B023
            columns = dict(zip(paths, read, strict=True))
        if split == "train":
            hidden = {path: columns[path] for path in paths if path.startswith("train/hidden/")}
            columns |= _cut_hidden(cut, hidden, cut.n_kept[rows.start : rows.stop])
        yield columns


def _cut_hidden(cut: _Cut, hidden: dict[str, np.ndarray], n_kept: np.ndarray) -> dict[str, np.ndarray]:
    """The hidden arrays [rows, layer, slot, ...] of fewer layers, tokens and coordinates; `n_kept` [rows] are those to keep."""
    slots = cut.plan.length
    found = {path.removeprefix("train/hidden/"): array for path, array in hidden.items()}
    for name in ("token", "scale", "n_kept"):  # their chunks hold all layers
        if name in found:
            found[name] = found[name][:, list(cut.layers)]
    kept = np.broadcast_to(np.arange(slots) < n_kept[:, None, None], (len(n_kept), len(cut.layers), slots))
    for name, beyond in (("values", 0), ("mask", 0), ("token", -1), ("scale", 0)):
        if name in found:
            array = found[name][:, :, :slots]
            found[name] = np.where(kept[(..., *(None for _ in array.shape[3:]))], array, np.array(beyond, array.dtype))
    found["n_kept"] = np.broadcast_to(n_kept[:, None].astype(found["n_kept"].dtype), found["n_kept"].shape)
    if cut.plan.width < cut.source.plan.width:
        values = np.zeros((*kept.shape, cut.plan.width), dtype=found["values"].dtype)
        mask = np.zeros_like(found["mask"])
        values[kept], mask[kept] = _narrow(cut, found["values"][kept], found["mask"][kept])
        found["values"], found["mask"] = values, mask
    return {f"train/hidden/{name}": array for name, array in found.items()}


def _narrow(cut: _Cut, values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fewer coordinates: `values` [M, K] and `mask` bits [M, octets] of those that stay. Ties go to the lower index."""
    plan = cut.plan
    bits = np.unpackbits(mask, axis=-1, count=plan.hidden_size).astype(bool)
    if plan.strategy.mask == "magnitude":
        order = np.argsort(-np.abs(values), axis=-1, kind="stable")[:, : plan.width]
        stays = np.zeros(values.shape, dtype=bool)
        np.put_along_axis(stays, order, True, axis=-1)
        narrow = np.zeros_like(bits)
        narrow[bits] = stays.ravel()
    else:
        static = static_mask(plan.strategy.mask, hidden_size=plan.hidden_size, kept=plan.width, seed=plan.pass_.seed)
        narrow = np.broadcast_to(static, bits.shape)
        stays = narrow[bits].reshape(values.shape)
    return values[stays].reshape(len(values), plan.width), np.packbits(narrow, axis=-1)


def _plan_cut(store: Store, keep: Keep) -> _Cut:
    """The plan that an extraction with `keep` would have made. Raises OptionError where it is not nested in the store's."""
    old = store.plan
    admitted = _admitted(store)
    label = old.arrays.get("train/label")
    plan = make_plan(
        keep,
        old.strategy,
        old.pass_,
        splits=old.splits,
        most_admitted=int(admitted.max()),
        teacher=old.teacher,
        tokenizer=old.tokenizer,
        task=old.task,
        labels=None if label is None else label.dtype,
        text=old.text,
    )
    refusal = f"--keep {keep} cannot be cut from {store.root}, which keeps {old.keep}: "
    absent = [pair.student for pair in plan.pairs if pair not in old.pairs]
    if absent:
        raise OptionError(f"{refusal}it has no teacher layer for the student's layers {', '.join(map(str, absent))}")
    _check_width(old, plan, refusal)
    wanted = {count: min(resolve(keep.length, count), count, plan.length) for count in np.unique(admitted).tolist()}
    n_kept = np.array([wanted[count] for count in admitted.tolist()])
    layers = tuple(old.pairs.index(pair) for pair in plan.pairs)
    for unit in range(old.splits["train"].units):
        has = store.read("train/hidden/n_kept", unit)[:, list(layers)].min(axis=1)
        start = unit * old.splits["train"].unit_rows
        short = np.flatnonzero(has < n_kept[start : start + len(has)])
        if len(short):
            row = start + int(short[0])
            raise OptionError(f"{refusal}row {row} would keep {n_kept[row]} tokens and has only {has[short[0]]}")
    return _Cut(store, plan, layers, n_kept)


def _check_width(old: Plan, plan: Plan, refusal: str) -> None:
    """Raise OptionError unless the coordinates to keep are among those that are kept, exactly as they are stored."""
    if plan.width == old.width:
        return
    if plan.width > old.width:
        raise OptionError(f"{refusal}it has {old.width} coordinates of a vector, not {plan.width}")
    if old.strategy.values in ("q8", "q4"):
        raise OptionError(
            f"{refusal}quantised values ({old.strategy.values}) were masked before they were rounded; only their depth and"
            " length can be cut: extract this width, or keep a store of f16 or f32 to cut from"
        )
    if old.strategy.mask != "magnitude" and old.width < old.hidden_size:
        sizes = {"hidden_size": old.hidden_size, "seed": old.pass_.seed}
        has, wants = (static_mask(old.strategy.mask, kept=width, **sizes) for width in (old.width, plan.width))
        if (wants & ~has).any():
            raise OptionError(
                f"{refusal}its {old.strategy.mask} mask of {old.width} coordinates does not contain that of {plan.width}:"
                " extract this width, or cut it from a store of width all"
            )


def _admitted(store: Store) -> np.ndarray:
    """Tokens of each train row [N] that a rank may choose among."""
    plan = store.plan
    counts: list[np.ndarray] = []
    for unit in range(plan.splits["train"].units):
        ids, n_tokens = store.read("train/input_ids", unit), store.read("train/n_tokens", unit)
        real = np.arange(ids.shape[1]) < n_tokens[:, None]
        counts.append((real & is_admitted(ids, plan.tokenizer["separators"], plan.strategy)).sum(axis=1))
    found = np.concatenate(counts)
    if found.min() < 1:
        raise StoreError(f"{store.root}: a row of train has no token that can be ranked: the store is damaged")
    return found
