"""A Ray cluster makes the store that one process would; what a worker does comes out at the driver; nobody is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from hskstore.config import Keep, Strategy
from hskstore.engines import run_ray
from hskstore.errors import EngineError, ModelError, OptionError
from hskstore.stage_one.extract import ExtractedStore, extract
from hskstore.stage_one.worker import UnitWorker, recruit
from hskstore.store.commit import receipts
from hskstore.store.objects import Objects
from tests.conftest import sealed_tree, write_tsv
from tests.test_engines import done, no_worker, scribe, stillborn

pytestmark = pytest.mark.long

KEEPS = ("1,9,0.1", "2,4,0.5")


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    """A Ray of this process, which the engine finds and leaves as it is: it starts more slowly than all that is tried on it."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


def actors(ancestor: int | None = None) -> list[psutil.Process]:
    """The processes of actors that this process, or that one, started."""
    found = []
    for process in psutil.Process(ancestor).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "_Actor" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.fixture(autouse=True)
def nobody_stays() -> Iterator[None]:
    yield
    _, alive = psutil.wait_procs(actors(), timeout=10)
    assert not alive


# --- the engine; a worker writes a file for every job that it did


def run(folder: Path, jobs: Sequence[str], make: Callable[..., Any] = scribe, **options: Any) -> list[int]:
    told: list[int] = []
    run_ray(jobs, partial(make, folder), told.append, **{"address": None, "workers": 1, "gpu": None} | options)
    return told


def test_an_address_where_nobody_is_is_told_at_once(tmp_path: Path) -> None:
    assert not ray.is_initialized(), "this test comes before those with a Ray, which would be taken instead"
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:many"):
        with pytest.raises(EngineError, match=f"--address {address}: no Ray cluster can be joined there: "):
            run(tmp_path, ["a"], address=address)


def test_every_job_is_done_and_told_and_a_ray_that_was_there_before_stays(here: None, tmp_path: Path) -> None:
    jobs = [f"job{number}" for number in range(9)]
    node = ray.get_runtime_context().get_node_id()
    assert run(tmp_path, jobs, workers=None) == [1] * 9
    assert done(tmp_path) == set(jobs)
    assert (tmp_path / "closed").exists(), "the worker was closed in order"
    assert ray.is_initialized() and ray.get_runtime_context().get_node_id() == node


def test_a_job_that_fails_three_times_is_set_aside_and_all_others_are_done(here: None, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="broken failed 3 times and was set aside: RuntimeError: no luck with broken"):
        run(tmp_path, ["a", "broken", "b", "c"])
    assert done(tmp_path) == {"a", "b", "c"}
    assert (tmp_path / "runs").read_text().split().count("broken") == 3


def test_a_users_mistake_ends_the_run_at_once_as_itself(here: None, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^a user's mistake$") as caught:
        run(tmp_path, ["mistake", "slow", *map(str, range(500))])
    assert type(caught.value) is ModelError
    assert len(done(tmp_path)) < 500 and (tmp_path / "runs").read_text().split().count("mistake") == 1
    assert (tmp_path / "closed").exists()


def test_a_worker_that_cannot_be_made_is_told_in_its_own_words(here: None, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^no such teacher$"):
        run(tmp_path, ["a"], no_worker)


def test_workers_that_never_live_end_the_run(here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hskstore.engines.ray.LOOK", 0.5)
    with pytest.raises(EngineError, match="no worker can start: The actor is dead because its worker process has died"):
        run(tmp_path, ["a"], stillborn)


def test_a_worker_that_dies_is_replaced_and_its_jobs_are_done(here: None, tmp_path: Path) -> None:
    jobs = ["once", *(f"job{number}" for number in range(7))]
    assert sum(run(tmp_path, jobs)) == 8
    assert done(tmp_path) == set(jobs)


def test_a_cluster_without_what_was_asked_for_is_told_at_once(here: None, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"the Ray cluster has no GPU\. Try --device cpu"):
        run(tmp_path, ["a"], gpu=True)


def test_no_jobs_are_no_work(here: None, tmp_path: Path) -> None:
    assert run(tmp_path, []) == []


# --- extract


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four jobs of train and one of validation."""
    folder = tmp_path_factory.mktemp("data")
    write_tsv(folder / "train.tsv", 1700, seed=1)
    write_tsv(folder / "dev.tsv", 60, seed=2)
    return str(folder)


def run_extract(teacher: str, data: str, out: Path, **options: Any) -> list[ExtractedStore]:
    keeps = [Keep.parse(keep) for keep in KEEPS]
    return extract(teacher, data, out=out, keeps=keeps, strategies=[Strategy(2)], task="sst2", **options)


@pytest.fixture(scope="module")
def alone(teacher_folder: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> list[ExtractedStore]:
    return run_extract(teacher_folder, data, tmp_path_factory.mktemp("alone"))


def assert_same(made: list[ExtractedStore], alone: list[ExtractedStore]) -> None:
    for ours, theirs in zip(made, alone, strict=True):
        assert ours.digest == theirs.digest and ours.missing == 0
        assert sealed_tree(Path(ours.root)) == sealed_tree(Path(theirs.root))


def test_a_cluster_makes_the_store_that_one_process_would(
    here: None,
    teacher_folder: str,
    data: str,
    alone: list[ExtractedStore],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, int]] = []

    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "teacher":
            seen.append((done, total))

    monkeypatch.chdir(Path(teacher_folder).parent)  # where the workers are not
    made = run_extract(Path(teacher_folder).name, data, tmp_path, engine="ray", workers=2, watch=watch)
    assert_same(made, alone)
    assert seen[-1] == (1760, 1760)


class Defective(UnitWorker):
    """Cannot commit one unit of one store."""

    def _commit(self, index: int, split: str, unit: int, *rest: Any) -> None:
        if (index, split, unit) == (0, "train", 1):
            raise RuntimeError("a defect")
        super()._commit(index, split, unit, *rest)


def recruit_defective(*arguments: Any) -> UnitWorker:
    worker = recruit(*arguments)
    worker.__class__ = Defective
    return worker


def test_an_error_of_the_program_sets_one_job_aside_and_the_same_call_tries_just_that(
    here: None,
    teacher_folder: str,
    data: str,
    alone: list[ExtractedStore],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hskstore.stage_one.extract.recruit", recruit_defective)
    with pytest.raises(EngineError, match=r"train rows 512 to 1023 failed 3 times and was set aside: RuntimeError: a defect"):
        run_extract(teacher_folder, data, tmp_path, engine="ray", workers=1)
    monkeypatch.undo()
    theirs = [store.root for store in alone]
    units = [len(receipts(Objects(tmp_path / Path(root).name))) for root in theirs]
    assert units[0] == len(receipts(Objects(theirs[0]))) - 1 and units[1] == len(receipts(Objects(theirs[1])))
    assert_same(run_extract(teacher_folder, data, tmp_path), alone)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_hsk_extract_that_is_stopped_leaves_nobody_and_loses_no_finished_unit(
    stop: signal.Signals, here: None, teacher_folder: str, alone: list[ExtractedStore], data: str, tmp_path: Path
) -> None:
    """By Ctrl-C with a Ray of its own, by a scheduler in a cluster that it joined."""
    keeps = [word for keep in KEEPS for word in ("--keep", keep)]
    options = ["--task", "sst2", "--student-layers", "2", "--out", str(tmp_path), "--engine", "ray", "--workers", "1", "--json"]
    if stop == signal.SIGTERM:
        options += ["--address", ray.get_runtime_context().gcs_address]
    command = [sys.executable, "-m", "hskstore", "extract", teacher_folder, data, *keeps, *options]
    environment = os.environ | {"RAY_AUTH_MODE": "token"}  # Ray's own default, but for an address that is named
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, **pipes, env=environment, start_new_session=True)  # type: ignore[call-overload]
    roots = [tmp_path / Path(store.root).name for store in alone]
    while not any(receipts(Objects(root)) for root in roots):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    started = psutil.Process(first.pid).children(recursive=True)
    if stop == signal.SIGINT:
        os.killpg(first.pid, stop)  # a terminal tells the whole group
    else:
        first.send_signal(stop)
    out, told = first.communicate(timeout=60)
    assert not psutil.wait_procs(started, timeout=10)[1], "nor a Ray"
    if first.returncode != 0:  # else it was faster than the signal
        assert first.returncode == 128 + stop, told
        assert out == "" and "the same command goes on from there" in told and "Traceback" not in told
    else:
        assert [store["digest"] for store in json.loads(out)] == [store.digest for store in alone]
    assert_same(run_extract(teacher_folder, data, tmp_path), alone)


def test_engine_ray_without_ray_is_refused_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"--engine ray needs Ray: pip install 'hskstore\[ray\]'"):
        run_extract("no/teacher", "no/data", tmp_path, engine="ray")


def test_a_gpu_by_its_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--device cuda:1: a worker of --engine ray has a GPU of its own or none"):
        run_extract("no/teacher", "no/data", tmp_path, engine="ray", device="cuda:1")
