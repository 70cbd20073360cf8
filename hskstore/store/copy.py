"""Verified copies of sealed stores between folders, object stores and the hub. What arrived already does not travel again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hskstore.errors import StoreError
from hskstore.interrupts import in_threads
from hskstore.store.commit import CONDEMNED, MANIFEST, PLAN, Receipt, all_receipts, faults, read_manifest, receipt_key
from hskstore.store.layout import Unit
from hskstore.store.objects import PARALLEL
from hskstore.store.places import Place, place_of
from hskstore.store.reader import Store, open_store, unit_of
from hskstore.watch import Watch, unwatched

BATCH_BYTES = 256 * 2**20
"""What is held in memory between the two places, unless one unit is bigger."""

Entries = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Copied:
    """A copy that stands. `objects` and `bytes` are the whole store's, `sent` and `sent_bytes` what had to travel."""

    root: str
    digest: str
    objects: int
    bytes: int
    sent: int
    sent_bytes: int


def copy_store(source: str, target: str, *, watch: Watch = unwatched) -> Copied:
    """Copy a sealed store, in the order in which stores are made: the plan, units with their receipts, the seal last.

    Every object is checked against the source's seal before it is put. What the target has already is not sent again: in a
    folder it is hashed, elsewhere its receipt and its size are believed. So a damaged folder is repaired.
    Raises StoreError where the source is damaged, or where the target holds anything but (part of) the same store.
    """
    store = open_store(source)
    place = place_of(target)
    units: dict[Unit | None, Entries] = {}
    for key, entry in store.manifest.objects.items():
        units.setdefault(unit_of(key), {})[key] = entry
    files = units.pop(None)
    standing = _standing(store, place)
    present = place.sizes()
    missing = _missing(place, present, units, standing)
    lacking_files = list(faults(place, present, files))
    sent_bytes = 0
    for keys in ([PLAN] if PLAN in lacking_files else [], [key for key in lacking_files if key != PLAN]):
        place.put_all({key: store.file(key) for key in keys})
        sent_bytes += sum(files[key]["size"] for key in keys)
    made = all_receipts(store.place)
    rows = {unit: _rows(store, unit) for unit in missing}
    done = 0
    for batch in _batches(missing, units):
        keys = [key for unit in batch for key in missing[unit]]
        place.put_all(dict(zip(keys, in_threads(PARALLEL, store.file, keys), strict=True)))
        place.put_all({receipt_key(*unit): _receipt(store, unit, units[unit], made).to_bytes() for unit in batch})
        done += sum(rows[unit] for unit in batch)
        sent_bytes += sum(store.manifest.objects[key]["size"] for key in keys)
        watch("copy", done, sum(rows.values()))
    _seal(store, place)
    return Copied(
        root=place.root,
        digest=store.digest,
        objects=len(store.manifest.objects),
        bytes=sum(store.sizes().values()),
        sent=len(lacking_files) + sum(map(len, missing.values())),
        sent_bytes=sent_bytes,
    )


def _standing(store: Store, place: Place) -> set[Unit]:
    """The units whose receipts the target has. Raises StoreError where it holds another store, or other bytes of this one."""
    manifest = read_manifest(place)
    if manifest is not None and manifest.digest != store.digest:
        raise StoreError(
            f"{place.root} holds another sealed store, {manifest.digest[:16]}; {store.root} is {store.digest[:16]}:"
            " copy to an empty place"
        )
    plan = place.get(PLAN)
    if manifest is None and plan is not None and plan != store.file(PLAN):
        raise StoreError(f"{place.root} was planned for something else than {store.root}: copy to an empty place")
    found: set[Unit] = set()
    for unit, receipt in all_receipts(place).items():
        agrees = all(store.manifest.objects.get(key) == entry for key, entry in receipt.objects.items())
        if not agrees and manifest is None:
            raise StoreError(
                f"{place.root} has a unit of its own, {receipt.key}, with other bytes than {store.root}: copy to an empty place"
            )
        if agrees:
            found.add(unit)
    return found


def _missing(
    place: Place, present: Mapping[str, int], units: Mapping[Unit | None, Entries], standing: set[Unit]
) -> dict[Unit, list[str]]:
    """The units that the target has not, each with its objects that must travel; a receipt alone may be what is missing."""
    missing: dict[Unit, list[str]] = {}
    for unit in sorted(filter(None, units)):
        if place.local or unit in standing:
            lacks = list(faults(place, present, units[unit], deep=place.local))
        else:
            lacks = list(units[unit])
        if lacks or unit not in standing:
            missing[unit] = lacks
    return missing


def _batches(missing: Mapping[Unit, list[str]], units: Mapping[Unit | None, Entries]) -> Iterator[list[Unit]]:
    """Units to be sent together: about BATCH_BYTES of them."""
    batch: list[Unit] = []
    size = 0
    for unit, keys in missing.items():
        extra = sum(units[unit][key]["size"] for key in keys)
        if batch and size + extra > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(unit)
        size += extra
    if batch:
        yield batch


def _receipt(store: Store, unit: Unit, entries: Entries, made: Mapping[Unit, Receipt]) -> Receipt:
    """The source's receipt, which tells who made the unit; a new one where the source has none that agrees with its seal."""
    receipt = made.get(unit)
    if receipt is not None and receipt.objects == entries:
        return receipt
    return Receipt(*unit, _rows(store, unit), f"copy of {store.digest}", entries, {})


def _rows(store: Store, unit: Unit) -> int:
    split = store.plan.splits.get(unit[0])
    return 0 if split is None else split.rows_of(unit[1])


def _seal(store: Store, place: Place) -> None:
    """Write the source's manifest once everything is there."""
    for key, what in faults(place, place.sizes(), store.manifest.objects, deep=False).items():
        raise StoreError(f"{place.root}/{key} {what} after it was sent: is something else writing there? Copy again")
    manifest = store.manifest.to_bytes()
    if place.get(MANIFEST) != manifest:
        place.put_all({MANIFEST: manifest})
    if place.get(CONDEMNED) is not None:
        place.delete(CONDEMNED)
