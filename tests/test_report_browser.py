"""Pages in a real browser, without a network: nothing is asked for, nothing scrolls sideways on a phone, text stays text."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hskstore.config import Keep, Strategy
from hskstore.explore.report import report
from hskstore.explore.sweep import sweep
from hskstore.stage_one.extract import extract
from hskstore.stage_two.distill import distill
from hskstore.stage_two.recipe import Recipe
from tests.browser import Browser
from tests.conftest import make_bert, save_folder, write_tsv
from tests.test_report import HOSTILE, Page, folder, known

pytestmark = [pytest.mark.long, pytest.mark.browser]
GRID = 'keep = ["1,3,0.25", "all,3,1.0", "all,5,1.0", "1,all,1.0", "all,all,0.5"]\nmethod = "mud"\nmax_steps = 6\n'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a tiny world's sweep, run and store."""
    place = tmp_path_factory.mktemp("world")
    teacher, student = save_folder(make_bert(), place / "teacher"), save_folder(make_bert(layers=2, hidden=16), place / "student")
    (place / "data").mkdir()
    for name, rows in (("train", 90), ("dev", 40)):
        write_tsv(place / "data" / f"{name}.tsv", rows, seed=rows)
    (place / "grid.toml").write_text(GRID)
    (rich,) = extract(teacher, str(place / "data"), out=place, rich=True, strategies=[Strategy(1)], task="sst2")
    sweep(rich.root, student, grid=str(place / "grid.toml"), out=place / "sweep")
    keeps = [Keep.parse("1,3,0.25")]
    (plain,) = extract(teacher, str(place / "data"), out=place, keeps=keeps, strategies=[Strategy(2)], task="sst2")
    distill(plain.root, Recipe(student=student, max_steps=6), out=place / "run")
    report([place / "sweep", place / "run", plain.root, rich.root], out=place / "page.html")
    return place / "page.html"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hostile")
    rows = [replace(row, name=HOSTILE, series=HOSTILE, command=HOSTILE, why=row.why and HOSTILE) for row in known()]
    report([folder(place / "sweep", rows)], out=place / "page.html", command=HOSTILE)
    return place / "page.html"


def test_every_part_tells_what_a_whole_world_has(whole: Path) -> None:
    text = Page(whole.read_text(encoding="utf-8")).text
    assert "A report of 1 sweep, 1 run, 2 stores" in text
    for said in ("beside the teacher (estimated)", "Figures 4 and 5", "most attended token, seen from the first one", "layers)"):
        assert said in text
    assert text.count("Rows it gets wrong and its teacher right") == 2 and "Losses of the phase" in text
    assert "Not here: the store is not" not in text


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("kind", ["whole", "hostile"])
def test_a_page_needs_nothing_and_fits(
    browser: Browser, kind: str, width: int, dark: bool, request: pytest.FixtureRequest
) -> None:
    page = request.getfixturevalue(kind)
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(page, width=width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.run("document.documentElement.scrollWidth") <= width == browser.run("innerWidth")
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.resolve().as_uri()]
    assert browser.complaints == []
    assert browser.run("document.scripts.length") == 0
    ink, paper = browser.run("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    assert (ink, paper) == (("rgb(232, 234, 237)", "rgb(20, 22, 26)") if dark else ("rgb(28, 30, 33)", "rgb(255, 255, 255)"))
    drawn = browser.run("[...document.querySelectorAll('svg text')].map(each => getComputedStyle(each).fill)")
    assert drawn and set(drawn) == {ink}


def test_a_figure_is_heard_as_its_numbers(browser: Browser, whole: Path) -> None:
    browser.open(whole, width=1200)
    images = [node for node in browser.heard() if node.get("role", {}).get("value") in ("image", "img")]
    names = [node["name"]["value"] for node in images]
    assert any("accuracy against A^HSK" in name and "predictions alone: average 0." in name for name in names), names


def test_a_table_on_a_phone_still_is_one_to_who_listens(browser: Browser, whole: Path) -> None:
    browser.open(whole, width=360)
    roles = [node.get("role", {}).get("value") for node in browser.heard()]
    assert {"table", "row", "columnheader", "rowheader", "cell"} <= set(roles)
