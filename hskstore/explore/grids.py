"""What a sweep runs through: the grids of Marginal Utility Diminishes by name, or a TOML file of lists where a recipe varies."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from hskstore.config import Amount, Keep, Strategy
from hskstore.errors import OptionError
from hskstore.methods import METHODS, Kd, MethodNames, Mud, Weights, method_options
from hskstore.methods.part_options import PartOptions
from hskstore.options import Option, Plain, options_of, refuse_unknown, text_of
from hskstore.stage_two.recipe import Recipe, recipe_options

GridName = Literal["table5", "depth", "length", "width"]

TABLE_5: Mapping[int, str] = {
    1: "2,1,.5 5,2,.1 1,9,.1 1,2,.5 1,5,.2 1,1,1. 3,3,.1 3,1,.3 1,10,.1 2,5,.1 1,1,.9 5,1,.2 1,3,.3",
    3: (
        "6,1,.5 6,5,.1 1,29,.1 1,10,.3 1,5,.6 2,15,.1 5,2,.3 5,1,.6 5,6,.1 3,5,.2 1,30,.1 5,3,.2 1,6,.5 1,15,.2 2,3,.5 1,3,1. "
        "2,5,.3 3,10,.1 3,2,.5 3,1,1."
    ),
    5: (
        "1,13,.4 6,2,.4 5,5,.2 2,24,.1 1,25,.2 1,6,.8 7,7,.1 6,8,.1 4,4,.3 2,6,.4 2,3,.8 3,8,.2 4,12,.1 1,7,.7 1,49,.1 2,4,.6 "
        "5,10,.1 1,5,1. 3,4,.4 1,10,.5 2,13,.2 3,2,.8 4,3,.4 1,8,.6 5,2,.5 2,5,.5 6,1,.8 4,6,.2 1,16,.3 4,13,.1 6,4,.2"
    ),
    10: (
        "7,3,.5 1,49,.2 3,8,.4 3,5,.7 1,25,.4 2,7,.7 3,16,.2 7,14,.1 2,8,.6 5,3,.7 3,7,.5 4,8,.3 5,7,.3 6,8,.2 5,5,.4 6,2,.8 "
        "5,4,.5 4,5,.5 1,13,.8 1,32,.3 3,33,.1 3,34,.1 4,25,.1 6,4,.4 5,10,.2 2,26,.2 7,15,.1 1,11,.9 4,6,.4 2,6,.8 2,10,.5 "
        "1,10,1. 4,26,.1 5,2,1. 3,4,.8 4,3,.8"
    ),
    50: (
        "6,10,.8 2,36,.7 3,25,.7 2,27,.9 6,9,.9 6,12,.7 6,27,.3 7,24,.3 4,18,.7 3,21,.8 5,10,1. 7,23,.3 5,25,.4 4,26,.5 6,17,.5 "
        "2,26,1. 6,8,1. 4,12,1. 2,43,.6 5,16,.6 4,25,.5"
    ),
}
"""The triplets of the paper's Table 5 (N^D, N^L, N^W as a share of a vector), by A^HSK, of students of up to six layers."""

TOP_LAYERS = (8, 10, 12)
"""L_top of a teacher of 12 layers: section 4.1."""

LENGTH_STRATEGIES: Mapping[str, Mapping[str, str]] = {
    "Att": {"rank": "attention-with-sep", "rank_layer": "same"},
    "Att w/o [SEP]": {"rank": "attention", "rank_layer": "same"},
    "Att (L_top = last) w/o [SEP]": {"rank": "attention", "rank_layer": "aligned"},
    "Left": {"rank": "left"},
}
"""Section 4.2; the third is the paper's Att (L_top = 12) w/o [SEP]."""

LENGTHS: Sequence[Amount] = (1, 0.05, 0.1, 0.3, 0.5)
"""One token, and shares of the longest row: the range in which the paper's curves fall."""

MASKS = {"Mag Mask": "magnitude", "Uniform Mask": "uniform", "Rand Mask": "random"}
"""Section 4.3."""

WIDTHS = (0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of a vector: the paper's axis, and 0.1, which Table 5 begins with."""

ALONE, EVERYTHING = "kd alone", "everything"
"""The two ends of every grid: the teacher's predictions alone; and all layers, tokens and coordinates."""

CROSSED_APART = ("student", "seed")
"""What is the sweep's own, and no key of a grid file."""


@dataclass(frozen=True)
class Configuration:
    """What a run learns and how, but for its student and seed: `keep` and `strategy` where it reads hidden states, and the other
    options of its recipe, by name. `series` is what the paper calls its like: "A^HSK = 1", "Att", "Mag Mask"; `varied` are the
    options that its grid varies."""

    series: str
    keep: Keep | None
    strategy: tuple[tuple[str, str], ...] = ()
    options: tuple[tuple[str, Plain], ...] = ()
    varied: frozenset[str] = frozenset()

    @property
    def method(self) -> str:
        return str(dict(self.options).get("method", Mud.name))

    @property
    def name(self) -> str:
        """Short, for people: "mud 1,9,0.1", "mud 1,1,all rank=left", "kd temperature=2.0"."""
        told = self.varied | _method_options() | {"phases", "set", "weight"}
        keep = [] if self.keep is None else ["all" if str(self.keep) == "all,all,all" else str(self.keep)]
        own = [f"{name}={value}" for name, value in self.strategy]
        own += [f"{name}={text_of(value)}" for name, value in self.options if name in told - {"method"}]
        return " ".join([self.method, *keep, *own])

    def recipe(self, student: str, seed: int) -> Recipe:
        """Raises OptionError for options that make no sense."""
        return Recipe.of({**dict(self.options), "student": student, "seed": seed})

    def strategy_for(self, student_layers: int) -> Strategy:
        """Raises OptionError."""
        known = options_of(Strategy)
        return Strategy(student_layers, **{n: known[n].read_text(v, f"{known[n].flag} {v}") for n, v in self.strategy})


def read_grid(grid: str, *, student_layers: int, teacher_layers: int) -> list[Configuration]:
    """A grid by its name or its file, for such a student and teacher; kd alone and everything are at its end.

    Raises OptionError for a file that is none, naming the key.
    """
    if grid in get_args(GridName):
        return with_ends(named_grid(grid, student_layers=student_layers, teacher_layers=teacher_layers), {})
    path, where = Path(grid), f"--grid {grid}"
    if not path.exists():
        raise OptionError(f"{where}: there is no such file, and no such grid; the grids are {', '.join(get_args(GridName))}")
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or no TOML
        raise OptionError(f"{where}: no grid could be read ({getattr(error, 'strerror', None) or error})") from None
    return cross(given, where, student_layers=student_layers, teacher_layers=teacher_layers)


def cross(given: Mapping[str, Any], where: str, *, student_layers: int, teacher_layers: int) -> list[Configuration]:
    """Every combination of what a grid file lists, once each, and kd alone and everything with what it has of them.

    An option that a method of the list does not have is nothing to that method, as are `keep` and how hidden states are chosen
    to one that reads none. `grid = "table5"` stands in place of `keep` and of how hidden states are chosen; `values` beside it
    are those of everything, which is there once for each.
    """
    choosing = _choosing()
    known = {name: option for name, option in recipe_options().items() if name not in CROSSED_APART} | choosing
    refuse_unknown(given, ["grid", "keep", *known], where)
    grid = given.get("grid")
    if grid is not None:
        if grid not in get_args(GridName):
            raise OptionError(f"{where}: grid is {grid}; expected one of {', '.join(get_args(GridName))}")
        if beside := [name for name in given if name == "keep" or (name in choosing and name != "values")]:
            raise OptionError(f"{where}: grid = {grid!r} says what is kept and how it is chosen; leave out {', '.join(beside)}")
    values = {name: _values(name, value, known.get(name), where) for name, value in given.items() if name != "grid"}
    named = [] if grid is None else named_grid(grid, student_layers=student_layers, teacher_layers=teacher_layers)
    varied = frozenset(name for name, value in values.items() if len(value) > 1)
    found: dict[Configuration, None] = {}
    for combination in product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        for each in _combined(chosen, named, where):
            found[replace(each, varied=varied)] = None
    of_methods, of_the_grid = _method_options(), ("keep", "method", *choosing)
    shared = {name: value for name, value in values.items() if name not in of_the_grid}
    general = {name: value for name, value in shared.items() if name not in of_methods}
    single = {name: value[0] for name, value in shared.items() if name in of_methods and len(value) == 1}
    own = list(found)
    for combination in product(*general.values()):
        own = with_ends(own, single | dict(zip(general, combination, strict=True)), varied)
    return own


def with_ends(
    found: Sequence[Configuration], options: Mapping[str, Plain], varied: frozenset[str] = frozenset()
) -> list[Configuration]:
    """The configurations, then kd alone and everything, with what they can have of the options, where they are not there yet."""
    ends = [
        Configuration(ALONE, None, (), _options_of({**options, "method": Kd.name}), varied),
        Configuration(EVERYTHING, Keep("all", "all", "all"), (), _options_of({**options, "method": Mud.name}), varied),
    ]
    named = {_key(each): each.series for each in ends}
    there = {_key(each) for each in found}
    own = [replace(each, series=each.series or named.get(_key(each), "")) for each in found]
    return [*own, *(each for each in ends if _key(each) not in there)]


def named_grid(grid: str, *, student_layers: int, teacher_layers: int) -> list[Configuration]:
    """One of the paper's grids, of what a student of so many layers can have."""
    assert grid in get_args(GridName), grid
    mud = (("method", Mud.name),)
    if grid == "table5":
        return [
            Configuration(f"A^HSK = {units}", keep, options=mud)
            for units, triplets in table_5().items()
            for keep in triplets
            if isinstance(keep.depth, int) and keep.depth <= student_layers + 1
        ]
    if grid == "depth":
        tops = dict.fromkeys(round(Fraction(top * teacher_layers, 12)) or 1 for top in TOP_LAYERS)
        return [
            Configuration(f"g(l, {top})", Keep(depth, "all", "all"), (("top_layer", str(top)),), mud)
            for top in tops
            for depth in range(1, student_layers + 2)
        ]
    if grid == "length":
        return [
            Configuration(name, Keep("all", length, "all"), tuple(strategy.items()), mud)
            for name, strategy in LENGTH_STRATEGIES.items()
            for length in LENGTHS
        ]
    return [
        Configuration(name, Keep("all", "all", width), (("mask", mask),), mud) for name, mask in MASKS.items() for width in WIDTHS
    ]


def table_5() -> dict[int, list[Keep]]:
    """The triplets of the paper's Table 5 by A^HSK, in its order."""
    return {units: [Keep.parse(triplet) for triplet in words.split()] for units, words in TABLE_5.items()}


@cache
def _method_options() -> frozenset[str]:
    """The names of what some method has."""
    return frozenset(method_options())


@cache
def _recipe_options() -> tuple[str, ...]:
    return tuple(recipe_options())


@cache
def _choosing() -> dict[str, Option]:
    """How hidden states are chosen, but for the depth of the student, which is the student's."""
    return options_of(Strategy)


def _values(name: str, value: Any, option: Option | None, where: str) -> list[Plain]:
    """What a key lists, or the one thing that it has, each of its kind. Raises OptionError."""
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise OptionError(f"{where}: {name} lists nothing; name one value at least, or leave it out")
    for one in listed:
        said = "a list in a list" if isinstance(one, list) else "a table" if isinstance(one, dict) else one
        try:
            _ = Keep.parse(one) if option is None and isinstance(one, str) else _read(option, one)
        except OptionError as error:
            expected = "DEPTH,LENGTH,WIDTH as text, such as '1,9,0.1', or 'all'" if option is None else option.expected
            raise OptionError(f"{where}: {name} has {said}; expected {expected} ({error})") from None
    return listed


def _read(option: Option | None, value: object) -> object:
    if option is None:
        raise OptionError(f"{value} is no text")
    return option.read(value)


def _combined(chosen: Mapping[str, Plain], named: Sequence[Configuration], where: str) -> Iterator[Configuration]:
    """The configurations of one combination: one, or, where hidden states are read by a named grid, those of the grid.

    Raises OptionError where hidden states are read and nothing says which.
    """
    options = _options_of(chosen)
    method = dict(options)["method"]
    if Mud.name not in MethodNames.parse(str(method)).names:
        yield Configuration("", None, options=options)
    elif named:
        for each in named:
            yield Configuration(each.series, each.keep, each.strategy, options)
        values = str(chosen.get("values", _choosing()["values"].default))
        if values != _choosing()["values"].default:
            yield Configuration(f"{EVERYTHING} as {values}", Keep("all", "all", "all"), (("values", values),), options)
    elif "keep" not in chosen:
        raise OptionError(f"{where}: the method {method} reads hidden states: say which, keep = ['1,9,0.1', '2,all,0.5']")
    else:
        strategy = tuple((name, text_of(chosen[name])) for name in _choosing() if name in chosen)
        yield Configuration("", Keep.parse(str(chosen["keep"])), strategy, options)


def _options_of(chosen: Mapping[str, Plain]) -> tuple[tuple[str, Plain], ...]:
    """The options of a recipe among those chosen, but for those that its method does not have; the method is always named.

    A method of one phase takes the last of two numbers, which is that of the predictions.
    """
    name = str(chosen.get("method", Mud.name))
    names = MethodNames.parse(name).names
    own = {option for each in names for option in options_of(METHODS[each])}
    others = _method_options() - own
    found: dict[str, Plain] = {"method": name}
    for option in _recipe_options():
        if option not in chosen or option in (*CROSSED_APART, "method", *others) or (option == "phases" and len(names) == 1):
            continue
        found[option] = chosen[option]
        if option == "set":
            parts = PartOptions.parse(str(chosen[option])).values
            kept = tuple((each, value) for each, value in parts if each.partition(".")[0] in names)
            found[option] = str(PartOptions(kept)) if kept else ""
        if option == "weight":
            terms = Weights.parse(str(chosen[option])).terms
            weights = tuple(each for each in terms if "." not in each[0] or each[0].partition(".")[0] in names)
            found[option] = str(Weights(weights)) if weights else ""
        if found[option] == "":
            del found[option]
    if name in (Kd.name, "finetune"):
        found |= {n: str(found[n]).rpartition(",")[2] for n in ("epochs", "lr", "batch_size") if "," in str(found.get(n, ""))}
    return tuple(found.items())


def _key(configuration: Configuration) -> tuple[object, ...]:
    """What makes two configurations one, whatever their series."""
    return tuple(getattr(configuration, each.name) for each in fields(configuration) if each.name not in ("series", "varied"))
