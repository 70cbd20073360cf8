"""The feature `spans`: phrases and split words of a row, as tokens; found in the text, before the teacher runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hskstore.errors import StoreError
from hskstore.features.codes import Codebooks
from hskstore.features.contract import FeatureRows, Kind
from hskstore.models.observe import NOTHING, Seen, Sight
from hskstore.models.run import Inputs
from hskstore.store.features import Spans
from hskstore.store.plan import Plan
from hskstore.text.rows import Rows


@dataclass(frozen=True)
class SpanTargets:
    """The spans of a batch's rows: their first tokens, and those behind their last, as they stand in the teacher's rows, whatever
    the student's tokenizer is. Where `is_span` is False there is none, and both are 0."""

    start: Int[Tensor, "batch span"]
    end: Int[Tensor, "batch span"]
    is_span: Bool[Tensor, "batch span"]

    def emptied(self) -> "SpanTargets":
        """The same without its rows."""
        return SpanTargets(self.start[:0], self.end[:0], self.is_span[:0])


def _sight(feature: Spans) -> Sight:
    return NOTHING


def _capture(feature: Spans, plan: Plan, seen: Seen, batch: Inputs, rows: Rows, books: Codebooks | None) -> dict[str, Tensor]:
    """Nothing: they come with the rows."""
    return {}


def _targets(own: FeatureRows, rows: Int[np.ndarray, " batch"], places: Sequence[int], n_tokens: np.ndarray) -> SpanTargets:
    n_spans = own.arrays["n_spans"][rows]
    most = int(n_spans.max())
    tokens, is_span = own.arrays["tokens"][rows, :most].astype(np.int64), np.arange(most) < n_spans[:, None]
    start, end = (torch.from_numpy(np.where(is_span, tokens[..., side], 0)) for side in (0, 1))
    return SpanTargets(start, end, torch.from_numpy(is_span))


def check_spans(
    tokens: Int[np.ndarray, "row span 2"], n_spans: Int[np.ndarray, " row"], n_tokens: Int[np.ndarray, " row"], root: str
) -> None:
    """Raise StoreError unless all spans of some rows are tokens of theirs."""
    is_span = np.arange(tokens.shape[1]) < n_spans[:, None]
    start, end = tokens[..., 0], tokens[..., 1]
    wrong = is_span & ~((start >= 0) & (start < end) & (end <= n_tokens[:, None]))
    if wrong.any() or (n_spans < 0).any() or (n_spans > tokens.shape[1]).any():
        raise StoreError(f"{root}: a span is none of its row's tokens: the store is damaged")


SPANS: Kind[SpanTargets] = Kind("spans", _sight, _capture, _targets)
"""Phrases and split words of every row, as tokens; of no layer."""
