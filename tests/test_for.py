"""Asking for what methods want: one store of the union, what a store serves, what it lacks, and the command that makes one."""

import dataclasses
import json
import shlex
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hskstore.config import Keep, Strategy
from hskstore.features import TeacherShape
from hskstore.methods import METHODS
from hskstore.models.run import ModelShape
from hskstore.stage_one.asked import Asked
from hskstore.store import open_store
from hskstore.store.features import FEATURES, Spans
from hskstore.store.schema import canonical_json
from hskstore.text.chunker import train_chunker
from tests.conftest import hsk, make_bert, save_folder, sealed_tree, sentences, write_tsv
from tests.store.conftest import forge
from tests.test_features import Asks
from tests.test_spans import write_conll

Made = Callable[..., Path]
RECIPES = {
    "last.toml": 'method = "pkd"\npatient_layers = "last"\nepochs = "3"\n',
    "skip.toml": 'method = "pkd"\nbeta = 1.0\n',
    "mine.toml": 'epochs = "3,1"\n',
    "broken.toml": "method = pkd\n",
    "strange.toml": 'method = "pkd"\npatience_layers = "last"\n',
}


@pytest.fixture(scope="module")
def world(teacher_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher of four layers, data, and recipes."""
    root = tmp_path_factory.mktemp("world")
    shutil.copytree(teacher_folder, root / "teacher")
    (root / "data").mkdir()
    write_tsv(root / "data" / "train.tsv", 60, seed=1)
    write_tsv(root / "data" / "dev.tsv", 12, seed=2)
    for name, text in RECIPES.items():
        (root / name).write_text(text)
    train_chunker(write_conll(root / "conll"), root / "spans")
    return root


def words_of(world: Path, said: str) -> list[str]:
    """Options as they are typed, recipes by where they lie."""
    return [str(world / word) if word in RECIPES else word for word in shlex.split(said)]


def extract(world: Path, said: str, out: Path) -> int:
    return hsk("extract", world / "teacher", world / "data", "--task", "sst2", "--out", out, *words_of(world, said))


@pytest.fixture(scope="module")
def made(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The folder of the stores that `hsk extract` makes of some options, when they are first asked for."""

    @cache
    def make(said: str) -> Path:
        out = tmp_path_factory.mktemp("stores")
        assert extract(world, said, out) == 0
        return out

    return make


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, however its lines were broken."""
    return " ".join(capsys.readouterr().out.split())


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refusal is."""
    error = capsys.readouterr().err
    assert error.startswith("hsk: ") and error.count("\n") == 1 and error.endswith("\n"), error
    return error.removeprefix("hsk: ").rstrip()


# --- hsk extract and hsk plan

STORES: list[tuple[str, dict[str, dict[str, tuple[int, ...]]]]] = [
    ("--student-layers 2 --for pkd --for distilbert", {"distilbert+pkd": {"states": (4,), "cls": (2,)}}),
    ("--student-layers 2 --student-layers 3 --for ckd", {"ckd": {"states": (0, 2, 4)}}),
    ("--student-layers 2 --for distilbert --for pkd --for kd", {"distilbert+kd+pkd": {"states": (4,), "cls": (2,)}}),
    (
        "--student-layers 2 --for pkd --for distilbert --keep 1,4,0.25",
        {"distilbert+pkd": {"hidden": (3,), "states": (4,), "cls": (2,)}},
    ),
    ("--student-layers 2 --student-layers 3 --for pkd", {"pkd": {"cls": (1, 2, 3)}}),
    ("--student-layers 3 --for pkd", {"pkd": {"cls": (1, 3)}}),
    ("--student-layers 2 --for kd", {"kd": {}}),
    ("--student-layers 2 --student-layers 3 --for minilmv2", {"minilmv2": {"qkv": (4,)}}),
    ("--student-layers 2 --for minilm --for minilmv2", {"minilm+minilmv2": {"qkv": (4,)}}),
    ("--student-layers 2 --for tinybert", {"tinybert": {"states": (0, 2, 4), "qkv": (2, 4)}}),
    ("--student-layers 2 --for mud", {"mud": {"hidden": (3,)}}),
    ("--student-layers 2 --for mud --for pkd --keep 2,4,0.5", {"mud+pkd": {"hidden": (2, 3), "cls": (2,)}}),
    ("--student-layers 2 --for mine.toml", {"mud": {"hidden": (3,)}}),
    ("--student-layers 2 --for last.toml", {"pkd": {"cls": (3,)}}),
    ("--student-layers 3 --for last.toml --for last.toml", {"pkd": {"cls": (2, 3)}}),
    ("--student-layers 2 --for pkd --for last.toml --for skip.toml", {"pkd": {"cls": (2, 3)}}),
    (
        "--student-layers 2 --for mud --for pkd --keep 1,4,0.25 --keep 2,3,0.5",
        {"d1-l4-w0.25": {"hidden": (3,)}, "d2-l3-w0.5": {"hidden": (2, 3)}, "pkd": {"cls": (2,)}},
    ),
    (
        "--student-layers 2 --student-layers 3 --for mud --for pkd --for distilbert",
        {
            "s2-d1-l9-w0.1": {"hidden": (3,)},
            "s3-d1-l9-w0.1": {"hidden": (3,)},
            "distilbert+pkd": {"states": (4,), "cls": (1, 2, 3)},
        },
    ),
    (
        "--student-layers 2 --student-layers 3 --for mud --keep 1,4,0.25",
        {"s2-d1-l4-w0.25": {"hidden": (3,)}, "s3-d1-l4-w0.25": {"hidden": (3,)}},
    ),
]


@pytest.mark.parametrize(("said", "expected"), STORES, ids=[said for said, _ in STORES])
def test_what_is_asked_for_decides_the_stores_and_hsk_plan_tells_them_before(
    said: str, expected: dict[str, dict[str, tuple[int, ...]]], world: Path, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made(said)
    assert {folder.name for folder in out.iterdir()} == expected.keys()
    for name, features in expected.items():
        plan = open_store(out / name).plan
        assert {each: feature.layers for each, feature in plan.features.items()} == features
        assert {feature.values for feature in plan.features.values()} <= {"f16"}
    capsys.readouterr()
    words = ["plan", world / "teacher", world / "data", "--task", "sst2", "--rate", 100, *words_of(world, said)]
    assert hsk(*words, "--json") == 0
    planned = json.loads(capsys.readouterr().out)["stores"]
    layers = {name: {each: list(own) for each, own in features.items()} for name, features in expected.items()}
    assert {store["name"]: store["teacher_layers"] for store in planned} == layers


def test_mud_alone_keeps_the_papers_configuration(made: Made) -> None:
    hidden = open_store(made("--student-layers 2 --for mud") / "mud").plan.hidden
    assert hidden is not None and str(hidden.keep) == "1,9,0.1"


def test_hidden_is_stored_as_ever_whoever_asks_for_it(made: Made) -> None:
    """Alone in its stores where there are several, and array for array where it lies beside others."""
    plain = made("--student-layers 2 --keep 1,4,0.25 --keep 2,3,0.5")
    several = made("--student-layers 2 --for mud --for pkd --keep 1,4,0.25 --keep 2,3,0.5")
    for folder in plain.iterdir():
        assert sealed_tree(several / folder.name) == sealed_tree(folder)
    beside = sealed_tree(made("--student-layers 2 --for pkd --for distilbert --keep 1,4,0.25") / "distilbert+pkd")
    alone = {key: digest for key, digest in sealed_tree(plain / "d1-l4-w0.25").items() if "/c/" in key}
    assert alone.items() <= beside.items() and any("hidden/values" in key for key in alone)


def test_values_are_the_encoding_of_every_feature(made: Made) -> None:
    (store,) = made("--student-layers 2 --for pkd --for distilbert --keep 1,4,0.25 --values q8").iterdir()
    assert {feature.values for feature in open_store(store).plan.features.values()} == {"q8"}


@given(st.sets(st.sampled_from(sorted(METHODS)), min_size=1), st.sets(st.integers(2, 6), min_size=1, max_size=3), st.data())
def test_whatever_a_method_wants_for_a_depth_that_was_given_is_in_one_of_the_stores(
    names: set[str], depths: set[int], data: st.DataObject
) -> None:
    teacher = TeacherShape(data.draw(st.integers(6, 24)), 32, heads=4)
    methods = [METHODS[name]() for name in data.draw(st.permutations(sorted(names)))]  # type: ignore[index]
    strategies = [Strategy(depth) for depth in sorted(depths)]
    spans = Spans(3, "0" * 64) if "mgskd" in names else None
    stores = Asked((), strategies, methods).by_store(teacher, most_admitted=12, spans=spans)
    for method in methods:
        for depth in depths:
            for phase in method.phases(teacher, ModelShape("it", 2, (depth, 32))):
                for want in phase.reads:
                    held = [feature for own in stores.values() for feature in own if feature.name == want.kind.name]
                    assert any({pair.teacher for pair in want.pairs} <= set(feature.layers) for feature in held)
    wanted = {want.kind.name for method in methods for want in method.phases(teacher, ModelShape("it", 2, (2, 32)))[0].reads}
    assert {feature.name for own in stores.values() for feature in own} == wanted, "and nothing else"
    assert len(stores) == 1 or ("mud" in names and len(depths) > 1)
    assert all(
        [FEATURES.index(each.name) for each in own] == sorted(FEATURES.index(each.name) for each in own)
        for own in stores.values()
    )


def test_what_a_method_reads_besides_hidden_lies_in_a_store_of_its_name_where_hidden_has_several() -> None:
    both = Asks({"hidden": (5,), "cls": (1, 2)}, name="both")
    stores = Asked([Keep(1, 9, 0.1), Keep(1, 4, 0.25)], [Strategy(2)], [both]).by_store(TeacherShape(6, 32), most_admitted=12)
    found = {name: [feature.name for feature in features] for name, features in stores.items()}
    assert found == {"d1-l9-w0.1": ["hidden"], "d1-l4-w0.25": ["hidden"], "both": ["cls"]}


REFUSALS = [
    (
        "--student-layers 2 --for nonsense",
        f"--for nonsense: no method is called so ({', '.join(METHODS)}), and no recipe file",
    ),
    ("--student-layers 2 --for broken.toml", "no recipe could be read"),
    ("--student-layers 2 --for strange.toml", "patience_layers"),
    ("--student-layers 1 --for pkd", "a student of 1 layers has none such"),
    ("--student-layers 2 --student-layers 1 --for distilbert --for pkd", "a student of 1 layers has none such"),
    ("--student-layers 9 --for last.toml", "last of the teacher's 4; a student of 9 layers has none such"),
]


@pytest.mark.parametrize(
    ("said", "why"), [*REFUSALS, ("--student-layers 2", "say what to keep: --keep DEPTH,LENGTH,WIDTH, or --for")]
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(
    said: str, why: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract(world, said, tmp_path / "stores") == 2
    assert why in refused(capsys)
    assert not (tmp_path / "stores").exists()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        *REFUSALS,
        ("--student-layers 2", "give --keep, --for or --rich (what will it cost?), or --budget (what fits?)"),
        (
            "--student-layers 2 --for pkd --budget 2MB",
            "give --keep, --for or --rich (what will it cost?), or --budget (what fits?)",
        ),
    ],
)
def test_a_plan_refuses_what_an_extraction_would(said: str, why: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", world / "teacher", world / "data", "--task", "sst2", "--rate", 100]
    assert hsk(*words, *words_of(world, said)) == 2
    assert why in refused(capsys)


def test_a_plan_tells_of_every_feature_its_layers_and_bytes(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", world / "teacher", world / "data", "--task", "sst2", "--student-layers", 2, "--rate", 100]
    assert hsk(*words, "--for", "pkd", "--for", "distilbert", "--keep", "1,4,0.25") == 0
    said = told(capsys)
    for part in ("3; states", "4; cls 2", "train/hidden/values", "train/states/values", "train/cls/values", "0.72 s at 100 rows"):
        assert part in said


# --- hsk show

BOTH = "--student-layers 2 --for pkd --for distilbert"


def shown(store: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Which students a store serves by each method, and what it lacks, as `hsk show --json` has it."""
    capsys.readouterr()
    assert hsk("show", store, "--json") == 0
    return {service["method"]: service for service in json.loads(capsys.readouterr().out)["serves"]}


def test_show_says_which_methods_a_store_serves_and_what_the_others_lack(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    store = made(BOTH) / "distilbert+pkd"
    capsys.readouterr()
    assert hsk("show", store) == 0
    said = told(capsys)
    for part in (
        "states of teacher layer 4, f16 cls of teacher layer 2, f16",
        "serves kd: students of any depth",
        "serves finetune: students of any depth",
        "serves pkd: students of 2 layers",
        "serves distilbert: students of any depth",
        "serves tkd: students of 1 layer not",
        "not mud: it lacks hidden of teacher layer 3, for a student of 2 layers hsk extract TEACHER DATA --for mud"
        " --student-layers 2 --out DIR makes a store that does",
    ):
        assert part in said
    assert "not pkd" not in said and "serves mud" not in said
    found = shown(store, capsys)
    assert list(found) == list(METHODS)
    assert {name: service["students"] for name, service in found.items()} == {
        "mud": [],
        "kd": [1, 2, 3, 4],
        "finetune": [1, 2, 3, 4],
        "pkd": [2],
        "distilbert": [1, 2, 3, 4],
        "ckd": [],
        "minilmv2": [],
        "minilm": [],
        "tinybert": [],
        "tkd": [1],
        "mgskd": [],
        "ksm": [],
    }
    assert {name: service["lacks"] for name, service in found.items() if service["lacks"]} == {
        "mud": ["hidden of teacher layer 3"],
        "ckd": ["states of teacher layers 0, 2"],
        "minilmv2": ["qkv of teacher layer 4"],
        "minilm": ["qkv of teacher layer 4"],
        "tinybert": ["states of teacher layers 0, 2", "qkv of teacher layers 2, 4"],
        "tkd": ["states of teacher layer 2"],
        "mgskd": ["states of teacher layers 0, 2", "pooled of teacher layer 4", "spans"],
        "ksm": ["cls of teacher layers 3, 4"],
    }


@pytest.mark.parametrize(
    "said",
    [BOTH, "--student-layers 1 --keep 1,9,0.1", "--student-layers 3 --keep 2,4,0.5", "--student-layers 2 --for kd"],
)
def test_the_command_that_show_names_makes_a_store_that_serves(
    said: str, made: Made, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store,) = made(said).iterdir()
    lacking = {name: service for name, service in shown(store, capsys).items() if not service["students"]}
    assert lacking
    for name, service in lacking.items():
        places = {"TEACHER": world / "teacher", "DATA": world / "data", "SPANS": world / "spans", "DIR": tmp_path / name}
        words = [places.get(word, word) for word in service["command"].split()]
        assert words[:2] == ["hsk", "extract"] and hsk(*words[1:], "--task", "sst2") == 0
        (better,) = (tmp_path / name).iterdir()
        assert service["depth"] in shown(better, capsys)[name]["students"]


def test_a_method_that_cannot_teach_a_student_of_the_stores_depth_is_told_of_for_the_nearest_that_it_can(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = save_folder(make_bert(layers=1), tmp_path / "teacher")
    words = ["extract", teacher, world / "data", "--task", "sst2", "--student-layers", 1, "--out", tmp_path / "stores"]
    assert hsk(*words, "--for", "kd") == 0
    found = shown(tmp_path / "stores" / "kd", capsys)
    assert (found["pkd"]["depth"], found["pkd"]["lacks"]) == (2, ["cls of teacher layer 0"])
    assert (found["distilbert"]["depth"], found["distilbert"]["lacks"]) == (1, ["states of teacher layer 1"])


def test_a_store_without_labels_says_that_they_are_lacking(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, rows in (("train", 40), ("dev", 8)):
        (tmp_path / f"{split}.tsv").write_text("sentence\n" + "\n".join(sentences(rows, rows)) + "\n")
    words = ["extract", world / "teacher", tmp_path, "--text", "sentence", "--student-layers", 2, "--out", tmp_path / "stores"]
    assert hsk(*words, "--for", "pkd") == 0
    found = shown(tmp_path / "stores" / "pkd", capsys)
    assert found["pkd"]["students"] == found["finetune"]["students"] == [] and found["kd"]["students"] == [1, 2, 3, 4]
    assert found["pkd"]["lacks"] == found["finetune"]["lacks"] == ["labels"]
    assert found["distilbert"]["lacks"] == ["states of teacher layer 4", "labels"]
    assert found["pkd"]["command"] == "hsk extract TEACHER DATA --for pkd --student-layers 2 --label COLUMN --out DIR"


def test_a_store_whose_layers_serve_some_depths_names_these(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    store = made("--student-layers 2 --student-layers 3 --for pkd") / "pkd"
    assert shown(store, capsys)["pkd"]["students"] == [2, 3, 4], "layers 1 to 3 are those of a student of four layers too"


def test_an_unsealed_store_of_features_is_shown_as_far_as_it_is(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copytree(made(BOTH) / "distilbert+pkd", tmp_path / "own"))
    (own / "manifest.json").unlink()
    capsys.readouterr()
    assert hsk("show", own) == 0
    said = told(capsys)
    assert "not sealed; 2 of 2 units done 72 of 72 rows" in said and "serves" not in said
    assert hsk("show", own, "--json") == 0
    assert "serves" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("field", ["teacher", "strategy"])
def test_a_strangers_store_of_more_layers_than_any_model_has_is_refused_and_not_counted_through(
    field: str, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store,) = made("--student-layers 2 --for mud").iterdir()
    own = Path(shutil.copytree(store, tmp_path / "own"))
    document = json.loads((own / "plan.json").read_bytes())
    document[field]["layers" if field == "teacher" else "student_layers"] = 2**31 - 1
    forge(own, {"plan.json": canonical_json(document)})
    capsys.readouterr()
    assert hsk("show", own) == 2
    assert "cannot be read as a plan" in refused(capsys)


# --- hsk methods


def test_methods_are_listed_with_what_they_read_and_where_they_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert hsk("methods") == 0
    said = told(capsys)
    for part in (
        "mud hidden, logits",
        "kd logits",
        "finetune labels",
        "pkd cls, logits, labels",
        "distilbert states, logits, labels",
        "ckd states, logits, labels",
        "minilmv2 qkv, logits",
        "minilm qkv, logits",
        "tinybert states, qkv, logits",
        "tkd states, logits, labels",
        "mgskd states, spans, pooled, logits",
        "ksm cls, logits, labels",
    ):
        assert part in said
    assert hsk("methods", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [method["name"] for method in found] == list(METHODS)
    for method in found:
        options = {option["flag"].removeprefix("--").replace("-", "_"): option["default"] for option in method["options"]}
        assert options == dataclasses.asdict(METHODS[method["name"]]()) and method["source"] and method["summary"]


def test_of_one_method_options_wants_defaults_and_source_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert hsk("methods", "pkd") == 0
    said = told(capsys)
    for part in (
        "source: Sun et al., Patient Knowledge Distillation for BERT Model Compression, EMNLP 2019, section 3",
        "phase pkd, linear rate: 100 x pkd.cls + 0.5 x prediction + 0.5 x gold",
        "reads cls; for a student of 6 layers and a teacher of 12 ",
        " layers 2, 4, 6, 8, 10 ",
        "reads logits, labels",
        "--patient-layers one of skip, last skip",
        "--beta a number 100.0",
    ):
        assert part in said
    assert hsk("methods", "pkd", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["phases"][0]["reads"] == {"cls": [2, 4, 6, 8, 10]} and found["phases"][0]["reads_labels"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_told_of(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert hsk("methods", name) == 0
    assert told(capsys).startswith(f"{name}: ")


def test_what_is_no_method_is_refused_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert hsk("methods", "nonsense") == 2
    assert refused(capsys) == f"nonsense is no method; the methods are {', '.join(METHODS)}"


# --- hsk derive and hsk pull

WIDE = "--student-layers 2 --student-layers 3 --for pkd --for distilbert"
WITH_HIDDEN = "--student-layers 2 --for pkd --for distilbert --keep 1,4,0.25"
CUTS = [
    (WIDE, "--for pkd --student-layers 2", "--student-layers 2 --for pkd"),
    (WIDE, "--for pkd --student-layers 2 --student-layers 3", "--student-layers 2 --student-layers 3 --for pkd"),
    (WIDE, "--for last.toml --student-layers 3", "--student-layers 3 --for last.toml"),
    (WIDE, "--for distilbert --for pkd --student-layers 3", "--student-layers 3 --for pkd --for distilbert"),
    (WIDE, "--for kd --student-layers 2", "--student-layers 2 --for kd"),
    (WITH_HIDDEN, "--for mud --student-layers 2", "--student-layers 2 --keep 1,4,0.25"),
    (WITH_HIDDEN, "--for mud --for pkd --keep 1,2,0.25 --student-layers 2", "--student-layers 2 --for pkd --keep 1,2,0.25"),
    (WITH_HIDDEN, "--for pkd --student-layers 2", "--student-layers 2 --for pkd"),
]


@pytest.mark.parametrize(("source", "cut", "direct"), CUTS, ids=[f"{cut} of {source}" for source, cut, _ in CUTS])
def test_what_methods_read_is_cut_out_as_it_would_have_been_extracted(
    source: str, cut: str, direct: str, made: Made, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (wide,), (expected,) = made(source).iterdir(), made(direct).iterdir()
    digest = open_store(expected).digest
    capsys.readouterr()
    assert hsk("derive", wide, "--out", tmp_path / "cut", *words_of(world, cut)) == 0
    assert f"digest {digest}" in told(capsys)
    assert sealed_tree(tmp_path / "cut") == sealed_tree(expected)


def test_a_cut_says_what_it_keeps(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (wide,) = made(WITH_HIDDEN).iterdir()
    capsys.readouterr()
    assert hsk("derive", wide, "--out", tmp_path / "one", "--for", "mud", "--for", "pkd", "--student-layers", 2) == 0
    assert "one: keep 1,4,0.25; cls of layers 2, " in told(capsys)
    assert hsk("derive", wide, "--out", tmp_path / "two", "--for", "kd", "--student-layers", 2) == 0
    assert "two: logits alone, " in told(capsys)


def test_of_a_bucket_just_what_methods_read_is_pulled(
    made: Made, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (wide,), (direct,) = made(WIDE).iterdir(), made("--student-layers 2 --for pkd").iterdir()
    assert hsk("push", wide, f"{bucket}/wide") == 0
    assert hsk("pull", f"{bucket}/wide", tmp_path / "all") == 0
    assert sealed_tree(tmp_path / "all") == sealed_tree(wide)
    capsys.readouterr()
    pull = ["pull", f"{bucket}/wide", tmp_path / "some", "--for", "pkd", "--student-layers", 2]
    assert hsk(*pull, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["digest"], found["source"]) == (open_store(direct).digest, open_store(wide).digest)
    assert sealed_tree(tmp_path / "some") == sealed_tree(direct)
    assert shown(tmp_path / "some", capsys)["pkd"]["students"] == [2]


@pytest.mark.parametrize("command", ["derive", "pull"])
@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("--for pkd", "--for and --student-layers go together: what is read follows from the depth of the student"),
        ("--for nonsense --student-layers 2", "--for nonsense: no method is called so"),
        ("--for pkd --student-layers 1", "a student of 1 layers has none such"),
        (
            "--for mud --student-layers 2",
            "distilbert+pkd holds no hidden of teacher layer 3, which the method mud reads:"
            " hsk extract TEACHER DATA --for mud --student-layers 2 --out DIR",
        ),
        (
            "--for pkd --student-layers 3",
            "distilbert+pkd holds no cls of teacher layers 1, 3, which the method pkd reads:"
            " hsk extract TEACHER DATA --for pkd --student-layers 3 --out DIR",
        ),
        ("--for last.toml --student-layers 2", "holds no cls of teacher layer 3, which the method pkd reads: hsk extract"),
        ("--for pkd --keep 1,4,0.25 --student-layers 2", "--keep 1,4,0.25 cannot be cut from"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line_and_nothing_is_written(
    command: str, said: str, why: str, made: Made, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = made(BOTH) / "distilbert+pkd", tmp_path / "cut"
    capsys.readouterr()
    words = [store, "--out", out] if command == "derive" else [store, out]
    assert hsk(command, *words, *words_of(world, said)) == 2
    assert why in refused(capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    ("command", "why"),
    [("derive", "--keep 1,4,0.25 cannot be selected from it"), ("pull", "--for and --student-layers go together")],
)
def test_a_depth_beside_a_configuration_asks_for_a_rich_store(
    command: str, why: str, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = made(BOTH) / "distilbert+pkd", tmp_path / "cut"
    capsys.readouterr()
    words = [store, "--out", out] if command == "derive" else [store, out]
    assert hsk(command, *words, "--keep", "1,4,0.25", "--student-layers", 2) == 2
    assert why in refused(capsys)
    assert not out.exists()


def test_a_depth_alone_says_nothing_of_what_to_pull(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hsk("pull", Path(__file__).parent / "golden" / "v1" / "more", tmp_path / "cut", "--student-layers", 3) == 2
    assert "--for and --student-layers go together" in refused(capsys)
    assert not (tmp_path / "cut").exists()


def test_a_method_with_options_of_its_own_is_made_for_by_a_recipe(
    made: Made, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name alone would make a store of the layers that its defaults read."""
    store = made(BOTH) / "distilbert+pkd"
    capsys.readouterr()
    assert hsk("derive", store, "--out", tmp_path / "cut", *words_of(world, "--for last.toml --student-layers 2")) == 2
    assert "hsk extract TEACHER DATA --for recipe.toml --student-layers 2" in refused(capsys)


def test_without_methods_nothing_is_said_to_be_cut(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store,) = made(BOTH).iterdir()
    capsys.readouterr()
    assert hsk("derive", store, "--out", tmp_path / "cut") == 2
    assert refused(capsys) == "say what to cut out of it: --keep DEPTH,LENGTH,WIDTH, or --for METHOD, or codes with --values rq8"
