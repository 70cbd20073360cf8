"""Grids of a sweep: the paper's by its numbers, and a file's lists crossed."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hskstore.config import Keep, Strategy
from hskstore.errors import OptionError
from hskstore.explore.grids import Configuration, cross, read_grid, table_5
from hskstore.layers import layer_pairs, plan_strategy

LAYERS = {"student_layers": 4, "teacher_layers": 12}


def series(grid: str, **layers: int) -> dict[str, list[Configuration]]:
    found: dict[str, list[Configuration]] = {}
    for each in read_grid(grid, **(LAYERS | layers)):
        found.setdefault(each.series, []).append(each)
    return found


def test_table_5_has_the_triplets_of_the_paper_that_a_student_of_this_depth_can_have() -> None:
    of_six, of_four = series("table5", student_layers=6), series("table5")
    counted = {name: (len(own), len(of_four[name])) for name, own in of_six.items()}
    assert counted == {  # Table 1 of the paper: ROSITA6 and TinyBERT4
        "A^HSK = 1": (13, 13),
        "A^HSK = 3": (20, 18),
        "A^HSK = 5": (31, 26),
        "A^HSK = 10": (36, 30),
        "A^HSK = 50": (21, 13),
        "kd alone": (1, 1),
        "everything": (1, 1),
    }
    assert [str(each.keep) for each in of_four["A^HSK = 1"]][:4] == ["2,1,0.5", "5,2,0.1", "1,9,0.1", "1,2,0.5"]
    assert str(of_four["A^HSK = 50"][-1].keep) == "4,25,0.5" and str(of_four["A^HSK = 3"][-1].keep) == "3,1,1.0"
    assert all(each.keep is None or each.keep.depth == "all" or each.keep.depth <= 5 for own in of_four.values() for each in own)
    chosen = of_four["A^HSK = 1"][2].strategy_for(4)
    assert (chosen.rank, chosen.rank_layer, chosen.mask) == ("attention", "aligned", "magnitude")  # section 5.2


@pytest.mark.parametrize(("units", "triplets"), table_5().items())
def test_a_triplet_of_table_5_has_the_a_hsk_that_it_stands_under(units: int, triplets: list[Keep]) -> None:
    for keep in triplets:
        assert isinstance(keep.depth, int) and isinstance(keep.length, int) and isinstance(keep.width, float)
        assert abs(keep.depth * keep.length * keep.width - units) <= units * (0.1 if units == 1 else 0.05) + 1e-9, keep
    assert len(set(triplets)) == len(triplets)


def test_depth_has_every_depth_from_three_top_layers_scaled_to_the_teacher() -> None:
    found = series("depth")
    assert list(found) == ["g(l, 8)", "g(l, 10)", "g(l, 12)", "kd alone", "everything"]
    assert [str(each.keep) for each in found["g(l, 8)"]] == [f"{depth},all,all" for depth in range(1, 6)]
    assert [each.strategy_for(4).top_layer for each in found["g(l, 12)"]] == [12] * 5
    assert list(series("depth", teacher_layers=6, student_layers=3))[:3] == ["g(l, 4)", "g(l, 5)", "g(l, 6)"]


def test_length_has_the_four_strategies_of_section_4_2() -> None:
    found = series("length")
    assert list(found)[:4] == ["Att", "Att w/o [SEP]", "Att (L_top = last) w/o [SEP]", "Left"]
    ranked = {name: [pair.rank for pair in _pairs(own[0])] for name, own in found.items() if own[0].strategy}
    # Four layers and the embeddings of a student of 4, guided by g(l, 10) = 0, 2, 5, 8, 10; the third ranks by g(l, 12).
    assert ranked["Att"] == ranked["Att w/o [SEP]"] == [1, 2, 5, 8, 10]
    assert ranked["Att (L_top = last) w/o [SEP]"] == [1, 3, 6, 9, 12]
    assert [found[name][0].strategy_for(4).ranks_separators for name in list(found)[:3]] == [True, False, False]
    assert str(found["Left"][0].keep) == "all,1,all"


def _pairs(configuration: Configuration) -> Any:
    own = plan_strategy(configuration.strategy_for(4), 12)
    top = own.top_layer
    return layer_pairs("all", student_layers=4, teacher_layers=12, top_layer=top, rank_by=own.rank_layer)


def test_width_has_three_masks() -> None:
    found = series("width")
    masks = {name: own[0].strategy_for(4).mask for name, own in found.items() if own[0].strategy}
    assert masks == {"Mag Mask": "magnitude", "Uniform Mask": "uniform", "Rand Mask": "random"}


def test_values_beside_a_named_grid_are_those_of_everything() -> None:
    found = cross({"grid": "table5", "values": ["f16", "rq8"], "max_steps": 7}, "it", **LAYERS)
    whole = [each for each in found if str(each.keep) == "all,all,all"]
    assert [(each.series, each.strategy_for(4).values) for each in whole] == [("everything as rq8", "rq8"), ("everything", "f16")]
    assert len(found) == len(read_grid("table5", **LAYERS)) + 1
    assert all(dict(each.options)["max_steps"] == 7 for each in found)


KEEPS = ["1,9,0.1", "2,all,0.5", "1,1,8"]


@settings(max_examples=20)
@given(
    keep=st.lists(st.sampled_from(KEEPS), min_size=1, unique=True),
    mask=st.lists(st.sampled_from(["magnitude", "uniform"]), min_size=1, unique=True),
    lr=st.lists(st.sampled_from([1e-5, 2e-5, 5e-5]), min_size=1, unique=True),
    alpha=st.lists(st.sampled_from([0.0, 0.5]), min_size=1, unique=True),
)
def test_lists_are_crossed_and_an_option_that_a_method_has_not_is_nothing_to_it(
    keep: list[str], mask: list[str], lr: list[float], alpha: list[float]
) -> None:
    given = {"method": ["mud", "kd"], "keep": keep, "mask": mask, "lr": lr, "alpha": alpha, "max_steps": 7}
    found = cross(given, "it", **LAYERS)
    expected = {("mud", k, m, rate, None) for k, m, rate in product(keep, mask, lr)}
    expected |= {("kd", None, None, rate, a) for rate, a in product(lr, alpha)}
    expected |= {("mud", "all,all,all", None, rate, None) for rate in lr}  # the two ends, at every rate
    expected |= {("kd", None, None, rate, alpha[0] if len(alpha) == 1 else None) for rate in lr}
    options = [dict(each.options) for each in found]
    keeps = [None if each.keep is None else str(each.keep) for each in found]
    said = [
        (o["method"], k, dict(each.strategy).get("mask"), o["lr"], o.get("alpha"))
        for each, o, k in zip(found, options, keeps, strict=True)
    ]
    assert set(said) == expected and len(said) == len(expected)
    assert all(dict(each.options)["max_steps"] == 7 for each in found)
    for each in found:
        assert each.recipe("a-student", 3).seed == 3


def test_a_named_grid_stands_in_a_file_with_what_all_its_runs_have(tmp_path: Path) -> None:
    file = tmp_path / "it.toml"
    file.write_text('grid = "width"\nmax_steps = 5\ntemperature = [1.0, 2.0]\nepochs = "4,2"\n')
    found = read_grid(str(file), **LAYERS)
    assert len(found) == 2 * 15 + 2
    assert {dict(each.options)["max_steps"] for each in found} == {5}
    assert found[0].name == "mud all,all,0.1 mask=magnitude temperature=1.0"
    alone = next(each for each in found if each.series == "kd alone")
    assert dict(alone.options)["epochs"] == "2", "one phase: the predictions' number"


def test_what_belongs_to_one_method_is_not_asked_of_another() -> None:
    given = {"method": ["kd", "mud", "mud+ckd"], "keep": "1,9,0.1", "weight": "mud.hidden=2.0,prediction=0.5"}
    given |= {"set": "ckd.delta=10.0", "targets": "zero"}
    found = {each.name: dict(each.options) for each in cross(given, "it", **LAYERS)}
    assert found["kd weight=prediction=0.5"] == {"method": "kd", "weight": "prediction=0.5"}
    assert "set" in found["mud+ckd 1,9,0.1 targets=zero set=ckd.delta=10.0 weight=mud.hidden=2.0,prediction=0.5"]
    assert len(found) == 4, "everything besides"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keep = [", "no grid could be read"),
        ("kept = ['1,9,0.1']", "kept is no option here"),
        ("seed = [1, 2]\nkeep = 'all'", "seed is no option here"),
        ("keep = ['1,9']", "keep has 1,9; expected DEPTH,LENGTH,WIDTH"),
        ("keep = [1]", "keep has 1; expected DEPTH,LENGTH,WIDTH"),
        ("keep = []", "keep lists nothing"),
        ("keep = 'all'\nrank = 'best'", "rank has best; expected one of"),
        ("keep = 'all'\nlr = [['5e-5']]", "lr has a list in a list"),
        ("keep = 'all'\nmax_steps = ['many']", "max_steps has many; expected a whole number"),
        ("method = 'mud'", "the method mud reads hidden states: say which, keep ="),
        ("grid = 'table6'", "grid is table6; expected one of table5"),
        ("grid = 'table5'\nkeep = 'all'", "leave out keep"),
        ("method = ['mood']\nkeep='all'", "method has mood"),
    ],
)
def test_a_file_that_is_no_grid_is_told_by_its_key(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "it.toml"
    file.write_text(text)
    with pytest.raises(OptionError) as caught:
        read_grid(str(file), **LAYERS)
    assert said in str(caught.value) and f"--grid {file}" in str(caught.value)


def test_a_grid_of_no_name_and_no_file_is_told() -> None:
    with pytest.raises(OptionError, match="--grid table6: there is no such file, and no such grid; the grids are table5, depth"):
        read_grid("table6", **LAYERS)


def test_the_strategy_of_a_configuration_is_that_of_its_student() -> None:
    assert Configuration("", Keep(1, 9, 0.1), (("top_layer", "8"),)).strategy_for(4) == Strategy(4, top_layer=8)
