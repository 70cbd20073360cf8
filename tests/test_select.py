"""What is kept of a batch: exactly as many as asked, the best first, ties to the lower index, and a codec that returns it."""

from fractions import Fraction
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hskstore.config import Keep, Rank
from hskstore.features import HIDDEN
from hskstore.features.pack import (
    SMALLEST_SCALE,
    bits_on_device,
    blank_padding,
    encode,
    kept_on_device,
    kept_values,
    pack_bits,
    pack_nibbles,
    quantise,
    round_values,
)
from hskstore.features.select import _wanted, gather_tokens, magnitude_mask, mask_on_device, random_scores, token_rank
from hskstore.layers import PlannedStrategy
from hskstore.models.observe import Seen
from hskstore.stage_one.planning import count_admitted
from hskstore.stage_one.teacher_pass import padded
from hskstore.store.derive import admitted_tokens
from hskstore.store.hidden import plan_hidden
from hskstore.store.layout import SplitRows
from hskstore.store.masks import unpack_mask
from hskstore.store.plan import Pass, make_plan
from hskstore.store.vectors import ENCODINGS, unpack_nibbles
from hskstore.text.rows import Rows

F16_MAX = 65504.0
QUANTISED_MAX = {"q8": 127, "q4": 7}

few = st.integers(-3, 3).map(float)
wide = st.floats(-F16_MAX, F16_MAX, width=32)


@st.composite
def vectors(draw, dtypes=(torch.float32, torch.float16, torch.bfloat16), most=24):
    """A [rows, width] tensor in which many magnitudes are equal: small integers, or floats that were rounded."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, most))
    element = draw(st.sampled_from([few, wide, st.one_of(few, wide)]))
    values = draw(st.lists(element, min_size=rows * width, max_size=rows * width))
    return torch.tensor(values).view(rows, width).to(draw(st.sampled_from(dtypes)))


# --- magnitude mask


def stable_mask(values: torch.Tensor, kept: int) -> np.ndarray:
    order = np.argsort(-values.float().abs().numpy(), axis=-1, kind="stable")[..., :kept]
    mask = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(mask, order, True, axis=-1)
    return mask


@given(vectors(), st.data())
def test_the_magnitude_mask_equals_a_stable_sort(values, data):
    kept = data.draw(st.integers(1, values.shape[-1]))
    mask = magnitude_mask(values, kept)
    assert (mask.sum(dim=-1) == kept).all()
    np.testing.assert_array_equal(mask.numpy(), stable_mask(values, kept))


@given(vectors(), st.data())
def test_a_gpu_s_kernels_choose_and_pack_what_a_cpu_does(values, data):
    kept = data.draw(st.integers(1, values.shape[-1]))
    mask = magnitude_mask(values, kept)
    assert torch.equal(mask_on_device(values.abs(), kept), mask)
    assert torch.equal(kept_on_device(values, mask, kept), kept_values(values, mask, width=kept))
    assert torch.equal(bits_on_device(mask), pack_bits(mask))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kept", [1, 38, 77, 383])
def test_the_magnitude_mask_equals_a_stable_sort_on_rounded_states_of_real_width(dtype, kept):
    hidden = torch.randn(200, 384, generator=torch.Generator().manual_seed(kept)).to(dtype)
    assert any(len(row.abs().unique()) < 384 for row in hidden)
    np.testing.assert_array_equal(magnitude_mask(hidden, kept).numpy(), stable_mask(hidden, kept))


@given(vectors(), st.data())
def test_a_narrower_magnitude_mask_lies_inside_a_wider_one(values, data):
    narrow = data.draw(st.integers(1, values.shape[-1]))
    more = data.draw(st.integers(narrow, values.shape[-1]))
    assert not (magnitude_mask(values, narrow) & ~magnitude_mask(values, more)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_padding_is_blank_to_the_last_bit_whatever_stood_there(dtype):
    vectors = torch.tensor([[[[1.5, -2.0], [float("nan"), -1.0]], [[-0.0, 3.0], [float("-inf"), -0.0]]]], dtype=dtype)
    blank_padding(vectors, torch.tensor([False, True])[None, None, :, None])
    assert vectors.tolist() == [[[[1.5, -2.0], [0.0, 0.0]], [[0.0, 3.0], [0.0, 0.0]]]]
    assert vectors.signbit().tolist() == [[[[False, True], [False, False]], [[True, False], [False, False]]]]


def test_equal_magnitudes_keep_the_lower_indexes_whatever_their_sign():
    mask = magnitude_mask(torch.tensor([[1.0, -2.0, 2.0, -0.0, 2.0, 0.0]]), 2)
    assert mask.tolist() == [[False, True, True, False, False, False]]


def test_all_zeros_keep_the_first():
    assert magnitude_mask(torch.zeros(2, 5), 3).tolist() == [[True, True, True, False, False]] * 2


# --- token rank


@st.composite
def scored(draw):
    rows, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 10))
    size = rows * tokens
    score = draw(st.lists(st.one_of(few, wide), min_size=size, max_size=size))
    admitted = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return torch.tensor(score).view(rows, tokens), torch.tensor(admitted).view(rows, tokens)


quarters = st.sampled_from([0.25, 0.5, 0.75, 1.0])
lengths = st.one_of(st.integers(1, 12), quarters, st.just("all"))


def wanted(length, available: int) -> int:
    if length == "all":
        return available
    if isinstance(length, int):
        return min(length, available)
    return min(available, max(1, round(Fraction(length) * available)))


@given(scored(), lengths, st.integers(1, 12))
def test_tokens_are_ranked_best_first_among_the_admitted_with_ties_to_the_lower_index(batch, length, slots):
    score, admitted = batch
    positions, n_kept = token_rank(score, admitted, slots=slots, length=length)
    assert positions.shape == (len(score), slots)
    for row in range(len(score)):
        candidates = [token for token in range(score.shape[1]) if admitted[row, token]]
        best = sorted(candidates, key=lambda token: (-score[row, token].item(), token))
        count = min(slots, wanted(length, len(candidates)))
        assert n_kept[row] == count
        assert positions[row].tolist() == best[:count] + [-1] * (slots - count)


@given(scored(), st.integers(1, 9), st.integers(0, 3))
def test_a_smaller_length_is_a_prefix(batch, length, more):
    score, admitted = batch
    short, n_short = token_rank(score, admitted, slots=length, length=length)
    long, n_long = token_rank(score, admitted, slots=length + more, length=length + more)
    assert (n_short <= n_long).all()
    assert torch.equal(short, long[:, :length])


@given(
    rows=st.lists(
        st.lists(st.integers(0, 5), max_size=7).flatmap(lambda ids: st.permutations([*ids, 6])), min_size=1, max_size=6
    ),
    separators=st.lists(st.integers(1, 5), max_size=2, unique=True),
    rank=st.sampled_from(get_args(Rank)),
)
def test_planning_and_deriving_and_ranking_admit_the_same_tokens_to_a_rank(rows, separators, rank):
    """Rows as they are planned, as they are stored, and as a batch on the teacher's device."""
    strategy = PlannedStrategy(1, top_layer=1, rank=rank)
    own = [[at for at, token in enumerate(ids) if rank != "attention" or token not in separators] for ids in rows]
    bounds = np.cumsum([0, *map(len, rows)])
    flat = np.array([token for ids in rows for token in ids], dtype=np.int32)
    ragged = Rows(flat, np.zeros(len(flat), dtype=np.uint8), bounds, None, np.arange(len(rows)))
    counts = count_admitted(ragged, separators, strategy)
    assert counts.tolist() == np.bincount([len(admitted) for admitted in own]).tolist()
    keep = Keep("all", "all", "all")
    hidden = plan_hidden(keep, strategy, teacher_layers=1, hidden_size=8, most_admitted=len(counts) - 1)
    plan = make_plan(
        [hidden],
        Pass(0, "fp32", 64, 4096),
        splits={"train": SplitRows(len(rows), len(flat), ragged.longest, "0")},
        teacher={"layers": 1, "hidden_size": 8, "labels": ["a", "b"]},
        tokenizer={"pad_token_id": 0, "separators": separators},
        task={},
        labels=None,
    )
    stored = {"train/input_ids": ragged.padded(0)[0], "train/n_tokens": ragged.n_tokens}
    store = SimpleNamespace(plan=plan, root="store", read=lambda path, unit: stored[path])
    assert admitted_tokens(store, strategy).tolist() == [len(admitted) for admitted in own]
    batch = padded(ragged, 0)
    states = torch.zeros(*batch[0].shape, 8)
    score = torch.zeros(batch[0].shape)
    seen = Seen(torch.zeros(len(rows), 2), {0: states, 1: states}, {0: score, 1: score})
    kept = HIDDEN.capture(hidden, plan, seen, batch, ragged, None)
    assert kept["n_kept"].tolist() == [[len(admitted)] * len(hidden.pairs) for admitted in own]
    for positions, admitted in zip(kept["token"][:, 0].tolist(), own, strict=True):
        assert sorted(at for at in positions if at >= 0) == admitted


def test_a_row_with_nothing_admitted_keeps_nothing():
    positions, n_kept = token_rank(torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool), slots=2, length=0.5)
    assert (positions.tolist(), n_kept.tolist()) == ([[-1, -1]], [0])


def test_a_token_that_is_not_admitted_is_not_kept_even_where_an_admitted_score_is_minus_infinity():
    score = torch.tensor([[0.0, -torch.inf, 1.0]])
    admitted = torch.tensor([[False, True, True]])
    positions, n_kept = token_rank(score, admitted, slots=3, length="all")
    assert (positions.tolist(), n_kept.tolist()) == ([[2, 1, -1]], [2])


def test_a_fraction_of_length_is_of_the_row_s_own_tokens():
    admitted = torch.tensor([[True] * 8, [True] * 3 + [False] * 5])
    positions, n_kept = token_rank(-torch.arange(8.0).expand(2, 8), admitted, slots=4, length=0.5)
    assert n_kept.tolist() == [4, 2]  # half of 3 is 1.5, to even 2
    assert positions.tolist() == [[0, 1, 2, 3], [0, 1, -1, -1]]


@pytest.mark.parametrize("order", [(1, 1.0), (1.0, 1)])
def test_a_length_of_one_token_and_one_of_the_whole_row_are_not_confused_whichever_comes_first(order):
    _wanted.cache_clear()
    score, admitted = torch.rand(2, 5), torch.ones(2, 5, dtype=torch.bool)
    kept = {repr(length): token_rank(score, admitted, slots=5, length=length)[1].tolist() for length in order}
    assert kept == {"1": [1, 1], "1.0": [5, 5]}


def test_gathered_vectors_are_those_of_their_positions_and_zero_where_there_is_none():
    hidden = torch.arange(1.0, 13.0).view(2, 3, 2)
    positions = torch.tensor([[2, 0], [1, -1]])
    assert gather_tokens(hidden, positions).tolist() == [[[5.0, 6.0], [1.0, 2.0]], [[9.0, 10.0], [0.0, 0.0]]]


# --- random ranks


def test_random_scores_follow_the_seed():
    ids, n_tokens = np.array([5]), np.array([20])
    scores = [random_scores(ids, n_tokens, longest=20, seed=seed).tobytes() for seed in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 12)), min_size=1, max_size=6), st.integers(0, 4), st.randoms())
def test_random_scores_do_not_depend_on_the_batch_a_row_stands_in(rows, padding, random):
    def scores(batch, longest):
        ids, n_tokens = (np.array(column) for column in zip(*batch, strict=True))
        return random_scores(ids, n_tokens, longest=longest, seed=7)

    longest = max(tokens for _, tokens in rows)
    alone = [scores([row], row[1])[0] for row in rows]
    order = random.sample(range(len(rows)), len(rows))
    together = scores([rows[index] for index in order], longest + padding)
    for at, index in enumerate(order):
        tokens = rows[index][1]
        np.testing.assert_array_equal(together[at, :tokens], alone[index])
        assert sorted(alone[index].tolist()) == list(range(tokens))


# --- codecs


@given(st.integers(1, 3), st.integers(1, 40), st.data())
def test_packed_bits_are_numpys(rows, width, data):
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows * width, max_size=rows * width))).view(rows, width)
    packed = pack_bits(kept).numpy()
    np.testing.assert_array_equal(packed, np.packbits(kept.numpy(), axis=-1))
    np.testing.assert_array_equal(unpack_mask(packed, width), kept.numpy())


@given(st.integers(1, 3), st.integers(1, 17), st.data())
def test_nibbles_come_back(rows, width, data):
    drawn = data.draw(st.lists(st.integers(-8, 7), min_size=rows * width, max_size=rows * width))
    integers = torch.tensor(drawn, dtype=torch.int8).view(rows, width)
    packed = pack_nibbles(integers).numpy()
    assert packed.shape == (rows, ENCODINGS["q4"].stored_width(width))
    np.testing.assert_array_equal(unpack_nibbles(packed, width), integers.numpy())


def test_the_first_nibble_lies_in_the_low_half():
    assert pack_nibbles(torch.tensor([[1, -1, 7]], dtype=torch.int8)).tolist() == [[0xF1, 0x07]]


@pytest.mark.parametrize("encoding", QUANTISED_MAX)
@given(vectors(dtypes=(torch.float16,)))
def test_quantised_values_are_within_half_a_scale(encoding, values):
    largest = QUANTISED_MAX[encoding]
    integers, scale = quantise(values, largest)
    assert integers.dtype == torch.int8
    assert scale.dtype == torch.float16
    assert integers.abs().max() <= largest
    assert (scale >= SMALLEST_SCALE).all()
    step = scale.double()[..., None]
    assert ((values.double() - integers.double() * step).abs() <= step * (0.5 + 1e-5)).all()


def encoded(hidden: torch.Tensor, width: int, values) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
    """What is packed (rounded, kept) and what the store's half makes of what was (numbers, mask)."""
    rounded = round_values(hidden, values)
    kept = magnitude_mask(rounded, width)
    packed = {name: array.numpy() for name, array in encode(kept_values(rounded, kept, width=width), values).items()}
    planned = ENCODINGS[values].arrays((len(hidden),), width, codec="values")
    assert {name: (array.dtype, array.shape) for name, array in packed.items()} == {
        name: (np.dtype(array.dtype), array.shape) for name, array in planned.items()
    }
    numbers = ENCODINGS[values].decode(packed, width)
    assert numbers.dtype == (np.float16 if values == "f16" else np.float32)
    return rounded, kept, numbers, unpack_mask(pack_bits(kept).numpy(), hidden.shape[-1])


@pytest.mark.parametrize("encoding", ["f16", "f32"])
@given(vectors(dtypes=(torch.float32,)), st.data())
def test_floats_are_stored_exactly_as_they_were_rounded(encoding, hidden, data):
    width = data.draw(st.integers(1, hidden.shape[-1]))
    rounded, kept, values, mask = encoded(hidden, width, encoding)
    np.testing.assert_array_equal(mask, kept.numpy())
    assert values.tobytes() == rounded[kept].view(-1, width).numpy().tobytes()


@pytest.mark.parametrize("encoding", QUANTISED_MAX)
@given(vectors(dtypes=(torch.float32,)), st.data())
def test_quantised_stores_are_within_half_a_scale_of_the_rounded_state(encoding, hidden, data):
    width = data.draw(st.integers(1, hidden.shape[-1]))
    rounded, kept, values, mask = encoded(hidden, width, encoding)
    exact = rounded[kept].view(-1, width).double().numpy()
    np.testing.assert_array_equal(mask, kept.numpy())
    # The scale is the largest magnitude over 127 or 7, rounded to f16 (11 bits), and at least the smallest normal f16.
    scale = np.maximum(np.abs(exact).max(axis=-1, keepdims=True) / QUANTISED_MAX[encoding], SMALLEST_SCALE) * (1 + 2.0**-11)
    assert (np.abs(values - exact) <= scale * (0.5 + 1e-5)).all()


@pytest.mark.parametrize("encoding", QUANTISED_MAX)
@given(vectors(dtypes=(torch.float16,)))
@settings(max_examples=30)
def test_no_quantised_value_is_the_fill_value(encoding, values):
    assert (encode(values, encoding)["values"] != ENCODINGS[encoding].fill).all()


@settings(max_examples=30)
@given(vectors(dtypes=(torch.float32,)), st.sampled_from(["f16", "f32"]), st.data())
def test_a_narrower_store_is_a_cut_of_a_wider_one(hidden, encoding, data):
    narrow = data.draw(st.integers(1, hidden.shape[-1]))
    more = data.draw(st.integers(narrow, hidden.shape[-1]))
    _, _, small, small_mask = encoded(hidden, narrow, encoding)
    _, _, big, big_mask = encoded(hidden, more, encoding)
    np.testing.assert_array_equal(small.ravel(), big[small_mask[big_mask].reshape(big.shape)])
