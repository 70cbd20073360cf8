"""A label that is none, or several, or another one spelt otherwise, is named in every format; one rule says classes or score."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from hskstore.errors import DataError, ModelError, OptionError
from hskstore.text.dataset import fit_labels, label_ids, read_dataset
from hskstore.text.labels import spelling
from tests.test_data import labels, one, write, write_tsv

FORMATS = ["tsv", "csv", "jsonl", "json", "parquet", "saved"]


def saved_as(form: str, folder: Path, values: list[Any], name: str = "x") -> str:
    """A data set of one split: texts `s`, labels `y`."""
    rows = [{"s": f"text {i}", "y": value} for i, value in enumerate(values)]
    path = folder / f"{name}.{form}"
    if form == "saved":
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    elif form == "parquet":
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    elif form == "json":
        path.write_text(json.dumps(rows))
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "csv":
        import csv

        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["s", "y"], *(row.values() for row in rows)])
    else:
        write_tsv(path, ("s", "y"), *(tuple(row.values()) for row in rows))
    return str(path)


def read(folder: Path, values: list[Any], form: str = "jsonl", **options: Any):
    return one(saved_as(form, folder, values), text=["s"], label="y", **options)


# --- several labels in one


@pytest.mark.parametrize("form", FORMATS)
def test_several_labels_in_one_text_are_refused_in_every_format(tmp_path, form):
    with pytest.raises(
        DataError, match=r"x\.\w+.*, row 2: label 'b,a' of column 'y' is a list: .*multi-label\) are not supported"
    ):
        read(tmp_path, ["a", "b,a", "b"], form)


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "saved"])
@pytest.mark.parametrize("values", [[[0], [0, 3]], [["a"], ["a", "b"]], [[], [1]], [None, [0, 1]]])
def test_lists_of_labels_are_refused_by_name(tmp_path, form, values):
    with pytest.raises(DataError, match=r"row [12]: column 'y' holds a list: several labels .*\(multi-label\) are not supported"):
        read(tmp_path, values, form)


@pytest.mark.parametrize(
    "values",
    [
        ["0,3", "0", "5"],
        ["0, 3", "1"],
        ["0;3", "spam"],
        ["0|3", "1|2"],
        ["0 3", "1"],
        ["Pos|neg", "pos", "neg"],
        ["a;b;c", "a", "b", "c"],
        ["[0, 3]", "[1]"],
        ["[0 3]", "[1]"],
        ["['a', 'b']", "['c']"],
        ['{"a", "b"}', "c"],
        ["(0, 1)", "(2,)"],
    ],
)
def test_a_label_whose_parts_are_labels_or_numbers_is_several(tmp_path, values):
    with pytest.raises(DataError, match=r"row 1: label .* is a list: several labels"):
        read(tmp_path, values)


def test_a_decimal_comma_is_told_of(tmp_path):
    with pytest.raises(DataError, match="a number has a point, not a comma"):
        read(tmp_path, ["3,5", "1"])


@pytest.mark.parametrize(
    "values",
    [
        ["Travel, food", "Sports"],
        ["Business, finance", "Business", "Sports"],
        ["very good", "very", "good"],
        ["[other]", "[none of these]"],
        ["Clothing, men", "Clothing, women", "Toys, men", "Toys, women"],
        ["and/or", "and", "or"],
        ["pos-neg", "pos", "neg"],
        ["a,", "b"],
    ],
)
def test_names_with_commas_and_blanks_are_classes(tmp_path, values):
    assert read(tmp_path, values).task.labels == tuple(sorted(values))


def test_combinations_whose_parts_never_stand_alone_are_classes_with_a_word(tmp_path, caplog):
    assert read(tmp_path, ["a,b", "b,c", "c,a"]).task.num_labels == 3
    assert "labels such as 'a,b' are made of parts; each combination is a class" in caplog.text


def test_names_that_are_declared_may_be_made_of_others(tmp_path):
    assert labels(read(tmp_path, ["a", "b", "a,b"], classes=("a,b", "a", "b"))) == [1, 2, 0]
    assert labels(with_class_names(tmp_path, [0, 1, 2], ["a", "b", "a,b"])) == [0, 1, 2]


# --- one class


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("value", ["spam", 1])
def test_a_classification_of_one_class_is_refused_in_every_format(tmp_path, form, value):
    with pytest.raises(DataError, match=f"column 'y': every label is '{value}'; a classification needs two classes"):
        read(tmp_path, [value] * 3, form)


@pytest.mark.parametrize("kind", [None, "classes"])
def test_one_class_is_one_whoever_says_that_it_is_a_class(tmp_path, kind):
    for values in ([1.0, 1.0], [True, True]):
        with pytest.raises(DataError, match="needs two classes"):
            read(tmp_path, values, kind=kind)
    with pytest.raises(DataError, match="every label is 'a'; a classification needs two classes"):
        with_class_names(tmp_path, [0, 0], ["a"])


def test_one_class_of_two_and_one_score_are_told_of(tmp_path, caplog):
    assert labels(with_class_names(tmp_path, [1, 1], ["a", "b"])) == [1, 1]
    assert "every label is 'b'" in caplog.text
    caplog.clear()
    assert labels(read(tmp_path, [2.5, 2.5])) == [2.5, 2.5]
    assert "every label is '2.5'" in caplog.text
    assert labels(read(tmp_path, ["b", "b"], classes=("a", "b"))) == [1, 1]


# --- labels that say the same


@pytest.mark.parametrize("form", FORMATS)
def test_labels_that_say_the_same_are_named_with_their_rows(tmp_path, form):
    with pytest.raises(DataError, match=r"the labels 'Pos' \(row 3\) and 'pos' \(row 1\) say the same: write them one way"):
        read(tmp_path, ["pos", "neg", "Pos"], form)


@pytest.mark.parametrize(
    ("one_way", "other"),
    [
        ("pos", "POS"),
        ("straße", "STRASSE"),
        ("pos", "ｐｏｓ"),
        ("é", "e\u0301"),
        ("very good", "very  good"),
        ("very good", "very\u00a0good"),
        ("pos", "pos\u200b"),
        ("pos", "\ufeffpos"),
        ("True", "true"),
        (True, "TRUE"),
        (True, 1),
        (False, "0"),
        ("1", "1.0"),
        ("1", "01"),
    ],
)
def test_case_blanks_and_forms_of_unicode_make_no_class(tmp_path, one_way, other):
    with pytest.raises(DataError, match="say the same"):
        read(tmp_path, [one_way, other, "neg"])


def test_blanks_around_labels_are_left_out_with_a_word(tmp_path, caplog):
    dataset = read(tmp_path, ["pos", "pos ", "\tneg", " 7"], classes=None)
    assert (dataset.task.labels, labels(dataset)) == (("7", "neg", "pos"), [2, 2, 1, 0])
    assert "column 'y': blanks around labels, such as ' 7', are left out" in caplog.text


def test_labels_of_one_spelling_may_be_two_classes_where_both_are_declared(tmp_path):
    assert labels(with_class_names(tmp_path, [0, 1], ["us", "US"])) == [0, 1]
    dataset = read(tmp_path, ["US", "us"], classes=("us", "US"))
    assert labels(dataset) == [1, 0]
    assert labels(fit_labels(dataset, ("us", "US"), "m")) == [1, 0]
    assert label_ids(("us", "US"), ("US", "us")).tolist() == [1, 0]
    with pytest.raises(DataError, match="label 'Us' does not fit; allowed: classes us, US"):
        read(tmp_path, ["US", "Us"], classes=("us", "US"))
    with pytest.raises(DataError, match="are not the model's"):
        label_ids(("us", "US"), ("Us", "uS"))


def test_a_spelling_of_a_known_class_is_that_class(tmp_path):
    assert labels(read(tmp_path, ["POSITIVE", "negative ", "Positive"], classes=("Negative", "Positive"))) == [1, 0, 1]
    assert labels(read(tmp_path, ["POSITIVE", "negative "], task="sst2")) == [1, 0]
    train, dev = (saved_as("jsonl", tmp_path, values, n) for n, values in (("a", ["pos", "neg"]), ("b", ["Pos", "NEG"])))
    assert labels(read_dataset(train, text=["s"], label="y", validation=dev), "validation") == [1, 0]


def test_a_spelling_is_its_own_spelling():
    for name in ("Straße", "İ", "ﬁ", "1.0", " a  b "):
        assert spelling(spelling(name)) == spelling(name)


# --- classes or a score


@pytest.mark.parametrize("form", FORMATS)
def test_whole_numbers_are_classes_also_where_they_are_written_as_decimals(tmp_path, form, caplog):
    alone = read(tmp_path, [1.0, 0.0, 2.0], form)
    assert (alone.task.kind, alone.task.labels, labels(alone)) == ("classes", ("0", "1", "2"), [1, 0, 2])
    assert "the whole numbers 0, 1, 2 are taken as classes; --kind score says otherwise" in caplog.text


def test_a_model_of_classes_and_the_labels_alone_say_the_same(tmp_path):
    for values in ([1.0, 0.0], [1, 0], ["1.0", "0"]):
        alone, taught = (read(tmp_path, values, classes=classes) for classes in (None, ("NEG", "POS")))
        assert (alone.task, labels(alone)) == (taught.task, labels(taught))


def test_ids_of_a_models_class_names_that_are_numbers_are_found_by_name(tmp_path):
    stars = ("1", "2", "3", "4", "5")
    assert labels(fit_labels(read(tmp_path, [1.0, 4.0], classes=stars), stars, "m")) == [0, 3]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([0.5, 1.0], "score"),
        ([float(i) for i in range(21)], "score"),
        ([float(i) for i in range(20)], "classes"),
        (list(range(21)), "classes"),
        (["1", "-1"], "classes"),
    ],
)
def test_the_rule_for_numbers(tmp_path, values, found):
    assert read(tmp_path, values).task.kind == found


@pytest.mark.parametrize(
    ("values", "classes", "words"),
    [
        ([float(i) for i in range(21)], None, "21 whole numbers are taken as scores; --kind classes says otherwise"),
        (list(range(21)), None, "21 whole numbers are taken as classes; --kind score"),
        ([0, 1], (), "the whole numbers 0, 1 are taken as scores, as the model gives one; --kind classes"),
        ([0, 1], None, ""),
        ([0, 0.5], None, ""),
        ([0, 0.5], (), ""),
        ([0.0, 1.0], ("a", "b"), ""),
    ],
)
def test_what_is_open_to_doubt_is_told(tmp_path, caplog, values, classes, words):
    read(tmp_path, values, classes=classes)
    assert words in caplog.text
    assert bool(words) == ("--kind" in caplog.text)


@pytest.mark.parametrize(
    ("values", "kind", "names", "ids"),
    [
        ([1.0, 0.0], "classes", ("0", "1"), [1, 0]),
        ([1, 0], "score", (), [1.0, 0.0]),
        (["1.0", "0"], "score", (), [1.0, 0.0]),
        ([10, 2.5, 2.5], "classes", ("2.5", "10"), [1, 0, 0]),
        (["b", "a"], "classes", ("a", "b"), [1, 0]),
        ([float(i) for i in range(30)], "classes", tuple(map(str, range(30))), list(range(30))),
    ],
)
@pytest.mark.parametrize("classes", [None, ()])
def test_kind_says_it_before_all_others_and_without_a_word(tmp_path, caplog, values, kind, names, ids, classes):
    dataset = read(tmp_path, values, kind=kind, classes=classes)
    assert (dataset.task.kind, dataset.task.labels, labels(dataset)) == (kind, names, ids)
    assert "--kind" not in caplog.text


def test_a_kind_that_does_not_fit_is_refused(tmp_path):
    for options, message in (
        ({"label": "y", "kind": "regression"}, "--kind regression: choose one of classes, score"),
        ({"kind": "score"}, "pass --label COLUMN too"),
        ({"label": "y", "kind": "score", "task": "sst2"}, "--kind score: the task sst2 is one of classes"),
    ):
        with pytest.raises(OptionError, match=message):
            one(saved_as("csv", tmp_path, [0, 1]), text=["s"], **options)
    assert read(tmp_path, [0, 1], kind="classes", task="sst2").task.name == "sst2"
    with pytest.raises(DataError, match="row 1: label 'a' does not fit; allowed: a finite number"):
        read(tmp_path, ["a", "b"], kind="score")
    with pytest.raises(ModelError, match=r"m has 2 outputs; the task custom needs a score \(one output\)"):
        fit_labels(read(tmp_path, [0, 1], kind="score", classes=("a", "b")), ("a", "b"), "m")
    with pytest.raises(ModelError, match=r"m has 1 outputs; the task custom needs 2 classes \(0, 1\)"):
        fit_labels(read(tmp_path, [0, 1], kind="classes", classes=()), ("LABEL_0",), "m")


# --- what is no label


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("value", ["", " "])
def test_a_missing_label_names_its_row(tmp_path, form, value):
    with pytest.raises(DataError, match=r"row 3: column 'y' holds no label; remove such rows"):
        read(tmp_path, ["a", "b", value], form)


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "saved"])
@pytest.mark.parametrize("values", [["a", "b", None], [0.5, 1.0, None], [0.5, 1.0, math.nan], [1, 0, None], [True, False, None]])
def test_nulls_and_nan_are_missing_labels(tmp_path, form, values):
    with pytest.raises(DataError, match=r"row 3: column 'y' holds no label; remove such rows"):
        read(tmp_path, values, form)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("value", ["nan", "inf", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused_among_numbers(tmp_path, form, value):
    for said in (None, "classes", "score"):
        with pytest.raises(DataError, match=rf"row 2: label '{value}' .*finite number"):
            one(saved_as(form, tmp_path, ["1", value, "0.5"], str(said)), text=["s"], label="y", kind=said)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e39, 2**300])
def test_scores_that_float32_does_not_hold_are_refused(tmp_path, value):
    with pytest.raises(DataError, match=r"row 2: label .* does not fit; allowed: a finite number"):
        read(tmp_path, [0.5, value])


@pytest.mark.parametrize("form", ["parquet", "saved"])
@pytest.mark.parametrize("value", [{"a": 1}, b"a", np.datetime64("2020-01-01").item()])
def test_values_that_are_no_labels_are_named(tmp_path, form, value):
    with pytest.raises(DataError, match=rf"row 1: column 'y' holds a {type(value).__name__}, not a label"):
        read(tmp_path, [value, value], form)


def test_half_a_character_and_a_number_without_end_are_no_labels(tmp_path):
    with pytest.raises(DataError, match=r"row 2: column 'y' holds half a character, U\+D83D"):
        read(tmp_path, ["a", "\ud83d"])
    with pytest.raises(DataError, match=r"row 2: label '9{59}\.\.\. does not fit"):
        read(tmp_path, ["1", "9" * 5000])


def test_words_for_nothing_are_told_of(tmp_path, caplog):
    assert read(tmp_path, ["pos", "None", "nan"]).task.labels == ("None", "nan", "pos")
    assert "None, nan is taken as a class like any other" in caplog.text


def test_a_column_of_texts_is_asked_about(tmp_path, caplog):
    read(tmp_path, [f"text {i} " * 20 for i in range(30)])
    assert "30 classes in 30 rows: are these labels?" in caplog.text
    with pytest.raises(DataError) as error:
        fit_labels(read(tmp_path, [f"text {i} " * 20 for i in range(30)]), tuple(map(str, range(1, 31))), "m")
        label_ids([f"text {i} " * 20 for i in range(300)], ["a", "b"])
    assert len(str(error.value)) < 3000


def test_booleans_are_classes_and_no_numbers(tmp_path):
    for form in ("jsonl", "parquet", "saved"):
        dataset = one(saved_as(form, tmp_path, [True, False]), text=["s"], label="y")
        assert (dataset.task.labels, labels(dataset)) == (("False", "True"), [1, 0])
    with pytest.raises(DataError, match="label 'True' does not fit; allowed: a finite number"):
        read(tmp_path, [True, False], kind="score")


# --- class names that the set itself tells


def with_class_names(folder: Path, values: list[Any], names: Any, kind: Any = None):
    features = {"s": {"_type": "Value"}, "list": [{"_type": "Value"}], "y": {"names": names, "_type": "ClassLabel"}}
    return with_metadata(folder, values, json.dumps({"info": {"features": features}}).encode(), kind)


def with_metadata(folder: Path, values: list[Any], metadata: bytes, kind: Any = None):
    table = arrow.table({"s": ["text"] * len(values), "y": arrow.array(values, kind)})
    parquet.write_table(table.replace_schema_metadata({"huggingface": metadata}), folder / "named.parquet")
    return one(str(folder / "named.parquet"), text=["s"], label="y")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 2], r"row 2: column 'y' holds the class id 2; those of its class names \(a, b\) are 0 to 1"),
        ([-2, 0], "row 1: column 'y' holds the class id -2"),
        ([0, 2**40], "row 2: column 'y' holds the class id 1099511627776"),
        ([0.5, 1.0], "row 1: column 'y' holds the class id 0.5"),
        ([math.inf, 1.0], "row 1: column 'y' holds the class id inf"),
        ([0, -1], "row 2: column 'y' holds no label"),
        ([None, 1], "row 1: column 'y' holds no label"),
        ([-1, None], "has no labels"),
        (["a", "c"], "row 2: label 'c' does not fit; allowed: classes a, b"),
        ([[0], [1]], "row 1: column 'y' holds a list: several labels"),
    ],
)
def test_an_id_without_a_name_names_its_row(tmp_path, values, message):
    with pytest.raises(DataError, match=message):
        with_class_names(tmp_path, values, ["a", "b"])


def test_an_id_beyond_the_names_of_a_saved_set_names_its_row(tmp_path):
    import datasets

    features = datasets.Features({"s": datasets.Value("string"), "y": datasets.ClassLabel(names=["a", "b"])})
    table = arrow.table({"s": ["x", "y"], "y": [0, 7]})
    datasets.Dataset(
        datasets.table.InMemoryTable(table.cast(features.arrow_schema)), info=datasets.DatasetInfo(features=features)
    ).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match="row 2: column 'y' holds the class id 7"):
        one(str(tmp_path / "d"), text=["s"], label="y")


def test_several_class_labels_of_a_saved_set_are_refused(tmp_path):
    import datasets

    several = datasets.Sequence(datasets.ClassLabel(names=["a", "b"]))
    features = datasets.Features({"s": datasets.Value("string"), "y": several})
    datasets.Dataset.from_dict({"s": ["x"], "y": [[0, 1]]}, features=features).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match="row 1: column 'y' holds a list: several labels"):
        one(str(tmp_path / "d"), text=["s"], label="y")


@pytest.mark.parametrize("values", [[0.0, 1.0], ["a", " b"], [False, True]])
def test_ids_and_names_of_any_type_find_their_class(tmp_path, values):
    dataset = with_class_names(tmp_path, values, ["a", "b"])
    assert (dataset.task.labels, labels(dataset)) == (("a", "b"), [0, 1])


BROKEN = [b"null", b"3", b"[]", b"no JSON", b"\xff", b"[" * 100_000]


@pytest.mark.parametrize(
    "metadata", [*BROKEN, *(b'{"info": %s}' % each for each in (b"null", b'{"features": null}', b'{"features": [1]}'))]
)
def test_metadata_of_another_shape_is_passed_over_with_a_word(tmp_path, metadata, caplog):
    dataset = with_metadata(tmp_path, [1, 0], metadata)
    assert (dataset.task.labels, labels(dataset)) == (("0", "1"), [1, 0])
    assert "named.parquet: its `huggingface` metadata cannot be read" in caplog.text


@pytest.mark.parametrize(
    "metadata", [b"{}", b'{"info": {}}', b'{"info": {"features": {"y": null}}}', b'{"info": {"features": {"y": []}}}']
)
def test_metadata_without_names_is_none(tmp_path, metadata, caplog):
    assert with_metadata(tmp_path, [1, 0], metadata).task.labels == ("0", "1")
    assert not caplog.text


@pytest.mark.parametrize("names", [None, "ab", 3, {"a": 0, "b": 1}, [0, 1], ["a", None], ["a", "a"], ["a", ""], [["a"], "b"]])
def test_class_names_that_are_none_are_passed_over_with_a_word(tmp_path, names, caplog):
    assert with_class_names(tmp_path, [1, 0], names).task.labels == ("0", "1")
    assert "column 'y': its class names are not distinct texts and are passed over" in caplog.text


def test_names_of_one_split_are_those_of_the_other(tmp_path):
    train = with_class_names(tmp_path, [1, 0], ["zebra", "ant"])
    assert labels(train) == [1, 0]
    dev = write(tmp_path / "dev.csv", "s,y\nx,ant\ny,Zebra\n")
    both = read_dataset(str(tmp_path / "named.parquet"), text=["s"], label="y", validation=dev)
    assert labels(both, "validation") == [1, 0]
