"""Every kind of source reads as the strings it holds, and a split is found wherever it may lie."""

import csv
import gzip
import json
import math
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from hskstore.errors import DataError
from hskstore.text import files
from hskstore.text.dataset import read_dataset
from hskstore.text.labels import read_labels
from tests.conftest import SHARED
from tests.test_data import labels, one, write, write_tsv

AWKWARD = [
    "12",
    "None",
    "NA",
    "nan",
    "",
    " ",
    '"',
    'a "b" c',
    "a,b",
    "1e3",
    "true",
    "\u2028",
    "x\x85y",
    "\x0bz",
    "ü 漢",
    "#",
    "\\N",
]


# --- file types


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(text=st.lists(st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"])), min_size=1))
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("extra", [[], ["label"]])
def test_any_strings_written_as_tsv_read_back_exactly(tmp_path, text, end, extra):
    lines = ["\t".join(["sentence", *extra]), *("\t".join([t, *("1" for _ in extra)]) for t in text)]
    path = write(tmp_path / "x.tsv", "".join(line + end for line in lines))
    assert one(path, text=["sentence"]).splits["train"].text == (text,)


def write_awkward(path: Path) -> None:
    if ".tsv" in path.name or ".txt" in path.name:
        content = "\ufeffs\ty\r\n" + "".join(f"{s}\t{i % 2}\r\n" for i, s in enumerate(AWKWARD))
    elif ".jsonl" in path.name:
        content = "".join(json.dumps({"s": s, "y": i % 2}, ensure_ascii=False) + "\n" for i, s in enumerate(AWKWARD))
    else:
        content = json.dumps([{"s": s, "y": i % 2} for i, s in enumerate(AWKWARD)], indent=1)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz", "a.txt", "a.jsonl", "a.jsonl.gz", "a.json"])
def test_text_files_hand_over_the_strings_that_they_hold(tmp_path, name):
    write_awkward(tmp_path / name)
    assert one(str(tmp_path / name), text=["s"], label="y").splits["train"].text == (AWKWARD,)


def test_csv_knows_quotes_commas_line_breaks_and_long_texts(tmp_path):
    text = [*AWKWARD, "two\nlines", "two\r\nlines", "long " * 50_000]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["s", "y"], *([s, i % 2] for i, s in enumerate(text))])
    assert one(str(tmp_path / "a.csv"), text=["s"], label="y").splits["train"].text == (text,)


def test_parquet_hands_over_strings_and_the_names_of_class_labels(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"s": datasets.Value("string"), "y": datasets.ClassLabel(names=["zebra", "ant"])})
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict({"s": AWKWARD, "y": [i % 2 for i in range(len(AWKWARD))]}, features=features).to_parquet(str(path))
    dataset = one(str(path), text=["s"], label="y")
    assert dataset.splits["train"].text == (AWKWARD,)
    assert dataset.task.labels == ("zebra", "ant")
    assert labels(dataset)[:3] == [0, 1, 0]


def test_numbers_and_nulls_in_a_text_column_become_text(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"s": 12}\n{"s": null}\n\n{"s": true}\n{"t": 1}\n')
    dataset = one(path, text=["s"])
    assert dataset.splits["train"].text == (["12", "", "True", ""],)
    assert dataset.empty == {"train": 2}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "s\ty\na\t1\nb\n", r"a\.tsv, line 3: 1 fields, where 2 are expected"),
        ("a.tsv", "s\ty\na\t1\t2\n", r"a\.tsv, line 2: 3 fields, where 2"),
        ("a.tsv", "s\ty\na\t1\n\nb\t1\n", r"a\.tsv, line 3: 1 fields"),
        ("a.csv", 's,y\n"two\nlines",1\nb\n', r"a\.csv, line 4: 1 fields, where 2"),
        ("a.csv", 's,y\n"never closed,1\n', r"a\.csv, line \d: unexpected end of data"),
        ("a.jsonl", '{"s": "a"}\n{"s": \n', r"a\.jsonl, line 2: not JSON; write one object per line"),
        ("a.jsonl", '{"s": "a"}\n3\n', r"a\.jsonl, row 2: not a JSON object"),
        ("a.json", '[{"s": "a"},\n 3 4]', r"a\.json, line 2: not JSON"),
        ("a.jsonl", '{"s": ["a"]}\n', r"a\.jsonl, row 1: column 's' holds a list, not a text"),
        ("a.parquet", "no parquet", r"cannot read .*a\.parquet"),
        ("a.tsv.gz", "no gzip", r"cannot read .*a\.tsv\.gz"),
        ("a.xlsx", "s", r"a\.xlsx: unknown kind of file; those read are \.tsv"),
        ("a.tsv", "", r"a\.tsv has no rows"),
        ("a.tsv", "s\ty\n", r"a\.tsv has no rows"),
        ("a.tsv", "s\ts\na\tb\n", r"a\.tsv has more than one column 's'"),
        ("a.tsv", "t\tu\na\tb\n", r"a\.tsv has no column 's'; its columns are t, u"),
    ],
)
def test_a_damaged_file_names_itself_and_the_place(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        one(write(tmp_path / name, content), text=["s"])


@pytest.mark.parametrize("block", [1, 4, 2**20])
@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.json", "a.tsv.gz"])
def test_text_that_is_not_utf8_names_its_line(tmp_path, monkeypatch, name, block):
    monkeypatch.setattr(files, "_BLOCK", block)
    content = b'{"s": "a"}\n{"s": "b"}\n"\xff"\n' if "json" in name else b"s\ngood\nb\xff\n"
    content = b"[" + content if name == "a.json" else content
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=r"a\..*, line 3: not UTF-8"):
        one(str(tmp_path / name), text=["s"])


@pytest.mark.parametrize("block", [1, 3, 50])
@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz", "a.csv", "a.jsonl", "a.json"])
def test_a_file_reads_the_same_in_blocks_of_any_size(tmp_path, monkeypatch, name, block):
    monkeypatch.setattr(files, "_BLOCK", block)
    if name == "a.csv":
        test_csv_knows_quotes_commas_line_breaks_and_long_texts(tmp_path)
    else:
        test_text_files_hand_over_the_strings_that_they_hold(tmp_path, name)


def test_json_values_are_what_they_are_whatever_else_the_column_holds(tmp_path):
    """Columns that come late, values of several types, integers that no array holds, half a character: only where it is read."""
    rows = [{"s": "a", "odd": "\ud83d"}, {"s": None, "late": 2**70}, {"late": 0.5, "s": "b"}, {"s": "c", "late": True}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert one(path, text=["s", "late"]).splits["train"].text == (
        ["a", "", "b", "c"],
        ["", "1180591620717411303424", "0.5", "True"],
    )
    with pytest.raises(DataError, match=r"row 1: column 'odd' holds half a character, U\+D83D"):
        one(path, text=["odd"])
    with pytest.raises(DataError, match="row 1: column 'late' holds no label"):
        one(path, text=["s"], label="late")


def test_columns_of_parquet_are_read_whatever_their_type(tmp_path):
    table = {
        "kind": arrow.array(["x", "y", None]).dictionary_encode(),
        "a.b": arrow.array([1.5, float("nan"), None]),
        "s": arrow.array(["a", "b", "c"], arrow.large_string()),
        "list": arrow.array([[1], [2], [3]]),
    }
    parquet.write_table(arrow.table(table), tmp_path / "a.parquet", row_group_size=1)
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    for name in ("a.parquet", "b.parquet.gz"):
        path = str(tmp_path / name)
        assert one(path, text=["s", "kind"]).splits["train"].text == (["a", "b", "c"], ["x", "y", ""])
        assert one(path, text=["a.b"]).splits["train"].text == (["1.5", "", ""],)
        with pytest.raises(DataError, match="row 1: column 'list' holds a list, not a text"):
            one(path, text=["list"])


def test_blank_lines_at_the_end_are_no_rows(tmp_path):
    assert len(one(write(tmp_path / "a.tsv", "s\ty\na\t1\n\n\n"), text=["s"]).splits["train"]) == 1


# --- what is no text


def write_values(path: Path, values: list[object], kind: object = None) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"s": value}) + "\n" for value in values))
    elif path.suffix == ".parquet":
        parquet.write_table(arrow.table({"s": arrow.array(values, kind)}), path)
    else:
        datasets = pytest.importorskip("datasets")
        datasets.Dataset(arrow.table({"s": arrow.array(values, kind)})).save_to_disk(str(path))
    return str(path)


NO_TEXTS = [(["a"], "list"), ([], "list"), ({"a": 1}, "dict"), (b"a", "bytes"), (date(2020, 1, 1), "date")]


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        (name, *no_text)
        for name in ("a.jsonl", "a.parquet", "saved")
        for no_text in (NO_TEXTS[:3] if name == "a.jsonl" else NO_TEXTS)  # JSON has neither bytes nor dates
    ],
)
def test_a_value_that_is_no_text_names_its_row_and_its_kind(tmp_path, name, value, kind):
    with pytest.raises(DataError, match=rf"row 2: column 's' holds a {kind}, not a text"):
        one(write_values(tmp_path / name, [None, value]), text=["s"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "saved"])
@pytest.mark.parametrize(
    ("values", "text", "kinds"),
    [
        ([1, 2], ["1", "2"], "int"),
        ([1.5, math.nan, math.inf], ["1.5", "", "inf"], "float"),
        ([True, None], ["True", ""], "bool"),
    ],
)
def test_numbers_are_read_as_text_with_a_word(tmp_path, caplog, name, values, text, kinds):
    assert one(write_values(tmp_path / name, values), text=["s"]).splits["train"].text == (text,)
    assert f"column 's' holds values that are no texts ({kinds}) and are read as such" in caplog.text


@pytest.mark.parametrize("values", [["a", None], ["a", "12", "nan"]])
def test_texts_are_read_without_a_word(tmp_path, caplog, values):
    one(write_values(tmp_path / "a.parquet", values), text=["s"])
    assert "no texts" not in caplog.text


def test_strings_that_are_no_utf8_and_times_of_no_calendar_are_a_message(tmp_path):
    ends = arrow.py_buffer(np.array([0, 1, 2], np.int32).tobytes())
    broken = arrow.Array.from_buffers(arrow.string(), 2, [None, ends, arrow.py_buffer(b"a\xff")])
    late = arrow.array([1, 10**18], arrow.timestamp("us"))
    parquet.write_table(arrow.table({"s": broken, "t": late}), tmp_path / "a.parquet")
    for name in ("s", "t"):
        with pytest.raises(DataError, match=rf"a\.parquet: column '{name}' cannot be read: "):
            one(str(tmp_path / "a.parquet"), text=[name])
        with pytest.raises(DataError, match=rf"a\.parquet: column '{name}' cannot be read: "):
            read_labels(files.read_file(tmp_path / "a.parquet", None, ()), name)


def test_half_a_character_is_no_text_also_where_a_share_is_taken(tmp_path):
    path = write_values(tmp_path / "a.jsonl", ["a", "b\ud83d", "c"])
    with pytest.raises(DataError, match=r"row 2: column 's' holds half a character, U\+D83D without its other half: mend"):
        read_dataset(path, text=["s"], validation="0.4")


@pytest.mark.parametrize("content", ['{"s": ' + "[" * 100_000 + "}", "[" * 100_000])
def test_json_of_any_depth_is_a_message(tmp_path, content):
    with pytest.raises(DataError, match="line 1: not JSON"):
        one(write(tmp_path / "a.jsonl", content), text=["s"])


# --- names and separators


@pytest.mark.parametrize("name", ["A.TSV", "a.Txt", "a.CSV", "A.JSONL", "a.Json", "a.tsv.GZ", "A.CSV.gz"])
def test_a_type_is_told_in_letters_of_any_case(tmp_path, name):
    content = json.dumps({"s": "x"}) if "json" in name.lower() else "s\nx\n"
    (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.lower().endswith(".gz") else content.encode())
    assert one(str(tmp_path / name), text=["s"]).splits["train"].text == (["x"],)
    (tmp_path / name).rename(tmp_path / f"Train{name[1:]}")
    assert one(str(tmp_path), text=["s"]).splits["train"].text == (["x"],)
    with pytest.raises(DataError, match="no such file or folder"):
        one(name, text=["s"])


def test_parquet_is_told_in_letters_of_any_case_shards_too(tmp_path):
    write_parquet(tmp_path / "a.PARQUET", ["x"])
    assert one(str(tmp_path / "a.PARQUET"), text=["s"]).splits["train"].text == (["x"],)
    write_parquet(tmp_path / "data" / "train-00000-of-00001.Parquet", ["y"])
    assert one(str(tmp_path), text=["s"]).splits["train"].text == (["y"],)


def test_a_name_in_small_letters_goes_before_one_in_others(tmp_path):
    write(tmp_path / "train.csv", "s\nsmall\n")
    write(tmp_path / "TRAIN.csv", "s\nlarge\n")
    assert one(str(tmp_path), text=["s"]).splits["train"].text == (["small"],)


@pytest.mark.parametrize(
    ("name", "separator", "said"),
    [
        ("a.csv", ";", r"semicolons \(';'\)"),
        ("a.csv", "\t", r"tabs \('\\t'\)"),
        ("a.csv", "|", "bars"),
        ("a.tsv", ",", "commas"),
        ("a.tsv", ";", "semicolons"),
    ],
)
@pytest.mark.parametrize("text", ["plain", "with, a comma\tand a tab"])
def test_another_separator_is_named(tmp_path, name, separator, said, text):
    path = write(tmp_path / name, f"s{separator}y\n{text}{separator}1\n")
    with pytest.raises(DataError, match=rf"; its header looks separated by {said}.*: a \.csv is read with commas, a \.tsv with"):
        one(path, text=["s"], label="y")


def test_a_missing_column_of_several_has_no_word_about_separators(tmp_path):
    with pytest.raises(DataError, match=r"its columns are a;b, c: choose with --text and --label$"):
        one(write(tmp_path / "a.csv", "a;b,c\nx,1\n"), text=["s"])


@pytest.mark.parametrize(
    ("fields", "warned"),
    [
        (['"He said ""hi"""', "plain"], True),
        (['"all"', '"quoted"', '"of ""them"""', 'but "one"'], True),
        (['"a quotation', 'its end"', '" whole "'], False),
        (['""" odd', 'say "hi"'], False),
        (["plain", "it's"], False),
    ],
)
def test_fields_that_look_quoted_stay_as_they_are_with_a_word(tmp_path, caplog, fields, warned):
    path = write_tsv(tmp_path / "a.tsv", ("s", "y"), *((field, i % 2) for i, field in enumerate(fields)))
    assert one(path, text=["s"], label="y").splits["train"].text == (fields,)
    assert ("most fields with quotes look quoted" in caplog.text and "save the data as .csv" in caplog.text) == warned


# --- GLUE's own files


@pytest.mark.parametrize(
    ("task", "header", "row", "text", "label"),
    [
        ("cola", None, ("gj04", 1, "", "A sentence."), ("A sentence.",), 1),
        ("cola", ("sentence", "label"), ("A", "acceptable"), ("A",), 1),
        ("sst2", ("sentence", "label"), ("bad ", 0), ("bad ",), 0),
        ("mrpc", ("\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"), (1, 2, 3, '"a', 'b"'), ('"a', 'b"'), 1),
        ("mrpc", ("sentence1", "sentence2", "label"), ("a", "b", "not_equivalent"), ("a", "b"), 0),
        ("stsb", ("index", "sentence1", "sentence2", "score"), (0, "a", "b", "3.800"), ("a", "b"), 3.8),
        ("stsb", None, ("g", "f", "2012", "0024", "2.5", "a", "b"), ("a", "b"), 2.5),
        ("stsb", None, ("g", "f", "2012", "0024", "2", "a", "b", "licence", "licence"), ("a", "b"), 2.0),
        ("qqp", ("id", "question1", "question2", "is_duplicate"), (0, "a", "b", 1), ("a", "b"), 1),
        ("mnli", ("index", "sentence1", "sentence2", "label1", "gold_label"), (0, "a", "b", "x", "neutral"), ("a", "b"), 1),
        ("mnli", ("premise", "hypothesis", "label"), ("a", "b", 2), ("a", "b"), 2),
        ("qnli", ("index", "question", "sentence", "label"), (0, "a", "b", "not_entailment"), ("a", "b"), 1),
        ("rte", ("index", "sentence1", "sentence2", "label"), (0, "a", "b", "entailment"), ("a", "b"), 0),
        ("wnli", ("index", "sentence1", "sentence2", "label"), (0, "a", "b", 1), ("a", "b"), 1),
    ],
)
def test_glue_reads_in_its_raw_form_and_in_the_hubs(tmp_path, task, header, row, text, label):
    path = write_tsv(tmp_path / "train.tsv", *([header] if header else []), row)
    dataset = one(path, task=task)
    assert dataset.splits["train"].text == tuple([t] for t in text)
    assert labels(dataset) == pytest.approx([label])
    assert dataset.splits["train"].label.dtype == (np.float32 if task == "stsb" else np.int64)


def test_the_torn_rows_of_qqp_are_left_out(tmp_path):
    path = write(tmp_path / "train.tsv", "question1\tquestion2\tis_duplicate\na\tb\t1\ntorn\n apart\tb\nc\td\t0\n")
    assert one(path, task="qqp").splits["train"].text == (["a", "c"], ["b", "d"])


@pytest.mark.real
def test_the_quotes_of_mrpc_stay_in_the_text():
    train = read_dataset(str(SHARED / "data/mrpc"), task="mrpc").splits["train"]
    assert train.text[0][0].startswith('Amrozi accused his brother , whom he called " the witness " ,')
    assert train.text[1][0].startswith('Referring to him as only " the witness "')
    assert sum(text.count('"') for column in train.text for text in column) == (SHARED / "data/mrpc/train.tsv").read_text().count(
        '"'
    )


# --- folders


@pytest.mark.parametrize("dev", ["dev", "validation", "valid", "val"])
def test_a_folder_gives_its_splits_by_file_name(tmp_path, dev):
    for stem in ("train", dev, "test", "test_labeled", "notes"):
        write_tsv(tmp_path / f"{stem}.tsv", ("sentence", "label"), (stem, 1))
    write(tmp_path / "LICENSE.txt", "free")
    dataset = read_dataset(str(tmp_path), task="sst2", splits=("train", "validation", "test", "test_labeled"))
    assert {split: e.text[0] for split, e in dataset.splits.items()} == {
        "train": ["train"], "validation": [dev], "test": ["test"], "test_labeled": ["test_labeled"],
    }  # fmt: skip


def test_a_missing_or_ambiguous_split_says_what_is_there(tmp_path):
    write_tsv(tmp_path / "train.tsv", ("sentence", "label"), ("a", 1))
    with pytest.raises(DataError, match=r"has no extra split; it has .*train\.tsv"):
        read_dataset(str(tmp_path), task="sst2", splits=("train", "extra"))
    write_tsv(tmp_path / "dev.tsv", ("sentence", "label"), ("a", 1))
    write_tsv(tmp_path / "val.tsv", ("sentence", "label"), ("a", 1))
    with pytest.raises(DataError, match=r"dev\.tsv, .*val\.tsv could each be the validation split"):
        read_dataset(str(tmp_path), task="sst2")


# --- Parquet shards, as a clone of a data set on the hub has them


def write_parquet(path: Path, text: list[str], names: tuple[str, ...] = ("zebra", "ant")) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"s": datasets.Value("string"), "y": datasets.ClassLabel(names=list(names))})
    path.parent.mkdir(exist_ok=True)
    datasets.Dataset.from_dict({"s": text, "y": [len(t) % 2 for t in text]}, features=features).to_parquet(str(path))


@pytest.mark.parametrize("folder", ["", "data"])
@pytest.mark.parametrize("end", ["", "-b42a775f407cee45"])
def test_parquet_shards_are_the_split_before_the_dash_in_their_order(tmp_path, folder, end):
    for number, text in [(2, ["e"]), (0, ["a", "bb"]), (1, ["ccc", "dd"])]:
        write_parquet(tmp_path / folder / f"train-{number:05}-of-00003{end}.parquet", text)
    write_parquet(tmp_path / folder / f"dev-00000-of-00001{end}.parquet", ["v"])
    write_parquet(tmp_path / folder / f"test-labeled-00000-of-00001{end}.parquet", ["t"])
    dataset = read_dataset(str(tmp_path), text=["s"], label="y", splits=("train", "validation", "test-labeled"))
    assert {split: e.text[0] for split, e in dataset.splits.items()} == {
        "train": ["a", "bb", "ccc", "dd", "e"], "validation": ["v"], "test-labeled": ["t"],
    }  # fmt: skip
    assert (labels(dataset), dataset.task.labels) == ([1, 0, 1, 0, 1], ("zebra", "ant"))


def test_shards_lie_beside_whole_files_but_not_of_the_same_split(tmp_path):
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", ["a"])
    write_parquet(tmp_path / "data" / "notes.parquet", ["no shard"])
    write_parquet(tmp_path / "dev.parquet", ["v"])
    dataset = read_dataset(str(tmp_path), text=["s"], label="y")
    assert {split: e.text[0] for split, e in dataset.splits.items()} == {"train": ["a"], "validation": ["v"]}
    with pytest.raises(DataError, match=r"has no notes split; it has .*dev\.parquet, .*train-00000-of-00001\.parquet"):
        read_dataset(str(tmp_path), text=["s"], splits=("notes",))
    write_parquet(tmp_path / "train-00000-of-00001.parquet", ["b"])
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet, .*data/train-.*could each be the train split"):
        read_dataset(str(tmp_path), text=["s"], label="y")


@pytest.mark.parametrize(
    "names",
    [
        ["train-00001-of-00002"],
        ["train-00000-of-00003", "train-00002-of-00003"],
        ["train-00000-of-00002", "train-00001-of-00003"],
        ["train-00000-of-00001-aa", "train-00000-of-00001-bb"],
    ],
)
def test_shards_that_are_not_all_there_once_are_refused_when_their_split_is_read(tmp_path, names):
    for name in names:
        write_parquet(tmp_path / f"{name}.parquet", ["a"])
    write_parquet(tmp_path / "dev-00000-of-00001.parquet", ["v"])
    with pytest.raises(DataError, match=rf"shards there are {names[0]}.parquet.*not each of \d once: fetch those missing"):
        one(str(tmp_path), text=["s"], label="y")
    assert len(read_dataset(str(tmp_path), text=["s"], label="y", splits=("validation",)).splits["validation"]) == 1


def test_shards_whose_classes_differ_are_refused(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", ["a"])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", ["a"], names=("ant", "zebra"))
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet has other columns or classes than .*train-00000-"):
        one(str(tmp_path), text=["s"], label="y")


# --- saved data sets and the hub


def test_saved_data_sets_keep_class_names_and_the_order_of_their_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"s": datasets.Value("string"), "y": datasets.ClassLabel(names=["zebra", "ant"])})
    whole = datasets.Dataset.from_dict({"s": ["a", "b", "c"], "y": [0, 1, 0]}, features=features)
    hidden = datasets.Dataset.from_dict({"s": ["a", "b"], "y": [-1, -1]}, features=features)
    datasets.DatasetDict({"train": whole.select([2, 1]), "dev": whole, "test": hidden}).save_to_disk(str(tmp_path / "many"))
    dataset = read_dataset(str(tmp_path / "many"), text=["s"], label="y")
    assert dataset.splits["train"].text == (["c", "b"],)
    assert (dataset.task.labels, labels(dataset), labels(dataset, "validation")) == (("zebra", "ant"), [0, 1], [0, 1, 0])
    with pytest.raises(DataError, match=r"split test has no labels .*score on validation"):
        read_dataset(str(tmp_path / "many"), text=["s"], label="y", splits=("test",))

    whole.save_to_disk(str(tmp_path / "single"))
    assert labels(one(str(tmp_path / "single"), text=["s"], label="y")) == [0, 1, 0]
    write(tmp_path / "single" / "state.json", "{")
    with pytest.raises(DataError, match="cannot read the saved data set"):
        one(str(tmp_path / "single"), text=["s"])


@pytest.mark.parametrize("source", ["./missing", "/missing/folder", "~/missing-folder", "missing.tsv", "missing.json.gz"])
def test_a_path_that_is_not_there_is_no_hub_name(source):
    with pytest.raises(DataError, match=f"no such file or folder: {source}"):
        read_dataset(source, task="sst2")


@pytest.mark.parametrize("source", ["glue/cola", "nobody/nothing", "nobody/nothing:config"])
def test_the_hub_out_of_reach_is_one_clear_line(source, monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # read at import, which another test may have done
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError, match=f"no file or folder {source} here, and the hub's.*cannot be loaded") as error:
        read_dataset(source, text=["sentence"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "called"),
    [
        ("glue/cola", ("nyu-mll/glue", "cola")),
        ("glue/SST-2", ("nyu-mll/glue", "sst2")),
        ("a/b:c", ("a/b", "c")),
        ("a/b", ("a/b", None)),
    ],
)
def test_hub_names_and_configs(source, called, monkeypatch):
    datasets = pytest.importorskip("datasets")
    calls = []
    split = datasets.Dataset.from_dict({"sentence": ["a", None], "label": [1, 0]})

    def load_dataset(*arguments):
        calls.append(arguments)
        return datasets.DatasetDict({"train": split, "validation": split, "test": split})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    dataset = read_dataset(source, task=None if source.startswith("glue") else "sst2")
    assert calls == [called]
    assert dataset.task.name == (called[1] if source.startswith("glue") else "sst2")
    assert dataset.splits["validation"].text == (["a", ""],)
    assert labels(dataset) == [1, 0]


def test_columns_are_named_by_their_first_letters(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(f"{'x' * 9000},label\na,0\nb,1\n")
    with pytest.raises(DataError, match=r"its columns are x{60}\.\.\., label: choose"):
        read_dataset(str(tmp_path / "data.csv"), text=["text"], label="label", splits=["train"])
