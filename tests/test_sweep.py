"""A sweep on a tiny world: every configuration a row, the same whoever does it and however often it is stopped."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hskstore import memory
from hskstore.config import Keep, Strategy
from hskstore.errors import DataError, OptionError
from hskstore.explore import runner as runners
from hskstore.explore.grids import Configuration
from hskstore.explore.held import Held
from hskstore.explore.runner import PlannedRun, Sweeping
from hskstore.explore.runs import RunRow, SweepFolder, names_of
from hskstore.explore.show import describe
from hskstore.explore.sweep import Swept, _Told, sweep
from hskstore.features.view import derive_view, view
from hskstore.stage_one.extract import extract
from hskstore.stage_two import feed
from hskstore.stage_two.checkpoint import _with_check
from hskstore.stage_two.distill import distill
from hskstore.stage_two.recipe import Recipe
from hskstore.store import Store, open_store
from hskstore.text.metrics import compute_metrics
from hskstore.text.tasks import TASKS
from hskstore.watch import Watch
from tests.conftest import hsk, make_bert, save_folder, write_tsv

GRID = 'keep = ["1,3,0.25", "2,all,0.5"]\nmethod = ["kd", "mud"]\nmax_steps = 6\nlr = 0.001\n'
TIMES = ("finished", "command", *(f"seconds_{name}" for name in ("training", "scoring", "wall", "cpu")))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    place = tmp_path_factory.mktemp("world")
    save_folder(make_bert(), place / "teacher")
    save_folder(make_bert(layers=2, hidden=16, seed=1), place / "student")
    (place / "data").mkdir()
    for name, rows in (("train", 90), ("dev", 40), ("test", 50)):
        write_tsv(place / "data" / f"{name}.tsv", rows, seed=rows)
    (place / "grid.toml").write_text(GRID)
    names = {"teacher": str(place / "teacher"), "student": str(place / "student"), "data": str(place / "data")}
    (made,) = extract(names["teacher"], names["data"], out=place, rich=True, strategies=[Strategy(1)], task="sst2")
    return SimpleNamespace(place=place, rich=made.root, grid=str(place / "grid.toml"), **names)


@pytest.fixture(scope="module")
def swept(world: SimpleNamespace) -> Swept:
    return run(world, world.place / "sweep")


def run(world: SimpleNamespace, out: Path, **options: Any) -> Swept:
    return sweep(world.rich, world.student, **{"grid": world.grid, "out": out, "seeds": 2, "data": world.data, **options})


def untimed(out: Path) -> list[dict[str, Any]]:
    """The table without what differs from time to time."""
    rows = pq.read_table(out / "runs.parquet").to_pylist()
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def test_every_configuration_and_seed_is_a_row_and_so_are_kd_alone_and_everything(swept: Swept) -> None:
    assert [(row.name, row.seed) for row in swept.rows] == [
        (name, seed) for name in ("kd", "mud 1,3,0.25", "mud 2,all,0.5", "mud all") for seed in (0, 1)
    ]
    assert all(row.status == "done" and row.steps == 6 and row.rows == 90 for row in swept.rows)
    by_name = {row.name: row for row in swept.rows}
    assert by_name["mud all"].series == "everything" and by_name["kd"].series == "kd alone"
    shares = [by_name[name].share_of_hsk for name in by_name]
    assert shares[0] == 0 and shares[3] == 1 and 0 < float(shares[1] or 0) < float(shares[2] or 0) < 1
    assert by_name["mud 1,3,0.25"].units_of_hsk == 0.75 and by_name["kd"].units_of_hsk == 0  # 1 x 3 x 0.25
    assert (by_name["mud 1,3,0.25"].depth, by_name["mud 1,3,0.25"].length, by_name["mud 1,3,0.25"].width) == (1, 3, 8)


def test_runs_of_one_seed_see_the_same_batches(swept: Swept) -> None:
    two_phases = {row.batches for row in swept.rows if row.method == "mud"}
    assert len(two_phases) == 1 and all(row.store == swept.rows[0].store for row in swept.rows)


def test_the_score_is_that_of_the_predictions_which_are_those_of_the_saved_student(
    world: SimpleNamespace, swept: Swept, tmp_path: Path
) -> None:
    folder = SweepFolder(swept.folder)
    row = next(row for row in swept.rows if row.name == "mud 1,3,0.25" and row.seed == 1)
    said = folder.predictions(row.run)
    assert row.score == compute_metrics(TASKS["sst2"], said.logits, said.label)["accuracy"]
    dev = np.array(said.split) == "validation"
    assert dev.sum() == 40 and said.split.count("test") == 50
    assert row.scores["validation/accuracy"] == compute_metrics(TASKS["sst2"], said.logits[dev], said.label[dev])["accuracy"]
    rich = open_store(world.rich)
    alone = distill(
        view(rich, Keep(1, 3, 0.25), Strategy(2)), Recipe.of({"student": world.student, **_options(row)}), out=tmp_path
    )
    assert alone.scores["validation"].score == {"accuracy": row.scores["validation/accuracy"]}
    assert alone.batches == row.batches
    assert {f"{phase.name}/{term}": value for phase in alone.phases for term, value in phase.losses.items()} == row.losses


def _options(row: RunRow) -> dict[str, Any]:
    return {**json.loads(row.options), "seed": row.seed}


def test_bytes_are_nearly_those_of_the_store_that_an_extraction_would_make(
    world: SimpleNamespace, swept: Swept, tmp_path: Path
) -> None:
    made = derive_view(view(open_store(world.rich), Keep(2, "all", 0.5), Strategy(2)), tmp_path / "cut")
    sizes = describe(made.root).array_bytes
    read = (
        "input_ids",
        "token_type_ids",
        "n_tokens",
        "logits",
        *(f"hidden/{name}" for name in ("values", "mask", "token", "n_kept")),
    )
    exact = sum(sizes[f"train/{name}"] for name in read)
    row = next(row for row in swept.rows if row.name == "mud 2,all,0.5")
    assert row.bytes == pytest.approx(exact, rel=0.05)
    by_name = {row.name: int(row.bytes or 0) for row in swept.rows}
    assert by_name["kd"] < by_name["mud 1,3,0.25"] < by_name["mud 2,all,0.5"] < by_name["mud all"]


def test_the_table_has_a_column_for_every_field_and_metric(swept: Swept) -> None:
    table = pq.read_table(swept.table)
    assert table.num_rows == 8
    wanted = {"run", "name", "keep", "seed", "score", "bytes", "share_of_hsk", "status", "why", "versions", "seconds_cpu", "view"}
    assert wanted | {"validation/accuracy", "test/accuracy", "loss/hidden/mud.hidden"} <= set(table.column_names)
    assert json.loads(table["versions"][0].as_py())["torch"] == torch.__version__


@pytest.mark.long
def test_the_same_command_trains_nothing_again_and_another_grid_joins(
    world: SimpleNamespace, swept: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path(swept.table).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(runners, "learn", lambda *_, **__: pytest.fail("trained again"))
        again = run(world, Path(swept.folder))
    assert again.rows == swept.rows and Path(swept.table).read_bytes() == before
    file = world.place / "more.toml"
    file.write_text('keep = "1,1,0.1"\nmax_steps = 6\nlr = 0.001\n')
    out = world.place / "two"
    run(world, out, seeds=1, grid=world.grid)
    more = run(world, out, seeds=1, grid=str(file))
    assert [row.name for row in more.rows] == ["mud 1,1,0.1", "kd", "mud all"]
    assert pq.read_table(out / "runs.parquet").num_rows == 5, "kd alone and everything were there"


@pytest.mark.long
def test_a_run_that_fails_is_a_row_that_says_why(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "grid.toml"
    file.write_text('keep = "1,3,0.25"\nmax_steps = 6\nlr = 1e30\nprecision = "fp32"\n')
    whole = run(world, tmp_path / "out", seeds=1, grid=str(file))
    assert {row.status for row in whole.rows} == {"failed"} and len(whole.failed) == 3
    assert "not finite at step" in str(whole.rows[0].why) and whole.rows[0].score is None
    learn, again = runners.learn, []

    def broken(*words: Any, **options: Any) -> Any:
        again.append(options["out"])
        if "kd" in options["out"].name:
            raise RuntimeError("out of luck")
        return learn(*words, **options)

    with monkeypatch.context() as patched:
        patched.setattr(runners, "learn", broken)
        assert len(run(world, tmp_path / "out", seeds=1, grid=str(file)).failed) == 3
        assert not again, "what failed by its own fault would fail again"
        one = run(world, tmp_path / "other", seeds=1)
        assert (one.rows[0].method, one.rows[0].status, one.rows[0].why) == ("kd", "failed", "out of luck")
        assert [row.status for row in one.rows][1:] == ["done"] * 3
    mended = run(world, tmp_path / "other", seeds=1)
    assert [row.status for row in mended.rows] == ["done"] * 4, "what failed by another's fault is tried again"
    assert len(again) == 4


def test_a_run_that_is_tried_again_is_told_of_when_it_has_ended_anew(swept: Swept, tmp_path: Path) -> None:
    folder, failed = SweepFolder(tmp_path), [replace(row, status="failed", error="OSError") for row in swept.rows[:3]]
    told: list[tuple[str, str, int]] = []
    for row in (*failed[:2], swept.rows[2]):
        folder.write_row(row)
    planned = [PlannedRun(row.run, Configuration("kd", None), row.seed) for row in swept.rows[:3]]
    telling = _Told(folder, planned, lambda row, ended, of: told.append((row.run, row.status, ended)))
    assert telling.seen == {swept.rows[2].run}
    for row in swept.rows[:2]:
        folder.write_row(row)
        telling.look()
    assert told == [(swept.rows[0].run, "done", 2), (swept.rows[1].run, "done", 3)]


def ctrl_c_at(step: int) -> Watch:
    """Pressed at that step of predictions."""
    steps = 0

    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        nonlocal steps
        steps += stage.endswith(": prediction")
        if steps == step:
            os.kill(os.getpid(), signal.SIGINT)
            steps += 1

    return watch


def test_ctrl_c_leaves_a_checkpoint_and_the_table_of_the_rest(world: SimpleNamespace, swept: Swept, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path, watch=ctrl_c_at(8))
    assert 0 < len(SweepFolder(tmp_path).rows()) < 8
    assert len(list(tmp_path.rglob("state.json"))) == 1
    run(world, tmp_path)
    assert untimed(tmp_path) == untimed(Path(swept.folder))
    assert not list(tmp_path.rglob("checkpoint"))


@pytest.mark.long
def test_killed_five_times_it_ends_with_the_same_table(world: SimpleNamespace, swept: Swept, tmp_path: Path) -> None:
    words = ["sweep", world.rich, "--student", world.student, "--grid", world.grid, "--seeds", "2", "--data", world.data]
    command = [sys.executable, "-m", "hskstore", *words, "--out", str(tmp_path)]
    rng = random.Random(7)
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("rows/*.json")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    start = time.monotonic() - began
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0.7, 1.2) * start)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert untimed(tmp_path) == untimed(Path(swept.folder))


@pytest.mark.long
def test_two_jobs_find_what_one_finds(world: SimpleNamespace, swept: Swept, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # of which each of two jobs gets one
    try:
        run(world, tmp_path, jobs=2, on_run=lambda row, ended, of: told.append((ended, of)))
    finally:
        torch.set_num_threads(threads)
    one, two = ([{**row, "threads": None} for row in untimed(out)] for out in (Path(swept.folder), tmp_path))
    for mine, theirs in zip(one, two, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert theirs[name] == (pytest.approx(value, rel=1e-3, abs=1e-4) if isinstance(value, float) else value), name
    assert told == [(ended, 8) for ended in range(1, 9)]


@pytest.mark.long
def test_a_ray_cluster_finds_what_one_process_finds(world: SimpleNamespace, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(world, tmp_path / "here", seeds=1)
    finally:
        torch.set_num_threads(threads)
    run(world, tmp_path / "there", seeds=1, jobs=2, engine="ray")
    assert untimed(tmp_path / "here") == untimed(tmp_path / "there")


@pytest.mark.long
def test_students_are_kept_where_that_is_asked(world: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text('keep = "all"\nmax_steps = 2\n')
    result = run(world, tmp_path / "out", seeds=1, grid=str(file), keep_students=True)
    for row in result.rows:
        assert (SweepFolder(tmp_path / "out").run_folder(row.run) / "model.safetensors").exists()


def test_what_cannot_be_swept_is_told_before_anything_is_trained(world: SimpleNamespace, tmp_path: Path) -> None:
    (plain,) = extract(world.teacher, world.data, out=tmp_path, keeps=[Keep(1, 3, 0.5)], strategies=[Strategy(2)], task="sst2")
    with pytest.raises(OptionError, match=r"is no rich store.*hsk extract TEACHER DATA --rich"):
        sweep(plain.root, world.student, grid="table5", out=tmp_path / "out")
    deep = tmp_path / "deep.toml"
    deep.write_text('keep = ["1,3,0.5", "4,3,0.5"]\n')
    with pytest.raises(OptionError, match=r"mud 4,3,0.5 cannot be a run: depth 4: a student of 2 layers has 3 to guide"):
        run(world, tmp_path / "out", grid=str(deep))
    steps = tmp_path / "steps.toml"
    steps.write_text('keep = "1,3,0.5"\nmax_steps = 1\n')
    with pytest.raises(OptionError, match="--max-steps 1: the method has 2 phases"):
        run(world, tmp_path / "out", grid=str(steps))
    codes = tmp_path / "codes.toml"
    codes.write_text('keep = "all"\nmethod = "mud+ckd"\nvalues = "rq8"\n')
    with pytest.raises(OptionError, match=r"codes of what mud alone learns, and mud\+ckd reads states of teacher layers"):
        run(world, tmp_path / "out", grid=str(codes))
    with pytest.raises(OptionError, match="--split train: the store's own train rows"):
        run(world, tmp_path / "out", splits=["train"])
    with pytest.raises(OptionError, match="--split test goes with --data"):
        run(world, tmp_path / "out", data=None, splits=["test"])
    with pytest.raises(OptionError, match="--jobs 0"):
        run(world, tmp_path / "out", jobs=0)
    with pytest.raises(DataError):
        run(world, tmp_path / "out", splits=["nowhere"])
    assert not list((tmp_path / "out").glob("rows"))


def test_runs_of_another_student_or_other_rows_do_not_join(world: SimpleNamespace, swept: Swept, tmp_path: Path) -> None:
    other = save_folder(make_bert(layers=2, hidden=16, seed=9), tmp_path / "other")
    with pytest.raises(OptionError, match="holds runs of another student, with which these cannot be compared"):
        run(replace_in(world, student=other), Path(swept.folder))
    with pytest.raises(OptionError, match="holds runs of other scored rows"):
        run(world, Path(swept.folder), data=None)


def replace_in(world: SimpleNamespace, **changed: Any) -> SimpleNamespace:
    return SimpleNamespace(**vars(world) | changed)


def test_two_at_once_in_one_folder_are_refused(world: SimpleNamespace, tmp_path: Path) -> None:
    with SweepFolder(tmp_path).alone(), pytest.raises(OptionError, match="another hsk works in"):
        run(world, tmp_path)


def test_what_was_read_once_is_held_up_to_a_limit_and_nobody_writes_to_it(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = open_store(world.rich)
    size = inner.read("train/n_tokens", 0).nbytes
    held, read = Held(inner, 2 * size), []
    monkeypatch.setattr(inner, "read", lambda *words: read.append(words[0]) or Store.read(inner, *words))
    for _ in range(2):
        for name in ("n_tokens", "states/values"):
            array = held.read(f"train/{name}", 0)
    assert read == ["train/n_tokens", "train/states/values", "train/states/values"]
    np.testing.assert_array_equal(array, Store.read(inner, "train/states/values", 0))
    with pytest.raises(ValueError, match="read-only"):
        held.read("train/n_tokens", 0)[0] = 1
    assert held.identity == inner.digest


def test_a_row_is_what_was_written(swept: Swept) -> None:
    row = swept.rows[0]
    assert SweepFolder(swept.folder).row(row.run) == row and asdict(row)["run"] == row.run
    assert not replace(row, status="failed", error="OSError").final and replace(row, status="failed", error="ModelError").final


def test_the_command_prints_runs_a_table_and_what_is_next(
    world: SimpleNamespace, swept: Swept, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", world.rich, "--student", world.student, "--grid", world.grid, "--seeds", "2", "--data", world.data]
    left = SweepFolder(swept.folder).run_folder(swept.rows[0].run) / "checkpoint"
    left.mkdir(parents=True)  # as a sweep leaves it that was killed behind its last row
    assert hsk(*words, "--out", swept.folder) == 0 and not left.exists()
    said = capfd.readouterr().out
    assert "accuracy on 90 rows" in said and "mud all (everything)" in said and "hsk recommend" in said
    assert hsk(*words, "--out", swept.folder, "--json") == 0
    assert len(json.loads(capfd.readouterr().out)["rows"]) == 8
    assert hsk(*words, "--out", swept.folder, "--engine", "slurm") == 2
    assert "--engine slurm: choose one of procs, ray" in capfd.readouterr().err


def test_one_loader_for_all_runs_of_a_folder_whatever_memory_is_free(
    world: SimpleNamespace, swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enough for a sliver in memory, not for everything: by each run's own rows they would be loaded in two ways."""
    assert {row.loader for row in swept.rows} == {"ram"}
    rich = runners.Runner(Sweeping(world.rich, world.student, str(tmp_path), None))
    sliver, everything = (
        rich._bytes_held(Configuration("", keep, options=(("method", "mud"),))) for keep in (Keep(1, 3, 0.25), Keep(*["all"] * 3))
    )
    assert sliver < everything
    between = 90 * (sliver + everything) // 2
    monkeypatch.setattr(memory, "free_memory", lambda: between / memory.SHARE_FOR_ROWS)
    learn, row_bytes = runners.learn, set()
    monkeypatch.setattr(runners, "learn", lambda *words, **own: row_bytes.add(own["row_bytes"]) or learn(*words, **own))
    some = run(world, tmp_path / "some", seeds=1, data=None)
    assert row_bytes == {everything}, "and windows of them are alike"
    assert {row.loader for row in some.rows} == {"blocks"} and all('loader = "blocks"' in row.recipe for row in some.rows)
    assert len({row.batches for row in some.rows if row.method == "mud"}) == 1
    assert [row.run for row in some.rows] == [row.run for row in swept.rows if row.seed == 0]
    monkeypatch.setattr(memory, "free_memory", lambda: 2**40)
    rich.folder = SweepFolder(tmp_path / "some")
    rich.begin([Configuration("", Keep(1, 3, 0.25))])
    assert rich.folder.facts().loader == "blocks", "what has begun goes on as it began"


def test_many_jobs_share_the_memory(world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "free_memory", lambda: 1000)
    one, four = (runners.Runner(Sweeping(world.rich, world.student, str(tmp_path / str(n)), jobs=n)) for n in (1, 4))
    assert (one._may_hold(), four._may_hold()) == (200, 50)
    everything = Configuration("", Keep("all", "all", "all"))
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * 90 * one._bytes_held(everything) / memory.SHARE_FOR_ROWS)
    for each, loader in ((one, "ram"), (four, "blocks")):
        each.begin([everything])
        assert each.folder.facts().loader == loader


def test_windows_are_as_large_as_rows_of_the_bytes_given_make_them(monkeypatch: pytest.MonkeyPatch) -> None:
    split = SimpleNamespace(units=8, unit_rows=10, rows_of=lambda unit: 10)
    store: Any = SimpleNamespace(plan=SimpleNamespace(splits={"train": split}))
    monkeypatch.setattr(feed, "WINDOW_BYTES", 100)
    monkeypatch.setattr(feed, "bytes_per_row", lambda *_: 1)
    sizes = [feed.InWindows(store, "train", row_bytes=size).windows(np.random.default_rng(0), 2) for size in (0, 5, 100)]
    assert [len(windows) for windows in sizes] == [1, 4, 8]


def test_a_folder_of_an_earlier_version_goes_on_as_its_rows_were_loaded(swept: Swept, tmp_path: Path) -> None:
    facts, folder = SweepFolder(swept.folder).facts(), SweepFolder(tmp_path)
    folder.write_row(replace(swept.rows[0], loader="blocks"))
    earlier = {name: value for name, value in asdict(facts).items() if name not in ("loader", "row_bytes", "student_config")}
    (tmp_path / "sweep.json").write_text(json.dumps(earlier))
    folder.begin(facts)
    assert folder.facts() == replace(facts, loader="blocks")


def test_a_run_that_stands_half_done_with_another_loader_begins_anew(
    world: SimpleNamespace, swept: Swept, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path, seeds=1, watch=ctrl_c_at(8))
    (state,) = tmp_path.rglob("state.json")
    half = json.loads(state.read_text())
    half["settings"] = half["settings"].replace('"ram"', '"blocks"')
    half.pop("check")
    state.write_text(_with_check(half))
    result = run(world, tmp_path, seeds=1)
    assert [(row.status, row.score) for row in result.rows] == [("done", row.score) for row in swept.rows if row.seed == 0]


def test_a_student_of_the_same_weights_and_another_config_is_another(
    world: SimpleNamespace, swept: Swept, tmp_path: Path
) -> None:
    shutil.copytree(world.student, tmp_path / "copy")
    config = tmp_path / "copy" / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"transformers_version": "0.0"}))
    run(replace_in(world, student=str(tmp_path / "copy")), Path(swept.folder))
    config.write_text(json.dumps(told | {"hidden_act": "relu"}))
    with pytest.raises(OptionError, match="holds runs of another student, with"):
        run(replace_in(world, student=str(tmp_path / "copy")), Path(swept.folder))


def test_no_such_device_is_one_message_before_any_run(world: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--device cdua: not here"):
        run(world, tmp_path / "out", device="cdua")
    assert not (tmp_path / "out").exists()


def test_students_that_were_not_kept_are_made_again_where_they_shall_be(world: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text('method = "kd"\nmax_steps = 2\n')
    first = run(world, tmp_path / "out", seeds=1, grid=str(file))
    folder, told = SweepFolder(tmp_path / "out"), []
    kept = run(world, tmp_path / "out", seeds=1, grid=str(file), keep_students=True, on_run=lambda row, *_: told.append(row.run))
    assert all((folder.run_folder(row.run) / "model.safetensors").exists() for row in kept.rows)
    assert [row.score for row in kept.rows] == [row.score for row in first.rows] and told == [row.run for row in first.rows]
    run(world, tmp_path / "out", seeds=1, grid=str(file), keep_students=True, on_run=lambda *_: pytest.fail("done again"))


def test_configurations_of_one_name_are_told_apart_by_what_differs_in_their_recipes(swept: Swept) -> None:
    row, other = swept.rows[0], swept.rows[2]
    assert names_of(swept.rows) == {row.configuration: row.name for row in swept.rows}
    faster = replace(row, run="kd-2-s1", recipe=row.recipe.replace("lr = ", "patience = 3\nlr = 0.5 # "))
    again = replace(row, run="kd-3-s0", recipe=faster.recipe)
    lr = json.loads(row.options)["lr"]
    told = {row.configuration: f"kd lr={lr}", "kd-2": "kd lr=0.5 patience=3", other.configuration: other.name}
    assert names_of([row, swept.rows[1], faster, other]) == told
    assert names_of([faster, again]) == {"kd-2": "kd (kd-2)", "kd-3": "kd (kd-3)"}
