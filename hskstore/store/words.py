"""How the codebooks of a store come to be: put before anything is written in them, by whoever comes first."""

import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from hskstore.errors import StoreError
from hskstore.store.codebooks import BOOKS, CODEBOOKS, Words, codebooks_sha256, coded
from hskstore.store.commit import Receipt, commit_unit, read_receipt, receipt_key, receipts
from hskstore.store.encode import decode_shard, encode_unit
from hskstore.store.layout import Columns
from hskstore.store.objects import Objects
from hskstore.store.plan import Plan
from hskstore.store.shard import unit_fingerprints


def put_codebooks(objects: Objects, plan: Plan, columns: Columns, made: Mapping[str, Any], *, no_others: bool = False) -> None:
    """Put the codebooks of a planned store; those that another process put first are as good, unless `no_others` will do, as
    where codes are copied that were written in these.

    Raises StoreError where others stand that will not do, or units that were written in others.
    """
    own = encode_unit(plan, *BOOKS, columns)
    _check_written(objects, plan, {key: _whole(objects, plan, key) or blob for key, blob in own.items()})
    blobs = {key: _laid(objects, plan, key, blob) for key, blob in own.items()}
    if no_others and blobs != own:
        raise StoreError(f"{objects.root} has other codebooks than the codes that are to be copied there: choose another --out")
    entries = unit_fingerprints(plan.arrays_of(CODEBOOKS), BOOKS[1], blobs)
    commit_unit(objects, Receipt(*BOOKS, 0, uuid.uuid4().hex, entries, dict(made)), blobs)


def read_words(objects: Objects, plan: Plan) -> Words:
    """Those that `put_codebooks` put. Raises StoreError where they are damaged."""
    receipt = read_receipt(objects, receipt_key(*BOOKS)) if coded(plan.features) else None
    found: dict[str, np.ndarray] = {}
    for name in coded(plan.features):
        path = f"{CODEBOOKS}/{name}/words"
        spec = plan.arrays[path]
        key = spec.key(path, BOOKS[1])
        blob = objects.get(key)
        if receipt is None or blob is None or unit_fingerprints({path: spec}, BOOKS[1], {key: blob})[key] != receipt.objects[key]:
            raise StoreError(f"{objects.root}/{key} is not what its receipt says: hsk verify {objects.root} --deep --condemn")
        found[name] = decode_shard(spec, BOOKS[1], blob)
    return found


def _laid(objects: Objects, plan: Plan, key: str, blob: bytes) -> bytes:
    """What stands in an object's place, if it is whole; else `blob` stands there now."""
    objects.put(key, blob, create=True)
    found = _whole(objects, plan, key)
    if found is None:
        objects.put(key, blob)
    return found or blob


def _whole(objects: Objects, plan: Plan, key: str) -> bytes | None:
    """What stands in an object's place; None where there is nothing, or what a power cut tore."""
    found = objects.get(key)
    try:
        if found is not None:
            decode_shard(plan.arrays[key.partition("/c/")[0]], BOOKS[1], found)
        return found
    except ValueError:
        return None


def _check_written(objects: Objects, plan: Plan, blobs: Mapping[str, bytes]) -> None:
    """Raise StoreError, before anything is put, where there are units in other words than these."""
    words = codebooks_sha256(unit_fingerprints(plan.arrays_of(CODEBOOKS), BOOKS[1], blobs))
    others = [each.key for each in receipts(objects).values() if each.made.get(CODEBOOKS, words) != words]
    if others:
        raise StoreError(
            f"{objects.root}: its codebooks are gone, and those that are made here are not the ones that {others[0]} is"
            " written in: hsk pull them from a good copy, or delete the store and make it anew"
        )
