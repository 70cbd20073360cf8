"""A run is one typed recipe: as TOML and back, on the command line, beside the student that it made."""

import ast
import dataclasses
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hskstore import evaluate
from hskstore.config import DataOptions, FinetuneOptions, Keep, MethodName, PassOptions, Strategy
from hskstore.errors import OptionError
from hskstore.features import TeacherShape
from hskstore.methods import METHODS, Finetune, Kd, Mud, Phase, Selection, Weights, method_options, weighed
from hskstore.methods.batch import Batch
from hskstore.methods.ckd import Ckd
from hskstore.methods.distilbert import DistilBert
from hskstore.methods.pkd import Pkd
from hskstore.models.observe import Seen
from hskstore.models.run import ModelShape
from hskstore.models.widths import PruneTo
from hskstore.options import options_of
from hskstore.stage_one.extract import extract
from hskstore.stage_one.planning import prepare
from hskstore.stage_two.distill import distill
from hskstore.stage_two.finetune import finetune
from hskstore.stage_two.recipe import Recipe, read_recipe, recipe_options
from tests.conftest import hsk, make_bert, save_folder

COUNTS = st.integers(1, 2**31 - 1)
RATES = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
SHARES = st.floats(0, 1)
PROJECTIONS = ["shared", "per-layer"]


NAMES = st.from_regex(r"[a-z_]+(\.[a-z_]+)?", fullmatch=True)
WEIGHTS = st.dictionaries(NAMES, st.floats(0, allow_infinity=False), min_size=1).map(lambda each: Weights(tuple(each.items())))


def some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(values, min_size=1, max_size=3).map(tuple)


METHOD_VALUES = st.one_of(
    st.builds(
        Mud,
        st.sampled_from(["zero", "ignore"]),
        st.sampled_from(["teacher", "gold"]),
        RATES,
        st.sampled_from(PROJECTIONS),
    ),
    st.builds(Kd, RATES, SHARES, st.sampled_from(["forward", "reverse", "standardised"])),
    st.builds(
        Pkd, st.sampled_from(["skip", "last"]), st.floats(0, allow_infinity=False), RATES, SHARES, st.sampled_from(PROJECTIONS)
    ),
    st.builds(DistilBert, RATES, st.sampled_from(PROJECTIONS)),
    st.builds(
        Ckd,
        RATES,
        SHARES,
        st.sampled_from(["cosine", "l2"]),
        COUNTS,
        st.sampled_from(["delta", "none"]),
        st.sampled_from(["cut", "clamped"]),
        st.sampled_from(["valid", "code"]),
    ),
    st.just(Finetune()),
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    wished = st.none() | st.integers(0, 999999999)
    fields = {
        "student": st.text(),
        "epochs": some(COUNTS),
        "lr": some(RATES),
        "batch_size": some(COUNTS),
        "max_steps": COUNTS,
        "max_minutes": RATES,
        "patience": COUNTS,
        "warmup": SHARES,
        "weight": WEIGHTS,
        "prune_to": st.builds(PruneTo, wished, wished, wished),
        "seed": st.integers(0, 2**32 - 1),
        "precision": st.sampled_from(["auto", "fp32", "bf16"]),
        "loader": st.sampled_from(["auto", "ram", "blocks"]),
    }
    found = draw(st.fixed_dictionaries({"method": METHOD_VALUES}, optional=fields))
    if "prune_to" in found:
        found |= draw(st.fixed_dictionaries({}, optional={"prune_share": SHARES}))
    return Recipe(**found)


@given(recipes())
def test_a_recipe_survives_being_written_as_options_and_as_toml(recipe: Recipe) -> None:
    assert Recipe.of(recipe.as_options()) == recipe
    read = tomllib.loads(recipe.to_toml())
    assert read == recipe.as_options() and Recipe.of(read) == recipe


def test_numbers_per_phase_are_written_as_on_the_command_line() -> None:
    lines = Recipe("students/l3", Mud(), epochs=(10, 5), lr=(5e-5,), prune_to=PruneTo(2, None, 128)).to_toml().splitlines()
    assert {'student = "students/l3"', 'method = "mud"', 'targets = "zero"', 'epochs = "10,5"', 'lr = "5e-05"'} <= set(lines)
    assert 'prune_to = "2,all,128"' in lines and not any("alpha" in line for line in lines)
    assert Recipe.of({"epochs": 3, "lr": 1e-4}) == Recipe(epochs=(3,), lr=(1e-4,)), "one number for all phases need be no text"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epohcs = 3", "epohcs is no option here; the options are student, method, targets"),
        ("epochs = [10, 5]", "epochs is a list; expected numbers with commas, such as 10,5"),
        ("[method]\nname = 1", "method is a table; expected one of mud, kd, finetune"),
        ("seed = [1]", "seed is a list; expected a whole number"),
        ("epochs = true", "epochs is True; expected numbers with commas"),
        ("epochs = 1.5", "epochs is 1.5; expected numbers with commas"),
        ('lr = "fast"', "lr is fast; expected numbers with commas"),
        ('warmup = "0.1"', "warmup is 0.1; expected a number"),
        ("max_steps = 10.0", "max_steps is 10.0; expected a whole number"),
        ("student = 3", "student is 3; expected text"),
        ('method = "mudd"', "method is mudd; expected one of mud, kd, finetune"),
        ('prune_to = "2,8"', "prune_to is 2,8; expected HEADS,FFN,RANK"),
        ("prune_to = 2", "prune_to is 2; expected HEADS,FFN,RANK"),
        ("seed = 1979-05-27", "seed is 1979-05-27; expected a whole number"),
        ("seed = ", "no recipe could be read"),
        ("seed = 1\nseed = 2", "no recipe could be read"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_message_that_names_file_and_key(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    assert hsk("distill", "no store", "--recipe", file, "--out", tmp_path / "new") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"hsk: --recipe {file}: {said}") and err.count("\n") == 1 and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs = 0", "--epochs 0: must be a whole number from 1"),
        ("lr = nan", "--lr nan: must be above zero and finite"),
        ("warmup = 2", "--warmup 2.0: must be from 0 to 1"),
        ("alpha = 0.5", "--alpha is no option of the method mud; its own are: --targets"),
        ("prune_share = 0.5", "--prune-share goes with --prune-to"),
        ("seed = 0", "--student names the student to train"),
    ],
)
def test_what_makes_no_sense_is_refused_as_on_the_command_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.toml").write_text(text)
    assert hsk("distill", "no store", "--recipe", tmp_path / "mine.toml", "--out", tmp_path / "new") == 2
    assert said in capsys.readouterr().err


def test_a_missing_or_foreign_file_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bytes").write_bytes(b"seed = \xff")
    for file, why in (("none", "No such file"), ("bytes", "utf-8"), (".", "directory")):
        assert hsk("distill", "no store", "--recipe", tmp_path / file, "--out", tmp_path / "new") == 2
        err = capsys.readouterr().err
        assert "no recipe could be read" in err and why in err and err.count("\n") == 1


# --- weights


def test_weights_are_read_from_text_and_written_as_text() -> None:
    weights = Weights((("pkd.cls", 100.0), ("gold", 0.5)))
    assert Weights.parse("pkd.cls=100,gold=0.5") == Weights.parse(" pkd.cls = 1e2 , gold=.5") == weights
    assert str(weights) == "pkd.cls=100.0,gold=0.5"


@given(WEIGHTS)
def test_weights_survive_being_written(weights: Weights) -> None:
    assert Weights.parse(str(weights)) == weights


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gold", "--weight gold: expected TERM=NUMBER"),
        ("gold=", "--weight gold=: expected TERM=NUMBER"),
        ("gold=much", "--weight gold=much: expected TERM=NUMBER"),
        ("gold=1,", "--weight gold=1,: expected TERM=NUMBER"),
        ("", "--weight : expected TERM=NUMBER"),
        ("=1", "--weight: '' is no name of a term; expected TERM=NUMBER"),
        ("gold=-1", "--weight gold=-1.0: must be from 0, and finite"),
        ("gold=inf", "--weight gold=inf: must be from 0, and finite"),
        ("gold=nan", "--weight gold=nan: must be from 0, and finite"),
        ("gold=1,gold=2", "--weight: gold is given 2 weights; one is enough"),
    ],
)
def test_what_is_no_weight_is_refused(text: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert hsk("distill", "no store", "--weight", text, "--out", tmp_path / "new") == 2
    assert said in capsys.readouterr().err


def weighed_kd(text: str | None, **options: Any) -> tuple[Phase, ...]:
    student, teacher = ModelShape("it", 2, "gives no hidden states"), TeacherShape(4, 24)
    return weighed(Kd(**options).phases(teacher, student), None if text is None else Weights.parse(text), "kd")


def test_weights_stand_in_place_of_the_methods_own() -> None:
    (phase,) = weighed_kd("gold=3", alpha=0.25)
    assert phase.weights == {"prediction": 0.75, "gold": 3.0} and phase.reads_labels
    assert weighed_kd(None, alpha=0.25)[0].weights == {"prediction": 0.75, "gold": 0.25}


def test_a_weight_of_zero_leaves_the_term_out_and_with_gold_the_need_of_labels() -> None:
    (phase,) = weighed_kd("gold=0", alpha=0.25)
    assert phase.weights == {"prediction": 0.75} and not phase.reads_labels
    logits = torch.ones(3, 2)
    batch = Batch(torch.ones(3, 4, dtype=torch.int64), torch.ones(3, 4, dtype=torch.int64), torch.ones(3, 4).bool(), None, logits)
    assert Kd(alpha=0.25)(phase, Seen(logits), batch, None).keys() == {"prediction"}
    (phase,) = weighed_kd("prediction=0", alpha=0.25)
    labelled = dataclasses.replace(batch, label=torch.zeros(3, dtype=torch.int64), teacher_logits=None)
    assert Kd(alpha=0.25)(phase, Seen(logits), labelled, None).keys() == phase.weights.keys() == {"gold"}
    assert weighed_kd(None, alpha=1.0)[0].weights == {"gold": 1.0}
    gold = Mud(regression_target="gold").phases(TeacherShape(4, 24), ModelShape("it", 1, (2, 16)))
    assert [phase.reads_labels for phase in weighed(gold, Weights.parse("prediction=2"), "mud")] == [False, True]


def test_a_term_that_is_none_and_a_phase_without_one_are_refused_naming_the_methods_terms() -> None:
    with pytest.raises(OptionError, match=r"--weight gold=1: there is no such term; the terms of the method kd are: prediction$"):
        weighed_kd("gold=1")
    with pytest.raises(OptionError, match=r"the phase prediction is left without a term; .* kd are: prediction, gold$"):
        weighed_kd("prediction=0,gold=0", alpha=0.5)
    with pytest.raises(OptionError, match=r"the phase hidden is left without a term; .* mud are: mud\.hidden, prediction$"):
        weighed(Mud().phases(TeacherShape(4, 24), ModelShape("it", 2, (2, 16))), Weights.parse("mud.hidden=0"), "mud")


# --- the command line


def write(tmp_path: Path, *words: object) -> dict[str, Any]:
    file = tmp_path / "written.toml"
    file.unlink(missing_ok=True)
    assert hsk("distill", *words, "--write-recipe", file) == 0
    return tomllib.loads(file.read_text())


def test_options_on_the_command_line_override_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('method = "kd"\nalpha = 0.5\nepochs = "7"\nseed = 3\nstudent = "one"\nwarmup = 0.2\n')
    words = ["--recipe", tmp_path / "mine.toml", "--alpha", 0, "--seed", 0, "--student", "two", "--temperature", 2]
    found = write(tmp_path, *words)
    changed = {"alpha": 0.0, "seed": 0, "student": "two", "temperature": 2.0}
    assert found | changed == found and (found["epochs"], found["warmup"], found["method"]) == ("7", 0.2, "kd")


def test_a_flag_of_parts_may_be_given_several_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = write(tmp_path, "--weight", "gold=0.5,prediction=2", "--method", "kd")
    twice = write(tmp_path, "--weight", "gold=0.5", "--weight", "prediction=2", "--method", "kd")
    assert once == twice and once["weight"] == "gold=0.5,prediction=2.0"
    (tmp_path / "mine.toml").write_text('weight = "gold=1"\n')
    assert write(tmp_path, "--recipe", tmp_path / "mine.toml", "--weight", "prediction=3")["weight"] == "prediction=3.0"
    (tmp_path / "mine.toml").write_text("weight = 3\n")
    assert hsk("distill", "no store", "--recipe", tmp_path / "mine.toml", "--out", tmp_path / "new") == 2
    assert "weight is 3; expected TERM=NUMBER" in capsys.readouterr().err


def test_a_recipe_of_before_that_names_a_projection_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('method = "mud"\ntargets = "zero"\nprojection = "per-layer"\n')
    assert Recipe.of(read_recipe(tmp_path / "mine.toml")) == Recipe(method=Mud(projection="per-layer"))


def test_write_recipe_writes_what_these_options_mean_and_does_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(tmp_path, "--max-steps", 9) == Recipe(max_steps=9).as_options()
    assert hsk("distill", "no store", "--out", tmp_path / "new", "--write-recipe", tmp_path / "written.toml") == 2
    assert f"{tmp_path / 'written.toml'} already exists" in capsys.readouterr().err
    assert Recipe.of(read_recipe(tmp_path / "written.toml")) == Recipe(max_steps=9)
    assert hsk("distill", "--write-recipe", tmp_path / "none" / "mine.toml") == 2
    assert "could not be written (No such file" in capsys.readouterr().err
    assert hsk("distill", "--write-recipe", tmp_path / "other.toml", "--epochs", "0") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["written.toml"]


@pytest.mark.parametrize(("words", "student"), [([], " --student STUDENT"), (["--student", "one"], "")])
def test_the_command_that_reads_a_written_recipe_is_told_whole(
    words: list[str], student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, *words)
    file, said = tmp_path / "written.toml", capsys.readouterr().err.split()
    assert said == f"{file}: a recipe, for hsk distill STORE --recipe {file}{student} --out DIR".split()


def test_a_store_and_a_place_for_the_student_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["no store"], ["--out", tmp_path / "new"]):
        assert hsk("distill", *words, "--student", "one") == 2
        assert "distill needs a STORE and --out" in capsys.readouterr().err


def test_what_every_run_has_stands_before_what_some_methods_have(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = help_of(capsys, monkeypatch, "distill")
    places = [said.index(text) for text in ("--student ", "--epochs ", "--json ", "Of the methods named", "--patient-layers ")]
    places += [said.index(text) for text in ("Of ksm", "--episodes ", "Of a rich STORE", "--keep ", "--top-layer ")]
    assert places == sorted(places)


def help_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *command: str) -> str:
    monkeypatch.setenv("COLUMNS", "500")
    capsys.readouterr()
    assert hsk(*command, "--help") == 0
    return capsys.readouterr().out


def test_every_option_of_every_method_is_a_flag_that_tells_its_methods_and_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of(capsys, monkeypatch, "distill")
    for name, method in METHODS.items():
        assert name in get_args(MethodName) and method.name == name
        for field in dataclasses.fields(method):
            flag = "--" + field.name.replace("_", "-")
            (line,) = (line for line in text.splitlines() if f" {flag} " in line)
            default = f"{field.default:g}" if isinstance(field.default, float) else field.default
            if default is None:  # which depends, and its Doc says on what
                default = options_of(method)[field.name].help.partition("Default: ")[2].removesuffix(".")
                assert default and "None" not in line
            assert f"Default: {default}." in line and re.search(rf"\(.*\b{name}\b.*\)", line), line
    for option in recipe_options().values():
        assert f" {option.flag} " in text and option.help in text
    assert len(METHODS) == len(get_args(MethodName)) and "temperature" in method_options()


def test_every_field_of_a_recipe_a_method_and_a_strategy_is_a_documented_option() -> None:
    for owner, but in (
        (Recipe, {"method", "selection"}),
        (Selection, set()),
        (Strategy, {"student_layers"}),
        *((method, set()) for method in METHODS.values()),
    ):
        assert options_of(owner).keys() == {field.name for field in dataclasses.fields(owner)} - but


def test_the_defaults_told_of_options_are_the_librarys() -> None:
    for options, function in ((PassOptions, prepare), (FinetuneOptions, finetune), (DataOptions, evaluate)):
        known = inspect.signature(function).parameters
        for name, option in options_of(options).items():
            told = re.search(r"Default: ([\w.-]+)\.$", option.help)
            if told and told[1].isalnum():
                assert str(known[name].default) == told[1], name
        assert options_of(options).keys() <= known.keys()


def test_no_flag_that_is_made_from_a_class_is_written_by_hand() -> None:
    """A parameter of a command that typer is told of by hand bears no name of an option whose flag is made."""
    made = {
        "finetune": options_of(FinetuneOptions),
        "extract": options_of(PassOptions) | options_of(Strategy),
        "plan": options_of(PassOptions) | options_of(Strategy),
        "student_prune": options_of(DataOptions),
        "evaluate": options_of(DataOptions),
        "command": recipe_options(),
    }
    seen = set()
    for file in (Path(__file__).resolve().parents[1] / "hskstore" / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name in made:
                seen.add(node.name)
                assert not {argument.arg for argument in node.args.args} & made[node.name].keys(), node.name
    assert seen == made.keys()


# --- the recipe that made a student


@pytest.fixture(scope="module")
def store(teacher_folder: str, data_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("stores")
    (made,) = extract(teacher_folder, data_folder, out=folder, keeps=[Keep(1, 3, 8)], strategies=[Strategy(2)], task="sst2")
    return made.root


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_folder(make_bert(layers=2, hidden=16, seed=1), tmp_path_factory.mktemp("student"))


@pytest.mark.parametrize(
    "words",
    [
        ["--projection", "per-layer", "--temperature", 2, "--lr", "1e-3,3e-4", "--seed", 5],
        ["--method", "kd", "--alpha", 0.25, "--loader", "blocks", "--prune-to", "2,32,8"],
        ["--method", "mud+finetune", "--phases", "joint", "--set", "mud.temperature=2"],
    ],
    ids=["mud", "kd, pruned", "several"],
)
def test_the_recipe_beside_a_student_is_complete_and_makes_it_again(
    words: list[Any], store: str, student: str, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert hsk("distill", store, "--student", student, "--max-steps", 12, *words, "--out", one) == 0
    recipe = Recipe.of(read_recipe(one / "recipe.toml"))
    phases = 2 if isinstance(recipe.method, Mud) else 1
    for numbers in (recipe.epochs, recipe.lr, recipe.batch_size):
        assert numbers is not None and len(numbers) == phases
    assert recipe.precision in ("fp32", "bf16") and recipe.loader in ("ram", "blocks") and recipe.student == student
    assert (recipe.prune_share is None) == (recipe.prune_to is None)
    assert hsk("distill", store, "--recipe", one / "recipe.toml", "--out", two) == 0
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert (one / "recipe.toml").read_bytes() == (two / "recipe.toml").read_bytes()


def test_a_student_is_named_by_the_recipe_or_handed_over(store: str, student: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--student names the student to train"):
        distill(store, Recipe(), out=tmp_path / "new")
    with pytest.raises(OptionError, match="the recipe names one, and a module was handed over as well"):
        distill(store, Recipe("one"), student=make_bert(layers=2), out=tmp_path / "new")
    distill(store, Recipe(method=Kd(), max_steps=1), student=make_bert(layers=2), out=tmp_path / "new")
    assert "student" not in read_recipe(tmp_path / "new" / "recipe.toml"), "no file can name a module"
