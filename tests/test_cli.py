"""hsk as a person uses it: the whole story, and one clear message with exit code 2 for every mistake."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from hskstore.store import open_store
from hskstore.store.schema import with_check
from tests.conftest import hsk, make_bert, make_tokenizer, save_folder, write_tsv


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a teacher made by hsk finetune, a store, a student and a run."""
    root = tmp_path_factory.mktemp("world")
    (root / "data").mkdir()
    write_tsv(root / "data" / "train.tsv", 600, seed=1)
    write_tsv(root / "data" / "dev.tsv", 80, seed=2)
    save_folder(make_bert(), root / "blank")
    data = root / "data"
    assert hsk("finetune", root / "blank", data, "--task", "sst2", "--out", root / "teacher", "--epochs", 1, "--lr", 1e-3) == 0
    extract = ["extract", root / "teacher", data, "--task", "sst2", "--student-layers", 2, "--out", root / "stores"]
    assert hsk(*extract, "--keep", "1,4,0.25", "--keep", "all") == 0
    assert hsk("student", "slice", root / "teacher", "--layers", "2,4", "--out", root / "student") == 0
    shutil.move(root / "teacher", root / "hidden-teacher")
    return root


def store(world: Path) -> Path:
    return world / "stores" / "d1-l4-w0.25"


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("mud", []),
        pytest.param("mud", ["--targets", "ignore"], marks=pytest.mark.long),
        pytest.param("kd", ["--alpha", 0.5, "--temperature", 2], marks=pytest.mark.long),
        pytest.param("finetune", [], marks=pytest.mark.long),
    ],
)
def test_a_student_is_trained_from_the_store_alone_and_is_a_plain_folder(
    method: str, options: list[Any], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    steps = ["--max-steps", 6, "--json"]
    assert hsk("distill", store(world), "--student", world / "student", "--method", method, "--out", run, *steps, *options) == 0
    result = json.loads(capsys.readouterr().out)
    assert sum(phase["steps"] for phase in result["phases"]) == 6
    assert result["digest"] == open_store(store(world)).digest
    assert json.loads((run / "metrics.json").read_text())["digest"] == result["digest"]
    assert result["digest"] in (run / "README.md").read_text()
    assert not (run / "checkpoint").exists() and not [path for path in run.iterdir() if path.name.startswith(".new")]
    code = (
        "import sys; sys.modules['hskstore'] = None\n"
        "from transformers import AutoModelForSequenceClassification as M, AutoTokenizer as T\n"
        f"m = M.from_pretrained({str(run)!r}); t = T.from_pretrained({str(run)!r})\n"
        "print(m.config.id2label[int(m(**t('the cat sees a dog', return_tensors='pt')).logits.argmax())])"
    )
    alone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert alone.stdout.strip() in ("negative", "positive")


def test_eval_scores_a_model_on_data_and_on_a_store_alike(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = world / "hidden-teacher"
    capsys.readouterr()
    assert hsk("eval", model, world / "data", "--task", "sst2", "--json") == 0
    on_data = json.loads(capsys.readouterr().out)
    assert hsk("eval", model, store(world), "--json") == 0
    on_store = json.loads(capsys.readouterr().out)
    assert on_data["score"] == on_store["score"] and on_data["rows"] == 80
    assert on_data["bytes"] == sum(file.stat().st_size for file in model.glob("*.safetensors"))
    assert on_data["parameters"] == make_bert().num_parameters() and on_data["latency_ms"] > 0


def test_several_splits_are_scored_together_and_one_by_one(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    words = ["eval", world / "hidden-teacher", world / "data", "--task", "sst2", "--split", "validation", "--split", "train"]
    assert hsk(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    parts = found["by_split"]
    expected = (80 * parts["validation"]["score"]["accuracy"] + 600 * parts["train"]["score"]["accuracy"]) / 680
    assert found["score"]["accuracy"] == pytest.approx(expected)


def test_show_tells_what_a_store_holds(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert hsk("show", store(world)) == 0
    text = capsys.readouterr().out
    assert "sealed" in text and "train/hidden/values" in text and "A^HSK, in whole vectors a row: 1 planned" in text
    assert hsk("show", store(world), "--row", 3, "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert len(row["ranks"][0]["kept"]) == min(4, len(row["tokens"]) - 1) and row["tokens"][0] == "[CLS]"
    assert hsk("show", store(world), "--row", 3, "--split", "validation") == 0
    assert hsk("show", store(world), "--row", 3) == 0
    assert "best first" in capsys.readouterr().out


def test_show_tells_how_far_an_unsealed_store_is(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(store(world), tmp_path / "store")
    (tmp_path / "store" / "manifest.json").unlink()
    capsys.readouterr()
    assert hsk("show", tmp_path / "store") == 0
    assert "not sealed; 3 of 3 units done" in capsys.readouterr().out


def test_a_store_that_will_have_no_labels_is_told_of(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["extract", world / "hidden-teacher", world / "data" / "dev.tsv", "--validation", world / "data" / "dev.tsv"]
    words += ["--text", "sentence", "--student-layers", 2, "--keep", "1,4,0.25", "--out"]
    for labelled in (["--label", "label"], []):
        capsys.readouterr()
        assert hsk(*words, tmp_path / str(len(labelled)), *labelled) == 0
        assert ("no labels are kept" in " ".join(capsys.readouterr().err.split())) == (not labelled)


def test_extract_again_makes_nothing_and_says_so(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(world / "stores", tmp_path / "stores")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "stores").rglob("*") if path.is_file()}
    words = ["extract", world / "hidden-teacher", world / "data", "--task", "sst2", "--student-layers", 2, "--keep", "1,4,0.25"]
    assert hsk(*words, "--out", tmp_path / "stores") == 0
    assert "nothing is missing" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "stores").rglob("*") if path.is_file()} == before


def test_extract_re_makes_what_was_condemned_and_says_so_where_the_digest_is_another(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Path(shutil.copytree(world / "stores", tmp_path / "stores")) / store(world).name
    digest = open_store(mine).digest
    words = ["extract", world / "hidden-teacher", world / "data", "--task", "sst2", "--student-layers", 2, "--keep", "1,4,0.25"]
    shard = mine / "train/hidden/values/c/0/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert hsk(*words, "--out", tmp_path / "stores") == 2, "a damaged store is no finished one"
    assert hsk("verify", mine, "--condemn") == 2
    capsys.readouterr()
    assert hsk(*words, "--out", tmp_path / "stores") == 0
    assert "the teacher runs over 512 rows" in (told := capsys.readouterr().err) and "had the digest" not in told
    assert open_store(mine).digest == digest

    # As if the condemned unit had been made elsewhere, with other last bits.
    (mine / "manifest.json").unlink()
    (mine / "condemned.json").write_bytes(with_check({"digest": "0" * 64}))
    assert hsk(*words, "--out", tmp_path / "stores") == 0
    assert f"had the digest {'0' * 16} and has {digest[:16]} now" in capsys.readouterr().err
    assert not (mine / "condemned.json").exists()


def test_a_new_student_has_the_teachers_vocabulary(world: Path, tmp_path: Path) -> None:
    assert hsk("student", "new", "bert-tiny", "--vocab-from", world / "hidden-teacher", "--out", tmp_path / "tiny") == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tiny")
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 128)
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "tiny"))
    words = ["distill", store(world), "--student", tmp_path / "tiny", "--out", tmp_path / "run", "--max-steps", 2]
    assert hsk(*words, "--projection", "per-layer") == 0


def test_a_sliced_student_has_the_teachers_layers(world: Path) -> None:
    teacher = AutoModelForSequenceClassification.from_pretrained(world / "hidden-teacher").bert
    student = AutoModelForSequenceClassification.from_pretrained(world / "student").bert
    for mine, theirs in ((0, 1), (1, 3)):
        for one, two in zip(student.encoder.layer[mine].parameters(), teacher.encoder.layer[theirs].parameters(), strict=True):
            assert torch.equal(one, two)
    assert torch.equal(student.embeddings.word_embeddings.weight, teacher.embeddings.word_embeddings.weight)


def test_a_layer_may_be_copied_twice(world: Path, tmp_path: Path) -> None:
    assert hsk("student", "slice", world / "hidden-teacher", "--layers", "2,2", "--out", tmp_path / "twice") == 0
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "twice").config.num_hidden_layers == 2


def other_tokenizer(world: Path, folder: Path) -> Path:
    save_folder(make_bert(layers=2), folder, make_tokenizer(sorted(make_tokenizer().get_vocab())[5:]))
    return folder


def wordless(world: Path, folder: Path) -> Path:
    make_bert().save_pretrained(folder)
    return folder


def short(world: Path, folder: Path) -> Path:
    config = make_bert(layers=2).config
    config.max_position_embeddings = 8
    save_folder(BertForSequenceClassification(config), folder)
    return folder


def exported(world: Path, folder: Path) -> Path:
    make_bert().config.save_pretrained(folder)
    (folder / "model.onnx").write_bytes(b"no model")
    return folder


def pickled(world: Path, folder: Path) -> Path:
    make_bert().config.save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    return folder


def small_vocabulary(world: Path, folder: Path) -> Path:
    shutil.copytree(world / "student", folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.resize_token_embeddings(10)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    return folder


def deep(world: Path, folder: Path) -> Path:
    save_folder(make_bert(layers=3), folder)
    return folder


def truncated(world: Path, folder: Path) -> Path:
    shutil.copytree(world / "student", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


def unsealed(world: Path, folder: Path) -> Path:
    shutil.copytree(store(world), folder)
    (folder / "manifest.json").unlink()
    return folder


def damaged(world: Path, folder: Path) -> Path:
    shutil.copytree(store(world), folder)
    shard = next((folder / "train" / "hidden" / "values" / "c").rglob("0/0/0/0"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    return folder


FINETUNE = ["finetune", "{world}/blank", "{world}/data", "--task", "sst2", "--out", "{new}"]
DISTILL = ["distill", "{store}", "--student", "{world}/student", "--out", "{new}", "--max-steps", "2"]
EXTRACT = ["extract", "{world}/hidden-teacher", "{world}/data", "--task", "sst2", "--student-layers", "2", "--out", "{new}"]
PLAN = ["plan", "{world}/hidden-teacher", "{world}/data", "--task", "sst2", "--student-layers", "2"]
MISTAKES: list[tuple[list[str], str]] = [
    (["finetune", "{world}/blank", "{world}/nowhere", "--task", "sst2", "--out", "{new}"], "nowhere"),
    (["finetune", "{world}/blank", "{world}/data", "--task", "sst9", "--out", "{new}"], "unknown task"),
    (["finetune", "{world}/blank", "{world}/data", "--text", "sentence", "--label", "stars", "--out", "{new}"], "stars"),
    (["finetune", "{world}/blank", "{world}/data", "--text", "sentence", "--out", "{new}"], "gold labels"),
    (
        ["finetune", "{world}/none", "{world}/data", "--task", "sst2", "--out", "{new}"],
        "no model could be loaded (there is no such folder",
    ),
    (["finetune", "{world}/blank", "{world}/data", "--task", "sst2", "--out", "{new}", "--lr", "-1"], "--lr"),
    (
        ["finetune", "{world}/blank", "{world}/data", "--task", "sst2", "--out", "{new}", "--max-length", "999"],
        "--max-length 999",
    ),
    (["finetune", "{world}/blank", "{world}/data", "--task", "sst2", "--out", "{new}", "--seed", "-1"], "--seed"),
    ([*EXTRACT, "--keep", "1,9"], "DEPTH,LENGTH,WIDTH"),
    ([*EXTRACT, "--keep", "1,9,1.5"], "at most 1.0"),
    ([*EXTRACT, "--keep", "1,9,x"], "neither a count"),
    ([*EXTRACT, "--keep", "1,9,33"], "more than the teacher's 32"),
    ([*EXTRACT, "--keep", "9,9,0.1"], "has 3 to guide"),
    ([*EXTRACT, "--keep", "1,9,0.1", "--rank", "atention"], "attention-with-sep"),
    ([*EXTRACT, "--keep", "1,9,0.1", "--device", "banana"], "--device banana"),
    ([*EXTRACT, "--keep", "1,9,0.1", "--top-layer", "7"], "layers 1 to 4"),
    ([*EXTRACT, "--keep", "1,9,0.1", "--precison", "bf16"], "No such option"),
    (["extract", "{world}/headless", *EXTRACT[2:], "--keep", "1,9,0.1"], "no trained classification head"),
    (["extract", "{world}/three", *EXTRACT[2:], "--keep", "1,9,0.1"], "3 outputs"),
    (PLAN, "give --keep, --for or --rich (what will it cost?), or --budget"),
    ([*PLAN, "--keep", "all", "--budget", "5MB"], "one of the two"),
    ([*PLAN, "--budget", "5MX"], "expected a number of bytes above zero, such as 500MB"),
    ([*PLAN, "--budget", "0"], "above zero"),
    ([*PLAN, "--budget", "1kB", "--rate", "5"], "no configuration fits; the smallest, --keep 1,1,0.1"),
    ([*PLAN, "--budget", "5MB", "--student-layers", "3"], "goes with one --student-layers"),
    ([*PLAN, "--budget", "5MB", "--top-layer", "7"], "layers 1 to 4"),
    ([*PLAN, "--keep", "1,9,0.1", "--rate", "0"], "--rate 0.0: must be above zero"),
    ([*PLAN, "--keep", "1,9,0.1", "--rate", "nan"], "--rate nan: must be above zero"),
    ([*PLAN, "--keep", "1,9,x"], "neither a count"),
    ([*PLAN, "--keep", "1,9,0.1", "--rank", "atention"], "attention-with-sep"),
    ([*PLAN, "--keep", "1,9,0.1", "--device", "banana"], "--device banana"),
    (["plan", "{world}/headless", *PLAN[2:], "--keep", "1,9,0.1"], "no trained classification head"),
    (["distill", "{world}/data", *DISTILL[2:]], "is not a store"),
    (["distill", "{world}/stores", *DISTILL[2:]], "it holds the stores d1-l4-w0.25, dall-lall-wall"),
    (["distill", "{world}/nowhere", *DISTILL[2:]], "no such folder"),
    (["distill", "{unsealed}", *DISTILL[2:]], "not sealed: 3 of 3 units"),
    (["distill", "{damaged}", *DISTILL[2:]], "is damaged"),
    (["distill", "{store}", "--student", "{other_tokenizer}", "--out", "{new}"], "extract with --keep-offsets"),
    (["distill", "{store}", "--student", "{small_vocabulary}", "--out", "{new}"], "vocabulary of 10"),
    (["distill", "{world}/stores/dall-lall-wall", "--student", "{deep}", "--out", "{new}"], "extract with --student-layers 3"),
    (["distill", "{store}", "--student", "{truncated}", "--out", "{new}"], "no model could be loaded"),
    (["distill", "{store}", "--student", "{world}/nowhere", "--out", "{new}"], "nowhere"),
    ([*DISTILL, "--method", "mudd"], "--method mudd: choose one of mud, kd"),
    ([*DISTILL, "--epochs", "1,2,3"], "3 values for 2 phases"),
    ([*DISTILL, "--epochs", "x"], "numbers with commas"),
    ([*DISTILL, "--lr", "0"], "above zero"),
    ([*DISTILL, "--targets", "none"], "'ignore'"),
    ([*DISTILL, "--max-steps", "1"], "2 phases"),
    ([*DISTILL, "--alpha", "0.5"], "--alpha is no option of the method mud; its own are: --targets"),
    ([*DISTILL, "--method", "finetune", "--temperature", "2"], "its own are: none"),
    (
        [*DISTILL, "--method", "kd", "--projection", "shared"],
        "is no option of the method kd; its own are: --temperature, --alpha",
    ),
    ([*DISTILL, "--temperature", "0"], "above zero"),
    ([*DISTILL, "--method", "kd", "--alpha", "1.5"], "from 0 to 1"),
    (["eval", "{world}/hidden-teacher", "{store}", "--task", "sst2"], "leave out --task"),
    (["eval", "{world}/hidden-teacher", "{world}/stores"], "it holds the stores d1-l4-w0.25, dall-lall-wall"),
    (["demo", "--out", "{world}"], "is not empty"),
    (["distill", "{store}", "--student", "{world}/student", "--out", "{world}/student"], "already holds a model"),
    (["distill", "{store}", "--student", "{world}/student", "--out", "{world}/data/train.tsv", "--max-steps", "2"], "train.tsv"),
    (["eval", "{world}/hidden-teacher", "{world}/data", "--task", "cola"], "unacceptable"),
    (["eval", "{world}/hidden-teacher", "{world}/data", "--task", "sst2", "--split", "test"], "test"),
    (["eval", "{world}/three", "{world}/data", "--task", "sst2"], "3 outputs"),
    (["eval", "{world}/headless", "{world}/data", "--task", "sst2"], "no trained classification head"),
    (["show", "{world}/data"], "is not a store: it has no plan.json; hsk extract makes stores below its --out"),
    (["show", "{store}", "--row", "600"], "rows 0 to 599"),
    (["show", "{store}", "--row", "1", "--split", "tset"], "train, validation"),
    (["show", "foo://bar"], "foo://bar"),
    (["student", "new", "bert-huge", "--vocab-from", "{world}/blank", "--out", "{new}"], "bert-tiny"),
    (["student", "slice", "{world}/hidden-teacher", "--layers", "2,5", "--out", "{new}"], "layers 1 to 4"),
    (["student", "slice", "{world}/hidden-teacher", "--layers", "two", "--out", "{new}"], "bottom:3 or every:2"),
    (["student", "new", "--layers", "2", "--heads", "2", "--ffn", "8", "--out", "{new}"], "or give all of --layers"),
    (["student", "new", "bert-tiny", "--layers", "2", "--out", "{new}"], "name a PRESET, or"),
    (
        ["student", "prune", "{world}/hidden-teacher", "{world}/data", "--task", "sst2", "--to", "9,all,all", "--out", "{new}"],
        "1 to 4",
    ),
    (["student", "export", "{world}/hidden-teacher", "--out", "{new}"], "pass --onnx"),
    (["student", "export", "{world}/headless", "--onnx", "--out", "{new}"], "no trained classification head"),
    (["student", "show", "{world}/nowhere"], "nowhere"),
    (["student", "show", "{pickled}"], "hskstore reads no pickles"),
    (["student", "show", "{exported}"], "is an export to ONNX"),
    (["distill", "{store}", "--student", "{exported}", "--out", "{new}"], "is an export to ONNX"),
    (["eval", "{exported}", "{world}/data", "--task", "sst2"], "model.onnx is damaged"),
    (["distill", "{store}", "--student", "{short}", "--out", "{new}"], "positions for 8 tokens; a row has 15: choose a student"),
    (["student", "slice", "{wordless}", "--layers", "1", "--out", "{new}"], "has no tokenizer"),
    (["student", "new", "bert-tiny", "--vocab-from", "{wordless}", "--out", "{new}"], "has no tokenizer"),
    (["eval", "{wordless}", "{world}/data", "--task", "sst2"], "has no tokenizer"),
    (["student", "new", "bert-tiny", "--vocab-from", "{world}/blank", "--seed", "99999999999", "--out", "{new}"], "--seed"),
    ([*DISTILL, "--prune-to", "2,8," + "9" * 5000], "HEADS,FFN,RANK"),
    (["student", "show", "{world}/student", "--teacher", "{world}/data"], "no model could be loaded"),
    ([*DISTILL, "--prune-to", "2,8"], "HEADS,FFN,RANK"),
    ([*DISTILL, "--prune-to", "9,8,4"], "9 heads to keep"),
    ([*DISTILL, "--prune-share", "0.5"], "goes with --prune-to"),
    ([*DISTILL, "--max-minutes", "0"], "--max-minutes 0.0: must be above zero"),
    ([*DISTILL, "--max-minutes", "nan"], "--max-minutes nan: must be above zero"),
    ([*DISTILL, "--patience", "0"], "--patience 0: must be a whole number from 1"),
    ([*DISTILL, "--warmup", "2"], "--warmup 2.0: must be from 0 to 1"),
    ([*DISTILL, "--lr", "5e-5,nan"], "--lr nan: must be above zero and finite"),
    ([*DISTILL, "--lr", "inf"], "--lr inf: must be above zero and finite"),
    ([*DISTILL, "--epochs", "0"], "--epochs 0: must be a whole number from 1"),
    ([*DISTILL, "--batch-size", "-1"], "--batch-size -1: must be a whole number from 1"),
    ([*DISTILL, "--max-steps", "0"], "--max-steps 0: must be a whole number from 1"),
    ([*DISTILL, "--epochs", "9" * 400], "must be a whole number from 1"),
    ([*DISTILL, "--seed", "-1"], "--seed -1: must be a whole number from 0"),
    ([*DISTILL, "--temperature", "inf"], "--temperature inf: must be above zero and finite"),
    ([*DISTILL, "--temperature", "nan"], "--temperature nan: must be above zero and finite"),
    ([*DISTILL, "--method", "kd", "--alpha", "nan"], "--alpha nan: must be from 0 to 1"),
    ([*FINETUNE, "--lr", "nan"], "--lr nan: must be above zero and finite"),
    ([*FINETUNE, "--lr", "inf"], "--lr inf: must be above zero and finite"),
    ([*FINETUNE, "--epochs", "0"], "--epochs 0: must be a whole number from 1"),
    ([*FINETUNE, "--batch-size", "0"], "--batch-size 0: must be a whole number from 1"),
    ([*FINETUNE, "--max-length", "0"], "--max-length 0: must be a whole number from 1"),
    ([*EXTRACT, "--keep", "1,9,0.1", "--batch-tokens", "0"], "--batch-tokens 0: must be a whole number from 1"),
    ([*EXTRACT, "--keep", "1,9,0.1", "--engine", "procs", "--workers", "0"], "--workers 0: must be a whole number from 1"),
    ([*EXTRACT, "--keep", "1,9,0.1", "--seed", "-1"], "--seed -1: must be a whole number from 0"),
    (["verify", "{store}", "--replay", "0", "--teacher", "{world}/hidden-teacher"], "--replay"),
    ([*DISTILL, "--loader", "disk"], "--loader"),
    ([*DISTILL, "--precision", "fp16"], "--precision"),
]


@pytest.fixture(scope="module")
def places(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("places")
    makers = (other_tokenizer, wordless, short, exported, pickled, small_vocabulary, deep, truncated, unsealed, damaged)
    made = {maker.__name__: maker(world, folder / maker.__name__) for maker in makers}
    make_bert().bert.save_pretrained(world / "headless")
    make_tokenizer().save_pretrained(world / "headless")
    save_folder(make_bert(labels=3), world / "three")
    return {**made, "world": world, "store": store(world)}


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(words)[-60:] for words, _ in MISTAKES])
def test_a_mistake_gets_one_message_exit_code_2_and_leaves_nothing_behind(
    words: list[str], said: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [word.format(**places, new=tmp_path / "new") for word in words]
    capsys.readouterr()
    code = hsk(*filled)
    err = capsys.readouterr().err
    assert code == 2, err
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "new").exists()


@pytest.mark.long
def test_a_full_disk_is_one_message_and_what_was_finished_is_kept(world: Path, tmp_path: Path) -> None:
    """A file may not grow beyond 40 kB here: the first bigger shard does not fit, as on a full disk."""
    words = [*EXTRACT[:-1], str(tmp_path / "stores"), "--keep", "all", "--values", "f32"]
    filled = [word.format(world=world) for word in words]
    run = subprocess.run(
        ["bash", "-c", 'ulimit -f 40; exec "$@"', "-", sys.executable, "-m", "hskstore", *filled],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr and "could not be written" in run.stderr
    assert not list(tmp_path.rglob("manifest.json"))
    assert hsk(*filled) == 0


def test_interrupting_distill_keeps_a_checkpoint_and_the_same_command_goes_on(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    from hskstore.cli import progress

    words = ["distill", store(world), "--student", world / "student", "--out", tmp_path / "run", "--max-steps", 8]

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "hidden" and done == 3 * 32:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(progress, "lines", lambda: stop)
        assert hsk(*words) == 130
    assert "goes on from there" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoint").exists() and not (tmp_path / "run" / "config.json").exists()
    assert hsk(*words) == 0
    whole = ["distill", store(world), "--student", world / "student", "--out", tmp_path / "whole", "--max-steps", 8]
    assert hsk(*whole) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_rows_without_text_are_kept_counted_and_warned_of(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + "the cat sees\t1\n" * 20 + "\t0\n" * 3)
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nthe cat\t1\n \t0\n")
    words = ["--task", "sst2", "--student-layers", 2, "--keep", "1,4,4", "--out", tmp_path / "stores"]
    assert hsk("extract", world / "hidden-teacher", tmp_path, *words) == 0
    err = capsys.readouterr().err
    assert "3 rows of train have no text" in err and "1 rows of validation have no text" in err
    assert open_store(tmp_path / "stores" / "d1-l4-w4").plan.splits["train"].rows == 23


def test_the_demo_tells_its_story(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a corpus and a number of steps too small to learn much."""
    monkeypatch.setattr("hskstore.explore.demo.ROWS", {"train": 300, "validation": 60, "test": 80})
    monkeypatch.setattr("hskstore.explore.demo.TEACHER_EPOCHS", 1)
    monkeypatch.setattr("hskstore.explore.demo.STUDENT_STEPS", 6)
    assert hsk("demo", "--out", tmp_path / "demo", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["learns_from"] for row in result["rows"]][3:] == ["1 % of the hidden states", "all hidden states"]
    assert result["rows_scored"] == 80 and all(0 <= row["score"] <= 1 for row in result["rows"])
    assert not (tmp_path / "demo" / "teacher").exists() and (tmp_path / "demo" / "run3" / "config.json").exists()


def test_help_groups_the_commands_by_the_story(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert hsk("--help") == 0
    told = re.findall(r"^(?:╭─ (\w+ ?\w*)|│ ([a-z]+) )", capsys.readouterr().out, flags=re.MULTILINE)
    assert [panel.upper() or command for panel, command in told] == [
        *("OPTIONS ", "BEFORE ANY", "demo", "methods", "plan"),
        *("STAGE ONE", "finetune", "extract", "spans", "STAGE TWO", "distill", "eval"),
        *("THE EXPLORER", "sweep", "search", "recommend", "report"),
        *("STORES", "show", "verify", "derive", "push", "pull", "STUDENTS", "student"),
    ]
