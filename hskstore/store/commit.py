"""How a store comes to be: the plan, then units (blobs first, receipt last), then one seal.

No receipt: the unit does not exist. No manifest: the store is not sealed and readers refuse it. A receipt or a manifest that
does not agree with its own checksum, as a power cut can leave one, is none.
"""

import hashlib
import re
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hskstore.errors import PlanError, StoreError
from hskstore.interrupts import in_threads
from hskstore.store.codebooks import BOOKS, CODEBOOKS, codebooks_sha256, coded
from hskstore.store.layout import KNOWN_ARRAYS, Unit
from hskstore.store.objects import PARALLEL, Objects
from hskstore.store.places import Place
from hskstore.store.plan import Plan
from hskstore.store.schema import checked, with_check
from hskstore.store.shard import fingerprint
from hskstore.watch import Watch, unwatched

PLAN = "plan.json"
MANIFEST = "manifest.json"
CONDEMNED = "condemned.json"
"""What `verify --condemn` leaves in the manifest's place: the digest that the store had."""

TRIES = 16
"""To lay a receipt where something stands that is none: each time that it failed, something else stood there."""

RECEIPTS = "units/"
TEACHER = "teacher.json"
TOKENIZER = "tokenizer/"

SHARD_KEY = re.compile(r"(.+)/c/([0-9]{1,9})(?:/0)*")
RECEIPT_KEY = re.compile(r"units/(.+)-([0-9]{6,9})\.json")
"""What shards and receipts are called, with the array's path or the split, and the unit."""

FILES = ("files", 0)
"""The unit of what is neither planned nor rows: the tokenizer's files and teacher.json. It has a receipt like any other."""


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
        return with_check(self.__dict__)

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> "Receipt":
        """Raises StoreError for bytes that are no receipt, or another unit's."""
        try:
            receipt = cls(**checked(data))
            numbers = [receipt.unit, receipt.rows, *(entry["size"] for entry in receipt.objects.values())]
            if not all(type(number) is int and number >= 0 for number in numbers):
                raise ValueError("a number is none")
            if receipt.key != key or not isinstance(receipt.split, str):
                raise ValueError(f"it is that of {receipt.key}")
            if not all(isinstance(entry["sha256"], str) for entry in receipt.objects.values()):
                raise ValueError("a sha256 is none")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StoreError(f"the receipt {key} is damaged ({error})") from None
        return receipt


def receipt_key(split: str, unit: int) -> str:
    return f"{RECEIPTS}{split}-{unit:06d}.json"


@dataclass(frozen=True)
class Manifest:
    """The seal: every object but the receipts, by key, with size and sha256. `digest` is the sha256 of its own bytes."""

    store_id: str
    objects: dict[str, dict[str, Any]]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        return with_check(self.__dict__)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Raises ValueError for bytes that are no manifest."""
        try:
            document = checked(data)
            for key, entry in document["objects"].items():
                parts = key.split("/")
                if not isinstance(entry["size"], int) or entry["size"] < 0 or not isinstance(entry["sha256"], str):
                    raise ValueError(f"its entry of {key} is none")
                if not all(parts) or {".", ".."} & set(parts) or "\\" in key or not key.isprintable():
                    raise ValueError(f"it names {key!a}, which is no place in a store")
            return cls(**document)
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(repr(error)) from None


@dataclass(frozen=True)
class Standing:
    """What a planned store already has: its finished units, and its digest where it is sealed with all of them."""

    finished: frozenset[Unit]
    digest: str | None


def examine(objects: Objects, plan: Plan) -> Standing:
    """How far the store of a plan is; nothing is written.

    Raises PlanError where another plan has finished units here (one that never finished a unit is no obstacle), and StoreError
    where it is sealed and an object is missing or has another size.
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
    manifest = read_manifest(objects) if finished >= frozenset(plan.units()) else None
    if manifest is None or manifest.store_id != plan.store_id:
        return Standing(finished, None)
    for key, what in faults(objects, objects.sizes(), manifest.objects, deep=False).items():
        raise StoreError(f"{objects.root} is sealed, and {key} {what}. {repair(objects.root)}")
    return Standing(finished, manifest.digest)


def repair(root: str) -> str:
    """What to do about a damaged store."""
    return (
        f"Repair it from a good copy: hsk pull GOOD_COPY {root}. Or condemn what is bad, hsk verify {root} --deep --condemn,"
        " and run the same hsk extract again: it re-makes just that"
    )


def read_manifest(place: Place) -> Manifest | None:
    """The seal; None where there is none, or a torn one."""
    data = place.get(MANIFEST)
    try:
        return None if data is None else Manifest.from_bytes(data)
    except ValueError:
        return None


def begin(objects: Objects, plan: Plan, files: Mapping[str, bytes]) -> None:
    """Lay down the plan, every `zarr.json` and `files` (tokenizer, teacher.json). Raises PlanError as `examine` does.

    Safe to repeat: what the plan decides is written again with the same bytes; `files`, which another version of the
    libraries may spell differently, stay as the first receipt for them says. Raises StoreError, before anything is written,
    where the disk cannot keep writers apart.
    """
    examine(objects, plan)
    objects.check_exclusive()
    document = plan.to_bytes()
    found = objects.get(PLAN)
    if found is not None and found != document:
        if not document.startswith(found.rstrip(b"\0")):  # else it is this plan, torn by a power cut
            for key in list(_left_by(objects, Plan.from_bytes(found, objects.root))):
                objects.delete(key)
        objects.delete(PLAN)
    if not _laid(objects, PLAN, document):
        raise PlanError(f"{objects.root}: another process is planning something else here; give it another --out")
    objects.put_all(plan.documents())
    entries = {key: fingerprint(data) for key, data in files.items()}
    stands = read_receipt(objects, receipt_key(*FILES))
    if stands is None:
        commit_unit(objects, Receipt(*FILES, 0, uuid.uuid4().hex, entries, {}), files)
        return
    for key, data in files.items():
        if stands.objects.get(key) == entries[key]:
            objects.put(key, data, create=True)


def _left_by(objects: Objects, plan: Plan) -> Iterator[str]:
    """What a plan that never finished a unit left behind, by the very names that it gives.

    It may be a stranger's, with a split that is called like a folder of the user's: what else lies there is not ours to delete.
    """
    made = read_receipt(objects, receipt_key(*FILES))
    files = (
        {} if made is None else {key: made.objects[key] for key in made.objects if key == TEACHER or key.startswith(TOKENIZER)}
    )
    present, documents, units = objects.sizes(), plan.documents(), frozenset(plan.units())
    whole = files.keys() - faults(objects, present, files)
    for key in present:
        shard, receipt = SHARD_KEY.fullmatch(key), RECEIPT_KEY.fullmatch(key)
        if shard is not None and shard[1] in plan.arrays:
            split, unit = shard[1].partition("/")[0], int(shard[2])
            named = (split, unit) in units and key == plan.arrays[shard[1]].key(shard[1], unit)
        elif receipt is not None and (receipt[1], int(receipt[2])) in units:
            named = True
        else:
            named = key in whole or key in documents or key == receipt_key(*FILES)
        if named:
            yield key


def _laid(objects: Objects, key: str, data: bytes, over: bytes | None = None) -> bool:
    """Put an object where none stands, or just in the place of the bytes `over`; whether it stands there now.

    An acknowledgement can get lost: what is read back decides.
    """
    try:
        if objects.put(key, data, create=True) if over is None else objects.replace(key, over, data):
            return True
    except StoreError:
        if objects.get(key) == over:
            raise
    return objects.get(key) == data


def commit_unit(objects: Objects, receipt: Receipt, blobs: Mapping[str, bytes]) -> None:
    """Put a unit's blobs, then its receipt, never over another. Another attempt's receipt for the same bytes is as good as ours.

    Raises StoreError where another attempt made the unit with other bytes; its receipt stays as it is.
    """
    standing = objects.get(receipt.key)
    if _agrees(objects, receipt, standing):
        return
    objects.put_all(blobs)
    # What stands there is nothing, or no receipt, and alone is written over: a rival's may be laid at any moment, and this put
    # may arrive when its process is long dead.
    for _ in range(TRIES):
        if _laid(objects, receipt.key, receipt.to_bytes(), standing):
            return
        standing = objects.get(receipt.key)
        if _agrees(objects, receipt, standing):
            return
    raise StoreError(f"{objects.root}: {receipt.key} could not be written {TRIES} times: what stands there cannot be replaced")


def _agrees(objects: Objects, receipt: Receipt, standing: bytes | None) -> bool:
    """Whether what stands in a receipt's place is one, for the same bytes. Raises StoreError where it is one for others."""
    found = _parsed(standing, receipt.key)
    if found is None:
        return False
    if found.objects != receipt.objects:
        raise StoreError(
            f"{objects.root}: another process made the unit of {receipt.key} with other bytes. Let one of them finish alone;"
            f" then hsk verify {objects.root} --deep --condemn tells whether its objects are whole"
        )
    return True


def read_receipt(place: Place, key: str) -> Receipt | None:
    """One receipt; None where there is none, or a torn one."""
    return _parsed(place.get(key), key)


def _parsed(data: bytes | None, key: str) -> Receipt | None:
    try:
        return None if data is None else Receipt.from_bytes(data, key)
    except StoreError:
        return None


def codebooks_named(place: Place, plan: Plan) -> dict[str, str]:
    """What the receipt of a unit of codes says besides: which codebooks they are of, which must be there. Of numbers nothing."""
    receipt = read_receipt(place, receipt_key(*BOOKS)) if coded(plan.features) else None
    return {} if receipt is None else {CODEBOOKS: codebooks_sha256(receipt.objects)}


def receipts(place: Place) -> dict[Unit, Receipt]:
    """Every receipt of a unit of rows, by unit."""
    return {unit: receipt for unit, receipt in all_receipts(place).items() if unit != FILES}


def all_receipts(place: Place) -> dict[Unit, Receipt]:
    """`receipts`, and that of FILES."""
    keys = [key for key in place.sizes(RECEIPTS.rstrip("/")) if key.endswith(".json")]
    found = in_threads(PARALLEL, lambda key: read_receipt(place, key), keys)
    return {(receipt.split, receipt.unit): receipt for receipt in found if receipt is not None}


def seal(objects: Objects, plan: Plan, watch: Watch = unwatched) -> str:
    """Write manifest.json over every object but the receipts and return its sha256, the store's digest. Idempotent.

    Every object is read and hashed once more, so that what is sealed is what the receipts say; what nobody owns, left by
    killed writers, is swept. Raises StoreError where a unit has no receipt, naming it where an object is not its receipt's.
    """
    made = all_receipts(objects)
    missing = [receipt_key(*unit) for unit in (FILES, *plan.units()) if unit not in made]
    if missing:
        raise StoreError(
            f"{objects.root}: {len(missing)} units are missing, the first is {missing[0]}: run the same command again"
        )
    present = objects.sizes()
    listed = planned_files(plan) | made[FILES].objects
    _refuse(objects, faults(objects, present, listed))
    done, rows = 0, sum(split.rows for split in plan.splits.values())
    words = codebooks_sha256(made[BOOKS].objects) if BOOKS in made else None
    for split, unit in plan.units():
        receipt = made[split, unit]
        found = faults(objects, present, receipt.objects)
        if receipt.made.get(CODEBOOKS, words) != words:
            found[receipt.key] = "is of codes in other codebooks than the store's"
        if receipt.objects.keys() != {spec.key(path, unit) for path, spec in plan.arrays_of(split).items()}:
            found[receipt.key] = "does not list the unit's objects"
        _refuse(objects, found)
        listed |= receipt.objects
        done += receipt.rows
        watch("seal", done, rows)
    _sweep(objects, plan, present, {*listed, *(receipt.key for receipt in made.values())})
    manifest = Manifest(plan.store_id, listed)
    objects.put(MANIFEST, manifest.to_bytes())
    objects.delete(CONDEMNED)
    return manifest.digest


def condemned_digest(place: Place) -> str | None:
    """The digest that a store had before some of it was condemned; None where nothing was."""
    try:
        return str(checked(place.get(CONDEMNED) or b"")["digest"])
    except (ValueError, KeyError, RecursionError):
        return None


def planned_files(plan: Plan) -> dict[str, dict[str, Any]]:
    """The fingerprints of what the plan alone decides: plan.json and every zarr.json."""
    return {key: fingerprint(data) for key, data in {PLAN: plan.to_bytes(), **plan.documents()}.items()}


def faults(
    place: Place, present: Mapping[str, int], entries: Mapping[str, Mapping[str, Any]], *, deep: bool = True
) -> dict[str, str]:
    """What is wrong with objects that should be as `entries` say, by key. `present` are the sizes of those that are there.

    Without `deep` their bytes are not read.
    """

    def fault(key: str) -> str | None:
        entry = entries[key]
        if key not in present:
            return "is missing"
        if present[key] != entry["size"]:
            return f"has {present[key]} bytes instead of {entry['size']}"
        if deep and hashlib.sha256(place.get(key) or b"").hexdigest() != entry["sha256"]:
            return "is damaged: its sha256 is another"
        return None

    return {key: found for key, found in zip(entries, in_threads(PARALLEL, fault, entries), strict=True) if found is not None}


def _refuse(objects: Objects, found: Mapping[str, str]) -> None:
    for key, what in found.items():
        raise StoreError(
            f"{objects.root}/{key} {what}; the store was not sealed. Run hsk verify {objects.root} --deep --condemn, then the"
            " same command again: it re-makes just that"
        )


def _sweep(objects: Objects, plan: Plan, present: Collection[str], owned: Collection[str]) -> None:
    """Remove what killed or late writers left, of this plan or one that gave way to it: temporary files, and what no unit owns.

    A split's folder may have been the user's before: in it we remove what is called like a store's arrays, and nothing else.
    """

    def ours(key: str) -> bool:
        shard, receipt = SHARD_KEY.fullmatch(key), RECEIPT_KEY.fullmatch(key)
        if receipt is not None:
            return receipt[1] in (*plan.splits, CODEBOOKS)
        path = key.removesuffix("/zarr.json") if shard is None else shard[1]
        split, _, array = path.partition("/")
        return path != key and split in (*plan.splits, CODEBOOKS) and array in KNOWN_ARRAYS

    for key, path in objects.stranded():
        if key in owned or key in (MANIFEST, CONDEMNED) or ours(key):
            path.unlink(missing_ok=True)
    for key in present:
        if key not in owned and ours(key):
            objects.delete(key)
