"""What hsk prints stands there as it is: names, paths and messages hold brackets and colons, and are no markup."""

import dataclasses
import io
import logging
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
    """So that no cell is folded."""
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


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bars_title_and_its_note_are_shown_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0)
    monkeypatch.setattr(console.err, "_file", shown)
    with progress.bars() as watch:
        watch(f"title {name}", 1, 2, f"note {name}")
    assert f"title {name}" in shown.getvalue() and f"note {name}" in shown.getvalue()


def test_commands_print_paths_and_name_mistakes_as_they_were_given(
    teacher_folder: str, data_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in (console.out, console.err):
        monkeypatch.setattr(one, "_width", 400)  # a table breaks what is longer than a line
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
