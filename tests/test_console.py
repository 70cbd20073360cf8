"""What hsk prints stands there as it is: names, paths and messages hold brackets and colons, and are no markup."""

import dataclasses
import io
import logging
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hskstore.cli import console, print_models, print_stores, progress
from hskstore.explore.demo import DemoResult
from hskstore.explore.show import Progress, RankedRow, StoreDescription
from hskstore.models.anatomy import Anatomy
from hskstore.stage_one.budget import Affordable
from hskstore.stage_one.extract import ExtractedStore
from hskstore.stage_one.forecast import Forecast
from hskstore.stage_one.replay import Replayed
from hskstore.stage_two.card import Distilled
from hskstore.stage_two.scores import Scored
from hskstore.store.verify import Verified
from tests.conftest import hsk

HOSTILE = ["[/path]", "a [bold] b", "[batch, class]", "\\[red]", "a :warning: b", "[link=x]"]
TAME = str.maketrans("[]:", "xyz")
"""The same number of characters, none of which could mean anything."""

FIXED: dict[str, Any] = {
    "ended": "steps",
    "newest": "2026-01-01T00:00:00+00:00",
    "StoreDescription.splits": {"train": {"rows": 2, "tokens": 2, "units": 2}},
}
"""Fields whose values are hskstore's own, never a name."""


def fill(kind: Any, name: str) -> Any:
    """A result whose every text is `name`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        given = {
            field.name: FIXED.get(field.name, FIXED.get(f"{kind.__name__}.{field.name}"))  # type: ignore[union-attr]
            or fill(hints[field.name], name)
            for field in dataclasses.fields(kind)
        }
        return kind(**given)  # type: ignore[operator]
    if kind in (str, Any):
        return name
    if kind in (int, float, bool):
        return kind(2)
    if origin in (typing.Union, types.UnionType, typing.Literal):
        return fill(arguments[0], name) if origin is not typing.Literal else arguments[0]
    if origin is dict or origin is Mapping:
        return {fill(arguments[0], name): fill(arguments[1], name)}
    return origin([fill(arguments[0], name)])


def made(name: str) -> StoreDescription:
    """With a provenance, which has fields of its own."""
    provenance = dict.fromkeys(("teacher_sha256", "teacher", "device", "first_unit", "last_unit"), name)
    return dataclasses.replace(fill(StoreDescription, name), made={**provenance, "versions": {name: name}})


PRINTED: dict[str, Callable[[str], None]] = {
    "scores": lambda name: print_models.print_scores({name: fill(Scored, name)}),
    "a forecast": lambda name: print_stores.print_forecast(fill(Forecast, name)),
    "what is affordable": lambda name: print_stores.print_affordable(fill(Affordable, name)),
    "a store": lambda name: print_stores.print_shown(made(name)),
    "a store cut from another": lambda name: print_stores.print_shown(
        dataclasses.replace(made(name), made=made(name).made | {"derived_from": name})
    ),
    "an unsealed store": lambda name: print_stores.print_shown(fill(Progress, name)),
    "a row": lambda name: print_stores.print_shown(dataclasses.replace(fill(RankedRow, name), tokens=[name] * 3)),
    "a row without ranks": lambda name: print_stores.print_shown(dataclasses.replace(fill(RankedRow, name), ranks=[])),
    "anatomies": lambda name: print_models.print_anatomy([fill(Anatomy, name)] * 2),
    "damage": lambda name: print_stores.print_verified(fill(Verified, name), fill(Replayed, name)),
    "damage that stays": lambda name: print_stores.print_verified(dataclasses.replace(fill(Verified, name), condemned=()), None),
    "a whole store": lambda name: print_stores.print_verified(dataclasses.replace(fill(Verified, name), problems=()), None),
    "a whole unsealed store": lambda name: print_stores.print_verified(
        dataclasses.replace(fill(Verified, name), problems=(), digest=None), None
    ),
    "extracted stores": lambda name: print_stores.print_extracted([fill(ExtractedStore, name)]),
    "a changed digest": lambda name: print_stores.print_extracted(
        [dataclasses.replace(fill(ExtractedStore, name), condemned="0" * 16)]
    ),
    "an unfinished extraction": lambda name: print_stores.print_extracted(
        [dataclasses.replace(fill(ExtractedStore, name), digest=None)]
    ),
    "a distilled student": lambda name: print_models.print_distilled(fill(Distilled, name)),
    "the demo": lambda name: print_models.print_demo(fill(DemoResult, name)),
    "a warning": lambda name: console.Warnings().emit(logging.makeLogRecord({"msg": "it is %s", "args": (name,)})),
    "a line": lambda name: console.out.print(name),
}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tables stand in columns."""
    monkeypatch.setenv("COLUMNS", "400")


@pytest.mark.parametrize("what", PRINTED)
@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_printed_as_they_are_in_every_result(what: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    PRINTED[what](name)
    text = "".join(capsys.readouterr())
    assert name[:16] in text or what in ("an unfinished extraction", "a distilled student", "the demo", "what is affordable")
    PRINTED[what](name.translate(TAME))
    tame = "".join(capsys.readouterr())
    assert text.translate(TAME) == tame.translate(TAME)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_stages_title_and_its_note_are_shown_as_they_are(name: str, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0)
    monkeypatch.setattr(console.err, "_file", shown)
    monkeypatch.setattr(console.err, "_force_terminal", terminal)
    with progress.bars() as watch:
        watch(f"title {name}", 2, 2, f"note {name}")
    assert f"title {name}" in shown.getvalue() and f"note {name}" in shown.getvalue()
    assert terminal == ("\x1b" in shown.getvalue())


# --- narrow

LONG = "/data/a folder with blanks/" + "and-a-very-long-name" * 4 + "/d1-l9-w0.1"


@pytest.mark.parametrize("columns", [20, 80])
@pytest.mark.parametrize("what", PRINTED)
def test_no_path_is_broken_however_narrow_it_is(
    what: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    PRINTED[what](LONG)
    told = "".join(capsys.readouterr())
    rest = told.replace(LONG, "").replace(LONG[:16], "")  # as digests are shown
    assert told and not any(piece in rest for piece in ("/data", "very-long", "w0.1")), told


def printed(table: console.Grid, columns: int) -> list[str]:
    shown = io.StringIO()
    console.Console(file=shown, width=columns, soft_wrap=True).print(table)
    return shown.getvalue().splitlines()


def a_table(*rows: tuple[str, ...]) -> console.Grid:
    table = console.grid("store", "bytes on disk", "digest")
    for row in rows:
        table.add_row(*row)
    return table


def test_a_table_stands_in_columns_where_it_fits() -> None:
    assert printed(a_table(("a", "1.5 kB", "ff"), ("日本", "12.0 kB", "ee")), 40) == [
        "store  bytes on disk  digest",
        "a             1.5 kB      ff",
        "日本         12.0 kB      ee",
    ]


def test_else_its_heads_are_broken() -> None:
    assert printed(a_table(("a", "1.5 kB", "ff"), ("b", "12.0 kB")), 24) == [
        "         bytes",
        "store  on disk  digest",
        "a       1.5 kB      ff",
        "b      12.0 kB",
    ]


def test_else_each_row_is_a_record_with_its_name_whole_and_units_beside_their_numbers() -> None:
    assert printed(a_table(("a/b c/" + "d" * 30, "1.5 kB", "ff"), ("", "12.0 kB", "ee")), 22) == [
        "a/b c/" + "d" * 30,
        "  bytes on disk: 1.5 kB",
        "  digest: ff",
        "  bytes on disk: 12.0 kB",
        "  digest: ee",
    ]
    assert printed(a_table(("s" * 60, "1.5 kB", "ff")), 60) == ["s" * 60, "  bytes on disk: 1.5 kB; digest: ff"]


def test_prose_in_a_table_is_broken_at_blanks() -> None:
    table = console.grid("option", "what it is", left=2, prose=True)
    table.add_row("--values", "how all vectors are stored, see /a/very-long-path/of/some-kind/indeed")
    assert printed(table, 38) == [
        "option    what it is",
        "--values  how all vectors are stored,",
        "          see",
        "          /a/very-long-path/of/some-kind/indeed",
    ]


# --- piped


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    text = capsys.readouterr().err
    assert "\r" not in text and "\x1b" not in text
    return text.splitlines()


def test_in_a_pipe_progress_is_a_line_each_half_a_minute_and_one_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.bars() as watch:
        for done in range(0, 1001, 10):
            watch("teacher", done, 1000, "as it goes")
            clock.now += 1
    assert told(capsys) == [
        "teacher: 300 of 1000 rows, 10 rows/s, 70 s left; as it goes",
        "teacher: 600 of 1000 rows, 10 rows/s, 40 s left; as it goes",
        "teacher: 900 of 1000 rows, 10 rows/s, 10 s left; as it goes",
        "teacher: 1000 of 1000 rows, 10 rows/s; as it goes",
    ]


def test_stages_that_take_turns_share_their_lines_and_quick_ones_have_none(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.bars() as watch:
        for done in range(41):
            watch("train", done, 40)
            watch("dev", 0, 5)
            clock.now += 1
            watch("dev", 5, 5)
    assert told(capsys) == ["train: 30 of 40 rows, 1 rows/s, 10 s left", "train: 40 of 40 rows, 1 rows/s"]


def test_a_run_that_goes_on_is_as_fast_as_it_is_now(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bars() as watch:
        watch("copy", 500, 1000)
        clock.now += 50
        watch("copy", 750, 1000)
        watch("nothing", 0, 0)
    assert told(capsys) == ["copy: 750 of 1000 rows, 5 rows/s, 50 s left"]


@pytest.mark.parametrize("terminal", [True, False])
def test_downloads_show_no_bars_in_a_pipe(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    from hskstore.cli.options import quiet_libraries

    monkeypatch.setattr(console.err, "_force_terminal", terminal)
    quiet_libraries()
    assert are_progress_bars_disabled() != terminal


def test_commands_print_paths_and_name_mistakes_as_they_were_given(
    teacher_folder: str, data_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "[bold] :warning: [" / "]"
    options = ["--task", "sst2", "--student-layers", 2, "--keep", "1,4,0.25", "--out", out]
    assert hsk("extract", teacher_folder, data_folder, *options) == 0
    told = capsys.readouterr()
    store = f"{out}/d1-l4-w0.25"
    assert store in told.err and store in told.out
    for words in (["show", store], ["derive", store, "--keep", "1,3,0.25", "--out", out / "cut"], ["push", store, out / "copy"]):
        assert hsk(*words) == 0
        assert str(out) in capsys.readouterr().out
    student = ["student", "slice", teacher_folder, "--layers", "2,4", "--out", out / "student"]
    assert hsk(*student) == 0
    assert f"{out / 'student'}: layers 2,4 of {teacher_folder}" in capsys.readouterr().out
    assert hsk(*student) == 2
    assert str(out / "student") in capsys.readouterr().err
    assert hsk("show", store, "[/path]") == 2
    assert "[/path]" in capsys.readouterr().err


def test_a_path_of_any_bytes_is_printed(teacher_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", printed)
    assert hsk("student", "slice", teacher_folder, "--layers", "1", "--out", tmp_path / "\udcff") == 0
    printed.seek(0)
    assert "\\udcff: layers 1 of" in printed.read()


def test_what_was_given_is_told_by_its_first_letters_and_gives_the_terminal_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    assert hsk("show", "x" * 5000) == 2
    assert "x..." in (said := capsys.readouterr().err) and len(said) < 1000
    assert hsk("show", "\x1b[31mred\r") == 2
    assert "\\x1b[31mred\\x0d" in capsys.readouterr().err
