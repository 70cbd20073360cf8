"""Splits are those asked for; labels become the ids of the task; tokens keep their rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hskstore.errors import DataError, ModelError, OptionError
from hskstore.text.dataset import Dataset, Examples, read_dataset
from hskstore.text.rows import Rows
from hskstore.text.tasks import TASKS
from hskstore.text.tokenise import tokenise

SHARED = Path(__file__).resolve().parents[2] / "shared"


def write(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return str(path)


def write_tsv(path: Path, *rows: tuple[object, ...]) -> str:
    return write(path, "".join("\t".join(map(str, row)) + "\n" for row in rows))


def one(path: str, **options) -> Dataset:
    """The data set of one file, its split called train."""
    return read_dataset(path, splits=("train",), **options)


def labels(dataset: Dataset, split: str = "train") -> list[float]:
    label = dataset.splits[split].label
    assert label is not None
    return label.tolist()


# --- splits


def test_mnli_brings_its_mismatched_split_along(tmp_path):
    for stem in ("train", "dev_matched", "dev_mismatched"):
        write_tsv(tmp_path / f"{stem}.tsv", ("sentence1", "sentence2", "gold_label"), (stem, "b", "contradiction"))
    dataset = read_dataset(str(tmp_path), task="MNLI")
    assert {split: e.text[0][0] for split, e in dataset.splits.items()} == {
        "train": "train", "validation": "dev_matched", "validation_mismatched": "dev_mismatched",
    }  # fmt: skip
    assert labels(dataset, "validation_mismatched") == [2]
    assert list(read_dataset(str(tmp_path), task="mnli", splits=("train",)).splits) == ["train"]


def test_a_file_by_itself_is_train_or_the_only_split_asked_for(tmp_path):
    path = write_tsv(tmp_path / "x.tsv", ("sentence", "label"), ("a", 1))
    assert list(read_dataset(path, task="sst2", splits=("validation",)).splits) == ["validation"]
    with pytest.raises(DataError, match=r"no validation split: pass --validation FILE, or --validation 0\.1 .*x\.tsv"):
        read_dataset(path, task="sst2")


def test_a_validation_file_replaces_the_folders_own(tmp_path):
    for stem in ("train", "dev", "other"):
        write_tsv(tmp_path / f"{stem}.tsv", ("sentence", "label"), (stem, 1))
    dataset = read_dataset(str(tmp_path), task="sst2", validation=str(tmp_path / "other.tsv"))
    assert dataset.splits["validation"].text == (["other"],)
    with pytest.raises(DataError, match=r"no such file: .*missing"):
        read_dataset(str(tmp_path), task="sst2", validation=str(tmp_path / "missing.tsv"))


def test_a_share_is_taken_out_of_train_and_always_the_same(tmp_path):
    path = write_tsv(tmp_path / "x.tsv", ("sentence", "label"), *((i, i % 2) for i in range(50)))
    splits = read_dataset(path, task="sst2", validation="0.1").splits
    train, validation = (splits[split].text[0] for split in ("train", "validation"))
    assert len(validation) == 5
    assert sorted([*train, *validation], key=int) == [str(i) for i in range(50)]
    assert train == sorted(train, key=int)
    assert splits["validation"].label.tolist() == [int(v) % 2 for v in validation]
    alone = read_dataset(path, task="sst2", validation="0.1", splits=("validation",))
    assert list(alone.splits) == ["validation"]
    assert alone.splits["validation"].text[0] == validation


def test_a_share_that_cannot_be_taken_is_refused(tmp_path):
    path = write_tsv(tmp_path / "x.tsv", ("sentence", "label"), ("a", 1))
    with pytest.raises(OptionError, match="lies between 0 and 1"):
        read_dataset(path, task="sst2", validation="10")
    with pytest.raises(DataError, match="1 rows are too few"):
        read_dataset(path, task="sst2", validation="0.5")


# --- columns and labels


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("sst2", ("a", "2"), r"x\.tsv, row 2: label '2' does not fit; allowed: classes negative, positive"),
        ("sst2", ("a", "meh"), "label 'meh' does not fit"),
        ("sst2", ("a", ""), r"x\.tsv, row 2: column 'label' holds no label"),
        ("sst2", ("a", "-1"), "row 2: label '-1'"),
        ("stsb", ("a", "5.5"), "row 2: label '5.5' does not fit; allowed: a number from 0 to 5"),
        ("stsb", ("a", "nan"), "row 2: label 'nan'"),
        ("stsb", ("a", "high"), "row 2: label 'high'"),
    ],
)
def test_a_label_outside_the_task_names_its_row(tmp_path, task, row, message):
    path = write_tsv(tmp_path / "x.tsv", ("sentence", "label"), ("a", 1), row)
    with pytest.raises(DataError, match=message):
        one(path, task=task, text=["sentence"])


@pytest.mark.parametrize(
    ("task", "header", "row"),
    [
        ("sst2", ("index", "sentence"), (0, "a")),
        ("cola", ("index", "sentence"), (0, "a")),
        ("mrpc", ("index", "#1 String", "#2 String"), (0, "a", "b")),
        ("sst2", ("sentence", "label"), ("a", -1)),
        ("stsb", ("sentence1", "sentence2", "label"), ("a", "b", "-1.0")),
    ],
)
def test_a_split_without_labels_sends_to_validation(tmp_path, task, header, row):
    write_tsv(tmp_path / "test.tsv", header, row)
    with pytest.raises(DataError, match=r"test\.tsv has no labels .*score on validation"):
        read_dataset(str(tmp_path), task=task, splits=("test",))


def test_a_missing_label_column_elsewhere_lists_the_columns(tmp_path):
    with pytest.raises(DataError, match="has no column 'label'; its columns are sentence, grade"):
        one(write_tsv(tmp_path / "x.tsv", ("sentence", "grade"), ("a", 1)), task="sst2")


def test_columns_given_override_the_tasks_own(tmp_path):
    path = write_tsv(tmp_path / "x.tsv", ("review", "stars", "sentence", "label"), ("good", "Positive", "x", 0))
    dataset = one(path, task="sst2", text=["review"], label="stars")
    assert (dataset.splits["train"].text, labels(dataset)) == ((["good"],), [1])
    assert (dataset.task.name, dataset.task.text, dataset.task.label) == ("sst2", ("review",), "stars")


@pytest.mark.parametrize(
    ("values", "kind", "names", "ids"),
    [
        (["10", "2", "2"], "classes", ("2", "10"), [1, 0, 0]),
        (["-1", "1"], "classes", ("-1", "1"), [0, 1]),
        ([3, 1, 2], "classes", ("1", "2", "3"), [2, 0, 1]),
        ([True, False], "classes", ("False", "True"), [1, 0]),
        (["spam", "ham"], "classes", ("ham", "spam"), [1, 0]),
        (["None", "NA"], "classes", ("NA", "None"), [1, 0]),
        (["1", "2.5"], "score", (), [1.0, 2.5]),
        ([1.0, 0.0], "classes", ("0", "1"), [1, 0]),
        (["1_0", "2_0"], "classes", ("1_0", "2_0"), [0, 1]),
    ],
)
def test_custom_labels_are_classes_or_a_score_by_their_look(tmp_path, values, kind, names, ids):
    path = write(tmp_path / "x.jsonl", "".join(json.dumps({"s": "a", "y": v}) + "\n" for v in values))
    dataset = one(path, text=["s"], label="y")
    assert (dataset.task.kind, dataset.task.labels, labels(dataset)) == (kind, names, ids)
    assert dataset.task.metrics == (("accuracy", "f1") if kind == "classes" else ("spearman", "pearson"))
    assert dataset.task.num_labels == (len(names) or 1)


def test_validation_must_fit_the_labels_of_train(tmp_path):
    write_tsv(tmp_path / "train.tsv", ("s", "y"), ("a", "ham"), ("b", "spam"))
    write_tsv(tmp_path / "dev.tsv", ("s", "y"), ("a", "spam"), ("b", "eggs"))
    with pytest.raises(DataError, match=r"dev\.tsv, row 2: label 'eggs' does not fit; allowed: classes ham, spam"):
        read_dataset(str(tmp_path), text=["s"], label="y")


def test_without_a_label_column_the_data_is_unlabelled(tmp_path):
    dataset = one(write_tsv(tmp_path / "x.tsv", ("s", "t"), ("a", "b")), text=["s", "t"])
    assert dataset.splits["train"].text == (["a"], ["b"])
    assert dataset.splits["train"].label is None
    assert (dataset.task.name, dataset.task.label, dataset.task.labels) == ("custom", None, ())


def test_data_of_unknown_columns_asks_for_them(tmp_path):
    path = write_tsv(tmp_path / "x.tsv", ("review", "stars"), ("a", 1))
    with pytest.raises(OptionError, match=r"--text COLUMN .* its columns are review, stars"):
        one(path)
    with pytest.raises(OptionError, match="3 times"):
        one(path, text=["a", "b", "c"])


def test_rows_without_any_text_are_kept_and_counted(tmp_path):
    path = write_tsv(tmp_path / "x.tsv", ("s", "t"), (" ", ""), ("a", ""), ("", ""))
    dataset = one(path, text=["s", "t"])
    assert (len(dataset.splits["train"]), dataset.empty) == (3, {"train": 2})


# --- the label order of a model


def labelled(names: tuple[str, ...], ids: list[int]) -> Dataset:
    from dataclasses import replace

    task = replace(TASKS["mnli"], name="custom", labels=names)
    label = np.array(ids, dtype=np.int64)
    text = (["x"] * len(ids), ["y"] * len(ids))
    return Dataset(task, {"train": Examples(text, label), "bare": Examples(text, None)}, {"train": 0, "bare": 0})


def test_ids_follow_the_models_order_of_the_same_names():
    dataset = labelled(("entailment", "neutral", "contradiction"), [0, 1, 2, 0])
    moved = dataset.with_label_order(["CONTRADICTION", "ENTAILMENT", "NEUTRAL"])
    assert labels(moved) == [1, 2, 0, 1]
    assert moved.task.labels == ("contradiction", "entailment", "neutral")
    assert moved.splits["bare"].label is None
    assert labels(moved.with_label_order(dataset.task.labels)) == labels(dataset)


@pytest.mark.parametrize(
    ("own", "model"),
    [
        (("ham", "spam"), ("LABEL_0", "LABEL_1")),
        (("0", "1"), ("NEGATIVE", "POSITIVE")),
        (("ham", "spam"), ("0", "1")),
        ((), ("a", "b")),
        (("ham", "spam"), ("ham", "spam")),
    ],
)
def test_names_that_say_nothing_leave_the_order(own, model):
    dataset = labelled(own, [0, 1])
    ordered = dataset.with_label_order(model)
    assert ordered.task == dataset.task
    for split, examples in dataset.splits.items():
        np.testing.assert_array_equal(ordered.splits[split].label, examples.label)


@pytest.mark.parametrize(
    ("own", "model"),
    [(("ham", "spam"), ("eggs", "spam")), (("ham", "spam"), ("LABEL_0", "LABEL_1", "LABEL_2")), (("0", "1"), ("a", "b", "c"))],
)
def test_classes_that_a_model_does_not_have_are_refused(own, model):
    with pytest.raises(DataError, match=rf"\({', '.join(own)}\) are not the model's \({', '.join(model)}\)"):
        labelled(own, [0, 1]).with_label_order(model)


# --- tokens


def ragged(lengths: list[int]) -> Rows:
    total = sum(lengths)
    return Rows(
        input_ids=np.arange(1, total + 1, dtype=np.int32),
        token_type_ids=(np.arange(total) % 2).astype(np.uint8),
        bounds=np.cumsum([0, *lengths]),
        label=np.arange(len(lengths)) * 10,
        row_id=np.arange(len(lengths), dtype=np.int64),
    )


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=20), data=st.data())
def test_take_moves_whole_rows(lengths, data):
    rows = ragged(lengths)
    index = data.draw(st.lists(st.integers(-len(lengths), len(lengths) - 1), max_size=30))
    taken = rows.take(index)
    assert len(taken) == len(index)
    assert taken.n_tokens.tolist() == [lengths[i] for i in index]
    for i, start, end in zip(index, taken.bounds[:-1], taken.bounds[1:], strict=True):
        source = slice(rows.bounds[:-1][i], rows.bounds[1:][i])
        assert taken.input_ids[start:end].tolist() == rows.input_ids[source].tolist()
        assert taken.token_type_ids[start:end].tolist() == rows.token_type_ids[source].tolist()
    assert taken.row_id.tolist() == rows.row_id[index].tolist() if index else len(taken.row_id) == 0
    assert taken.label.tolist() == (taken.row_id * 10).tolist()
    assert rows.take(np.arange(len(rows))).sha256() == rows.sha256()


@given(lengths=st.lists(st.integers(0, 9), max_size=20))
def test_padded_holds_every_token_once_and_padding_elsewhere(lengths):
    rows = ragged(lengths)
    input_ids, token_type_ids = rows.padded(-7)
    assert input_ids.shape == token_type_ids.shape == (len(lengths), max(lengths, default=0))
    assert (input_ids.dtype, token_type_ids.dtype) == (np.int32, np.uint8)
    for i, n in enumerate(lengths):
        assert input_ids[i].tolist() == rows.input_ids[rows.bounds[i] :][:n].tolist() + [-7] * (input_ids.shape[1] - n)
        assert not token_type_ids[i, n:].any()
    assert token_type_ids.sum() == rows.token_type_ids.sum()


def test_the_hash_tells_apart_what_differs_in_value_order_label_or_shape():
    rows = ragged([2, 3])
    others = [rows.take([1, 0]), ragged([3, 2]), rows.take([0]), Rows(**{**vars(rows), "label": None})]
    assert len({rows.sha256(), *(other.sha256() for other in others)}) == 5
    assert ragged([2, 3]).sha256() == rows.sha256()


def tiny_tokenizer(**options):
    """Words of a fixed vocabulary in [CLS] ... [SEP], with padding and truncation to 5 switched on in the tokenizer itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if options.pop("special", True):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    tokenizer.enable_padding(length=5)
    tokenizer.enable_truncation(5)
    options = {"model_max_length": 12, "pad_token": "[PAD]", "unk_token": "[UNK]", **options}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def test_tokens_are_neither_padded_nor_cut_shorter_than_asked():
    examples = Examples((["a b", "", "c c c c c c c c c"],), np.array([1, 0, 1]))
    done: list[int] = []
    rows = tokenise(examples, tiny_tokenizer(), 8, watch=lambda stage, rows, total, note="": done.append(rows))
    assert rows.n_tokens.tolist() == [4, 2, 8]
    assert rows.input_ids.tolist() == [2, 4, 5, 3, 2, 3, 2, 6, 6, 6, 6, 6, 6, 3]
    assert (rows.input_ids.dtype, rows.token_type_ids.dtype, rows.bounds.dtype) == (np.int32, np.uint8, np.int64)
    assert (rows.label.tolist(), rows.row_id.tolist(), done) == ([1, 0, 1], [0, 1, 2], [3])


def test_pairs_are_told_apart_by_token_type():
    rows = tokenise(
        Examples((["a"], ["b c"]), None),
        tiny_tokenizer(model_input_names=["input_ids", "token_type_ids", "attention_mask"]),
        12,
    )
    assert (rows.input_ids.tolist(), rows.token_type_ids.tolist()) == ([2, 4, 3, 5, 6, 3], [0, 0, 0, 1, 1, 1])
    assert rows.label is None


def test_a_tokenizer_without_token_types_gives_zeros():
    rows = tokenise(Examples((["a"], ["b c"]), None), tiny_tokenizer(model_input_names=["input_ids", "attention_mask"]), 12)
    assert rows.token_type_ids.tolist() == [0] * 6


def test_batches_keep_the_order_of_the_rows():
    n_rows = 4096 + 7
    text = ["a " * (i % 5) for i in range(n_rows)]
    done: list[int] = []
    rows = tokenise(Examples((text,), None), tiny_tokenizer(), 12, watch=lambda stage, rows, total, note="": done.append(rows))
    assert done == [4096, 4103]
    assert rows.n_tokens.tolist() == [2 + i % 5 for i in range(n_rows)]


@pytest.mark.parametrize("max_length", [2, 13])
def test_a_length_that_the_tokenizer_cannot_keep_is_refused(max_length):
    with pytest.raises(OptionError, match=rf"--max-length {max_length}: this tokenizer takes 3 to 12 tokens"):
        tokenise(Examples((["a"],), None), tiny_tokenizer(), max_length)


def test_a_row_without_tokens_and_a_tokenizer_that_pads_are_refused():
    with pytest.raises(DataError, match="row 2 has no token"):
        tokenise(Examples((["a", ""],), None), tiny_tokenizer(special=False), 8)

    class Padding:
        model_max_length = 12

        def num_special_tokens_to_add(self, pair):
            return 0

        def __call__(self, text, **options):
            return {"input_ids": [[4, 0]], "attention_mask": [[1, 0]]}

    with pytest.raises(ModelError, match="the tokenizer pads"):
        tokenise(Examples((["a"],), None), Padding(), 8)


# --- the real sets


@pytest.mark.real
@pytest.mark.parametrize(
    ("folder", "task", "n_rows", "mean"),
    [
        ("sst2", "sst2", {"train": 67349, "validation": 872, "test_labeled": 1821}, 0.558),
        ("sst2_small", "sst2", {"train": 6920, "validation": 872, "test": 1821}, 0.522),
        ("cola", "cola", {"train": 8551, "validation": 1043}, 0.704),
        ("mrpc", "mrpc", {"train": 3668, "validation": 408, "test_labeled": 1725}, 0.674),
        ("stsb", "stsb", {"train": 5749, "validation": 1500, "test_labeled": 1379}, 2.701),
    ],
)
def test_the_real_sets_have_their_rows_and_their_balance(folder, task, n_rows, mean):
    dataset = read_dataset(str(SHARED / "data" / folder), task=task, splits=tuple(n_rows))
    assert {split: len(examples) for split, examples in dataset.splits.items()} == n_rows
    assert dataset.splits["train"].label.mean() == pytest.approx(mean, abs=5e-4)
    assert set(dataset.empty.values()) == {0}


@pytest.mark.real
@pytest.mark.parametrize("folder", ["sst2", "cola", "mrpc", "stsb"])
def test_the_real_test_files_have_no_labels(folder):
    with pytest.raises(DataError, match=r"test\.tsv has no labels"):
        read_dataset(str(SHARED / "data" / folder), task=folder, splits=("test",))


@pytest.mark.real
def test_the_real_tokenizer_does_not_pad():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models/minilm-l6")
    rows = tokenise(read_dataset(str(SHARED / "data/cola"), task="cola").splits["validation"], tokenizer, 64)
    first = rows.take([0])
    assert tokenizer.decode(first.input_ids.tolist()) == "[CLS] the sailors rode the breeze clear of the rocks. [SEP]"
    assert rows.n_tokens.max() < 64
    assert rows.n_tokens.min() < 8
    assert (rows.input_ids != tokenizer.pad_token_id).all()
