"""Whoever made a store, and whatever they put into it: it is opened, or refused with one message at once, in little memory."""

import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hskstore.errors import StoreError
from hskstore.explore.show import describe, describe_progress, ranked_row
from hskstore.store import Plan, open_store
from hskstore.store.commit import Manifest
from hskstore.store.layout import KeptText, plan_arrays
from hskstore.store.objects import MAX_DOCUMENT_BYTES, MAX_OBJECT_BYTES, Objects
from hskstore.store.schema import canonical_json, with_check
from hskstore.store.verify import verify
from hskstore.text.tokenizers import tokenizer_files, tokenizer_from_files
from tests.conftest import hsk, make_tokenizer
from tests.store.conftest import damage, edit_signed, forge, make_plan, tree, write_store
from tests.store.test_plan import edited, leaves

SHARD = "train/hidden/values/c/1/0/0/0"


def refused(root: Path, message: str, look: Callable[[Path], object] = open_store) -> None:
    """Looking at a store ends with StoreError, within a second or so and a few megabytes."""
    began = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match=message):
            look(root)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 5


LOOKS: dict[str, Callable[[Path], object]] = {
    "open": open_store,
    "verify": lambda root: verify(str(root), deep=True),
    "condemn": lambda root: verify(str(root), condemn=True),
}


# --- plans beyond all reason


def monstrous(
    plan: Plan,
    *,
    rows: int = 20,
    unit_rows: int = 8,
    longest: int = 10,
    chunk: int | None = None,
    text: KeptText | None = None,
    **sizes: Any,
) -> Plan:
    """A plan that agrees with itself."""
    train = replace(plan.splits["train"], rows=rows, unit_rows=unit_rows, longest=longest)
    splits = {**plan.splits, "train": train}
    features = {"hidden": replace(plan.hidden, **sizes)}
    teacher = plan.teacher | {"hidden_size": features["hidden"].hidden_size}
    plan = replace(plan, splits=splits, features=features, text=text, teacher=teacher)
    arrays = plan_arrays(features, splits, labels="int64", logits=2, text=plan.text)
    small = chunk is not None
    return replace(plan, arrays={path: replace(spec, chunk=chunk) if small else spec for path, spec in arrays.items()})


BYTES, CHUNKS, UNITS = (
    r"asks for shards of \d{11,} bytes in ",
    r"asks for shards of \d+ chunks in ",
    "asks for more than 1048576 units",
)
MONSTERS = {
    "a petabyte in one shard": ({"rows": 2**43, "unit_rows": 2**43, "longest": 32}, BYTES),
    "two petabytes in one row": ({"longest": 2**49}, r"asks for shards of 18014398509481984 bytes in train/input_ids"),
    "2^60 rows, one a unit": ({"rows": 2**60, "unit_rows": 1}, UNITS),
    "2^60 rows in units of 8192": ({"rows": 2**60, "unit_rows": 8192}, UNITS),
    "10^9 chunks in one shard": ({"rows": 2**30, "unit_rows": 2**30, "longest": 1, "chunk": 1}, BYTES),
    "2^17 chunks in one shard": ({"rows": 2**17, "unit_rows": 2**17, "longest": 1, "chunk": 1}, CHUNKS),
    "2^40 tokens kept": ({"length": 2**40}, BYTES),
    "vectors of 2^40 units": ({"hidden_size": 2**40}, BYTES + "train/hidden/mask"),
    "2^40 bytes of text": ({"text": KeptText(1, {"train": 2**40, "validation": 1})}, BYTES + "train/text"),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("sealed_too", [False, True])
@pytest.mark.parametrize("name", MONSTERS)
def test_a_plan_beyond_all_reason_is_refused_at_once(plan, tmp_path, name, sealed_too, look):
    numbers, message = MONSTERS[name]
    monster = monstrous(plan, **numbers)
    assert Plan.from_bytes(monster.to_bytes(), "here") == monster, "it agrees with itself"
    (tmp_path / "plan.json").write_bytes(monster.to_bytes())
    if sealed_too:
        (tmp_path / "manifest.json").write_bytes(Manifest(monster.store_id, {}).to_bytes())
    refused(tmp_path, message + r".*; refused$", LOOKS[look])


@pytest.mark.parametrize("look", LOOKS)
def test_codebooks_beyond_all_reason_are_refused_at_once(tmp_path, look):
    monster = monstrous(make_plan("rq4"), hidden_size=2**23, width=2**23)
    assert Plan.from_bytes(monster.to_bytes(), "here") == monster, "it agrees with itself"
    (tmp_path / "plan.json").write_bytes(monster.to_bytes())
    refused(tmp_path, BYTES + r"codebooks/hidden/words; refused$", LOOKS[look])


@pytest.mark.parametrize("numbers", [{"rows": 2**20 - 2, "unit_rows": 1}, {"rows": 2**30, "unit_rows": 2**12, "chunk": 1}])
def test_more_units_than_the_seal_lists_objects_are_not_gone_through(plan, sealed, numbers):
    """The second one has 10^9 chunks and shards as they should be."""
    numbers = {**numbers, "longest": 1}
    many = monstrous(plan, **numbers)
    forge(sealed, {"plan.json": many.to_bytes(), **many.documents()})
    refused(sealed, r"/manifest\.json lists fewer objects than the plan has units")
    assert [problem.key for problem in verify(str(sealed)).problems] == ["manifest.json"]


def other_names(plan: Plan, split: str) -> bytes:
    """The plan with its validation split under another name."""
    document = plan.as_json()
    document["splits"][split] = document["splits"].pop("validation")
    document["arrays"] = {path.replace("validation/", f"{split}/"): spec for path, spec in document["arrays"].items()}
    return canonical_json(document)


@pytest.mark.parametrize("split", ["..", ".", "", "a/b", "../..", "/", "A", "a b", "a\n", "é", "train\\x", "codebooks", "files"])
def test_a_split_whose_name_is_no_folder_s_is_refused(plan, sealed, split):
    forge(sealed, {"plan.json": other_names(plan, split)})
    refused(sealed, r"/plan\.json cannot be read as a plan \(")


@pytest.mark.parametrize(
    "path", ["train/../../x", "train/../validation/x", "../x", "/x", "train//x", "train/hidden/../../../x", "x"]
)
def test_an_array_that_is_somewhere_else_is_passed_over_and_nothing_there_is_touched(plan, sealed, path):
    (sealed.parent / "x").write_bytes(b"somebody's")
    document = plan.as_json()
    document["arrays"][path] = document["arrays"]["train/input_ids"]
    forge(sealed, {"plan.json": canonical_json(document)})
    assert open_store(sealed).plan.arrays.keys() == plan.arrays.keys()
    assert verify(str(sealed), deep=True, condemn=True).problems == ()
    assert (sealed.parent / "x").read_bytes() == b"somebody's"
    del document["arrays"]["train/input_ids"]
    forge(sealed, {"plan.json": canonical_json(document)})
    refused(sealed, r"/plan\.json cannot be read as a plan \(.*its arrays are not those that its numbers make")


STRANGE = [None, -1, 0, 10**30, 0.5, 1.0, "", "x", "[/x]", "O", "\ud800", "\x1b[2J", {}, [[]], True, float("nan"), float("inf")]
LEAVES = [path for path in leaves(make_plan().as_json()) if path[0] != "arrays" or path[1:2] in ((), ("train/label",))]


@pytest.fixture(scope="module")
def of_values(sealed_once: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sealed store of numbers and one of codes, whose plans have the same fields."""
    coded = tmp_path_factory.mktemp("coded") / "store"
    write_store(coded, make_plan("rq4"))
    return {"f16": sealed_once, "rq4": coded}


@pytest.mark.parametrize("values", ["f16", pytest.param("rq4", marks=pytest.mark.long)])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(LEAVES), st.sampled_from(STRANGE))
@example(("hidden", "hidden_size"), 2**40)
@example(("arrays", "train/label", "shape"), [20.0])
@example(("arrays", "train/label", "shard"), 8.0)
@example(("arrays", "train/label", "fill"), True)
@example(("arrays", "train/label", "dtype"), "object")
@example(("arrays", "train/label", "dtype"), "complex128")
@example(("version",), float("inf"))
@example(("task",), {})
@example(("task", "name"), "[/x]")
@example(("task", "name"), "\ud800")
@example(("teacher", "sha256"), None)
@example(("splits", "train", "tokens"), 0)
@example(("splits", "train", "tokens"), "x")
@example(("splits", "train", "sha256"), "\ud800")
@example(("tokenizer", "separators"), None)
@example(("pass", "precision"), "[/x]")
def test_a_sealed_plan_with_any_field_made_strange_is_refused_or_read_and_shown(of_values, tmp_path_factory, values, path, value):
    data = json.dumps(edited(make_plan(values).as_json(), path, value)).encode()
    root = tmp_path_factory.mktemp("strange") / "store"
    try:
        documents = Plan.from_bytes(data, "here").documents()
    except StoreError:
        documents = {}
    for key, content in tree(of_values[values]).items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(content)
    forge(root, {"plan.json": data, **documents})
    try:
        store = open_store(root)
    except StoreError:
        assert hsk("show", root) == hsk("verify", root) == 2
        return
    assert documents, "what cannot be read is not opened"
    for array in store.plan.arrays:
        store.read_all(array)
    store.row("train", 3)
    assert hsk("show", root) == hsk("show", root, "--json") == hsk("verify", root, "--deep") == 0
    (root / "manifest.json").unlink()
    assert hsk("show", root) == 0


# --- what is no file


def elsewhere(tmp_path: Path, sealed: Path, key: str) -> None:
    (tmp_path / "elsewhere").write_bytes((sealed / key).read_bytes())
    (sealed / key).unlink()
    (sealed / key).symlink_to(tmp_path / "elsewhere")


NO_FILES: dict[str, Callable[[Path, Path, str], None]] = {
    "a link to a good copy": elsewhere,
    "a link to /dev/zero": lambda tmp, sealed, key: ((sealed / key).unlink(), (sealed / key).symlink_to("/dev/zero")),
    "a link to nothing": lambda tmp, sealed, key: ((sealed / key).unlink(), (sealed / key).symlink_to(tmp / "nothing")),
    "a pipe": lambda tmp, sealed, key: ((sealed / key).unlink(), os.mkfifo(sealed / key)),
    "a folder": lambda tmp, sealed, key: ((sealed / key).unlink(), (sealed / key).mkdir()),
}
PROGRAM = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
from hskstore.errors import StoreError
from hskstore.store import open_store
from hskstore.store.verify import verify
from hskstore.explore.show import describe
for look in (open_store, lambda root: verify(root, deep=True), describe):
    for root in sys.argv[1:]:
        try:
            found = look(root)
            print(json.dumps([problem.key for problem in getattr(found, "problems", ())]))
        except StoreError as error:
            print(json.dumps(str(error)))
"""


@pytest.mark.parametrize("name", NO_FILES)
def test_what_is_no_file_is_refused_and_never_waited_for(sealed, tmp_path, name):
    keys = ["plan.json", "manifest.json", SHARD, "teacher.json", "zarr.json", "units/train-000001.json"]
    roots = [tmp_path / "stores" / str(number) for number in range(len(keys))]
    for root, key in zip(roots, keys, strict=True):
        for other, content in tree(sealed).items():
            (root / other).parent.mkdir(parents=True, exist_ok=True)
            (root / other).write_bytes(content)
        NO_FILES[name](tmp_path, root, key)
    ran = subprocess.run([sys.executable, "-c", PROGRAM, *roots], capture_output=True, text=True, check=True, timeout=60)
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    opened, verified, described = found[:6], found[6:12], found[12:]
    for key, root, words in zip(keys, roots, opened, strict=True):
        if "link" in name:
            assert words == f"{root / key} is a symbolic link; a store has none: copy the store instead of linking parts"
        else:
            assert words == [] if key.startswith("units/") else str(root) in words
    if "link" in name:
        assert verified == described == opened
    assert described[:5] == opened[:5]
    for key, words in zip(keys, verified, strict=True):
        if (key, name) == ("manifest.json", "a folder"):
            assert words == [], "then the store is simply not sealed"
        else:
            assert words == [key] or f"/{key} is " in words


def test_a_pipe_elsewhere_in_the_folder_is_nobody_s_business(plan, sealed):
    (sealed / "notes").mkdir()
    os.mkfifo(sealed / "notes" / "pipe")
    assert open_store(sealed).plan == plan
    assert verify(str(sealed), deep=True).problems == ()


# --- the seal


@pytest.mark.parametrize(
    "key",
    [
        "../x",
        "train/../../x",
        "/etc/hostname",
        "tokenizer/../../x",
        "a\\b",
        "..\\x",
        "train//x",
        "./x",
        "x/.",
        "",
        "x/",
        "..",
        "\ud800",
        "x\x1b[2J",
        "x\n",
    ],
)
def test_a_seal_that_names_what_is_no_place_in_a_store_is_none(sealed, key):
    (sealed.parent / "x").write_bytes(b"somebody's")
    edit_signed(sealed / "manifest.json", lambda m: m["objects"].update({key: {"size": 10, "sha256": "0" * 64}}))
    refused(sealed, r"/manifest\.json is damaged \(it names '.*', which is no place in a store\)")
    assert [problem.key for problem in verify(str(sealed), deep=True, condemn=True).problems] == ["manifest.json"]
    assert (sealed.parent / "x").read_bytes() == b"somebody's"


@pytest.mark.parametrize("size", [5 * 10**9, 10**30])
@pytest.mark.parametrize("key", [SHARD, "tokenizer/tokenizer.json", "train/cls/c/0"])
def test_a_sealed_object_of_gigabytes_is_refused_unread(sealed, key, size):
    (sealed / key).parent.mkdir(parents=True, exist_ok=True)
    with (sealed / key).open("wb") as file:
        file.truncate(min(size, 5 * 10**9))
    edit_signed(sealed / "manifest.json", lambda m: m["objects"].update({key: {"size": size, "sha256": "0" * 64}}))
    refused(sealed, rf"/{key} would have {size} bytes, which no store's objects have; refused")


def test_an_object_of_gigabytes_in_a_receipt_is_refused_unread(plan, tmp_path):
    write_store(tmp_path, plan, only=[("train", 1)])
    with (tmp_path / SHARD).open("wb") as file:
        file.truncate(MAX_OBJECT_BYTES + 1)
    edit_signed(tmp_path / "units/train-000001.json", lambda receipt: receipt["objects"][SHARD].update(size=MAX_OBJECT_BYTES + 1))
    refused(tmp_path, rf"/{SHARD} has {MAX_OBJECT_BYTES + 1} bytes; no store has such objects$", LOOKS["verify"])


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("key", ["plan.json", "manifest.json"])
def test_a_document_of_gigabytes_is_refused_unread(sealed, key, look):
    with (sealed / key).open("r+b") as file:
        file.truncate(MAX_DOCUMENT_BYTES + 1)
    refused(sealed, rf"/{key} has {MAX_DOCUMENT_BYTES + 1} bytes; no store has such objects$", LOOKS[look])


def test_the_biggest_document_that_is_read_is_read(sealed):
    damage(sealed / "plan.json", lambda data: data + b" " * (MAX_DOCUMENT_BYTES - len(data)))
    assert len(Objects(sealed).get("plan.json")) == MAX_DOCUMENT_BYTES


NESTED = [b"[" * 10**6, b'{"a":' * 10**6, b'{"objects":' + b"[" * 10**6, b'{"arrays":' + b"{" * 10**5, b"9" * 10**6]


@pytest.mark.parametrize("data", [pytest.param(data, id=data[:8].decode()) for data in NESTED])
def test_a_document_that_is_nested_beyond_all_reason_is_damaged(plan, sealed, data):
    for key in ("manifest.json", "plan.json"):
        before = (sealed / key).read_bytes()
        (sealed / key).write_bytes(data)
        refused(sealed, rf"/{key} (is damaged|cannot be read as a plan|has \d+ bytes instead)")
        (sealed / key).write_bytes(before)
    (sealed / "units/train-000001.json").write_bytes(data)
    (sealed / "condemned.json").write_bytes(data)
    assert [problem.key for problem in verify(str(sealed), condemn=True).problems] == ["units/train-000001.json"]


@pytest.mark.parametrize("data", [pytest.param(data, id=data[:8].decode()) for data in NESTED])
@pytest.mark.parametrize("key", ["zarr.json", "train/zarr.json"])
def test_a_nested_document_that_is_sealed_in_is_damaged(sealed, key, data):
    forge(sealed, {key: data})
    refused(sealed, rf"/{key} does not describe the planned arrays")
    assert [problem.key for problem in verify(str(sealed)).problems] == [key]


# --- receipts


@pytest.mark.parametrize(
    "made",
    [
        None,
        7,
        "x",
        [],
        {"finished": None},
        {"finished": 7},
        {"finished": "yesterday"},
        {"finished": "0001-01-01T00:00:00+14:00"},
        {"finished": "9999-12-31T23:59:59-14:00"},
        {"finished": "2031-01-01", "teacher": 7},
        {"finished": "2031-01-01", "versions": 7},
        {"finished": "2031-01-01", "teacher": "t", "versions": [7]},
        {"finished": "2031-01-01", "teacher": "[/x]", "versions": {"[/x]": {}}},
        {"finished": "2031-01-01", "teacher": "\ud800", "device": "\x1b[2J", "versions": {"\ud800": "\x1b[2J"}},
        {"finished": "2031-01-01", "derived_from": None, "versions": {}},
        {"finished": "2031-01-01", "derived_from": "x", "versions": {}},
    ],
)
def test_whatever_receipts_say_of_who_made_them_a_store_is_shown(sealed, made, capfd):
    for unit in (0, 2):
        edit_signed(sealed / f"units/train-{unit:06d}.json", lambda receipt: receipt.update(made=made))
    assert hsk("show", sealed) == hsk("show", sealed, "--json") == hsk("verify", sealed) == 0
    (sealed / "manifest.json").unlink()
    assert hsk("show", sealed) == hsk("show", sealed, "--json") == 0
    assert "\x1b[2J" not in capfd.readouterr().out


def test_receipts_that_are_none_leave_a_sealed_store_to_be_shown(plan, sealed):
    for number, data in enumerate([b"", b"[]", b"{", with_check({"split": "train"}), b"\xff"]):
        (sealed / "units" / f"train-{number:06d}.json").write_bytes(data)
    assert describe(str(sealed)).made == {"teacher_sha256": "5e"}
    (sealed / "manifest.json").unlink()
    assert describe_progress(str(sealed)).units_done == 2


# --- the tokenizer's files


def with_tokenizer(root: Path, **files: bytes) -> None:
    whole = {**tokenizer_files(make_tokenizer()), **{name.replace("__", "."): data for name, data in files.items()}}
    forge(root, {f"tokenizer/{name}": data for name, data in whole.items()})


def test_code_that_comes_with_a_tokenizer_is_never_run(sealed, tmp_path, monkeypatch):
    marker = tmp_path / "was-run"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Evil: pass\n".encode()
    config = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil", "trust_remote_code": True}
    for also in (
        {},
        {"auto_map": {"AutoTokenizer": ["owner/name--evil.Evil", None]}},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
    ):
        with_tokenizer(sealed, tokenizer_config__json=json.dumps({**config, **also}).encode(), evil__py=code, __init____py=code)
        files = open_store(sealed).tokenizer_files()
        assert files["evil.py"] == code
        monkeypatch.setenv("HF_HUB_TRUST_REMOTE_CODE", "1")
        try:
            tokenizer = tokenizer_from_files(files)
        except StoreError as error:
            assert "the store's tokenizer cannot be loaded" in str(error)
        else:
            assert type(tokenizer).__module__.startswith("transformers.")
        assert not marker.exists()


BROKEN = {
    "nested": {"tokenizer__json": b"[" * 10**5},
    "a list": {"tokenizer__json": b"[]"},
    "no model": {"tokenizer__json": b'{"model":{}}'},
    "not text": {"tokenizer__json": b"\xff"},
    "configuration nested": {"tokenizer_config__json": b"[" * 10**5},
    "configuration a list": {"tokenizer_config__json": b"[]"},
    "configuration a number": {"tokenizer_config__json": b"7"},
    "class a number": {"tokenizer_config__json": b'{"tokenizer_class":7}'},
    "special tokens a list": {"special_tokens_map__json": b"[7]"},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tokenizer_is_one_message(sealed, name, capfd):
    with_tokenizer(sealed, **BROKEN[name])
    code = hsk("show", sealed, "--row", 0)
    said = capfd.readouterr().err
    assert (code, said.count("hsk: ")) == (2, 1)
    assert "the store's tokenizer cannot be loaded" in said or "has a token that its tokenizer does not know" in said


def test_rows_with_tokens_that_no_tokenizer_knows_are_refused(sealed):
    with_tokenizer(sealed)
    for row in range(5):
        refused(
            sealed,
            rf"row {row} of train has a token that its tokenizer does not know",
            lambda root, row=row: ranked_row(str(root), row),
        )


# --- hsk


def test_hsk_says_one_thing_of_a_stranger_s_store_and_ends_with_2(plan, sealed, capfd):
    (sealed / "plan.json").write_bytes(monstrous(plan, rows=2**60, unit_rows=1).to_bytes())
    for words in (["show"], ["verify"], ["verify", "--deep", "--condemn"], ["show", "--row", "0"], ["show", "--json"]):
        (sealed / "manifest.json").write_bytes(b"torn")
        assert hsk(words[0], sealed, *words[1:]) == 2
        said = capfd.readouterr()
        assert said.out == ""
        assert said.err == f"hsk: {sealed}: the plan asks for more than 1048576 units; refused\n"
