"""A disk that fills at any stage: one message says so, what was finished is kept, and the same run goes on once there is room."""

import errno
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import obstore

from hskstore.config import Keep
from hskstore.errors import HskError, StoreError
from hskstore.methods import Mud
from hskstore.stage_two.distill import distill
from hskstore.stage_two.recipe import Recipe
from hskstore.store.commit import all_receipts, faults
from hskstore.store.copy import copy_store
from hskstore.store.derive import derive
from hskstore.store.objects import Objects
from tests.faults.conftest import Campaign
from tests.faults.runs import Child, Extraction, assert_whole, puts_of

PAGE = 4096
ROOM = 64 * 2**20
SMALL, BIG = KEEPS = ("1,9,0.1", "all,4,0.5")
STAGES = [
    "d1-l9-w0.1/train/zarr.json",
    "d1-l9-w0.1/tokenizer/tokenizer.json",
    "d1-l9-w0.1/units/files-000000.json",
    "dall-l4-w0.5/plan.json",
    "d1-l9-w0.1/train/hidden/values/c/0/0/0/0",
    "d1-l9-w0.1/units/train-000000.json",
    "dall-l4-w0.5/train/hidden/values/c/1/0/0/0",
    "dall-l4-w0.5/units/train-000001.json",
    "dall-l4-w0.5/units/validation-000000.json",
    "dall-l4-w0.5/manifest.json",
]
"""The first object that has no room."""


class Disk:
    """A folder with room for so many pages: a disk of its own where one may be mounted, else puts that run out of room."""

    def __init__(self, folder: Path, pages: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.pages: int | None = pages
        try:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={pages * PAGE}", "tmpfs", str(folder)]
            self.real = subprocess.run(mount, capture_output=True).returncode == 0
        except FileNotFoundError:
            self.real = False

    def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return Child(on_disk, None if self.real or self.pages is None else self.pages - self.used(), work, *arguments).result()

    def make_room(self) -> None:
        self.pages = None
        if self.real:
            subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(self.folder)], check=True)

    def used(self) -> int:
        """Pages."""
        return sum(-(-path.stat().st_size // PAGE) for path in self.folder.rglob("*") if path.is_file())


@contextmanager
def disk(folder: Path, pages: int) -> Iterator[Disk]:
    found = Disk(folder, pages)
    try:
        yield found
    finally:
        if found.real:
            subprocess.run(["umount", str(folder)], check=True)


def on_disk(pages: int | None, work: Callable[..., Any], *arguments: Any) -> Any:
    """Work in a process whose puts have room for so many pages."""
    if pages is not None:
        put, lock, left = obstore.put, threading.Lock(), pages

        def put_while_there_is_room(store: Any, key: str, data: bytes, **options: Any) -> Any:
            nonlocal left
            with lock:
                left -= -(-len(data) // PAGE)
                if left < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return put(store, key, data, **options)

        obstore.put = put_while_there_is_room
    return work(*arguments)


def assert_said_to_be_full(found: Any, where: str) -> None:
    assert isinstance(found, StoreError), (where, found)
    said = r".*: the disk is full\. What was finished is kept: make room and run the same command again"
    assert re.fullmatch(said, str(found)), (where, found)


def receipts_of(extraction: Extraction, out: Path, where: str) -> dict[str, bytes]:
    """Every receipt, by its path; the objects of each must be there and whole."""
    found: dict[str, bytes] = {}
    for root in extraction.roots(out):
        objects = Objects(root)
        for receipt in all_receipts(objects).values():
            assert faults(objects, objects.sizes(), receipt.objects) == {}, where
            found[f"{root}/{receipt.key}"] = receipt.to_bytes()
    return found


def test_an_extraction_onto_a_full_disk_says_so_and_goes_on_where_it_was_once_there_is_room(
    teacher_folder: str, data_folder: str, campaign: Campaign, tmp_path: Path
) -> None:
    began = time.monotonic()
    extraction = Extraction(teacher_folder, data_folder, KEEPS)
    digests, puts = Child(puts_of, extraction, tmp_path / "alone").result()
    tries = campaign.tries(3, len(STAGES))
    for index in np.linspace(0, len(STAGES) - 1, tries).astype(int):
        before = [size for _, size in puts[: [path for path, _ in puts].index(STAGES[index])]]
        where = f"no room for {STAGES[index]}"
        with disk(tmp_path / str(index), sum(-(-size // PAGE) for size in before)) as small:
            assert_said_to_be_full(small.run(extraction.into, small.folder), where)
            kept = receipts_of(extraction, small.folder, where)
            assert_said_to_be_full(small.run(extraction.into, small.folder), f"{where}, again")
            assert receipts_of(extraction, small.folder, where).items() >= kept.items(), where
            small.make_room()
            assert small.run(extraction.into, small.folder) == digests, where
            assert receipts_of(extraction, small.folder, where).items() >= kept.items(), where
            for root, digest in zip(extraction.roots(small.folder), digests, strict=True):
                assert_whole(root, digest, where)
    outcome = "said to be full each time, finished units kept, the same digests once there was room"
    campaign.record("disk full (a small tmpfs) at any stage of an extraction", tries, outcome, began)


def copied(source: str, out: Path) -> str:
    return copy_store(source, str(out)).digest


def derived(source: str, out: Path) -> str:
    return derive(source, out, keep=Keep.parse("1,2,0.25")).digest


def distilled(source: str, student: str, out: Path) -> bytes:
    distill(source, Recipe(student, Mud(), epochs=(1,)), out=out, device="cpu")
    return (out / "model.safetensors").read_bytes()


def test_copies_cuts_and_students_onto_a_full_disk_end_in_one_message_and_go_on_once_there_is_room(
    teacher_folder: str, student_folder: str, data_folder: str, campaign: Campaign, tmp_path: Path
) -> None:
    began = time.monotonic()
    extraction = Extraction(teacher_folder, data_folder, (BIG,))
    Child(extraction.into, tmp_path / "stores").result()
    source = str(extraction.roots(tmp_path / "stores")[0])
    tries = campaign.tries(1, 8)
    for name, work in {
        "copy": (copied, source),
        "derive": (derived, source),
        "distill": (distilled, source, student_folder),
    }.items():
        with disk(tmp_path / name, ROOM // PAGE) as big:
            expected = big.run(*work, big.folder / "out")
            used = big.used()
        if name == "distill" and not big.real:
            continue  # what trains does not put
        for pages in ((np.arange(tries) + 0.5) / tries * used).astype(int).tolist():
            where = f"{name} with room for {pages} of {used} pages"
            with disk(tmp_path / f"{name}-{pages}", pages) as small:
                refused = small.run(*work, small.folder / "out")
                if name == "distill":
                    assert isinstance(refused, HskError) and "make room" in str(refused) and "\n" not in str(refused), (
                        where,
                        refused,
                    )
                else:
                    assert_said_to_be_full(refused, where)
                small.make_room()
                assert small.run(*work, small.folder / "out") == expected, where
    outcome = "one message each time; the same digest, or student, once there was room"
    campaign.record("disk full (a small tmpfs) at any stage of a copy, a derivation, a distillation", 3 * tries, outcome, began)
