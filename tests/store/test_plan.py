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
from hskstore.store.features import Cls, States
from hskstore.store.hidden import Hidden
from hskstore.store.layout import KeptText, Split, SplitRows, in_units, plan_arrays
from hskstore.store.plan import Pass, Plan
from hskstore.store.schema import FORMAT_VERSION, canonical_json
from hskstore.store.vectors import ENCODINGS, Array, are_codes
from tests.store.conftest import UNIT_ROWS, make_plan

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
    values=st.sampled_from(["f16", "f32", "q8", "q4", "rq8"]),
)
splits = st.builds(Split, small, small, small, texts, st.sampled_from([1, 8, 512]))


@st.composite
def plans(draw):
    strategy = draw(strategies)
    by_name = {"train": draw(splits)} | draw(st.dictionaries(st.sampled_from(["validation", "test"]), splits))
    pairs = tuple(draw(st.lists(st.builds(LayerPair, small, small, small), min_size=1, max_size=3)))
    length, hidden_size, labels = draw(small), draw(small), draw(st.lists(texts, min_size=1, max_size=4))
    width = hidden_size if are_codes(strategy.values) else draw(st.integers(1, hidden_size))
    text = KeptText(draw(st.sampled_from([1, 2])), {name: draw(small) for name in by_name}) if draw(st.booleans()) else None
    keep = Keep(draw(amounts), draw(amounts), draw(amounts))
    kept = [Hidden(keep, strategy, pairs, length, width, hidden_size)] if draw(st.booleans()) else []
    for kind in draw(st.sets(st.sampled_from([States, Cls]))):
        layers = draw(st.sets(st.integers(0, 50), min_size=1, max_size=4))
        kept.append(kind(tuple(sorted(layers)), hidden_size, draw(st.sampled_from(["f16", "f32", "q8", "q4", "rq8"]))))
    features = {each.name: each for each in kept}
    return Plan(
        features=features,
        pass_=Pass(draw(small), draw(st.sampled_from(["fp32", "bf16", "fp16"])), draw(small), draw(small)),
        teacher=draw(documents) | {"sha256": "5e", "layers": 50, "hidden_size": hidden_size, "labels": labels},
        tokenizer=draw(documents) | {"pad_token_id": draw(small), "separators": draw(st.lists(small, max_size=2))},
        task=draw(documents) | {"name": draw(st.text("abc/-é", max_size=5))},
        splits=by_name,
        arrays=plan_arrays(
            features, by_name, labels=draw(st.sampled_from([None, "int64", "float32"])), logits=len(labels), text=text
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


def with_hidden(plan: Plan, **changes) -> Plan:
    return replace(plan, features={"hidden": replace(plan.hidden, **changes)})


CHANGES = {
    "keep: 2,3,0.25 -> 2,3,0.5": lambda plan: with_hidden(plan, keep=Keep(2, 3, 0.5)),
    "strategy.student_layers: 3 -> 4": lambda plan: with_hidden(plan, strategy=replace(plan.hidden.strategy, student_layers=4)),
    "strategy.top_layer: 5 -> 4": lambda plan: with_hidden(plan, strategy=replace(plan.hidden.strategy, top_layer=4)),
    "strategy.layer_map: round -> eq5": lambda plan: with_hidden(plan, strategy=replace(plan.hidden.strategy, layer_map="eq5")),
    "strategy.rank: attention -> left": lambda plan: with_hidden(plan, strategy=replace(plan.hidden.strategy, rank="left")),
    "strategy.rank_layer: aligned -> same": lambda plan: with_hidden(
        plan, strategy=replace(plan.hidden.strategy, rank_layer="same")
    ),
    "strategy.score: probability -> raw": lambda plan: with_hidden(plan, strategy=replace(plan.hidden.strategy, score="raw")),
    "strategy.mask: magnitude -> random": lambda plan: with_hidden(plan, strategy=replace(plan.hidden.strategy, mask="random")),
    "strategy.values: f16 -> f32": lambda plan: with_hidden(plan, strategy=replace(plan.hidden.strategy, values="f32")),
    "hidden.length: 3 -> 4": lambda plan: with_hidden(plan, length=4),
    "hidden.width: 5 -> 6": lambda plan: with_hidden(plan, width=6),
    "hidden.hidden_size: 20 -> 24": lambda plan: with_hidden(plan, hidden_size=24),
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
    first, second = plan.hidden.pairs
    shifted = with_hidden(plan, pairs=(first, replace(second, teacher=6)))
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
    [
        ("f16", "float16", 5, False),
        ("f32", "float32", 5, False),
        ("q8", "int8", 5, True),
        ("q4", "uint8", 3, True),
        ("rq4", "uint8", 4, False),
    ],
)
def test_only_quantised_stores_have_a_scale(values, dtype, width, scaled):
    arrays = make_plan(values).arrays
    assert ENCODINGS[values].stored_width(5) == width
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
    def rows(*features, longest=64, text=None):
        splits = {"train": SplitRows(10**6, 10**7, longest, "ab")}
        kept = None if text is None else KeptText(1, {"train": text})
        return in_units({each.name: each for each in features}, splits, text=kept)["train"].unit_rows

    def hidden(width=768, values="f16"):
        pairs = tuple(LayerPair(layer, layer, 1) for layer in range(13))
        return Hidden(Keep.parse("all"), PlannedStrategy(12, 12, values=values), pairs, 128, width, 768)

    assert rows(hidden()) == 16  # 13 x 128 x 768 x 2 B = 2.4 MiB a row
    assert rows(hidden(values="f32")) == 8
    assert rows(hidden(width=1)) == 256  # masks: 13 x 128 x 96 B = 156 KiB a row
    assert rows() == 8192  # inputs alone
    assert rows(longest=2**11) == 8192 and rows(longest=2**11, text=1) == 4096  # two numbers a token
    assert rows(text=2**16) == 1024
    assert rows(States((3, 6), 768)) == 256  # 2 x 64 x 768 x 2 B = 192 KiB a row
    assert rows(Cls((3, 6), 768)) == 8192  # 3 KiB
    assert rows(States((3, 6), 768), hidden()) == 16


OTHERS = (States((0, 3, 6), 20, "q8"), Cls((6,), 20))


def test_a_plan_carries_the_least_version_that_reads_it_and_names_features_only_where_there_are_any_besides_hidden():
    assert make_plan().version == 1 and b'"features"' not in make_plan().to_bytes()
    both = make_plan(others=OTHERS)
    assert both.version == 1  # who knows `hidden` alone reads it rightly
    assert json.loads(both.to_bytes())["features"] == {
        "states": {"layers": [0, 3, 6], "hidden_size": 20, "values": "q8"},
        "cls": {"layers": [6], "hidden_size": 20, "values": "f16"},
    }
    alone = make_plan(others=OTHERS, hidden=False)
    assert alone.version == 2 and not {"hidden", "keep", "strategy"} & alone.as_json().keys()
    nothing = make_plan(hidden=False)
    assert nothing.version == 2 and Plan.from_bytes(nothing.to_bytes(), "here") == nothing


def test_layers_of_new_arrays_lie_apart_in_chunks_of_about_512_kib():
    plan = make_plan(others=(States((0, 3, 6), 20, "q8"), Cls((2, 6), 20)), rows=10**5)
    specs = {path: plan.arrays[f"train/{path}"] for path in ("states/values", "states/scale", "cls/values")}
    assert {path: (spec.shape, spec.layers, spec.chunk_shape[:2]) for path, spec in specs.items()} == {
        "states/values": ((10**5, 3, 10, 20), 3, (UNIT_ROWS, 1)),
        "states/scale": ((10**5, 3, 10), 3, (UNIT_ROWS, 1)),
        "cls/values": ((10**5, 2, 20), 2, (UNIT_ROWS, 1)),
    }
    big = Array(("layer", "token", "width"), (4, 64, 384), "float16", "NaN").spec(10**6, 8192)
    assert big.chunk_shape == (8, 1, 64, 384) and big.chunk_bytes == 384 * 2**10  # 10 rows would be 480 KiB: a power of two


@pytest.mark.parametrize("layers", [[], [3, 3], [6, 3], [7], [-1], ["3"], [None], 3, None, [2**70]])
def test_a_feature_is_of_some_layers_that_the_teacher_has_lowest_first(layers):
    document = make_plan(others=OTHERS).as_json()
    document["features"]["cls"]["layers"] = layers
    with pytest.raises(StoreError, match=r"^here/plan\.json cannot be read as a plan"):
        Plan.from_bytes(canonical_json(document), "here")


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
    with pytest.raises(StoreError, match=r"^here is a store of format version 4; this hskstore reads up to 3: upgrade it$"):
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


@pytest.mark.long
def test_an_unsealed_store_whose_plan_has_any_field_made_strange_is_refused_and_never_crashes(tmp_path):
    document = make_plan(text=TEXT, others=OTHERS).as_json()
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
