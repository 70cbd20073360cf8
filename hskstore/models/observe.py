"""What one forward pass shows of a model inside: one seam, for the teacher without gradients and for the student with them.

The teacher runs on SDPA. One registered attention function calls SDPA and, for the layers asked for, also computes the first row
of the attention map, which costs O(tokens) a head instead of O(tokens^2). Families that never call it (MPNet) run with eager
attention.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from hskstore.models.run import run_model

SEAM = "hskstore_sdpa"
"""The attention implementation that a model must have for the [CLS] rows of its attention to be seen."""


@dataclass(frozen=True)
class Sight:
    """Which layers to look at: hidden states of layers 0 (the embedding output) to L, [CLS] rows of the attention of 1 to L, as
    probabilities and as raw scores before the softmax; and whether the first token is asked for as one that has seen its whole
    row. `|` joins what several features ask for."""

    hidden: frozenset[int] = frozenset()
    cls_row: frozenset[int] = frozenset()
    raw_cls_row: frozenset[int] = frozenset()
    first: bool = False

    @property
    def rows(self) -> frozenset[int]:
        """The layers whose attention is looked at, in whatever form."""
        return self.cls_row | self.raw_cls_row

    def __or__(self, other: "Sight") -> "Sight":
        return Sight(
            self.hidden | other.hidden,
            self.cls_row | other.cls_row,
            self.raw_cls_row | other.raw_cls_row,
            self.first or other.first,
        )


@dataclass(frozen=True)
class Seen:
    """What was seen, by layer: `hidden` states, and the mean over heads of the [CLS] row of the attention (Equation 6), also
    of its raw scores."""

    logits: Float[Tensor, "batch class"]
    hidden: Mapping[int, Float[Tensor, "batch token width"]] = field(default_factory=dict)
    cls_row: Mapping[int, Float[Tensor, "batch token"]] = field(default_factory=dict)
    raw_cls_row: Mapping[int, Float[Tensor, "batch token"]] = field(default_factory=dict)

    def emptied(self) -> "Seen":
        """The same without its rows; gradients, all of them zero, reach what a whole one's would."""
        seen = (self.hidden, self.cls_row, self.raw_cls_row)
        return Seen(self.logits[:0], *({layer: tensor[:0] for layer, tensor in found.items()} for found in seen))


NOTHING = Sight()
"""Logits alone."""


def observe(
    model: nn.Module,
    input_ids: Int[Tensor, "batch token"],
    token_type_ids: Int[Tensor, "batch token"],
    attention_mask: Bool[Tensor, "batch token"],
    sight: Sight,
    *,
    eager: bool = False,
) -> Seen:
    """One padded batch through a classifier, as `run_model` takes it. Layers that the model does not show are left out.

    With `eager` the rows of the attention are read from the maps that the model itself gives, and there are no raw ones. A map is
    of every token by every token; what some families give beside their windows or blocks is none.
    """
    capture = None if eager else _Capture(sight)
    _active.capture = capture
    try:
        output = run_model(
            model, input_ids, token_type_ids, attention_mask, hidden=bool(sight.hidden), attentions=eager and bool(sight.cls_row)
        )
    finally:
        _active.capture = None
    states = output.hidden_states or ()
    rows, raw = ({}, {}) if capture is None else (capture.rows, capture.raw)
    if output.attentions is not None:
        maps = {layer: each for layer, each in enumerate(output.attentions, 1) if layer in sight.cls_row}
        rows = {layer: each[:, :, 0].float().mean(dim=1) for layer, each in maps.items() if _is_map(each, input_ids)}
    hidden = {layer: states[layer] for layer in sorted(sight.hidden) if layer < len(states)}
    return Seen(output.logits, hidden, rows, raw)


def _is_map(attention: object, input_ids: Int[Tensor, "batch token"]) -> bool:
    batch, tokens = input_ids.shape
    shape = attention.shape if isinstance(attention, Tensor) else ()
    return len(shape) == 4 and (shape[0], *shape[2:]) == (batch, tokens, tokens)


@dataclass
class _Capture:
    """What one forward pass leaves behind; layers are numbered by call order, because DistilBERT has no layer_idx."""

    sight: Sight
    calls: int = 0
    rows: dict[int, Tensor] = field(default_factory=dict)
    raw: dict[int, Tensor] = field(default_factory=dict)

    def note(self, scores: Tensor) -> None:
        """The raw scores [batch, head, token] of a layer that is looked at."""
        if self.calls in self.sight.cls_row:
            self.rows[self.calls] = scores.softmax(dim=-1).mean(dim=1)
        if self.calls in self.sight.raw_cls_row:
            self.raw[self.calls] = scores.mean(dim=1)


_active = threading.local()


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    capture: _Capture | None = getattr(_active, "capture", None)
    if capture is not None:
        capture.calls += 1
        if capture.calls in capture.sight.rows:
            mask = attention_mask
            causal = options.get("is_causal")
            if mask is None and (getattr(module, "is_causal", True) if causal is None else causal):  # as SDPA decides
                mask = _left_to_right(query)
            with torch.autocast(query.device.type, enabled=False):  # a rank in half precision would tie by the dozen
                capture.note(_first_row(query, key, mask, options.get("scaling")))
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return output, None


def _left_to_right(query: Tensor) -> Tensor:
    """The mask that SDPA is spared, of every token's own past."""
    tokens = query.shape[2]
    return torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=query.device).tril()


def _first_row(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """[batch, head, token]: the [CLS] row of the attention before the softmax."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if key.shape[1] < query.shape[1]:  # heads that share their keys
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = (query[:, :, :1].float() @ key.float().transpose(-1, -2)).squeeze(2) * scale
    if mask is not None:
        row = mask[:, :, 0]
        logits = logits.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else logits + row
    return logits


AttentionInterface.register(SEAM, _attention)
# Without a mask function of its own an implementation gets no mask at all, and padding is attended silently.
AttentionMaskInterface.register(SEAM, sdpa_mask)
