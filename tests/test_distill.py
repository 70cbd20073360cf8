"""Students learn from stores of every kind: scores, pairs, no labels, two dev sets, other depths and widths."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    DebertaConfig,
    DebertaV2Config,
    PreTrainedTokenizerFast,
    ReformerConfig,
    ReformerForSequenceClassification,
)

from hskstore.config import Keep, Strategy
from hskstore.errors import DataError, ModelError, OptionError, StoreError
from hskstore.methods import Finetune, Kd, Method, Mud, Phase, Weights, make_method
from hskstore.methods.projection import Projection
from hskstore.methods.serving import teacher_shape
from hskstore.models.run import ModelShape
from hskstore.stage_one.extract import extract
from hskstore.stage_two.card import Distilled, model_card
from hskstore.stage_two.distill import distill
from hskstore.stage_two.evaluate import evaluate
from hskstore.stage_two.feed import InMemory
from hskstore.stage_two.finetune import finetune
from hskstore.stage_two.learner import take_published_projection
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.scores import Scored
from hskstore.stage_two.settings import phase_settings
from hskstore.stage_two.student import check_store, named_as_read, places_of
from hskstore.store import Plan, Store, open_store
from hskstore.text.tasks import get_task
from hskstore.text.tokenizers import tokenizer_sha256
from tests.conftest import hsk, make_bert, save_folder, sentences, write_tsv
from tests.made_up import STUDENT, made_hidden, shape_of_teacher
from tests.test_feed import numbered
from tests.test_offsets import byte_level

PHASES = Mud().phases(shape_of_teacher(made_hidden(Keep(1, 2, 4))), STUDENT)


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
    recipe = Recipe(str(student), method, max_steps=6, batch_size=(16,), **options)
    return distill(store, recipe, out=tmp_path / "run")


@pytest.mark.parametrize("method", [Mud(), Mud(regression_target="gold"), Kd(alpha=0.5), Finetune()])
def test_a_score_is_learnt_by_every_method(method: Method, tmp_path: Path) -> None:
    data = csv(tmp_path / "data.csv", 120, 1, lambda text: len(text.split()) / 3)
    store = store_of(tmp_path, data, outputs=1, text=["one", "two"], label="label", validation="0.2")
    found = run(store, tmp_path, method)
    assert found.scores["validation"].score.keys() == {"spearman", "pearson"} and found.scores["validation"].rows == 24
    again = evaluate(found.folder, data, text=["one", "two"], label="label", validation="0.2", latency=False)
    assert again.score == pytest.approx(found.scores["validation"].score)


def test_weights_decide_what_is_learnt(tmp_path: Path) -> None:
    store = store_of(
        tmp_path,
        csv(tmp_path / "data.csv", 80, 1, lambda text: int("cat" in text)),
        text=["one"],
        label="label",
        validation="0.2",
    )
    weights = {}
    for name, options in {"half": {}, "same": {"weight": "gold=0.5"}, "gold": {"weight": "gold=1,prediction=0"}}.items():
        own = {option: Weights.parse(text) for option, text in options.items()}
        run(store, tmp_path, Kd(alpha=0.5), **own)
        weights[name] = (tmp_path / "run" / "model.safetensors").read_bytes()
        assert ("\nweight = " in (tmp_path / "run" / "recipe.toml").read_text()) == bool(own)
        (tmp_path / "run").rename(tmp_path / name)
    assert weights["half"] == weights["same"] != weights["gold"]
    run(store, tmp_path, Finetune())
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights["gold"]


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
    with pytest.raises(StoreError, match=r"holds no label, which the method kd needs"):
        run(store, tmp_path, Kd(alpha=0.5))
    assert run(store, tmp_path, Mud(regression_target="gold")).scores == {}, "it learns classes from the teacher alone"
    shutil.rmtree(tmp_path / "run")
    assert run(store, tmp_path, Kd(alpha=0.5), weight=Weights.parse("gold=0")).phases[0].losses.keys() == {"prediction"}
    shutil.rmtree(tmp_path / "run")
    found = run(store, tmp_path, Mud())
    assert found.scores == {} and found.phases[1].best is None
    with pytest.raises(DataError, match=r"no labels to score against; extract with --label$"):
        evaluate(str(found.folder), store.root)


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
    assert np.isfinite(found.phases[0].losses["mud.hidden"])


def phases_of(store: Store, depth: int) -> tuple[Phase, ...]:
    student = ModelShape("it", 2, (depth, 16))
    phases = Mud().phases(teacher_shape(store.plan), student)
    check_store(store, phases, student, Mud())
    return phases


def test_a_store_serves_any_student_whose_teacher_layers_it_holds(teacher_folder: str, data_folder: str, tmp_path: Path) -> None:
    (made,) = extract(teacher_folder, data_folder, out=tmp_path, keeps=[Keep(1, 2, 4)], strategies=[Strategy(2)], task="sst2")
    store = open_store(made.root)  # L = 4, L_top = 3: the last layer of a student of any depth learns from layer 3
    for depth in (1, 2, 3, 6):
        phases = phases_of(store, depth)
        assert [(pair.student, pair.teacher) for pair in phases[0].reads[0].pairs] == [(depth, 3)]
        assert places_of(store, phases) == {"hidden": (0,)}
    (everything,) = extract(
        teacher_folder, data_folder, out=tmp_path, keeps=[Keep.parse("all")], strategies=[Strategy(2)], task="sst2"
    )
    with pytest.raises(StoreError, match=r"needs teacher layers 0, 1, 2, 3; the store holds 0, 2, 3: .*--student-layers 3"):
        phases_of(open_store(everything.root), 3)


def test_steps_are_shared_in_proportion_and_no_phase_goes_without() -> None:
    def steps(most: int | None, task: str = "sst2") -> list[int]:
        source = InMemory(numbered(np.full(6920, 5)))
        return [phase.steps for phase in phase_settings(Recipe(max_steps=most), PHASES, get_task(task).defaults, source)]

    assert steps(None) == [2170, 1085]
    assert steps(1000) == [667, 333]
    assert [steps(most, "cola") for most in (2, 3, 7)] == [[1, 1], [2, 1], [6, 1]]
    assert steps(10**6) == [2170, 1085]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1])
@pytest.mark.parametrize(
    "numbers",
    [
        *(lambda value, name=name: Recipe(**{name: (1, value)}) for name in ("epochs", "lr", "batch_size")),
        *(lambda value, name=name: Recipe(**{name: value}) for name in ("max_steps", "max_minutes", "patience")),
        lambda value: Recipe(warmup=value),
        lambda value: Mud(temperature=value),
        lambda value: Kd(temperature=value),
        lambda value: Kd(alpha=value),
    ],
)
def test_a_setting_that_is_no_number_of_its_kind_is_refused(numbers: Callable[[Any], object], number: float) -> None:
    with pytest.raises(OptionError, match="must be"):
        numbers(number)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prune_share": 0.5}, "--prune-share goes with --prune-to"),
        ({"seed": -1}, "--seed -1: must be"),
        ({"precision": "fp64"}, "--precision fp64: choose one of auto, fp32, bf16"),
        ({"loader": "disk"}, "--loader disk: choose one of auto, ram, blocks"),
    ],
)
def test_the_library_refuses_what_the_command_line_does(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Recipe(**{"method": Kd()} | options)


FINETUNED: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 0}, "--epochs 0: must be"),
    ({"epochs": float("nan")}, "--epochs nan: must be"),
    ({"lr": float("nan")}, "--lr nan: must be"),
    ({"lr": float("inf")}, "--lr inf: must be"),
    ({"batch_size": 0}, "--batch-size 0: must be"),
    ({"max_length": 0}, "--max-length 0: must be"),
    ({"seed": -1}, "--seed -1: must be"),
    ({"precision": "fp16"}, "--precision fp16: choose one of"),
]


@pytest.mark.parametrize(("options", "said"), FINETUNED)
def test_so_does_finetune(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=said):
        finetune("no model", "no data", out=tmp_path / "new", **options)


def test_a_methods_options_are_its_own() -> None:
    strange: list[dict[str, Any]] = [{"targets": "none"}, {"regression_target": "none"}, {"projection": "own"}]
    for made in (*(lambda own=own: Mud(**own) for own in strange), lambda: make_method("mudd", {})):  # type: ignore[arg-type,misc]
        with pytest.raises(OptionError, match="choose one of"):
            made()
    assert make_method("kd", {"alpha": 0.5}) == Kd(alpha=0.5)
    with pytest.raises(OptionError, match="--targets is no option of the method kd; its own are: --temperature, --alpha"):
        make_method("kd", {"targets": "zero"})
    with pytest.raises(OptionError, match="--projection is no option of the method kd; its own are: --temperature, --alpha"):
        make_method("kd", {"projection": "shared"})


def test_the_teachers_folder_is_not_needed(tmp_path: Path) -> None:
    data = csv(tmp_path / "data.csv", 80, 1, lambda text: int("cat" in text.split()))
    store = store_of(tmp_path, data, text=["one"], label="label", validation="0.2")
    shutil.rmtree(tmp_path / "teacher")
    (tmp_path / "data.csv").unlink()
    assert run(store, tmp_path, Mud()).scores["validation"].rows == 16


# --- with another tokenizer


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    write_tsv(folder / "train.tsv", 90, seed=1)
    write_tsv(folder / "dev.tsv", 20, seed=2)
    return folder


@pytest.fixture(scope="module")
def with_text(teacher_folder: str, words: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    options: dict[str, Any] = {"keeps": [Keep(1, 4, 0.25)], "strategies": [Strategy(2)], "task": "sst2", "keep_offsets": True}
    (made,) = extract(teacher_folder, str(words), out=tmp_path_factory.mktemp("stores"), **options)
    return open_store(made.root)


def test_a_student_of_another_tokenizer_learns_and_is_scored(
    with_text: Store, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = byte_level(trim=True)
    student = make_bert(layers=2, hidden=16, seed=1)
    student.resize_token_embeddings(len(tokenizer))
    save_folder(student, tmp_path / "student", tokenizer)
    root = with_text.root
    options = ["--student", tmp_path / "student", "--max-steps", 4]
    assert hsk("distill", root, *options, "--out", tmp_path / "run") == 0
    told = capsys.readouterr()
    assert "has another tokenizer than the teacher" in told.err and "% of the kept tokens are tokens of its own" in told.err
    assert hsk("distill", root, *options, "--method", "kd", "--out", tmp_path / "kd") == 0
    assert "reads the kept text anew" in (err := capsys.readouterr().err) and "kept tokens" not in err
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path / "run")
    assert tokenizer_sha256(saved) == tokenizer_sha256(tokenizer), "a student keeps its own words"
    on_store = evaluate(str(tmp_path / "run"), root, latency=False)
    assert on_store.score == json.loads((tmp_path / "run/metrics.json").read_text())["scores"]["validation"]["score"]
    assert on_store.score == evaluate(str(tmp_path / "run"), str(words), task="sst2", latency=False).score


def test_a_student_without_one_token_of_the_teachers_is_refused(with_text: Store, tmp_path: Path) -> None:
    raw = Tokenizer(
        models.WordLevel({"[UNK]": 0, "[PAD]": 1, "word": 2}, unk_token="[UNK]")
    )  # a row is one token, and none is special
    raw.pre_tokenizer = pre_tokenizers.Split("a text that no row has", "isolated")
    alien = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", model_max_length=64)
    save_folder(make_bert(layers=2, hidden=16, seed=1), tmp_path / "student", alien)
    with pytest.raises(ModelError, match="not one kept token of the teacher is one of its own: choose --method kd"):
        distill(with_text, Recipe(str(tmp_path / "student"), Mud()), out=tmp_path / "run")


# --- a published student


def test_a_published_projection_is_where_training_starts(teacher_folder: str, data_folder: str, tmp_path: Path) -> None:
    """TinyBERT's checkpoints bring `fit_dense`, the projection to their teacher's width, along."""
    published = {"fit_dense.weight": torch.full((32, 16), 0.25), "fit_dense.bias": torch.full((32,), -0.5)}
    folder = Path(save_folder(make_bert(layers=2, hidden=16, seed=1), tmp_path / "student"))
    weights = load_file(folder / "model.safetensors")
    save_file(weights | published, folder / "model.safetensors", metadata={"format": "pt"})
    for per_layer in (False, True):
        projection = nn.ModuleDict({"hidden": Projection(16, 32, linears=2 if per_layer else 1)})  # wherever among the aids
        take_published_projection(projection, str(folder))
        for linear in projection["hidden"].linears:
            assert torch.equal(linear.weight, published["fit_dense.weight"]) and torch.equal(
                linear.bias, published["fit_dense.bias"]
            )
    other = Projection(16, 24)
    before = other.linears[0].weight.detach().clone()
    take_published_projection(other, str(folder))
    assert torch.equal(other.linears[0].weight, before), "it is for another teacher's width"
    store = store_of(tmp_path, data_folder, task="sst2")
    first = distill(store, Recipe(str(folder), Mud(), max_steps=2), out=tmp_path / "one")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    without = distill(store, Recipe(str(folder), Mud(), max_steps=2), out=tmp_path / "two")
    assert first.phases[0].losses != without.phases[0].losses


def test_a_run_is_of_one_store_read_in_one_way() -> None:
    """What a stopped run is compared by, so that it never goes on with other words."""
    digest = "ab" * 32
    readings = [{}] + [{"tokenizer": byte_level(trim=trim), "max_length": length} for trim in (True, False) for length in (5, 6)]
    keys = [named_as_read(digest, reading) for reading in readings]
    assert keys[0] == digest
    assert len(set(keys)) == len(keys) and all(int(key, 16) >= 0 for key in keys)


def test_the_result_says_how_it_was_trained(teacher_folder: str, data_folder: str, tmp_path: Path) -> None:
    (made,) = extract(teacher_folder, data_folder, out=tmp_path, keeps=[Keep(1, 3, 8)], strategies=[Strategy(2)], task="sst2")
    student = save_folder(make_bert(layers=2), tmp_path / "student")
    recipe = Recipe(student, Mud(), epochs=(50,), max_minutes=0.02, patience=1, loader="blocks")
    found = distill(made.root, recipe, out=tmp_path / "run")
    hidden, prediction = found.phases
    assert (hidden.ended, found.loader) == ("minutes", "blocks")
    assert prediction.ended in ("minutes", "patience") and prediction.best is not None
    assert found.precision in ("fp32", "bf16")
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written["loader"] == "blocks" and written["precision"] == found.precision
    assert [phase["ended"] for phase in written["phases"]] == [hidden.ended, prediction.ended]
    assert all(phase["waited"] >= 0 for phase in written["phases"])


def test_minutes_are_shared_in_proportion_to_the_steps() -> None:
    source = InMemory(numbered(np.full(6920, 5)))
    hidden, prediction = phase_settings(Recipe(max_minutes=3, patience=2), PHASES, get_task("sst2").defaults, source)
    assert (hidden.seconds, prediction.seconds, prediction.patience) == (120, 60, 2)


# --- models that do not run in bf16


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("small")
    data = csv(root / "train.csv", 60, 1, lambda text: int("cat" in text))
    return store_of(root, data, text=["one"], label="label", validation="0.3")


def deberta(kind: Any, folder: Path) -> str:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32, "num_hidden_layers": 2}
    config = kind(vocab_size=64, type_vocab_size=0, relative_attention=True, pos_att_type=["p2c", "c2p"], **sizes)
    return save_folder(AutoModelForSequenceClassification.from_config(config), folder)


@pytest.mark.parametrize(
    ("kind", "method", "precision"),
    [(DebertaConfig, Mud(), "fp32"), (DebertaConfig, Kd(), "fp32"), (DebertaV2Config, Mud(), "bf16")],
)
def test_auto_is_fp32_for_a_student_that_does_not_run_in_bf16(
    kind: Any,
    method: Method,
    precision: str,
    small: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("hskstore.stage_two.precision.computes_in", lambda *_: True)
    student = deberta(kind, tmp_path / "student")
    found = distill(small, Recipe(student, method, max_steps=2), out=tmp_path / "run")
    assert found.precision == json.loads((tmp_path / "run" / "metrics.json").read_text())["precision"] == precision
    assert [student in line and "it is trained in fp32" in line for line in caplog.messages] == [True] * (precision == "fp32")


def test_a_student_that_trains_on_rows_of_one_length_alone_is_refused_by_name(small: Store, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "axial_pos_shape": (8, 8), "axial_pos_embds_dim": (16, 16), "attn_layers": ["local"]}
    config = ReformerConfig(vocab_size=30, max_position_embeddings=64, num_attention_heads=2, attention_head_size=8, **sizes)
    student = save_folder(ReformerForSequenceClassification(config), tmp_path / "reformer")
    with pytest.raises(ModelError, match="a reformer with axial positions trains on rows of one length alone: choose a student"):
        distill(small, Recipe(student=student, method=Kd()), out=tmp_path / "out")


def test_bf16_for_a_student_that_does_not_run_in_it_is_refused(small: Store, tmp_path: Path) -> None:
    student = deberta(DebertaConfig, tmp_path / "student")
    with pytest.raises(ModelError, match=rf"^{student} cannot run in bf16 \(.*\): choose --precision fp32$"):
        distill(small, Recipe(student, Kd(), precision="bf16"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_finetune_does_likewise(
    tmp_path: Path, data_folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = deberta(DebertaConfig, tmp_path / "blank")
    options: dict[str, Any] = {"task": "sst2", "epochs": 1, "batch_size": 350}
    with pytest.raises(ModelError, match="cannot run in bf16"):
        finetune(model, data_folder, out=tmp_path / "new", precision="bf16", **options)
    monkeypatch.setattr("hskstore.stage_two.precision.computes_in", lambda *_: True)
    assert finetune(model, data_folder, out=tmp_path / "new", **options).steps == 2
    assert sum("it is trained in fp32" in line for line in caplog.messages) == 1


# --- the card


HOSTILE = "x`\n---\nlicense: mit\n---\n# Trust me <script>\n```"


@pytest.mark.parametrize("place", ["task name", "model_type", "sha256", "no model_type"])
def test_a_strangers_words_do_not_break_out_of_the_card(place: str, small: Store) -> None:
    teacher, task = dict(small.plan.teacher), dict(small.plan.task)
    if place == "no model_type":
        del teacher["model_type"]
    else:
        (task if place == "task name" else teacher)[place.removeprefix("task ")] = HOSTILE
    plan = dataclasses.replace(small.plan, teacher=teacher, task=task)
    assert Plan.from_bytes(plan.to_bytes(), "here") == plan, "it is read"
    scored = Scored({"accuracy": 0.5}, {"accuracy": 0.1}, 9)
    distilled = Distilled("out", "d" * 64, [], {"validation": scored}, 1.0, 9, "fp32", "ram", "ab" * 32)
    store: Any = SimpleNamespace(plan=plan)
    lines = model_card(distilled, store, Kd(), "own ``name`` [x](y)", "hsk distill '```\n'", None).splitlines()
    assert [line for line in lines if line.startswith("---")] == ["---"] * 2 and lines[0] == lines[2] == "---"
    assert sum(line.startswith("#") for line in lines) == 1 and "license: mit" not in lines
    assert "- student at the start: ``` own ``name`` [x](y) ```" in lines
    assert lines.count("````") == 2, "the command's own fence is longer than what is in it"
    told = [line for line in lines if "Trust me" in line]
    assert len(told) == (place != "no model_type") and all(line.count("````") == 2 for line in told)
