"""A configuration is read as it is written, and a mistake in it is answered in the user's words."""

from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hskstore.config import (
    MOST_COUNT,
    MOST_SEED,
    Keep,
    LayerMap,
    Mask,
    Rank,
    RankLayer,
    Score,
    Strategy,
    Values,
    check_count,
    check_positive,
    check_seed,
    check_share,
    resolve,
    units_of_hsk,
)
from hskstore.errors import OptionError
from hskstore.models.widths import PruneTo

fractions = st.floats(min_value=0, max_value=1, exclude_min=True)
amounts = st.one_of(st.integers(1, 10**6), fractions, st.just("all"))
keeps = st.builds(Keep, amounts, amounts, amounts)


# --- Keep


@given(keeps)
def test_what_a_keep_prints_reads_back_as_itself(keep):
    read = Keep.parse(str(keep))
    assert read == keep
    assert [type(amount) for amount in (read.depth, read.length, read.width)] == [
        type(amount) for amount in (keep.depth, keep.length, keep.width)
    ]


@given(keeps, keeps)
def test_two_keeps_share_a_name_only_if_they_are_the_same(one, other):
    assert (one.name == other.name) == (one == other) == (str(one) == str(other))


def test_a_name_spells_out_the_three_amounts():
    assert Keep.parse("1,9,0.1").name == "d1-l9-w0.1"
    assert Keep.parse("all").name == "dall-lall-wall"


def test_a_count_of_one_is_not_the_whole():
    count, whole = Keep.parse("1,9,1"), Keep.parse("1,9,1.0")
    assert count != whole
    assert len({count, whole}) == 2
    assert (resolve(count.width, 768), resolve(whole.width, 768)) == (1, 768)


def test_equal_keeps_are_one_in_a_set():
    assert len({Keep.parse("1,9,0.1"), Keep.parse(" 1, 9 ,0.10 "), Keep(1, 9, 0.1)}) == 1


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("1,9,0.1", Keep(1, 9, 0.1)),
        (" 5 , 2 , .3 ", Keep(5, 2, 0.3)),
        ("all", Keep("all", "all", "all")),
        ("all,all,0.5", Keep("all", "all", 0.5)),
        ("0.5,1.0,384", Keep(0.5, 1.0, 384)),
    ],
)
def test_integers_are_counts_and_decimals_are_fractions(text, keep):
    assert Keep.parse(text) == keep


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--keep : expected DEPTH,LENGTH,WIDTH (layers, tokens, coordinates), such as 1,9,0.1, or all"),
        ("1,9", "--keep 1,9: expected DEPTH,LENGTH,WIDTH (layers, tokens, coordinates), such as 1,9,0.1, or all"),
        (
            "1,2,3,4",
            "--keep 1,2,3,4: expected DEPTH,LENGTH,WIDTH (layers, tokens, coordinates), such as 1,9,0.1, or all",
        ),
        (
            "all,all",
            "--keep all,all: expected DEPTH,LENGTH,WIDTH (layers, tokens, coordinates), such as 1,9,0.1, or all",
        ),
        ("1,nine,0.1", "--keep 1,nine,0.1: 'nine' is neither a count (9), a fraction (0.1) nor 'all'"),
        ("1,,0.1", "--keep 1,,0.1: '' is neither a count (9), a fraction (0.1) nor 'all'"),
        ("1,9,10%", "--keep 1,9,10%: '10%' is neither a count (9), a fraction (0.1) nor 'all'"),
        ("1,9,nan", "--keep 1,9,nan: 'nan' is neither a count (9), a fraction (0.1) nor 'all'"),
        ("1,9,1.2.3", "--keep 1,9,1.2.3: '1.2.3' is neither a count (9), a fraction (0.1) nor 'all'"),
        ("1,9,0.0", "--keep 1,9,0.0: the fraction 0.0 must be above 0 and at most 1.0"),
        ("1,9,1.5", "--keep 1,9,1.5: the fraction 1.5 must be above 0 and at most 1.0"),
        ("-0.5,9,1", "--keep -0.5,9,1: the fraction -0.5 must be above 0 and at most 1.0"),
        ("0,9,0.1", "--keep 0,9,0.1: the count 0 must be at least 1"),
        ("1,-2,0.1", "--keep 1,-2,0.1: the count -2 must be at least 1"),
    ],
)
def test_a_keep_that_makes_no_sense_is_refused_with_what_would(text, message):
    with pytest.raises(OptionError) as refused:
        Keep.parse(text)
    assert str(refused.value) == message


@pytest.mark.parametrize("amount", [0, -2, 0.0, 1.5, float("nan"), float("inf"), "nine", None, True, np.float32(0.5)])
@pytest.mark.parametrize("place", range(3))
def test_a_keep_that_was_not_typed_is_refused_likewise(amount, place):
    amounts = [1, 9, 0.1]
    amounts[place] = amount
    with pytest.raises(OptionError, match=r"^--keep "):
        Keep(*amounts)


# --- resolve


@pytest.mark.parametrize(
    ("amount", "whole", "expected"),
    [(0.5, 5, 2), (0.5, 7, 4), (0.25, 6, 2), (0.25, 10, 2), (0.25, 14, 4), (0.1, 768, 77), (0.1, 384, 38), (0.07, 150, 10)],
)
def test_a_fraction_is_rounded_with_halves_to_even(amount, whole, expected):
    assert resolve(amount, whole) == expected


@given(st.integers(1, 1000), st.integers(0, 2000))
def test_a_fraction_means_the_decimal_that_was_typed(thousandths, whole):
    assert resolve(thousandths / 1000, whole) == max(1, round(Fraction(thousandths, 1000) * whole))


@given(fractions, st.integers(1, 10**5))
def test_a_fraction_is_at_least_one_and_at_most_the_whole(amount, whole):
    assert 1 <= resolve(amount, whole) <= whole


@given(st.integers(1, 10**5), st.integers(1, 10**5))
def test_a_count_is_itself_and_all_is_the_whole(count, whole):
    assert resolve(count, whole) == count
    assert resolve("all", whole) == resolve(1.0, whole) == whole


# --- Strategy

CHOICES = {
    "layer_map": ("--layer-map", LayerMap),
    "rank": ("--rank", Rank),
    "rank_layer": ("--rank-layer", RankLayer),
    "score": ("--score", Score),
    "mask": ("--mask", Mask),
    "values": ("--values", Values),
}


@pytest.mark.parametrize("field", CHOICES)
def test_a_strategy_takes_its_choices_and_lists_them_to_whoever_gives_another(field):
    option, choices = CHOICES[field]
    for choice in get_args(choices):
        assert getattr(Strategy(3, **{field: choice}), field) == choice
    with pytest.raises(OptionError) as refused:
        Strategy(3, **{field: "best"})
    assert str(refused.value) == f"{option} best: choose one of {', '.join(get_args(choices))}"


def test_a_student_without_layers_is_refused():
    with pytest.raises(OptionError, match=r"^--student-layers 0: must be a whole number from 1 to"):
        Strategy(0)


def test_the_defaults_are_those_of_the_paper():
    assert Strategy(4) == Strategy(4, None, "round", "attention", "aligned", "probability", "magnitude", "f16")


# --- numbers

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, NAN, INFINITE, True, "3", MOST_COUNT + 1])
def test_what_is_no_count_is_refused(value):
    with pytest.raises(OptionError, match=r"^--epochs .*: must be a whole number from 1 to 2147483647$"):
        check_count("--epochs", value)


@pytest.mark.parametrize("value", [0, 0.0, -1e-9, NAN, INFINITE, -INFINITE, "3"])
def test_what_is_not_above_zero_or_not_finite_is_refused(value):
    with pytest.raises(OptionError, match=r"^--lr .*: must be above zero and finite$"):
        check_positive("--lr", value)


@pytest.mark.parametrize("value", [-0.1, 1.1, NAN, INFINITE, "0.5"])
def test_what_is_no_share_is_refused(value):
    with pytest.raises(OptionError, match=r"^--alpha .*: must be from 0 to 1$"):
        check_share("--alpha", value)


@pytest.mark.parametrize("value", [-1, MOST_SEED + 1, 0.5, NAN])
def test_what_is_no_seed_is_refused(value):
    with pytest.raises(OptionError, match=r"^--seed .*: must be a whole number from 0 to 4294967295$"):
        check_seed(value)


def test_numbers_in_their_bounds_are_accepted_and_so_is_an_option_left_out():
    for count in (1, np.int64(3), MOST_COUNT, None):
        check_count("--epochs", count)
    for number in (1e-9, 3, np.float32(2), None):
        check_positive("--lr", number)
    for share in (0, 0.5, 1):
        check_share("--alpha", share)
    for seed in (0, MOST_SEED):
        check_seed(seed)


def test_widths_name_the_option_that_they_were_given_to():
    assert PruneTo.parse("2,all,128", "--to") == PruneTo(2, None, 128)
    with pytest.raises(OptionError, match=r"^--to 2,8: expected HEADS,FFN,RANK"):
        PruneTo.parse("2,8", "--to")
    with pytest.raises(OptionError, match=r"^--prune-to 2,8: expected"):
        PruneTo.parse("2,8")


def test_units_of_hsk_is_the_product_of_the_three():
    assert units_of_hsk(1, 9, 0.1) == pytest.approx(0.9)
