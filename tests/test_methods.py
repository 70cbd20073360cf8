"""What holds for every method, present and future: what it learns, from what, and how it goes on, is shared and refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hskstore.config import Keep, Strategy
from hskstore.errors import ModelError, OptionError, StoreError
from hskstore.features import TeacherShape
from hskstore.features.states import StateTargets
from hskstore.losses import (
    cosine_distance,
    layer_angle,
    layer_pair,
    logit_mse,
    normalised_mse,
    reverse_kl,
    score_mse,
    soft_cross_entropy,
    standardised,
    word_angle,
    word_pair,
)
from hskstore.methods import METHODS, Ckd, DistilBert, Kd, Method, Mud, Pkd, Selection, Several, Tkd, parts_of, weighed
from hskstore.methods.batch import Batch
from hskstore.methods.serving import teacher_shape
from hskstore.models.load import load_classifier
from hskstore.models.observe import Seen, observe, showing
from hskstore.models.run import ModelShape
from hskstore.models.widths import PruneTo
from hskstore.stage_one.extract import extract
from hskstore.stage_two.card import Distilled
from hskstore.stage_two.distill import distill
from hskstore.stage_two.recipe import Recipe, read_recipe
from hskstore.stage_two.rows import rows_from_store
from hskstore.stage_two.student import places_of
from hskstore.store import Store, open_store
from hskstore.watch import Watch, unwatched
from tests.conftest import WORDS, make_bert, save_folder, sentences
from tests.test_offsets import byte_level
from tests.test_processes import launch, way_moved
from tests.test_spans import conll, spans_folder

__all__ = ["conll", "spans_folder"]

OTHERS: list[Method] = [Pkd(patient_layers="last"), Tkd(tree="student+teacher", all_tokens=True)]
DEFAULTS: list[Method] = [kind() for kind in METHODS.values()]
ALONE = [*DEFAULTS, *OTHERS]
EVERY = [*ALONE, Several((Mud(), Ckd()))]
INSIDE = [method for method in EVERY if method.name not in ("kd", "finetune")]
ATTENTIVE = [method for method in EVERY if method.name in ("minilmv2", "minilm", "tinybert", "tkd")]
PROJECTED = [method for method in EVERY if hasattr(method, "projection")]
TASKS = ("classes", "scores")
LAYERS, WIDTH = 4, 32

by_name = pytest.mark.parametrize("method", EVERY, ids=lambda method: method.name)
each_alone = pytest.mark.parametrize("method", ALONE, ids=lambda method: method.name)
each_default = pytest.mark.parametrize("method", DEFAULTS, ids=lambda method: method.name)


def write_pairs(path: Path, task: str) -> str:
    """Rows of two texts, each with a class or a score."""
    pairs = zip(sentences(120, 1), sentences(120, 9), strict=True)
    label = {"classes": lambda text: int("cat" in text), "scores": lambda text: len(text.split()) / 3}[task]
    path.write_text("one,two,label\n" + "".join(f"{one},{two},{label(one)}\n" for one, two in pairs))
    return str(path)


@pytest.fixture(scope="module")
def place(spans_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of both tasks: a teacher without dropout, stores of all that any method reads for students of 2 and of 4 layers, in f32 and
    whole, and a narrower student of 2 layers."""
    place = tmp_path_factory.mktemp("methods")
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for task in TASKS:
        outputs = {"classes": 2, "scores": 1}[task]
        teacher = save_folder(make_bert(layers=LAYERS, hidden=WIDTH, labels=outputs, **still), place / task / "teacher")
        for depth in (2, LAYERS):
            extract(
                teacher,
                write_pairs(place / f"{task}.csv", task),
                out=place / task / str(depth),
                keeps=[Keep("all", "all", "all")],
                strategies=[Strategy(depth, top_layer=LAYERS, values="f32")],
                methods=[part for method in EVERY for part in parts_of(method)],
                text=["one", "two"],
                label="label",
                validation="0.2",
                max_length=64,
                spans=str(spans_folder),
                keep_offsets=depth == 2,
            )
        save_folder(make_bert(layers=2, hidden=16, labels=outputs, seed=1, **still), place / task / "student")
        (place / task / "teacher").rename(place / task / "away")
    return place


def store_of(place: Path, task: str = "classes", depth: int = 2) -> Store:
    (root,) = (place / task / str(depth)).iterdir()
    return open_store(root)


def learn(place: Path, method: Method, out: Path, *, task: str = "classes", watch: Any = unwatched, **options: Any) -> Distilled:
    if method.name == "ksm":
        options = {"selection": Selection(episodes=1, phase_steps=3)} | options
    recipe = Recipe(
        str(place / task / "student"),
        method,
        **{"max_steps": 8, "batch_size": (15,), "lr": (1e-3,), "precision": "fp32"} | options,
    )
    return distill(store_of(place, task), recipe, out=out, watch=watch)


@pytest.mark.parametrize("task", TASKS)
@by_name
def test_a_copy_of_the_teacher_has_nothing_to_learn_of_it(method: Method, task: str, place: Path) -> None:
    store = store_of(place, task, LAYERS)
    model, _ = load_classifier(str(place / task / "away"))
    shape = ModelShape("a copy", len(store.plan.teacher["labels"]), (LAYERS, WIDTH))
    teacher = teacher_shape(store.plan)
    phases = method.phases(teacher, shape)
    assert method.aids(teacher, shape) is None
    rows = rows_from_store(store, "train", places=places_of(store, phases))
    for phase in phases:
        batch = rows.batch(np.arange(24), phase.reads)
        with showing(model, phase.sees):
            seen = observe(model.eval(), *batch.inputs, phase.sees)
        terms = method(phase, seen, batch, None)
        assert terms.keys() == phase.weights.keys()
        for name, term in terms.items():
            model.zero_grad()
            term.value.backward(retain_graph=True)
            largest = max(float(each.grad.abs().max()) for each in model.parameters() if each.grad is not None)
            inner = "." in name
            assert name.partition(".")[0] in method.name.split("+") if inner else name in ("prediction", "gold")
            if inner:
                assert term.value.item() < 1e-6, name
            if name != "gold":
                assert largest < 1e-6, name


@pytest.mark.parametrize("task", TASKS)
@by_name
def test_it_runs_end_to_end_from_a_store_of_pairs_whose_teacher_is_gone(
    method: Method, task: str, place: Path, tmp_path: Path
) -> None:
    assert not (place / task / "teacher").exists()
    found = learn(place, method, tmp_path / "run", task=task)
    assert all(np.isfinite(value) for phase in found.phases for value in phase.losses.values())
    assert found.scores["validation"].rows == 24
    kept = set(load_file(tmp_path / "run" / "model.safetensors"))
    assert kept == set(load_file(place / task / "student" / "model.safetensors")), "what helped is dropped"
    card = (tmp_path / "run" / "README.md").read_text()
    assert all(f"- kept of its {name}: of layers" in card for name in ("states", "cls", "qkv", "attended", "pooled"))
    assert "- kept of its rows: spans, whose phrases were found by the chunker" in card


def stopping(method: Method) -> Watch:
    """Ctrl-C behind the second step of the first phase."""
    names = {phase.name for phase in method.phases(TeacherShape(LAYERS, WIDTH), ModelShape("it", 2, (2, 16)))}

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if stage in names and done == 15 * 2:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("method", [*DEFAULTS, EVERY[-1]], ids=lambda method: method.name)
def test_a_run_that_is_stopped_goes_on_bit_for_bit(method: Method, place: Path, tmp_path: Path) -> None:
    learn(place, method, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(place, method, tmp_path / "parts", watch=stopping(method))
    learn(place, method, tmp_path / "parts")
    assert len({(tmp_path / each / "model.safetensors").read_bytes() for each in ("whole", "parts")}) == 1


@pytest.fixture(scope="module")
def coded(place: Path, spans_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """All that any method reads for students of 2 layers, in codes, and in units of which several make a window."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hskstore.store.layout.unit_rows", lambda *_: 32)
        (made,) = extract(
            str(place / "classes" / "away"),
            str(place / "classes.csv"),
            out=tmp_path_factory.mktemp("coded"),
            keeps=[Keep("all", "all", "all")],
            strategies=[Strategy(2, top_layer=LAYERS, values="rq4")],
            methods=[part for method in EVERY for part in parts_of(method)],
            text=["one", "two"],
            label="label",
            validation="0.2",
            max_length=64,
            spans=str(spans_folder),
        )
    return open_store(made.root)


CODED = [(method, ("blocks", "ram")[number % 2]) for number, method in enumerate(each for each in DEFAULTS if each in INSIDE)]


@pytest.mark.parametrize(
    ("method", "loader"),
    [
        pytest.param(method, loader, id=f"{method.name}-{loader}", marks=() if number == 0 else pytest.mark.long)
        for number, (method, loader) in enumerate(CODED)
    ],
)
def test_it_learns_from_codes_and_goes_on_bit_for_bit(
    loader: Any, method: Method, place: Path, coded: Store, tmp_path: Path
) -> None:
    recipe = Recipe(
        str(place / "classes" / "student"),
        method,
        max_steps=6,
        batch_size=(15,),
        lr=(1e-3,),
        precision="fp32",
        loader=loader,
    )
    whole = distill(coded, recipe, out=tmp_path / "whole")
    losses = {name: value for phase in whole.phases for name, value in phase.losses.items()}
    assert any("." in name for name in losses) and all(np.isfinite(value) for value in losses.values())
    with pytest.raises(KeyboardInterrupt):
        distill(coded, recipe, out=tmp_path / "parts", watch=stopping(method))
    distill(coded, recipe, out=tmp_path / "parts")
    assert len({(tmp_path / each / "model.safetensors").read_bytes() for each in ("whole", "parts")}) == 1


PROGRAM = """
import sys
from pathlib import Path
from tests.test_methods import EVERY, learn

place, out = map(Path, sys.argv[1:])
for index, method in enumerate(EVERY):
    learn(place, method, out / str(index), batch_size=(19,))
"""


@pytest.mark.long
def test_two_processes_learn_what_one_learns(place: Path, tmp_path: Path) -> None:
    """Of 96 rows in batches of 19 the last one has a row for one of them alone."""
    (tmp_path / "program.py").write_text(PROGRAM)
    launch(tmp_path / "program.py", place, tmp_path / "two", of=2)
    start = load_file(place / "classes" / "student" / "model.safetensors")
    for index, method in enumerate(EVERY):
        learn(place, method, tmp_path / "one" / str(index), batch_size=(19,))
        one, two = (load_file(tmp_path / each / str(index) / "model.safetensors") for each in ("one", "two"))
        # A key's bias has no gradient but for rounding, which Adam blows up.
        moved = [{name: each[name] for name in each if not name.endswith("key.bias")} for each in (start, one, two)]
        assert way_moved(*moved) < 1e-3, method


@each_default
def test_a_student_can_get_narrower_while_it_learns(method: Method, place: Path, tmp_path: Path) -> None:
    """But in heads whose attention it learns, and where a selector learns from the whole student."""
    if method in ATTENTIVE:
        with pytest.raises(OptionError, match=rf"^--prune-to 2,32,all: the method {method.name} learns .* as all,32,all, or"):
            learn(place, method, tmp_path / "run", max_steps=24, prune_to=PruneTo(heads=2, ffn=32))
        learn(place, method, tmp_path / "run", max_steps=4, prune_to=PruneTo(ffn=32))
        assert set(json.loads((tmp_path / "run" / "config.json").read_text())["ffn_per_layer"]) == {32}
        return
    if method.name == "ksm":
        with pytest.raises(OptionError, match=r"^--prune-to 2,32,all: a selector learns from .* with --selector, or choose"):
            learn(place, method, tmp_path / "run", max_steps=24, prune_to=PruneTo(heads=2, ffn=32))
    drawn = {"selection": Selection(action="random-soft")} if method.name == "ksm" else {}
    found = learn(place, method, tmp_path / "run", max_steps=24, prune_to=PruneTo(heads=2, ffn=32), **drawn)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert set(config["heads_per_layer"]) == {2} and set(config["ffn_per_layer"]) == {32}
    assert found.scores["validation"].rows == 24


@pytest.mark.long
@each_default
def test_a_student_of_another_tokenizer_learns_where_its_tokens_are_the_teachers_or_is_refused(
    method: Method, place: Path, tmp_path: Path
) -> None:
    words = byte_level(trim=True, texts=(" ".join(WORDS[:12]),))  # the other words it cuts
    student = make_bert(layers=2, hidden=16, seed=1)
    student.resize_token_embeddings(len(words))
    recipe = Recipe(save_folder(student, tmp_path / "own", words), method, max_steps=2, batch_size=(15,), precision="fp32")
    if method.name in ("minilmv2", "minilm", "tinybert"):
        with pytest.raises(ModelError, match=rf"own has another tokenizer .* attention .* the method {method.name} learns"):
            distill(store_of(place), recipe, out=tmp_path / "run")
        return
    found = distill(store_of(place), recipe, out=tmp_path / "run")
    losses = {name: value for phase in found.phases for name, value in phase.losses.items()}
    assert all(np.isfinite(value) and value > 0 for value in losses.values()) and found.scores["validation"].rows == 24


class Shut(nn.Module):
    """A model that shows nothing of its inside."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(64, 2)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.words(input_ids)
        return found


@by_name
def test_a_module_that_shows_less_than_is_asked_is_refused_by_name(method: Method, place: Path, tmp_path: Path) -> None:
    recipe = Recipe(method=method, max_steps=4, batch_size=(15,), precision="fp32")
    if method in INSIDE:
        with pytest.raises(ModelError, match=r"^Shut gives no hidden states, which the method learns"):
            distill(store_of(place), recipe, out=tmp_path / "run", student=Shut())
        assert not (tmp_path / "run" / "model.safetensors").exists()
    else:
        distill(store_of(place), recipe, out=tmp_path / "run", student=Shut())


@by_name
def test_a_store_that_lacks_what_it_reads_is_refused_with_the_command_that_makes_another(
    method: Method, place: Path, tmp_path: Path
) -> None:
    from hskstore.store.derive import derive

    bare = derive(store_of(place).root, tmp_path / "bare").root
    recipe = Recipe(str(place / "classes" / "student"), method, max_steps=4, batch_size=(15,), precision="fp32")
    if method in INSIDE:
        named = "recipe.toml" if method in OTHERS else method.name
        with pytest.raises(StoreError) as refused:
            distill(bare, recipe, out=tmp_path / "run")
        assert f"{method.name} reads: hsk extract TEACHER DATA --for {named} --student-layers 2 " in str(refused.value)
    else:
        distill(bare, recipe, out=tmp_path / "run")


@each_alone
def test_another_width_goes_through_a_projection_shared_or_one_a_layer_if_there_is_one(method: Method) -> None:
    teacher, student = TeacherShape(12, 32), ModelShape("it", 2, (6, 16))
    assert (method in PROJECTED) == (method.name in ("mud", "pkd", "distilbert", "tinybert", "tkd", "mgskd", "ksm"))
    if method in PROJECTED:
        counts = {}
        for kind in ("shared", "per-layer"):
            aids = type(method)(projection=kind).aids(teacher, student)  # type: ignore[call-arg]
            assert aids is not None
            counts[kind] = sum(each.numel() for each in aids.parameters()) // (16 * 32 + 32)
        own = {pair.student for phase in method.phases(teacher, student) for want in phase.reads for pair in want.pairs}
        assert counts == {"shared": 1, "per-layer": len(own)}
    else:
        assert method.aids(teacher, student) is None


# --- kd


def predictions(outputs: int) -> tuple[Seen, Batch]:
    """What a student says of four rows, and what is known of them."""
    own, target = (torch.randn(4, outputs, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    nothing = torch.zeros(4, 1, dtype=torch.long)
    return Seen(own), Batch(nothing, nothing, nothing.bool(), None, target)


def prediction(method: Method, outputs: int) -> torch.Tensor:
    seen, batch = predictions(outputs)
    (phase,) = method.phases(TeacherShape(4, 8), ModelShape("it", outputs, (2, 8)))
    return method(phase, seen, batch, None)["prediction"].value


def test_each_divergence_is_its_loss_and_the_default_is_the_soft_cross_entropy() -> None:
    seen, batch = predictions(3)
    assert batch.teacher_logits is not None
    own, target = seen.logits, batch.teacher_logits
    assert Kd().divergence == "forward"
    expected = {
        Kd(temperature=2.0): soft_cross_entropy(own, target, temperature=2.0),
        Kd(temperature=2.0, divergence="reverse"): reverse_kl(own, target, temperature=2.0),
        Kd(divergence="mse"): logit_mse(own, target),
        Kd(temperature=2.0, divergence="standardised"): soft_cross_entropy(
            standardised(own), standardised(target), temperature=2.0
        ),
    }
    for method, term in expected.items():
        assert torch.equal(prediction(method, 3), term.value), method
    assert len({float(term.value) for term in expected.values()}) == 4


def test_a_score_is_learnt_by_its_squared_difference_alone() -> None:
    seen, batch = predictions(1)
    assert batch.teacher_logits is not None
    assert torch.equal(prediction(Kd(), 1), score_mse(seen.logits, batch.teacher_logits.squeeze(1)).value)
    for divergence in ("reverse", "mse", "standardised"):
        with pytest.raises(OptionError, match=rf"^--divergence {divergence} is of classes; a score is learnt by its squared"):
            prediction(Kd(divergence=divergence), 1)  # type: ignore[arg-type]


def test_two_standardised_logits_say_nothing_and_are_refused() -> None:
    with pytest.raises(OptionError, match=r"^--divergence standardised teaches nothing of 2 classes"):
        prediction(Kd(divergence="standardised"), 2)
    for divergence in ("reverse", "mse"):
        assert prediction(Kd(divergence=divergence), 2).isfinite()  # type: ignore[arg-type]


def test_a_squared_difference_has_no_temperature() -> None:
    with pytest.raises(OptionError, match=r"^--temperature 2: there is none with --divergence mse"):
        Kd(temperature=2.0, divergence="mse")
    with pytest.raises(OptionError, match=r"^--divergence backward: choose one of forward, reverse, mse, standardised"):
        Kd(divergence="backward")  # type: ignore[arg-type]


# --- pkd


@pytest.mark.parametrize(
    ("depth", "layers", "expected"),
    [
        (6, "skip", [2, 4, 6, 8, 10]),  # both of section 3.2 of the paper
        (6, "last", [7, 8, 9, 10, 11]),
        (3, "skip", [4, 8]),
        (3, "last", [10, 11]),
        (5, "skip", [2, 5, 7, 10]),  # 2.4, 4.8, 7.2, 9.6
    ],
)
def test_patient_layers_are_those_of_the_paper(depth: int, layers: Any, expected: list[int]) -> None:
    (phase,) = Pkd(patient_layers=layers).phases(TeacherShape(12, 8), ModelShape("it", 2, (depth, 8)))
    (want,) = phase.reads
    assert [pair.teacher for pair in want.pairs] == expected
    assert [pair.student for pair in want.pairs] == list(range(1, depth)) == sorted(phase.sees.hidden)


@pytest.mark.parametrize(("depth", "layers"), [(1, "skip"), (1, "last"), (13, "last")])
def test_a_student_without_layers_on_the_way_cannot_be_patient(depth: int, layers: Any) -> None:
    with pytest.raises(OptionError, match=rf"^the method pkd teaches layers below the student's last, .* of {depth} layers"):
        Pkd(patient_layers=layers).phases(TeacherShape(12, 8), ModelShape("it", 2, (depth, 8)))


def test_what_pkd_weighs_is_of_its_options_and_what_weighs_nothing_is_not_asked() -> None:
    teacher, student = TeacherShape(12, 8), ModelShape("it", 2, (3, 8))
    (phase,) = Pkd(alpha=0.25, beta=7).phases(teacher, student)
    assert phase.weights == {"pkd.cls": 7, "prediction": 0.75, "gold": 0.25} and phase.reads_labels
    (phase,) = Pkd(alpha=0).phases(teacher, student)
    assert phase.weights.keys() == {"pkd.cls", "prediction"} and not phase.reads_labels


@pytest.mark.parametrize("options", [{"beta": -1}, {"beta": float("inf")}, {"alpha": 1.5}, {"temperature": 0}])
def test_options_of_pkd_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=f"--{next(iter(options))}"):
        Pkd(**options)  # type: ignore[arg-type]


def test_normalised_mse_by_hand() -> None:
    """(3, 4) is (0.6, 0.8) and (0, 2) is (0, 1): 0.36 + 0.04; the same direction is nothing, the opposite one 4."""
    student = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[2.0, 0.0], [0.0, 1.0]]])
    teacher = torch.tensor([[[0.0, 2.0], [5.0, 0.0]], [[-1.0, 0.0], [0.0, 3.0]]])
    term = normalised_mse(student, teacher)
    assert term.total.tolist() == pytest.approx([0.4, 4.0]) and term.count.tolist() == [4, 4]
    assert float(term.value) == pytest.approx(0.1 + 1.0)


# --- distilbert


def test_cosine_distance_by_hand() -> None:
    """Of the same direction 0, a right angle 1, the opposite 2; what is no real token counts nowhere."""
    student = torch.tensor([[[[1.0, 0.0], [1.0, 0.0], [9.0, 9.0]], [[0.0, 2.0], [3.0, 4.0], [7.0, 0.0]]]])
    teacher = torch.tensor([[[[4.0, 0.0], [0.0, 1.0], [float("nan"), 0.0]], [[0.0, -1.0], [4.0, 3.0], [0.0, 7.0]]]])
    is_real = torch.tensor([[True, True, False], [True, True, False]])
    term = cosine_distance(student, teacher, is_real=is_real)
    assert term.total.tolist() == pytest.approx([0 + 1 + 2 + 1 - 24 / 25]) and term.count.tolist() == [4]


def test_distilbert_learns_the_last_states_and_both_labels() -> None:
    (phase,) = DistilBert().phases(TeacherShape(12, 8), ModelShape("it", 2, (5, 8)))
    (want,) = phase.reads
    assert [(pair.student, pair.teacher) for pair in want.pairs] == [(5, 12)]
    assert phase.weights == {"distilbert.cosine": 1, "prediction": 5, "gold": 2} and phase.reads_labels


# --- ckd


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        (12, 6, [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]),  # of the public code's table
        (12, 4, [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]),
        (12, 8, [(0, 0), (2, 3), (4, 6), (6, 9), (8, 12)]),
        (12, 5, [(0, 0), (5, 12)]),
        (4, 6, [(0, 0), (3, 2), (6, 4)]),
    ],
)
def test_layers_are_aligned_in_steps_of_their_common_divisor(teacher: int, student: int, expected: list[tuple[int, int]]) -> None:
    (phase,) = Ckd().phases(TeacherShape(teacher, 32), ModelShape("it", 2, (student, 16)))
    (want,) = phase.reads
    assert [(pair.student, pair.teacher) for pair in want.pairs] == expected
    assert sorted(phase.sees.hidden) == [own for own, _ in expected]


def test_what_ckd_weighs_is_of_its_options() -> None:
    teacher, student = TeacherShape(12, 8), ModelShape("it", 2, (3, 8))
    (phase,) = Ckd().phases(teacher, student)
    relations = {"ckd.word_pair": 1, "ckd.word_angle": 1, "ckd.layer_pair": 1, "ckd.layer_angle": 1}
    assert phase.weights == relations | {"prediction": 0.8, "gold": 0.2} and phase.reads_labels and phase.predicts
    (phase,) = Ckd(alpha=0).phases(teacher, student)
    assert phase.weights == relations | {"prediction": 1} and not phase.reads_labels
    assert Ckd().aids(teacher, ModelShape("another", 2, (3, 5))) is None


@pytest.mark.parametrize(
    "options",
    [
        {"delta": 0},
        {"delta": 2.5},
        {"pair": "cos"},
        {"pair_window": "some"},
        {"edges": "round"},
        {"divisor": "all"},
        {"alpha": 2},
        {"temperature": 0},
    ],
)
def test_options_of_ckd_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"--{next(iter(options)).replace('_', '-')}"):
        Ckd(**options)


@pytest.mark.parametrize("of_another_tokenizer", [False, True])
@pytest.mark.parametrize(
    "method", [Ckd(), Ckd(pair="l2", delta=1), Ckd(pair_window="none", edges="clamped", divisor="code", delta=2)]
)
def test_ckds_terms_are_its_losses_with_its_options_at_the_teachers_tokens(method: Ckd, of_another_tokenizer: bool) -> None:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))

    (phase,) = method.phases(TeacherShape(4, 5), ModelShape("it", 2, (2, 3)))
    (want,) = phase.reads
    own, target = {pair.student: normal(4, 6, 3) + pair.student * normal(4, 6, 1) for pair in want.pairs}, normal(3, 4, 6, 5)
    is_real = torch.arange(6) < torch.tensor([6, 4, 2, 1])[:, None]
    position, placed = None, torch.stack(list(own.values()))
    if of_another_tokenizer:
        position, is_real = torch.tensor([0, 2, 1, 0, 4, 3]).expand(4, -1), is_real & torch.tensor([1, 1, 1, 0, 1, 1]).bool()
        placed = placed[:, :, [0, 2, 1, 0, 4, 3]]
    seen, batch = predictions(2)
    batch = dataclasses.replace(
        batch, label=torch.tensor([0, 1, 0, 1]), knowledge={want: StateTargets(target, is_real, position)}
    )
    terms = method(phase, dataclasses.replace(seen, hidden=own), batch, None)
    near, shared = method.delta if method.pair_window == "delta" else None, {"is_real": is_real, "divisor": method.divisor}
    expected = {
        "ckd.word_pair": word_pair(placed, target, relation=method.pair, delta=near, **shared),
        "ckd.word_angle": word_angle(placed, target, delta=method.delta, edges=method.edges, **shared),
        "ckd.layer_pair": layer_pair(placed, target, relation=method.pair, **shared),
        "ckd.layer_angle": layer_angle(placed, target, **shared),
    }
    assert terms.keys() == phase.weights.keys() == {*expected, "prediction", "gold"}
    for name, term in expected.items():
        assert torch.equal(terms[name].value, term.value) and float(term.value) > 0, name
    only = dataclasses.replace(phase, weights={"ckd.layer_angle": 1.0, "prediction": 1.0})
    assert method(only, dataclasses.replace(seen, hidden=own), batch, None).keys() == only.weights.keys()


# --- all of them


RECIPES = sorted((Path(__file__).resolve().parents[1] / "pipelines" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_beside_the_library_can_be_read_and_weighs_terms_that_there_are(path: Path) -> None:
    recipe = Recipe.of(read_recipe(path))
    phases = recipe.method.phases(TeacherShape(12, 768), ModelShape("it", 3, (4, 512)))
    assert weighed(phases, recipe.weight, recipe.method.name)


def test_the_ablation_of_ckd_leaves_out_what_the_papers_table_4_does() -> None:
    found = {}
    for path in (path for path in RECIPES if path.stem.startswith("ckd")):
        recipe = Recipe.of(read_recipe(path))
        phases = recipe.method.phases(TeacherShape(12, 768), ModelShape("it", 2, (4, 512)))
        (phase,) = weighed(phases, recipe.weight, recipe.method.name)
        found[path.stem] = dict(phase.weights)
    words, layers = ({f"ckd.{of}_pair": 10, f"ckd.{of}_angle": 100} for of in ("word", "layer"))
    predictions = {"prediction": 0.8, "gold": 0.2}
    assert found["ckd"] == words | layers | predictions
    assert found["ckd-without-wr"] == layers | predictions
    assert found["ckd-without-ltr"] == words | predictions
    assert found["ckd-without-both"] == predictions


@pytest.mark.parametrize(
    ("row", "changed"),
    [
        ("ckd-delta-3", {"delta": 3}),
        ("mgskd-heads-16", {"relation_heads": 16}),
        ("mgskd-k-10", {"vertices": 10, "neighbours": 10}),
        ("mgskd-boundary-3", {"boundary": 3}),
        ("tkd-all", {"all_tokens": True, "weight": "tkd.tree=100,tkd.cls=1000,tkd.all=1000"}),
    ],
)
def test_one_row_of_a_papers_table_differs_from_the_methods_recipe_in_what_it_is_named_for(
    row: str, changed: dict[str, object]
) -> None:
    found = {path.stem: read_recipe(path) for path in RECIPES}
    assert found[row] == found[row.partition("-")[0]] | changed


def test_mud_asks_for_its_own_configuration_where_nothing_is_stored_yet() -> None:
    phase, _ = Mud().phases(TeacherShape(12, 8), ModelShape("it", 2, (6, 8)))
    (want,) = phase.reads
    assert [(pair.student, pair.teacher) for pair in want.pairs] == [(6, 10)]


def test_every_method_says_what_it_is_and_where_it_comes_from() -> None:
    for name, kind in METHODS.items():
        assert kind.name == name and kind.source and kind.__doc__


def test_a_store_of_everything_is_read_by_all(place: Path) -> None:
    assert store_of(place).plan.features.keys() == {"hidden", "states", "cls", "qkv", "attended", "pooled", "spans"}
    assert Path(store_of(place).root).name == "+".join(sorted(METHODS))
