"""Several processes train one student, as a launcher starts them: they learn what one learns, and stop together."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hskstore.config import Keep, Strategy
from hskstore.errors import OptionError
from hskstore.features import HiddenTargets, TeacherShape
from hskstore.losses import Term, whole_batch
from hskstore.methods import Finetune, Kd, Ksm, Method, Mud, Phase, Selection
from hskstore.methods.batch import Batch
from hskstore.methods.mud import gathered
from hskstore.methods.projection import projected
from hskstore.models.observe import Seen
from hskstore.models.pruning import GradualPruning, as_pruned_bert
from hskstore.models.run import ModelShape
from hskstore.models.widths import PruneTo
from hskstore.stage_one.extract import extract
from hskstore.stage_two import processes
from hskstore.stage_two.card import Distilled
from hskstore.stage_two.distill import distill
from hskstore.stage_two.feed import InMemory
from hskstore.stage_two.finetune import finetune
from hskstore.stage_two.learner import Learner
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.rows import TrainingRows
from hskstore.stage_two.settings import PhaseSettings
from hskstore.stage_two.trainer import train
from hskstore.watch import unwatched
from tests.conftest import make_bert, make_tokenizer, save_folder, write_tsv
from tests.made_up import STUDENT, made_hidden, rows_of, shape_of_teacher

PROGRAM = """
import json, os, signal, sys
from tests.test_processes import distill_a_little

store, student, out, stop = sys.argv[1:]
rank = int(os.environ.get("RANK", "0"))
scoring = set()

def watch(stage, done, total, note=""):
    if stage.startswith("score"):
        scoring.add(rank)
    if stop and rank == 1 and [stage, done] == json.loads(stop):  # one process alone is told to stop
        signal.raise_signal(signal.SIGINT)

try:
    result = distill_a_little(store, student, out, watch)
except KeyboardInterrupt:
    print("stopped", rank)
else:
    scores = {split: scored.score for split, scored in result.scores.items()}
    print("done", rank, json.dumps([scores, [phase.losses for phase in result.phases], rank in scoring]))
"""


@pytest.fixture(scope="module")
def place(teacher_folder: str, data_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("several")
    extract(teacher_folder, data_folder, out=place / "stores", keeps=[Keep(1, 3, 8)], strategies=[Strategy(2)], task="sst2")
    student = make_bert(layers=2, hidden=16, seed=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    student.save_pretrained(place / "student")
    make_tokenizer().save_pretrained(place / "student")
    (place / "program.py").write_text(PROGRAM)
    (place / "chosen.py").write_text("import sys\nfrom tests.test_processes import distill_chosen\ndistill_chosen(*sys.argv[1:])")
    return place


def distill_a_little(store: str, student: str, out: str, watch: Any = unwatched) -> Distilled:
    recipe = Recipe(student, Mud(), max_steps=16, batch_size=(15,), lr=(1e-3,), precision="fp32")
    return distill(store, recipe, out=out, watch=watch)


def launch(*program: object, of: int) -> list[str]:
    """What a program with its arguments prints, in order of the lines, from so many processes.

    Each writes to a file of its own: what several write to one pipe at once may stand one inside the other.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(of)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as logs:
        words = [*launcher, "--redirects", "1", "--log-dir", logs, *map(str, program)]
        found = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
        assert found.returncode == 0, found.stderr
        printed = [log.read_text() for log in Path(logs).rglob("stdout.log")]
    return sorted(line for text in printed for line in text.splitlines())


def run_two(place: Path, out: Path, *, stop: list[Any] | None = None) -> list[str]:
    words = (place / "stores" / "d1-l3-w8", place / "student", out, json.dumps(stop) if stop else "")
    return launch(place / "program.py", *words, of=2)


@pytest.mark.long
def test_two_processes_learn_what_one_learns_and_stop_and_go_on_together(place: Path, tmp_path: Path) -> None:
    alone = (str(place / "stores" / "d1-l3-w8"), str(place / "student"))
    distill_a_little(*alone, str(tmp_path / "one"))
    said = run_two(place, tmp_path / "two")
    assert [line.split()[:2] for line in said] == [["done", "0"], ["done", "1"]]
    first, second = (json.loads(line.split(maxsplit=2)[2]) for line in said)
    assert first[:2] == second[:2], "scores, and the losses of the whole batch"
    assert (first[2], second[2]) == (True, False), "the first one alone scores"
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        if not name.endswith("key.bias"):  # whose gradient is zero but for rounding, which Adam blows up
            torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    out = tmp_path / "stopped"
    assert run_two(place, out, stop=["hidden", 15 * 5]) == ["stopped 0", "stopped 1"]
    with pytest.raises(OptionError, match="differs in its processes"):
        distill_a_little(*alone, str(out))
    run_two(place, out)
    resumed = load_file(out / "model.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in two.items())


@pytest.mark.long
def test_a_selector_learns_the_same_on_two_processes(teacher_folder: str, place: Path, tmp_path: Path) -> None:
    """Of 46 rows in batches of 15 the last batch is one row: the second process has none."""
    (tmp_path / "data").mkdir()
    for name, rows in (("train", 46), ("dev", 40)):
        write_tsv(tmp_path / "data" / f"{name}.tsv", rows, seed=rows)
    data, strategies = str(tmp_path / "data"), [Strategy(2)]
    extract(teacher_folder, data, out=tmp_path / "stores", methods=[Ksm()], strategies=strategies, task="sst2")
    words = (tmp_path / "stores" / "ksm", place / "student")
    distill_chosen(*map(str, words), str(tmp_path / "one"))
    launch(place / "chosen.py", *words, tmp_path / "two", of=2)
    for file in ("model.safetensors", "selector/selector.safetensors"):
        one, two = (load_file(tmp_path / name / file) for name in ("one", "two"))
        for name, tensor in one.items():
            if not name.endswith("key.bias"):
                torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text())["phases"] for name in ("one", "two"))
    assert [phase["name"] for phase in two] == ["episode-1", "episode-2", "ksm"]
    for alone, shared in zip(one, two, strict=True):
        assert shared["schedule"] == [pytest.approx(row, abs=1e-3) for row in alone["schedule"]]


def distill_chosen(store: str, student: str, out: str) -> None:
    selection = Selection(episodes=2, phase_steps=3)
    numbers = {"max_steps": 8, "batch_size": (15,), "lr": (1e-3,), "precision": "fp32"}
    distill(store, Recipe(student, Ksm(), selection=selection, **numbers), out=out)  # type: ignore[arg-type]


# --- the result of one process

STEPS = 20
BATCH = 7
ROWS = 3 * BATCH + 1
"""The last batch of an epoch has one row, which leaves every process but one without a share."""

HIDDEN_STATES = made_hidden(Keep(2, 10, 8))
TEACHER = shape_of_teacher(HIDDEN_STATES)


@dataclass(frozen=True)
class Related:
    """How alike any two rows of the batch are to the student, as they are to the teacher; and the kept hidden states."""

    name: ClassVar[Any] = "related"
    source: ClassVar[str] = "made up"

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        hidden, _ = Mud().phases(teacher, student)
        weights = {"relation": 1.0, "mud.hidden": 0.1}
        return (replace(hidden, name="related", weights=weights, schedule="linear", predicts=True),)

    def aids(self, teacher: TeacherShape, student: ModelShape) -> nn.Module | None:
        return Mud().aids(teacher, student)

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        assert batch.teacher_logits is not None
        (want,) = phase.reads
        targets: HiddenTargets = batch[want]
        layers = enumerate(zip(want.pairs, targets.position, strict=True))
        states = [projected(aids, gathered(seen.hidden[pair.student], position), index) for index, (pair, position) in layers]
        kept = targets.token_kept[..., None]
        pooled = torch.where(kept, torch.stack(states), 0).sum(2) / kept.sum(2).clamp(min=1)
        own = torch.cat([seen.logits, pooled.transpose(0, 1).flatten(1)], dim=1)
        mine, theirs = whole_batch(own), whole_batch(batch.teacher_logits)
        squares = (mine @ mine.T - theirs @ theirs.T).square()
        return {"relation": Term(squares.sum(), torch.tensor(squares.numel()))} | Mud()(phase, seen, batch, aids)


def uneven_rows() -> TrainingRows:
    """Two hidden layers, 24 wide, of which a row keeps 1 to 10 tokens: every other one few, so that processes differ most."""
    rng = np.random.default_rng(0)
    n_tokens = rng.integers(11, 15, ROWS).astype(np.int32)
    ids = rng.integers(5, 25, (ROWS, 14)).astype(np.int32)
    mask = np.packbits(np.arange(24) % 3 == 0)[None, None, None].repeat(ROWS, 0).repeat(2, 1).repeat(10, 2)
    hidden = rows_of(
        HIDDEN_STATES,
        values=rng.normal(size=(ROWS, 2, 10, 8)).astype(np.float16),
        mask=mask,
        token=np.arange(10, dtype=np.int16)[None, None].repeat(ROWS, 0).repeat(2, 1),
        n_kept=np.where(rng.random((ROWS, 2)) < 0.5, 1, rng.integers(5, 11, (ROWS, 2))).astype(np.int16),
    )
    label = (ids[:, 1] > 14).astype(np.int64)
    logits = rng.normal(size=(ROWS, 2)).astype(np.float32)
    return TrainingRows(ids, np.zeros_like(ids), n_tokens, label, logits, {"hidden": hidden})


CASES: dict[str, Method] = {
    "mud": Mud(),
    "kd": Kd(temperature=2.0, alpha=0.3),
    "finetune": Finetune(),
    "related": Related(),
    "pruned": Mud(targets="ignore"),
}


def fresh(case: str) -> Learner:
    model = make_bert(layers=2, hidden=16, seed=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    pruning = None
    if case == "pruned":
        model = as_pruned_bert(model, "it")
        pruning = GradualPruning(model, PruneTo(2, 40), 0.9, "it")
    torch.manual_seed(0)
    return Learner(model, aids=CASES[case].aids(TEACHER, STUDENT), pruning=pruning)


def learn(out: Path) -> dict[str, Any]:
    """Every case trained, by this process or its share of it: losses, and the importance that heads had when they were cut.

    The weights are written to `out`.
    """
    said: dict[str, Any] = {}
    for case, method in CASES.items():
        importance: list[list[float]] = []
        learner = fresh(case)
        if learner.pruning is not None:
            cut = learner.pruning.cut

            def noted(student: Any, cuts: int, of: Any = learner.pruning, cut: Any = cut, seen: Any = importance) -> None:
                seen.append([*of.importance.heads(0).tolist(), *of.importance.units(1).tolist()])
                cut(student, cuts)

            learner.pruning.cut = noted  # type: ignore[method-assign]
        phases = [PhaseSettings(phase, lr=1e-3, batch_size=BATCH, steps=STEPS) for phase in method.phases(TEACHER, STUDENT)]
        results = train(
            learner,
            InMemory(uneven_rows()),
            method,
            phases,
            data="ab" * 32,
            order="ab" * 32,
            seed=0,
            out=out / case,
            score=None,
            precision="fp32",
            device="cpu",
        )
        state = learner.state_dict()
        digest = hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()
        said[case] = {"losses": [result.losses for result in results], "importance": importance, "weights": digest}
        if processes.is_main():
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, out / f"{case}.safetensors")
    return said


def learn_together(out: Path) -> None:
    """A process's part in `learn` and in what else several do together, said in one line."""
    said = learn(out)
    rank = int(os.environ["RANK"])
    rows = torch.arange(rank)[:, None] + 10 * rank  # of the first none, of the second one
    said["rows"] = [whole_batch(rows)[:, 0].tolist(), whole_batch(rows > 10)[:, 0].tolist()]
    scored: list[str] = []
    tuned = finetune(
        str(out / "student"),
        str(out / "data"),
        out=out / "tuned",
        task="sst2",
        epochs=1,
        watch=lambda stage, *_: scored.append(stage),
    )
    said["scores"] = {split: found.score for split, found in tuned.scores.items()}
    print(json.dumps({"rank": rank, "scored": "score validation" in scored, "said": said}))


def way_moved(start: dict[str, torch.Tensor], one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """How far two results of training are apart, as a part of the way that the first one came from the start.

    Of weights that were cut neither counts. Nor do biases of keys: their gradient is rounding, which Adam blows up.
    """
    names = [name for name in one if one[name].shape == start[name].shape and not name.endswith("key.bias")]
    apart, moved = (torch.cat([(one[name] - others[name]).flatten() for name in names]).norm() for others in (other, start))
    return float(apart / moved)


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("one")
    return out, learn(out)


@pytest.mark.long
@pytest.mark.parametrize("of", [2, 3])
def test_several_processes_learn_of_every_term_what_one_learns(of: int, of_one: tuple[Path, Any], tmp_path: Path) -> None:
    save_folder(make_bert(layers=2, hidden=16, seed=1), tmp_path / "student")
    (tmp_path / "data").mkdir()
    write_tsv(tmp_path / "data" / "train.tsv", 33, seed=1)
    write_tsv(tmp_path / "data" / "dev.tsv", 9, seed=2)
    program = "import sys; from pathlib import Path; from tests.test_processes import learn_together as learn"
    (tmp_path / "program.py").write_text(f"{program}; learn(Path(sys.argv[1]))")
    found = sorted((json.loads(line) for line in launch(tmp_path / "program.py", tmp_path, of=of)), key=lambda each: each["rank"])
    assert [each["scored"] for each in found] == [True] + [False] * (of - 1), "the first one alone scores"
    said = found[0]["said"]
    assert all(each["said"] == said for each in found), "weights, losses, importance and scores"
    numbers = [10 * rank + row for rank in range(of) for row in range(rank)]
    assert said["rows"] == [numbers, [number > 10 for number in numbers]]
    folder, alone = of_one
    for case in CASES:
        one, several = (load_file(place / f"{case}.safetensors") for place in (folder, tmp_path))
        assert way_moved(fresh(case).state_dict(), one, several) < 1e-3, case
        for mine, theirs in zip(alone[case]["losses"], said[case]["losses"], strict=True):
            assert theirs == pytest.approx(mine, rel=1e-4), case
        for mine, theirs in zip(alone[case]["importance"], said[case]["importance"], strict=True):
            assert theirs == pytest.approx(mine, rel=1e-2, abs=1e-3 * max(mine)), case
    assert len(said["pruned"]["importance"]) == 2
