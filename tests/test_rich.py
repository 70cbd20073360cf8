"""A rich store: every configuration is a selection of it, and what is lost is refused by name."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hskstore.config import Keep, LayerMap, Mask, Rank, RankLayer, Score, Strategy, Values
from hskstore.errors import OptionError, StoreError
from hskstore.explore.show import describe
from hskstore.features.view import derive_view, view
from hskstore.methods import Mud
from hskstore.stage_one.extract import extract
from hskstore.stage_one.replay import replay
from hskstore.stage_two.distill import distill
from hskstore.stage_two.recipe import Recipe
from hskstore.store import Store, open_store
from hskstore.store.reader import Store as Reader
from tests.conftest import SHARED, hsk, save_folder

STRATEGIES: dict[str, Strategy] = {
    "as the paper has it": Strategy(2),
    "another depth and top": Strategy(3, top_layer=4),
    "equation 5": Strategy(2, top_layer=4, layer_map="eq5"),
    "the first tokens, uniform": Strategy(2, rank="left", mask="uniform"),
    "random tokens and units": Strategy(2, rank="random", mask="random"),
    "with separators, by the same layer": Strategy(2, rank="attention-with-sep", rank_layer="same"),
    "raw scores": Strategy(2, score="raw"),
    "q8": Strategy(2, values="q8"),
    "q4": Strategy(2, values="q4"),
}
KEEPS = ["1,3,0.25", "2,0.5,8", "all"]


@pytest.fixture(scope="module")
def rich(teacher_folder: str, data_folder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """By the encoding of its states."""
    out = tmp_path_factory.mktemp("rich")
    found: dict[str, Store] = {}
    kinds: tuple[Values, ...] = ("f16", "f32", "q8")
    for values in kinds:
        strategies = [Strategy(1, values=values)]
        (made,) = extract(teacher_folder, data_folder, out=out / values, rich=True, strategies=strategies, task="sst2")
        found[values] = open_store(made.root)
    return found


def test_it_holds_the_states_and_the_attention_of_every_layer(rich: dict[str, Store]) -> None:
    features = rich["f16"].plan.features
    assert {name: feature.layers for name, feature in features.items()} == {"states": (0, 1, 2, 3, 4), "cls_row": (1, 2, 3, 4)}
    assert Path(rich["f16"].root).name == "rich" and rich["f16"].plan.version == 2
    row = rich["f16"].row("train", 5)
    real = np.arange(row["cls_row/probability"].shape[1]) < row["n_tokens"]
    np.testing.assert_allclose(row["cls_row/probability"].sum(axis=1), 1, rtol=1e-5)
    assert (row["cls_row/probability"][:, ~real] == 0).all() and (row["cls_row/raw"][:, ~real] == 0).all()


SHORT = ("as the paper has it", "random tokens and units", "raw scores", "q8")


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(one, id=name, marks=() if name in SHORT else pytest.mark.long) for name, one in STRATEGIES.items()],
)
def test_what_is_cut_from_it_is_what_an_extraction_would_have_written(
    strategy: Strategy, rich: dict[str, Store], teacher_folder: str, data_folder: str, tmp_path: Path
) -> None:
    keeps = [Keep.parse(keep) for keep in KEEPS]
    direct = extract(teacher_folder, data_folder, out=tmp_path, keeps=keeps, strategies=[strategy], task="sst2")
    for keep, made in zip(keeps, direct, strict=True):
        for values in ("f16", "f32"):
            assert derive_view(view(rich[values], keep, strategy), tmp_path / values / keep.name).digest == made.digest


@pytest.mark.long
@settings(max_examples=12, deadline=None)
@given(
    strategy=st.builds(
        Strategy,
        st.integers(1, 4),
        top_layer=st.sampled_from([None, 4]),
        layer_map=st.sampled_from(get_args(LayerMap)),
        rank=st.sampled_from(get_args(Rank)),
        rank_layer=st.sampled_from(get_args(RankLayer)),
        score=st.sampled_from(get_args(Score)),
        mask=st.sampled_from(get_args(Mask)),
        values=st.sampled_from(["f16", "q8", "q4"]),
    ),
    keep=st.builds(
        Keep,
        st.one_of(st.just("all"), st.just(1), st.just(0.5)),
        st.one_of(st.integers(1, 20), st.sampled_from([0.1, 0.5, "all"])),
        st.one_of(st.integers(1, 16), st.sampled_from([0.25, 0.5, "all"])),
    ),
)
def test_whatever_is_cut_from_it_is_what_an_extraction_would_have_written(
    strategy: Strategy, keep: Keep, rich: dict[str, Store], teacher_folder: str, data_folder: str
) -> None:
    with tempfile.TemporaryDirectory() as place:
        (made,) = extract(teacher_folder, data_folder, out=place, keeps=[keep], strategies=[strategy], task="sst2")
        for values in ("f16", "f32"):
            assert derive_view(view(rich[values], keep, strategy), Path(place) / values).digest == made.digest


def test_f32_is_cut_from_f32_alone(rich: dict[str, Store], teacher_folder: str, data_folder: str, tmp_path: Path) -> None:
    keep, strategy = Keep(2, 4, 0.5), Strategy(2, values="f32")
    (direct,) = extract(teacher_folder, data_folder, out=tmp_path / "direct", keeps=[keep], strategies=[strategy], task="sst2")
    assert derive_view(view(rich["f32"], keep, strategy), tmp_path / "cut").digest == direct.digest
    with pytest.raises(OptionError, match="keeps its states as f16: f32 values are lost"):
        view(rich["f16"], keep, strategy)


def test_a_quantised_one_gives_views_and_no_stores(rich: dict[str, Store], tmp_path: Path) -> None:
    made = view(rich["q8"], Keep(1, 3, 0.25), Strategy(2))
    exact = view(rich["f32"], Keep(1, 3, 1.0), Strategy(2, values="f32")).row("train", 7)
    assert np.abs(made.row("train", 7)["hidden/values"]).max() <= 1.01 * np.abs(exact["hidden/values"]).max()
    with pytest.raises(OptionError, match="keeps its states as q8, from which no store can be cut"):
        derive_view(made, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()


def test_what_is_lost_is_refused_by_name(rich: dict[str, Store], teacher_folder: str, data_folder: str, tmp_path: Path) -> None:
    (plain,) = extract(teacher_folder, data_folder, out=tmp_path, keeps=[Keep(1, 3, 0.5)], strategies=[Strategy(2)], task="sst2")
    with pytest.raises(OptionError, match="is no rich store: it holds no states to select from"):
        view(open_store(plain.root), Keep(1, 2, 0.5), Strategy(2))
    with pytest.raises(OptionError, match=r"--values rq8: codes have codebooks, and no view of .* store of them: hsk derive"):
        view(rich["f16"], Keep(1, 2, "all"), Strategy(2, values="rq8"))
    with pytest.raises(OptionError, match="--top-layer 5: the teacher has layers 1 to 4"):
        view(rich["f16"], Keep(1, 2, 0.5), Strategy(2, top_layer=5))
    with pytest.raises(OptionError, match="width 40 is more than the teacher's 32"):
        view(rich["f16"], Keep(1, 2, 40), Strategy(2))


def test_a_teacher_that_runs_eager_shows_no_raw_scores(data_folder: str, tmp_path: Path) -> None:
    from transformers import MPNetConfig, MPNetForSequenceClassification

    config = MPNetConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=2
    )
    teacher = save_folder(MPNetForSequenceClassification(config), tmp_path / "mpnet")
    (made,) = extract(teacher, data_folder, out=tmp_path, rich=True, strategies=[Strategy(1)], task="sst2")
    store = open_store(made.root)
    assert not store.has("train/cls_row/raw") and store.has("train/cls_row/probability")
    with pytest.raises(OptionError, match="holds no raw scores of attention, which its teacher did not show"):
        view(store, Keep(1, 2, 0.5), Strategy(2, score="raw"))


def test_a_student_of_a_view_is_that_of_the_store_cut_from_it(
    rich: dict[str, Store], student_folder: str, tmp_path: Path
) -> None:
    made = view(rich["f16"], Keep(1, 3, 0.25), Strategy(2))
    cut = derive_view(made, tmp_path / "cut")
    recipe = Recipe(student_folder, Mud(), max_steps=6, batch_size=(16,), precision="fp32")
    runs = {}
    for name, (store, loader) in {
        "view": (made, "ram"),
        "store": (open_store(cut.root), "ram"),
        "view in blocks": (made, "blocks"),
    }.items():
        own = replace(recipe, loader=loader)  # type: ignore[arg-type]
        found = distill(store, own, out=tmp_path / name)
        runs[name] = (tmp_path / name / "model.safetensors").read_bytes()
        assert found.digest == store.digest
    assert runs["view"] == runs["store"] == runs["view in blocks"], "which are one window here"
    card = (tmp_path / "view" / "README.md").read_text()
    assert made.digest in card and "depth, length, width = 1,3,0.25" in card


def test_resume_compares_the_configuration(rich: dict[str, Store]) -> None:
    small, same, big = (view(rich["f16"], Keep.parse(keep), Strategy(2)) for keep in ("1,3,0.25", "1,3,0.25", "1,4,0.25"))
    assert small.identity == same.identity != big.identity
    assert small.identity != rich["f16"].identity == rich["f16"].digest == small.digest


def test_of_a_rich_store_the_wanted_layers_alone_are_read(rich: dict[str, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    made = view(rich["f16"], Keep(1, 3, 0.25), Strategy(2))
    read: list[Any] = []
    before = Reader.read
    monkeypatch.setattr(
        Reader, "read", lambda self, path, unit, layers=None: (read.append((path, layers)), before(self, path, unit, layers))[1]
    )
    made.read("train/hidden/values", 0)
    made.read("train/hidden/mask", 0)
    assert [each for each in read if "states" in each[0] or "cls_row" in each[0]] == [
        ("train/states/values", [3]),
        ("train/cls_row/probability", [3]),
    ], "once, and one layer of each"


@pytest.mark.parametrize(("array", "forged"), [("n_tokens", 10**9), ("n_tokens", -1), ("states/values", float("nan"))])
def test_what_no_teacher_says_is_a_damaged_store(
    array: str, forged: float, rich: dict[str, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = view(rich["f16"], Keep(1, 3, 0.25), Strategy(2, rank="random"))
    before = Reader.read

    def forging(self: Store, path: str, *where: Any) -> np.ndarray:
        found = before(self, path, *where)
        return np.full_like(found, forged) if path == f"train/{array}" else found

    monkeypatch.setattr(Reader, "read", forging)
    with pytest.raises(StoreError, match="the store is damaged"):
        made.read("train/hidden/values", 0)


def test_replay_finds_every_row_as_it_was(rich: dict[str, Store], teacher_folder: str) -> None:
    found = replay(rich["f16"].root, teacher_folder, rows=40)
    assert found.equal == found.rows and found.differences == {"logits": 0.0, "states": 0.0, "cls_row": 0.0}


@pytest.mark.real
@pytest.mark.long
def test_real_states_too(tmp_path: Path) -> None:
    teacher, dev = SHARED / "models" / "minilm-l6-sst2", SHARED / "data" / "sst2_small" / "dev.tsv"
    options: dict[str, Any] = {"task": "sst2", "validation": "0.2"}
    (made,) = extract(str(teacher), str(dev), out=tmp_path, rich=True, strategies=[Strategy(1)], **options)
    keeps = [Keep.parse("1,9,0.1"), Keep.parse("3,8,0.2")]
    direct = extract(str(teacher), str(dev), out=tmp_path / "direct", keeps=keeps, strategies=[Strategy(3)], **options)
    for keep, one in zip(keeps, direct, strict=True):
        assert derive_view(view(open_store(made.root), keep, Strategy(3)), tmp_path / keep.name).digest == one.digest


# --- the command line


def test_codes_are_not_among_what_a_student_can_learn_a_view_as(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert hsk("distill", "--help") == 0
    (told,) = (line for line in capsys.readouterr().out.splitlines() if " --values " in line)
    assert "f16, f32, q8 (int8) or q4 (4 bits)" in told and "rq" not in told


@pytest.fixture(scope="module")
def world(teacher_folder: str, data_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rich store made by the command line."""
    place = tmp_path_factory.mktemp("world")
    assert hsk("extract", teacher_folder, data_folder, "--task", "sst2", "--rich", "--out", place) == 0
    return place


def test_hsk_derives_what_hsk_extracts(
    world: Path, teacher_folder: str, data_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--keep", "1,4,0.25", "--student-layers", 2, "--top-layer", 4, "--rank", "attention-with-sep", "--values", "q8"]
    assert hsk("extract", teacher_folder, data_folder, "--task", "sst2", *chosen, "--out", tmp_path / "direct") == 0
    assert hsk("derive", world / "rich", *chosen, "--out", tmp_path / "cut") == 0
    digest = open_store(tmp_path / "direct" / "d1-l4-w0.25").digest
    assert open_store(tmp_path / "cut").digest == digest
    assert "keep 1,4,0.25 for a student of 2 layers, " in capsys.readouterr().out


def test_hsk_distills_from_a_rich_store_by_the_depth_of_the_student(world: Path, student_folder: str, tmp_path: Path) -> None:
    words = ["--student", student_folder, "--max-steps", 4, "--batch-size", 16, "--out", tmp_path / "run"]
    assert hsk("distill", world / "rich", "--keep", "1,4,0.25", "--top-layer", 4, "--method", "mud", *words) == 0
    card = (tmp_path / "run" / "README.md").read_text()
    assert open_store(world / "rich").digest in card and "depth, length, width = 1,4,0.25" in card


def test_hsk_plan_and_show_tell_of_a_rich_store(
    world: Path, teacher_folder: str, data_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", "sst2", "--rich", "--rate", 100, "--json"]
    assert hsk("plan", teacher_folder, data_folder, *words) == 0
    (told,) = json.loads(capsys.readouterr().out)["stores"]
    assert (told["name"], told["keep"]) == ("rich", None)
    assert told["teacher_layers"] == {"states": [0, 1, 2, 3, 4], "cls_row": [1, 2, 3, 4]}
    assert hsk("show", world / "rich") == 0
    said = capsys.readouterr().out
    assert "serves mud: students of any depth, by any configuration that --keep selects" in said and "not mud" not in said
    assert "rows whose [CLS] attends most to a separator, by teacher layer: 1: " in said
    assert hsk("show", world / "rich", "--json") == 0
    shares = json.loads(capsys.readouterr().out)["separator_shares"]
    assert shares.keys() == {"1", "2", "3", "4"} and all(0 <= share <= 1 for share in shares.values())


def test_the_share_of_separators_is_counted_by_hand(rich: dict[str, Store]) -> None:
    store = rich["f16"]
    told = describe(store.root).separator_shares
    found = np.zeros(4)
    names = ("input_ids", "n_tokens", "cls_row/probability")
    for ids, n_tokens, row in zip(*(store.read_all(f"train/{name}") for name in names), strict=True):
        found += [ids[layer[:n_tokens].argmax()] in store.plan.tokenizer["separators"] for layer in row]
    rows = store.plan.splits["train"].rows
    assert told == {layer: round(count / rows, 4) for layer, count in enumerate(found.tolist(), start=1)}


DEPTHS = ["--student-layers", 2, "--student-layers", 3]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["derive", "RICH", "--keep", "1,4,0.25", "--out", "NEW"], "cannot be cut from"),
        (["derive", "RICH", "--keep", "1,4,0.25", "--rank", "left", "--out", "NEW"], "need --student-layers"),
        (["derive", "RICH", "--keep", "9,4,0.25", "--student-layers", 2, "--out", "NEW"], "keep at most that many"),
        (["derive", "RICH", "--for", "kd", "--rank", "left", "--student-layers", 2, "--out", "NEW"], "goes with --keep alone"),
        (["derive", "RICH", "--keep", "1,4,2", *DEPTHS, "--out", "NEW"], "of one --student-layers"),
        (["derive", "RICH", "--keep", "1,4,2", "--student-layers", 2, "--values", "f32", "--out", "NEW"], "f32 values are lost"),
        (["distill", "RICH", "--rank", "left", "--student", "x", "--out", "NEW"], "goes with --keep, and a rich store"),
        (["distill", "RICH", "--keep", "1,4,0.25", "--student", "nowhere", "--out", "NEW"], "nowhere: no model could be loaded"),
        (
            ["distill", "RICH", "--keep", "1,4,all", "--values", "rq8", "--student", "STUDENT", "--out", "NEW"],
            "choose f16, f32, q8 or q4",
        ),
        (
            ["distill", "RICH", "--student", "STUDENT", "--out", "NEW"],
            "is a rich store: say with --keep which of its hidden states",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(
    words: list[Any], said: str, world: Path, student_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RICH": world / "rich", "NEW": tmp_path / "new", "STUDENT": student_folder}
    capsys.readouterr()
    assert hsk(*(places.get(word, word) for word in words)) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert said in told[-1] and told[-1].startswith("hsk: ")
    assert not (tmp_path / "new" / "manifest.json").exists() and not (tmp_path / "new" / "model.safetensors").exists()
