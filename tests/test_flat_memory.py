"""From files to stored rows in the memory of a batch: what lies on disk is, value by value, what it would be in memory."""

import hashlib
import json
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hskstore.config import Keep, Strategy
from hskstore.stage_one import budget, forecast, sizes
from hskstore.stage_one.asked import Asked
from hskstore.stage_one.facts import facts_of
from hskstore.stage_one.planning import Prepared, count_admitted, make_plans
from hskstore.stage_one.teacher import Teacher
from hskstore.store.plan import Pass
from hskstore.text import rows
from hskstore.text import tokenise as tokenising
from hskstore.text.dataset import Dataset, Examples
from hskstore.text.rows import Rows, open_rows, save_index
from hskstore.text.tally import TextFacts
from hskstore.text.tasks import TASKS
from hskstore.text.tokenise import stored_rows, tokenise
from tests.conftest import make_bert, make_tokenizer, sentences
from tests.test_offsets import columns_of_text


def same(one: Rows, other: Rows) -> None:
    ours, theirs = one.arrays(), other.arrays()
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name, strict=True)
    assert one.sha256() == other.sha256()


def dataset(columns: tuple[list[str], ...], label: bool) -> Dataset:
    ids = np.arange(len(columns[0])) % 2 if label else None
    examples = Examples(columns, ids)
    return Dataset(TASKS["sst2"], {"train": examples, "validation": examples}, {"train": 0, "validation": 0})


TOKENIZER = make_tokenizer()


@pytest.fixture(params=[(1, 1), (3, 9), (16384, 2**18)])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    most_rows, size = request.param
    monkeypatch.setattr(rows, "_BLOCK_ROWS", most_rows)
    monkeypatch.setattr(rows, "_BLOCK_SIZE", size)
    monkeypatch.setattr(tokenising, "_TOKENISE_BATCH", 2 if most_rows == 3 else 4096)


@pytest.mark.usefixtures("block")
@settings(max_examples=25)
@given(columns=columns_of_text, offsets=st.booleans(), label=st.booleans(), seed=st.integers(0, 9))
def test_stored_rows_are_the_tokenised_ones_in_their_order_wherever_they_lie(
    columns: tuple[list[str], ...], offsets: bool, label: bool, seed: int
) -> None:
    data = dataset(columns, label)
    plain = tokenise(data.splits["train"], TOKENIZER, 64, offsets=offsets)
    order = np.random.default_rng(seed).permutation(len(plain))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        same(tokenise(data.splits["train"], TOKENIZER, 64, offsets=offsets, folder=folder / "tokens"), plain)
        stored = stored_rows(data.splits, TOKENIZER, 64, seed=seed, offsets=offsets, folder=folder / "rows")
        same(stored["train"], plain.take(order))
        same(stored["validation"], plain)
        again = open_rows(folder / "rows")
        assert list(again) == list(stored)
        for split in stored:
            same(again[split], stored[split])
        assert {path.name for path in (folder / "rows").iterdir()} == {"rows.json", "train", "validation"}
        for split, unnamed in stored_rows(data.splits, TOKENIZER, 64, seed=seed, offsets=offsets).items():
            same(unnamed, stored[split])


@pytest.mark.usefixtures("block")
@given(columns=columns_of_text, offsets=st.booleans(), data=st.data())
def test_slices_blocks_and_lengths_are_those_of_the_rows(
    columns: tuple[list[str], ...], offsets: bool, data: st.DataObject
) -> None:
    found = tokenise(Examples(columns, None), TOKENIZER, 64, offsets=offsets)
    start = data.draw(st.integers(0, len(found)))
    stop = data.draw(st.integers(start, len(found)))
    same(found.slice(start, stop), found.take(np.arange(start, stop)))
    blocks = list(found.in_runs())
    assert sum(map(len, blocks)) == len(found)
    assert np.concatenate([block.row_id for block in blocks]).tolist() == list(range(len(found)))
    assert np.concatenate([block.input_ids for block in blocks]).tolist() == found.input_ids.tolist()
    assert found.longest == found.n_tokens.max()
    separators = [int(found.input_ids[-1]), 7]
    own = [found.input_ids[a:b].tolist() for a, b in zip(found.bounds[:-1], found.bounds[1:], strict=True)]
    admitted = [sum(token not in separators for token in row) for row in own]
    for strategy, counts in ((Strategy(2), admitted), (Strategy(2, rank="left"), list(map(len, own)))):
        assert count_admitted(found, separators, strategy).tolist() == np.bincount(counts).tolist()
    if found.text is not None:
        assert found.text.most_bytes == np.diff(found.text.bounds).max()


def test_the_hash_is_of_names_dtypes_shapes_and_bytes() -> None:
    """A store's identity hangs on it: the digest of rows as they were written down before they lay on disk."""
    found = Rows(
        input_ids=np.array([2, 5, 3, 2, 3], dtype=np.int32),
        token_type_ids=np.array([0, 0, 1, 0, 0], dtype=np.uint8),
        bounds=np.array([0, 3, 5]),
        label=None,
        row_id=np.array([1, 0]),
    )
    written = b"input_ids <i4 (5,)\n" + found.input_ids.tobytes() + b"token_type_ids |u1 (5,)\n" + b"\0\0\1\0\0"
    written += b"offsets <i8 (3,)\n" + found.bounds.tobytes() + b"label none\n" + b"row_id <i8 (2,)\n" + found.row_id.tobytes()
    assert found.sha256() == hashlib.sha256(written).hexdigest()
    assert found.take([]).sha256()


def test_rows_in_files_cannot_be_written_over(tmp_path: Path) -> None:
    found = tokenise(Examples((["the cat"],), np.array([1])), TOKENIZER, 64, folder=tmp_path / "train")
    save_index({"train": found}, tmp_path)
    for one in (found, open_rows(tmp_path)["train"]):
        with pytest.raises(ValueError, match="read-only"):
            one.input_ids[0] = 1
        with pytest.raises(ValueError, match="read-only"):
            one.label[0] = 0


# --- memory

MEASURE = """
import json, sys, threading, time
from pathlib import Path
from tests.conftest import make_tokenizer
from hskstore.stage_one import planning
from hskstore.config import Strategy
from hskstore.text.dataset import read_dataset
from hskstore.text.rows import open_rows
from hskstore.text.tokenise import stored_rows

def anonymous():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])

peak, stop = 0, threading.Event()
def watch():
    global peak
    while not stop.wait(0.002):
        peak = max(peak, anonymous())

data, folder, few, options = sys.argv[1], Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
tokenizer = make_tokenizer()
keep = options.pop("keep_offsets", False)

def prepare(data, folder):
    dataset = read_dataset(data, **options).with_label_order(["negative", "positive"])
    rows = stored_rows(dataset.splits, tokenizer, 64, seed=0, offsets=keep, folder=folder)
    rows = open_rows(folder)
    planning.count_admitted(rows["train"], [3], Strategy(2))
    return [len(rows["train"]), rows["train"].longest, rows["train"].sha256()]

prepare(few, folder / "few")  # whatever is imported or allocated once
thread = threading.Thread(target=watch)
thread.start()
(rows, *_) = prepare(data, folder / "rows")
stop.set()
thread.join()
print(json.dumps([rows, peak]))
"""
FEW, MANY = 10_000, 100_000


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads how much memory it takes from /proc")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("train.tsv", {"validation": "0.05", "keep_offsets": True}),
        ("train.csv.gz", {}),
        ("train.jsonl", {}),
        ("train.parquet", {}),
        ("saved", {}),
    ],
)
def test_ten_times_the_rows_take_the_same_memory(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    """Within 5 % and 32 bytes a row: the stored order takes 8, a share for validation 9."""
    some = sentences(2000, seed=4)
    whole = name == "saved" or "validation" in options
    places: dict[int, str] = {}
    for n_rows in (FEW, MANY):
        folder = tmp_path / str(n_rows)
        lines = [(some[row * 7919 % 2000], row % 2) for row in range(n_rows)]
        write_as(folder / name, lines)
        write_as(folder / "dev.tsv", lines[:5])
        places[n_rows] = str(folder / name if whole else folder)
    peak: dict[int, int] = {}
    for n_rows, data in places.items():
        words = [data, str(tmp_path / f"rows-{n_rows}"), places[FEW], json.dumps({"task": "sst2", **options})]
        command = [sys.executable, "-c", MEASURE, *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
        assert done.returncode == 0, done.stderr
        rows, peak[n_rows] = json.loads(done.stdout.splitlines()[-1])
        assert rows == (n_rows * 19 // 20 if "validation" in options else n_rows)
    assert peak[MANY] <= 1.05 * peak[FEW] + 32 * (MANY - FEW), peak


def rows_of_sixty_tokens(n_rows: int) -> Rows:
    ids = np.full((n_rows, 60), 7, dtype=np.int32)
    ids[:, 0], ids[:, -1] = 2, 3
    offsets = np.arange(n_rows + 1) * 60
    label, row_id = np.arange(n_rows) % 2, np.arange(n_rows)
    return Rows(ids.ravel(), np.zeros(ids.size, dtype=np.uint8), offsets, label, row_id)


@pytest.mark.parametrize("asked", ["forecast", pytest.param("budget", marks=pytest.mark.long)])
def test_a_forecast_of_ten_times_the_rows_takes_the_same_memory(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 5 % and 32 bytes a row, of sixty tokens: its length is taken down twice or thrice."""
    monkeypatch.setattr(sizes, "SAMPLED_ROWS", 64)
    teacher = Teacher(make_bert(), make_tokenizer(), name="teacher", device=torch.device("cpu"))
    keeps = [Keep(3, 50, step / 10) for step in range(1, 11)]
    facts, run = facts_of(teacher), Pass(0, "fp32", 64, 4096)

    def peak(train: Rows) -> int:
        both = {"train": train, "validation": train.slice(0, 64)}
        tracemalloc.start()
        counts = count_admitted(train, [3], Strategy(2))
        plans = make_plans(Asked(keeps, [Strategy(2)]), run, TASKS["sst2"], facts, both, most_admitted=len(counts) - 1)
        text = {name: TextFacts(64, len(split), len(split.input_ids), 0, 0, 0, {}) for name, split in both.items()}
        ready = Prepared(teacher, facts, both, text, counts, plans)
        if asked == "forecast":
            forecast._forecast("teacher", "data", ready, rate=1.0, seconds=1.0, preparation=0.0)
        else:
            budget._within_budget("teacher", "data", ready, budget=2**40, rate=1.0, seconds=1.0)
        for plan in plans.values():
            sizes.most_bytes(plan, both, counts)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = (rows_of_sixty_tokens(n_rows) for n_rows in (FEW, MANY))
    peak(few)  # whatever is imported or allocated once
    small, big = peak(few), peak(many)
    assert big <= 1.05 * small + 32 * (MANY - FEW), (small, big)


def write_as(path: Path, lines: list[tuple[str, int]]) -> None:
    import gzip

    path.parent.mkdir(exist_ok=True)
    if path.suffix in (".parquet", ""):
        import datasets

        made = datasets.Dataset.from_dict({"sentence": [text for text, _ in lines], "label": [label for _, label in lines]})
        if path.suffix:
            made.to_parquet(str(path))
        else:
            datasets.DatasetDict({"train": made, "validation": made.select(range(5))}).save_to_disk(str(path))
    elif ".jsonl" in path.name:
        path.write_text("".join(json.dumps({"sentence": text, "label": label}) + "\n" for text, label in lines))
    else:
        comma = "," if ".csv" in path.name else "\t"
        content = f"sentence{comma}label\n" + "".join(f"{text}{comma}{label}\n" for text, label in lines)
        path.write_bytes(gzip.compress(content.encode(), 1) if path.suffix == ".gz" else content.encode())
