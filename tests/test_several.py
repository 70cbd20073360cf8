"""Several methods in one run: the terms of all, in one phase or two, and how they are said on the command line and in recipes."""

import dataclasses
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from hskstore.cli.methods import methods_for
from hskstore.config import Keep, Strategy
from hskstore.errors import OptionError
from hskstore.features import TeacherShape
from hskstore.losses import Term
from hskstore.methods import (
    METHODS,
    Ckd,
    Finetune,
    Kd,
    Ksm,
    Method,
    Mgskd,
    MiniLM,
    MiniLMv2,
    Mud,
    PartOptions,
    Phase,
    Several,
    TinyBert,
    Tkd,
    Weights,
    make_method,
    weighed,
)
from hskstore.methods.batch import Batch
from hskstore.methods.distilbert import DistilBert
from hskstore.methods.pkd import Pkd
from hskstore.methods.serving import making, teacher_shape
from hskstore.methods.several import OF_THE_RUN
from hskstore.models.load import load_classifier
from hskstore.models.observe import Seen, observe, showing
from hskstore.models.run import ModelShape
from hskstore.options import Option, text_of
from hskstore.stage_one.extract import extract
from hskstore.stage_two.learner import take_published_projection
from hskstore.stage_two.recipe import Recipe, read_recipe
from hskstore.stage_two.rows import TrainingRows, rows_from_store
from hskstore.stage_two.settings import for_task
from hskstore.stage_two.student import places_of
from hskstore.text.tasks import TASKS
from tests.conftest import hsk, make_bert, save_folder
from tests.test_methods import LAYERS, WIDTH, learn, store_of, write_pairs
from tests.test_recipe import METHOD_VALUES
from tests.test_spans import conll, spans_folder

__all__ = ["conll", "spans_folder"]

TEACHER, STUDENT = TeacherShape(LAYERS, WIDTH, heads=4), ModelShape("it", 2, (2, 16))
SCORED = ModelShape("it", 1, (2, 16))


@pytest.fixture(scope="module")
def place(spans_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of all that any method reads for students of 2 layers, and a narrower student."""
    place = tmp_path_factory.mktemp("together")
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    extract(
        save_folder(make_bert(layers=LAYERS, hidden=WIDTH, **still), place / "teacher"),
        write_pairs(place / "classes.csv", "classes"),
        out=place / "classes" / "2",
        keeps=[Keep("all", "all", "all")],
        strategies=[Strategy(2, top_layer=LAYERS, values="f32")],
        methods=[kind() for kind in METHODS.values()],
        text=["one", "two"],
        label="label",
        validation="0.2",
        max_length=64,
        spans=str(spans_folder),
    )
    save_folder(make_bert(layers=2, hidden=16, seed=1, **still), place / "classes" / "student")
    return place


@dataclasses.dataclass(frozen=True)
class Step:
    """A student, and rows of which all is known."""

    model: nn.Module
    rows: TrainingRows
    teacher: TeacherShape

    def terms(self, method: Method, phase: Phase, aids: nn.Module | None) -> tuple[dict[str, Term], Batch]:
        batch = self.rows.batch(np.arange(16), phase.reads)
        if not phase.reads_labels:
            batch = dataclasses.replace(batch, label=None)
        with showing(self.model, phase.sees):
            seen = observe(self.model, *batch.inputs, phase.sees)
        return dict(method(phase, seen, batch, aids)), batch


@pytest.fixture(scope="module")
def step(place: Path) -> Step:
    store = store_of(place)
    teacher = teacher_shape(store.plan)
    every = [phase for kind in METHODS.values() for phase in kind().phases(teacher, STUDENT)]
    model, _ = load_classifier(str(place / "classes" / "student"))
    return Step(model.eval(), rows_from_store(store, "train", places=places_of(store, every)), teacher)


PHASINGS: Sequence[Literal["joint", "two"]] = ("joint", "two")
TOGETHER: list[tuple[Method, ...]] = [
    (Mud(), Ckd(delta=2)),
    (Ckd(), Mud(temperature=3.0)),
    (TinyBert(), Finetune(), DistilBert()),
    (MiniLM(temperature=2.0), MiniLMv2(relation_heads=2), Pkd()),
    (Kd(temperature=2.0), Ckd()),
    (Mgskd(), Tkd()),
    (Pkd(),),
    (TinyBert(),),
]


@pytest.mark.parametrize("phasing", PHASINGS)
@pytest.mark.parametrize("parts", TOGETHER, ids=lambda parts: "+".join(part.name for part in parts))
def test_terms_and_weights_are_those_of_the_methods_alone(
    parts: tuple[Method, ...], phasing: Literal["joint", "two"], step: Step
) -> None:
    """And "prediction" and "gold" are those of the first that has them."""
    method = Several(parts, phasing)
    torch.manual_seed(0)
    aids = method.aids(step.teacher, STUDENT)
    expected: dict[str, tuple[float, Term]] = {}
    for part in parts:
        own = aids[part.name] if aids is not None and part.name in aids else None
        for phase in part.phases(step.teacher, STUDENT):
            for name, term in step.terms(part, phase, own)[0].items():
                expected.setdefault(name, (phase.weights[name], term))
    found: dict[str, tuple[float, Term]] = {}
    for phase in method.phases(step.teacher, STUDENT):
        terms, batch = step.terms(method, phase, aids)
        assert terms.keys() == phase.weights.keys() and batch.knowledge.keys() == set(phase.reads)
        assert not found.keys() & terms.keys()
        found |= {name: (phase.weights[name], term) for name, term in terms.items()}
    assert found.keys() == expected.keys()
    for name, (weight, term) in expected.items():
        assert found[name][0] == weight and torch.equal(found[name][1].value, term.value) and term.value > 0, name


@pytest.mark.parametrize("parts", TOGETHER, ids=lambda parts: "+".join(part.name for part in parts))
def test_in_one_phase_everything_is_learnt_at_once_in_two_predictions_come_last(parts: tuple[Method, ...]) -> None:
    (joint,) = Several(parts, "joint").phases(TEACHER, STUDENT)
    assert (joint.name, joint.schedule, joint.predicts) == ("+".join(part.name for part in parts), "linear", True)
    first, last = Several(parts, "two").phases(TEACHER, STUDENT)
    assert (first.name, first.schedule, first.predicts) == ("knowledge", "constant", False)
    assert (last.name, last.schedule, last.predicts) == ("prediction", "linear", True)
    assert not first.weights.keys() & OF_THE_RUN and last.weights.keys() <= OF_THE_RUN and not first.reads_labels
    assert {**first.weights, **last.weights} == joint.weights
    wants = {want for part in parts for phase in part.phases(TEACHER, STUDENT) for want in phase.reads}
    assert set(joint.reads) == set(first.reads) == wants and len(joint.reads) == len(wants) and not last.reads
    assert joint.sees == first.sees and not last.sees.hidden and not last.sees.qkv
    for part in parts:
        for phase in part.phases(TEACHER, STUDENT):
            assert phase.sees.hidden <= first.sees.hidden and phase.sees.qkv <= first.sees.qkv


def test_there_are_two_phases_where_a_method_has_two_of_its_own() -> None:
    """Whose epochs and rates are then those of the task for phases such as these."""
    for parts, expected in (((Ckd(), Mud()), 2), ((Ckd(), Pkd()), 1), ((Kd(), TinyBert()), 2), ((Kd(), Finetune()), 1)):
        phases = Several(parts).phases(TEACHER, STUDENT)
        assert len(phases) == expected
        task, numbers = TASKS["sst2"].defaults, for_task(Recipe(), phases, TASKS["sst2"].defaults)
        assert numbers.epochs == (task.hidden.epochs, task.prediction.epochs)[-expected:]


def test_a_wish_that_two_methods_share_is_read_once() -> None:
    (phase,) = Several((MiniLM(), MiniLMv2())).phases(TEACHER, STUDENT)
    assert [want.kind.name for want in phase.reads] == ["qkv"] and len(phase.weights) == 6


def test_predictions_are_of_the_first_method_that_has_them() -> None:
    _, last = Several((Mud(), Ckd())).phases(TEACHER, STUDENT)
    assert last.weights == {"prediction": 1.0, "gold": 0.2} and last.reads_labels
    assert Several((Ckd(), Mud())).phases(TEACHER, STUDENT)[1].weights == {"prediction": 0.8, "gold": 0.2}
    (phase,) = Several((Kd(), Ckd(alpha=0))).phases(TEACHER, STUDENT)
    assert phase.weights["prediction"] == 1 and not phase.reads_labels


def test_a_gold_score_is_read_where_the_method_whose_prediction_it_is_says_so() -> None:
    gold = Mud(regression_target="gold")
    assert Several((gold, MiniLM())).phases(TEACHER, SCORED)[1].reads_labels
    assert not Several((MiniLM(), gold)).phases(TEACHER, SCORED)[1].reads_labels
    assert not Several((gold, MiniLM())).phases(TEACHER, STUDENT)[1].reads_labels
    nothing, scores = torch.zeros(3, 1, dtype=torch.long), torch.tensor([1.0, 2.0, 3.0])
    batch = Batch(nothing, nothing, nothing.bool(), scores, torch.zeros(3, 1))
    _, last = Several((gold, MiniLM())).phases(TEACHER, SCORED)
    terms = Several((gold, MiniLM()))(last, Seen(torch.zeros(3, 1)), batch, None)
    assert float(terms["prediction"].value) == pytest.approx((1 + 4 + 9) / 3)


@pytest.mark.parametrize("phasing", PHASINGS)
def test_what_weighs_nothing_is_left_out_and_with_gold_the_need_of_labels(phasing: Literal["joint", "two"], step: Step) -> None:
    method = Several((Mud(), Ckd()), phasing)
    weights = Weights.parse("mud.hidden=0,ckd.word_pair=3,ckd.layer_pair=0,gold=0")
    phases = weighed(method.phases(step.teacher, STUDENT), weights, method.name)
    assert not any(phase.reads_labels for phase in phases)
    found: dict[str, float] = {}
    for phase in phases:
        terms, _ = step.terms(method, phase, method.aids(step.teacher, STUDENT))
        assert terms.keys() == phase.weights.keys()
        found |= phase.weights
    assert found == {"ckd.word_pair": 3, "ckd.word_angle": 1, "ckd.layer_angle": 1, "prediction": 1}
    with pytest.raises(OptionError, match=r"^--weight pkd\.cls=1: .* the method mud\+ckd are: mud\.hidden, "):
        weighed(method.phases(step.teacher, STUDENT), Weights.parse("pkd.cls=1"), method.name)


def test_the_projections_of_two_methods_are_trained_and_dropped(place: Path, step: Step, tmp_path: Path) -> None:
    method = Several((Mud(projection="per-layer"), Ckd(), TinyBert()))
    aids = method.aids(step.teacher, STUDENT)
    assert aids is not None and set(aids) == {"mud", "tinybert"}
    phase, _ = method.phases(step.teacher, STUDENT)
    sum(term.value for term in step.terms(method, phase, aids)[0].values()).backward()  # type: ignore[union-attr]
    assert all(each.grad is not None and each.grad.abs().max() > 0 for each in aids.parameters())
    learn(place, method, tmp_path / "run", max_steps=2)
    kept = (load_file(folder / "model.safetensors").keys() for folder in (tmp_path / "run", place / "classes" / "student"))
    assert set(next(kept)) == set(next(kept))
    assert Several((Ckd(), Kd(alpha=0.5))).aids(step.teacher, STUDENT) is None


def test_a_published_projection_is_where_those_of_all_methods_start(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    published = {"fit_dense.weight": torch.full((WIDTH, 16), 0.25), "fit_dense.bias": torch.full((WIDTH,), -0.5)}
    save_file(published, tmp_path / "model.safetensors")
    aids = Several((Mud(), TinyBert())).aids(TEACHER, STUDENT)
    assert aids is not None and len(list(aids.parameters())) == 4
    take_published_projection(aids, str(tmp_path))
    for name, tensor in aids.named_parameters():
        assert torch.equal(tensor, published[f"fit_dense.{name.rpartition('.')[2]}"])


# --- what is refused

TWICE = "--method mud+ckd+mud: mud stands there 2 times; once is enough"
FEW = "several methods are two or more, or one with --phases, and none is several"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Several((Mud(), Ckd(), Mud(temperature=2.0))), TWICE),
        (lambda: make_method("mud+ckd+mud", {}), TWICE),
        (lambda: Several(()), FEW),
        (lambda: Several((Mud(),)), FEW),
        (lambda: Several((Mud(), Several((Ckd(), Pkd())))), FEW),
        (lambda: Several((Mud(), Ckd()), "three"), "--phases three: choose one of joint, two"),  # type: ignore[arg-type]
        (lambda: Several((Kd(alpha=0.5), Finetune())).phases(TEACHER, STUDENT), "finetune adds no term to those of the methods"),
        (
            lambda: Several((Ckd(), Kd())).phases(TEACHER, STUDENT),
            "--method ckd+kd: kd adds no term to those of the methods before",
        ),
        (
            lambda: Several((Kd(), Finetune()), "two").phases(TEACHER, STUDENT),
            "--phases two: kd+finetune learns predictions alone",
        ),
        (lambda: make_method("mud+", {}), "--method : choose one of mud, kd"),
        (lambda: make_method("mud+mad", {}), "--method mad: choose one of mud, kd"),
        (
            lambda: make_method("finetune+kd", {"targets": "zero"}),
            "--targets is no option of the method finetune+kd; those of finetune are: none; those of kd are: --",
        ),
        (lambda: own("mud+ckd", "kd.alpha=1"), "--set kd.alpha=1: the method here is mud+ckd, and kd is none of it"),
        (
            lambda: own("mud+ckd", "mud.delta=1"),
            "--set mud.delta=1: --delta is no option of the method mud; its own are: --targets",
        ),
        (lambda: own("ckd", "ckd.delta=ten"), "--set ckd.delta=ten: expected a whole number"),
        (lambda: own("ckd", "ckd.delta=1.5"), "--set ckd.delta=1.5: expected a whole number"),
        (lambda: own("ckd", "ckd.pair=cos"), "--set ckd.pair=cos: expected one of cosine, l2"),
        (lambda: own("ckd", "ckd.delta=0"), "--delta 0: must be a whole number from 1"),
        (lambda: own("ckd", "ckd.delta=1,ckd.delta=2"), "--set: ckd.delta is given 2 values; one is enough"),
        (lambda: own("ckd", "ckd.delta"), "--set ckd.delta=: expected METHOD.OPTION=VALUE"),
        (lambda: own("ckd", "delta=1"), "--set delta=1: expected METHOD.OPTION=VALUE"),
        (lambda: own("ckd", ""), "--set =: expected METHOD.OPTION=VALUE"),
        (lambda: PartOptions(()), "--set: expected METHOD.OPTION=VALUE"),
    ],
)
def test_what_cannot_be_is_one_message(make: Any, said: str) -> None:
    with pytest.raises(OptionError) as refused:
        make()
    assert said in str(refused.value) and "\n" not in str(refused.value)


def own(name: str, text: str, **options: Any) -> Method:
    return make_method(name, options, by_part=PartOptions.parse(text))


# --- options


def test_an_option_is_of_all_that_have_it_and_one_that_is_set_of_one() -> None:
    assert make_method("kd+ckd", {"temperature": 2.0, "delta": 3}) == Several((Kd(temperature=2.0), Ckd(2.0, delta=3)))
    found = own("kd + ckd", "ckd.temperature=4, ckd.pair-window=none", temperature=2.0)
    assert found == Several((Kd(temperature=2.0), Ckd(temperature=4.0, pair_window="none")))
    assert own("ckd", "ckd.delta=4", delta=3) == Ckd(delta=4)
    assert make_method("ckd", {}, phasing="two") == Several((Ckd(),), "two")
    assert found.name == "kd+ckd" and found.source == f"{Kd.source}; {Ckd.source}"


@pytest.mark.parametrize(
    ("kind", "value", "text", "none"),
    [
        (int, 10, "10", "1.5"),
        (float, 0.1, "0.1", "much"),
        (float, 1e-300, "1e-300", ""),
        (bool, True, "true", "True"),
        (bool, False, "false", "0"),
        (Literal["cut", "clamped"], "cut", "cut", "cat"),
    ],
)
def test_a_value_is_read_from_its_text_by_the_kind_of_its_option(kind: Any, value: Any, text: str, none: str) -> None:
    option = Option("it", kind, "", None)
    assert text_of(value) == text and option.read_text(text, "here") == value and type(option.read_text(text, "")) is type(value)
    with pytest.raises(OptionError, match=rf"^here: expected {option.expected}$"):
        option.read_text(none, "here")


@given(st.lists(METHOD_VALUES, min_size=1, max_size=4, unique_by=lambda each: each.name), st.sampled_from([None, "joint", "two"]))
def test_a_recipe_of_several_methods_survives_being_written(parts: list[Method], phasing: Any) -> None:
    method = parts[0] if len(parts) == 1 and phasing is None else Several(tuple(parts), phasing)
    recipe = Recipe(method=method)
    written = recipe.as_options()
    assert Recipe.of(written) == recipe and tomllib.loads(recipe.to_toml()) == written
    assert ("phases" in written) == (phasing is not None) and (len(parts) > 1 or "set" not in written)


# --- the command line


def write(tmp_path: Path, *words: object) -> dict[str, Any]:
    file = tmp_path / "written.toml"
    file.unlink(missing_ok=True)
    assert hsk("distill", *words, "--write-recipe", file) == 0
    return tomllib.loads(file.read_text())


def test_a_recipe_of_several_methods_is_written_and_read_back(tmp_path: Path) -> None:
    words = ["--method", "mud+ckd", "--phases", "joint", "--temperature", 3, "--set", "ckd.delta=4", "--set", "ckd.temperature=5"]
    found = write(tmp_path, *words, "--weight", "ckd.word_angle=10")
    assert found["method"] == "mud+ckd" and found["phases"] == "joint" and found["delta"] == 4 and found["alpha"] == 0.2
    assert found["set"] == "mud.temperature=3.0,ckd.temperature=5.0" and "temperature" not in found
    recipe = Recipe.of(read_recipe(tmp_path / "written.toml"))
    assert recipe.method == Several((Mud(temperature=3.0), Ckd(temperature=5.0, delta=4)), "joint")
    assert write(tmp_path, "--method", "ckd", "--set", "ckd.delta=4")["delta"] == 4


def test_what_the_command_line_says_of_one_method_or_of_all_is_in_place_of_the_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('method = "kd+ckd"\nset = "kd.temperature=2,ckd.temperature=3,ckd.delta=4"\n')

    def method(*words: object) -> Method:
        write(tmp_path, "--recipe", file, *words)
        return Recipe.of(read_recipe(tmp_path / "written.toml")).method

    assert method() == Several((Kd(temperature=2.0), Ckd(temperature=3.0, delta=4)))
    assert method("--set", "ckd.temperature=9") == Several((Kd(temperature=2.0), Ckd(temperature=9.0, delta=4)))
    assert method("--temperature", 7) == Several((Kd(temperature=7.0), Ckd(temperature=7.0, delta=4)))
    assert method("--temperature", 7, "--delta", 1) == Several((Kd(temperature=7.0), Ckd(temperature=7.0, delta=1)))
    assert method("--phases", "two") == Several((Kd(temperature=2.0), Ckd(temperature=3.0, delta=4)), "two")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "mud+mud"], "--method mud+mud: mud stands there 2 times"),
        (["--method", "mud+mudd"], "--method mudd: choose one of mud, kd"),
        (["--method", "mud+ckd", "--beta", 1], "--beta is no option of the method mud+ckd; those of mud are: --targets"),
        (["--method", "mud+ckd", "--set", "kd.alpha=1"], "--set kd.alpha=1: the method here is mud+ckd"),
        (["--method", "mud", "--set", "mud.targets"], "--set mud.targets=: expected METHOD.OPTION=VALUE"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message(
    words: list[Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hsk("distill", *words, "--write-recipe", tmp_path / "new.toml") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"hsk: {said}") and err.count("\n") == 1 and not (tmp_path / "new.toml").exists()


def test_for_keeps_what_each_of_several_methods_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text('method = "pkd+ckd"\nphases = "two"\nset = "pkd.patient_layers=last"\n')
    last = Pkd(patient_layers="last")
    assert methods_for(["mud+ckd", "kd"]) == [Mud(), Ckd(), Kd()]
    assert methods_for([str(tmp_path / "mine.toml")]) == [last, Ckd()]
    for action, more in (("soft", [Ksm()]), ("random-soft", [])):  # a selector looks at what ksm reads
        (tmp_path / "chosen.toml").write_text(f'method = "ckd"\nselect = "ckd.word_pair,prediction"\naction = "{action}"\n')
        assert methods_for([str(tmp_path / "chosen.toml")]) == [Ckd(), *more]
    for text in ("mud+", "mud+mudd"):
        with pytest.raises(OptionError, match=r"no method is called so \(mud, kd, "):
            methods_for([text])
    assert "--for mud+ckd --student-layers 3 --out DIR" in making(Several((Mud(), Ckd()), "joint"), 3, [])
    assert "--for recipe.toml --student-layers 3 --label COLUMN" in making(Several((last, Ckd())), 3, ["labels"])
    assert hsk("methods") == 0
    assert "--method mud+ckd learns by both in one run" in " ".join(capsys.readouterr().out.split())
