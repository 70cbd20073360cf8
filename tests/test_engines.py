"""Whoever runs the jobs: each is done, three failures set one aside, a user's mistake ends the run, a lost worker is replaced."""

import itertools
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hskstore.engines import ProcessRank, check_ray, run_inline, run_procs, static_jobs, static_rank
from hskstore.engines.ledger import Ledger, why_of
from hskstore.errors import EngineError, ModelError, OptionError

# --- what does not fit


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("procs", "auto", None), "--address auto: only --engine ray has one"),
        (("ray", None, "cuda:1"), "--device cuda:1: a worker of --engine ray has a GPU of its own or none; choose cuda or cpu"),
    ],
)
def test_an_address_is_rays_and_a_gpu_by_its_number_is_not(options: tuple[str, str | None, str | None], words: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(OptionError, match=f"^{words}$"):
        check_ray(*options)
    check_ray("procs", None, "cuda:1")
    check_ray("ray", "auto", "cuda")


# --- what becomes of a job


def test_a_job_that_fails_comes_again_after_the_others_and_three_failures_set_it_aside() -> None:
    ledger = Ledger(["a", "b"])
    order = []
    while (job := ledger.take()) is not None:
        order.append(job)
        if job == "a":
            ledger.failed(job, "RuntimeError: no luck")
    assert order == ["a", "b", "a", "a"]
    with pytest.raises(EngineError, match=r"^a failed 3 times and was set aside: RuntimeError: no luck\. Everything else is fin"):
        ledger.close()


@given(st.integers(1, 20), st.randoms(use_true_random=False))
def test_a_lost_job_is_never_counted_and_always_comes_again(jobs: int, chance: object) -> None:
    ledger, done = Ledger(range(jobs)), Counter[int]()
    for step in itertools.count():
        if (job := ledger.take()) is None:
            break
        if step < 100 and chance.random() < 0.8:  # type: ignore[attr-defined]
            ledger.lost(job)
        else:
            done[job] += 1
    ledger.close()
    assert done == Counter(range(jobs))


def test_an_error_is_told_in_one_line_with_its_place() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        said = why_of(error)
    assert said.startswith("ValueError: two lines, test_engines.py line ") and "\n" not in said


# --- engines; a worker writes a file for every job that it did


@dataclass
class Scribe:
    """Writes `folder/job`. "broken" jobs raise an error, "mistake" ones a user's, "fatal" ones kill their process; "meeting" ones
    wait until another process has a job too."""

    folder: Path
    on_rows: object
    depth: int = 2

    def __post_init__(self) -> None:
        self.stopping = threading.Event()

    def __enter__(self) -> "Scribe":
        return self

    def __exit__(self, *_: object) -> None:
        (self.folder / "closed").touch()

    def stop(self) -> None:
        self.stopping.set()

    def run(self, job: str) -> None:
        with (self.folder / "runs").open("a") as file:
            file.write(f"{job} {os.getpid()} {threading.active_count()}\n")
        if job.startswith("slow"):
            assert not self.stopping.wait(60), "stopped"
        if job.startswith("meeting"):
            assert any(self.meets() or self.stopping.wait(0.05) for _ in range(1200)), "alone"
        if job.startswith("broken"):
            raise RuntimeError(f"no luck with {job}")
        if job.startswith("mistake"):
            raise ModelError("a user's mistake")
        if job.startswith("fatal") or (job.startswith("once") and not (self.folder / "died").exists()):
            (self.folder / "died").touch()
            time.sleep(0.2)  # so that the jobs beside it are under way as well
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / job).touch()
        self.on_rows(1)  # type: ignore[operator]

    def meets(self) -> bool:
        return len({line.split()[1] for line in (self.folder / "runs").read_text().splitlines()}) > 1


def scribe(folder: Path, on_rows: object) -> Scribe:
    return Scribe(folder, on_rows)


def no_worker(folder: Path, on_rows: object) -> Scribe:
    raise ModelError("no such teacher")


def stillborn(folder: Path, on_rows: object) -> Scribe:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


ENGINES = {
    "inline": lambda jobs, recruit, told: run_inline(jobs, recruit, told),
    "procs": lambda jobs, recruit, told: run_procs(jobs, [recruit] * 2, told, threads=1),
}
engines = pytest.mark.parametrize("engine", ENGINES)


def done(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"runs", "closed", "died"}


@engines
def test_every_job_is_done_and_told(engine: str, tmp_path: Path) -> None:
    jobs, told = [f"job{number}" for number in range(9)], []
    ENGINES[engine](jobs, partial(scribe, tmp_path), told.append)
    assert done(tmp_path) == set(jobs) and sum(told) == 9
    assert (tmp_path / "closed").exists()


@engines
def test_a_job_that_fails_three_times_is_set_aside_and_all_others_are_done(engine: str, tmp_path: Path) -> None:
    jobs = ["a", "broken", "b", "c"]
    with pytest.raises(EngineError, match="broken failed 3 times and was set aside: RuntimeError: no luck with broken"):
        ENGINES[engine](jobs, partial(scribe, tmp_path), lambda rows: None)
    assert done(tmp_path) == {"a", "b", "c"}
    assert (tmp_path / "runs").read_text().split().count("broken") == 3


@engines
def test_a_users_mistake_ends_the_run_at_once_as_itself(engine: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^a user's mistake$"):
        ENGINES[engine](["mistake", "slow", *map(str, range(500))], partial(scribe, tmp_path), lambda rows: None)
    assert len(done(tmp_path)) < 500 and (tmp_path / "runs").read_text().split().count("mistake") == 1
    assert (tmp_path / "closed").exists()


@engines
def test_a_worker_that_cannot_be_made_is_told_in_its_own_words(engine: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^no such teacher$"):
        ENGINES[engine](["a"], partial(no_worker, tmp_path), lambda rows: None)


@engines
def test_no_jobs_are_no_work(engine: str, tmp_path: Path) -> None:
    ENGINES[engine]([], partial(scribe, tmp_path), lambda rows: None)
    assert done(tmp_path) == set()


def test_several_processes_have_a_part_in_the_jobs(tmp_path: Path) -> None:
    jobs = [f"meeting{number}" for number in range(6)]  # more than one process has under way
    ENGINES["procs"](jobs, partial(scribe, tmp_path), lambda rows: None)
    assert done(tmp_path) == set(jobs)


def test_a_process_that_dies_is_replaced_and_its_jobs_are_done(tmp_path: Path) -> None:
    jobs = ["once", *(f"job{number}" for number in range(7))]
    run_procs(jobs, [partial(scribe, tmp_path)] * 2, lambda rows: None, threads=1)
    assert done(tmp_path) == set(jobs)


@pytest.mark.long
def test_a_job_that_kills_its_process_three_times_is_set_aside_and_all_others_are_done(tmp_path: Path) -> None:
    jobs = ["a", "fatal", *(f"job{number}" for number in range(5))]
    with pytest.raises(EngineError, match=r"fatal failed 3 times .* its process died, SIGKILL, which the system sends"):
        run_procs(jobs, [partial(scribe, tmp_path)], lambda rows: None, threads=1)
    assert done(tmp_path) == {*jobs} - {"fatal"}


def test_processes_that_never_live_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no worker can start: its process died, SIGKILL"):
        run_procs(["a"], [partial(stillborn, tmp_path)], lambda rows: None, threads=1)


@engines
def test_an_interrupt_stops_the_jobs_under_way_and_leaves_nobody(engine: str, tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "runs").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        ENGINES[engine](["slow", "slower"], partial(scribe, tmp_path), lambda rows: None)
    thread.join()
    assert (tmp_path / "closed").exists(), "the worker was closed in order"
    for line in (tmp_path / "runs").read_text().splitlines():
        pid = int(line.split()[1])
        assert pid == os.getpid() or not Path(f"/proc/{pid}").exists()


# --- a place among several


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, ProcessRank(3, 8, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, ProcessRank(0, 1, None)),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4"}, ProcessRank(2, 4, None)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "5",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            ProcessRank(2, 3, None),
        ),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1"}, ProcessRank(5, 16, 1)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "1",
                "SLURM_ARRAY_TASK_COUNT": "2",
                "SLURM_PROCID": "3",
                "SLURM_NTASKS": "4",
                "SLURM_LOCALID": "3",
            },
            ProcessRank(7, 8, 3),
        ),
        ({"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}, ProcessRank(1, 2, None)),
    ],
)
def test_a_launcher_tells_the_place(environment: dict[str, str], place: ProcessRank) -> None:
    assert static_rank(environment) == place


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "no rank in the environment"),
        ({"RANK": "1"}, "WORLD_SIZE is ''"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "ranks are 0 to 1"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1'"),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "2"}, "gaps"),
    ],
)
def test_a_place_that_cannot_be_is_refused(environment: dict[str, str], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        static_rank(environment)


@given(st.integers(0, 50), st.integers(1, 12))
def test_the_processes_of_a_static_engine_share_all_jobs_without_overlap(jobs: int, world: int) -> None:
    shares = [static_jobs(range(jobs), ProcessRank(rank, world, None)) for rank in range(world)]
    assert sorted(itertools.chain(*shares)) == list(range(jobs))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
