"""hsk plan: what is exact is exact, what is estimated is near, and what fits into a budget fits."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hskstore.cli.options import bytes_of
from hskstore.config import Keep, Strategy, Values
from hskstore.errors import OptionError
from hskstore.stage_one.budget import Affordable, paper_grid, within_budget
from hskstore.stage_one.calibration import Speed, _Rehearsal, _speed, padded_tokens
from hskstore.stage_one.extract import extract
from hskstore.stage_one.forecast import Forecast, forecast
from hskstore.stage_one.teacher import Teacher
from hskstore.store import open_store
from tests.conftest import SHARED, hsk

KEEPS = [Keep(1, 4, 0.25), Keep("all", "all", "all")]


def cost(teacher: object, data: object, keeps: list[Keep], strategy: Strategy, **options: Any) -> Forecast:
    return forecast(str(teacher), str(data), keeps=keeps, strategies=[strategy], task="sst2", device="cpu", **options)


def real_sizes(root: str) -> dict[str, int]:
    """Bytes on disk by array of a sealed store; "" is the whole."""
    sizes = open_store(root).sizes()
    found = {
        path: sum(size for key, size in sizes.items() if key.startswith(f"{path}/c/")) for path in open_store(root).plan.arrays
    }
    return found | {"": sum(file.stat().st_size for file in Path(root).rglob("*") if file.is_file())}


@pytest.mark.parametrize("values", ["f16", "q4"])
def test_bytes_are_within_a_tenth_of_what_is_then_written(
    values: Values, teacher_folder: str, data_folder: str, tmp_path: Path
) -> None:
    strategy = Strategy(2, values=values)
    told = cost(teacher_folder, data_folder, KEEPS, strategy, seconds=60, keep_offsets=True)
    made = extract(
        teacher_folder,
        data_folder,
        out=tmp_path,
        keeps=KEEPS,
        strategies=[strategy],
        task="sst2",
        device="cpu",
        keep_offsets=True,
    )
    for store, real in zip(told.stores, made, strict=True):
        sizes = real_sizes(real.root)
        assert store.bytes == pytest.approx(sizes[""], rel=0.1)
        assert store.other_bytes == pytest.approx(sizes[""] - sum(size for path, size in sizes.items() if path), rel=0.02)
        assert store.arrays.keys() == sizes.keys() - {""}
        hidden = [path for path in sizes if path.endswith(("values", "mask", "input_ids"))]
        for path in hidden:
            assert store.arrays[path].on_disk == pytest.approx(sizes[path], rel=0.1), path
        opened = open_store(real.root)
        for path, array in store.arrays.items():
            assert array.decoded == opened.read_all(path).nbytes, path


def test_padded_tokens_are_those_that_the_teacher_then_sees(
    teacher_folder: str, data_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = cost(teacher_folder, data_folder, KEEPS[:1], Strategy(2), batch_tokens=200, rate=1)
    seen: list[int] = []
    forward = Teacher.forward

    def counted(self: Teacher, ids: torch.Tensor, *args: Any, **options: Any) -> Any:
        seen.append(ids.numel())
        return forward(self, ids, *args, **options)

    monkeypatch.setattr("hskstore.stage_one.extract.probe", lambda *_: None)
    monkeypatch.setattr("hskstore.stage_one.extract.replay_some", lambda stores, *_: [None] * len(stores))
    monkeypatch.setattr(Teacher, "forward", counted)
    words: dict[str, Any] = {"keeps": KEEPS[:1], "strategies": [Strategy(2)], "task": "sst2", "device": "cpu"}
    extract(teacher_folder, data_folder, out=tmp_path, batch_tokens=200, **words)
    assert sum(split.padded_tokens for split in told.splits.values()) == sum(seen)
    assert sum(split.batches for split in told.splits.values()) == len(seen)
    assert told.splits["train"].rows == 700 and told.splits["train"].tokens < told.splits["train"].padded_tokens


def test_padding_by_hand() -> None:
    """Blocks of four rows, batches of at most six tokens: 1+2+3 and 5; then 2+2 and 6, 7."""
    assert padded_tokens(np.array([5, 1, 3, 2, 6, 2, 7, 2]), 4, 6) == (6, 2 * 2 + 3 + 5 + 2 * 2 + 6 + 7)


def test_with_a_rate_the_teacher_never_runs_and_time_is_by_the_rate(
    teacher_folder: str, data_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Teacher, "forward", lambda *_, **__: pytest.fail("the teacher ran"))
    told = cost(teacher_folder, data_folder, KEEPS, Strategy(2), rate=19)
    assert told.time.seconds == 760 / 19 and not told.time.measured and told.trial is None
    assert not told.memory.measured and told.memory.device_bytes is None
    assert not any(
        size.measured for size in told.stores[0].arrays.values() if size is told.stores[0].arrays["train/hidden/values"]
    )
    assert budgeted(teacher_folder, data_folder, 10**6, rate=1).configurations


def test_a_slow_teacher_ends_the_trial_in_time(teacher_folder: str, data_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token takes 2 ms here, so that one batch would take 8 s, and all of them 12."""
    forward = Teacher.forward

    def slow(self: Teacher, ids: torch.Tensor, *args: Any, **options: Any) -> Any:
        time.sleep(ids.numel() * 2e-3)
        return forward(self, ids, *args, **options)

    monkeypatch.setattr("hskstore.stage_one.calibration.probe", lambda *_: None)
    monkeypatch.setattr(Teacher, "forward", slow)
    began = time.monotonic()
    told = cost(teacher_folder, data_folder, KEEPS, Strategy(2), seconds=2)
    assert time.monotonic() - began < 6
    assert told.trial is not None and 0 < told.trial.rows < 400
    streams = torch.get_num_threads()
    padded = sum(split.padded_tokens for split in told.splits.values())
    assert padded * 2e-3 / streams / 2 < told.time.seconds < 2 * padded * 2e-3


def test_of_too_few_rows_nothing_is_measured(teacher_folder: str, data_folder: str) -> None:
    """The first batch is cut to the time there is."""
    told = cost(teacher_folder, data_folder, KEEPS, Strategy(2), seconds=0)
    assert told.trial is not None and told.trial.rows < 64 and told.time.measured
    ruled = cost(teacher_folder, data_folder, KEEPS, Strategy(2), rate=1)
    assert [store.arrays for store in told.stores] == [store.arrays for store in ruled.stores]


def test_a_rate_is_that_of_the_steps_after_the_first() -> None:
    """Two streams: batches end in pairs, the first pair has filled them."""
    n_tokens = np.full(60, 10)
    batches = [np.arange(start, start + 10) for start in range(0, 60, 10)]
    speed = _speed(batches, n_tokens, [0.0, 5.0, 5.0, 6.0, 6.0, 7.0, 7.0], streams=2)
    assert speed == Speed(100.0 * 4 / 2, None, 6, 60, 7.0)
    many = _speed(batches, n_tokens, [0.0, 1.0, 2.0, 4.0, 5.0, 7.0, 8.0], streams=1)
    assert many.padded_tokens_per_second == 500 / 7
    # Seconds 1, 2, 1, 2, 1 of 1.4 expected.
    assert many.error == pytest.approx((5 / 4 * (3 * 0.4**2 + 2 * 0.6**2)) ** 0.5 / 7)


@pytest.mark.parametrize(("speeds", "best"), [((100, 300), (800, 3.0)), ((100, 104), None)])
def test_another_size_of_batches_is_told_where_it_is_faster(
    speeds: tuple[int, int], best: tuple[int, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = object.__new__(_Rehearsal)
    trial.__dict__ |= {"_n_tokens": np.full(64, 10), "_pass_plan": type("Pass", (), {"batch_tokens": 200, "block_rows": 64})()}
    by_size = {50: speeds[0], 800: speeds[1]}
    monkeypatch.setattr(_Rehearsal, "measure", lambda _, size, *__: Speed(by_size[size], 0.01, 9, 9, 1.0))
    assert trial.better_size(Speed(100, 0.01, 9, 9, 1.0), 1.0) == best


def test_nothing_is_left_behind(teacher_folder: str, data_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(Path(data_folder).iterdir())
    cost(teacher_folder, data_folder, KEEPS, Strategy(2), seconds=1)
    assert not list(tmp_path.iterdir()) and sorted(Path(data_folder).iterdir()) == before


# --- a budget


def budgeted(teacher: object, data: object, budget: int, **options: Any) -> Affordable:
    strategy = options.pop("strategy", Strategy(2))
    return within_budget(str(teacher), str(data), budget=budget, strategy=strategy, task="sst2", device="cpu", **options)


def test_the_grid_is_equation_8() -> None:
    """And has what the paper drew from it: the corners, and lines of its Table 5."""
    grid = set(paper_grid(6, 128))
    assert len(grid) == 7 * 50 * 10
    assert {(1, 1, 1), (7, 50, 10), (1, 9, 1), (3, 8, 2), (1, 49, 2), (6, 27, 3)} <= grid
    assert {length for _, length, _ in paper_grid(3, 20)} == set(range(1, 21))


def test_what_fits_into_a_budget_fits_and_the_best_comes_first(teacher_folder: str, data_folder: str, tmp_path: Path) -> None:
    everything = budgeted(teacher_folder, data_folder, 10**9, seconds=4)
    assert len(everything.configurations) == everything.grid == 3 * 14 * 10  # rows of up to 13 words, and [CLS]
    budget = everything.configurations[200].bytes
    found = budgeted(teacher_folder, data_folder, budget, seconds=4)
    assert all(each.bytes <= budget for each in found.configurations) and found.measured
    kept = [each.kept_units for each in found.configurations]
    assert kept == sorted(kept, reverse=True)
    assert all(each.kept_units <= 1.07 * each.units_of_hsk for each in found.configurations)
    some = [everything.configurations[0], found.configurations[0], found.configurations[-1]]
    keeps = [Keep.parse(each.keep) for each in some]
    made = extract(teacher_folder, data_folder, out=tmp_path, keeps=keeps, strategies=[Strategy(2)], task="sst2", device="cpu")
    for each, real in zip(some, made, strict=True):
        assert each.bytes == pytest.approx(real.bytes, rel=0.1), each.keep
        told = cost(teacher_folder, data_folder, [Keep.parse(each.keep)], Strategy(2), seconds=1).stores[0]
        assert (told.units_of_hsk, told.kept_units) == (each.units_of_hsk, each.kept_units)


def test_a_budget_too_small_names_the_smallest_store(teacher_folder: str, data_folder: str) -> None:
    with pytest.raises(OptionError, match=r"no configuration fits; the smallest, --keep 1,1,0.1, takes about \d\d,\d{3}"):
        budgeted(teacher_folder, data_folder, 1000, rate=1)


@pytest.mark.parametrize("number", [0, -1, float("nan"), float("inf")])
def test_a_rate_or_a_budget_that_is_none_is_refused_before_anything_is_read(number: Any) -> None:
    with pytest.raises(OptionError, match=r"--rate .*: must be above zero and finite"):
        forecast("no teacher", "no data", keeps=[Keep(1, 9, 0.1)], strategies=[Strategy(2)], rate=number)
    with pytest.raises(OptionError, match=r"--rate .*: must be above zero and finite"):
        within_budget("no teacher", "no data", budget=1000, strategy=Strategy(2), rate=number)
    with pytest.raises(OptionError, match=r"--budget .*: must be above zero and finite"):
        within_budget("no teacher", "no data", budget=number, strategy=Strategy(2))


@pytest.mark.parametrize(
    ("text", "count"),
    [("500MB", 500 * 10**6), ("1.5 GiB", 3 * 2**29), ("20000", 20000), ("2kB", 2000), ("2KiB", 2048), ("1T", 10**12), ("7B", 7)],
)
def test_a_budget_is_read_in_powers_of_ten_or_of_two(text: str, count: int) -> None:
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["500XB", "MB", "-5MB", "0", "0.1B", "5 MB please", "nan", "1e3MB", "٣MB", "9" * 400])
def test_a_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="expected a number of bytes"):
        bytes_of(text)


# --- the command


def test_the_command_prints_what_the_function_returns(
    teacher_folder: str, data_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", teacher_folder, data_folder, "--task", "sst2", "--student-layers", 2, "--device", "cpu"]
    assert hsk(*words, "--keep", "1,4,0.25", "--keep", "all", "--rate", 100, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["time"]["seconds"] == 7.6 and [store["name"] for store in found["stores"]] == ["d1-l4-w0.25", "dall-lall-wall"]
    assert hsk(*words, "--keep", "1,4,0.25", "--rate", 100) == 0
    said = capsys.readouterr().out
    assert "train/hidden/values" in said and "7.6 s at 100 rows a second" in said and "rule of thumb" in said
    assert hsk(*words, "--budget", "2MB", "--rate", 100) == 0
    said = capsys.readouterr().out
    assert "of the 420 configurations of the paper's grid fit into 2.0 MB" in said and "--keep 3,14,1.0" in said


# --- real models and data


@pytest.mark.long
@pytest.mark.real
def test_on_real_rows_bytes_are_within_a_tenth_by_a_trial_and_by_the_rule_of_thumb(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split, rows in (("train", 1500), ("dev", 100)):
        lines = (SHARED / f"data/sst2_small/{split}.tsv").read_text().splitlines(keepends=True)
        (data / f"{split}.tsv").write_text("".join(lines[: 1 + rows]))
    teacher, keeps = SHARED / "models/minilm-l6-sst2", [Keep.parse(keep) for keep in ("1,9,0.1", "3,8,0.2")]
    tried = cost(teacher, data, keeps, Strategy(3), seconds=4)
    ruled = cost(teacher, data, keeps, Strategy(3), rate=100)
    made = extract(
        str(teacher), str(data), out=tmp_path / "stores", keeps=keeps, strategies=[Strategy(3)], task="sst2", device="cpu"
    )
    for by_trial, by_rule, real in zip(tried.stores, ruled.stores, made, strict=True):
        assert by_trial.bytes == pytest.approx(real.bytes, rel=0.1), real.root
        assert by_rule.bytes == pytest.approx(real.bytes, rel=0.1), real.root
