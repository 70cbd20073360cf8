"""Every order of events at the commit layer: a sealed store equals the model, or the seal names what is bad. Nothing else.

Blobs are opaque. A writer may crash after any put; what it had still to put may arrive later, from a zombie. Some writers have
other last bits (variant 1: another device). Objects get lost, flipped, cut; receipts turn up under another unit's name.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from hskstore.errors import StoreError
from hskstore.store import commit, objects, verify
from hskstore.store.commit import Receipt, begin, commit_unit, examine, receipt_key, seal
from hskstore.store.objects import Objects
from hskstore.store.plan import Plan
from hskstore.store.reader import open_at, unit_of
from hskstore.store.shard import fingerprint
from tests.faults.conftest import Campaign
from tests.store.conftest import FILES, make_plan

PLAN: Plan = make_plan(rows=16, validation_rows=7, labels=None)
UNITS = list(PLAN.units())
KEYS = {unit: [spec.key(path, unit[1]) for path, spec in PLAN.arrays_of(unit[0]).items()] for unit in UNITS}
RECEIPT_KEYS = [receipt_key(*unit) for unit in (*UNITS, commit.FILES)]
DAMAGEABLE = [key for keys in KEYS.values() for key in keys] + [*FILES, *RECEIPT_KEYS, commit.MANIFEST, *PLAN.documents()]

THEIRS = "train/notes.txt"
"""A file of the user's in a folder of the store's."""


def blobs_of(unit: tuple[str, int], variant: int) -> dict[str, bytes]:
    return {key: f"{key} {variant}".encode() for key in KEYS[unit]}


class Crash(BaseException):
    """The process is gone."""


@dataclass
class Late:
    """A put that was on its way when its process died; `over` are the bytes that alone it may replace."""

    key: str
    data: bytes
    create: bool = False
    over: bytes | None = None

    def arrive(self, place: Objects) -> None:
        if self.over is None:
            place.put(self.key, self.data, create=self.create)
        else:
            place.replace(self.key, self.over, self.data)


class Memory(Objects):
    """An object store in memory whose writer can die, or lose an acknowledgement, at a given put."""

    def __init__(self) -> None:
        super().__init__("memory://store")
        self.__dict__["_store"] = MemoryStore()
        self.dies_at: int | None = None
        self.loses_answer_of: str | None = None
        self.late: list[Late] = []

    def put(self, key: str, data: bytes, *, create: bool = False) -> bool:
        self.live(Late(key, data, create))
        done = super().put(key, data, create=create)
        if key == self.loses_answer_of:
            self.loses_answer_of = None
            if create and done:
                raise StoreError("the answer got lost") from GenericError("")
        return done

    def replace(self, key: str, over: bytes, data: bytes) -> bool:
        self.live(Late(key, data, over=over))
        done = super().replace(key, over, data)
        if done and key == self.loses_answer_of:
            self.loses_answer_of = None
            raise StoreError("the answer got lost") from GenericError("")
        return done

    def live(self, late: Late) -> None:
        """Go on to a put, unless the process dies at it."""
        if self.dies_at is not None:
            self.dies_at -= 1
            if self.dies_at < 0:
                self.late.append(late)
                raise Crash

    def put_all(self, found: Any) -> None:
        crashed = False
        for key, data in found.items():  # in order, so that an example can be replayed
            try:
                self.put(key, data)
            except Crash:
                crashed = True
        if crashed:
            raise Crash


class Store(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.place = Memory()
        self.zombies: list[Late] = []
        self.attempts = 0
        self.strewn = False

    @initialize()
    def plan(self) -> None:
        begin(self.place, PLAN, FILES)

    def receipt(self, unit: tuple[str, int], variant: int) -> Receipt:
        self.attempts += 1
        entries = {key: fingerprint(blob) for key, blob in blobs_of(unit, variant).items()}
        rows = PLAN.splits[unit[0]].rows_of(unit[1])
        return Receipt(*unit, rows, f"attempt {self.attempts}", entries, {"variant": variant})

    def standing_variant(self, unit: tuple[str, int]) -> int | None:
        receipt = commit.read_receipt(self.place, receipt_key(*unit))
        return None if receipt is None else receipt.made["variant"]

    @rule(unit=st.sampled_from(UNITS), variant=st.sampled_from([0, 0, 0, 1]), lost=st.booleans())
    def finish(self, unit: tuple[str, int], variant: int, lost: bool) -> None:
        """A whole attempt; the answer to its receipt may get lost. Only a rival with other bytes stops it."""
        receipt = self.receipt(unit, variant)
        self.place.loses_answer_of = receipt.key if lost else None
        rival = self.standing_variant(unit)
        try:
            commit_unit(self.place, receipt, blobs_of(unit, variant))
        except StoreError as refused:
            assert rival is not None and rival != variant, refused
            assert receipt.key in str(refused)
        else:
            assert self.standing_variant(unit) == variant
        self.place.loses_answer_of = None

    @rule(unit=st.sampled_from(UNITS), variant=st.sampled_from([0, 0, 1]), after=st.integers(0, 14))
    def crash(self, unit: tuple[str, int], variant: int, after: int) -> None:
        """An attempt that dies after some puts; the others are on their way."""
        self.place.dies_at = after
        with suppress(Crash, StoreError):
            commit_unit(self.place, self.receipt(unit, variant), blobs_of(unit, variant))
        self.place.dies_at = None
        self.zombies += self.place.late
        self.place.late = []

    @precondition(lambda self: self.zombies)
    @rule(data=st.data())
    def zombie(self, data: st.DataObject) -> None:
        """A put of a dead process arrives."""
        self.zombies.pop(data.draw(st.integers(0, len(self.zombies) - 1))).arrive(self.place)

    @rule(key=st.sampled_from(DAMAGEABLE))
    def delete(self, key: str) -> None:
        self.place.delete(key)

    @rule(key=st.sampled_from(DAMAGEABLE), bit=st.integers(0, 10_000))
    def flip(self, key: str, bit: int) -> None:
        data = bytearray(self.place.get(key) or b"")
        if data:
            data[bit // 8 % len(data)] ^= 1 << bit % 8
            self.place.put(key, bytes(data))

    @rule(key=st.sampled_from(DAMAGEABLE), left=st.integers(0, 40))
    def truncate(self, key: str, left: int) -> None:
        data = self.place.get(key)
        if data is not None:
            self.place.put(key, data[:left])

    @rule(unit=st.sampled_from(UNITS), other=st.sampled_from(UNITS))
    def duplicate_receipt(self, unit: tuple[str, int], other: tuple[str, int]) -> None:
        data = self.place.get(receipt_key(*unit))
        if data is not None:
            self.place.put(receipt_key(*other), data)

    @rule(key=st.sampled_from(["train/logits/c/99/0", "units/train-000099.json", THEIRS]))
    def strew(self, key: str) -> None:
        """Something that no unit owns: a writer's of an earlier plan, which the seal sweeps, or the user's, which it does not."""
        self.place.put(key, b"nobody's")
        self.strewn |= key == THEIRS

    @rule()
    def seal(self) -> None:
        self.seal_or_name()

    def seal_or_name(self) -> bool:
        bad = self.bad_objects()
        try:
            digest = seal(self.place, PLAN)
        except StoreError as refused:
            assert any(key in str(refused) for key in bad), (str(refused), bad)
            return False
        assert not bad, bad
        self.assert_equals_the_model(digest)
        return True

    def bad_objects(self) -> set[str]:
        """The model's own view: what is missing, or not what the standing receipts say."""
        bad = {key for key, data in {**PLAN.documents(), "plan.json": PLAN.to_bytes()}.items() if self.place.get(key) != data}
        for unit in (commit.FILES, *UNITS):
            receipt = commit.read_receipt(self.place, receipt_key(*unit))
            if receipt is None:
                bad.add(receipt_key(*unit))
                continue
            right = FILES if unit == commit.FILES else blobs_of(unit, receipt.made["variant"])
            bad |= {key for key, data in right.items() if self.place.get(key) != data}
        return bad

    def ownerless(self) -> set[str]:
        """Objects of units that have no receipt."""
        return {
            key
            for unit, keys in {commit.FILES: list(FILES), **KEYS}.items()
            if commit.read_receipt(self.place, receipt_key(*unit)) is None
            for key in keys
        }

    def receipts_unlike(self, manifest: commit.Manifest) -> set[str]:
        """The receipts that are not there, or tell of other bytes than the seal."""
        found = {key: commit.read_receipt(self.place, key) for key in RECEIPT_KEYS}
        return {
            key
            for key, receipt in found.items()
            if receipt is None or any(manifest.objects[name] != entry for name, entry in receipt.objects.items())
        }

    def unlike_the_seal(self) -> set[str]:
        """What is not as a seal that stands says."""
        manifest = commit.read_manifest(self.place)
        listed = manifest.objects if manifest is not None else {}
        return {key for key, entry in listed.items() if fingerprint(self.place.get(key) or b"")["sha256"] != entry["sha256"]}

    def assert_equals_the_model(self, digest: str) -> None:
        store = open_at(self.place)
        assert store.digest == digest
        for unit in UNITS:
            variant = self.standing_variant(unit)
            assert variant is not None
            assert {key: store.file(key) for key in KEYS[unit]} == blobs_of(unit, variant)
        assert {key: store.file(key) for key in FILES} == FILES
        listed = {*store.sizes(), *(receipt_key(*unit) for unit in (commit.FILES, *UNITS)), commit.MANIFEST}
        assert self.place.sizes().keys() - {THEIRS} == listed, "what nobody owns was swept"
        assert self.place.get(THEIRS) == (b"nobody's" if self.strewn else None)

    @rule()
    def read(self) -> None:
        """A sealed store never returns a wrong byte, whatever happened since."""
        try:
            store = open_at(self.place)
        except StoreError:
            return
        for key in store.sizes():
            unit = unit_of(key)
            try:
                found = store.file(key)
            except StoreError as refused:
                assert key in str(refused)
                continue
            if unit is None or unit == commit.FILES:
                assert found == {**FILES, **PLAN.documents(), "plan.json": PLAN.to_bytes()}[key]
            else:
                assert found in (blobs_of(unit, 0)[key], blobs_of(unit, 1)[key])
                assert fingerprint(found) == store.manifest.objects[key]

    @rule(condemn=st.booleans())
    def look(self, condemn: bool) -> None:
        """verify --deep names what is bad, all of it and nothing else: of a sealed store what is not as the seal says."""
        manifest = commit.read_manifest(self.place)
        if manifest is None:
            bad = self.bad_objects() - self.ownerless() - {key for key in RECEIPT_KEYS if self.place.get(key) is None}
            bad |= {commit.MANIFEST} & self.place.sizes().keys()
        else:
            bad = self.unlike_the_seal() | self.receipts_unlike(manifest)
        assert {problem.key for problem in verify.verify("", deep=True, condemn=condemn).problems} == bad

    @rule()
    def extract_again(self) -> None:
        """The same command again; where it names something, condemning it and once more is enough."""
        for _ in range(2):
            bad = self.bad_objects() | self.unlike_the_seal()
            try:
                standing = examine(self.place, PLAN)
            except StoreError as refused:
                assert any(key in str(refused) for key in bad), (str(refused), bad)
            else:
                if standing.digest is None:
                    self.make_what_is_missing(standing.finished)
                    if self.seal_or_name():
                        return
                elif not verify.verify("", deep=True).problems:
                    return
            verify.verify("", deep=True, condemn=True)
        raise AssertionError("neither sealed nor named for good")

    def make_what_is_missing(self, finished: frozenset[tuple[str, int]]) -> None:
        begin(self.place, PLAN, FILES)
        for unit in UNITS:
            if unit not in finished:
                commit_unit(self.place, self.receipt(unit, 0), blobs_of(unit, 0))


@pytest.fixture(autouse=True)
def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` looks into the place that was made last; objects move one by one, so that an example can be replayed. Memory is
    known to keep writers apart, so that every put is one."""
    latest: list[Memory] = []
    monkeypatch.setattr(objects, "PARALLEL", 1)
    monkeypatch.setattr(objects, "MANY_WRITERS", {"memory://store"})
    monkeypatch.setattr(verify, "place_of", lambda _: latest[-1])
    make = Memory.__init__

    def remember(memory: Memory) -> None:
        make(memory)
        latest.append(memory)

    monkeypatch.setattr(Memory, "__init__", remember)


VALIDATION = ("validation", 0)


@pytest.mark.parametrize("puts", range(len(KEYS[VALIDATION]) + 2))
def test_a_late_receipt_is_not_written_over_one_that_was_laid_meanwhile(puts: int) -> None:
    store = Store()
    store.plan()
    store.extract_again()
    store.duplicate_receipt(("train", 0), VALIDATION)
    store.crash(VALIDATION, variant=1, after=puts)
    store.extract_again()
    for late in store.zombies:
        late.arrive(store.place)
    assert store.standing_variant(VALIDATION) == 0
    store.look(condemn=False)
    store.extract_again()


def test_a_receipt_that_tells_of_other_bytes_than_the_seal_is_named_and_the_sealed_objects_are_not() -> None:
    store = Store()
    store.plan()
    store.extract_again()
    store.delete(receipt_key(*VALIDATION))
    store.crash(VALIDATION, variant=0, after=0)
    store.finish(VALIDATION, variant=1, lost=False)
    store.look(condemn=False)
    for late in store.zombies:
        late.arrive(store.place)
    store.look(condemn=False)
    assert [problem.key for problem in verify.verify("", deep=True).problems] == [receipt_key(*VALIDATION)]
    store.extract_again()


def test_a_sealed_store_equals_the_model_or_the_seal_names_the_unit(campaign: Campaign) -> None:
    began = time.monotonic()
    examples = campaign.tries(150, 5000)
    run_state_machine_as_test(
        Store,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        ),
    )
    campaign.record(
        "any order of start, finish, crash, zombie, delete, flip, seal, condemn, resume",
        examples,
        "sealed store = model, or the seal names the unit",
        began,
    )
