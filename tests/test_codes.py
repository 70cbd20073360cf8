"""Vectors as codes: how codebooks are learnt and come to be, what is stored in them, cut of them, and learnt from them."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hskstore.config import Keep, Strategy, Values
from hskstore.errors import OptionError, StoreError
from hskstore.explore.show import describe, describe_progress
from hskstore.features.codes import Codebooks, decode_codes, encode_codes, learn_words, left_over, principal_directions
from hskstore.features.pack import blank_beside
from hskstore.features.view import derive_view, view
from hskstore.losses import kept_hidden_mse
from hskstore.methods import METHODS, Mud
from hskstore.stage_one import codebooks
from hskstore.stage_one.extract import extract
from hskstore.stage_one.forecast import _memory, forecast
from hskstore.stage_one.replay import replay
from hskstore.stage_one.worker import UnitWorker
from hskstore.stage_two.distill import distill
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.rows import rows_from_store
from hskstore.store import Store, open_store
from hskstore.store.codebooks import BOOKS, CODEBOOKS
from hskstore.store.commit import MANIFEST, Manifest, Receipt, receipt_key
from hskstore.store.derive import derive, derive_as
from hskstore.store.encode import encode_unit
from hskstore.store.features import States
from hskstore.store.objects import Objects
from hskstore.store.plan import Plan, planned_anew
from hskstore.store.reader import read_plan
from hskstore.store.shard import unit_fingerprints
from hskstore.store.vectors import ENCODINGS, WORDS, Codes
from hskstore.store.verify import verify
from tests.conftest import SHARED, hsk, sealed_tree, write_tsv
from tests.made_up import want_of
from tests.store.conftest import edit_signed
from tests.test_features import Asks, small_units, want
from tests.test_forecast import real_sizes

ROWS, WIDTH = 150, 32
LAYERS: dict[str, tuple[int, ...]] = {"states": (0, 2, 4), "cls": (2, 4), "qkv": (1, 4), "pooled": (4,)}
KEEP = "2,9,all"
CODED = Path(__file__).parent / "golden" / "v3" / "codes"
Made = Callable[..., Path]


# --- words, learnt


def drawn(rows: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    """Vectors whose coordinates go together, some of them far larger than others."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator) @ torch.randn(width, width, generator=generator) + 3


def coded_and_decoded(vectors: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    books = Codebooks.of(words.numpy()[None], torch.device("cpu"))
    codes = encode_codes(vectors[:, None], books)
    return decode_codes(codes.numpy(), books.words)[0]


@pytest.mark.parametrize(("seed", "width"), [(0, 8), (1, 1), (2, 13)])
def test_fewer_codebooks_are_the_first_of_more(seed: int, width: int) -> None:
    vectors = drawn(700, width, seed)
    more = learn_words(vectors, 8, seed)
    assert more.shape == (8, WORDS, width) and more.dtype == torch.float16 and more.isfinite().all()
    assert learn_words(vectors, 4, seed).equal(more[:4]) and not learn_words(vectors, 1, seed + 1).equal(more[:1])


def test_every_stage_leaves_less_over_as_it_is_told() -> None:
    vectors = drawn(3000)
    words = learn_words(vectors, 6, 0)
    shares = left_over(vectors, words)
    assert (shares.diff() < 0).all() and shares[0] < 0.5 and shares[-1] < 1e-3
    difference = (coded_and_decoded(vectors, words) - vectors).square().sum()
    told = difference / (vectors - vectors.mean(dim=0)).square().sum()
    assert float(shares[-1]) == pytest.approx(float(told), rel=1e-3)


def test_words_do_not_differ_along_axes_where_there_is_nothing_but_chance() -> None:
    vectors = torch.rand(2000, 8, generator=torch.Generator().manual_seed(0))
    vectors[:, 2:] *= 1e-2
    (words,) = learn_words(vectors, 1, 0).float()
    among_eight = 1e-2 / 12**0.5 / 8**0.5  # how far middles of eight vectors, which these are, lie apart by chance
    assert (words[:, 2:].std(dim=0) < among_eight / 4).all() and (words[:, :2].std(dim=0) > 0.15).all()


@pytest.mark.parametrize("rows", [1, 3, 200])
def test_as_few_vectors_as_words_are_words(rows: int) -> None:
    vectors = drawn(rows)
    words = learn_words(vectors, 4, 0)
    assert words.isfinite().all()
    largest = vectors.abs().max()
    assert (coded_and_decoded(vectors, words) - vectors).abs().max() < 2e-3 * largest


def test_vectors_that_are_all_the_same_are_one_word_and_leave_nothing() -> None:
    vectors = torch.tensor([1.5, -2, 0, 1000]).repeat(50, 1)
    words = learn_words(vectors, 4, 0)
    assert words.isfinite().all() and left_over(vectors, words).tolist() == [0, 0, 0, 0]
    assert left_over(vectors + 1, words).isinf().all() and left_over(vectors * torch.nan, words).isnan().all()
    torch.testing.assert_close(coded_and_decoded(vectors, words), vectors, rtol=1e-3, atol=1e-3)


def test_what_few_held_out_vectors_say_is_not_believed() -> None:
    plan = open_store(CODED).plan
    vectors = drawn(900, plan.teacher["hidden_size"]).half().numpy()
    for rows, measured in ((9, slice(None)), (900, slice(800, None))):
        words, told = codebooks._learn_one(plan, "states", vectors[:rows])
        expected = left_over(torch.from_numpy(vectors[:rows][measured]).float(), torch.from_numpy(words))
        np.testing.assert_array_equal(told, expected)
        assert 0 < told[0] < 1


def test_a_sample_is_the_first_of_all_vectors_in_random_order_and_holds_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebooks, "LEARNT_FROM", 70)
    monkeypatch.setattr(codebooks, "HELD_OUT", 20)
    parts = [np.random.default_rng(rows).normal(size=(rows, 2, 3)).astype(np.float16) for rows in (50, 0, 30, 40)]
    assert codebooks.are_enough(parts) and not codebooks.are_enough(parts[:3])
    for own in (parts, parts[:3]):
        found = codebooks.drawn(own, 5)
        np.testing.assert_array_equal(found, np.random.default_rng(5).permutation(np.concatenate(own))[:90])
        assert found.base is None


def test_ctrl_c_waits_for_the_layer_under_way_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned_anew(open_store(CODED).plan, [States((0, 1, 2, 3, 4), 32, "rq4")])
    threads, learnt = torch.get_num_threads(), list[int]()

    def learn(*_: Any) -> tuple[float, float]:
        learnt.append(1)
        time.sleep(0.05)
        return 0.0, 0.0

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(codebooks, "_learn_one", learn)
    torch.set_num_threads(1)
    try:
        with pytest.raises(KeyboardInterrupt):
            codebooks.learn_codebooks(plan, {"states": np.zeros((9, 5, 32), np.float16)}, stop)
        assert len(learnt) < 5 and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


# --- encoded and decoded


def slow_codes(vectors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Of each stage the nearest word, of equals the first: [..., width] and [stage, word, width] -> [..., stage]."""
    left, found = vectors.astype(np.float64), []
    for own in words.astype(np.float64):
        distance = ((left[..., None, :] - own) ** 2).sum(axis=-1)
        found.append(distance.argmin(axis=-1))
        left = left - own[found[-1]]
    return np.stack(found, axis=-1)


@settings(max_examples=20)
@given(st.sampled_from([(), (5,), (3, 4)]), st.sampled_from([1, 4]), st.integers(1, 3), st.integers(0, 99))
def test_a_code_names_of_each_stage_the_nearest_word_of_equals_the_first(
    rest: tuple[int, ...], stages: int, width: int, seed: int
) -> None:
    """Whole numbers, so that ties are many and arithmetic is exact; of attention each part has words of its own."""
    rng, places = np.random.default_rng(seed), (2, *rest[:-1])
    words = rng.integers(-3, 4, (*places, stages, WORDS, width)).astype(np.float16)
    vectors = rng.integers(-9, 10, (6, 2, *rest, width)).astype(np.float32)
    books = Codebooks.of(words, torch.device("cpu"))
    codes = encode_codes(torch.from_numpy(vectors), books).numpy()
    assert codes.dtype == np.uint8 and codes.shape == (6, 2, *rest, stages)
    for place in np.ndindex(places):
        np.testing.assert_array_equal(codes[:, *place], slow_codes(vectors[:, *place], words[place]))
    in_numpy = Codes(stages).decode({"values": codes, "words": words}, width)
    np.testing.assert_array_equal(decode_codes(codes, books.words).numpy().swapaxes(0, 1), in_numpy)


@pytest.mark.parametrize("values", [name for name, encoding in ENCODINGS.items() if isinstance(encoding, Codes)])
def test_torch_decodes_what_numpy_decodes_to_the_last_bit(values: Values) -> None:
    encoding = ENCODINGS[values]
    assert isinstance(encoding, Codes) and encoding.stages == int(values.removeprefix("rq"))
    rng = np.random.default_rng(0)
    words = rng.normal(0, 100, (2, encoding.stages, WORDS, 33)).astype(np.float16)
    codes = rng.integers(0, WORDS, (9, 2, 7, encoding.stages), dtype=np.uint8)
    slow = encoding.decode({"values": codes, "words": words}, 33).swapaxes(0, 1)
    assert slow.dtype == np.float32
    table = torch.from_numpy(words).float()
    assert decode_codes(codes, table).numpy().tobytes() == slow.tobytes()
    assert decode_codes(codes[:, [1]], table, layers=[1]).numpy().tobytes() == slow[1:].tobytes()


@pytest.mark.parametrize("parts", [(), (3,)])
def test_where_there_is_no_vector_zeros_are_decoded(parts: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    table = torch.from_numpy(rng.normal(size=(2, *parts, 4, WORDS, 5))).float()
    codes = rng.integers(0, WORDS, (6, 2, *parts, 7, 4), dtype=np.uint8)
    is_there = rng.random((6, 7)) < 0.5
    is_there[0], is_there[-1] = False, False  # the first and the last vector of a batch too
    broadcast = is_there.reshape(6, *[1] * len(parts), 7)
    found = decode_codes(codes, table, is_there=broadcast)
    expected = torch.where(torch.from_numpy(broadcast)[..., None], decode_codes(codes, table), 0)
    assert torch.equal(found, expected)
    assert not decode_codes(codes, table, is_there=np.zeros_like(broadcast)).any()


@pytest.mark.parametrize("shape", [(2, 3, 0, 4), (0, 3, 5, 4)])
def test_of_no_vectors_there_are_codes_of_none(shape: tuple[int, ...]) -> None:
    found = decode_codes(np.zeros(shape, np.uint8), torch.zeros(3, 4, WORDS, 8))
    assert found.shape == (shape[1], shape[0], shape[2], 8)


def test_what_is_no_token_has_the_codes_of_zeros() -> None:
    arrays = {"values": torch.full((2, 1, 3, 4), 7, dtype=torch.uint8)}
    blank_beside(arrays, torch.tensor([[[False, True, True]], [[False, False, True]]]))
    assert arrays["values"].amax(dim=-1).tolist() == [[[7, 0, 0]], [[7, 7, 0]]]


# --- extracted


@given(st.integers(0, 10**6))
def test_principal_directions_are_the_fewest_that_hold_nine_tenths_of_the_variance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = torch.from_numpy(rng.normal(size=(2, 3, WORDS, 12)) * rng.gamma(0.5, size=(2, 1, 1, 12)) + 5).float()
    directions = principal_directions(words)
    for own, found in zip(words.double(), directions.double(), strict=True):
        used = found[:, found.any(dim=0)]
        torch.testing.assert_close(used.T @ used, torch.eye(used.shape[1]).double(), rtol=0, atol=1e-4)
        mean = own.mean(dim=1).sum(dim=0)
        torch.testing.assert_close(used @ (used.T @ mean), mean, rtol=1e-3, atol=1e-3)
        flat = (own - own.mean(dim=1, keepdim=True)).reshape(-1, 12)
        of_mean, *axes = (flat @ used).square().sum(dim=0) / flat.square().sum()
        assert sum(axes) + of_mean >= 0.9 - 1e-5 and sum(axes) - min(axes) < 0.9 + 1e-5
    assert directions.any(dim=(0, 1)).all(), "no column is for nothing"


def test_directions_do_not_follow_where_the_vectors_lie() -> None:
    """A teacher's states lie far from zero along a few axes: what varies is to be learnt all the same."""
    rng = np.random.default_rng(0)
    words = torch.from_numpy(rng.normal(size=(1, 3, WORDS, 12)) * np.linspace(1, 0.1, 12)).float()
    words -= words.mean(dim=2, keepdim=True)
    far = words.clone()
    far[:, 0, :, 5] += 1000
    near, found = principal_directions(words), principal_directions(far)
    assert found.shape[2] in (near.shape[2], near.shape[2] + 1)
    torch.testing.assert_close(found @ (found.transpose(1, 2) @ near), near, rtol=0, atol=1e-2)


def test_of_words_that_are_all_the_same_their_mean_is_all_there_is() -> None:
    torch.testing.assert_close(principal_directions(torch.ones(2, 3, WORDS, 4)), torch.full((2, 4, 1), 0.5))
    assert principal_directions(torch.zeros(2, 3, WORDS, 4)).shape == (2, 4, 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_tsv(folder / "train.tsv", ROWS, seed=1)
    write_tsv(folder / "dev.tsv", 20, seed=2)
    return str(folder)


def make(
    teacher: str,
    data: str,
    out: Path,
    layers: dict[str, tuple[int, ...]] = LAYERS,
    *,
    keep: str | None = KEEP,
    values: Values = "rq4",
    **options: Any,
) -> Path:
    (made,) = extract(
        teacher,
        data,
        out=out,
        keeps=[] if keep is None else [Keep.parse(keep)],
        strategies=[Strategy(2, values=values)],
        methods=[Asks(layers)],
        **({"task": "sst2", "batch_tokens": 256} | options),
    )
    return Path(made.root)


@pytest.fixture(scope="module")
def extracted(teacher_folder: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A store of every coded feature, made when it is first asked for, to be read only."""

    @cache
    def made(values: Values = "rq4", *, many_units: bool = False) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            if many_units:
                patch.setattr("hskstore.store.layout.unit_rows", small_units)
            return make(teacher_folder, data, tmp_path_factory.mktemp(values), values=values)

    return made


@pytest.fixture
def own(extracted: Made, tmp_path: Path) -> Path:
    """The same store, to be damaged."""
    return Path(shutil.copytree(extracted(), tmp_path / "own" / "it"))


def again(teacher: str, data: str, own: Path) -> Path:
    return make(teacher, data, own.parent)


FEATURES = ("hidden", "states", "cls", "qkv", "pooled")


def test_a_store_has_the_nearest_codes_of_the_teachers_vectors_and_tells_what_they_leave(extracted: Made) -> None:
    store, exact = open_store(extracted()), open_store(extracted("f16"))
    assert store.plan.version == 3 and next(store.plan.units()) == BOOKS
    n_tokens = store.read_all("train/n_tokens")
    real = np.arange(store.plan.splits["train"].longest) < n_tokens[:, None]
    for name in FEATURES:
        codes, vectors = store.read_all(f"train/{name}/values"), exact.read_all(f"train/{name}/values").astype(np.float32)
        told, words = store.left_over(name), store.words(name)["words"]
        assert told is not None and exact.left_over(name) is None and exact.words(name) == {}
        assert codes.shape == (*vectors.shape[:-1], 4) and told.shape == words.shape[:-3]
        for place in np.ndindex(told.shape):
            own, expected = codes[:, *place], vectors[:, *place]
            is_there = {
                "hidden": exact.read_all("train/hidden/token")[:, *place] >= 0 if name == "hidden" else real,
                "states": real,
                "qkv": real,
            }.get(name)
            if is_there is not None:
                assert not own[~is_there].any()
                own, expected = own[is_there], expected[is_there]
            nearest = slow_codes(expected, words[place])
            shares = [
                ((sum(words[place][stage].astype(np.float32)[codes[:, stage]] for stage in range(4)) - expected) ** 2).sum()
                / ((expected - expected.mean(axis=0)) ** 2).sum()
                for codes in (own, nearest)
            ]
            assert shares[0] == pytest.approx(shares[1], rel=0.02, abs=1e-5), "but for ties, which rounding decides"
            assert shares[0] < 1.2 * told[place] < 1, "of which most vectors were learnt from"


def test_a_row_is_decoded_with_zeros_where_there_is_no_token(extracted: Made) -> None:
    store, exact = open_store(extracted()), open_store(extracted("f16"))
    index = int(store.read_all("train/n_tokens").argmin())
    row, same = store.row("train", index), exact.row("train", index)
    n_tokens, empty = int(row["n_tokens"]), row["hidden/token"] < 0
    assert n_tokens < row["states/values"].shape[1] and empty.any()
    for name, padding in (
        ("states", row["states/values"][:, n_tokens:]),
        ("qkv", row["qkv/values"][:, :, n_tokens:]),
        ("hidden", row["hidden/values"][empty]),
    ):
        assert not padding.any()
        assert row[f"{name}/values"].shape == same[f"{name}/values"].shape
        assert row[f"{name}/values"].dtype == np.float32
        assert np.corrcoef(row[f"{name}/values"].ravel(), same[f"{name}/values"].ravel())[0, 1] > 0.9


def test_words_are_read_once_for_all_windows(extracted: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = open_store(extracted()), []
    read = Store.read
    monkeypatch.setattr(Store, "read", lambda self, path, *rest: asked.append(path) or read(self, path, *rest))
    for _ in range(2):
        rows_from_store(store, "train", places={"states": (1,), "qkv": (0,)}, units=[0])
    assert sorted(path for path in asked if path.startswith(CODEBOOKS)) == [
        f"{CODEBOOKS}/{name}/words" for name in ("qkv", "states")
    ]


def test_a_batch_has_what_a_row_has(extracted: Made) -> None:
    store = open_store(extracted())
    rows = rows_from_store(store, "train", places={"hidden": (0, 1), "states": (2, 0), "cls": (1,), "qkv": (1,), "pooled": (0,)})
    wants = {name: want(name, *layers) for name, layers in (("states", (0, 4)), ("cls", (4,)), ("qkv", (4,)), ("pooled", (4,)))}
    wants["hidden"] = want_of(store)
    chosen = np.array([5, 17, 99])
    batch = rows.batch(chosen, list(wants.values()))
    for at, index in enumerate(chosen):
        row = store.row("train", int(index))
        longest = batch[wants["states"]].values.shape[2]
        np.testing.assert_array_equal(batch[wants["states"]].values[:, at], row["states/values"][[0, 2], :longest])
        np.testing.assert_array_equal(batch[wants["cls"]].values[0, at], row["cls/values"][1])
        np.testing.assert_array_equal(batch[wants["pooled"]].values[0, at], row["pooled/values"][0])
        heads = batch[wants["qkv"]]
        for part, found in enumerate((heads.query, heads.key, heads.value)):
            np.testing.assert_array_equal(found[0, at].transpose(0, 1).flatten(1), row["qkv/values"][1, part, :longest])
        kept = batch[wants["hidden"]]
        length = kept.values.shape[2]
        np.testing.assert_array_equal(kept.values[:, at], row["hidden/values"][:, :length])
        np.testing.assert_array_equal(kept.token_kept[:, at], row["hidden/token"][:, :length] >= 0)


def test_mud_learns_codes_in_the_directions_of_their_words(extracted: Made) -> None:
    store = open_store(extracted())
    hidden = want_of(store)
    own = torch.from_numpy(store.words("hidden")["words"]).float()
    found = rows_from_store(store, "train", places={"hidden": (1, 0)}).batch(np.array([5, 17]), [hidden])[hidden]
    expected = principal_directions(own)
    torch.testing.assert_close(found.directions, expected, rtol=0, atol=1e-6)
    assert expected.shape[2] < WIDTH and found.emptied().directions is found.directions
    beside = torch.linalg.qr(torch.cat([expected[1], torch.eye(WIDTH)], dim=1)).Q[:, expected[1].any(dim=0).sum() :]
    teacher = found.values.float()
    for direction, counts in ((expected[1][:, 0], True), (beside[:, -1], False)):
        student = teacher + torch.stack([torch.zeros(WIDTH), direction])[:, None, None]
        term = kept_hidden_mse(student, found.values, None, token_kept=found.token_kept, directions=found.directions)
        assert term.value.item() == pytest.approx(counts / WIDTH, abs=1e-6)


def test_words_that_are_no_numbers_are_refused(own: Path) -> None:
    def alter(columns: dict[str, np.ndarray]) -> None:
        columns[f"{CODEBOOKS}/hidden/words"][0, 0, 7, 3] = np.nan

    reseal(own, BOOKS, alter)
    with pytest.raises(StoreError, match="codebooks/hidden/words holds what is no finite number: the store is damaged"):
        rows_from_store(open_store(own), "train", places={"hidden": (0, 1)})


@pytest.mark.long
@pytest.mark.parametrize("engine", ["procs", "static"])
def test_any_engine_makes_the_same_store(
    engine: Any, teacher_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tsv(tmp_path / "train.tsv", 1700, seed=1)
    write_tsv(tmp_path / "dev.tsv", 60, seed=2)
    alone = make(teacher_folder, str(tmp_path), tmp_path / "alone")
    if engine == "procs":
        made = make(teacher_folder, str(tmp_path), tmp_path / engine, engine=engine, workers=2)
    else:
        monkeypatch.setenv("WORLD_SIZE", "2")
        for rank in (1, 0):
            monkeypatch.setenv("RANK", str(rank))
            made = make(teacher_folder, str(tmp_path), tmp_path / engine, engine=engine)
            assert (made / MANIFEST).exists() == (rank == 0)
    assert sealed_tree(made) == sealed_tree(alone)


@pytest.mark.long
def test_the_number_of_cores_does_not_show(teacher_folder: str, data: str, extracted: Made, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert sealed_tree(make(teacher_folder, data, tmp_path)) == sealed_tree(extracted())
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.long
def test_words_do_not_follow_what_else_is_kept(
    teacher_folder: str, data: str, extracted: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor how many tokens of `hidden`, where the first rows have more vectors than are needed."""
    usual = open_store(extracted())
    monkeypatch.setattr(codebooks, "LEARNT_FROM", 300)
    monkeypatch.setattr(codebooks, "HELD_OUT", 100)
    monkeypatch.setattr(codebooks, "ROWS_AT_ONCE", 40)
    every = open_store(make(teacher_folder, data, tmp_path / "every"))
    assert not np.array_equal(every.words("states")["words"], usual.words("states")["words"])
    for name, keep in (("states", None), ("cls", None), ("qkv", None), ("hidden", "1,2,all")):
        layers = {} if name == "hidden" else {name: LAYERS[name][-1:]}
        alone = open_store(make(teacher_folder, data, tmp_path / name, layers, keep=keep))
        for array in ("words", "error"):
            path = f"{CODEBOOKS}/{name}/{array}"
            np.testing.assert_array_equal(alone.read_all(path)[0], every.read_all(path)[-1])


def test_stopped_behind_its_codebooks_it_goes_on_and_learns_nothing_again(
    teacher_folder: str, data: str, extracted: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    expected = sealed_tree(extracted())
    with monkeypatch.context() as patch:
        patch.setattr(UnitWorker, "__init__", stop)
        with pytest.raises(KeyboardInterrupt):
            make(teacher_folder, data, tmp_path)
    with pytest.raises(StoreError, match="is not sealed: 1 of 3 units are done"):
        open_store(tmp_path / "it")
    told = describe_progress(str(tmp_path / "it"))
    assert (told.units_done, told.units, told.rows_done) == (1, 3, 0)
    monkeypatch.setattr(codebooks, "learn_codebooks", None)
    assert sealed_tree(make(teacher_folder, data, tmp_path)) == expected


def shards(root: Path, name: str = "*", array: str = "*") -> list[Path]:
    return sorted(path for path in root.glob(f"{CODEBOOKS}/{name}/{array}/c/**/*") if path.is_file())


@pytest.mark.long
def test_codebooks_that_another_process_put_first_are_read(
    teacher_folder: str, data: str, extracted: Made, tmp_path: Path
) -> None:
    """Other words, as a machine with other libraries would learn them."""
    first = open_store(extracted())
    columns = {path: first.read(path, 0).copy() for path in first.plan.arrays_of(CODEBOOKS)}
    columns[f"{CODEBOOKS}/states/words"] = columns[f"{CODEBOOKS}/states/words"][..., ::-1, :].copy()
    for key, blob in encode_unit(first.plan, *BOOKS, columns).items():
        (tmp_path / "it" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "it" / key).write_bytes(blob)
    made = open_store(make(teacher_folder, data, tmp_path))
    np.testing.assert_array_equal(made.words("states")["words"], columns[f"{CODEBOOKS}/states/words"])
    assert not verify(made.root, deep=True).problems and made.digest != first.digest
    one, other = (store.row("train", 3)["states/values"] for store in (made, first))
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9, "the codes are of these words"


@pytest.mark.long
@pytest.mark.parametrize("left", [0, 0.5], ids=["of nothing", "of half"])
def test_a_torn_codebook_is_made_again(left: float, teacher_folder: str, data: str, extracted: Made, tmp_path: Path) -> None:
    (whole,) = shards(extracted(), "qkv", "words")
    torn = tmp_path / "it" / whole.relative_to(extracted())
    torn.parent.mkdir(parents=True)
    torn.write_bytes(whole.read_bytes()[: int(left * whole.stat().st_size)])
    assert sealed_tree(make(teacher_folder, data, tmp_path)) == sealed_tree(extracted())


def flip(root: Path) -> None:
    (shard,) = shards(root, "cls", "words")
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 4
    shard.write_bytes(data)


def swap(root: Path) -> None:
    """Each is whole, and the other's."""
    one, other = shards(root, "cls", "words") + shards(root, "qkv", "error")
    (twin,) = shards(root, "states", "words")
    one.write_bytes(twin.read_bytes())
    (twin,) = shards(root, "states", "error")
    other.write_bytes(twin.read_bytes())


def lose(root: Path) -> None:
    for shard in shards(root):
        shard.unlink()


@pytest.mark.long
@pytest.mark.parametrize("harm", [flip, swap, lose])
def test_damaged_codebooks_are_found_condemned_and_made_again(
    harm: Callable[[Path], None], teacher_folder: str, data: str, extracted: Made, own: Path
) -> None:
    harm(own)
    if harm is flip:
        with pytest.raises(StoreError, match=r"codebooks/cls/words/c/0/0/0/0 is damaged: .* \(unit 0 of codebooks\)"):
            open_store(own).row("train", 3)
    found = verify(str(own), deep=True, condemn=True)
    assert {(problem.split, problem.unit) for problem in found.problems} == {BOOKS}
    assert receipt_key(*BOOKS) in found.condemned and not any("train" in key for key in found.condemned)
    assert sealed_tree(again(teacher_folder, data, own)) == sealed_tree(extracted())


def test_where_other_words_are_learnt_than_units_are_written_in_nothing_is_put_or_sealed(
    teacher_folder: str, data: str, extracted: Made, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(own)
    verify(str(own), deep=True, condemn=True)
    with monkeypatch.context() as patch:
        patch.setattr(codebooks, "learn_words", lambda vectors, stages, seed: learn_words(vectors, stages, seed + 1))
        with pytest.raises(StoreError, match=r"its codebooks are gone, and those that .* units/train-000000\.json is written in"):
            again(teacher_folder, data, own)
    assert not (own / MANIFEST).exists() and not shards(own, "cls", "words")
    assert sealed_tree(again(teacher_folder, data, own)) == sealed_tree(extracted()), "a machine that learns the same can"


def test_a_unit_of_other_codebooks_is_not_sealed(teacher_folder: str, data: str, own: Path) -> None:
    (own / MANIFEST).unlink()
    edit_signed(own / receipt_key("train", 0), lambda receipt: receipt["made"].update({CODEBOOKS: "5e"}))
    with pytest.raises(
        StoreError, match=r"units/train-000000\.json is of codes in other codebooks than the store's; the store was"
    ):
        again(teacher_folder, data, own)
    assert not (own / MANIFEST).exists()
    found = verify(str(own), deep=True, condemn=True)
    assert [problem.key for problem in found.problems] == list(found.condemned) == [receipt_key("train", 0)], "as it was advised"


def other_words(read: Any) -> Any:
    """`Store.read`, as if other words had been learnt."""

    def found(self: Store, path: str, *rest: Any) -> np.ndarray:
        array: np.ndarray = read(self, path, *rest)
        return np.ascontiguousarray(array[..., ::-1, :]) if path.startswith(CODEBOOKS) and path.endswith("words") else array

    return found


def test_a_derivation_puts_no_other_codebooks_than_its_units_are_written_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, store = tmp_path / "it", open_store(CODED)
    digest = derive_as(store, store.plan, out).digest
    (out / MANIFEST).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "read", other_words(Store.read))
        with pytest.raises(StoreError, match="has other codebooks than the codes that are to be copied there"):
            derive(CODED, out, keep=Keep.parse("2,3,1.0"), layers={"states": (4,)})
        (out / receipt_key(*BOOKS)).unlink()
        for shard in shards(out):
            shard.unlink()
        with pytest.raises(StoreError, match=r"its codebooks are gone, and those that .* units/train-000000\.json is written in"):
            derive_as(store, store.plan, out)
    assert not shards(out) and derive_as(store, store.plan, out).digest == digest


def test_codebooks_that_no_reader_would_take_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    plan = open_store(CODED).plan
    wide = States(tuple(range(64)), 4096, "rq32")
    with pytest.raises(
        OptionError, match=r"the codebooks of states would take 4\.0 GiB, more than the 1 GiB .*\(--values rq4 or"
    ):
        planned_anew(plan, [wide])
    large = replace(plan, teacher={**plan.teacher, "layers": 64, "hidden_size": 4096})
    most = planned_anew(large, [replace(wide, layers=tuple(range(16)))])  # 1 GiB, in a shard with room for twice as many
    (tmp_path / "plan.json").write_bytes(most.to_bytes())
    assert read_plan(Objects(tmp_path)).features == most.features


# --- cut


CUTS: list[tuple[Values, str | None, dict[str, tuple[int, ...]]]] = [
    ("rq8", None, {"states": (2,)}),
    ("rq4", None, {"states": (0, 4), "qkv": (4,)}),
    ("rq4", KEEP, LAYERS),
    ("rq4", "1,4,all", {"cls": (4,), "pooled": (4,)}),
]


@pytest.mark.long
@pytest.mark.parametrize(("values", "keep", "layers"), CUTS, ids=["layers", "both", "codes", "hidden"])
def test_a_cut_is_what_the_teacher_would_have_written(
    values: Values,
    keep: str | None,
    layers: dict[str, tuple[int, ...]],
    teacher_folder: str,
    data: str,
    extracted: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = extracted("rq8", many_units=True)
    monkeypatch.setattr("hskstore.store.layout.unit_rows", small_units)
    direct = make(teacher_folder, data, tmp_path / "direct", layers, keep=keep, values=values)
    made = derive(source, tmp_path / "cut", keep=None if keep is None else Keep.parse(keep), layers=layers, values=values)
    assert sealed_tree(tmp_path / "cut") == sealed_tree(direct) and made.digest == open_store(direct).digest
    assert not verify(str(tmp_path / "cut"), deep=True).problems


def test_hsk_derives_shorter_codes_of_all_there_is_or_of_what_a_method_reads(
    extracted: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = extracted("rq8")
    assert hsk("derive", source, "--values", "rq4", "--out", tmp_path / "all") == 0
    assert "values rq4; keep 2,9,all; states of layers 0, 2, 4" in " ".join(capsys.readouterr().out.split())
    assert sealed_tree(tmp_path / "all") == sealed_tree(extracted())
    words = ["--for", "distilbert", "--student-layers", 2]
    assert hsk("derive", source, *words, "--values", "rq4", "--out", tmp_path / "short") == 0
    assert hsk("pull", source, tmp_path / "long", *words) == 0
    for name, values in (("short", "rq4"), ("long", "rq8")):
        plan = open_store(tmp_path / name).plan
        assert {each.name: (each.layers, each.values) for each in plan.said.values()} == {"states": ((4,), values)}
    assert (
        derive(tmp_path / "long", tmp_path / "later", layers={"states": (4,)}, values="rq4").digest
        == open_store(tmp_path / "short").digest
    )


@pytest.mark.parametrize(
    ("stored", "asked", "keep", "why"),
    [
        ("rq4", "rq8", None, "--values rq8 cannot be cut from .*, whose vectors are rq4: only codes can be, as rq4 from rq8"),
        ("rq4", "f16", None, "--values f16 cannot be cut from .*, whose vectors are rq4"),
        ("f16", "rq4", None, "--values rq4 cannot be cut from .*, whose vectors are f16: .* extract with --values rq4"),
        ("rq4", None, "2,9,0.5", "--keep 2,9,0.5 with --values rq4: codes are of whole vectors"),
        ("rq4", "rq5", None, "--values rq5: choose one of"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    stored: Values, asked: Any, keep: str | None, why: str, extracted: Made, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=why):
        derive(
            extracted(stored),
            tmp_path / "cut",
            keep=None if keep is None else Keep.parse(keep),
            layers={"states": (4,)} if keep is None else {},
            values=asked,
        )
    assert not (tmp_path / "cut").exists()


@pytest.mark.parametrize("command", ["extract", "plan"])
def test_a_part_of_a_vector_has_no_codes(
    command: str, teacher_folder: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, teacher_folder, data, "--task", "sst2", "--student-layers", 2, "--values", "rq8", "--keep", "1,9,0.1"]
    assert hsk(*words, *(["--out", tmp_path / "stores"] if command == "extract" else [])) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("hsk: --keep 1,9,0.1 with --values rq8: codes are of whole vectors") and "keep the width all" in told
    assert not list(tmp_path.iterdir())


# --- learnt from


def test_of_a_rich_store_in_codes_there_are_views_and_no_stores(
    teacher_folder: str, student_folder: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made,) = extract(teacher_folder, data, out=tmp_path, rich=True, strategies=[Strategy(2, values="rq8")], task="sst2")
    seen = view(open_store(made.root), Keep(1, 3, 0.25), Strategy(2))
    (exact,) = extract(
        teacher_folder, data, out=tmp_path / "exact", keeps=[Keep(1, 3, "all")], strategies=[Strategy(2)], task="sst2"
    )
    whole = view(open_store(made.root), Keep(1, 3, "all"), Strategy(2))
    one, other = (store.row("train", 7) for store in (whole, open_store(exact.root)))
    np.testing.assert_array_equal(one["hidden/token"], other["hidden/token"])
    assert np.corrcoef(one["hidden/values"].ravel(), other["hidden/values"].ravel())[0, 1] > 0.95
    recipe = Recipe(student_folder, Mud(), max_steps=6, batch_size=(16,), precision="fp32")
    found = distill(seen, recipe, out=tmp_path / "run")
    assert all(np.isfinite(loss) for phase in found.phases for loss in phase.losses.values())
    with pytest.raises(OptionError, match="keeps its states as rq8, from which no store can be cut"):
        derive_view(seen, tmp_path / "cut")
    assert hsk("derive", made.root, "--keep", "1,3,0.25", "--student-layers", 2, "--out", tmp_path / "cut") == 2
    assert "keeps its states as rq8" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "cut").exists()


# --- replayed, forecast, shown


def test_a_replay_finds_every_row_as_it_was(extracted: Made, teacher_folder: str) -> None:
    found = replay(str(extracted()), teacher_folder, rows=ROWS)
    assert found.equal == found.rows == ROWS and found.differing == ()
    assert found.differences == dict.fromkeys(("logits", *FEATURES), 0.0)


def reseal(root: Path, unit: tuple[str, int], change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Alter a unit's arrays and make everything agree with them."""
    store = open_store(root)
    columns = {path: store.read(path, unit[1]).copy() for path in store.plan.arrays_of(unit[0])}
    change(columns)
    blobs = encode_unit(store.plan, *unit, columns)
    entries = unit_fingerprints(store.plan.arrays_of(unit[0]), unit[1], blobs)
    for key, blob in blobs.items():
        (root / key).write_bytes(blob)
    receipt = root / receipt_key(*unit)
    receipt.write_bytes(replace(Receipt.from_bytes(receipt.read_bytes(), receipt_key(*unit)), objects=entries).to_bytes())
    manifest = Manifest(store.manifest.store_id, {**store.manifest.objects, **entries})
    (root / MANIFEST).write_bytes(manifest.to_bytes())
    assert not verify(str(root), deep=True).problems


ALTERED = [3, 77, 149]


@pytest.mark.parametrize("path", ["train/states/values", "train/qkv/values"])
def test_rows_whose_codes_are_of_something_else_are_named(path: str, own: Path, teacher_folder: str) -> None:
    def alter(columns: dict[str, np.ndarray]) -> None:
        columns[path][ALTERED] = columns[path][[row - 1 for row in ALTERED]]

    reseal(own, ("train", 0), alter)
    found = replay(str(own), teacher_folder, rows=ROWS)
    assert sorted(found.differing) == ALTERED and found.equal == ROWS - len(ALTERED)


def test_codes_of_other_words_than_the_stores_are_found(own: Path, teacher_folder: str) -> None:
    def alter(columns: dict[str, np.ndarray]) -> None:
        words = columns[f"{CODEBOOKS}/states/words"]
        words[...] = words[..., ::-1, :].copy()
        columns[f"{CODEBOOKS}/states/error"].fill(1e6)  # as if they had never fitted

    reseal(own, BOOKS, alter)
    found = replay(str(own), teacher_folder, rows=ROWS)
    assert len(found.differing) > 0.9 * ROWS and found.equal == 0 and found.tolerances["states"] < 1.1


def test_codes_that_are_of_their_words_where_these_are_of_nothing_are_found(
    teacher_folder: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = replay(str(make(teacher_folder, data, tmp_path / "good", {"states": (1,)})), teacher_folder, rows=ROWS)
    assert good.unlike == () and set(good.left_over) == {"hidden", "states"} and max(good.left_over.values()) < 0.9

    def of_nothing(vectors: torch.Tensor, stages: int, seed: int) -> torch.Tensor:
        return torch.randn((stages, WORDS, vectors.shape[1]), generator=torch.Generator().manual_seed(seed)).half()

    monkeypatch.setattr(codebooks, "learn_words", of_nothing)
    monkeypatch.setattr(codebooks, "left_over", lambda vectors, words: torch.full((len(words),), 0.2))
    made = make(teacher_folder, data, tmp_path / "bad", {"states": (1,)})
    found = replay(str(made), teacher_folder, rows=ROWS)
    assert found.differing == () and found.equal == ROWS and set(found.unlike) == {"hidden", "states"}
    assert min(found.left_over.values()) > 1


@pytest.mark.parametrize("told", [np.nan, -1, np.inf])
def test_a_share_that_is_none_is_said_to_be_damage(told: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(shutil.copytree(CODED, tmp_path / "it"))
    reseal(root, BOOKS, lambda columns: columns[f"{CODEBOOKS}/states/error"].fill(told))
    assert hsk("show", root) == 2
    assert "codebooks/states/error is no share of a variance: the store is damaged" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("n_kept", [0, -1, 99])
def test_a_row_of_no_tokens_or_too_many_is_said_to_be_damage(n_kept: int, tmp_path: Path) -> None:
    root = Path(shutil.copytree(CODED, tmp_path / "it"))
    reseal(root, ("train", 1), lambda columns: columns["train/hidden/n_kept"][3].fill(n_kept))
    with pytest.raises(StoreError, match="a row keeps no token, or more than there is room for: the store is damaged"):
        rows_from_store(open_store(root), "train", places={"hidden": (0, 1)})


@pytest.mark.parametrize(("values", "width"), [("f16", 64), ("rq4", 8), ("rq4", 64)])
def test_a_plan_of_more_coordinates_than_a_vector_has_or_of_codes_of_some_is_no_plan(values: Values, width: int) -> None:
    plan = open_store(CODED).plan
    hidden = plan.hidden
    assert hidden is not None and hidden.hidden_size == 32
    feature = replace(hidden, width=width, strategy=replace(hidden.strategy, values=values))
    with pytest.raises(StoreError, match="more coordinates of a vector are kept than it has, or codes are not of all"):
        Plan.from_bytes(planned_anew(plan, [feature]).to_bytes(), "it")


def test_the_plan_counts_codebooks(extracted: Made, teacher_folder: str, data: str) -> None:
    whole = forecast(
        teacher_folder,
        data,
        keeps=[Keep.parse(KEEP)],
        strategies=[Strategy(2, values="rq4")],
        methods=[Asks(LAYERS)],
        task="sst2",
        batch_tokens=256,
        device="cpu",
        seconds=30,
    )
    assert 0 < whole.time.codebook_seconds < 60
    told = whole.stores[0]
    store, sizes = open_store(extracted()), real_sizes(str(extracted()))
    assert told.arrays.keys() == store.plan.arrays.keys()
    for path, array in told.arrays.items():
        assert array.decoded == store.read_all(path).nbytes, path
        if path.startswith(f"{CODEBOOKS}/states"):  # of fewer vectors than words the words are mostly zeros
            assert array.on_disk == pytest.approx(sizes[path], rel=0.3, abs=200), path


def test_the_plan_counts_the_memory_of_what_codebooks_are_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = open_store(CODED).plan
    assert codebooks.sample_bytes(plan) == 2 * 3 * 4905 * 32 * 2, "three layers, drawn and drawn from, of all tokens"
    monkeypatch.setattr(codebooks, "LEARNT_FROM", 700)
    monkeypatch.setattr(codebooks, "HELD_OUT", 200)
    monkeypatch.setattr(codebooks, "ROWS_AT_ONCE", 52)  # of 520
    assert codebooks.sample_bytes(plan) == (900 + 900 + 490) * 3 * 32 * 2
    before = _memory([plan], None).host_bytes
    monkeypatch.setattr("hskstore.stage_one.forecast.sample_bytes", lambda plan: 2**40)
    assert before < 2**40 < _memory([plan, plan], None).host_bytes


def test_show_tells_what_codes_leave_by_layer(extracted: Made, capsys: pytest.CaptureFixture[str]) -> None:
    told = describe(str(extracted())).features
    store = open_store(extracted())
    for name in FEATURES:
        own = store.left_over(name)
        assert own is not None
        expected = own if own.ndim == 1 else own.max(axis=1)
        assert told[name].left_over == pytest.approx(expected.tolist(), abs=1e-4) and told[name].values == "rq4"
    assert hsk("show", extracted()) == 0
    said = " ".join(capsys.readouterr().out.split())
    share = f"{100 * told['states'].left_over[0]:.1f} %"  # type: ignore[index]
    assert "states of teacher layers 0, 2, 4, rq4" in said
    assert f"what codes leave of the variance of states, by teacher layer: 0: {share}, 2: " in said
    assert hsk("show", extracted(), "--json") == 0
    assert json.loads(capsys.readouterr().out)["features"]["cls"]["left_over"] == told["cls"].left_over
    assert describe(str(extracted("f16"))).features["cls"].left_over is None


@pytest.mark.long
@pytest.mark.real
def test_on_real_rows_the_plan_is_within_two_in_a_hundred(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split, rows in (("train", 2500), ("dev", 100)):
        lines = (SHARED / f"data/sst2_small/{split}.tsv").read_text().splitlines(keepends=True)
        (data / f"{split}.tsv").write_text("".join(lines[: 1 + rows]))
    teacher = str(SHARED / "models/minilm-l6-sst2")
    options: dict[str, Any] = {"strategies": [Strategy(3, values="rq4")], "methods": [METHODS["distilbert"]()], "task": "sst2"}
    told = forecast(teacher, str(data), device="cpu", seconds=4, **options)
    ruled = forecast(teacher, str(data), rate=100, **options)
    (made,) = extract(teacher, str(data), out=tmp_path / "stores", device="cpu", **options)
    for each in (told, ruled):
        assert each.stores[0].bytes == pytest.approx(made.bytes, rel=0.02)
    left = describe(made.root).features["states"].left_over
    assert left is not None and left[0] < 0.35
