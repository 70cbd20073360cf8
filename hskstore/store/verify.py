"""Every object of a store against the seal and its receipts; what is bad can be condemned, so that it is made again."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hskstore.store.codebooks import BOOKS, CODEBOOKS, codebooks_sha256
from hskstore.store.commit import (
    CONDEMNED,
    FILES,
    MANIFEST,
    PLAN,
    Manifest,
    Receipt,
    all_receipts,
    faults,
    planned_files,
    read_manifest,
    receipt_key,
)
from hskstore.store.layout import Unit
from hskstore.store.places import Place, place_of
from hskstore.store.plan import Plan
from hskstore.store.reader import describes, read_plan, unit_of, unsealed
from hskstore.store.schema import with_check
from hskstore.store.shard import fingerprint
from hskstore.watch import Watch, unwatched


@dataclass(frozen=True)
class Problem:
    """One object and what is wrong with it. `split` and `unit` are those it belongs to, if it belongs to one."""

    key: str
    what: str
    split: str | None = None
    unit: int | None = None


@dataclass(frozen=True)
class Verified:
    """What `verify` found. `objects` and `bytes` are those that were looked at, with `deep` to the last byte.

    `digest` is None for a store that is not sealed, or whose seal is damaged; `condemned` lists what was removed.
    """

    root: str
    digest: str | None
    deep: bool
    units_done: int
    units: int
    objects: int
    bytes: int
    problems: tuple[Problem, ...]
    condemned: tuple[str, ...]


def verify(root: str, *, deep: bool = False, condemn: bool = False, watch: Watch = unwatched) -> Verified:
    """Check presence and sizes, with `deep` every sha256, of a store, sealed or not.

    With `condemn` the seal goes, and of what is bad the receipts or the files: `extract` then makes just that again.
    Raises StoreError where there is no store at all.
    """
    place = place_of(root)
    manifest = read_manifest(place)
    plan = _plan(place, manifest)
    present = place.sizes()
    lacks = unsealed(manifest, plan) if manifest is not None and plan is not None else {}
    problems = [Problem(key, what) for key, what in lacks.items()]
    if manifest is None and MANIFEST in present:
        problems.append(Problem(MANIFEST, "is damaged: it does not agree with its own checksum"))
    planned = {FILES, *plan.units()} if plan is not None and not lacks else set()
    standing = all_receipts(place)
    receipts = {unit: standing[unit] for unit in planned if unit in standing}
    entries = manifest.objects if manifest is not None else _unsealed_entries(plan, receipts)
    shards: dict[Unit | None, dict[str, dict[str, Any]]] = {}
    for key, entry in entries.items():
        shards.setdefault(unit_of(key), {})[key] = entry
    problems += _bad_receipts(plan, None if manifest is None else shards, present, planned, receipts)
    files = shards.pop(None, {})
    bad = faults(place, present, files)
    if manifest is not None and plan is None and PLAN not in bad:
        bad[MANIFEST] = "is the seal of another plan"
    if plan is not None and not lacks:
        bad |= _misdescribed(place, plan, {key: entry for key, entry in files.items() if key not in bad})
    problems += [Problem(key, what) for key, what in bad.items()]
    rows = 0
    for unit in sorted(filter(None, shards)):
        found = faults(place, present, shards[unit], deep=deep)
        problems += [Problem(key, what, *unit) for key, what in found.items()]
        if plan is not None and unit[0] in plan.splits:
            rows += plan.splits[unit[0]].rows_of(unit[1])
            watch("verify", rows, sum(split.rows for split in plan.splits.values()))
    return Verified(
        root=place.root,
        digest=None if manifest is None else manifest.digest,
        deep=deep,
        units_done=len(receipts.keys() - {FILES}),
        units=len(planned - {FILES}),
        objects=len(entries) + len(receipts),
        bytes=sum(entry["size"] for entry in entries.values()),
        problems=tuple(problems),
        condemned=_condemn(place, problems, manifest) if condemn and problems else (),
    )


def _plan(place: Place, manifest: Manifest | None) -> Plan | None:
    """The plan, unless it is not the one that was sealed. Raises StoreError for one that no reader takes."""
    if manifest is not None and fingerprint(place.get(PLAN) or b"")["sha256"] != manifest.store_id:
        return None
    return read_plan(place)


def _bad_receipts(
    plan: Plan | None,
    sealed: Mapping[Unit | None, Mapping[str, object]] | None,
    present: Mapping[str, int],
    planned: Collection[Unit],
    receipts: Mapping[Unit, Receipt],
) -> Iterator[Problem]:
    """What is wrong with the receipts of the planned units; `sealed` are the seal's entries by unit.

    Before the seal, a unit without a receipt is simply not made yet.
    """
    words = codebooks_sha256(receipts[BOOKS].objects) if BOOKS in receipts else None
    for unit in sorted(planned):
        key, receipt = receipt_key(*unit), receipts.get(unit)
        if receipt is None and key in present:
            yield Problem(key, "is damaged: it does not agree with its own checksum, or is that of another unit", *unit)
        elif receipt is None:
            if sealed is not None:
                yield Problem(key, "is missing", *unit)
        elif sealed is not None and receipt.objects != sealed.get(unit, {}):
            yield Problem(key, "does not agree with the seal", *unit)
        elif sealed is None and words is not None and receipt.made.get(CODEBOOKS, words) != words:
            yield Problem(key, "is of codes in other codebooks than the store's", *unit)
        elif plan is not None and unit != FILES:
            rows = plan.rows_of(unit)
            if not {spec.key(path, unit[1]) for path, spec in plan.arrays_of(unit[0]).items()} <= receipt.objects.keys():
                yield Problem(key, "does not list the unit's objects", *unit)
            elif receipt.rows != rows:
                yield Problem(key, f"tells of {receipt.rows} rows instead of {rows}", *unit)


def _misdescribed(place: Place, plan: Plan, sealed: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """Documents that agree with the seal and not with the plan."""
    documents = plan.documents()
    suspect = [key for key in documents if key in sealed and sealed[key] != fingerprint(documents[key])]
    return {
        key: "does not describe the planned arrays" for key in suspect if not describes(place.get(key) or b"", documents[key])
    }


def _unsealed_entries(plan: Plan | None, receipts: Mapping[Unit, Receipt]) -> dict[str, dict[str, Any]]:
    """What must be there of a store that has no seal yet."""
    assert plan is not None
    entries = planned_files(plan)
    for receipt in receipts.values():
        entries |= receipt.objects
    return entries


def _condemn(place: Place, problems: Sequence[Problem], manifest: Manifest | None) -> tuple[str, ...]:
    """Take the seal away, then the receipts of the bad units and the bad files: a crash on the way leaves no seal."""
    if any(problem.key == PLAN for problem in problems):
        return ()
    if manifest is not None:
        place.put_all({CONDEMNED: with_check({"digest": manifest.digest})})
    keys = [MANIFEST] if place.get(MANIFEST) is not None else []
    for problem in problems:
        if problem.split is not None and problem.unit is not None:
            if (problem.split, problem.unit) == BOOKS:
                keys.append(problem.key)  # which is put create-only: what stands in its place would stay
            keys.append(receipt_key(problem.split, problem.unit))
        else:
            keys.append(problem.key)
    keys = list(dict.fromkeys(keys))
    for key in keys:
        place.delete(key)
    return tuple(keys)
