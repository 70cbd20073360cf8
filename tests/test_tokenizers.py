"""Tokenizers as people have them: types that nobody names, no [CLS], unknown words, tokens that the model never saw."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, DistilBertConfig, DistilBertForSequenceClassification, PreTrainedTokenizerFast

from hskstore.config import Keep, Strategy
from hskstore.errors import ModelError
from hskstore.methods import METHODS, Kd
from hskstore.stage_one.extract import ExtractedStore, extract
from hskstore.stage_one.forecast import forecast
from hskstore.stage_one.replay import replay_some
from hskstore.stage_one.teacher import load_teacher
from hskstore.stage_two.distill import distill
from hskstore.stage_two.evaluate import evaluate
from hskstore.stage_two.finetune import finetune
from hskstore.stage_two.recipe import Recipe
from hskstore.store import open_store
from hskstore.text.dataset import Examples
from hskstore.text.rows import Rows
from hskstore.text.tally import TextFacts, TokenCounts
from hskstore.text.tokenise import tokenise
from hskstore.text.tokenizers import load_tokenizer, model_files, tokenizer_from_files, tokenizer_sha256
from tests.conftest import WORDS, hsk, make_bert, make_tokenizer, save_folder, sentences

PAIRS: dict[str, Any] = {"text": ("one", "two"), "label": "label", "task": None}
SINGLE: dict[str, Any] = {"text": ("one",), "label": "label", "task": None}
KEEP: dict[str, Any] = {"keeps": [Keep(1, 2, 4)], "strategies": [Strategy(2)]}
LOGITS: dict[str, Any] = {"methods": [METHODS["kd"]()], "strategies": [Strategy(2)]}


def edit(file: Path, **fields: Any) -> None:
    """Change fields of a JSON file; those that are None go."""
    document = json.loads(file.read_text())
    for name, value in fields.items():
        document.pop(name, None)
        if value is not None:
            document[name] = value
    file.write_text(json.dumps(document))


def open_types(folder: str) -> str:
    """A tokenizer of a generic class that does not say whether its types are read."""
    edit(Path(folder, "tokenizer_config.json"), model_input_names=None)
    return folder


def write_data(folder: Path, train: list[tuple[str, str, int]], dev: list[tuple[str, str, int]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("dev", dev)):
        lines = ["one\ttwo\tlabel", *(f"{one}\t{two}\t{label}" for one, two, label in rows)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return str(folder)


def some(rows: int, seed: int) -> list[tuple[str, str, int]]:
    return [
        (one, two, row % 2) for row, (one, two) in enumerate(zip(sentences(rows, seed), sentences(rows, seed + 50), strict=True))
    ]


def run(teacher: str, data: str, out: Path, how: dict[str, Any] = KEEP, **options: Any) -> ExtractedStore:
    (made,) = extract(teacher, data, out=out, device="cpu", **how, **(PAIRS | options))
    return made


# --- token types


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, str]]:
    """A teacher that was trained on types, or on zeros, and pairs whose labels it all knows if it is given these."""
    place = tmp_path_factory.mktemp("pairs")
    model = make_bert(labels=2).eval()
    rows = [some(100, 1), some(60, 2)]

    def margins(split: list[tuple[str, str, int]], truth: str) -> torch.Tensor:
        encoded = make_tokenizer()([row[0] for row in split], [row[1] for row in split], padding=True, return_tensors="pt")
        if truth == "zeros":
            encoded["token_type_ids"].zero_()
        with torch.no_grad():
            logits = model(**encoded).logits
        return logits[:, 1] - logits[:, 0]

    with torch.no_grad():  # the border between the classes in the middle, where the two ways seldom agree
        model.classifier.bias[0] += torch.cat([margins(rows[1], truth) for truth in ("types", "zeros")]).median() + 1e-3
    teacher = open_types(save_folder(model, place / "teacher"))

    def make(truth: str) -> tuple[str, str]:
        train, dev = (
            [(one, two, int(margin > 0)) for (one, two, _), margin in zip(split, margins(split, truth), strict=True)]
            for split in rows
        )
        return teacher, write_data(place / truth, train, dev)

    return make


@pytest.mark.parametrize("truth", ["types", "zeros"])
def test_open_types_are_what_scores_better_on_dev_and_the_store_its_tokenizer_and_students_have_them(
    truth: str, pairs: Callable[[str], tuple[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher, data = pairs(truth)
    made = run(teacher, data, tmp_path)
    (said,) = [message for message in caplog.messages if "token types" in message]
    assert ("is 1.0000 with types" if truth == "types" else "and 1.0000 with zeros") in said
    assert said.endswith(f"it gets {truth}")
    store = open_store(made.root)
    types = store.read_all("validation/token_type_ids")
    assert bool(types.any()) == (truth == "types")
    named = json.loads(store.tokenizer_files()["tokenizer_config.json"]).get("model_input_names", [])
    assert ("token_type_ids" in named) == (truth == "types")
    assert run(teacher, data, tmp_path).digest == made.digest, "the same again"

    student = open_types(save_folder(make_bert(layers=2, hidden=16, seed=1), tmp_path / "student"))
    distill(store, Recipe(student=student, method=Kd(), epochs=(1,), precision="fp32"), out=tmp_path / "out", device="cpu")
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    n_tokens, ids, row_id = (store.read_all(f"validation/{name}") for name in ("n_tokens", "input_ids", "row_id"))
    lines = [line.split("\t") for line in Path(data, "dev.tsv").read_text().splitlines()[1:]]
    for row in range(5):
        encoded = words(*lines[row_id[row]][:2])
        assert encoded["input_ids"] == ids[row][: n_tokens[row]].tolist()
        given = encoded.get("token_type_ids", [0] * n_tokens[row])
        assert given == types[row][: n_tokens[row]].tolist()
    of_data = evaluate(str(tmp_path / "out"), data, latency=False, **PAIRS).score
    assert of_data == evaluate(str(tmp_path / "out"), made.root, latency=False).score, "it is scored on what it was trained on"
    caplog.clear()
    assert evaluate(teacher, data, latency=False, **PAIRS).score["accuracy"] == 1
    assert [message.endswith(f"it gets {truth}") for message in caplog.messages] == [True]


@pytest.mark.parametrize("named", [["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]])
def test_a_tokenizer_that_says_whether_types_are_read_is_believed(
    named: list[str], pairs: Callable[[str], tuple[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, data = pairs("types")
    teacher = save_folder(make_bert(), tmp_path / "teacher")
    edit(Path(teacher, "tokenizer_config.json"), model_input_names=named)
    store = open_store(run(teacher, data, tmp_path, LOGITS).root)
    assert bool(store.read_all("train/token_type_ids").any()) == ("token_type_ids" in named)
    assert not caplog.messages


@pytest.mark.parametrize("why", ["one text", "one type", "a template without types"])
def test_nothing_is_open_where_the_two_ways_are_the_same(
    why: str, pairs: Callable[[str], tuple[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, data = pairs("types")
    options = {"type_vocab_size": 1} if why == "one type" else {}
    teacher = open_types(save_folder(make_bert(**options), tmp_path / "teacher"))
    if why == "a template without types":
        file = Path(teacher, "tokenizer.json")
        file.write_text(file.read_text().replace('"type_id": 1', '"type_id": 0'))
    made = run(teacher, data, tmp_path, LOGITS, **(SINGLE if why == "one text" else {}))
    assert not caplog.messages
    files = open_store(made.root).tokenizer_files()
    assert "model_input_names" not in json.loads(files["tokenizer_config.json"]), "so that no sound store has another digest"


def test_without_dev_labels_a_pair_gets_types(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    teacher = open_types(save_folder(make_bert(), tmp_path / "teacher"))
    data = write_data(tmp_path / "data", some(40, 1), some(10, 2))
    made = run(teacher, data, tmp_path, LOGITS, label=None)
    assert open_store(made.root).read_all("train/token_type_ids").any()
    assert "without labels to score both by, it gets them" in caplog.text


def test_what_is_finetuned_gets_types_and_its_saved_tokenizer_gives_them(tmp_path: Path) -> None:
    model = open_types(save_folder(make_bert(layers=1), tmp_path / "model"))
    data = write_data(tmp_path / "data", some(40, 1), some(10, 2))
    options: dict[str, Any] = {"text": ("one", "two"), "label": "label", "epochs": 1, "device": "cpu"}
    made = finetune(model, data, out=tmp_path / "tuned", **options)
    assert AutoTokenizer.from_pretrained(made.folder)("the cat", "a dog")["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert made.text["train"].rows == 40


def test_a_student_with_words_of_its_own_gets_types_too(tmp_path: Path) -> None:
    teacher = save_folder(make_bert(), tmp_path / "teacher")
    data = write_data(tmp_path / "data", some(60, 1), some(10, 2))
    made = run(teacher, data, tmp_path, LOGITS, keep_offsets=True)
    own = make_tokenizer(list(reversed(WORDS)))
    student = open_types(save_folder(make_bert(layers=1, hidden=16), tmp_path / "student", own))
    distill(made.root, Recipe(student=student, method=Kd(), epochs=(1,), precision="fp32"), out=tmp_path / "out", device="cpu")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("the cat", "a dog")["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_a_student_without_types_is_saved_with_a_tokenizer_that_gives_none(tmp_path: Path) -> None:
    teacher = save_folder(make_bert(), tmp_path / "teacher")
    data = write_data(tmp_path / "data", some(60, 1), some(10, 2))
    made = run(teacher, data, tmp_path, LOGITS)
    shape: dict[str, Any] = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 64}
    model = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=5 + len(WORDS), **shape))
    student = save_folder(model, tmp_path / "student")
    distill(made.root, Recipe(student=student, method=Kd(), epochs=(1,), precision="fp32"), out=tmp_path / "out", device="cpu")
    encoded = AutoTokenizer.from_pretrained(tmp_path / "out")("the cat", "a dog", return_tensors="pt")
    assert DistilBertForSequenceClassification.from_pretrained(tmp_path / "out")(**encoded).logits.shape == (1, 2)


# --- [CLS]


def without_cls(folder: str, template: str | None) -> str:
    file = Path(folder, "tokenizer.json")
    raw = Tokenizer.from_file(str(file))
    document = json.loads(raw.to_str()) | {"post_processor": None}
    raw = Tokenizer.from_str(json.dumps(document))
    if template is not None:
        raw.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    raw.save(str(file))
    return folder


PKD: dict[str, Any] = {"methods": [METHODS["pkd"]()], "strategies": [Strategy(2)]}
LEFT: dict[str, Any] = {"keeps": [Keep(1, 2, 4)], "strategies": [Strategy(2, rank="left")]}


@pytest.mark.parametrize(
    ("how", "what", "template"),
    [
        pytest.param(KEEP, "hidden", None, id="ranks"),
        pytest.param(KEEP, "hidden", "$A [SEP]", id="ranks, without [CLS] alone"),
        pytest.param(KEEP, "hidden", "$A [SEP] [CLS]", id="ranks, with [CLS] at the end"),
        pytest.param(PKD, "cls", None, id="vectors"),
        pytest.param({"rich": True, "strategies": [Strategy(2)]}, "cls_row", None, id="rich"),
        pytest.param(LOGITS, None, None, id="logits"),
        pytest.param(LEFT, None, None, id="no ranks"),
    ],
)
def test_rows_without_cls_are_refused_where_it_is_needed(
    how: dict[str, Any], what: str | None, template: str | None, tmp_path: Path
) -> None:
    teacher = without_cls(save_folder(make_bert(), tmp_path / "teacher"), template)
    data = write_data(tmp_path / "data", some(20, 1), some(5, 2))
    if what is None:
        assert run(teacher, data, tmp_path / "out", how, **SINGLE).digest
        return
    with pytest.raises(ModelError, match=rf"puts no special token such as \[CLS\] in front of a row, and {what} would be"):
        run(teacher, data, tmp_path / "out", how, **SINGLE)
    assert not (tmp_path / "out").exists()


# --- unknown words, control tokens, rows cut and empty


def counted(*columns: list[str], max_length: int = 20, tokenizer: Any = None) -> TextFacts:
    counts = TokenCounts(tokenizer or make_tokenizer(), len(columns), max_length)
    tokenise(Examples(columns, None), tokenizer or make_tokenizer(), max_length, counts=counts)
    return counts.facts()


def test_tokens_of_text_are_counted_without_those_around_them() -> None:
    assert counted(["the cat", "貓 dog", "", "a " * 18, "a " * 19]) == TextFacts(20, 5, 4 + 18 + 18, 1, 1, 1, {})
    assert counted(["the", ""], ["cat", ""], max_length=6) == TextFacts(6, 2, 2, 0, 0, 1, {})


@pytest.mark.parametrize("token", ["[CLS]", "[SEP]", "[MASK]", "[PAD]"])
def test_control_tokens_that_somebody_typed_are_counted_and_those_of_the_template_are_not(token: str) -> None:
    assert counted([f"the {token} cat", "a dog"]).control == {token: 1}
    assert counted(["the cat", f"a {token}{token}"], ["a", token]).control == {token: 3}


@pytest.mark.parametrize(
    ("command", "what"),
    [("extract", "unknown"), ("plan", "control"), ("finetune", "unknown"), ("eval", "control"), ("extract", "sound")],
)
def test_every_command_that_reads_text_warns_of_what_the_tokenizer_makes_of_it(
    command: str, what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = save_folder(make_bert(layers=2), tmp_path / "teacher")
    spoilt = {"unknown": "кот", "control": "[SEP]", "sound": "cat"}[what]
    rows = [(f"{spoilt} {one}", "", label) for one, _, label in some(30, 1)]
    data = write_data(tmp_path / "data", rows, rows)
    if command == "extract":
        assert run(teacher, data, tmp_path / "out", LOGITS, **SINGLE).text["train"].rows == 30
    elif command == "plan":
        assert forecast(teacher, data, rate=1, device="cpu", **LOGITS, **SINGLE).splits["train"].text.rows == 30
    elif command == "finetune":
        finetune(teacher, data, out=tmp_path / "out", epochs=1, device="cpu", text=("one",), label="label")
    else:
        evaluate(teacher, data, latency=False, **SINGLE)
    said = [message for message in caplog.messages if "tokenizer" in message]
    splits = ["validation"] if command == "eval" else ["train", "validation"]
    if what == "sound":
        assert said == []
    elif what == "unknown":
        assert ["are unknown to the tokenizer" in message for message in said] == [True] * len(splits)
        assert all(split in message for split, message in zip(splits, said, strict=True))
    else:
        assert ["control tokens ([SEP] 30 times)" in message for message in said] == [True] * len(splits)


# --- tokens that the model never saw


def gapped(**beyond: int) -> Any:
    """The usual words and some of higher ids, with gaps below them."""
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])} | beyond
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=64, model_input_names=names, **special)


ZEBRA = 5 + len(WORDS) + 10


@pytest.mark.parametrize(
    ("command", "split"), [("extract", "train"), ("plan", "dev"), ("eval", "dev"), ("eval", "train"), ("finetune", "train")]
)
def test_ids_beyond_the_table_of_words_are_refused_naming_the_token(command: str, split: str, tmp_path: Path) -> None:
    teacher = save_folder(make_bert(layers=2), tmp_path / "teacher", gapped(zebra=ZEBRA))
    plain = some(20, 1)
    zebra = [*plain[:7], ("the zebra", "a", 1), *plain[8:]]
    data = write_data(tmp_path / "data", zebra if split == "train" else plain, zebra if split == "dev" else plain)
    calls: dict[str, Callable[[], Any]] = {
        "extract": lambda: run(teacher, data, tmp_path / "out", **SINGLE),
        "plan": lambda: forecast(teacher, data, device="cpu", **KEEP, **SINGLE),
        "eval": lambda: evaluate(teacher, data, latency=False, **SINGLE),
        "finetune": lambda: finetune(teacher, data, out=tmp_path / "out", text=("one",), label="label", device="cpu"),
    }
    if command == "eval" and split == "train":  # which is not scored
        calls["eval"]()
        return
    where = "its tokenizer gives" if command == "finetune" else f"row 8 of {'validation' if split == 'dev' else split} has"
    with pytest.raises(ModelError, match=rf"has a vocabulary of {5 + len(WORDS)} words.*{where} zebra, id {ZEBRA}"):
        calls[command]()
    assert not (tmp_path / "out").exists()


def test_a_student_is_refused_for_the_rows_that_a_store_has_and_not_for_words_that_nobody_uses(tmp_path: Path) -> None:
    words = gapped(zebra=ZEBRA)
    large = make_bert(layers=2)
    large.resize_token_embeddings(ZEBRA + 1)
    teacher = save_folder(large, tmp_path / "teacher", words)
    student = save_folder(make_bert(layers=1, hidden=16), tmp_path / "student", words)
    plain = some(20, 1)
    recipe = Recipe(student=student, method=Kd(), epochs=(1,), precision="fp32")
    for name, rows in (("zebra", [*plain[:7], ("the zebra", "a", 1), *plain[8:]]), ("plain", plain)):
        made = run(teacher, write_data(tmp_path / name / "data", rows, plain), tmp_path / name, LOGITS, **SINGLE)
        if name == "zebra":
            with pytest.raises(ModelError, match=rf"row \d+ of train has zebra, id {ZEBRA}.*the teacher's tokenizer"):
                distill(made.root, recipe, out=tmp_path / name / "out", device="cpu")
            with pytest.raises(ModelError, match=rf"row \d+ of train has zebra, id {ZEBRA}"):
                evaluate(student, made.root, splits=("train",), latency=False)
        else:
            assert distill(made.root, recipe, out=tmp_path / name / "out", device="cpu").digest == made.digest


@pytest.mark.parametrize("what", ["padding", "a type"])
def test_padding_and_types_that_the_model_has_no_embedding_of_are_refused(what: str, tmp_path: Path) -> None:
    words = gapped(**{"[NOTHING]": ZEBRA})
    if what == "padding":
        words.pad_token = "[NOTHING]"
    teacher = save_folder(make_bert(layers=1), tmp_path / "teacher", words)
    if what == "a type":
        file = Path(teacher, "tokenizer.json")
        file.write_text(file.read_text().replace('"type_id": 1', '"type_id": 2'))
    data = write_data(tmp_path / "data", some(20, 1), some(5, 2))
    expected = rf"padding is \[NOTHING\], id {ZEBRA}" if what == "padding" else r"has 2 token types; row \d+ of train has type 2"
    with pytest.raises(ModelError, match=expected):
        run(teacher, data, tmp_path / "out", LOGITS)
    with pytest.raises(ModelError, match=expected.replace("train", "validation")):
        evaluate(teacher, data, latency=False, **PAIRS)


def test_a_tokenizer_without_padding_makes_a_store_that_can_be_read(tmp_path: Path) -> None:
    words = gapped()
    words.pad_token = None
    teacher = save_folder(make_bert(layers=2), tmp_path / "teacher", words)
    made = run(teacher, write_data(tmp_path / "data", some(20, 1), some(5, 2)), tmp_path / "out", KEEP, **SINGLE)
    assert open_store(made.root).plan.tokenizer["pad_token_id"] == 0


# --- what an extraction says in the end


def test_an_extraction_replays_a_few_rows_of_every_store_and_tells_of_its_texts(tmp_path: Path, capsys: Any) -> None:
    teacher = save_folder(make_bert(layers=2), tmp_path / "teacher")
    rows = [*some(40, 1), ("", "", 0), ("a " * 30, "", 1), ("кот", "", 1)]
    data = write_data(tmp_path / "data", rows, some(5, 2))
    words = ["extract", teacher, data, "--out", tmp_path / "o", "--text", "one", "--label", "label", "--max-length", "16"]
    words += ["--student-layers", "2", "--device", "cpu"]
    assert hsk(*words, "--keep", "1,2,4") == 0
    last = capsys.readouterr().out.splitlines()[-5:]
    assert last[0] == "kept: 43 rows of train, 5 rows of validation"
    assert last[1] == "replayed: 8 of 8 rows equal to the last bit, largest error 0"
    assert last[2].startswith("unknown: 0.") and last[3:] == [
        "cut: 1 of 48 rows, at 16 tokens",
        "empty: 1 rows, which have no token of text",
    ]
    assert all(len(line) <= 80 for line in last)
    assert hsk(*words, "--keep", "1,2,4", "--keep", "2,3,8", "--for", "pkd", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["replayed"]["rows"] if one["replayed"] else None for one in told] == [8, 8, 8]
    assert told[0]["text"]["train"] | {"tokens": 0} == {
        "max_length": 16,
        "rows": 43,
        "tokens": 0,
        "unknown": 1,
        "cut": 1,
        "empty": 1,
        "control": {},
    }


def test_rows_that_another_teacher_would_say_are_found_at_the_end(teacher_folder: str, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", some(40, 1), some(5, 2))
    made = run(teacher_folder, data, tmp_path, **SINGLE)
    store = open_store(made.root)
    ids, types, n_tokens, row_id = (
        store.read_all(f"train/{name}") for name in ("input_ids", "token_type_ids", "n_tokens", "row_id")
    )
    rows = Rows.of_padded(ids, types, n_tokens, row_id)
    cpu = torch.device("cpu")
    (same,) = replay_some([store], load_teacher(teacher_folder, device=cpu), rows)
    assert (same.rows, same.equal, same.differing) == (8, 8, ())
    other = save_folder(make_bert(seed=5), tmp_path / "other")
    (found,) = replay_some([store], load_teacher(other, device=cpu), rows)
    assert found.rows == len(found.differing) == 8
    assert set(found.differing) <= set(range(40)) and np.isfinite(list(found.differences.values())).all()


def test_rows_that_differ_are_warned_of(capsys: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    from hskstore.cli import print_stores
    from hskstore.stage_one.replay import Replayed

    again = Replayed(8, 6, 1.0, {"logits": 0.5}, {"logits": 0.002}, (3, 9))
    text = {"train": TextFacts(64, 8, 40, 0, 0, 0, {})}
    store = ExtractedStore("here", "0" * 64, None, 0, 9, 1.0, text, again)
    print_stores.print_extracted([store, replace(store, root="there", replayed=None)])
    told = capsys.readouterr()
    assert "replayed of here: 6 of 8 rows equal to the last bit, largest error 0.5" in told.out
    assert "2 differ from what is stored" in told.err and "there" not in told.err


def test_a_student_with_words_of_its_own_says_what_it_does_not_know_and_needs_cls_where_it_is_learnt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = save_folder(make_bert(), tmp_path / "teacher")
    data = write_data(tmp_path / "data", some(60, 1), some(10, 2))
    made = run(teacher, data, tmp_path, PKD, keep_offsets=True)
    few = make_bert(layers=2, hidden=32)
    student = save_folder(few, tmp_path / "student", make_tokenizer(WORDS[:4]))
    recipe = Recipe(student=student, method=METHODS["pkd"](), epochs=(1,), precision="fp32")
    distill(made.root, recipe, out=tmp_path / "out", device="cpu")
    assert "% of its tokens are unknown to that tokenizer" in caplog.text
    without_cls(student, None)
    with pytest.raises(ModelError, match=r"puts no special token such as \[CLS\] in front of a row, and cls would be"):
        distill(made.root, recipe, out=tmp_path / "other", device="cpu")


@pytest.mark.parametrize("what", ["a row is too long", "an id is too high"])
def test_rows_that_a_model_cannot_read_are_refused_before_both_ways_are_scored(what: str, tmp_path: Path) -> None:
    words = gapped(zebra=ZEBRA)
    words.model_max_length = 128
    teacher = open_types(save_folder(make_bert(layers=1), tmp_path / "teacher", words))
    spoilt = "the zebra" if what == "an id is too high" else "cat " * 80
    data = write_data(tmp_path / "data", some(20, 1), [(spoilt, "a", 1), *some(5, 2)])
    expected = f"row 1 of .* has zebra, id {ZEBRA}" if what == "an id is too high" else "has positions for 64 tokens; a row has 8"
    with pytest.raises(ModelError, match=expected):
        run(teacher, data, tmp_path / "out", LOGITS, max_length=100)
    with pytest.raises(ModelError, match=expected):
        evaluate(teacher, data, latency=False, max_length=100, **PAIRS)


# --- files that contradict themselves


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_max_length": "64"}, "model_max_length is '64', and must be a number above zero"),
        ({"model_max_length": [64]}, r"model_max_length is \[64\]"),
        ({"model_max_length": 0}, "model_max_length is 0"),
        ({"model_max_length": float("nan")}, "model_max_length is nan"),
        ({"model_max_length": True}, "model_max_length is True"),
        ({"unheard_of": "\ud83d"}, "holds half a character"),
        ({"unk_token": ""}, "unk_token is '', which is no word of tokenizer.json"),
    ],
)
def test_a_tokenizer_config_that_cannot_be_right_is_refused(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    edit(tmp_path / "tokenizer_config.json", **fields)
    with pytest.raises(ModelError, match=f"^{tmp_path}.* {said}"):
        load_tokenizer(str(tmp_path))


def test_what_would_be_saved_and_not_loaded_again_is_refused(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"auto_map": 3}')
    with pytest.raises(ModelError, match=f"^{tmp_path}: auto_map is 3"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("what", ["a template without its tokens", "no word for what is unknown"])
def test_a_tokenizer_that_fails_at_texts_is_one_message_that_names_it(what: str, tmp_path: Path) -> None:
    """Rust's panics too, which are no Exceptions."""
    make_tokenizer().save_pretrained(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    if what == "a template without its tokens":
        document["post_processor"]["special_tokens"].pop("[CLS]")
    else:
        document["model"]["unk_token"] = "[NOTHING]"
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match=f"^{tmp_path}"):
        tokenise(Examples((["the cat", "unheard of"],), None), load_tokenizer(str(tmp_path)), 16)


def test_a_models_tokenizer_has_the_names_that_transformers_4_knows() -> None:
    """Of 5's own class, and of more special tokens than the usual, 4 makes nothing; both read these."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["cat"]})
    config = json.loads(model_files(tokenizer)["tokenizer_config.json"])
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["cat"] and "extra_special_tokens" not in config
    again = tokenizer_from_files(model_files(tokenizer))
    assert tokenizer_sha256(again) == tokenizer_sha256(tokenizer) and "cat" in again.all_special_tokens
