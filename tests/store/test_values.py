"""Masks that are the same for every vector: as many as asked, and nested where they promise to be."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hskstore.store.masks import static_mask


@given(st.integers(1, 1024), st.data())
def test_the_uniform_mask_is_equation_7_from_zero_and_keeps_exactly_as_many(hidden_size, data):
    kept = data.draw(st.integers(1, hidden_size))
    mask = static_mask("uniform", hidden_size=hidden_size, kept=kept, seed=0)
    assert mask.sum() == kept
    assert np.flatnonzero(mask).tolist() == [round(Fraction(i * hidden_size, kept)) for i in range(kept)]


@given(st.integers(1, 256), st.integers(0, 5), st.data())
def test_a_narrower_random_mask_lies_inside_a_wider_one(hidden_size, seed, data):
    narrow = data.draw(st.integers(1, hidden_size))
    more = data.draw(st.integers(narrow, hidden_size))
    small, big = (static_mask("random", hidden_size=hidden_size, kept=kept, seed=seed) for kept in (narrow, more))
    assert (small.sum(), big.sum()) == (narrow, more)
    assert not (small & ~big).any()


def test_random_masks_follow_the_seed():
    masks = [static_mask("random", hidden_size=64, kept=8, seed=seed).tobytes() for seed in (0, 0, 1)]
    assert masks[0] == masks[1] != masks[2]
