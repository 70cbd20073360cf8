"""A small valid plan, columns for it, and the store they make: three units of train (the last is short), two of validation."""

import json
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google_crc32c import value as crc32c

from hskstore.config import Keep, Strategy
from hskstore.layers import PlannedStrategy, layer_pairs
from hskstore.stage_one.extract import extract
from hskstore.store.commit import Receipt, begin, commit_unit, seal
from hskstore.store.encode import encode_unit
from hskstore.store.features import Feature, LayerVectors
from hskstore.store.hidden import Hidden
from hskstore.store.layout import KeptText, Split, plan_arrays
from hskstore.store.objects import Objects
from hskstore.store.plan import Pass, Plan
from hskstore.store.schema import ArraySpec, with_check
from hskstore.store.shard import ABSENT, fingerprint, unit_fingerprints
from hskstore.store.vectors import ENCODINGS, Codes

FILES = {"teacher.json": b'{"sha256":"5e"}', "tokenizer/tokenizer.json": b'{"model":{}}'}
WIDTH, HIDDEN_SIZE, LENGTH, UNIT_ROWS = 5, 20, 3, 8


def make_plan(
    values: Any = "f16",
    *,
    rows: int = 20,
    validation_rows: int = 9,
    labels: str | None = "int64",
    seed: int = 0,
    text: KeptText | None = None,
    others: Sequence[LayerVectors] = (),
    hidden: bool = True,
) -> Plan:
    splits = {
        "train": Split(rows=rows, tokens=7 * rows, longest=10, unit_rows=UNIT_ROWS, sha256="ab"),
        "validation": Split(rows=validation_rows, tokens=50, longest=7, unit_rows=UNIT_ROWS, sha256="cd"),
    }
    pairs = layer_pairs(2, student_layers=3, teacher_layers=6, top_layer=5)
    width = HIDDEN_SIZE if isinstance(ENCODINGS[values], Codes) else WIDTH
    kept = Hidden(Keep(2, LENGTH, 0.25), PlannedStrategy(3, 5, values=values), pairs, LENGTH, width, HIDDEN_SIZE)
    features: dict[str, Feature] = {each.name: each for each in ([kept, *others] if hidden else others)}
    return Plan(
        features=features,
        pass_=Pass(seed=seed, precision="fp32", max_length=64, batch_tokens=8192),
        teacher={"sha256": "5e", "layers": 6, "hidden_size": HIDDEN_SIZE, "labels": ["no", "yes"]},
        tokenizer={"sha256": "70", "pad_token_id": 0, "separators": [3]},
        task={"name": "tiny", "labels": ["no", "yes"]},
        splits=splits,
        arrays=plan_arrays(features, splits, labels=labels, logits=2, text=text),
        text=text,
    )


def random_columns(plan: Plan, split: str, unit: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Every array of one unit, a function of the arguments alone."""
    columns: dict[str, np.ndarray] = {}
    for path, spec in plan.arrays_of(split).items():
        rng = np.random.default_rng([seed, unit, zlib.crc32(path.encode())])
        columns[path] = (rng.random((len(spec.rows(unit)), *spec.shape[1:])) * 100).astype(spec.dtype)
    return columns


def whole(plan: Plan, path: str, seed: int = 0) -> np.ndarray:
    """All rows of one array, as `random_columns` made them."""
    split = path.partition("/")[0]
    units = [number for name, number in plan.units() if name == split]
    return np.concatenate([random_columns(plan, split, unit, seed)[path] for unit in units])


def make_unit(
    plan: Plan, split: str, unit: int, *, seed: int = 0, attempt: str = "first", made: Any = None
) -> tuple[Receipt, dict[str, bytes]]:
    """One unit as a worker has it before the commit."""
    columns = random_columns(plan, split, unit, seed)
    blobs = encode_unit(plan, split, unit, columns)
    entries = unit_fingerprints(plan.arrays_of(split), unit, blobs)
    return Receipt(split, unit, plan.rows_of((split, unit)), attempt, entries, made or {}), blobs


def write_store(root: str | Path, plan: Plan, *, only: Any = None, attempt: str = "first", made: Any = None) -> str:
    """Begin, commit every unit (or those of `only`, in its order), and seal unless units were left out: the digest or ""."""
    objects = Objects(root)
    begin(objects, plan, FILES)
    units = list(plan.units())
    for split, unit in units if only is None else only:
        commit_unit(objects, *make_unit(plan, split, unit, attempt=attempt, made=made))
    return seal(objects, plan) if only is None or set(only) == set(units) else ""


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    before = path.read_bytes()
    after = change(before)
    assert after != before
    path.write_bytes(after)


def flipped(data: bytes, bit: int = 77) -> bytes:
    """The same bytes but for one bit."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def edit_signed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest or a receipt as somebody would who knows its own checksum."""
    document = json.loads(path.read_bytes())
    del document["check"]
    change(document)
    damage(path, lambda _: with_check(document))


def forge(root: Path, files: Mapping[str, bytes]) -> None:
    """Put files into a sealed store and seal them in as a stranger can, with sizes, hashes and checksums that agree."""
    for key, data in files.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(data)
    document = json.loads((root / "manifest.json").read_bytes())
    document["objects"] |= {key: fingerprint(data) for key, data in files.items()}
    document["store_id"] = fingerprint((root / "plan.json").read_bytes())["sha256"]
    del document["check"]
    (root / "manifest.json").write_bytes(with_check(document))


def forged_shard(spec: ArraySpec, payloads: Sequence[bytes]) -> bytes:
    """A shard of the first unit whose chunks are `payloads`, layer after layer of each run of rows, with right checksums."""
    chunks = [payload + crc32c(payload).to_bytes(4, "little") for payload in payloads]
    places = [(sum(map(len, chunks[:place])), len(chunk)) for place, chunk in enumerate(chunks)]
    index = np.array(places + [(ABSENT, ABSENT)] * (spec.chunks_per_shard - len(places)), dtype="<u8").tobytes()
    return b"".join([*chunks, index, crc32c(index).to_bytes(4, "little")])


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def plan() -> Plan:
    return make_plan()


@pytest.fixture(scope="session")
def sealed_once(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed store, to be read only."""
    root = tmp_path_factory.mktemp("sealed") / "store"
    write_store(root, plan)
    return root


@pytest.fixture
def sealed(sealed_once: Path, tmp_path: Path) -> Path:
    """A sealed store of one's own."""
    return Path(shutil.copytree(sealed_once, tmp_path / "store"))


@pytest.fixture(scope="session")
def stores(teacher_folder: str, data_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an extracted store of everything and one of less, to be read only."""
    out = tmp_path_factory.mktemp("stores")
    keeps = [Keep.parse("all"), Keep.parse("1,4,0.25")]
    extract(teacher_folder, data_folder, out=out, keeps=keeps, strategies=[Strategy(2)], task="sst2")
    return out
