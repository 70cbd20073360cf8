"""A smaller store cut from a bigger one is, byte for byte, the one that the teacher would have written."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hskstore.config import Keep, Strategy
from hskstore.errors import OptionError, PlanError, StoreError
from hskstore.features.select import magnitude_mask
from hskstore.layers import plan_strategy
from hskstore.stage_one.extract import extract
from hskstore.stage_one.replay import replay
from hskstore.store import Store, open_store
from hskstore.store import derive as derive_module
from hskstore.store.derive import Derived
from hskstore.store.hidden import Hidden
from hskstore.store.objects import Objects
from hskstore.store.shard import index_bytes, ranges_of
from hskstore.store.verify import verify
from tests.conftest import SHARED, hsk, make_bert, save_folder, sealed_tree, sentences

Extracted = Callable[[str], Path]
FLIPPED = 20
"""A byte of a chunk, behind its header."""


def small_units(bytes_per_row: int, rows: int) -> int:
    """Stores of many units, big configurations of more than small ones."""
    return 64 if bytes_per_row > 1000 else 256


@dataclass(frozen=True)
class Family:
    """The strategy of one pass, and the configurations that are extracted in it."""

    strategy: Strategy
    keeps: tuple[str, ...]
    many_units: bool = False


FAMILIES = {
    "magnitude-f16": Family(
        Strategy(2),
        ("all", "1,all,all", "all,4,all", "all,0.5,all", "all,100,1.0", "all,all,0.25", "2,0.5,0.3", "2,9,0.5", "1,4,0.25"),
    ),
    "magnitude-f32-sep": Family(
        Strategy(2, rank="attention-with-sep", values="f32"), ("all", "2,9,0.5", "1,0.25,7", "all,all,0.25"), many_units=True
    ),
    "random-f16": Family(Strategy(2, rank="random", mask="random"), ("all", "2,0.5,0.5", "1,0.2,0.25", "all,all,5")),
    "uniform-f32-left": Family(
        Strategy(2, rank="left", mask="uniform", values="f32"), ("all", "all,all,0.5", "2,4,0.25", "1,2,3")
    ),
    "eq5-same-raw": Family(Strategy(2, layer_map="eq5", rank_layer="same", score="raw"), ("all", "2,4,0.25", "1,0.5,all")),
    "magnitude-q8": Family(Strategy(2, values="q8"), ("all,all,0.5", "1,0.5,0.5", "2,3,0.5"), many_units=True),
    "random-q4-sep": Family(
        Strategy(2, rank="attention-with-sep", values="q4", mask="random"), ("all,9,7", "2,4,7", "1,1,7"), many_units=True
    ),
}
CUTS = [
    ("magnitude-f16", "all", "all"),
    ("magnitude-f16", "all", "1,all,all"),
    ("magnitude-f16", "all", "all,4,all"),
    ("magnitude-f16", "all", "all,0.5,all"),
    ("magnitude-f16", "all", "all,100,1.0"),
    ("magnitude-f16", "all", "all,all,0.25"),
    ("magnitude-f16", "all", "2,0.5,0.3"),
    ("magnitude-f16", "2,9,0.5", "1,4,0.25"),
    ("magnitude-f32-sep", "all", "all,all,0.25"),
    ("magnitude-f32-sep", "all", "1,0.25,7"),
    ("magnitude-f32-sep", "all", "2,9,0.5"),
    ("random-f16", "all", "all,all,5"),
    ("random-f16", "all", "2,0.5,0.5"),
    ("random-f16", "2,0.5,0.5", "1,0.2,0.25"),
    ("uniform-f32-left", "all", "all,all,0.5"),
    ("uniform-f32-left", "all", "1,2,3"),
    ("uniform-f32-left", "all,all,0.5", "2,4,0.25"),
    ("eq5-same-raw", "all", "2,4,0.25"),
    ("eq5-same-raw", "all", "1,0.5,all"),
    ("magnitude-q8", "all,all,0.5", "1,0.5,0.5"),
    ("magnitude-q8", "all,all,0.5", "2,3,0.5"),
    ("random-q4-sep", "all,9,7", "2,4,7"),
    ("random-q4-sep", "all,9,7", "1,1,7"),
]


def folder_of(keep: str) -> str:
    return Keep.parse(keep).name


def derive(source: Path, keep: str, out: Path) -> Derived:
    return derive_module.derive(source, out, keep=Keep.parse(keep))


@pytest.fixture(scope="module")
def extracted(teacher_folder: str, data_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    """The stores of a family, made in one pass when they are first asked for."""

    @cache
    def make(name: str) -> Path:
        family, out = FAMILIES[name], tmp_path_factory.mktemp(name)
        keeps = [Keep.parse(keep) for keep in family.keeps]
        with pytest.MonkeyPatch.context() as patch:
            if family.many_units:
                patch.setattr("hskstore.store.layout.unit_rows", small_units)
            extract(teacher_folder, data_folder, out=out, keeps=keeps, strategies=[family.strategy], task="sst2")
        return out

    return make


@pytest.fixture
def everything(extracted: Extracted) -> Path:
    """A store of everything, to be read only; its cuts are beside it."""
    return extracted("magnitude-f16") / folder_of("all")


@pytest.fixture
def own(everything: Path, tmp_path: Path) -> Path:
    """The same store, to be damaged."""
    return Path(shutil.copytree(everything, tmp_path / "own"))


@pytest.mark.parametrize(("family", "source", "keep"), CUTS)
def test_a_cut_is_what_the_teacher_would_have_written(
    family: str, source: str, keep: str, extracted: Extracted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = extracted(family)
    if FAMILIES[family].many_units:
        monkeypatch.setattr("hskstore.store.layout.unit_rows", small_units)
    made = derive(stores / folder_of(source), keep, tmp_path / "cut")
    direct = stores / folder_of(keep)
    assert made.digest == open_store(direct).digest and made.source == open_store(stores / folder_of(source)).digest
    assert sealed_tree(tmp_path / "cut") == sealed_tree(direct)
    assert made.bytes == sum(path.stat().st_size for path in (tmp_path / "cut").rglob("*") if path.is_file())
    assert not verify(str(tmp_path / "cut"), deep=True).problems


def test_units_of_the_source_are_split_and_joined(extracted: Extracted) -> None:
    """What the families with many units stand for above."""
    stores = extracted("magnitude-f32-sep")
    units = {keep: open_store(stores / folder_of(keep)).plan.splits["train"].unit_rows for keep in ("all", "1,0.25,7")}
    assert units == {"all": 64, "1,0.25,7": 256}


def test_a_cut_can_be_cut_again(everything: Path, tmp_path: Path) -> None:
    derive(everything, "2,9,0.5", tmp_path / "one")
    twice = derive(tmp_path / "one", "1,4,0.25", tmp_path / "two")
    assert twice.digest == open_store(everything.parent / folder_of("1,4,0.25")).digest
    assert sealed_tree(tmp_path / "two") == sealed_tree(everything.parent / folder_of("1,4,0.25"))


def test_every_split_is_cut_along(tmp_path: Path) -> None:
    """MNLI has two validation splits, pairs, and three classes."""
    for split, rows in (("train", 70), ("dev_matched", 9), ("dev_mismatched", 12)):
        labels = ("entailment", "neutral", "contradiction")
        pairs = zip(sentences(rows, rows), sentences(rows, rows + 1), strict=True)
        lines = [f"{one}\t{two}\t{labels[row % 3]}" for row, (one, two) in enumerate(pairs)]
        (tmp_path / f"{split}.tsv").write_text("sentence1\tsentence2\tgold_label\n" + "\n".join(lines) + "\n")
    teacher = make_bert(labels=3)
    teacher.config.id2label = {0: "entailment", 1: "neutral", 2: "contradiction"}
    keeps = [Keep.parse("2,all,0.5"), Keep.parse("1,5,4")]
    big, small = extract(
        save_folder(teacher, tmp_path / "teacher"),
        str(tmp_path),
        out=tmp_path / "stores",
        keeps=keeps,
        strategies=[Strategy(2)],
        task="mnli",
    )
    assert set(open_store(big.root).plan.splits) == {"train", "validation", "validation_mismatched"}
    assert derive(Path(big.root), "1,5,4", tmp_path / "cut").digest == small.digest
    assert sealed_tree(tmp_path / "cut") == sealed_tree(Path(small.root))


def test_a_store_without_labels_is_cut_along(teacher_folder: str, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("sentence\n" + "\n".join(sentences(40, 0)) + "\n")
    (tmp_path / "dev.tsv").write_text("sentence\n" + "\n".join(sentences(8, 1)) + "\n")
    keeps = [Keep.parse("all"), Keep.parse("1,2,4")]
    options: dict[str, Any] = {"out": tmp_path / "stores", "keeps": keeps, "strategies": [Strategy(2)], "text": ["sentence"]}
    big, small = extract(teacher_folder, str(tmp_path), **options)
    assert derive(Path(big.root), "1,2,4", tmp_path / "cut").digest == small.digest
    assert not open_store(tmp_path / "cut").has("train/label")


REFUSALS = [
    ("magnitude-f16", "1,4,0.25", "2,4,0.25", "it has no teacher layer for the student's layers 1$"),
    ("magnitude-f16", "1,4,0.25", "all,4,0.25", "it has no teacher layer for the student's layers 0, 1$"),
    ("magnitude-f16", "1,4,0.25", "4,4,0.25", "a student of 2 layers has 3 to guide"),
    ("magnitude-f16", "1,4,0.25", "1,5,0.25", r"which keeps 1,4,0.25: row \d+ would keep 5 tokens and has only 4$"),
    ("magnitude-f16", "2,9,0.5", "2,0.9,0.5", r"row \d+ would keep 1\d tokens and has only 9$"),
    ("magnitude-f16", "2,0.5,0.3", "2,3,0.3", r"row \d+ would keep 3 tokens and has only [12]$"),
    ("magnitude-f16", "1,4,0.25", "1,4,9", "it has 8 coordinates of a vector, not 9$"),
    ("magnitude-f16", "1,4,0.25", "1,4,33", "33 is more than the teacher's 32"),
    ("magnitude-q8", "all,all,0.5", "all,all,0.25", r"quantised values \(q8\) were masked before they were rounded"),
    ("random-q4-sep", "all,9,7", "all,9,6", r"quantised values \(q4\) were masked before they were rounded"),
    (
        "uniform-f32-left",
        "1,2,3",
        "1,2,2",
        "its uniform mask of 3 coordinates does not contain that of 2: .*a store of width all$",
    ),
]


@pytest.mark.parametrize(("family", "source", "keep", "why"), REFUSALS)
def test_what_is_not_nested_is_refused_saying_why(
    family: str, source: str, keep: str, why: str, extracted: Extracted, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=why):
        derive(extracted(family) / folder_of(source), keep, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()


def test_a_place_with_another_store_is_refused_and_left_alone(everything: Path, own: Path) -> None:
    before = sealed_tree(own)
    with pytest.raises(PlanError, match=r"keep: all,all,all -> 1,4,0.25"):
        derive(everything, "1,4,0.25", own)
    assert sealed_tree(own) == before


@pytest.mark.parametrize("after", [0, 1, 2])
def test_stopped_it_goes_on_and_makes_only_what_is_missing(
    after: int, everything: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, committed, turn = derive_module.commit_unit, list[str](), Lock()

    def noting(objects: Any, receipt: Any, blobs: Any) -> None:
        with turn:  # units are cut side by side
            if len(committed) == limit:
                raise KeyboardInterrupt
            commit(objects, receipt, blobs)
            committed.append(receipt.key)

    monkeypatch.setattr(derive_module, "commit_unit", noting)
    limit = after
    with pytest.raises(KeyboardInterrupt):
        derive(everything, "1,4,0.25", tmp_path / "cut")
    with pytest.raises(StoreError, match=f"not sealed: {after} of 3 units"):
        open_store(tmp_path / "cut")
    limit = -1
    made = derive(everything, "1,4,0.25", tmp_path / "cut")
    assert sorted(committed) == [f"units/{unit}.json" for unit in ("train-000000", "train-000001", "validation-000000")]
    assert sealed_tree(tmp_path / "cut") == sealed_tree(everything.parent / folder_of("1,4,0.25"))
    assert derive(everything, "1,4,0.25", tmp_path / "cut").digest == made.digest and len(committed) == 3


def test_a_cut_is_told_so_where_another_cut_of_the_same_store_made_a_unit_with_other_bytes(
    everything: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two machines may whose compressors are of other versions."""
    commit, begin, encode = derive_module.commit_unit, derive_module.begin, derive_module.encode_unit

    def other_bytes(plan: Any, split: str, unit: int, columns: Any) -> Any:
        return encode(plan, split, unit, {**columns, f"{split}/logits": columns[f"{split}/logits"] + 1})

    def commit_one(*arguments: Any) -> None:
        commit(*arguments)
        raise KeyboardInterrupt

    def overtaken(*arguments: Any) -> None:
        with monkeypatch.context() as rival:
            rival.setattr(derive_module, "begin", begin)
            rival.setattr(derive_module, "encode_unit", other_bytes)
            rival.setattr(derive_module, "commit_unit", commit_one)
            with pytest.raises(KeyboardInterrupt):
                derive(everything, "1,4,0.25", tmp_path / "cut")
        begin(*arguments)

    monkeypatch.setattr(derive_module, "begin", overtaken)
    with pytest.raises(StoreError, match=r"another process made the unit of units/train-000000\.json with other bytes"):
        derive(everything, "1,4,0.25", tmp_path / "cut")


def flip(store: Store, path: str, unit: int, layer: int = 0) -> None:
    """Change one byte of one layer of a shard."""
    spec = store.plan.arrays[path]
    file = Path(store.root) / spec.key(path, unit)
    data = bytearray(file.read_bytes())
    data[ranges_of(spec, unit, bytes(data))[layer][0].start + FLIPPED] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("path", "keep"),
    [(path, "1,4,0.25") for path in ("hidden/values", "hidden/mask", "hidden/token", "hidden/n_kept", "input_ids", "logits")]
    + [(path, "all,4,all") for path in ("hidden/values", "hidden/mask")],
)
def test_a_damaged_source_is_named_and_nothing_is_sealed_until_it_is_mended(
    path: str, keep: str, own: Path, everything: Path, tmp_path: Path
) -> None:
    flip(open_store(own), f"train/{path}", unit=1, layer=2 if path in ("hidden/values", "hidden/mask") else 0)
    with pytest.raises(StoreError, match=rf"own/train/{path}/c/1/.*sha256.*\(unit 1 of train\)"):
        derive(own, keep, tmp_path / "cut")
    assert not (tmp_path / "cut" / "manifest.json").exists()
    shutil.copytree(everything, own, dirs_exist_ok=True)
    assert derive(own, keep, tmp_path / "cut").digest == open_store(everything.parent / folder_of(keep)).digest


def test_damage_in_a_layer_that_is_not_kept_does_no_harm(own: Path, everything: Path, tmp_path: Path) -> None:
    for layer in (0, 1):
        flip(open_store(own), "train/hidden/values", unit=0, layer=layer)
    assert verify(str(own), deep=True).problems
    assert derive(own, "1,4,0.25", tmp_path / "cut").digest == open_store(everything.parent / folder_of("1,4,0.25")).digest


@pytest.mark.parametrize(("keep", "layers"), [("1,4,0.25", [2]), ("2,9,0.5", [1, 2])])
def test_of_layers_that_are_not_kept_no_byte_is_fetched(
    keep: str, layers: Sequence[int], everything: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, ranges = Objects.get, Objects.ranges
    whole: list[str] = []
    parts: dict[str, int] = {}

    def noting_get(self: Objects, key: str) -> bytes | None:
        whole.append(f"{self.root}/{key}")
        return get(self, key)

    def noting_ranges(self: Objects, key: str, wanted: Sequence[range]) -> list[bytes]:
        found = ranges(self, key, wanted)
        parts[key] = parts.get(key, 0) + sum(map(len, found))
        return found

    monkeypatch.setattr(Objects, "get", noting_get)
    monkeypatch.setattr(Objects, "ranges", noting_ranges)
    derive(everything, keep, tmp_path / "cut")
    store = open_store(everything)
    expected: dict[str, int] = {}
    for path in ("train/hidden/values", "train/hidden/mask"):
        spec = store.plan.arrays[path]
        assert not [key for key in whole if key.startswith(f"{everything}/{path}/c/")]
        for unit in range(2):
            key = spec.key(path, unit)
            chunks = ranges_of(spec, unit, (everything / key).read_bytes())
            expected[key] = index_bytes(spec) + sum(len(chunk) for layer in layers for chunk in chunks[layer])
    assert parts == expected


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize(
    ("damaged", "made_again"),
    [
        ("train/hidden/values/c/1/0/0/0", ["train-000001"]),
        ("validation/logits/c/0/0", ["validation-000000"]),
        ("units/train-000000.json", ["train-000000"]),
        ("tokenizer/tokenizer.json", []),
        ("train/hidden/mask/zarr.json", []),
        ("manifest.json", []),
    ],
)
def test_a_damaged_cut_is_repaired_by_cutting_it_again(
    damaged: str, made_again: list[str], deleted: bool, everything: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = derive(everything, "1,4,0.25", tmp_path / "cut")
    before = sealed_tree(tmp_path / "cut")
    data = bytearray((tmp_path / "cut" / damaged).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "cut" / damaged).write_bytes(data)
    if deleted:
        (tmp_path / "cut" / damaged).unlink()
    commit, committed = derive_module.commit_unit, list[str]()
    monkeypatch.setattr(derive_module, "commit_unit", lambda *arguments: (committed.append(arguments[1].key), commit(*arguments)))
    assert derive(everything, "1,4,0.25", tmp_path / "cut").digest == made.digest
    assert committed == [f"units/{unit}.json" for unit in made_again]
    assert sealed_tree(tmp_path / "cut") == before and not verify(str(tmp_path / "cut"), deep=True).problems


def test_the_command_derives_tells_and_refuses(everything: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = open_store(everything.parent / folder_of("1,4,0.25")).digest
    assert hsk("derive", everything, "--keep", "1,4,0.25", "--out", tmp_path / "cut") == 0
    told = capsys.readouterr().out
    assert f"digest {expected}" in told and f"cut from {open_store(everything).digest[:16]}" in told
    assert hsk("derive", everything, "--keep", "1,4,0.25", "--out", tmp_path / "cut", "--json") == 0
    assert json.loads(capsys.readouterr().out)["digest"] == expected
    assert hsk("show", tmp_path / "cut", "--json") == 0
    assert json.loads(capsys.readouterr().out)["made"]["derived_from"] == open_store(everything).digest
    assert hsk("derive", everything, "--keep", "1,4,40", "--out", tmp_path / "no") == 2
    assert "more than the teacher's 32" in capsys.readouterr().err and not (tmp_path / "no").exists()


few_magnitudes = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 6.1e-5, -65504.0])


@given(st.data())
def test_ties_among_units_are_cut_as_the_teachers_device_masks_them(data: st.DataObject) -> None:
    """Cutting k' units out of the k largest is masking the whole vector with k'."""
    dtype = data.draw(st.sampled_from([np.float16, np.float32]))
    width = data.draw(st.integers(2, 19))
    vectors = data.draw(hnp.arrays(dtype, (3, width), elements=few_magnitudes))
    kept = data.draw(st.integers(2, width))
    fewer = data.draw(st.integers(1, kept - 1))
    wide, narrow = (magnitude_mask(torch.from_numpy(vectors), count).numpy() for count in (kept, fewer))
    asked = Hidden(Keep.parse("all"), plan_strategy(Strategy(1), 1), (), 1, fewer, width)
    values, bits = derive_module._narrow(
        asked,
        0,
        vectors[wide].reshape(3, kept),
        np.packbits(wide, axis=-1),
    )
    np.testing.assert_array_equal(np.unpackbits(bits, axis=-1, count=width).astype(bool), narrow)
    assert values.tobytes() == vectors[narrow].tobytes()


@pytest.mark.long
@pytest.mark.real
def test_real_sentences_are_cut_as_they_would_be_extracted_and_replay_to_the_last_bit(tmp_path: Path) -> None:
    teacher, dev = SHARED / "models" / "minilm-l6-sst2", SHARED / "data" / "sst2_small" / "dev.tsv"
    keeps = [Keep.parse("3,9,0.5"), Keep.parse("1,4,0.1")]
    options: dict[str, Any] = {"task": "sst2", "validation": "0.2", "strategies": [Strategy(3)]}
    big, small = extract(str(teacher), str(dev), out=tmp_path, keeps=keeps, **options)
    assert derive(big.root, "1,4,0.1", tmp_path / "cut").digest == small.digest
    again = replay(small.root, str(teacher), rows=64)
    assert again.rows >= 64 and again.equal == again.rows
