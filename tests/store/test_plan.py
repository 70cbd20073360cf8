"""A plan is its bytes: they come back, they name the store, and two that differ say where."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hskstore.config import Keep
from hskstore.errors import StoreError
from hskstore.layers import LayerPair, PlannedStrategy
from hskstore.store import open_store
from hskstore.store.layout import KeptText, Split, plan_arrays, plan_unit_rows, stored_width
from hskstore.store.plan import Pass, Plan
from hskstore.store.schema import FORMAT_VERSION, canonical_json
from tests.store.conftest import make_plan

small = st.integers(1, 50)
amounts = st.one_of(small, st.floats(0, 1, exclude_min=True), st.just("all"))
texts = st.text(max_size=5)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), texts, st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)
documents = st.dictionaries(texts, json_values, max_size=3)
strategies = st.builds(
    PlannedStrategy,
    small,
    small,
    layer_map=st.sampled_from(["round", "eq5"]),
    rank=st.sampled_from(["attention", "attention-with-sep", "left", "random"]),
    rank_layer=st.sampled_from(["aligned", "same"]),
    score=st.sampled_from(["probability", "raw"]),
    mask=st.sampled_from(["magnitude", "uniform", "random"]),
    values=st.sampled_from(["f16", "f32", "q8", "q4"]),
)
splits = st.builds(Split, small, small, small, texts, st.sampled_from([1, 8, 512]))


@st.composite
def plans(draw):
    strategy = draw(strategies)
    by_name = {"train": draw(splits)} | draw(st.dictionaries(st.sampled_from(["validation", "test"]), splits))
    pairs = tuple(draw(st.lists(st.builds(LayerPair, small, small, small), min_size=1, max_size=3)))
    length, width, hidden_size, labels = draw(small), draw(small), draw(small), draw(st.lists(texts, min_size=1, max_size=4))
    text = KeptText(draw(st.sampled_from([1, 2])), {name: draw(small) for name in by_name}) if draw(st.booleans()) else None
    return Plan(
        keep=Keep(draw(amounts), draw(amounts), draw(amounts)),
        strategy=strategy,
        pairs=pairs,
        length=length,
        width=width,
        hidden_size=hidden_size,
        pass_=Pass(draw(small), draw(st.sampled_from(["fp32", "bf16", "fp16"])), draw(small), draw(small)),
        teacher=draw(documents) | {"sha256": "5e", "layers": draw(small), "hidden_size": draw(small), "labels": labels},
        tokenizer=draw(documents) | {"pad_token_id": draw(small), "separators": draw(st.lists(small, max_size=2))},
        task=draw(documents) | {"name": draw(st.text("abc/-é", max_size=5))},
        splits=by_name,
        arrays=plan_arrays(
            splits=by_name,
            layers=len(pairs),
            length=length,
            width=width,
            hidden_size=hidden_size,
            values=strategy.values,
            labels=draw(st.sampled_from([None, "int64", "float32"])),
            logits=len(labels),
            text=text,
        ),
        text=text,
    )


@settings(max_examples=50, deadline=None)
@given(plans())
def test_a_plan_comes_back_from_its_bytes(plan):
    read = Plan.from_bytes(plan.to_bytes(), "here")
    assert read == plan
    assert read.to_bytes() == plan.to_bytes()
    assert read.store_id == plan.store_id
    assert read.documents() == plan.documents()
    assert plan.differences(read) == []


CHANGES = {
    "keep: 2,3,0.25 -> 2,3,0.5": lambda plan: replace(plan, keep=Keep(2, 3, 0.5)),
    "strategy.student_layers: 3 -> 4": lambda plan: replace(plan, strategy=replace(plan.strategy, student_layers=4)),
    "strategy.top_layer: 5 -> 4": lambda plan: replace(plan, strategy=replace(plan.strategy, top_layer=4)),
    "strategy.layer_map: round -> eq5": lambda plan: replace(plan, strategy=replace(plan.strategy, layer_map="eq5")),
    "strategy.rank: attention -> left": lambda plan: replace(plan, strategy=replace(plan.strategy, rank="left")),
    "strategy.rank_layer: aligned -> same": lambda plan: replace(plan, strategy=replace(plan.strategy, rank_layer="same")),
    "strategy.score: probability -> raw": lambda plan: replace(plan, strategy=replace(plan.strategy, score="raw")),
    "strategy.mask: magnitude -> random": lambda plan: replace(plan, strategy=replace(plan.strategy, mask="random")),
    "strategy.values: f16 -> f32": lambda plan: replace(plan, strategy=replace(plan.strategy, values="f32")),
    "hidden.length: 3 -> 4": lambda plan: replace(plan, length=4),
    "hidden.width: 5 -> 6": lambda plan: replace(plan, width=6),
    "hidden.hidden_size: 20 -> 24": lambda plan: replace(plan, hidden_size=24),
    "pass.seed: 0 -> 1": lambda plan: replace(plan, pass_=replace(plan.pass_, seed=1)),
    "pass.precision: fp32 -> bf16": lambda plan: replace(plan, pass_=replace(plan.pass_, precision="bf16")),
    "pass.max_length: 64 -> 128": lambda plan: replace(plan, pass_=replace(plan.pass_, max_length=128)),
    "pass.batch_tokens: 8192 -> 512": lambda plan: replace(plan, pass_=replace(plan.pass_, batch_tokens=512)),
    "pass.block_rows: 512 -> 256": lambda plan: replace(plan, pass_=replace(plan.pass_, block_rows=256)),
    "teacher.sha256: 5e -> 6f": lambda plan: replace(plan, teacher={**plan.teacher, "sha256": "6f"}),
    "tokenizer.separators: [3] -> [3, 4]": lambda plan: replace(plan, tokenizer={**plan.tokenizer, "separators": [3, 4]}),
    "task.metric: absent -> f1": lambda plan: replace(plan, task={**plan.task, "metric": "f1"}),
    "splits.train.sha256: ab -> ef": lambda plan: replace(
        plan, splits={**plan.splits, "train": replace(plan.splits["train"], sha256="ef")}
    ),
    "splits.validation.rows: 9 -> 8": lambda plan: replace(
        plan, splits={**plan.splits, "validation": replace(plan.splits["validation"], rows=8)}
    ),
}


@pytest.mark.parametrize("difference", CHANGES)
def test_any_change_makes_another_store_and_is_named(plan, difference):
    other = CHANGES[difference](plan)
    assert other.store_id != plan.store_id
    assert plan.differences(other) == [difference]


def test_another_layer_pair_or_array_makes_another_store(plan):
    shifted = replace(plan, pairs=(plan.pairs[0], replace(plan.pairs[1], teacher=6)))
    (difference,) = plan.differences(shifted)
    assert difference.startswith("hidden.layers: ")
    without_label = replace(plan, arrays={path: spec for path, spec in plan.arrays.items() if path != "train/label"})
    assert len({plan.store_id, shifted.store_id, without_label.store_id}) == 3
    assert plan.differences(without_label) == []  # arrays follow from the rest


def test_units_are_those_of_every_split_and_arrays_those_of_one(plan):
    assert list(plan.units()) == [("train", 0), ("train", 1), ("train", 2), ("validation", 0), ("validation", 1)]
    inputs = {"input_ids", "token_type_ids", "n_tokens", "row_id", "logits", "label"}
    hidden = {"hidden/values", "hidden/mask", "hidden/token", "hidden/n_kept"}
    assert plan.arrays_of("validation").keys() == {f"validation/{name}" for name in inputs}
    assert plan.arrays_of("train").keys() == {f"train/{name}" for name in inputs | hidden}


@pytest.mark.parametrize(
    ("values", "dtype", "width", "scaled"),
    [("f16", "float16", 5, False), ("f32", "float32", 5, False), ("q8", "int8", 5, True), ("q4", "uint8", 3, True)],
)
def test_only_quantised_stores_have_a_scale(values, dtype, width, scaled):
    arrays = make_plan(values).arrays
    assert stored_width(5, values) == width
    assert (arrays["train/hidden/values"].dtype, arrays["train/hidden/values"].shape) == (dtype, (20, 2, 3, width))
    assert ("train/hidden/scale" in arrays) == scaled


def test_a_store_without_labels_has_no_label_array():
    assert not any(path.endswith("/label") for path in make_plan(labels=None).arrays)


TEXT = KeptText(2, {"train": 300, "validation": 200})


def test_a_store_that_keeps_its_text_has_three_arrays_more_and_says_so():
    plain, plan = make_plan(), make_plan(text=TEXT)
    extra = plan.arrays.keys() - plain.arrays.keys()
    assert extra == {f"{split}/{name}" for split in plan.splits for name in ("text", "n_bytes", "offsets")}
    assert {path: plan.arrays[path].shape for path in sorted(extra)} == {
        "train/n_bytes": (20, 2),
        "train/offsets": (20, 10, 2),
        "train/text": (20, 300),
        "validation/n_bytes": (9, 2),
        "validation/offsets": (9, 7, 2),
        "validation/text": (9, 200),
    }
    assert json.loads(plan.to_bytes())["text"] == {"bytes": {"train": 300, "validation": 200}, "columns": 2}
    assert b'"text"' not in plain.to_bytes() and plan.store_id != plain.store_id
    more = ["text.bytes.train: absent -> 300", "text.bytes.validation: absent -> 200", "text.columns: absent -> 2"]
    assert plain.differences(plan) == more


@pytest.mark.parametrize(
    "text",
    [None, 7, [], {}, {"columns": 1}, {"columns": 3, "bytes": {"train": 300, "validation": 200}}]
    + [{"columns": 2, "bytes": many} for many in (None, 300, [300, 200], {"train": 300}, {"train": 299, "validation": 200})]
    + [{"columns": 2, "bytes": {"train": 300, "validation": size}} for size in (0, -1, 0.5, True, "200", 2**63)]
    + [{"columns": columns, "bytes": TEXT.bytes} for columns in (0, 1, True, 2.0)],
)
def test_a_text_that_is_not_that_of_the_arrays_is_refused(text):
    document = make_plan(text=TEXT).as_json() | {"text": text}
    with pytest.raises(StoreError, match=r"^here/plan\.json cannot be read as a plan"):
        Plan.from_bytes(canonical_json(document), "here")
    del document["text"]
    with pytest.raises(StoreError, match="its arrays are not those that its numbers make"):
        Plan.from_bytes(canonical_json(document), "here")


def test_the_largest_array_decides_the_unit():
    def rows(**options):
        plain = {"rows": 10**6, "longest": 64, "layers": 13, "length": 128, "width": 768, "hidden_size": 768, "values": "f16"}
        return plan_unit_rows(**(plain | options))

    assert rows() == 16  # 13 x 128 x 768 x 2 B = 2.4 MiB a row
    assert rows(values="f32") == 8
    assert rows(width=1) == 256  # masks: 13 x 128 x 96 B = 156 KiB a row
    assert rows(layers=0) == 8192  # inputs alone
    assert rows(layers=0, longest=2**11) == 8192 and rows(layers=0, longest=2**11, text_bytes=1) == 4096  # two numbers a token
    assert rows(layers=0, text_bytes=2**16) == 1024


# --- plans that are none


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"7",
        b"\xff\xfe",
        pytest.param(b"[" * 10**6, id="nested"),
        b'{"format":"hskstore"}',
        b'{"format":"hskstore","version":"one"}',
        b'{"format":"hskstore","version":Infinity}',
        pytest.param(b'{"format":"hskstore","version":' + b"9" * 5000 + b"}", id="digits"),
    ],
)
def test_bytes_that_are_no_plan_are_a_damaged_store(data):
    with pytest.raises(StoreError, match=r"^here/plan\.json cannot be read as a plan \(.*\): the store is damaged$"):
        Plan.from_bytes(data, "here")


def test_another_programs_plan_is_not_ours():
    with pytest.raises(StoreError, match=r"^here/plan\.json is not an hskstore plan$"):
        Plan.from_bytes(b'{"format":"cargo"}', "here")


def test_a_newer_format_asks_for_an_upgrade(plan):
    newer = canonical_json(plan.as_json() | {"version": FORMAT_VERSION + 1})
    with pytest.raises(StoreError, match=r"^here is a store of format version 2; this hskstore reads up to 1: upgrade it$"):
        Plan.from_bytes(newer, "here")


@pytest.mark.parametrize("name", ["files", "..", "Train", "a/b", ""])
def test_a_split_is_a_folder_of_its_own(plan, name):
    document = plan.as_json()
    document["splits"][name] = document["splits"]["validation"]
    with pytest.raises(StoreError, match="a split has no name for a folder"):
        Plan.from_bytes(canonical_json(document), "here")


@pytest.mark.parametrize("dtype", ["int16", "uint64", "float64", "complex64", "object", "O", "V9", "<M8[s]", "U7", "nonsense"])
def test_labels_are_class_ids_or_scores_and_nothing_else(plan, dtype):
    document = plan.as_json()
    for split in plan.splits:
        document["arrays"][f"{split}/label"]["dtype"] = dtype
    with pytest.raises(StoreError, match=r"/plan\.json cannot be read as a plan .*labels are none of int64, float32"):
        Plan.from_bytes(canonical_json(document), "here")


def leaves(node, path=()):
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield (*path, name)
        yield from leaves(child, (*path, name))


def edited(document, path, value):
    copy = json.loads(json.dumps(document))
    node = copy
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    return copy


STRANGE = [None, -1, 0, 10**30, 0.5, "x", "O", "V9999999", "../..", [], {}, [[]], True]


def test_an_unsealed_store_whose_plan_has_any_field_made_strange_is_refused_and_never_crashes(tmp_path):
    document = make_plan(text=TEXT).as_json()
    for path in leaves(document):
        for value in STRANGE:
            (tmp_path / "plan.json").write_bytes(json.dumps(edited(document, path, value)).encode())
            try:
                open_store(tmp_path)
            except StoreError:
                continue
            except Exception as error:
                pytest.fail(f"{path} = {value!r}: {error!r}")
            pytest.fail(f"{path} = {value!r}: opened")
