"""Student layers and the teacher layers that guide them, against tables worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hskstore.errors import OptionError
from hskstore.layers import LayerPair, default_top_layer, layer_pairs, nearest_layer, rank_layer, teacher_layer


@pytest.mark.parametrize(("layers", "top"), [(12, 10), (6, 5), (24, 20), (4, 3), (3, 2), (2, 2), (1, 1), (9, 8), (15, 12)])
def test_the_top_layer_is_ten_of_twelve_with_halves_to_even(layers, top):
    # 10/12 of 9 is 7.5 and of 15 is 12.5; of 3 it is 2.5 and of 4 it is 3.33.
    assert default_top_layer(layers) == top


# (L, L', L_top): g(0..L') by "round" and by "eq5", and the layer that ranks the tokens.
TABLES = {
    # l x 10/4 = 0, 2.5, 5, 7.5, 10;  round(10/4) = 2;  l x 12/4
    (12, 4, 10): ([0, 2, 5, 8, 10], [0, 2, 4, 6, 8], [1, 3, 6, 9, 12]),
    # l x 10/6 = 0, 1.67, 3.33, 5, 6.67, 8.33, 10;  round(10/6) = 2;  l x 12/6
    (12, 6, 10): ([0, 2, 3, 5, 7, 8, 10], [0, 2, 4, 6, 8, 10, 12], [1, 2, 4, 6, 8, 10, 12]),
    # l x 5/3 = 0, 1.67, 3.33, 5;  round(5/3) = 2;  l x 6/3
    (6, 3, 5): ([0, 2, 3, 5], [0, 2, 4, 6], [1, 2, 4, 6]),
    # l x 12/4: both maps agree where L' divides L_top
    (12, 4, 12): ([0, 3, 6, 9, 12], [0, 3, 6, 9, 12], [1, 3, 6, 9, 12]),
}


@pytest.mark.parametrize(("shape", "table"), TABLES.items())
def test_the_layer_maps_equal_the_tables(shape, table):
    teacher_layers, student_layers, top = shape
    rounded, eq5, ranks = table
    layers = range(student_layers + 1)
    assert [teacher_layer(layer, student_layers=student_layers, top_layer=top) for layer in layers] == rounded
    assert [teacher_layer(layer, student_layers=student_layers, top_layer=top, layer_map="eq5") for layer in layers] == eq5
    assert [rank_layer(layer, student_layers=student_layers, teacher_layers=teacher_layers) for layer in layers] == ranks


@given(st.integers(1, 24), st.integers(1, 48))
def test_the_rounded_map_starts_at_the_embeddings_ends_at_the_top_and_never_falls(student_layers, top):
    mapped = [teacher_layer(layer, student_layers=student_layers, top_layer=top) for layer in range(student_layers + 1)]
    assert (mapped[0], mapped[-1]) == (0, top)
    assert mapped == sorted(mapped)


def pairs(depth, **options):
    return layer_pairs(depth, **({"student_layers": 4, "teacher_layers": 12, "top_layer": 10} | options))


def test_depth_keeps_the_top_layers_lowest_first():
    every = (LayerPair(0, 0, 1), LayerPair(1, 2, 3), LayerPair(2, 5, 6), LayerPair(3, 8, 9), LayerPair(4, 10, 12))
    assert pairs("all") == pairs(5) == pairs(1.0) == every
    for depth in range(1, 6):
        assert pairs(depth) == every[-depth:]


def test_a_fraction_of_depth_counts_the_embedding_output():
    assert [pair.student for pair in pairs(0.5)] == [3, 4]  # half of 5 is 2.5, to even 2
    assert [pair.student for pair in pairs(0.6)] == [2, 3, 4]
    assert [pair.student for pair in pairs(0.01)] == [4]


def test_ranking_by_the_same_layer_uses_the_guide_but_never_the_embeddings():
    assert [pair.rank for pair in pairs("all", rank_by="same")] == [1, 2, 5, 8, 10]
    assert [pair.rank for pair in pairs("all", rank_by="aligned")] == [1, 3, 6, 9, 12]


def test_more_layers_than_the_student_has_are_refused():
    with pytest.raises(
        OptionError, match=r"^depth 6: a student of 4 layers has 5 to guide .*embedding output.* at most that many$"
    ):
        pairs(6)


def test_a_map_that_leaves_the_teacher_is_refused_with_the_options_that_would_mend_it():
    # 3 layers, top 5: round(5/3) = 2, so that layer 3 would be guided by layer 6 of 5.
    with pytest.raises(
        OptionError,
        match=r"^the layer map eq5 leads student layer 3 to teacher layer 6; the teacher has layers 0 to 5:"
        r" choose another --top-layer or --layer-map$",
    ):
        pairs(1, student_layers=3, teacher_layers=5, top_layer=5, layer_map="eq5")


@pytest.mark.parametrize(
    ("layer", "layers", "nearest"),
    [
        (1, (1, 4, 7), 1),
        (2, (1, 4, 7), 1),
        (3, (1, 4, 7), 4),
        (7, (1, 4, 7), 7),
        (22, (1, 4, 7), 7),
        (2, (1, 3), 1),
        (2, (3, 1), 1),
    ],
)
def test_of_two_layers_as_near_the_lower_is_the_nearest(layer, layers, nearest):
    assert nearest_layer(layer, layers) == nearest


@pytest.mark.parametrize("rank_by", ["aligned", "same"])
def test_where_some_layers_alone_can_rank_the_nearest_of_them_does_and_all_else_stays(rank_by):
    # ModernBERT's 22 layers, of which 1, 4, 7, ... 22 see whole rows.
    able = tuple(range(1, 23, 3))
    shape = {"student_layers": 4, "teacher_layers": 22, "top_layer": 18, "rank_by": rank_by}
    every, some = layer_pairs("all", **shape), layer_pairs("all", **shape, ranking=able)
    assert [(pair.student, pair.teacher) for pair in some] == [(pair.student, pair.teacher) for pair in every]
    assert [pair.rank for pair in some] == [nearest_layer(pair.rank, able) for pair in every if pair.rank is not None]
    # aligned, before: 1, 6, 11, 16, 22; the same as g: 1, 4, 9, 14, 18
    assert [pair.rank for pair in some] == ([1, 7, 10, 16, 22] if rank_by == "aligned" else [1, 4, 10, 13, 19])
