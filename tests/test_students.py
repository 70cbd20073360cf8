"""Where students come from: presets and numbers, layers of a teacher, a pruned teacher, a published student."""

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from hskstore.config import Keep, Strategy
from hskstore.errors import ModelError, OptionError
from hskstore.methods import Mud
from hskstore.models.load import load_classifier
from hskstore.models.widths import PruneTo
from hskstore.stage_one.extract import extract
from hskstore.stage_two.distill import distill
from hskstore.stage_two.recipe import Recipe
from hskstore.students import PRESETS, Shape, new_student, parse_layers, prune_teacher, slice_teacher
from hskstore.text.tokenizers import load_tokenizer, tokenizer_sha256
from tests.conftest import SHARED, WORDS, hsk, make_bert, make_tokenizer, save_folder, write_tsv

MILLIONS = {
    "bert-tiny": 4.4,
    "bert-mini": 11.2,
    "bert-small": 28.8,
    "bert-medium": 41.4,
    "tinybert-4l-312d": 14.4,
    "tinybert-6l-768d": 67.0,
    "bert-3l-768d": 45.7,
    "bert-6l-768d": 67.0,
    "minilm-6l-384d": 22.7,
    "rosita-6": 14.5,
}
"""Parameters with BERT's vocabulary, in millions, as their papers and cards say."""


# --- from scratch


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_the_parameters_that_are_published(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built on the meta device: shapes, no numbers."""
    built: list[Any] = []
    vocabulary = type("Vocabulary", (), {"__len__": lambda self: 30522, "pad_token_id": 0})()
    monkeypatch.setattr("hskstore.students.presets.load_tokenizer", lambda name: vocabulary)
    monkeypatch.setattr("hskstore.students.presets.save_model", lambda model, tokenizer, out: built.append(model))
    with torch.device("meta"):
        made = new_student(preset, tmp_path / "student")
    shape = PRESETS[preset]
    assert round(made.parameters / 1e6, 1) == MILLIONS[preset]
    assert made.layers == shape.layers == len(built[0].bert.encoder.layer)
    assert built[0].config.vocab_size == 30522 and built[0].config.hidden_size == shape.hidden


def test_rosita_6_is_counted_part_by_part() -> None:
    words, rank, hidden, ffn, units = 30522, 128, 768, 768, 2 * 64
    embeddings = words * rank + rank * hidden + (512 + 2 + 2) * hidden
    layer = 3 * (hidden + 1) * units + (units + 1) * hidden + (hidden + 1) * ffn + (ffn + 1) * hidden + 4 * hidden
    head = (hidden + 1) * hidden + 2 * (hidden + 1)
    assert PRESETS["rosita-6"] == Shape(6, hidden, 2, ffn, head_size=64, embedding_rank=rank)
    assert round((embeddings + 6 * layer + head) / 1e6, 1) == MILLIONS["rosita-6"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_folder(make_bert(layers=6, seed=3), tmp_path_factory.mktemp("teacher"))


@pytest.mark.parametrize("number", [0, -1, 1.5, float("nan"), True, 2**31])
@pytest.mark.parametrize("place", range(6))
def test_a_shape_that_is_none_is_refused(place: int, number: Any) -> None:
    numbers: list[Any] = [2, 16, 2, 8, 8, 4]
    numbers[place] = number
    with pytest.raises(OptionError, match="must be a whole number from 1"):
        Shape(*numbers)


def test_a_place_for_a_student_may_be_a_string(teacher: str, world: Path, tmp_path: Path) -> None:
    shape = Shape(1, 16, 2, 24)
    for made in (
        new_student(shape, f"{tmp_path}/new", vocab_from=teacher),
        slice_teacher(teacher, "1", f"{tmp_path}/slice"),
        prune_teacher(str(world / "teacher"), str(world / "data"), out=f"{tmp_path}/pruned", task="sst2", to=PruneTo(heads=2)),
    ):
        assert made.folder.startswith(str(tmp_path)) and load_classifier(made.folder)[1]


def test_the_seed_decides_a_new_student(teacher: str, tmp_path: Path) -> None:
    shape = Shape(1, 16, 2, 24)
    weights = []
    for before, (name, seed) in enumerate((("one", 0), ("two", 0), ("other", 1))):
        torch.manual_seed(before)  # what was drawn before makes no difference
        new_student(shape, tmp_path / name, vocab_from=teacher, seed=seed)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_four_numbers_make_a_student_too(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = ["--layers", 3, "--hidden", 20, "--heads", 5, "--ffn", 36]
    assert hsk("student", "new", *numbers, "--vocab-from", teacher, "--out", tmp_path / "new", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    model, trained = load_classifier(str(tmp_path / "new"))
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size) == (3, 20, 5, 36)
    assert said == {"folder": str(tmp_path / "new"), "layers": 3, "parameters": model.num_parameters()}
    assert trained and config.vocab_size == 5 + len(WORDS) and config.pad_token_id == 0
    assert load_tokenizer(str(tmp_path / "new"))("the cat")["input_ids"] == make_tokenizer()("the cat")["input_ids"]


def test_a_new_student_of_rositas_shape_is_a_pruned_bert(teacher: str, tmp_path: Path) -> None:
    made = new_student(Shape(2, 24, 3, 10, head_size=4, embedding_rank=5), tmp_path / "new", vocab_from=teacher)
    model, _ = load_classifier(made.folder)
    assert (model.config.heads_per_layer, model.config.head_size, model.config.embedding_size) == ([3, 3], 4, 5)
    table = model.bert.embeddings.word_embeddings.table.weight.detach()
    assert 0.01 < float(table[1:].std()) < 0.03 and not table[0].any(), "initialised like BERT, padding at zero"


NUMBERS = ["--layers", "2", "--hidden", "16", "--heads", "2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a PRESET, or give all of --layers --hidden --heads --ffn"),
        (NUMBERS, "name a PRESET, or give all of --layers --hidden --heads --ffn"),
        (["bert-tiny", "--layers", "3"], "name a PRESET, or give all of"),
        ([*NUMBERS[:-1], "3", "--ffn", "8"], "--hidden 16 --heads 3: the width must be a multiple of the heads"),
        ([*NUMBERS, "--ffn", "0"], "--ffn"),
        ([*NUMBERS, "--ffn", "many"], "--ffn"),
        (["bert-huge"], "unknown preset bert-huge: choose one of bert-tiny, "),
        (["bert-tiny", "--vocab-from", "{empty}"], "{empty}: no tokenizer could be loaded"),
        (["bert-tiny", "--out", "{teacher}"], "{teacher} already holds a model"),
    ],
    ids=str,
)
def test_a_new_students_mistakes_are_one_message_and_leave_nothing_behind(
    words: Sequence[str], said: str, teacher: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"teacher": teacher, "empty": str(tmp_path / "empty")}
    filled = [word.format(**places) for word in words]
    assert hsk("student", "new", "--vocab-from", teacher, "--out", tmp_path / "new", *filled) == 2
    err = capfd.readouterr().err
    assert said.format(**places) in err and "Traceback" not in err
    assert not (tmp_path / "new").exists()


# --- layers of a teacher


@pytest.mark.parametrize(
    ("text", "total", "layers"),
    [
        ("4,8,12", 12, (4, 8, 12)),
        ("3", 12, (3,)),
        ("2, 2,1", 4, (2, 2, 1)),
        ("bottom:3", 12, (1, 2, 3)),
        ("bottom:12", 12, tuple(range(1, 13))),
        ("every:2", 12, (2, 4, 6, 8, 10, 12)),
        ("every:4", 12, (4, 8, 12)),
        ("every:5", 12, (5, 10)),
        ("every:1", 3, (1, 2, 3)),
    ],
)
def test_layers_are_named_three_ways(text: str, total: int, layers: tuple[int, ...]) -> None:
    assert parse_layers(text, total) == layers


@pytest.mark.parametrize(
    "text",
    ["", "two", "1,,2", "1;2", "top:3", "bottom:", "bottom:0", "bottom:-1", "bottom:x", "every:0", "every:1.5", ":3", "1:2"],
)
def test_layers_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(
        OptionError, match=rf"^--layers {text}: expected layers from 1 with commas \(4,8,12\), bottom:3 or every:2$"
    ):
        parse_layers(text, 12)


@pytest.mark.parametrize("text", ["7", "0", "-1", "1,7", "bottom:7", f"bottom:{10**12}", "every:7"])
def test_layers_beyond_the_teachers_are_refused(text: str, teacher: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=rf"^--layers {text}: .* has layers 1 to 6$"):
        slice_teacher(teacher, text, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("text", "layers"), [("6,1", (6, 1)), ("bottom:2", (1, 2)), ("every:3", (3, 6)), ("2,2", (2, 2))])
def test_a_sliced_students_layers_and_all_around_them_are_the_teachers_own(
    text: str, layers: tuple[int, ...], teacher: str, tmp_path: Path
) -> None:
    made = slice_teacher(teacher, text, tmp_path / "student")
    theirs, mine = (load_file(Path(folder, "model.safetensors")) for folder in (teacher, made.folder))
    expected = {name: tensor for name, tensor in theirs.items() if ".layer." not in name}
    for number, layer in enumerate(layers):
        prefix = f"bert.encoder.layer.{layer - 1}."
        expected |= {
            f"bert.encoder.layer.{number}.{name.removeprefix(prefix)}": tensor
            for name, tensor in theirs.items()
            if name.startswith(prefix)
        }
    assert mine.keys() == expected.keys() and all(torch.equal(mine[name], expected[name]) for name in expected)
    model, trained = load_classifier(made.folder)
    assert trained and model.config.num_hidden_layers == made.layers == len(layers)
    assert made.parameters == model.num_parameters()


FEW = {
    "vocab_size": 5 + len(WORDS),
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_hidden_layers": 6,
    "pad_token_id": 0,
}


def modernbert(folder: Path, **options: Any) -> str:
    """Layers 1 and 4 see whole rows, the others four tokens to either side; the first has no norm before its attention."""
    ends = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    config = tf.ModernBertConfig(**FEW, **ends, local_attention=8, initializer_range=0.2, **options)
    return save_folder(tf.ModernBertForSequenceClassification(config), folder)


@pytest.mark.parametrize(
    ("text", "layers", "every"), [("bottom:4", [1, 2, 3, 4], 3), ("1,4", [1, 4], 1), ("1,3,4,5", [1, 3, 4, 5], 2)]
)
def test_layers_of_several_kinds_stay_of_their_kinds(text: str, layers: list[int], every: int, tmp_path: Path) -> None:
    """A row of 40 tokens is longer than the windows: what the copies compute is what the layers do where they came from."""
    teacher = modernbert(tmp_path / "teacher", global_attn_every_n_layers=3)
    made = slice_teacher(teacher, text, tmp_path / "student")
    whole, _ = load_classifier(teacher)
    sliced, trained = load_classifier(made.folder)
    kinds = whole.config.layer_types
    assert trained and sliced.config.layer_types == [kinds[layer - 1] for layer in layers]
    assert sliced.config.global_attn_every_n_layers == every, "as transformers 4 reads it"
    whole.model.layers = torch.nn.ModuleList(whole.model.layers[layer - 1] for layer in layers)
    ids = torch.randint(5, FEW["vocab_size"], (1, 40))
    with torch.no_grad():
        torch.testing.assert_close(sliced.eval()(ids).logits, whole.eval()(ids).logits)


def test_a_cadence_that_no_number_says_is_not_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = slice_teacher(modernbert(tmp_path / "teacher", global_attn_every_n_layers=3), "1,4,5", tmp_path / "student")
    config = load_classifier(made.folder)[0].config
    assert config.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    assert "global_attn_every_n_layers" not in json.loads(Path(made.folder, "config.json").read_text())
    assert "transformers 5 reads it of each, 4 would take others" in caplog.text


@pytest.mark.parametrize(
    ("family", "layers", "said"),
    [
        (
            lambda folder: save_folder(tf.AlbertForSequenceClassification(tf.AlbertConfig(**FEW, embedding_size=8)), folder),
            "bottom:2",
            "no single list of 6 layers",
        ),
        (modernbert, "every:2", r"the layers of a modernbert are built for their places; 2,4,6 would be others"),
        (modernbert, "4,1", r"4,1 would be others as layers 1 to 2: choose from the bottom, such as bottom:2"),
    ],
    ids=["albert", "modernbert without its first", "modernbert in another order"],
)
def test_a_family_whose_layers_cannot_be_chosen_is_refused_by_name(family: Any, layers: str, said: str, tmp_path: Path) -> None:
    folder = family(tmp_path / "teacher")
    with pytest.raises(ModelError, match=said):
        slice_teacher(folder, layers, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_no_weight_shows_of_a_layers_place_is_seen_in_what_it_computes(tmp_path: Path) -> None:
    """Every second layer of this SmolLM3 has no rotary embedding, as its config counts them."""
    torch.manual_seed(0)
    config = tf.SmolLM3Config(**FEW, num_key_value_heads=2, no_rope_layer_interval=2, initializer_range=0.2)
    folder = save_folder(tf.SmolLM3ForSequenceClassification(config), tmp_path / "teacher")
    with pytest.raises(ModelError, match="the layers of a smollm3 are built for their places; 1,3 would be others"):
        slice_teacher(folder, "1,3", tmp_path / "new")
    assert slice_teacher(folder, "bottom:2", tmp_path / "student").layers == 2


# --- a pruned teacher, at the command line


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    (root / "data").mkdir()
    write_tsv(root / "data" / "train.tsv", 150, seed=1)
    write_tsv(root / "data" / "dev.tsv", 40, seed=2)
    save_folder(make_bert(), root / "teacher")
    save_folder(make_bert(labels=3), root / "three")
    save_folder(make_bert(labels=1), root / "score")
    make_bert().bert.save_pretrained(root / "headless")
    make_tokenizer().save_pretrained(root / "headless")
    config = tf.DistilBertConfig(vocab_size=5 + len(WORDS), dim=16, n_heads=4, hidden_dim=32, n_layers=2, num_labels=2)
    save_folder(tf.DistilBertForSequenceClassification(config), root / "distilbert")
    return root


def prune(world: Path, *words: object) -> int:
    return hsk("student", "prune", world / "teacher", world / "data", "--task", "sst2", *words)


def test_a_teacher_is_pruned_at_the_command_line_and_its_student_is_a_model_like_any(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student"
    assert prune(world, "--layers", 2, "--to", "1,10,6", "--out", out, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    model, trained = load_classifier(str(out))
    assert said == {"folder": str(out), "layers": 2, "parameters": model.num_parameters()} and trained
    assert (model.config.heads_per_layer, model.config.ffn_per_layer, model.config.embedding_size) == ([1, 1], [10, 10], 6)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert hsk("eval", out, world / "data", "--task", "sst2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == said["parameters"]
    assert prune(world, "--to", "3,all,all", "--out", tmp_path / "other") == 0
    assert "other: pruned from" in (text := capsys.readouterr().out) and "4 layers" in text


def test_what_is_not_asked_for_stays_and_nothing_is_left_to_chance(world: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert prune(world, "--to", "2,all,all", "--out", tmp_path / name) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    theirs = load_file(world / "teacher" / "model.safetensors")
    changed = {name for name in theirs if name not in one or one[name].shape != theirs[name].shape}
    assert {name.partition(".attention.")[2] for name in changed} == {
        *("self.query.weight", "self.query.bias", "self.key.weight", "self.key.bias", "self.value.weight", "self.value.bias"),
        "output.dense.weight",
    }
    assert all(torch.equal(one[name], theirs[name]) for name in theirs.keys() - changed)


MISTAKES: list[tuple[list[str], str]] = [
    (["{world}/teacher", "{world}/data", "--text", "sentence"], "pass --label COLUMN"),
    (["{world}/three", "{world}/data", "--task", "sst2"], "has 3 outputs; the task sst2 needs 2 classes"),
    (["{world}/score", "{world}/data", "--task", "sst2"], "has 1 outputs"),
    (["{world}/teacher", "{world}/data", "--text", "sentence", "--label", "stars"], "stars"),
    (["{world}/teacher", "{world}/data", "--task", "sst2", "--to", "0,all,all"], "0 heads to keep: {world}/teacher has 1 to 4"),
    (["{world}/teacher", "{world}/data", "--task", "sst2", "--to", "5,all,all"], "5 heads to keep: {world}/teacher has 1 to 4"),
    (["{world}/teacher", "{world}/data", "--task", "sst2", "--to", "all,65,all"], "65 FFN units to keep"),
    (["{world}/teacher", "{world}/data", "--task", "sst2", "--to", "all,all,33"], "33 dimensions of word embeddings to keep"),
    (["{world}/teacher", "{world}/data", "--task", "sst2", "--to", "2,32"], "--to 2,32: expected HEADS,FFN,RANK"),
    (["{world}/teacher", "{world}/data", "--task", "sst2", "--layers", "0"], "--layers 0: must be a whole number from 1"),
    (["{world}/teacher", "{world}/data", "--task", "sst2", "--layers", "5"], "--layers 5: {world}/teacher has 1 to 4"),
    (
        ["{world}/teacher", "{world}/data", "--task", "sst2", "--max-length", "999"],
        "--max-length 999: this tokenizer takes 3 to 64 tokens",
    ),
    (["{world}/teacher", "{world}/nowhere", "--task", "sst2"], "nowhere"),
    (["{world}/headless", "{world}/data", "--task", "sst2"], "no trained classification head"),
    (["{world}/distilbert", "{world}/data", "--task", "sst2"], "only BERT models can be pruned; this is distilbert"),
    (["{world}/teacher", "{world}/data", "--task", "sst2", "--out", "{world}/three"], "already holds a model"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(words)[-60:] for words, _ in MISTAKES])
def test_a_mistake_in_pruning_is_one_message_and_leaves_nothing_behind(
    words: Sequence[str], said: str, world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    filled = [word.format(world=world) for word in words]
    assert hsk("student", "prune", "--out", tmp_path / "new", *filled) == 2
    err = capfd.readouterr().err
    assert said.format(world=world) in err and "Traceback" not in err
    assert not (tmp_path / "new").exists()


# --- a published student


@pytest.mark.long
@pytest.mark.real
def test_a_published_tinybert_is_loaded_and_taught_by_a_real_teacher(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As on the hub: weights of pretraining and of its own distillation, BERT's vocabulary in vocab.txt, maybe no model_type."""
    folder = tmp_path / "tinybert"
    folder.mkdir()
    sizes = {
        "vocab_size": 30522,
        "hidden_size": 312,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
        "intermediate_size": 1200,
        "max_position_embeddings": 512,
    }
    torch.manual_seed(0)
    published = tf.BertForPreTraining(tf.BertConfig(**sizes))
    extra = {"fit_dense.weight": torch.randn(384, 312), "fit_dense.bias": torch.zeros(384)}
    weights = {name: tensor.clone() for name, tensor in published.state_dict().items()}
    assert any(name.startswith("cls.") for name in weights)
    save_file(weights | extra, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(SHARED / "models/minilm-l6/vocab.txt", folder / "vocab.txt")
    config = {**sizes, "cell": {}, "emb_size": 312, "structure": [], "pre_trained": "", "training": ""}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"^{folder}: no model could be loaded \(.*`model_type` key in its config\.json"):
        load_classifier(str(folder))

    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    model, trained = load_classifier(str(folder))
    assert not trained and model.config.hidden_size == 312
    assert torch.equal(model.bert.encoder.layer[3].output.dense.weight, weights["bert.encoder.layer.3.output.dense.weight"])
    teacher = str(SHARED / "models/minilm-l6-sst2")
    assert tokenizer_sha256(load_tokenizer(str(folder))) == tokenizer_sha256(load_tokenizer(teacher))

    (tmp_path / "data").mkdir()
    for name, rows in (("train.tsv", 65), ("dev.tsv", 17)):
        lines = itertools.islice((SHARED / "data/sst2_small" / name).open(), rows)
        (tmp_path / "data" / name).write_text("".join(lines))
    (made,) = extract(
        teacher, str(tmp_path / "data"), out=tmp_path, keeps=[Keep(1, 9, 0.1)], strategies=[Strategy(4)], task="sst2"
    )
    found = distill(made.root, Recipe(str(folder), Mud(), max_steps=2), out=tmp_path / "run")
    assert [phase.steps for phase in found.phases] == [1, 1] and found.scores["validation"].rows == 16
    taught = load_file(tmp_path / "run" / "model.safetensors")
    assert not [name for name in taught if name.startswith(("fit_dense", "cls."))]
