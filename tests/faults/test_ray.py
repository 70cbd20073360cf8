"""Machines and workers of a Ray cluster that are lost cost time alone: the store ends with the digest of one process."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from ray.cluster_utils import Cluster

from hskstore.config import Keep, Strategy
from hskstore.stage_one.extract import extract
from hskstore.stage_one.jobs import Job
from hskstore.stage_one.worker import UnitWorker, recruit
from tests.conftest import write_tsv
from tests.faults.conftest import Campaign
from tests.faults.runs import PATIENCE, Child, Extraction, assert_whole
from tests.faults.test_kill import units_done

KEEPS = ("1,9,0.1", "all,4,0.5")
SEED = 20261
MOST = 6
"""Kills of one extraction, so that it ends."""


class Slow(UnitWorker):
    """So that most of a run is jobs, and not the start of workers."""

    def run(self, job: Job) -> None:
        time.sleep(0.4)
        super().run(job)

    def _commit(self, *unit: Any) -> None:
        time.sleep(0.2)
        super()._commit(*unit)


def recruit_slow(*arguments: Any) -> UnitWorker:
    worker = recruit(*arguments)
    worker.__class__ = Slow
    return worker


def extract_on(address: str, extraction: Extraction, out: Path) -> tuple[str | None, ...]:
    """In a process of its own: the digests."""
    import hskstore.stage_one.extract

    hskstore.stage_one.extract.recruit = recruit_slow  # type: ignore[assignment]
    torch.set_num_threads(1)
    keeps = [Keep.parse(keep) for keep in extraction.keeps]
    options: dict[str, Any] = {"strategies": [Strategy(2)], "task": "sst2", "engine": "ray", "address": address, "workers": 2}
    return tuple(store.digest for store in extract(extraction.teacher, extraction.data, out=out, keeps=keeps, **options))


def workers() -> list[psutil.Process]:
    """The actors of every node: all nodes are on this machine, started by this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "ray::_Actor" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head, which does no work, and two nodes with a core each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            made.add_node(num_cpus=1)
        yield made
    finally:
        made.shutdown()
        left = [process for process in psutil.Process().children() if process.name() in ("raylet", "gcs_server")]
        for process in [*left, *workers()]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def test_nodes_and_workers_killed_at_random_moments_of_an_extraction_do_not_show_in_its_stores(
    cluster: Cluster, teacher_folder: str, campaign: Campaign, tmp_path: Path
) -> None:
    began = time.monotonic()
    data = tmp_path / "data"
    data.mkdir()
    write_tsv(data / "train.tsv", 4000, seed=1)
    write_tsv(data / "dev.tsv", 60, seed=2)
    extraction = Extraction(teacher_folder, str(data), KEEPS)
    digests = Child(extraction.into, tmp_path / "alone").result()
    rng = np.random.default_rng(SEED)
    kills = campaign.tries(2, 40)
    kinds, stores = rng.permutation(["worker", "node"] * (kills // 2)).tolist(), 0
    while kinds:
        out = tmp_path / str(stores)
        where = f"seed {SEED}, extraction {stores}, {len(kinds)} kills to come"
        child = Child(extract_on, cluster.address, extraction, out)
        deadline = time.monotonic() + PATIENCE
        while units_done(extraction, out) == 0:  # where no worker ever starts the run is given up
            assert child.process.is_alive() and time.monotonic() < deadline, where
            time.sleep(0.01)
        for _ in range(min(MOST, len(kinds))):
            child.process.join(rng.uniform(0, 2))
            if not child.process.is_alive():
                break
            if kinds[-1] == "node":
                nodes = sorted(cluster.worker_nodes, key=lambda node: str(node.unique_id))
                cluster.remove_node(nodes[rng.integers(len(nodes))], allow_graceful=False)
                child.process.join(rng.uniform(0, 2))
                cluster.add_node(num_cpus=1)
                kinds.pop()
            elif alive := workers():
                with suppress(psutil.NoSuchProcess):
                    alive[rng.integers(len(alive))].kill()
                    kinds.pop()
        assert child.result() == digests, where
        for root, digest in zip(extraction.roots(out), digests, strict=True):
            assert_whole(root, digest, where)
        stores += 1
    outcome = (
        f"{stores} extractions of 9 jobs on two workers lost {kills // 2} of these and {kills // 2} nodes: the digests of one"
        " process, 0 rows lost or doubled"
    )
    fault = "workers (SIGKILL) and nodes of a Ray cluster lost at random moments of extract, nodes replaced"
    campaign.record(fault, kills, outcome, began)
