"""How a store comes to be: the plan, then units (blobs first, receipt last), then one seal.

No receipt: the unit does not exist. No manifest: the store is not sealed and readers refuse it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hskstore.errors import PlanError, StoreError
from hskstore.store.objects import Objects
from hskstore.store.plan import Plan
from hskstore.store.schema import canonical_json

PLAN = "plan.json"
MANIFEST = "manifest.json"
RECEIPTS = "units/"
TEACHER = "teacher.json"
TOKENIZER = "tokenizer/"


@dataclass(frozen=True)
class Receipt:
    """The word that one unit is whole: its objects' sizes and hashes, and who made it (which no digest depends on).

    `attempt` tells one try from another; `made` is provenance: teacher, device, versions, seconds, time.
    """

    split: str
    unit: int
    rows: int
    attempt: str
    objects: dict[str, dict[str, Any]]
    made: dict[str, Any]

    @property
    def key(self) -> str:
        return receipt_key(self.split, self.unit)

    def to_bytes(self) -> bytes:
        return canonical_json(self.__dict__)

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> "Receipt":
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise StoreError(f"the receipt {key} cannot be read ({error}): delete it and extract again") from None


def receipt_key(split: str, unit: int) -> str:
    return f"{RECEIPTS}{split}-{unit:06d}.json"


@dataclass(frozen=True)
class Standing:
    """What a planned store already has: its finished units, and its digest where it is sealed with all of them."""

    finished: frozenset[tuple[str, int]]
    digest: str | None


def examine(objects: Objects, plan: Plan) -> Standing:
    """How far the store of a plan is; nothing is written.

    Raises PlanError where another plan has finished units here. A plan that never finished one is no obstacle.
    """
    found = objects.get(PLAN)
    if found is None:
        return Standing(frozenset(), None)
    finished = frozenset(receipts(objects))
    if found != plan.to_bytes():
        if finished or objects.get(MANIFEST) is not None:
            differs = Plan.from_bytes(found, objects.root).differences(plan)
            raise PlanError(
                f"{objects.root} was planned for something else (there -> here):\n  "
                + "\n  ".join(differs or ["the layout of the arrays, by another version of hskstore"])
                + "\nGive the same options to go on with it, or another --out"
            )
        return Standing(frozenset(), None)
    sealed = objects.get(MANIFEST) if finished >= frozenset(plan.units()) else None
    return Standing(finished, None if sealed is None else hashlib.sha256(sealed).hexdigest())


def begin(objects: Objects, plan: Plan, files: Mapping[str, bytes]) -> None:
    """Lay down the plan, every `zarr.json` and `files` (tokenizer, teacher.json). Raises PlanError as `examine` does.

    Safe to repeat: what the plan decides is written again with the same bytes; `files`, which another version of the
    libraries may spell differently, stay as they were first written.
    """
    examine(objects, plan)
    document = plan.to_bytes()
    found = objects.get(PLAN)
    if found is not None and found != document:
        # What a plan that never finished a unit left behind; whatever else lies in the folder is not ours to delete.
        own = {TEACHER, TOKENIZER.rstrip("/"), "zarr.json", *Plan.from_bytes(found, objects.root).splits}
        for key in objects.sizes():
            if key.partition("/")[0] in own:
                objects.delete(key)
        objects.delete(PLAN)
    if not objects.put(PLAN, document, create=True) and objects.get(PLAN) != document:
        raise PlanError(f"{objects.root}: another process is planning something else here; give it another --out")
    for key, data in plan.documents().items():
        objects.put(key, data)
    for key, data in files.items():
        objects.put(key, data, create=True)


def commit_unit(objects: Objects, receipt: Receipt, blobs: Mapping[str, bytes]) -> None:
    """Put a unit's blobs, then its receipt, create-only. Another attempt's receipt for the same bytes is as good as ours.

    Raises StoreError where another attempt made the unit with other bytes; what it put stays as it is.
    """
    if _receipt_stands(objects, receipt):
        return
    for key, blob in blobs.items():
        objects.put(key, blob)
    if not objects.put(receipt.key, receipt.to_bytes(), create=True):
        _receipt_stands(objects, receipt)


def _receipt_stands(objects: Objects, receipt: Receipt) -> bool:
    """Whether the unit has a receipt for the same bytes. Raises StoreError where it has one for others."""
    data = objects.get(receipt.key)
    if data is None:
        return False
    if Receipt.from_bytes(data, receipt.key).objects != receipt.objects:
        raise StoreError(
            f"{objects.root}: another process made the unit of {receipt.key} with other bytes. Let one of them finish alone:"
            " delete that receipt and run the same command again"
        )
    return True


def fingerprint(blob: bytes) -> dict[str, Any]:
    return {"size": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}


def receipts(objects: Objects) -> dict[tuple[str, int], Receipt]:
    """Every receipt of a store, by (split, unit)."""
    found: dict[tuple[str, int], Receipt] = {}
    for key in objects.sizes(RECEIPTS.rstrip("/")):
        receipt = Receipt.from_bytes(objects.get(key) or b"", key)
        found[receipt.split, receipt.unit] = receipt
    return found


def seal(objects: Objects, plan: Plan) -> str:
    """Write manifest.json over every object but the receipts and return its sha256, the store's digest. Idempotent.

    Raises StoreError where a unit has no receipt, or an object is missing or has another size than its receipt says.
    """
    made = receipts(objects)
    missing = [receipt_key(*unit) for unit in plan.units() if unit not in made]
    if missing:
        raise StoreError(f"{objects.root}: {len(missing)} units are missing, the first is {missing[0]}: run extract again")
    listed: dict[str, dict[str, Any]] = {PLAN: fingerprint(plan.to_bytes())}
    listed |= {key: fingerprint(data) for key, data in plan.documents().items()}
    present = objects.sizes()
    for key in present:
        if key == TEACHER or key.startswith(TOKENIZER):
            listed[key] = fingerprint(objects.get(key) or b"")
    for split, unit in plan.units():
        expected = {spec.key(path, unit) for path, spec in plan.arrays_of(split).items()}
        if made[split, unit].objects.keys() != expected:
            raise StoreError(f"{objects.root}/{receipt_key(split, unit)} is damaged: delete it and run extract again")
        listed |= made[split, unit].objects
    for key, entry in listed.items():
        if present.get(key) != entry["size"]:
            raise StoreError(
                f"{objects.root}/{key} has {present.get(key, 'no')} bytes; {entry['size']} were written."
                " Delete the receipts that name it and run extract again"
            )
    manifest = canonical_json({"store_id": plan.store_id, "objects": listed})
    objects.put(MANIFEST, manifest)
    return hashlib.sha256(manifest).hexdigest()
