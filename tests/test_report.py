"""A page of a made-up sweep whose numbers are known: they stand on it, whole in one file, whatever the data say."""

import itertools
import re
import resource
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import hskstore
from hskstore.errors import OptionError
from hskstore.explore import report as reports
from hskstore.explore.report import report
from hskstore.explore.report_costs import paper_bytes
from hskstore.explore.report_curves import Configured, configured, front, marginal, singles, telling
from hskstore.explore.report_figures import PALETTE, draw_svg
from hskstore.explore.report_page import DARK
from hskstore.explore.report_parts import Figure, Line, Plot, Table, Token, deviation, plain
from hskstore.explore.report_scores import dimensions_part, marginal_part
from hskstore.explore.runs import Predictions, RunRow, SweepFacts, SweepFolder
from hskstore.text.tasks import TASKS
from tests.conftest import hsk
from tests.store.conftest import make_plan, write_store

ROWS = 40
GOLD = np.arange(ROWS) % 2
HOSTILE = "<script>alert(1)</script> \"quoted' & \u202eltr\x00\x1b[31m " + "w" * 3000


def made(name: str, seed: int, score: float | None, **known: Any) -> RunRow:
    """A run of a student of 3 layers and a teacher of 12, 768 wide."""
    given = {"method": "mud" if known.get("keep") else "kd", "series": "", "status": "done", "command": "hsk sweep STORE"}
    given |= {"bytes": 1000, "share_of_hsk": 0.0, "units_of_hsk": 0.0, "seconds_training": 10.0, "versions": {"torch": "2.9"}}
    if known.get("keep"):
        given |= {"rank": "attention", "rank_layer": "aligned", "mask": "magnitude", "values": "f16", "top_layer": 12}
    rest = {"options": "{}", "recipe": "", "store": "digest", "view": "view", "finished": "2026-01-01T00:00:00"}
    row = {**rest, **given, **known, "run": f"{name.replace(' ', '-')}-s{seed}", "name": name, "seed": seed, "score": score}
    return RunRow(**row)


def known() -> list[RunRow]:
    """Predictions alone, three amounts of which one is everything, two series of one dimension."""
    whole = {"keep": "all,all,all", "series": "everything", "depth": 4, "length": 20, "width": 768, "share_of_hsk": 1.0}
    small = {"keep": "1,9,0.1", "depth": 1, "length": 9, "width": 77, "share_of_hsk": 0.01, "bytes": 2000}
    other = {"keep": "2,9,0.05", "depth": 2, "length": 9, "width": 38, "share_of_hsk": 0.0101, "bytes": 3000}
    return [
        made("kd", 0, 0.70, series="kd alone", bytes=100),
        made("kd", 1, 0.72, series="kd alone", bytes=100),
        made("mud 1,9,0.1", 0, 0.80, **small),
        made("mud 1,9,0.1", 1, 0.84, **small),
        made("mud 2,9,0.05", 0, 0.78, **other),
        made("mud all", 0, 0.90, bytes=90_000, **whole),
        made("mud all,10,1.0", 0, 0.88, keep="all,10,1.0", depth=4, length=10, width=768, share_of_hsk=0.5, series="attention"),
        made("mud all,5,1.0", 0, 0.86, keep="all,5,1.0", depth=4, length=5, width=768, share_of_hsk=0.25, series="attention"),
        made("mud 9,9,0.1", 0, None, status="failed", error="ModelError", why="the loss is not finite", keep="9,9,0.1"),
    ]


def folder(out: Path, rows: list[RunRow], names: tuple[str, ...] = ("validation",)) -> Path:
    """Their sweep: a student is right in as many rows as its score says, the first ones."""
    found = SweepFolder(out)
    found.begin(SweepFacts(1, "digest", "sha", 3, 12, TASKS["sst2"].as_json(), dict.fromkeys(names, ROWS), "sha"))
    for row in rows:
        found.write_row(row)
        if row.score is not None:
            said = np.where(np.arange(ROWS) < round(row.score * ROWS), GOLD, 1 - GOLD)
            found.write_predictions(row.run, Predictions(names * ROWS, np.eye(2, dtype=np.float32)[said], GOLD))
    return out


class Page(HTMLParser):
    """What is open when something else is closed, every tag with its attributes, and all text."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self.open else ""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("page")
    made = hskstore.report([folder(place / "sweep", known())], out=place / "page.html", png=place / "png")
    assert made.sections == [f"sweep {place / 'sweep'}"]
    assert all(Path(each).read_bytes().startswith(b"\x89PNG") for each in made.figures) and len(made.figures) == 4
    return Path(made.page).read_text(encoding="utf-8")


# --- numbers


def test_amounts_are_the_papers_with_predictions_alone_first_and_everything_last() -> None:
    amounts = marginal(configured(known(), {}))
    assert [(each.label, each.configurations, each.runs) for each in amounts] == [
        ("predictions alone", 1, 2),
        ("1 % of everything", 2, 3),
        ("everything", 1, 1),
    ]
    middle = amounts[1]
    assert middle.average == pytest.approx((0.82 + 0.78) / 2) and middle.deviation == pytest.approx(0.0305505, abs=1e-6)
    assert (middle.best_name, middle.low, middle.high) == ("mud 1,9,0.1", 0.80, 0.84) and middle.best == pytest.approx(0.82)


def test_a_named_amount_is_one_point_whatever_its_shares_are() -> None:
    rows = [made(f"mud {n}", 0, 0.5 + n / 10, keep=f"{n},9,0.1", series="A^HSK=0.9", share_of_hsk=n / 100) for n in (1, 3)]
    (amount,) = marginal(configured(rows, {}))
    assert (amount.label, amount.share, amount.average) == ("A^HSK=0.9", pytest.approx(0.02), pytest.approx(0.7))


def test_other_ways_to_rank_and_mask_are_no_points_of_the_curve_of_amounts() -> None:
    small = {"keep": "1,9,0.1", "share_of_hsk": 0.01}
    rows = [made("kd", 0, 0.7), made("mud 1,9,0.1", 0, 0.8, **small), made("mud 2,9,0.1", 0, 0.82, **small | {"keep": "2,9,0.1"})]
    rows += [made(f"mud 1,9,0.1 mask={mask}", 0, 0.9, **small, mask=mask) for mask in ("uniform", "random")]
    assert [(each.label, each.configurations, each.best) for each in marginal(configured(rows, {}))] == [
        ("predictions alone", 1, 0.7),
        ("1 % of everything", 2, 0.82),
    ]


def test_nearly_everything_is_not_everything() -> None:
    whole = made("mud all", 0, 0.9, keep="all,all,all", series="everything", share_of_hsk=1.0)
    rows = [whole, made("mud all,40,all", 0, 0.5, keep="all,40,all", share_of_hsk=0.998)]
    found = [(each.label, each.share, each.average) for each in marginal(configured(rows, {}))]
    assert found == [("99 % of everything", 0.99, 0.5), ("everything", 1.0, 0.9)]


def test_numbers_below_an_axis_do_not_meet() -> None:
    shares = (0.0056, 0.0097, 0.053, 0.35, 1.0)
    rows = [made("kd", 0, 0.7)]
    rows += [made(f"mud {n},9,0.1", 0, 0.8, keep=f"{n},9,0.1", share_of_hsk=share) for n, share in enumerate(shares, 1)]
    (figure,) = marginal_part(configured(rows, {}), "accuracy").figures
    assert isinstance(figure.plot, Plot) and [name for _, name in figure.plot.ticks] == ["0", "0.56", "5.3", "35", "100"]


def test_a_dimension_alone_has_its_series_by_share_of_the_full_one() -> None:
    found = configured(known(), {})
    points = singles(found, "length")
    assert [(each.series, each.kept, each.score) for each in points] == [("attention", 0.25, 0.86), ("attention", 0.5, 0.88)]
    assert singles(found, "width") == []
    assert [(each.kept, each.score) for each in singles(found, "depth")] == []


def test_on_the_front_is_what_nothing_as_small_beats() -> None:
    rows = [made(f"mud {n}", 0, score, bytes=size) for n, (size, score) in enumerate([(1, 0.5), (2, 0.4), (3, 0.7), (3, 0.6)])]
    rows.append(made("mud 9", 0, 0.7, bytes=9))
    assert [(each.bytes, each.score) for each in front(configured(rows, {}))] == [(1, 0.5), (3, 0.7)]


def test_what_is_told_of_is_told_once_with_all_its_roles() -> None:
    found = configured(known(), {})
    assert [(role, each.name) for role, each in telling(found, found[0].configuration)] == [
        ("recommended, best, everything", "mud all"),
        ("predictions alone", "kd"),
    ]


def test_groups_have_letters() -> None:
    own = [Configured("c", "kd", made("kd", 0, 0.5), (0.5,), 0.5, 1, None, group) for group in (0, 1, 26, None)]
    assert [each.letter for each in own] == ["a", "b", "27", ""]


def test_table_3s_bytes_are_float32_and_a_byte_for_each_coordinate_of_the_mask() -> None:
    row = made("mud", 0, 0.5, keep="1,10,0.1", units_of_hsk=1.0, width=77)
    assert paper_bytes(row, 100, 770) == (1 * 770 * 4 * 100, 10 * 770 * 100)  # 1 unit is 10 tokens of 77 of 770 coordinates
    assert paper_bytes(made("kd", 0, 0.5, units_of_hsk=None), 100, 770) is None


def test_an_axis_of_layers_counts_whole_ones() -> None:
    whole = {"keep": "all,all,all", "series": "everything", "depth": 4, "length": 20, "width": 768, "share_of_hsk": 1.0}
    few = [
        made(f"mud {depth},all,all", 0, 0.8, **whole | {"keep": f"{depth},all,all", "depth": depth, "series": "g(l, 4)"})
        for depth in (1, 2)
    ]
    (figure,) = dimensions_part(configured([*few, made("mud all", 0, 0.9, **whole)], {}), "accuracy").figures
    assert isinstance(figure.plot, Plot) and figure.plot.ticks == ((1, "1"), (2, "2"))


def test_a_deviation_is_that_of_a_sample() -> None:
    assert deviation([1.0, 3.0]) == pytest.approx(2**0.5) and deviation([1.0]) is None


def test_a_token_is_the_darker_the_more_layers_keep_it() -> None:
    assert [Token("w", kept, 12).shade for kept in (0, 1, 3, 4, 12)] == [0, 1, 1, 2, 4]


# --- the page


def test_the_numbers_of_the_table_stand_on_the_page(page: str) -> None:
    text = Page(page).text
    assert "predictions alone: average 0.7100, best 0.7100; 1 % of everything: average 0.8000, best 0.8200" in text
    assert "attention: 0.8600 at 25 %, 0.8800 at 50 %" in text
    assert "kd: 0.7100 from 100 B" in text and "mud all: 0.9000 from 90.0 kB (a)" in text
    assert "9 runs of 7 configurations: 8 done, 1 failed, 0 ended early" in text
    assert "the loss is not finite" in text and "ModelError" not in text
    assert "Seconds of all steps, without dev scores, mean over the seeds." in text
    assert "digest" in text and "torch 2.9 (9 runs)" in text and "hsk sweep STORE" in text


def test_a_sealed_store_is_one_however_it_is_named_and_so_is_its_copy(tmp_path: Path) -> None:
    write_store(tmp_path / "store", make_plan())
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    report([f"{tmp_path}/store/", tmp_path / "copy"], out=tmp_path / "page.html")
    text = Page((tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert text.count("A sealed store of 29 rows") == 2 and "is not sealed yet" not in text


def test_what_is_not_there_is_left_out_with_a_word(page: str) -> None:
    text = Page(page).text
    assert "Its store is not here; name it beside the sweep. Its digest: digest" in text
    assert "Not here: depth, width (hsk sweep --grid depth)." in text
    assert text.count("Not here: the store is not.") == 3
    assert "What it would be beside the teacher cannot be told: its store is not here." in text


def test_a_page_is_whole_in_itself(page: str) -> None:
    tags = Page(page).tags
    assert not {"script", "iframe", "img", "object", "embed", "audio", "video"} & {tag for tag, _ in tags}
    for tag, said in tags:
        assert not any(name.startswith("on") for name in said), tag
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (said.get(name) or "#").startswith(("#", "data:,")), (tag, said)
    assert not re.search(r"url\((?!#)|@import", page)
    ids = [said["id"] for _, said in tags if "id" in said]
    assert len(ids) == len(set(ids))
    used = re.findall(r'url\(#([^)"]+)\)|href="#([^"]+)"|aria-labelledby="([^"]+)"', page)
    assert {name for found in used for each in found for name in each.split()} <= set(map(str, ids))


def test_a_page_can_be_read_aloud(page: str) -> None:
    tags = Page(page).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[:2] == [1, 2] and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for found in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        root = ElementTree.fromstring(found)
        assert root.get("role") == "img" and [root[0].tag, root[1].tag] == ["title", "desc"]
        assert root[0].text and re.search(r"\d", str(root[1].text))
    for found in re.findall(r"<table.*?</table>", page, re.DOTALL):
        assert 'scope="col"' in found and "<caption>" in found


def test_figures_take_the_pages_colours(page: str) -> None:
    for found in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert not re.search(r"#[0-9a-f]{6}|white|black", found)
        assert "currentColor" in found and "var(--c0)" in found


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrasts_are_those_of_aa_by_day_and_by_night(page: str) -> None:
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", found)) for found in re.findall(r":root \{([^}]*)\}", page))
    for colors in (light, dark):
        for name in ("ink", "link"):
            assert contrast(colors[name], colors["paper"]) >= 4.5 and contrast(colors["ink"], colors["soft"]) >= 4.5
        assert all(contrast(colors["ink"], colors[f"k{shade}"]) >= 4.5 for shade in (1, 2, 3, 4))
        assert all(contrast(colors[f"c{place}"], colors["paper"]) >= 3 for place in range(len(PALETTE)))
    assert len(DARK) == len(PALETTE) and contrast(light["rule"], light["paper"]) >= 3


def test_the_same_sweep_is_the_same_page(page: str, tmp_path: Path) -> None:
    first = report([folder(tmp_path / "sweep", known())], out=tmp_path / "one.html")
    second = report([tmp_path / "sweep"], out=tmp_path / "two.html")
    assert Path(first.page).read_bytes() == Path(second.page).read_bytes()


def test_text_of_strangers_stays_text(tmp_path: Path) -> None:
    rows = [made(HOSTILE[:60], 0, 0.8, keep="1,9,0.1", share_of_hsk=0.01, series=HOSTILE, why=HOSTILE, command=HOSTILE)]
    rows.append(made("bad", 0, None, status="failed", why=HOSTILE, versions={HOSTILE: HOSTILE}))
    found = []
    for row in rows:
        found.append(RunRow(**{**row.__dict__, "run": f"r{len(found)}-s0"}))
    out = tmp_path / "page.html"
    report([folder(tmp_path / "sweep", found)], out=out, command=HOSTILE)
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags} and "<script>alert(1)</script>" in page.text
    assert not set("\x00\x1b\u202e") & set(text) and "\\x00" in page.text and "\\u202e" in page.text


def test_a_lone_surrogate_is_its_escape() -> None:
    assert plain("a\ud800b\nc") == "a\\ud800b c"


def test_labels_that_matplotlib_would_hide_or_compute_are_shown() -> None:
    line = [Line(name, (1.0, 2.0), (1.0, 2.0)) for name in ("_hidden", "$x^2$", "<b>")]
    svg = draw_svg(Figure("f", "<t>", "1", Plot("x", "y", tuple(line)), Table("t", ("a",), ())), "f")
    root = ElementTree.fromstring(svg)
    said = "".join(root.itertext())
    assert "_hidden" in said and "$x^2$" in said and "<b>" in said and "<t>" in said


@pytest.mark.long
def test_a_page_of_500_runs_has_two_megabytes_at_most_in_twenty_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for n in range(166):
        depth, length, width = 1 + n % 13, 1 + n // 13, 50 + n
        share = depth * length * width / (13 * 20 * 768)
        named = {"keep": f"{depth},{length},{width / 768:.3f}", "share_of_hsk": share, "bytes": int(1e8 * share), "width": width}
        named |= {"depth": depth, "length": length, "units_of_hsk": share * 260, "values": ("f16", "q8", "q4")[n % 3]}
        rows += [made(f"mud {n}", seed, float(rng.uniform(0.6, 0.9)), command=HOSTILE[:n], **named) for seed in range(3)]
    rows += [made("kd", seed, 0.7) for seed in range(2)]
    place = folder(tmp_path / "sweep", rows)
    before = resource.getrusage(resource.RUSAGE_SELF)
    found = report([place], out=tmp_path / "page.html")
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert found.bytes <= 2_000_000 and len(rows) == 500
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 20


# --- what goes wrong


def test_what_is_nothing_of_ours_is_one_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "page.html"
    assert hsk("report", tmp_path, "--out", out) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert "is no run, sweep or store: name a folder that hsk distill, hsk sweep or hsk extract has made" in said
    assert hsk("report", tmp_path / "gone", "--out", out) == 2
    assert "is no run, sweep or store, and not there" in " ".join(capfd.readouterr().err.split())
    assert not out.parent.exists()


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text("old")
    sweep = folder(tmp_path / "sweep", known())
    (sweep / "rows" / "kd-s0.json").write_text("{")
    with pytest.raises(OptionError, match=r"kd-s0.json is damaged"):
        report([sweep], out=out)
    with pytest.raises(OptionError, match=r"is a folder: name a file, such as .*report.html"):
        report([sweep], out=tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text("[]")
    with pytest.raises(OptionError, match=r"metrics.json cannot be read: name a folder that hsk distill has made"):
        report([tmp_path / "run"], out=out)
    assert out.read_text() == "old" and sorted(each.name for each in tmp_path.iterdir()) == ["page.html", "run", "sweep"]


def test_a_sweep_without_predictions_or_runs_says_so(tmp_path: Path) -> None:
    sweep = folder(tmp_path / "sweep", known())
    (sweep / "predictions" / "kd-s0.parquet").write_bytes(b"PAR1")
    report([sweep, folder(tmp_path / "none", [])], out=tmp_path / "page.html")
    text = Page((tmp_path / "page.html").read_text()).text
    assert "Not here: " in text and "kd-s0.parquet is missing or damaged" in text
    assert "Which of them are tied is not known here." in text
    assert "Not here: no run came to an end." in text and "A report of 2 sweeps" in text


def test_a_run_that_tells_odd_things_is_shown(tmp_path: Path) -> None:
    said = '{"method": 3, "phases": [{"scores": [{"step": "x"}, 4], "losses": []}, 7], "scores": {"a": {"score": {"b": 0.5}}}}'
    (tmp_path / "metrics.json").write_text(said)
    report([tmp_path], out=tmp_path / "page.html")
    assert "0.5000" in Page((tmp_path / "page.html").read_text()).text


def test_what_draws_must_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"a report needs jinja2 and matplotlib: pip install 'hskstore\[report\]'"):
        report([tmp_path], out=tmp_path / "page.html")
