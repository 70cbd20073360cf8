"""Stores in codes that are made without the teacher, of stores and views whose vectors are numbers, and sweeps that read them."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hskstore.config import Keep, Strategy, Values
from hskstore.errors import OptionError, PlanError, StoreError
from hskstore.explore import knowledge
from hskstore.explore.knowledge import sizes_with_view
from hskstore.explore.report_curves import configured, is_everything, marginal, singles
from hskstore.explore.show import describe
from hskstore.explore.sweep import sweep
from hskstore.features.view import view
from hskstore.methods import MiniLMv2, Pkd
from hskstore.stage_one.coded import coded_view, derive_coded, in_codes
from hskstore.stage_one.extract import extract
from hskstore.stage_one.replay import replay
from hskstore.stage_two.distill import distill
from hskstore.stage_two.recipe import Recipe
from hskstore.store import Store, open_store
from hskstore.store.verify import verify
from tests.conftest import hsk, make_bert, save_folder, write_tsv

ALL = Keep("all", "all", "all")


@pytest.fixture(scope="module", autouse=True)
def many_units() -> Iterator[None]:
    """Of 64 rows each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hskstore.store.layout.unit_rows", lambda *_: 64)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, many_units: None) -> SimpleNamespace:
    place = tmp_path_factory.mktemp("world")
    (place / "data").mkdir()
    for name, rows in (("train", 300), ("dev", 30)):
        write_tsv(place / "data" / f"{name}.tsv", rows, seed=rows)
    teacher, student = (save_folder(make_bert(**own), place / name) for name, own in SHAPES.items())

    def made(name: str, values: Values, **options: Any) -> Store:
        strategies = [Strategy(2, values=values)]
        options = {"rich": True, "strategies": strategies, "task": "sst2"} | options
        (store,) = extract(teacher, str(place / "data"), out=place / name, **options)
        return open_store(store.root)

    return SimpleNamespace(place=place, teacher=teacher, student=student, made=made, rich=made("rich", "f16"))


SHAPES: dict[str, dict[str, Any]] = {"teacher": {}, "student": {"layers": 2, "hidden": 16, "seed": 1}}


def whole(store: Store, values: Values, out: Path) -> Store:
    """All of it, in codes."""
    layers = {name: list(feature.layers) for name, feature in store.plan.features.items() if name != "hidden"}
    keep = None if store.plan.hidden is None else store.plan.hidden.keep
    return open_store(derive_coded(in_codes(store, values, out, keep=keep, layers=layers)).root)


def vectors(store: Store, name: str) -> np.ndarray:
    """Every stored vector [row, layer, ..., width]."""
    feature = store.plan.said[name]
    decoded = feature.encoding.decode({"values": store.read_all(f"train/{name}/values")} | store.words(name), feature.width)
    return decoded.astype(np.float32)


@pytest.mark.long
def test_every_vector_has_codes_that_leave_what_is_said_in_the_plan_of_an_extraction(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    numbers = world.made("all", "f16", keeps=[ALL], methods=[Pkd(), MiniLMv2()], rich=False)
    store = whole(numbers, "rq4", tmp_path / "codes")
    direct = world.made("all-rq4", "rq4", keeps=[ALL], methods=[Pkd(), MiniLMv2()], rich=False)
    assert store.plan.differences(direct.plan) == []
    assert verify(store.root, deep=True).problems == ()
    for name in ("hidden", "cls", "qkv"):
        coded, exact, told = vectors(store, name), vectors(numbers, name), store.left_over(name)
        assert told is not None
        for place in np.ndindex(told.shape):
            at = (slice(None), *place)
            is_token = exact[at].any(axis=-1)
            before, after = exact[at][is_token], coded[at][is_token]
            left = ((after - before) ** 2).sum() / ((before - before.mean(axis=0)) ** 2).sum()
            assert left < 0.4 and told[place] < 0.8, (name, place)  # of few vectors words know little of others
    for path in store.plan.arrays_of("train"):
        if not path.endswith(("/values", "/scale")):
            np.testing.assert_array_equal(store.read_all(path), numbers.read_all(path))
    assert not replay(store.root, world.teacher, rows=16).differing


def test_a_derivation_that_was_stopped_goes_on_to_the_same_digest(world: SimpleNamespace, tmp_path: Path) -> None:
    expected = whole(world.rich, "rq4", tmp_path / "whole").digest
    layers = {name: list(feature.layers) for name, feature in world.rich.plan.features.items()}

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "derive" and done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        derive_coded(in_codes(world.rich, "rq4", tmp_path / "it", keep=None, layers=layers), watch=stop)
    made = in_codes(world.rich, "rq4", tmp_path / "it", keep=None, layers=layers)
    assert derive_coded(made).digest == expected and "learnt" not in vars(made), "its codebooks stood there"


def test_hsk_derive_codes_a_rich_store_a_view_of_it_and_what_a_method_reads(world: SimpleNamespace, tmp_path: Path) -> None:
    assert hsk("derive", world.rich.root, "--values", "rq4", "--out", tmp_path / "rich") == 0
    states = open_store(tmp_path / "rich").plan.features["states"]
    assert states.values == "rq4" and states.layers == (0, 1, 2, 3, 4)  # type: ignore[attr-defined]
    words = ("--keep", "all", "--student-layers", "2", "--values", "rq4")
    assert hsk("derive", world.rich.root, *words, "--out", tmp_path / "view") == 0
    view, direct = open_store(tmp_path / "view"), world.made("direct", "rq4", keeps=[ALL], rich=False)
    assert view.plan.differences(direct.plan) == []
    # The embeddings, which no batch changes, are coded as an extraction codes them; what attention has seen nearly so.
    np.testing.assert_array_equal(view.read("codebooks/hidden/words", 0)[0], direct.read("codebooks/hidden/words", 0)[0])
    with pytest.raises(OptionError, match="keeps its states as rq4, of which no codes are made"):
        coded_view(open_store(tmp_path / "rich"), ALL, Strategy(2, values="rq8"), tmp_path / "twice")
    words = ("--for", "distilbert", "--student-layers", "2", "--values", "rq4")
    assert hsk("derive", world.rich.root, *words, "--out", tmp_path / "for") == 0
    assert list(open_store(tmp_path / "for").plan.features) == ["states"]


def test_where_another_store_stands_nothing_is_learnt(world: SimpleNamespace) -> None:
    made = in_codes(world.rich, "rq4", world.rich.root, keep=None, layers={"states": [4]})
    with pytest.raises(PlanError, match="was planned for something else"):
        derive_coded(made)
    assert "learnt" not in vars(made)


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [(np.nan, StoreError, "not finite: the store is damaged"), (1e5, OptionError, "exceed 65504, the largest number of f16")],
)
def test_vectors_that_f16_cannot_hold_are_neither_coded_nor_selected(
    value: float, error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Store.read

    def wide(self: Store, path: str, *rest: Any) -> np.ndarray:
        array = read(self, path, *rest)
        if path == "train/states/values":
            array = array.astype(np.float32)
            array[:, :, 0, 1] = value
            array[read(self, "train/n_tokens", *rest[:1]) < array.shape[2], :, -1] = np.nan  # which is no token's
        return array

    rich = open_store(Path(__file__).parent / "golden" / "v2" / "rich")
    monkeypatch.setattr(Store, "read", wide)
    with pytest.raises(error, match=said):
        derive_coded(in_codes(rich, "rq4", tmp_path / "it", keep=None, layers={"states": [4]}))
    with pytest.raises(error, match=said):
        view(rich, Keep(1, 3, 0.5), Strategy(2)).read("train/hidden/values", 0)
    assert not list(tmp_path.iterdir())


def test_what_a_view_would_take_is_counted_unit_by_unit(world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(knowledge, "encoded_bytes", lambda spec, column: counted.append(len(column)) or 2 * len(column))
    sizes = sizes_with_view(view(world.rich, Keep(1, 1, 0.5), Strategy(2)))
    arrays = [path for path in sizes if path.startswith("train/hidden/")]
    assert max(counted) == 64 and sum(counted) == 300 * len(arrays)
    assert {sizes[path] for path in arrays} == {600}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["{rich}", "--keep", "1,3,0.5", "--student-layers", "2"],
            "--keep 1,3,0.5 with --values rq4: codes are of whole vectors",
        ),
        (["{rich}", "--for", "kd", "--student-layers", "2"], "no vectors of {rich} are asked for that could be coded"),
        (["{pkd}"], "keeps its cls as q8, of which no codes are made"),
        (["{hidden}", "--keep", "1,all,all"], "keeps all,all,all; cut it first (hsk derive), then code it"),
    ],
)
def test_what_cannot_be_coded_is_one_message(
    words: list[str], said: str, world: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = {"rich": world.rich.root}
    if "{hidden}" in words:
        roots["hidden"] = world.made("hidden", "f16", keeps=[ALL], rich=False).root
    if "{pkd}" in words:
        roots["pkd"] = world.made("pkd", "q8", methods=[Pkd()], rich=False).root
    assert hsk("derive", *(word.format(**roots) for word in words), "--values", "rq4", "--out", tmp_path / "new") == 2
    assert said.format(**roots) in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "new").exists()


@pytest.mark.long
def test_a_sweep_reads_codes_from_a_store_that_it_makes_once(world: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text('keep = "all"\nvalues = ["f16", "rq4", "rq8"]\nmax_steps = 3\nlr = 0.001\n')
    options: dict[str, Any] = {"grid": str(tmp_path / "grid.toml"), "out": tmp_path / "sweep", "seeds": 1}
    swept = sweep(world.rich.root, world.student, **options)
    rows = {row.values: row for row in swept.rows if row.keep is not None}
    assert set(rows) == {"f16", "rq4", "rq8"} and all(row.status == "done" and row.share_of_hsk == 1 for row in rows.values())
    assert len({row.batches for row in rows.values()}) == 1 and len({row.view for row in rows.values()}) == 3
    stores = {place.name[:3]: place for place in (tmp_path / "sweep" / "stores").iterdir()}
    assert set(stores) == {"rq4", "rq8"}
    recipe = Recipe(world.student, max_steps=3, lr=(0.001,))
    for values, place in stores.items():
        sizes = describe(str(place)).array_bytes
        read = [f"hidden/{name}" for name in ("values", "mask", "token", "n_kept")]
        read += ["input_ids", "token_type_ids", "n_tokens", "logits"]
        assert rows[values].bytes == sum(sizes[f"train/{name}"] for name in read) + sizes["codebooks/hidden/words"]
        alone = distill(str(place), recipe, out=tmp_path / values)
        assert {f"{phase.name}/{term}": loss for phase in alone.phases for term, loss in phase.losses.items()} == rows[
            values
        ].losses
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("sweep/**/*.*") if path.is_file()}
    again = sweep(world.rich.root, world.student, **options)
    assert again.rows == swept.rows
    assert all(path.stat().st_mtime_ns == when for path, when in before.items() if path.suffix != ".parquet")
    found = configured(swept.rows, {})
    assert [each.kind for each in found if is_everything(each.first)] == ["mud, f16"]
    assert {each.kind for each in found} == {"kd", "mud, f16", "mud, rq4", "mud, rq8"}
    assert [each.configurations for each in marginal(found)] == [1, 1] and not singles(found, "depth")


def test_a_sliver_in_codes_is_refused_by_name(world: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text('keep = ["1,9,0.1", "all"]\nvalues = "rq8"\n')
    with pytest.raises(OptionError, match=r"mud 1,9,0\.1 values=rq8 cannot be a run: .* codes are of whole vectors"):
        sweep(world.rich.root, world.student, grid=str(tmp_path / "grid.toml"), out=tmp_path / "sweep", seeds=1)


@pytest.mark.long
def test_vectors_in_f32_are_coded_as_those_in_f16(world: SimpleNamespace, tmp_path: Path) -> None:
    rich = world.made("f32", "f32")
    made = [
        derive_coded(coded_view(store, ALL, Strategy(2, values="rq4"), tmp_path / store.digest)) for store in (rich, world.rich)
    ]
    assert made[0].digest == made[1].digest and made[0].source != made[1].source
