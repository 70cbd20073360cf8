"""Students learn from stores of every kind: scores, pairs, no labels, two dev sets, other depths and widths."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hskstore.config import Keep, Strategy
from hskstore.distill import Distilled, Overrides, distill, match_layers, phase_settings
from hskstore.errors import OptionError, StoreError
from hskstore.evaluate import evaluate
from hskstore.extract import extract
from hskstore.methods import Finetune, Kd, Method, Mud, make_method
from hskstore.store import Store, open_store
from hskstore.tasks import get_task
from tests.conftest import make_bert, save_folder, sentences


def csv(path: Path, rows: int, seed: int, label: Any) -> str:
    lines = [
        f'"{text}","{other}",{label(text)}' for text, other in zip(sentences(rows, seed), sentences(rows, seed + 9), strict=True)
    ]
    path.write_text("one,two,label\n" + "\n".join(lines) + "\n")
    return str(path)


def store_of(tmp_path: Path, data: str, *, outputs: int = 2, values: str = "f16", **columns: Any) -> Store:
    teacher = save_folder(make_bert(labels=outputs), tmp_path / "teacher")
    strategies = [Strategy(2, values=values)]  # type: ignore[arg-type]
    (made,) = extract(
        teacher, data, out=tmp_path / "stores", keeps=[Keep(2, 4, 0.25)], strategies=strategies, max_length=64, **columns
    )
    return open_store(made.root)


def run(store: Store, tmp_path: Path, method: Method, **options: Any) -> Distilled:
    student = tmp_path / "student"
    if not student.exists():
        save_folder(make_bert(layers=2, hidden=16, labels=5, seed=1), student)
    overrides = Overrides(max_steps=6, batch_size=[16])
    return distill(store, student=str(student), method=method, out=tmp_path / "run", overrides=overrides, **options)


@pytest.mark.parametrize("method", [Mud(), Mud(regression_target="gold"), Kd(alpha=0.5), Finetune()])
def test_a_score_is_learnt_by_every_method(method: Method, tmp_path: Path) -> None:
    data = csv(tmp_path / "data.csv", 120, 1, lambda text: len(text.split()) / 3)
    store = store_of(tmp_path, data, outputs=1, text=["one", "two"], label="label", validation="0.2")
    found = run(store, tmp_path, method)
    assert found.scores["validation"].score.keys() == {"spearman", "pearson"} and found.scores["validation"].rows == 24
    again = evaluate(found.folder, data, text=["one", "two"], label="label", validation="0.2", latency=False)
    assert again.score == pytest.approx(found.scores["validation"].score)


def test_named_classes_keep_their_names_in_the_student(tmp_path: Path) -> None:
    data = csv(tmp_path / "data.csv", 120, 1, lambda text: "feline" if "cat" in text.split() else "other")
    store = store_of(tmp_path, data, text=["one"], label="label", validation="0.2")
    found = run(store, tmp_path, Kd())
    from transformers import AutoConfig

    assert AutoConfig.from_pretrained(found.folder).id2label == {0: "feline", 1: "other"}


def test_the_teachers_logits_alone_teach_where_there_are_no_labels(tmp_path: Path) -> None:
    store = store_of(tmp_path, csv(tmp_path / "data.csv", 100, 1, lambda _: "x"), text=["one"], validation="0.2")
    with pytest.raises(StoreError, match=r"holds no label, which the method finetune needs: extract with --label"):
        run(store, tmp_path, Finetune())
    found = run(store, tmp_path, Mud())
    assert found.scores == {} and found.phases[1].best is None


def test_mnli_has_two_dev_sets_and_both_are_scored(tmp_path: Path) -> None:
    names = ("entailment", "neutral", "contradiction")
    folder = tmp_path / "data"
    folder.mkdir()
    for split, rows in (("train", 90), ("dev_matched", 20), ("dev_mismatched", 25)):
        pairs = zip(sentences(rows, rows), sentences(rows, rows + 1), strict=True)
        lines = [f"{one}\t{two}\t{names[index % 3]}" for index, (one, two) in enumerate(pairs)]
        (folder / f"{split}.tsv").write_text("sentence1\tsentence2\tgold_label\n" + "\n".join(lines) + "\n")
    store = store_of(tmp_path, str(folder), outputs=3, task="mnli")
    assert store.plan.splits.keys() == {"train", "validation", "validation_mismatched"}
    found = run(store, tmp_path, Mud())
    assert {name: scored.rows for name, scored in found.scores.items()} == {"validation": 20, "validation_mismatched": 25}
    other = evaluate(found.folder, store.root, splits=["validation_mismatched"], latency=False)
    assert other.score == found.scores["validation_mismatched"].score


@pytest.mark.parametrize("values", ["q8", "q4", "f32"])
def test_every_encoding_trains(values: str, teacher_folder: str, data_folder: str, tmp_path: Path) -> None:
    found = run(store_of(tmp_path, data_folder, values=values, task="sst2"), tmp_path, Mud(targets="ignore"))
    assert np.isfinite(found.phases[0].losses["hidden_mse"])


def test_a_store_serves_any_student_whose_teacher_layers_it_holds(teacher_folder: str, data_folder: str, tmp_path: Path) -> None:
    (made,) = extract(teacher_folder, data_folder, out=tmp_path, keeps=[Keep(1, 2, 4)], strategies=[Strategy(2)], task="sst2")
    plan = open_store(made.root).plan  # L = 4, L_top = 3: the last layer of a student of any depth learns from layer 3
    for depth in (1, 2, 3, 6):
        assert match_layers(plan, depth) == ((depth,), (0,))
    (everything,) = extract(
        teacher_folder, data_folder, out=tmp_path, keeps=[Keep.parse("all")], strategies=[Strategy(2)], task="sst2"
    )
    with pytest.raises(StoreError, match=r"needs teacher layers 0, 1, 2, 3; the store holds 0, 2, 3: .*--student-layers 3"):
        match_layers(open_store(everything.root).plan, 3)


def test_steps_are_shared_in_proportion_and_no_phase_goes_without() -> None:
    def steps(most: int | None, task: str = "sst2") -> list[int]:
        return [phase.steps for phase in phase_settings(Mud(), get_task(task).recipe, 6920, Overrides(max_steps=most))]

    assert steps(None) == [2170, 1085]
    assert steps(1000) == [667, 333]
    assert [steps(most, "cola") for most in (2, 3, 7)] == [[1, 1], [2, 1], [6, 1]]
    assert steps(10**6) == [2170, 1085]


def test_a_methods_options_are_its_own() -> None:
    assert make_method("kd", {"alpha": 0.5}) == Kd(alpha=0.5)
    with pytest.raises(OptionError, match="--targets is no option of the method kd; its own are: --temperature, --alpha"):
        make_method("kd", {"targets": "zero"})


def test_the_teachers_folder_is_not_needed(tmp_path: Path) -> None:
    import shutil

    data = csv(tmp_path / "data.csv", 80, 1, lambda text: int("cat" in text.split()))
    store = store_of(tmp_path, data, text=["one"], label="label", validation="0.2")
    shutil.rmtree(tmp_path / "teacher")
    (tmp_path / "data.csv").unlink()
    assert run(store, tmp_path, Mud()).scores["validation"].rows == 16
