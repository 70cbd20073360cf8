"""A crash at any single put: the same run again seals the same bytes.

The process dies just before a put, just after it, in the middle of it (obstore then leaves a temporary file), or leaves a torn
object under the final name, as a power cut can.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest

from tests.faults.conftest import Campaign
from tests.faults.runs import Child, Extraction, assert_whole, make_store, puts_of, sealed_bytes
from tests.store.conftest import tree

CRASHED = 86
SEED = 7

TEARS: dict[str, Callable[[bytes], bytes]] = {
    "half of it written": lambda data: data[: len(data) // 2],
    "nothing of it written": lambda data: b"",
    "zeros written": lambda data: bytes(len(data)),
}
"""What a file may hold whose name outlived a power cut and whose bytes did not."""

CRASHES = ("before", "after", "in a temporary file", *TEARS)


def put_and_die(number: int, crash: str, die: Callable[[], Any]) -> Callable[..., Any]:
    """obstore.put as a process sees it that dies at its n-th: nothing that it does later arrives."""
    put, lock, puts = obstore.put, threading.Lock(), 0

    def dying(store: Any, key: str, data: bytes, **options: Any) -> Any:
        nonlocal puts
        with lock:
            puts += 1
            if puts < number:
                return put(store, key, data, **options)
            if puts == number and crash == "after":
                put(store, key, data, **options)
            if puts == number and crash == "in a temporary file":
                Path(store.prefix, f"{key}#1").write_bytes(data[: len(data) // 2])
            if puts == number and crash in TEARS:
                Path(store.prefix, key).write_bytes(TEARS[crash](data))
            return die()

    return dying


def extract_and_die(extraction: Extraction, out: Path, number: int, crash: str) -> None:
    obstore.put = put_and_die(number, crash, lambda: os._exit(CRASHED))
    extraction.into(out)


def test_an_extraction_that_dies_at_any_put_goes_on_to_the_same_bytes(
    teacher_folder: str, data_folder: str, campaign: Campaign, tmp_path: Path
) -> None:
    began = time.monotonic()
    extraction = Extraction(teacher_folder, data_folder, ("1,9,0.1",))
    digests, puts = Child(puts_of, extraction, tmp_path / "alone").result()
    cases = [(number, crash) for number in range(1, len(puts) + 1) for crash in CRASHES[:4]]
    tries = campaign.tries(4, len(cases))
    for index in sorted(np.random.default_rng(SEED).choice(len(cases), tries, replace=False)):
        number, crash = cases[index]
        where = f"died at put {number} of {len(puts)}, {crash}"
        out = tmp_path / str(index)
        child = Child(extract_and_die, extraction, out, number, crash)
        assert child.result() is None and child.process.exitcode == CRASHED, where
        assert Child(extraction.into, out).result() == digests, where
        assert_whole(extraction.roots(out)[0], digests[0], where)
    outcome = "the digest of an uninterrupted run each time, 0 rows lost or doubled, nothing stranded"
    campaign.record(
        f"crash at every one of the {len(puts)} puts of an extraction: before, amid, after, torn", tries, outcome, began
    )


class Died(BaseException):
    """The process is gone."""


def died() -> None:
    raise Died


def test_a_crash_at_any_put_and_any_torn_object_are_made_good_by_the_next_run(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a dead process cannot tell whether its bytes were flushed
    digest = make_store(tmp_path / "alone")
    puts = len(tree(tmp_path / "alone"))
    for number in range(1, puts + 1):
        for crash in CRASHES:
            where = f"died at put {number} of {puts}, {crash}"
            root = tmp_path / f"{number} {crash}"
            with monkeypatch.context() as patch, pytest.raises(Died):
                patch.setattr(obstore, "put", put_and_die(number, crash, died))
                make_store(root)
            assert make_store(root) == digest, where
            assert sealed_bytes(root) == sealed_bytes(tmp_path / "alone"), where
            assert len(tree(root)) == puts, where
    with monkeypatch.context() as patch:
        patch.setattr(obstore, "put", put_and_die(puts + 1, "before", died))
        make_store(tmp_path / "no more puts")
    outcome = "the same digest and the same bytes each time; a torn receipt or seal counts as none"
    fault = f"crash at every one of the {puts} puts of a store: before, amid, after, torn to half, empty or zeros"
    campaign.record(fault, puts * len(CRASHES), outcome, began)
