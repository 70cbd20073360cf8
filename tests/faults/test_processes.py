"""Several processes that extract the same store at once get in nobody's way: all end well, with one digest."""

import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from hskstore.store import open_store
from hskstore.store.commit import seal
from hskstore.store.objects import Objects
from tests.conftest import write_tsv
from tests.faults.conftest import Campaign
from tests.faults.runs import PATIENCE, PROCESSES, Child, Extraction, assert_whole

KEEPS = ("1,9,0.1", "all,4,0.5")


def extract_when_all_are_there(extraction: Extraction, out: Path, barrier: Barrier) -> tuple[str, ...]:
    barrier.wait(PATIENCE)
    return extraction.into(out)


def test_processes_that_extract_the_same_stores_at_once_end_with_the_same_digests(
    teacher_folder: str, data_folder: str, campaign: Campaign, tmp_path: Path
) -> None:
    began = time.monotonic()
    if campaign.full:
        data_folder = str(tmp_path / "data")
        Path(data_folder).mkdir()
        write_tsv(Path(data_folder, "train.tsv"), 4000, seed=1)
        write_tsv(Path(data_folder, "dev.tsv"), 60, seed=2)
    extraction = Extraction(teacher_folder, data_folder, KEEPS)
    digests = Child(extraction.into, tmp_path / "alone").result()
    runs = campaign.tries(2, 10)
    for run in range(runs):
        processes = (2, 4)[run % 2]
        where = f"run {run}, {processes} processes"
        out = tmp_path / str(run)
        barrier = PROCESSES.Barrier(processes)
        children = [Child(extract_when_all_are_there, extraction, out, barrier) for _ in range(processes)]
        assert [child.result() for child in children] == [digests] * processes, where
        assert [child.process.exitcode for child in children] == [0] * processes, where
        for root, digest in zip(extraction.roots(out), digests, strict=True):
            assert seal(Objects(root), open_store(root).plan) == digest, where
            assert_whole(root, digest, where)
    outcome = "every process ended with the digest of a lone run; stores verified to the last byte, nothing stranded"
    campaign.record("two and four processes extracting the same stores at once", runs, outcome, began)
