"""One store, whoever made it: the digest of every engine, and an extraction that a scheduler ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hskstore.config import Keep, Strategy
from hskstore.errors import EngineError, ModelError, OptionError
from hskstore.stage_one.extract import ExtractedStore, extract
from hskstore.stage_one.jobs import Job
from hskstore.stage_one.worker import UnitWorker
from hskstore.store import open_store
from hskstore.store.commit import receipts
from hskstore.store.objects import Objects
from tests.conftest import hsk, make_bert, make_tokenizer, save_folder, sealed_tree, write_tsv

KEEPS = ("1,9,0.1", "2,4,0.5")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four jobs of train and one of validation."""
    folder = tmp_path_factory.mktemp("data")
    write_tsv(folder / "train.tsv", 1700, seed=1)
    write_tsv(folder / "dev.tsv", 60, seed=2)
    return str(folder)


def run(teacher: str, data: str, out: Path, **options: Any) -> list[ExtractedStore]:
    keeps = [Keep.parse(keep) for keep in KEEPS]
    return extract(teacher, data, out=out, keeps=keeps, strategies=[Strategy(2)], task="sst2", **options)


@pytest.fixture(scope="module")
def alone(teacher_folder: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> list[ExtractedStore]:
    return run(teacher_folder, data, tmp_path_factory.mktemp("alone"))


def assert_same(made: list[ExtractedStore], alone: list[ExtractedStore]) -> None:
    for ours, theirs in zip(made, alone, strict=True):
        assert ours.digest == theirs.digest and ours.missing == 0
        assert sealed_tree(Path(ours.root)) == sealed_tree(Path(theirs.root))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_cores_does_not_show_in_a_store(
    threads: int, teacher_folder: str, data: str, alone: list[ExtractedStore], tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_same(run(teacher_folder, data, tmp_path), alone)
        assert torch.get_num_threads() == threads, "and what comes after has them all"
    finally:
        torch.set_num_threads(before)


def test_processes_make_the_store_that_one_would(
    teacher_folder: str, data: str, alone: list[ExtractedStore], tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    made = run(
        teacher_folder,
        data,
        tmp_path,
        engine="procs",
        workers=3,
        watch=lambda stage, done, total, note="": seen.append((done, total)) if stage == "teacher" else None,
    )
    assert_same(made, alone)
    assert seen[-1] == (1760, 1760)


def test_shuffled_ranks_make_the_store_that_one_would_and_the_last_seals_it(
    teacher_folder: str, data: str, alone: list[ExtractedStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    ranks = np.random.default_rng(7).permutation(3).tolist()
    for rank in ranks:
        monkeypatch.setenv("RANK", str(rank))
        made = run(teacher_folder, data, tmp_path, engine="static")
        if rank != ranks[-1]:
            assert all(store.digest is None and store.missing > 0 for store in made)
    assert_same(made, alone)


def test_a_rank_that_was_lost_is_made_up_for_by_any_engine(
    teacher_folder: str, data: str, alone: list[ExtractedStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    run(teacher_folder, data, tmp_path, engine="static")
    assert_same(run(teacher_folder, data, tmp_path), alone)


def test_more_ranks_than_jobs_leave_the_last_without_work(
    teacher_folder: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "63")
    monkeypatch.setenv("WORLD_SIZE", "64")
    made = run(teacher_folder, data, tmp_path, engine="static")
    assert [store.missing for store in made] == [len(list(open_plan(store).units())) for store in made]


def test_a_rank_finds_its_missing_jobs_in_time_that_grows_with_them_and_not_with_their_square(
    teacher_folder: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [Job("train", start, start + 1) for start in range(400)]
    compared = 0

    def counted(job: Job) -> int:
        nonlocal compared
        compared += 1
        return job.start

    def probed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr("hskstore.stage_one.extract.make_jobs", lambda _: iter(jobs))
    monkeypatch.setattr("hskstore.stage_one.extract.missing_jobs", lambda _: jobs)
    monkeypatch.setattr("hskstore.stage_one.extract.probe", probed)
    monkeypatch.setattr(Job, "__hash__", counted)
    with pytest.raises(KeyboardInterrupt):
        run(teacher_folder, data, tmp_path, engine="static")
    assert len(jobs) <= compared <= 4 * len(jobs)


def open_plan(store: ExtractedStore) -> Any:
    from hskstore.store.reader import read_plan

    return read_plan(Objects(store.root))


def test_an_error_of_the_program_sets_one_job_aside_and_the_same_call_tries_just_that(
    teacher_folder: str, data: str, alone: list[ExtractedStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = UnitWorker._commit
    tries = 0

    def broken(self: UnitWorker, index: int, split: str, unit: int, *rest: Any) -> None:
        nonlocal tries
        if (index, split, unit) == (0, "train", 1):
            tries += 1
            raise RuntimeError("a defect")
        commit(self, index, split, unit, *rest)

    monkeypatch.setattr(UnitWorker, "_commit", broken)
    with pytest.raises(EngineError, match=r"train rows 512 to 1023 failed 3 times and was set aside: RuntimeError: a defect"):
        run(teacher_folder, data, tmp_path)
    assert tries == 3
    monkeypatch.undo()
    made = [store.root for store in alone]
    units = [len(receipts(Objects(tmp_path / Path(root).name))) for root in made]
    assert units[0] == len(receipts(Objects(made[0]))) - 1 and units[1] == len(receipts(Objects(made[1])))
    assert_same(run(teacher_folder, data, tmp_path), alone)


def test_a_device_without_room_for_a_batch_is_no_defect(
    teacher_folder: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("hskstore.stage_one.teacher.Teacher.probe", lambda *_, **__: None)
    monkeypatch.setattr("hskstore.stage_one.teacher.Teacher.forward", full)
    with pytest.raises(ModelError, match="cpu has no memory for a batch of 4096 tokens: free some, or start anew with a smaller"):
        run(teacher_folder, data, tmp_path)


def test_a_mistake_in_a_worker_process_is_told_as_itself(data: str, tmp_path: Path) -> None:
    teacher = make_bert()
    with torch.no_grad():
        teacher.bert.embeddings.word_embeddings.weight[make_tokenizer().unk_token_id] = torch.nan
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    with (folder / "train.tsv").open("a") as file:  # behind the rows that are tried before the workers start
        file.writelines("the unheard cat\t1\n" for _ in range(3))
    with pytest.raises(ModelError, match=r"logits for train row 170\d are not finite"):
        run(save_folder(teacher, tmp_path / "nan"), str(folder), tmp_path / "out", engine="procs", workers=2)


def test_a_worker_refuses_another_teacher_than_the_plans(teacher_folder: str, data: str, tmp_path: Path) -> None:
    from hskstore.stage_one.worker import recruit
    from hskstore.text.rows import Rows

    made = run(teacher_folder, data, tmp_path / "out")
    other = save_folder(make_bert(seed=8), tmp_path / "other")

    def no_rows() -> dict[str, Rows]:
        return {}

    with pytest.raises(ModelError, match="is another teacher on"):
        recruit([store.root for store in made], other, "cpu", no_rows, lambda rows: None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "static"}, "no rank in the environment"),
        ({"workers": 2}, "--workers 2: --engine inline has one worker"),
        ({"address": "auto"}, "--address auto: only --engine ray"),
        ({"engine": "procs", "device": "cuda:7"}, "--device cuda:7"),
    ],
)
def test_engines_and_options_that_do_not_fit_are_refused_before_anything_is_read(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=words):
        run("no/teacher", "no/data", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.parametrize("engine", ["inline", "procs"])
def test_a_scheduler_that_ends_hsk_extract_loses_no_finished_unit(
    engine: str, teacher_folder: str, alone: list[ExtractedStore], data: str, tmp_path: Path
) -> None:
    keeps = [word for keep in KEEPS for word in ("--keep", keep)]
    options = ["--task", "sst2", "--student-layers", "2", "--out", str(tmp_path), "--engine", engine, "--json"]
    command = [sys.executable, "-m", "hskstore", "extract", teacher_folder, data, *keeps, *options]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    roots = [tmp_path / Path(store.root).name for store in alone]
    while not any(receipts(Objects(root)) for root in roots):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    _, told = first.communicate(timeout=60)
    if first.returncode != 0:  # else it was faster than the signal
        assert first.returncode == 128 + signal.SIGTERM
        assert "the same command goes on from there" in told and "Traceback" not in told
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [store["digest"] for store in json.loads(again.stdout)] == [store.digest for store in alone]
    for root in roots:
        open_store(root)
    assert not [line for line in os.popen("ps -eo args") if str(tmp_path) in line], "no process is left behind"


def test_how_far_an_unsealed_store_is_is_told_from_its_receipts(
    teacher_folder: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hskstore.explore.show import describe_progress

    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        made = run(teacher_folder, data, tmp_path, engine="static")
    root = made[0].root
    plan = open_plan(made[0])
    found = describe_progress(root)
    assert (found.units_done, found.units) == (4, 5) and (found.rows_done, found.rows) == (1760 - 512, 1760)
    assert found.workers == 2 and found.newest is not None
    ends = sorted(
        (datetime.fromisoformat(receipt.made["finished"]), receipt.rows) for receipt in receipts(Objects(root)).values()
    )
    rows, seconds = sum(rows for _, rows in ends[1:]), (ends[-1][0] - ends[0][0]).total_seconds()
    assert found.rows_per_second == pytest.approx(rows / seconds, rel=0.01)
    assert plan.splits["train"].unit_rows == 512
    assert hsk("show", root) == 0
    told = capsys.readouterr().out
    assert "not sealed; 4 of 5 units done" in told and "rows/s by 2 workers, at which" in told and " ago; " in told


def test_an_old_run_does_not_slow_down_what_is_told_of_a_new_one(
    teacher_folder: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hskstore.explore.show import describe_progress

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    (made, _) = run(teacher_folder, data, tmp_path, engine="static")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    finished = [start, start + timedelta(hours=1), start + timedelta(hours=1, seconds=10)]
    for moment, (_, receipt) in zip(finished, sorted(receipts(Objects(made.root)).items()), strict=True):
        changed = replace(receipt, made=receipt.made | {"finished": moment.isoformat()})
        Objects(made.root).put(receipt.key, changed.to_bytes())
    assert describe_progress(made.root).rows_per_second == receipt.rows / 10
