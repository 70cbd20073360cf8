"""The comparison of methods: what is tied, what a method reads, and a run of it all on a tiny store."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hskstore.config import Strategy
from hskstore.explore.show import describe
from hskstore.features import TeacherShape
from hskstore.methods import Ckd, Kd, Mgskd, Pkd, Selection, Terms
from hskstore.methods.serving import teacher_shape
from hskstore.models.run import ModelShape
from hskstore.stage_one.extract import extract
from hskstore.stage_two.recipe import Recipe
from hskstore.store import open_store
from hskstore.store.features import Pooled, Spans, States
from hskstore.text.tasks import TASKS
from tests.conftest import make_bert, save_folder, write_tsv

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipelines"))
import compare

PIPELINE = Path(compare.__file__)


def run_of(right: np.ndarray) -> object:
    """A student that is right in these rows."""
    label = np.arange(len(right)) % 2
    said = np.where(right, label, 1 - label)
    return compare.Run(float(right.mean()), 7.0, np.eye(2, dtype=np.float32)[said], label)


def test_what_cannot_be_told_apart_is_tied_and_what_differs_in_the_same_rows_is_not() -> None:
    rows = np.arange(400)
    best, hardly, worse = rows >= 40, rows >= 44, rows >= 80  # right wherever a worse one is: pairs of rows tell more than scores
    luck = np.roll(rows >= 46, 200)  # as good as the second, in other rows
    found = {"worse": [run_of(worse)], "best": [run_of(best)], "luck": [run_of(luck)]}
    found["hardly"] = [run_of(hardly)]
    gold = rows % 2
    said = compare.conclude(TASKS["sst2"], found, gold, dict.fromkeys(found, 5))
    assert [(row["method"], row["group"]) for row in said] == [("best", "a"), ("luck", "a"), ("hardly", "b"), ("worse", "c")]
    behind = {row["method"]: row["behind_95"] for row in said}
    assert behind["best"] == [0, 0] and behind["hardly"][0] > 0 and behind["luck"][0] < 0 < behind["luck"][1]
    table = compare.table(said, "accuracy", 400)
    assert "| a | luck | 0.8850 | 0.8850 |" in table and "accuracy on 400 rows" in table


def test_scores_are_means_over_seeds_on_the_same_draws() -> None:
    rows = np.arange(300)
    two = [run_of(rows >= 30), run_of(rows < 270)]
    drawn = compare.drawn_scores(TASKS["sst2"], {"one": two, "same": two[::-1]}, rows % 2)
    assert np.allclose(drawn["one"], drawn["same"]) and compare.means({"one": two}) == {"one": 0.9}
    assert abs(drawn["one"].mean() - 0.9) < 0.005 and 0.005 < drawn["one"].std() < 0.02


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("compare")
    teacher = save_folder(make_bert(layers=4, hidden=16), place / "teacher")
    save_folder(make_bert(layers=2, hidden=16, seed=1), place / "student")
    (place / "data").mkdir()
    for name, rows in (("train", 60), ("dev", 20), ("test", 30)):
        write_tsv(place / "data" / f"{name}.tsv", rows, seed=rows)
    options = {"methods": [Kd(), Pkd(), Ckd()], "strategies": [Strategy(2)], "task": "sst2"}
    extract(teacher, str(place / "data"), out=place / "store", **options)  # type: ignore[arg-type]
    return place


def test_the_bytes_of_a_method_are_those_of_the_layers_that_it_reads(place: Path) -> None:
    (root,) = (place / "store").iterdir()
    store, sizes = open_store(root), describe(str(root)).array_bytes
    student = ModelShape("it", 2, (2, 16))

    def read(method: Kd | Pkd | Ckd) -> int:
        return int(compare.bytes_read(store, method.phases(teacher_shape(store.plan), student), sizes))

    inputs = sum(sizes[f"train/{name}"] for name in ("input_ids", "token_type_ids", "n_tokens"))
    assert read(Kd()) == inputs + sizes["train/logits"] and read(Kd(alpha=0.5)) == read(Kd()) + sizes["train/label"]
    assert read(Pkd()) == read(Kd(alpha=0.5)) + sizes["train/cls/values"]
    assert read(Ckd()) == read(Kd(alpha=0.5)) + sizes["train/states/values"]


def test_a_recipe_is_served_where_the_store_has_what_its_selector_looks_at(place: Path) -> None:
    (root,) = (place / "store").iterdir()
    chosen = Selection(select=Terms(("ckd.word_pair", "prediction")))
    recipes = {
        "chosen": Recipe(method=Ckd(), selection=chosen),
        "random": Recipe(method=Ckd(), selection=replace(chosen, action="random-soft")),
    }
    options = SimpleNamespace(lr=1e-3, batch_size=8, steps=3)
    found, (why,) = compare.served(open_store(root), str(place / "student"), recipes, options)
    assert found.keys() == {"random"} and "holds no cls of teacher layer 4, from which weights are chosen" in why


def test_spans_are_read_whole_by_whoever_reads_them() -> None:
    features = {"spans": Spans(3, "0" * 64), "states": States((0, 2), 64, "f16"), "pooled": Pooled((4,), 64, "f16")}
    store = SimpleNamespace(plan=SimpleNamespace(features=features))
    teacher, student = TeacherShape(4, 64), ModelShape("it", 2, (2, 64))
    sizes = {"train/spans/tokens": 90, "train/spans/n_spans": 10}
    found = [compare.bytes_read(store, method.phases(teacher, student), sizes) for method in (Mgskd(), Kd())]
    assert found == [100, 0]


@pytest.mark.long
def test_methods_are_compared_and_a_second_call_trains_nothing(place: Path, tmp_path: Path) -> None:
    (root,) = (place / "store").iterdir()
    recipe = tmp_path / "soft.toml"
    recipe.write_text('method = "kd"\ntemperature = 4.0\n')
    words = [str(PIPELINE), str(root), str(place / "student"), "--test", str(place / "data" / "test.tsv"), "--steps", "3"]
    words += [
        "--methods",
        "kd",
        "pkd",
        "tinybert",
        "--recipe",
        str(recipe),
        "--work",
        str(tmp_path),
        "--out",
        str(tmp_path / "it"),
    ]
    trained: dict[Path, int] = {}
    for again in (False, True):
        ran = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        found = json.loads((tmp_path / "it.json").read_text())
        assert {row["method"] for row in found["methods"]} == {"kd", "pkd", "soft"} and found["rows"] == 50
        assert "Not compared" in ran.stdout and "tinybert" in ran.stdout and (tmp_path / "it.svg").stat().st_size > 1000
        before, trained = trained, {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
        assert len(trained) >= 6 and (trained == before) is again
    recipe.write_text('method = "kd"\ntemperature = 5.0\n')
    ran = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert ran.returncode == 1 and "was learnt by another recipe of that name" in ran.stderr
