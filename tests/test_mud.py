"""The pipeline of Marginal Utility Diminishes, run as a user runs it."""

import argparse
import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hskstore.store import open_store

MUD = str(Path(__file__).resolve().parents[1] / "pipelines" / "mud.py")


@pytest.mark.long
def test_it_leaves_teacher_store_students_table_and_page_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    command = [sys.executable, MUD, "--quick", "--work", str(tmp_path)]
    rows = tmp_path / "sweeps" / "every-2" / "rows"
    stopped = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while stopped.poll() is None and len(list(rows.glob("*.json"))) < 2:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate()
    assert stopped.returncode == 143 and "the same command goes on from there" in said, said
    before = {path: path.stat().st_mtime_ns for path in [*rows.glob("*.json"), *tmp_path.rglob("model.safetensors")]}
    assert not (tmp_path / "report.html").exists()

    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert before == {path: path.stat().st_mtime_ns for path in before}
    table = pq.read_table(tmp_path / "sweeps" / "every-2" / "runs.parquet").to_pylist()
    names = ["mud 1,1,1.0", "mud 1,9,0.1", "mud 2,4,0.5", "finetune", "kd", "mud all"]
    assert {(row["name"], row["seed"]) for row in table} == {(name, seed) for name in names for seed in (0, 1)}
    assert all(row["status"] == "done" and row["steps"] == 6 and row["rows"] == 128 for row in table)
    store = open_store(tmp_path / "stores" / "rich")
    assert {row["store"] for row in table} == {store.digest} and store.plan.task["name"] == "cola"
    assert json.loads((tmp_path / "students" / "every-2" / "config.json").read_text())["num_hidden_layers"] == 2
    assert "Which to take" in (tmp_path / "report.html").read_text()
    assert "How sure:" in ran.stdout and f"{tmp_path / 'report.html'} tells it all" in ran.stdout.replace("\n", "")


def test_a_quick_run_has_few_steps_but_where_a_file_is_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(MUD).parent))
    pipeline = importlib.import_module("mud")
    monkeypatch.setattr(pipeline, "write_corpus", lambda *_, **__: None)
    monkeypatch.setattr(pipeline, "save_model", lambda *_: None)
    for given, steps in ((None, 6), (["table5"], 6), (["mine.toml"], None), (["quick", "mine.toml"], None)):
        options = argparse.Namespace(task=None, grid=given, seeds=None, steps=None, work=tmp_path)
        pipeline.make_up(options)
        assert (options.seeds, options.steps) == (2, steps)
    assert pipeline.grid_file("mine.toml", options) == "mine.toml"


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--quick", "data"], "--quick makes up its own data and teacher"),
        (["data", "--task", "sst2"], "name DATA, its --task, and --model or --teacher"),
        (["data", "--task", "sst2", "--teacher", "it", "--grid", "my.toml", "--steps", "9"], "in my.toml write max_steps = 9"),
    ],
)
def test_options_that_make_no_sense_are_one_message(words: list[str], said: str, tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, MUD, *words, "--work", str(tmp_path / "work")], capture_output=True, text=True)
    assert ran.returncode == 2 and said in ran.stderr and "Traceback" not in ran.stderr
    assert not (tmp_path / "work").exists()
