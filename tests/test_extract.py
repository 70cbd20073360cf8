"""One pass of the teacher makes every store asked for; what was finished survives; nothing else is believed."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hskstore.config import Keep, Strategy
from hskstore.errors import DataError, HskError, ModelError, OptionError, PlanError
from hskstore.models.observe import Sight
from hskstore.stage_one import facts
from hskstore.stage_one.extract import ExtractedStore, extract
from hskstore.stage_one.forecast import forecast
from hskstore.stage_one.teacher import Teacher, load_teacher
from hskstore.stage_one.teacher_pass import length_batches
from hskstore.stage_one.worker import UnitWorker
from hskstore.store import Store, open_store
from hskstore.text.dataset import read_dataset
from hskstore.text.tokenise import tokenise
from tests.conftest import make_bert, save_folder, sealed_tree, write_tsv

SEPARATOR = 3


def run(
    teacher: str, data: str, out: Path, *keeps: str, strategy: Strategy | None = None, **options: Any
) -> list[ExtractedStore]:
    strategies = [strategy or Strategy(2)]
    return extract(
        teacher, data, out=out, keeps=[Keep.parse(keep) for keep in keeps], strategies=strategies, task="sst2", **options
    )


@pytest.fixture(scope="module")
def everything(teacher_folder: str, data_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """All layers, tokens and units of the tiny set, exact."""
    out = tmp_path_factory.mktemp("stores")
    run(teacher_folder, data_folder, out, "all", strategy=Strategy(2, rank="attention-with-sep", values="f32"))
    return open_store(out / "dall-lall-wall")


def test_every_row_of_the_data_is_stored_once_with_its_tokens_and_label(everything: Store, data_folder: str) -> None:
    dataset = read_dataset(data_folder, task="sst2")
    teacher = load_teacher_of(everything)
    for split in ("train", "validation"):
        rows = tokenise(dataset.splits[split], teacher, 64)
        row_id = everything.read_all(f"{split}/row_id")
        assert sorted(row_id) == list(range(len(rows)))
        stored = rows.take(row_id)
        ids = everything.read_all(f"{split}/input_ids")
        np.testing.assert_array_equal(everything.read_all(f"{split}/n_tokens"), stored.n_tokens)
        np.testing.assert_array_equal(everything.read_all(f"{split}/label"), stored.label)
        np.testing.assert_array_equal(ids, stored.padded(0)[0])


def load_teacher_of(store: Store) -> Any:
    from hskstore.text.tokenizers import tokenizer_from_files

    return tokenizer_from_files(store.tokenizer_files())


def test_what_is_stored_is_what_the_teacher_says_of_each_row_alone(everything: Store, teacher_folder: str) -> None:
    teacher = load_teacher(teacher_folder, device=torch.device("cpu"))
    assert [pair.teacher for pair in everything.plan.hidden.pairs] == [0, 2, 3]  # L = 4, L_top = 3, L' = 2: 3/2 rounds to 2
    for index in (0, 13, 699):
        row = everything.row("train", index)
        n_tokens = int(row["n_tokens"])
        ids = torch.from_numpy(row["input_ids"][:n_tokens].astype(np.int64))[None]
        every = Sight(frozenset(range(5)))
        features = teacher.forward(ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool), every)
        np.testing.assert_allclose(row["logits"], features.logits[0].numpy(), atol=1e-4)
        for place, pair in enumerate(everything.plan.hidden.pairs):
            positions = row["hidden/token"][place][:n_tokens]
            assert sorted(positions) == list(range(n_tokens))
            expected = features.hidden[pair.teacher][0][torch.from_numpy(positions.astype(np.int64))]
            np.testing.assert_allclose(row["hidden/values"][place][:n_tokens], expected.numpy(), atol=1e-4)


def test_tokens_are_ranked_by_the_attention_they_get_from_cls(everything: Store, teacher_folder: str) -> None:
    teacher = load_teacher(teacher_folder, device=torch.device("cpu"))
    teacher.model.set_attn_implementation("eager")
    row = everything.row("train", 21)
    n_tokens = int(row["n_tokens"])
    ids = torch.from_numpy(row["input_ids"][:n_tokens].astype(np.int64))[None]
    with torch.no_grad():
        attentions = teacher.model(ids, output_attentions=True).attentions
    assert [pair.rank for pair in everything.plan.hidden.pairs] == [1, 2, 4]  # round(l x 4 / 2), at least 1
    for place, pair in enumerate(everything.plan.hidden.pairs):
        score = attentions[pair.rank - 1][0, :, 0].mean(dim=0)
        np.testing.assert_array_equal(row["hidden/token"][place][:n_tokens], score.argsort(descending=True).numpy())


def test_separators_are_never_kept_unless_asked_for(teacher_folder: str, data_folder: str, tmp_path: Path) -> None:
    run(teacher_folder, data_folder, tmp_path, "all,all,1")
    store = open_store(tmp_path / "dall-lall-w1")
    ids, tokens, n_kept = (store.read_all(f"train/{name}") for name in ("input_ids", "hidden/token", "hidden/n_kept"))
    for row in range(len(ids)):
        for place in range(3):
            kept = tokens[row, place][: n_kept[row, place]]
            assert SEPARATOR not in ids[row][kept]
    np.testing.assert_array_equal(n_kept, np.repeat(store.read_all("train/n_tokens")[:, None] - 1, 3, axis=1))


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [(Strategy(2, rank="left"), "the first tokens"), (Strategy(2, rank="random"), "a random order")],
)
def test_other_ranks(strategy: Strategy, expected: str, teacher_folder: str, data_folder: str, tmp_path: Path) -> None:
    run(teacher_folder, data_folder, tmp_path / "a", "2,3,4", strategy=strategy)
    tokens = open_store(tmp_path / "a" / "d2-l3-w4").read_all("train/hidden/token")
    if strategy.rank == "left":
        assert (tokens == [0, 1, 2]).all(), expected
    else:
        run(teacher_folder, data_folder, tmp_path / "b", "2,3,4", strategy=strategy, batch_tokens=64)
        np.testing.assert_array_equal(tokens, open_store(tmp_path / "b" / "d2-l3-w4").read_all("train/hidden/token"))
        assert (tokens[:, 0] == tokens[:, 1]).all() and len(np.unique(tokens[:, 0], axis=0)) > 100, expected


@pytest.mark.parametrize("mask", ["uniform", "random"])
def test_static_masks_are_the_same_for_every_vector(mask: Any, teacher_folder: str, data_folder: str, tmp_path: Path) -> None:
    run(teacher_folder, data_folder, tmp_path, "2,2,8", strategy=Strategy(2, mask=mask))
    row = open_store(tmp_path / "d2-l2-w8").row("train", 4)["hidden/mask"]
    assert (row == row[0, 0]).all() and row[0, 0].sum() == 8


def test_many_keeps_in_one_pass_are_the_stores_of_as_many_passes(teacher_folder: str, data_folder: str, tmp_path: Path) -> None:
    together = run(teacher_folder, data_folder, tmp_path / "together", "1,9,0.1", "all", "2,4,0.5")
    for keep, store in zip(("1,9,0.1", "all", "2,4,0.5"), together, strict=True):
        (alone,) = run(teacher_folder, data_folder, tmp_path / "alone", keep)
        assert alone.digest == store.digest
        assert sealed_tree(Path(alone.root)) == sealed_tree(Path(store.root))


def test_the_teacher_runs_once_for_all_keeps(
    teacher_folder: str, data_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    forward = Teacher.forward

    def counting(self: Teacher, input_ids: Any, *batch: Any, **options: Any) -> Any:
        rows.append(len(input_ids))
        return forward(self, input_ids, *batch, **options)

    monkeypatch.setattr(Teacher, "forward", counting)
    monkeypatch.setattr(Teacher, "probe", lambda *_, **__: None)
    monkeypatch.setattr("hskstore.stage_one.extract.replay_some", lambda stores, *_: [None] * len(stores))
    run(teacher_folder, data_folder, tmp_path, "1,9,0.1", "all", "2,4,0.5")
    assert sum(rows) == 760
    run(teacher_folder, data_folder, tmp_path, "1,9,0.1", "all", "2,4,0.5")
    assert sum(rows) == 760, "everything was there"
    run(teacher_folder, data_folder, tmp_path, "1,9,0.1", "1,2,3")
    assert sum(rows) == 1520, "a new keep in the same place is a new store"


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    teacher_folder: str, data_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = run(teacher_folder, data_folder, tmp_path / "whole", "all")
    commit = UnitWorker._commit
    commits = 0

    def failing(self: UnitWorker, *arguments: Any) -> None:
        nonlocal commits
        commits += 1
        if commits == 2:
            raise KeyboardInterrupt
        commit(self, *arguments)

    monkeypatch.setattr(UnitWorker, "_commit", failing)
    with pytest.raises(KeyboardInterrupt):
        run(teacher_folder, data_folder, tmp_path / "broken", "all")
    with pytest.raises(HskError, match=r"not sealed: [1-9] of \d+ units"):
        open_store(tmp_path / "broken" / "dall-lall-wall")
    monkeypatch.setattr(UnitWorker, "_commit", commit)
    (resumed,) = run(teacher_folder, data_folder, tmp_path / "broken", "all")
    assert resumed.digest == whole.digest
    assert sealed_tree(Path(resumed.root)) == sealed_tree(Path(whole.root))


def test_another_plan_for_the_same_store_is_refused_naming_what_differs(
    teacher_folder: str, data_folder: str, tmp_path: Path
) -> None:
    (store,) = run(teacher_folder, data_folder, tmp_path, "1,9,0.1")
    before = sealed_tree(Path(store.root))
    with pytest.raises(PlanError, match=r"pass\.seed: 0 -> 1"):
        run(teacher_folder, data_folder, tmp_path, "1,9,0.1", seed=1)
    with pytest.raises(PlanError, match=r"strategy\.values: f16 -> q8"):
        run(teacher_folder, data_folder, tmp_path, "1,9,0.1", strategy=Strategy(2, values="q8"))
    with pytest.raises(PlanError, match=r"teacher\.sha256"):
        run(save_folder(make_bert(seed=3), tmp_path / "other"), data_folder, tmp_path, "1,9,0.1")
    assert sealed_tree(Path(store.root)) == before


def test_paths_do_not_change_the_digest(teacher_folder: str, data_folder: str, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(teacher_folder, tmp_path / "moved-teacher")
    shutil.copytree(data_folder, tmp_path / "moved-data")
    (one,) = run(teacher_folder, data_folder, tmp_path / "one", "1,9,0.1")
    (two,) = run(str(tmp_path / "moved-teacher"), str(tmp_path / "moved-data"), tmp_path / "two", "1,9,0.1")
    assert one.digest == two.digest


def test_a_processor_that_only_emulates_a_precision_is_told_of(
    teacher_folder: str, data_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hskstore.stage_one.planning.computes_in", lambda precision, device: precision == "fp32")
    run(teacher_folder, data_folder, tmp_path, "1,2,4")
    assert not caplog.messages
    run(teacher_folder, data_folder, tmp_path / "bf16", "1,2,4", precision="bf16")
    assert caplog.messages == ["this processor has no bf16 of its own and emulates it slowly; fp32 will be faster"]


def test_several_student_depths_get_a_store_each(teacher_folder: str, data_folder: str, tmp_path: Path) -> None:
    stores = extract(
        teacher_folder,
        data_folder,
        out=tmp_path,
        keeps=[Keep(1, 2, 4)],
        strategies=[Strategy(2), Strategy(3)],
        task="sst2",
    )
    assert [Path(store.root).name for store in stores] == ["s2-d1-l2-w4", "s3-d1-l2-w4"]


def test_what_the_stores_of_a_pass_share_is_found_once_however_many_they_are(
    teacher_folder: str, data_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer's hash is that of its whole vocabulary, and every token of the rows is looked at to count what is ranked."""
    calls: Counter[str] = Counter()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*args, **options)

        return counted

    monkeypatch.setattr(facts, "tokenizer_sha256", counting("tokenizer", facts.tokenizer_sha256))
    monkeypatch.setattr(np, "isin", counting("tokens", np.isin))
    monkeypatch.setattr("hskstore.stage_one.extract.probe", stop)
    with pytest.raises(KeyboardInterrupt):
        run(teacher_folder, data_folder, tmp_path, "1,2,4", "1,2,8", "2,0.5,all", "all")
    assert calls == {"tokenizer": 1, "tokens": 1}
    calls.clear()
    keeps = [Keep.parse(keep) for keep in ("1,2,4", "1,2,8", "2,0.5,all", "all")]
    forecast(teacher_folder, data_folder, keeps=keeps, strategies=[Strategy(2)], task="sst2", device="cpu", rate=1)
    assert calls == {"tokenizer": 1, "tokens": 1}


def test_sizes_are_told_before_the_teacher_runs_and_bound_what_is_written(
    teacher_folder: str, data_folder: str, tmp_path: Path
) -> None:
    told: dict[str, int] = {}

    def on_plan(planned: Any) -> None:
        assert all(store.missing for store in planned) and not tmp_path.joinpath("d2-l4-w0.5").exists()
        told.update(planned[0].most_bytes)

    run(teacher_folder, data_folder, tmp_path, "2,4,0.5", on_plan=on_plan)
    store = open_store(tmp_path / "d2-l4-w0.5")
    kept = int(store.read_all("train/hidden/n_kept").sum())
    assert told["hidden"] == kept * (16 * 2 + 32 // 8 + 2)  # values, mask, position
    # n_kept, shard indexes and checksums come on top, and count little except in a store as small as this one
    written = sum(size for key, size in store.sizes().items() if key.startswith("train/hidden/") and "/c/" in key)
    assert written <= told["hidden"] + 4096


@pytest.mark.parametrize("where", ["logits", "hidden"])
def test_non_finite_teachers_are_refused_naming_the_row_and_finished_units_stay(
    where: str, teacher_folder: str, data_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Teacher.forward
    rows = 0

    def poisoned(self: Teacher, *batch: Any, **options: Any) -> Any:
        nonlocal rows
        rows += len(batch[0])
        features = forward(self, *batch, **options)
        if rows <= 512:
            return features
        if where == "logits":
            return replace(features, logits=features.logits * torch.nan)
        return replace(features, hidden={layer: state * 1e9 for layer, state in features.hidden.items()})

    monkeypatch.setattr(Teacher, "probe", lambda *_, **__: None)
    monkeypatch.setattr(Teacher, "forward", poisoned)
    with pytest.raises(ModelError, match=r"train row \d+.*not finite"):
        run(teacher_folder, data_folder, tmp_path, "1,9,0.5")
    assert list((tmp_path / "d1-l9-w0.5" / "units").iterdir()), "the first unit had been finished"
    assert not (tmp_path / "d1-l9-w0.5" / "manifest.json").exists()


def test_batches_cover_a_block_within_the_token_budget() -> None:
    lengths = np.random.default_rng(0).integers(2, 64, 512)
    batches = list(length_batches(lengths, np.arange(512), 1024))
    assert sorted(np.concatenate(batches)) == list(range(512))
    assert all(len(batch) * lengths[batch].max() <= 1024 for batch in batches)
    assert [len(batch) for batch in length_batches(np.array([50, 60]), np.arange(2), 10)] == [1, 1]


def test_logits_alone_teach_where_there_is_no_label(teacher_folder: str, data_folder: str, tmp_path: Path) -> None:
    extract(teacher_folder, data_folder, out=tmp_path, keeps=[Keep(1, 2, 4)], strategies=[Strategy(2)], text=["sentence"])
    store = open_store(tmp_path / "d1-l2-w4")
    assert not store.has("train/label") and store.has("train/logits")
    assert store.plan.task["labels"] == ["LABEL_0", "LABEL_1"]


def test_a_regression_teacher_and_pairs(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split, rows in (("train", 40), ("dev", 10)):
        lines = [f"the cat {'sees' if row % 2 else 'hears'}\ta dog runs\t{row / 10}" for row in range(rows)]
        (folder / f"{split}.tsv").write_text("one\ttwo\thow\n" + "\n".join(lines) + "\n")
    teacher = save_folder(make_bert(labels=1), tmp_path / "teacher")
    stores = extract(
        teacher,
        str(folder),
        out=tmp_path / "stores",
        keeps=[Keep(1, 4, 4)],
        strategies=[Strategy(2)],
        text=["one", "two"],
        label="how",
    )
    store = open_store(stores[0].root)
    row = store.row("train", 0)
    assert store.plan.task["kind"] == "score" and row["label"].dtype == np.float32
    assert row["token_type_ids"].sum() == 4 and (row["input_ids"] == SEPARATOR).sum() == 2


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"keep": "1,9,33"}, OptionError, "33 is more than the teacher's 32"),
        ({"keep": "4,9,1"}, OptionError, "a student of 2 layers has 3"),
        ({"strategy": Strategy(2, top_layer=5)}, OptionError, "the teacher has layers 1 to 4"),
        ({"max_length": 65}, OptionError, "65"),
        ({"data": "no/such/place.tsv"}, DataError, "no/such/place.tsv"),
        ({"task": "stsb"}, DataError, "sentence1"),
    ],
)
def test_what_cannot_be_extracted_is_refused_and_nothing_is_written(
    change: dict[str, Any], error: type[HskError], words: str, teacher_folder: str, data_folder: str, tmp_path: Path
) -> None:
    options = {"keep": "1,9,0.1", "strategy": Strategy(2), "data": data_folder, "task": "sst2", "max_length": None} | change
    with pytest.raises(error, match=words):
        extract(
            teacher_folder,
            options["data"],
            out=tmp_path / "stores",
            keeps=[Keep.parse(options["keep"])],
            strategies=[options["strategy"]],
            task=options["task"],
            max_length=options["max_length"],
        )
    assert not (tmp_path / "stores").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_tokens": 0}, "--batch-tokens 0: must be a whole number"),
        ({"max_length": 0}, "--max-length 0: must be a whole number"),
        ({"seed": -1}, "--seed -1: must be a whole number"),
        ({"precision": "fp64"}, "--precision fp64: choose one of fp32, bf16, fp16"),
        ({"engine": "dask"}, "--engine dask: choose one of inline, procs, static, ray"),
        ({"engine": "procs", "workers": 0}, "--workers 0: must be a whole number"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_read(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=said):
        extract("no teacher", "no data", out=tmp_path / "stores", keeps=[Keep(1, 9, 0.1)], strategies=[Strategy(2)], **options)


def test_a_teacher_with_another_number_of_labels_is_refused(data_folder: str, tmp_path: Path) -> None:
    teacher = save_folder(make_bert(labels=3), tmp_path / "three")
    with pytest.raises(ModelError, match=r"3 outputs; the task sst2 needs 2 classes"):
        run(teacher, data_folder, tmp_path / "stores", "1,9,0.1")


def test_labels_follow_the_teachers_order(tmp_path: Path) -> None:
    teacher = make_bert()
    teacher.config.id2label = {0: "positive", 1: "negative"}
    teacher.config.label2id = {"positive": 0, "negative": 1}
    write_tsv(tmp_path / "train.tsv", 60, seed=1)
    write_tsv(tmp_path / "dev.tsv", 20, seed=2)
    (store,) = run(save_folder(teacher, tmp_path / "teacher"), str(tmp_path), tmp_path / "stores", "1,2,4")
    stored = open_store(store.root)
    given = read_dataset(str(tmp_path), task="sst2").splits["train"].label
    assert given is not None
    np.testing.assert_array_equal(stored.read_all("train/label"), 1 - given[stored.read_all("train/row_id")])


@pytest.mark.long
@pytest.mark.real
@pytest.mark.parametrize(("values", "least"), [("f16", 6), ("q8", 9), ("q4", 12)])
def test_hidden_states_take_a_fraction_of_the_papers_bytes(values: Any, least: float, tmp_path: Path) -> None:
    from tests.conftest import SHARED

    lines = (SHARED / "data/sst2_small/train.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "train.tsv").write_text("".join(lines[:1025]))
    lines = (SHARED / "data/sst2_small/dev.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "dev.tsv").write_text("".join(lines[:9]))
    teacher = str(SHARED / "models/minilm-l6-sst2")
    (made,) = run(teacher, str(tmp_path), tmp_path / "stores", "1,9,0.1", strategy=Strategy(3, values=values))
    store = open_store(made.root)
    vectors = int(store.read_all("train/hidden/n_kept").sum())
    paper = vectors * (38 * 4 + 384)
    ours = sum(size for key, size in store.sizes().items() if key.startswith("train/hidden/"))
    assert paper / ours >= least


def test_units_smaller_and_bigger_than_a_block_hold_the_same_rows(
    teacher_folder: str, data_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many units in a block for a big configuration, several blocks in a unit for a small one, in one pass."""
    expected = run(teacher_folder, data_folder, tmp_path / "usual", "1,2,4", "all")
    monkeypatch.setattr("hskstore.store.layout.unit_rows", lambda bytes_per_row, rows: 64 if bytes_per_row > 500 else 1024)
    found = run(teacher_folder, data_folder, tmp_path / "unusual", "1,2,4", "all")
    assert [open_store(store.root).plan.splits["train"].unit_rows for store in found] == [1024, 64]
    for one, two in zip(expected, found, strict=True):
        usual, unusual = open_store(one.root), open_store(two.root)
        for path in usual.plan.arrays:
            np.testing.assert_array_equal(usual.read_all(path), unusual.read_all(path))


def test_only_the_missing_units_are_made_again(
    teacher_folder: str, data_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hskstore.store.layout.unit_rows", lambda bytes_per_row, rows: 64)
    (made,) = run(teacher_folder, data_folder, tmp_path, "1,2,4")
    before = sealed_tree(Path(made.root))
    (Path(made.root) / "units" / "train-000009.json").unlink()
    (Path(made.root) / "manifest.json").unlink()
    put: list[str] = []
    commit = UnitWorker._commit

    def noting(self: UnitWorker, index: int, split: str, unit: int, *rest: Any) -> None:
        put.append(f"{split}-{unit}")
        commit(self, index, split, unit, *rest)

    monkeypatch.setattr(UnitWorker, "_commit", noting)
    (again,) = run(teacher_folder, data_folder, tmp_path, "1,2,4")
    assert put == ["train-9"] and again.digest == made.digest and sealed_tree(Path(again.root)) == before


def test_a_plan_that_never_finished_a_unit_does_not_stand_in_the_way(
    teacher_folder: str, data_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(UnitWorker, "_commit", fail)
    with pytest.raises(KeyboardInterrupt):
        run(teacher_folder, data_folder, tmp_path, "1,2,4", strategy=Strategy(2, values="q8"))
    monkeypatch.undo()
    (made,) = run(teacher_folder, data_folder, tmp_path, "1,2,4")
    assert "train/hidden/scale" not in open_store(made.root).plan.arrays
    assert not (Path(made.root) / "train/hidden/scale").exists() or not list((Path(made.root) / "train/hidden/scale").iterdir())


@pytest.mark.real
@pytest.mark.parametrize("task", ["cola", "mrpc", "stsb"])
def test_real_glue_sets_go_through_the_whole_pass(task: str, tmp_path: Path) -> None:
    """A real encoder with an untrained head on the first rows of CoLA, MRPC (pairs) and STS-B (scores)."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from tests.conftest import SHARED

    for split in ("train", "dev"):
        lines = (SHARED / f"data/{task}/{split}.tsv").read_bytes().split(b"\n")
        (tmp_path / f"{split}.tsv").write_bytes(b"\n".join(lines[:41]) + b"\n")
    base = str(SHARED / "models/minilm-l6")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1 if task == "stsb" else 2, dtype=torch.float32)
    teacher = save_folder(model, tmp_path / "teacher", AutoTokenizer.from_pretrained(base))
    (made,) = extract(
        teacher, str(tmp_path), out=tmp_path / "stores", keeps=[Keep(2, 5, 0.1)], strategies=[Strategy(3)], task=task
    )
    store = open_store(made.root)
    assert store.plan.splits["train"].rows == (41 if task == "cola" else 40)
    assert (store.read_all("train/token_type_ids").sum() > 0) == (task != "cola")
    assert store.read_all("train/label").dtype == (np.float32 if task == "stsb" else np.int64)


def test_roberta_has_two_positions_less_than_its_config_says(tmp_path: Path) -> None:
    """Its first ones belong to padding: the usual length stops there, a longer one is refused before the teacher runs."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    from tests.conftest import make_tokenizer

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=22,
        type_vocab_size=1,
        pad_token_id=1,
    )
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 10**30
    teacher = save_folder(RobertaForSequenceClassification(config), tmp_path / "teacher", tokenizer)
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("sentence\tlabel\n" + f"{'the cat sees ' * 20}\t1\nthe dog\t0\n" * 4)
    (made,) = run(teacher, str(tmp_path), tmp_path / "stores", "1,2,4")
    assert open_store(made.root).plan.splits["train"].longest == 20
    with pytest.raises(ModelError, match="positions for 20 tokens; a row has 22: pass --max-length 20"):
        run(teacher, str(tmp_path), tmp_path / "more", "1,2,4", max_length=22)
