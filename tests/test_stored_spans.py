"""The feature `spans`, from the text to a batch: planned, extracted, shown, cut, replayed, checked and read."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from hskstore.config import Keep, Strategy
from hskstore.errors import OptionError, StoreError
from hskstore.features import POOLED, SPANS, STATES, TeacherShape, Want, check_spans, mean_of_tokens
from hskstore.layers import LayerPair
from hskstore.losses import Term
from hskstore.methods.batch import Batch
from hskstore.methods.contract import Phase
from hskstore.methods.serving import lacking, making
from hskstore.models.observe import Seen, Sight
from hskstore.models.run import ModelShape
from hskstore.stage_one.extract import extract
from hskstore.stage_one.forecast import forecast
from hskstore.stage_one.replay import replay
from hskstore.stage_two.distill import distill
from hskstore.stage_two.feed import InMemory, InWindows
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.rows import rows_from_store
from hskstore.stage_two.student import places_of
from hskstore.store import open_store
from hskstore.store.copy import copy_store
from hskstore.store.derive import derive
from hskstore.store.features import Spans
from hskstore.store.verify import verify
from hskstore.text.chunker import load_chunker
from hskstore.text.tokenise import tokenise
from tests.conftest import hsk, make_bert, save_folder, sealed_tree, write_tsv
from tests.test_features import Asks, small_units, want
from tests.test_forecast import real_sizes
from tests.test_offsets import byte_level
from tests.test_replay import reseal
from tests.test_spans import conll, spans_folder, spans_of

__all__ = ["conll", "spans_folder"]
SPANNED = {"states": (0, 2), "spans": ()}
ROWS = 150


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_tsv(folder / "train.tsv", ROWS - 2, seed=1)
    with (folder / "train.tsv").open("a") as file:
        file.write("quickly\t1\ncat\t0\n")
    write_tsv(folder / "dev.tsv", 20, seed=2)
    return str(folder)


def make(teacher: str, data: str, out: Path, spans: Path | None, layers: Any = SPANNED, **options: Any) -> Path:
    options = {"keeps": [], "task": "sst2", "batch_tokens": 256, "device": "cpu"} | options
    named = {} if spans is None else {"spans": str(spans)}
    (made,) = extract(teacher, data, out=out, strategies=[Strategy(2)], methods=[Asks(layers)], **options, **named)
    return Path(made.root)


@pytest.fixture(scope="module")
def made(teacher_folder: str, data: str, spans_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of states and spans in three units."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hskstore.store.layout.unit_rows", small_units)
        return make(teacher_folder, data, tmp_path_factory.mktemp("made"), spans_folder)


@pytest.fixture(scope="module")
def one_unit(teacher_folder: str, data: str, spans_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in one unit, with its text."""
    return make(teacher_folder, data, tmp_path_factory.mktemp("one"), spans_folder, keep_offsets=True)


@pytest.fixture
def many_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hskstore.store.layout.unit_rows", small_units)


def found_in(data: str, spans: Path, order: np.ndarray) -> list[list[tuple[int, int]]]:
    """The spans of the train rows in an order."""
    from hskstore.text.dataset import read_dataset
    from tests.conftest import make_tokenizer

    train = read_dataset(data, task="sst2").splits["train"]
    return spans_of(tokenise(train, make_tokenizer(), 64, chunker=load_chunker(spans)).take(order))


def test_a_store_has_the_spans_of_each_row_and_names_the_chunker(made: Path, data: str, spans_folder: Path) -> None:
    store = open_store(made)
    expected = found_in(data, spans_folder, store.read_all("train/row_id"))
    tokens, n_spans = store.read_all("train/spans/tokens"), store.read_all("train/spans/n_spans")
    assert n_spans.tolist() == list(map(len, expected)) and 0 in n_spans and 1 in n_spans
    for own, spans in zip(tokens.tolist(), expected, strict=True):
        assert [tuple(span) for span in own[: len(spans)]] == spans and not np.any(own[len(spans) :])
    most = max(map(len, expected))
    feature = store.plan.features["spans"]
    assert feature == Spans(most, load_chunker(spans_folder).sha256) and tokens.shape == (ROWS, most, 2)
    assert store.plan.as_json()["features"]["spans"] == {"most": most, "sha256": load_chunker(spans_folder).sha256}
    assert not [path for path in store.plan.arrays if path.startswith("validation/spans")]
    assert store.plan.splits["train"].units == 3 and not verify(str(made), deep=True).problems
    own = store.row("train", 3)
    assert own["spans/n_spans"] == n_spans[3] and own["spans/tokens"].dtype == np.int32


def test_rows_and_what_the_teacher_says_of_them_are_the_same_with_spans_and_without(
    made: Path, teacher_folder: str, data: str, tmp_path: Path, many_units: None
) -> None:
    plain = make(teacher_folder, data, tmp_path, None, {"states": (0, 2)})
    with_spans, without = open_store(made), open_store(plain)
    assert with_spans.plan.splits == without.plan.splits
    np.testing.assert_array_equal(with_spans.read_all("train/states/values"), without.read_all("train/states/values"))
    derived = derive(made, tmp_path / "cut", layers={"states": (0, 2)})
    assert derived.digest == without.digest and sealed_tree(tmp_path / "cut") == sealed_tree(plain)


def test_a_cut_keeps_the_spans_that_are_asked_for(
    made: Path, teacher_folder: str, data: str, spans_folder: Path, tmp_path: Path, many_units: None
) -> None:
    direct = make(teacher_folder, data, tmp_path / "direct", spans_folder, {"states": (2,), "spans": ()})
    cut = derive(made, tmp_path / "cut", layers={"states": (2,), "spans": ()})
    assert cut.digest == open_store(direct).digest and sealed_tree(tmp_path / "cut") == sealed_tree(direct)
    copied = copy_store(str(made), str(tmp_path / "copy"))
    assert copied.digest == open_store(made).digest
    plain = derive(made, tmp_path / "plain", layers={"states": (0,)})
    with pytest.raises(OptionError, match="holds no spans: they cannot be cut from it"):
        derive(plain.root, tmp_path / "none", layers={"spans": ()})
    with pytest.raises(OptionError, match="holds no spans of teacher layers 1: they cannot be cut from it"):
        derive(made, tmp_path / "none", layers={"spans": (1,)})


@pytest.mark.long
def test_every_engine_makes_the_same_store(
    made: Path, teacher_folder: str, data: str, spans_folder: Path, tmp_path: Path
) -> None:
    alone = make(teacher_folder, data, tmp_path / "alone", spans_folder)
    together = make(teacher_folder, data, tmp_path / "together", spans_folder, engine="procs", workers=2)
    assert sealed_tree(alone) == sealed_tree(together)


def test_with_hidden_states_they_lie_in_a_store_of_version_1(
    teacher_folder: str, data: str, spans_folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"strategies": [Strategy(2)], "task": "sst2", "device": "cpu", "spans": str(spans_folder)}
    found = extract(teacher_folder, data, out=tmp_path, keeps=[Keep(1, 4, 0.25), Keep(2, 2, 0.5)], rich=True, **options)
    assert [store.root.rpartition("/")[2] for store in found] == ["rich", "d1-l4-w0.25", "d2-l2-w0.5"]
    for store in found:
        plan = open_store(store.root).plan
        assert "spans" in plan.features and plan.version == (2 if store.root.endswith("rich") else 1)
        assert store.replayed is not None and store.replayed.equal == store.replayed.rows and not store.replayed.differing


def test_spans_are_no_word_of_the_teacher_and_a_replay_passes_over_them(
    made: Path, teacher_folder: str, data: str, spans_folder: Path, tmp_path: Path
) -> None:
    found = replay(str(made), teacher_folder, rows=10**6)
    assert (found.rows, found.equal, found.differing) == (ROWS, ROWS, ())
    assert found.differences.keys() == found.tolerances.keys() == {"logits", "states"}


def test_the_plan_counts_their_bytes(teacher_folder: str, data: str, spans_folder: Path, one_unit: Path) -> None:
    options: dict[str, Any] = {"strategies": [Strategy(2)], "methods": [Asks(SPANNED)], "task": "sst2", "device": "cpu"}
    (told,) = forecast(teacher_folder, data, rate=100, spans=str(spans_folder), keep_offsets=True, **options).stores
    store, sizes = open_store(one_unit), real_sizes(str(one_unit))
    assert told.arrays.keys() == store.plan.arrays.keys() and told.teacher_layers == {"states": [0, 2], "spans": []}
    for path in ("train/spans/tokens", "train/spans/n_spans"):
        assert told.arrays[path].measured and told.arrays[path].decoded == store.read_all(path).nbytes
        assert told.arrays[path].on_disk == sizes[path]


def test_show_plan_and_extract_say_what_there_is(
    made: Path, teacher_folder: str, data: str, spans_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n_spans = open_store(made).read_all("train/spans/n_spans")
    assert hsk("show", made) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"spans: {n_spans.mean():.2f}".rstrip("0") in told and f"{n_spans.max()} at most; " in told
    assert f"phrases by the chunker {load_chunker(spans_folder).sha256[:16]}" in told
    assert hsk("show", made, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["spans"]["without"] == pytest.approx((n_spans == 0).mean(), abs=1e-4) and shown["features"].keys() == {"states"}
    extracting = [teacher_folder, data, "--task", "sst2", "--for", "distilbert", "--student-layers", 2, "--spans", spans_folder]
    assert hsk("plan", *extracting, "--rate", 100) == 0
    assert "train/spans/tokens" in capsys.readouterr().out
    assert hsk("extract", *extracting, "--out", tmp_path / "stores") == 0
    assert f"spans: {n_spans.max()} of a row at most" in " ".join(capsys.readouterr().err.split())
    assert "spans" in open_store(tmp_path / "stores" / "distilbert").plan.features
    assert hsk("extract", *extracting[:-1], tmp_path, "--out", tmp_path / "others") == 2
    assert "name a folder of hsk spans train" in capsys.readouterr().err and not (tmp_path / "others").exists()


def test_a_method_that_reads_spans_is_refused_without_them(made: Path, teacher_folder: str, data: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--for it reads spans: name with --spans a folder of hsk spans train"):
        make(teacher_folder, data, tmp_path, None)
    phases = Asks(SPANNED).phases(None, None)
    plan = open_store(made).plan
    assert lacking(plan, phases) == []
    without = derive(made, tmp_path / "cut", layers={"states": (0,)})
    lacks = lacking(open_store(without.root).plan, phases)
    assert lacks == ["states of teacher layer 2", "spans"]
    from hskstore.methods import METHODS

    assert making(METHODS["kd"](), 2, lacks) == "hsk extract TEACHER DATA --for kd --student-layers 2 --spans SPANS --out DIR"


# --- to the student


def test_a_batch_has_the_spans_of_its_rows(made: Path, data: str, spans_folder: Path) -> None:
    store = open_store(made)
    every = found_in(data, spans_folder, store.read_all("train/row_id"))
    reads = Want(SPANS, ()), want("states", 2)
    places = places_of(store, [Phase("it", {}, "linear", predicts=True, reads=reads)])
    assert places == {"spans": (), "states": (1,)}
    rows = rows_from_store(store, "train", places=places)
    few = [row for row, spans in enumerate(every) if len(spans) < 2]
    for chosen in ([5, 2, 77], [*few[:1], 9], few[:1], [row for row in few if not every[row]][:1]):
        batch = rows.batch(np.array(chosen), reads)
        found = batch[reads[0]]
        most = max(len(every[row]) for row in chosen)
        assert found.start.shape == found.end.shape == found.is_span.shape == (len(chosen), most)
        for place, row in enumerate(chosen):
            own = torch.stack([found.start[place], found.end[place]], dim=1)
            assert own[found.is_span[place]].tolist() == [list(span) for span in every[row]]
            assert not own[~found.is_span[place]].any()
        assert batch.to("cpu")[reads[0]].start.equal(found.start)
        emptied = batch.emptied()[reads[0]]
        assert len(emptied.start) == len(emptied.end) == len(emptied.is_span) == 0
        assert batch[reads[1]].values.shape[0] == 1


def test_windows_of_a_store_know_the_spans_that_all_of_it_in_memory_knows(made: Path) -> None:
    store, reads = open_store(made), (Want(SPANS, ()),)
    reading: dict[str, Any] = {"places": {"spans": ()}}
    ram = InMemory(rows_from_store(store, "train", **reading))
    (whole,) = ram.windows(np.random.default_rng(0), 4)
    every, source = ram.read(whole), InWindows(store, "train", reading)
    for window in source.windows(np.random.default_rng(0), 4):
        numbers = np.concatenate([np.arange(ROWS)[64 * unit : 64 * (unit + 1)] for unit in window.units])
        ours = source.read(window).batch(np.arange(len(numbers)), reads)[reads[0]]
        theirs = every.batch(numbers, reads)[reads[0]]
        for name, tensor in vars(theirs).items():
            assert tensor.equal(vars(ours)[name])


def test_for_a_student_with_another_tokenizer_spans_stand_where_the_teachers_tokens_do(one_unit: Path) -> None:
    store = open_store(one_unit)
    places: dict[str, tuple[int, ...]] = {"spans": (), "states": (0,)}
    anew = rows_from_store(store, "train", places=places, tokenizer=byte_level(trim=True), max_length=12)
    own = rows_from_store(store, "train", places=places)
    key = Want(SPANS, ())
    chosen = np.arange(40)
    for name, tensor in vars(own.batch(chosen, [key])[key]).items():
        assert tensor.equal(vars(anew.batch(chosen, [key])[key])[name])


def beyond(columns: dict[str, np.ndarray]) -> None:
    row = int(columns["train/spans/n_spans"].argmax())
    columns["train/spans/tokens"][row, 0, 1] = columns["train/n_tokens"][row] + 1


def backwards(columns: dict[str, np.ndarray]) -> None:
    row = int(columns["train/spans/n_spans"].argmax())
    columns["train/spans/tokens"][row, 0] = [2, 2]


def too_many(columns: dict[str, np.ndarray]) -> None:
    columns["train/spans/n_spans"][3] = 10**6


@pytest.mark.parametrize("change", [beyond, backwards, too_many])
def test_spans_that_are_none_of_their_rows_tokens_are_refused_however_well_the_store_is_sealed(
    change: Callable[[dict[str, np.ndarray]], None], one_unit: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(one_unit, tmp_path / "own"))
    reseal(own, change)
    with pytest.raises(StoreError, match="a span is none of its row's tokens: the store is damaged"):
        rows_from_store(open_store(own), "train", places={"spans": ()})
    rows_from_store(open_store(own), "train", places={"states": (0,)})


def test_a_row_without_spans_is_whole() -> None:
    check_spans(np.zeros((2, 1, 2), np.int32), np.array([0, 0], np.int32), np.array([2, 3], np.int32), "it")


@pytest.mark.parametrize("damage", [{"most": 0}, {"most": 1.0}, {"sha256": "ab"}, {"sha256": None}, {"sha256": "A" * 64}])
def test_a_plan_whose_spans_are_of_no_number_or_chunker_is_none(damage: dict[str, Any], made: Path) -> None:
    from hskstore.store.plan import Plan
    from hskstore.store.schema import canonical_json

    document = open_store(made).plan.as_json()
    assert Plan.from_bytes(canonical_json(document), "it").features["spans"] == open_store(made).plan.features["spans"]
    document["features"]["spans"] |= damage
    with pytest.raises(StoreError, match="cannot be read as a plan"):
        Plan.from_bytes(canonical_json(document), "it")


def test_spans_are_of_no_layer() -> None:
    feature = Spans(3, "0" * 64)
    assert feature.places(()) == () and feature.layers == ()
    with pytest.raises(KeyError):
        feature.places([LayerPair(1, 2)])


# --- a run


@dataclass(frozen=True)
class Spanned:
    """The mean of every span's tokens, and of the row's, are to be those of teacher layers."""

    name: ClassVar[Any] = "spanned"
    source: ClassVar[str] = "made up"

    def phases(self, teacher: TeacherShape, student: ModelShape) -> tuple[Phase, ...]:
        reads = (Want(SPANS, ()), Want(STATES, (LayerPair(1, 2),)), Want(POOLED, (LayerPair(2, 4),)))
        weights = {"spanned.span": 1.0, "spanned.row": 1.0}
        return (Phase("spanned", weights, "linear", predicts=True, reads=reads, sees=Sight(hidden=frozenset({1, 2}))),)

    def aids(self, teacher: TeacherShape, student: ModelShape) -> nn.Module | None:
        return None

    def __call__(self, phase: Phase, seen: Seen, batch: Batch, aids: nn.Module | None) -> dict[str, Term]:
        spans, states, pooled = (batch[want] for want in phase.reads)
        place = torch.arange(states.values.shape[2])
        inside = (spans.start[..., None] <= place) & (place < spans.end[..., None])
        weight = inside / inside.sum(dim=-1, keepdim=True).clamp(min=1)
        away = ((weight @ (states.values[0].float() - seen.hidden[1])) ** 2).mean(dim=-1)
        rows = ((pooled.values[0].float() - mean_of_tokens(seen.hidden[2], batch.attention_mask)) ** 2).mean(dim=-1)
        return {
            "spanned.span": Term(torch.where(spans.is_span, away, 0).sum(), spans.is_span.sum()),
            "spanned.row": Term(rows.sum(), torch.tensor(len(rows))),
        }


@pytest.mark.long
def test_a_method_learns_from_spans_and_means_of_rows(teacher_folder: str, data: str, spans_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"task": "sst2", "device": "cpu", "strategies": [Strategy(2)], "methods": [Spanned()]}
    (made,) = extract(teacher_folder, data, out=tmp_path / "stores", spans=str(spans_folder), **options)
    store = open_store(made.root)
    assert list(store.plan.features) == ["states", "pooled", "spans"]
    student = save_folder(make_bert(layers=2, seed=1), tmp_path / "student")
    recipe = Recipe(student, Spanned(), max_steps=60, batch_size=(16,), lr=(3e-3,), precision="fp32")
    losses = [
        distill(store, replace(recipe, max_steps=steps), out=tmp_path / f"run{steps}").phases[0].losses for steps in (5, 60)
    ]
    assert losses[0].keys() == {"spanned.span", "spanned.row"}
    assert all(0 < losses[1][name] < 0.7 * losses[0][name] for name in losses[0])
    cut = derive(store.root, tmp_path / "cut", layers={"states": (2,), "pooled": (4,)})
    with pytest.raises(
        StoreError, match=r"holds no spans, which the method spanned reads: hsk extract .* --spans SPANS --out DIR"
    ):
        distill(open_store(cut.root), recipe, out=tmp_path / "none")
