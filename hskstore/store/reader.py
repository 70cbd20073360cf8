"""Reading a sealed store: nothing unsealed is opened, and no row of a shard is returned before its sha256 was checked."""

import hashlib
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np

from hskstore.errors import StoreError
from hskstore.store.commit import MANIFEST, PLAN, receipts
from hskstore.store.encode import decode_shard
from hskstore.store.objects import Objects
from hskstore.store.plan import Plan, Split
from hskstore.store.schema import DTYPES, MAX_SHARD_BYTES, ArraySpec, Codec
from hskstore.store.values import unpack_mask, unpack_values

REPAIR = (
    "Copy the store again from a good copy; or delete manifest.json and the receipt in units/ that names this object,"
    " and run the same hsk extract again"
)


class Store:
    """A sealed store. `digest` is the sha256 of its manifest: two stores with one digest hold the same bytes."""

    def __init__(self, objects: Objects, plan: Plan, manifest: dict[str, Any], digest: str) -> None:
        self.objects = objects
        self.plan = plan
        self.digest = digest
        self._listed: dict[str, dict[str, Any]] = manifest["objects"]

    @property
    def root(self) -> str:
        return self.objects.root

    def sizes(self) -> dict[str, int]:
        """Bytes of every object the seal covers."""
        return {key: entry["size"] for key, entry in self._listed.items()}

    def file(self, key: str) -> bytes:
        """One object's bytes, checked against the seal. Raises StoreError where it is missing or damaged."""
        entry = self._listed.get(key)
        if entry is None:
            raise StoreError(f"{self.root} holds no {key}")
        data = self.objects.get(key)
        if data is None or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            state = "is missing" if data is None else "is damaged: its sha256 is not the sealed one"
            raise StoreError(f"{self.root}/{key} {state}. {REPAIR}")
        return data

    def tokenizer_files(self) -> dict[str, bytes]:
        return {key.removeprefix("tokenizer/"): self.file(key) for key in self._listed if key.startswith("tokenizer/")}

    def has(self, path: str) -> bool:
        return path in self.plan.arrays

    def read(self, path: str, unit: int) -> np.ndarray:
        """One array of one unit [rows, ...]. Raises StoreError where the shard is missing or damaged."""
        spec = self.plan.arrays.get(path)
        if spec is None:
            raise StoreError(f"{self.root} holds no {path}")
        try:
            return decode_shard(spec, unit, self.file(spec.key(path, unit)))
        except ValueError as error:
            raise StoreError(f"{self.root}/{spec.key(path, unit)} cannot be decoded ({error})") from None

    def read_all(self, path: str) -> np.ndarray:
        """One array, all its rows [N, ...]."""
        spec = self.plan.arrays.get(path)
        if spec is None:
            raise StoreError(f"{self.root} holds no {path}")
        units = self.plan.splits[path.partition("/")[0]].units
        return np.concatenate([self.read(path, unit) for unit in range(units)]) if units else np.empty(spec.shape)

    def row(self, split: str, index: int) -> dict[str, np.ndarray]:
        """One stored row, every array by its name; `hidden/values` decoded to float32, `hidden/mask` to bool [D, L, d]."""
        rows = self.plan.splits.get(split)
        if rows is None:
            raise StoreError(f"{self.root} has the splits {', '.join(self.plan.splits)}, not {split}")
        if not 0 <= index < rows.rows:
            raise StoreError(f"{self.root}: {split} has rows 0 to {rows.rows - 1}, not {index}")
        unit, offset = divmod(index, rows.unit_rows)
        found = {path.removeprefix(split + "/"): self.read(path, unit)[offset] for path in self.plan.arrays_of(split)}
        if "hidden/values" in found:
            found["hidden/values"] = unpack_values(
                found["hidden/values"], found.get("hidden/scale"), self.plan.strategy.values, self.plan.width
            )
            found["hidden/mask"] = unpack_mask(found["hidden/mask"], self.plan.hidden_size)
        return found


def open_store(root: str | Path) -> Store:
    """Open a sealed store on disk or at an object-store URL.

    Checks the seal, the metadata's hashes, and that every sealed object is there with its size. Raises StoreError.
    """
    objects = Objects(root)
    plan = read_plan(objects)
    sealed = objects.get(MANIFEST)
    if sealed is None:
        done, total = len(receipts(objects)), sum(split.units for split in plan.splits.values())
        raise StoreError(
            f"{objects.root} is not sealed: {done} of {total} units are done."
            " Run the same hsk extract again; it goes on where it stopped"
        )
    try:
        manifest = json.loads(sealed)
        listed = {key: int(entry["size"]) for key, entry in manifest["objects"].items() if entry["sha256"]}
        store_id = manifest["store_id"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(f"{objects.root}/{MANIFEST} cannot be read: the store is damaged") from None
    if store_id != plan.store_id:
        raise StoreError(f"{objects.root}: the seal belongs to another plan: the store is damaged")
    store = Store(objects, plan, manifest, hashlib.sha256(sealed).hexdigest())
    for key, document in plan.documents().items():
        if store.file(key) != document:
            raise StoreError(f"{objects.root}/{key} does not describe the planned array: the store is damaged")
    planned = {spec.key(path, unit) for split, unit in plan.units() for path, spec in plan.arrays_of(split).items()}
    if not planned <= listed.keys():
        raise StoreError(f"{objects.root}/{MANIFEST} does not list {min(planned - listed.keys())}: the store is damaged")
    present = objects.sizes()
    for key, size in listed.items():
        if present.get(key) != size:
            raise StoreError(f"{objects.root}/{key} has {present.get(key, 'no')} bytes instead of {size}. {REPAIR}")
    return store


def read_plan(objects: Objects) -> Plan:
    """The plan of a store, sealed or not. Raises StoreError where there is none, or where its arrays are beyond all reason."""
    data = objects.get(PLAN)
    if data is None and not objects.exists():
        raise StoreError(f"{objects.root} is not a store: there is no such folder")
    if data is None:
        stores = [folder for folder in objects.folders() if objects.get(f"{folder}/{PLAN}") is not None]
        hint = f"; it holds the stores {', '.join(stores)}: name one of them" if stores else ""
        raise StoreError(f"{objects.root} is not a store: it has no {PLAN}{hint}")
    plan = Plan.from_bytes(data, objects.root)
    if {path.partition("/")[0] for path in plan.arrays} != plan.splits.keys():
        raise StoreError(f"{objects.root}/{PLAN} names splits without arrays, or arrays without a split: the store is damaged")
    for path, spec in plan.arrays.items():
        if not _fits(spec, plan.splits[path.partition("/")[0]]):
            raise StoreError(f"{objects.root}/{PLAN} describes no array that can be in {path}: the store is damaged")
        if spec.shard_bytes > MAX_SHARD_BYTES:
            raise StoreError(f"{objects.root}: the plan asks for shards of {spec.shard_bytes} bytes in {path}; refused")
    return plan


def _fits(spec: ArraySpec, split: Split) -> bool:
    """Whether an array's numbers are numbers, its dtype one that stores have, and its rows and units those of its split."""
    numbers = (*spec.shape, spec.shard, spec.chunk, split.rows, split.unit_rows)
    return (
        all(type(number) is int and 0 < number < 2**63 for number in numbers)
        and (spec.shape[:1], spec.shard) == ((split.rows,), split.unit_rows)
        and spec.shard % spec.chunk == 0
        and spec.dtype in DTYPES
        and spec.codec in get_args(Codec)
    )
