"""What one forward pass shows of a model inside: one seam, for the teacher without gradients and for the student with them.

The teacher runs on SDPA. One registered attention function calls SDPA and, for the layers asked for, also computes the first row
of the attention map, which costs O(tokens) a head instead of O(tokens^2), or keeps the queries, keys and values that it was
given. Families that never call it (MPNet) run with eager attention.
"""

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from hskstore.errors import ModelError
from hskstore.models.run import put_back, run_model

SEAM = "hskstore_sdpa"
"""The attention implementation that a model must have for the inside of its attention to be seen."""


@dataclass(frozen=True)
class Sight:
    """Which layers to look at: hidden states of layers 0 (the embedding output) to L, [CLS] rows of the attention of 1 to L, as
    probabilities and as raw scores before the softmax, queries, keys and values of 1 to L, the `choices` tokens most attended to
    in 1 to L; and whether the first token is asked for as one that has seen its whole row. `|` joins what several features ask
    for."""

    hidden: frozenset[int] = frozenset()
    cls_row: frozenset[int] = frozenset()
    raw_cls_row: frozenset[int] = frozenset()
    first: bool = False
    qkv: frozenset[int] = frozenset()
    attended: frozenset[int] = frozenset()
    choices: int = 0

    @property
    def rows(self) -> frozenset[int]:
        """The layers whose attention's [CLS] row is looked at, in whatever form."""
        return self.cls_row | self.raw_cls_row

    def __or__(self, other: "Sight") -> "Sight":
        return Sight(
            self.hidden | other.hidden,
            self.cls_row | other.cls_row,
            self.raw_cls_row | other.raw_cls_row,
            self.first or other.first,
            self.qkv | other.qkv,
            self.attended | other.attended,
            max(self.choices, other.choices),
        )


@dataclass(frozen=True)
class QueryKeyValue:
    """What the attention of one layer is made of, after rotary embedding."""

    query: Float[Tensor, "batch head token size"]
    key: Float[Tensor, "batch head token size"]
    value: Float[Tensor, "batch head token size"]


@dataclass(frozen=True)
class Seen:
    """What was seen, by layer: `hidden` states, and the mean over heads of the [CLS] row of the attention (Equation 6), also
    of its raw scores; queries, keys and values; the tokens that each token attends to most in each head, as many as asked for,
    the first of them most of all, -1 where a row has no more."""

    logits: Float[Tensor, "batch class"]
    hidden: Mapping[int, Float[Tensor, "batch token width"]] = field(default_factory=dict)
    cls_row: Mapping[int, Float[Tensor, "batch token"]] = field(default_factory=dict)
    raw_cls_row: Mapping[int, Float[Tensor, "batch token"]] = field(default_factory=dict)
    qkv: Mapping[int, QueryKeyValue] = field(default_factory=dict)
    attended: Mapping[int, Int[Tensor, "batch head token choice"]] = field(default_factory=dict)

    def emptied(self) -> "Seen":
        """The same without its rows; gradients, all of them zero, reach what a whole one's would."""
        hidden, cls_row, raw, attended = (
            {layer: tensor[:0] for layer, tensor in found.items()}
            for found in (self.hidden, self.cls_row, self.raw_cls_row, self.attended)
        )
        qkv = {layer: QueryKeyValue(own.query[:0], own.key[:0], own.value[:0]) for layer, own in self.qkv.items()}
        return Seen(self.logits[:0], hidden, cls_row, raw, qkv, attended)


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
    capture = _Capture(sight)
    with _noting(None if eager else capture):
        output = run_model(
            model, input_ids, token_type_ids, attention_mask, hidden=bool(sight.hidden), attentions=eager and bool(sight.cls_row)
        )
    states = output.hidden_states or ()
    rows = capture.rows
    if output.attentions is not None:
        maps = {layer: each for layer, each in enumerate(output.attentions, 1) if layer in sight.cls_row}
        rows = {layer: each[:, :, 0].float().mean(dim=1) for layer, each in maps.items() if _is_map(each, input_ids)}
    hidden = {layer: states[layer] for layer in sorted(sight.hidden) if layer < len(states)}
    return Seen(output.logits, hidden, rows, capture.raw, capture.qkv, capture.attended)


@contextmanager
def showing(model: nn.Module, sight: Sight) -> Iterator[None]:
    """Within, a model shows the inside of its attention, if that is in sight; afterwards it runs, and is saved, as before."""
    if not sight.qkv or not isinstance(model, PreTrainedModel):
        yield
        return
    shown: Any = model
    before = shown.config._attn_implementation
    try:
        with suppress(ValueError):  # of a family without SDPA, which will then show nothing
            shown.set_attn_implementation(SEAM)
        yield
    finally:
        shown.set_attn_implementation(before)


def heads_of(
    model: nn.Module,
    input_ids: Int[Tensor, "batch token"],
    token_type_ids: Int[Tensor, "batch token"],
    attention_mask: Bool[Tensor, "batch token"],
    *,
    layers: int,
    name: str,
) -> tuple[tuple[int, int], ...]:
    """Heads and their size in each of a model's `layers`, as its attention runs on a batch.

    Raises ModelError unless all of them show queries, keys and values, a key for each query, and scale their products by
    size ** -0.5.
    """
    sight = Sight(qkv=frozenset(range(1, layers + 1)))
    capture = _Capture(sight)
    with showing(model, sight), put_back(model), torch.no_grad(), _noting(capture):
        run_model(model.eval(), input_ids, token_type_ids, attention_mask)
    why = capture.strange
    if why is None and capture.calls != layers:
        why = "shows no queries, keys and values of each layer"
    if why is not None:
        raise ModelError(
            f"{name}: its attention {why}, from which the method learns: choose a model of another family, such as a BERT, or a"
            " method without attention, such as kd"
        )
    return tuple((own.query.shape[1], own.query.shape[3]) for _, own in sorted(capture.qkv.items()))


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
    qkv: dict[int, QueryKeyValue] = field(default_factory=dict)
    attended: dict[int, Tensor] = field(default_factory=dict)
    strange: str | None = None

    def keep(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        """What the attention of a layer that is looked at was given; `strange` says why its scores are not those of any other."""
        size = query.shape[-1]
        if key.shape != query.shape or value.shape != query.shape:
            self.strange = "has heads that share their keys and values"
        elif scaling is not None and not math.isclose(scaling, size**-0.5, rel_tol=1e-6):
            self.strange = f"scales its scores by {scaling:.4g}, not by the root of a head's size, {size**-0.5:.4g}"
        else:
            self.qkv[self.calls] = QueryKeyValue(query, key, value)

    def note(self, scores: Tensor) -> None:
        """The raw scores [batch, head, token] of a layer that is looked at."""
        if self.calls in self.sight.cls_row:
            self.rows[self.calls] = scores.softmax(dim=-1).mean(dim=1)
        if self.calls in self.sight.raw_cls_row:
            self.raw[self.calls] = scores.mean(dim=1)


_active = threading.local()


@contextmanager
def _noting(capture: _Capture | None) -> Iterator[None]:
    """Within, the attention that runs in this thread is seen by `capture`."""
    _active.capture = capture
    try:
        yield
    finally:
        _active.capture = None


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    capture: _Capture | None = getattr(_active, "capture", None)
    if capture is not None:
        capture.calls += 1
        mask = attention_mask
        if capture.calls in capture.sight.rows | capture.sight.attended:
            causal = options.get("is_causal")
            if mask is None and (getattr(module, "is_causal", True) if causal is None else causal):  # as SDPA decides
                mask = _left_to_right(query)
        with torch.autocast(query.device.type, enabled=False):  # a rank in half precision would tie by the dozen
            if capture.calls in capture.sight.rows:
                capture.note(_first_row(query, key, mask, options.get("scaling")))
            if capture.calls in capture.sight.attended:
                capture.attended[capture.calls] = _most_attended(query, key, mask, capture.sight.choices)
        if capture.calls in capture.sight.qkv:
            capture.keep(query, key, value, options.get("scaling"))
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return output, None


def _most_attended(query: Tensor, key: Tensor, mask: Tensor | None, choices: int) -> Tensor:
    """[batch, head, token, choice]: of each token those that it attends to most, by scores in float32; -1: no more."""
    scores = query.float() @ key.float().mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    best = scores.topk(min(choices, scores.shape[-1]))
    chosen = best.indices.masked_fill(best.values == -torch.inf, -1)
    return nn.functional.pad(chosen, (0, choices - chosen.shape[-1]), value=-1)


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
