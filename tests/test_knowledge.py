"""What a store knows besides `hidden` becomes targets: of the student's layers, in its words; and what it lacks is said."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from hskstore.config import Keep, Strategy
from hskstore.errors import ModelError, StoreError
from hskstore.features import CLS, STATES, TeacherShape, Want
from hskstore.features.states import StateTargets
from hskstore.layers import LayerPair, teacher_layer
from hskstore.losses import Term, hidden_mse
from hskstore.methods import Phase
from hskstore.methods.batch import Batch
from hskstore.methods.projection import projected, projection_of
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import ModelShape
from hskstore.stage_one.extract import extract
from hskstore.stage_one.teacher import load_teacher
from hskstore.stage_two.distill import distill
from hskstore.stage_two.feed import InWindows
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.rows import bytes_per_row, rows_from_store
from hskstore.store import Store, open_store
from hskstore.text.tokenizers import tokenizer_from_files
from tests.conftest import make_bert, save_folder, write_tsv
from tests.test_offsets import byte_level


@dataclass(frozen=True)
class Alike:
    """[CLS] of every layer, and all tokens of the last one, are to be those of a teacher layer."""

    name: ClassVar[Any] = "alike"
    source: ClassVar[str] = "made up"

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        def guide(layer: int) -> int:
            return teacher_layer(layer, student_layers=student.layers, top_layer=teacher.layers)

        every = tuple(LayerPair(layer, guide(layer)) for layer in range(1, student.layers + 1))
        sees = Sight(hidden=frozenset(range(1, student.layers + 1)))
        weights = {"alike.cls": 1.0, "alike.states": 1.0}
        return (Phase("alike", weights, "linear", predicts=True, reads=(Want(CLS, every), Want(STATES, every[-1:])), sees=sees),)

    def aids(self, teacher: TeacherShape, student: ModelShape) -> nn.Module | None:
        return projection_of(teacher, student, student.layers, "shared")

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        first, every = phase.reads
        targets: StateTargets = batch[every]
        cls = torch.stack([projected(aids, seen.hidden[pair.student][:, :1], 0) for pair in first.pairs])
        (last,) = every.pairs
        states = projected(aids, targets.at_tokens(seen.hidden[last.student]), 0)[None]
        real = torch.ones(cls.shape[:3], dtype=torch.bool, device=cls.device)
        terms = {
            "alike.cls": hidden_mse(cls, batch[first].values.float()[:, :, None], token_kept=real),
            "alike.states": hidden_mse(states, targets.values.float(), token_kept=targets.is_real[None]),
        }
        return {name: term for name, term in terms.items() if name in phase.weights}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_tsv(folder / "train.tsv", 90, seed=1)
    write_tsv(folder / "dev.tsv", 20, seed=2)
    return str(folder)


def extracted(teacher: str, data: str, out: Path, layers: int = 2, **options: Any) -> Store:
    strategies = [Strategy(layers, values=options.pop("values", "f16"))]
    (made,) = extract(teacher, data, out=out, strategies=strategies, methods=[Alike()], task="sst2", keep_offsets=True, **options)
    return open_store(made.root)


@pytest.fixture(scope="module")
def store(teacher_folder: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Of layers 2 and 4 [CLS], of layer 4 all tokens, in float32."""
    return extracted(teacher_folder, data, tmp_path_factory.mktemp("stores"), values="f32")


def test_targets_are_what_the_living_teacher_says(store: Store, teacher_folder: str) -> None:
    teacher = load_teacher(teacher_folder, device=torch.device("cpu"))
    both = Want(CLS, (LayerPair(2, 4), LayerPair(1, 2)))
    upper, last = Want(CLS, (LayerPair(2, 4),)), Want(STATES, (LayerPair(2, 4),))
    rows = rows_from_store(store, "train", places={"cls": (0, 1), "states": (0,)})
    batch = rows.batch(np.array([3, 40, 7]), [both, upper, last])
    seen = teacher.forward(*batch.inputs, Sight(hidden=frozenset({2, 4})))
    assert batch[both].values.shape[0] == 2, "in the order of the pairs"
    for found, layer in ((batch[both].values[0], 4), (batch[both].values[1], 2), (batch[upper].values[0], 4)):
        torch.testing.assert_close(found, seen.hidden[layer][:, 0], rtol=0, atol=1e-4)
    assert torch.equal(batch[last].is_real, batch.attention_mask)
    real = batch.attention_mask[..., None]
    torch.testing.assert_close(batch[last].values[0], torch.where(real, seen.hidden[4], 0), rtol=0, atol=1e-4)


def test_layers_that_are_not_asked_for_are_not_held(store: Store) -> None:
    both, upper = (rows_from_store(store, "train", places={"cls": places}) for places in ((0, 1), (1,)))
    for name, array in upper.features["cls"].arrays.items():
        np.testing.assert_array_equal(array, both.features["cls"].arrays[name][:, 1:])
    one, two = (bytes_per_row(store, "train", {"cls": places}) for places in ((1,), (0, 1)))
    assert two - one == 4 * store.plan.teacher["hidden_size"] and not rows_from_store(store, "train").features


# --- in the student's words


def test_the_teachers_own_words_align_each_with_itself(store: Store) -> None:
    tokenizer = tokenizer_from_files(store.tokenizer_files())
    places: dict[str, tuple[int, ...]] = {"cls": (0,), "states": (0,)}
    stored, anew = (rows_from_store(store, "train", places=places, tokenizer=words) for words in (None, tokenizer))
    aligned = anew.features["states"].aligned
    assert aligned is not None and anew.features["cls"].aligned is stored.features["states"].aligned is None
    at = np.arange(aligned.shape[1])
    last = stored.n_tokens[:, None] - 1  # [SEP], which is no character of the text
    np.testing.assert_array_equal(aligned, np.where(at < last, at, np.where(at == last, -1, -2)))


def test_states_stand_at_the_students_tokens_of_the_same_characters(store: Store) -> None:
    tokenizer, want = byte_level(trim=True, size=330), Want(STATES, (LayerPair(2, 4),))
    places = {"states": (0,)}
    stored, rows = (rows_from_store(store, "train", places=places, tokenizer=words) for words in (None, tokenizer))
    chosen = np.array([3, 40, 7, 61])
    before, batch = stored.batch(chosen, [want])[want], rows.batch(chosen, [want])
    found = batch[want]
    assert 0.2 < found.is_real.sum() / before.is_real.sum() < 1
    at = torch.arange(batch.input_ids.shape[1], dtype=torch.float32).expand(len(chosen), -1)[..., None]
    position = found.at_tokens(at)[..., 0]
    utf8, n_bytes, offsets = (store.read_all(f"train/{name}") for name in ("text", "n_bytes", "offsets"))
    for index, token in found.is_real.nonzero().tolist():
        row = chosen[index]
        assert torch.equal(found.values[0, index, token], before.values[0, index, token])
        text = bytes(utf8[row, : n_bytes[row, 0]]).decode()
        start, end = tokenizer(text, return_offsets_mapping=True)["offset_mapping"][int(position[index, token])]
        assert text[start:end].strip() == (text[slice(*offsets[row, token])] if token else "")


def test_windows_align_as_the_whole_does(store: Store) -> None:
    reading: dict[str, Any] = {"places": {"states": (0,)}, "tokenizer": byte_level(trim=True, size=330), "max_length": 12}
    whole, source = rows_from_store(store, "train", **reading), InWindows(store, "train", reading)
    (window,) = source.windows(np.random.default_rng(0), 4)
    found, expected = (rows.features["states"].aligned for rows in (source.read(window), whole))
    assert found is not None and expected is not None and found.dtype == np.int32
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(expected, axis=0))


# --- a run


def learn(store: Store, student: str, out: Path) -> Any:
    recipe = Recipe(student, Alike(), max_steps=40, batch_size=(16,), lr=(3e-3,), precision="fp32")
    return distill(store, recipe, out=out)


@pytest.mark.parametrize("values", ["f16", "q8", "q4", "rq4"])
def test_a_student_learns_of_every_encoding(values: str, teacher_folder: str, data: str, tmp_path: Path) -> None:
    store = extracted(teacher_folder, data, tmp_path / "stores", values=values)
    student = save_folder(make_bert(layers=2, hidden=16, seed=1), tmp_path / "student")
    losses = learn(store, student, tmp_path / "run").phases[0].losses
    assert losses.keys() == {"alike.cls", "alike.states"} and all(0 < loss < 3 for loss in losses.values())
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"- kept of its cls: of layers 2, 4, {values}\n" in card and f"- kept of its states: of layers 4, {values}\n" in card


def test_a_student_of_other_words_is_told_what_it_can_learn(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = byte_level(trim=True, size=330)
    student = make_bert(layers=2, hidden=16, seed=1)
    student.resize_token_embeddings(len(tokenizer))
    folder = save_folder(student, tmp_path / "student", tokenizer)
    found = learn(store, folder, tmp_path / "run")
    assert all(np.isfinite(loss) for loss in found.phases[0].losses.values())
    rows = rows_from_store(store, "train", places={"states": (0,)}, tokenizer=tokenizer, max_length=64)
    aligned, tokens = rows.features["states"].aligned, int(store.read_all("train/n_tokens").sum())
    assert aligned is not None
    share = f"{100 * (aligned >= 0).sum() / tokens:.0f} % of the teacher's tokens are tokens of its own, whose"
    assert caplog.messages[-1].endswith(f"; {share} hidden states teach it")


def test_a_student_without_one_token_of_the_teachers_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from hskstore.stage_two import student as module

    tokenizer = byte_level(trim=True)
    rows = rows_from_store(store, "train", places={"states": (0,)}, tokenizer=tokenizer)
    nothing = replace(rows.features["states"], aligned=np.full((len(rows), 9), -1, np.int32))
    with pytest.raises(ModelError, match="not one token of the teacher is one of its own: choose --method kd"):
        module._tell_alignment(replace(rows, features={"states": nothing}), "it", tokenizer)


def test_a_depth_that_does_not_divide_the_teachers_is_told_once(
    teacher_folder: str, data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = extracted(teacher_folder, data, tmp_path / "stores", layers=3)
    student = save_folder(make_bert(layers=3, hidden=16, seed=1), tmp_path / "student")
    learn(store, student, tmp_path / "run")
    assert caplog.messages == [
        "a student of 3 layers and a teacher of 4: 3 does not divide 4; student layers 1, 2, 3 learn from teacher layers 1, 3, 4"
    ]


# --- what a store lacks


def test_what_a_store_lacks_is_said_with_the_command_that_makes_one(
    store: Store, teacher_folder: str, data: str, tmp_path: Path
) -> None:
    deep = save_folder(make_bert(layers=4, hidden=16, seed=1), tmp_path / "deep")
    with pytest.raises(StoreError) as refused:
        learn(store, deep, tmp_path / "run")
    assert str(refused.value) == (
        f"{store.root} holds no cls of teacher layers 1, 3, which the method alike reads:"
        " hsk extract TEACHER DATA --for alike --student-layers 4 --out DIR"
    )
    (made,) = extract(teacher_folder, data, out=tmp_path, keeps=[Keep(1, 3, 8)], strategies=[Strategy(2)], task="sst2")
    shallow = save_folder(make_bert(layers=1, hidden=16, seed=1), tmp_path / "shallow")
    with pytest.raises(StoreError, match="holds no states of teacher layer 4 and no cls of teacher layer 4, which"):
        learn(open_store(made.root), shallow, tmp_path / "run")
    with pytest.raises(StoreError, match=r"holds no hidden of teacher layer 3, which the method mud reads: .* --for mud"):
        distill(store, Recipe(shallow), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
