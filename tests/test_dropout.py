"""Dropout on a CPU: torch's own in everything but the random numbers themselves."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hskstore.stage_two.dropout import FastDropout, attention, dropout

F = nn.functional


@given(st.floats(0.01, 0.99), st.integers(1, 7), st.integers(0, 2**31))
def test_what_is_kept_is_divided_by_the_share_that_is_kept_and_the_rest_is_zero(p: float, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, 13) + 10
    y = dropout(x, p)
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / (1 - round(p * 2**16) / 2**16))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rate_is_the_one_asked_for_and_the_mean_stays(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    y = dropout(torch.ones(1_000_003, dtype=dtype), p)
    sigma = math.sqrt(p * (1 - p) / len(y))
    assert abs((y == 0).double().mean().item() - p) <= 5 * sigma + 2**-17
    assert y.double().mean().item() == pytest.approx(1, abs=0.005)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(400_000), 0.3) == 0).double()
    for apart in (1, 2, 3, 4, 8):
        assert (dropped[:-apart] * dropped[apart:]).mean().item() == pytest.approx(0.09, abs=0.003)


def test_all_may_be_dropped() -> None:
    assert not dropout(torch.ones(10), 1.0).any()


def test_the_gradient_passes_where_a_number_was_kept() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, requires_grad=True)
    y = dropout(x, 0.5)
    y.sum().backward()
    torch.testing.assert_close(x.grad, (y != 0) * 2.0)


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_attention_without_dropout_is_torchs(kind: str) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    kept = torch.tensor([True, True, False, True, True]).expand(2, 1, 5, 5)
    mask = {"none": None, "bool": kept, "float": torch.where(kept, 0.0, -math.inf)}[kind]
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3)
    torch.testing.assert_close(attention(query, key, value, mask, 0.0, 0.3), expected)
    with FastDropout():
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=1e-9, scale=0.3)
    torch.testing.assert_close(found, expected)


def test_attention_with_dropout_drops_probabilities() -> None:
    torch.manual_seed(0)
    query, key, value = torch.zeros(1, 1, 2000, 1), torch.zeros(1, 1, 3, 1), torch.eye(3)[None, None]
    with FastDropout():
        found = F.scaled_dot_product_attention(query, key, value, dropout_p=0.25)
    assert found.unique().tolist() == pytest.approx([0.0, 1 / 3 / 0.75])
    assert (found == 0).double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_inside_the_mode_every_dropout_is_this_one_and_the_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    x = torch.randn(2, 3, 8)

    def run() -> torch.Tensor:
        torch.manual_seed(1)
        with FastDropout():
            found: torch.Tensor = model(x)
        return found

    assert torch.equal(run(), run())
    torch.manual_seed(1)
    assert not torch.equal(run(), model(x)), "outside it is torch's"
    model.eval()
    assert torch.equal(run(), model(x))
    monkeypatch.setattr(torch.Tensor, "bernoulli_", lambda *_: pytest.fail("torch drew a number for each element"))
    model.train()
    run()


@pytest.mark.parametrize("call", [{"p": 0.0}, {"p": 0.5, "training": False}])
def test_where_nothing_is_dropped_nothing_changes(call: dict[str, Any]) -> None:
    x = torch.randn(20)
    with FastDropout():
        assert torch.equal(F.dropout(x, **call), x)
