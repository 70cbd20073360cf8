"""Several processes train one student, as a launcher starts them, and stop together."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hskstore import processes
from hskstore.config import Keep, Strategy
from hskstore.extract import extract
from tests.conftest import make_bert, make_tokenizer

PROGRAM = """
import json, os, signal, sys
from hskstore.distill import Overrides, distill
from hskstore.methods import Mud

store, student, out, stop = sys.argv[1:]
rank = int(os.environ.get("RANK", "0"))

def watch(stage, done, total, note=""):
    if stop and rank == 1 and [stage, done] == json.loads(stop):  # one process alone is told to stop
        signal.raise_signal(signal.SIGINT)

overrides = Overrides(max_steps=16, batch_size=[15], lr=[1e-3])
try:
    result = distill(store, student=student, method=Mud(), out=out, overrides=overrides, precision="fp32", watch=watch)
except KeyboardInterrupt:
    print("stopped", rank)
else:
    print("done", rank, json.dumps([phase.losses for phase in result.phases]))
"""


@pytest.fixture(scope="module")
def place(teacher_folder: str, data_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("several")
    extract(teacher_folder, data_folder, out=place / "stores", keeps=[Keep(1, 3, 8)], strategies=[Strategy(2)], task="sst2")
    student = make_bert(layers=2, hidden=16, seed=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    student.save_pretrained(place / "student")
    make_tokenizer().save_pretrained(place / "student")
    (place / "program.py").write_text(PROGRAM)
    return place


def run(place: Path, out: Path, *, of: int, stop: list[Any] | None = None) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(of)] if of > 1 else []
    words = [*(launcher or [sys.executable]), str(place / "program.py"), str(place / "stores" / "d1-l3-w8")]
    words += [str(place / "student"), str(out), json.dumps(stop) if stop else ""]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert found.returncode == 0, found.stderr
    return sorted(found.stdout.splitlines())


def test_two_processes_learn_what_one_learns_and_stop_and_go_on_together(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "one", of=1)
    said = run(place, tmp_path / "two", of=2)
    assert [line.split()[:2] for line in said] == [["done", "0"], ["done", "1"]]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        if not name.endswith("key.bias"):  # whose gradient is zero but for rounding, which Adam blows up
            torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    out = tmp_path / "stopped"
    assert run(place, out, of=2, stop=["hidden", 15 * 5]) == ["stopped 0", "stopped 1"]
    with pytest.raises(AssertionError, match="differs in its processes"):
        run(place, out, of=1)
    run(place, out, of=2)
    resumed = load_file(out / "model.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in two.items())


def test_a_signal_is_held_back_until_it_is_asked_for_and_then_does_what_it_would_have_done() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with processes.interrupts() as held:
            signal.raise_signal(signal.SIGTERM)
            assert held.seen == signal.SIGTERM and got == []
            signal.raise_signal(signal.SIGINT)  # as a launcher sends it on
            assert got == []
            with pytest.raises(KeyboardInterrupt):
                held.deliver()
            assert got == [signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert len(got) == 2, "afterwards all is as before"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_ctrl_c_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "SAME_SIGNAL_SECONDS", -1.0)
    with processes.interrupts() as held:
        signal.raise_signal(signal.SIGINT)
        assert held.seen == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_sigterm_is_left_alone_where_nobody_handles_it() -> None:
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with processes.interrupts():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
