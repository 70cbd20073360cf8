"""A killed extraction goes on: the same command again ends with the bytes of an uninterrupted one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hskstore.store.commit import receipts
from hskstore.store.objects import Objects
from tests.conftest import write_tsv
from tests.faults.conftest import Campaign
from tests.faults.runs import PATIENCE, Child, Extraction, assert_whole

KEEPS = ("1,9,0.1", "all,4,0.5")
SEED = 20260


@pytest.fixture(scope="module")
def extraction(teacher_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Extraction:
    """Eight jobs of train and one of validation, two stores: 18 units."""
    data = tmp_path_factory.mktemp("data")
    write_tsv(data / "train.tsv", 4000, seed=1)
    write_tsv(data / "dev.tsv", 60, seed=2)
    return Extraction(teacher_folder, str(data), KEEPS)


def units_done(extraction: Extraction, out: Path) -> int:
    return sum(len(receipts(Objects(root))) for root in extraction.roots(out))


def test_an_extraction_killed_at_random_moments_ends_with_the_bytes_of_an_uninterrupted_one(
    extraction: Extraction, campaign: Campaign, tmp_path: Path
) -> None:
    began = time.monotonic()
    Child(units_done, extraction, tmp_path).result()  # the first one waits for the libraries
    ready = time.monotonic()
    digests = Child(extraction.into, tmp_path / "alone").result()
    seconds = time.monotonic() - ready
    rng = np.random.default_rng(SEED)
    kills, stores, done = campaign.tries(4, 100), 0, []
    while len(done) < kills:
        out = tmp_path / str(stores)
        moments: list[float] = []
        while True:
            moments.append(rng.uniform(0, seconds))
            child = Child(extraction.into, out)
            if not child.kill_after(moments[-1]):
                break
            done.append(units_done(extraction, out))
        where = f"seed {SEED}, extraction {stores}, killed after {moments[:-1]} s"
        assert child.result() == digests, where
        for root, digest in zip(extraction.roots(out), digests, strict=True):
            assert_whole(root, digest, where)
        stores += 1
    outcome = (
        f"{stores} extractions of 9 jobs went on after {len(done)} kills, with {min(done)} to {max(done)} of 18 units done: the"
        " digests of an uninterrupted one, 0 rows lost or doubled"
    )
    campaign.record("process killed (SIGKILL) at a random moment of extract, then the same call again", len(done), outcome, began)


def test_hsk_extract_that_is_killed_goes_on_with_the_same_command(
    extraction: Extraction, campaign: Campaign, tmp_path: Path
) -> None:
    began = time.monotonic()
    digests = Child(extraction.into, tmp_path / "alone").result()
    rng = np.random.default_rng(SEED)
    kills = campaign.tries(1, 5)
    for step in range(kills):
        out = tmp_path / str(step)
        keeps = [word for keep in KEEPS for word in ("--keep", keep)]
        options = ["--task", "sst2", "--student-layers", "2", "--out", str(out), "--json"]
        command = [sys.executable, "-m", "hskstore", "extract", extraction.teacher, extraction.data, *keeps, *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        enough = int(rng.integers(1, 16))
        where = f"seed {SEED}, step {step}, killed with {enough} of 18 units done"
        first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while units_done(extraction, out) < enough:
            assert first.poll() is None and time.monotonic() < began + PATIENCE * (step + 1), where
            time.sleep(0.01)
        first.kill()
        assert first.wait() == -signal.SIGKILL, where
        assert not any((root / "manifest.json").exists() for root in extraction.roots(out)), where
        again = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert again.returncode == 0, (where, again.stderr)
        assert tuple(store["digest"] for store in json.loads(again.stdout)) == digests, where
        for root, digest in zip(extraction.roots(out), digests, strict=True):
            assert_whole(root, digest, where)
    campaign.record("`hsk extract` killed (SIGKILL), then the same command again", kills, "the same digests each time", began)
