"""One forward pass of a Hugging Face encoder -> hidden states, logits, and the [CLS] row of chosen layers' attention.

The teacher runs on SDPA. One registered attention function calls SDPA and, for the layers asked for, also computes the
first row of the attention map, which costs O(tokens) a head instead of O(tokens^2). Families that never call the seam
(MPNet) run with eager attention; families that give no attention at all are refused by name.
"""

import hashlib
import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from hskstore.config import Precision, Score
from hskstore.errors import ModelError
from hskstore.models.load import load_trained
from hskstore.models.run import model_inputs

SEAM = "hskstore_sdpa"
PROBE_TOLERANCE = 2e-3
"""Largest difference of a probability or hidden value between SDPA and eager attention, fp32, states of order 10."""


@dataclass
class _Capture:
    """What one forward pass leaves behind; layers are numbered by call order, because DistilBERT has no layer_idx."""

    layers: frozenset[int]
    score: Score
    calls: int = 0
    rows: dict[int, Tensor] = field(default_factory=dict)


_active = threading.local()


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    capture: _Capture | None = getattr(_active, "capture", None)
    if capture is not None:
        capture.calls += 1
        if capture.calls in capture.layers:
            with torch.autocast(query.device.type, enabled=False):  # a rank in half precision would tie by the dozen
                row = _first_row(query, key, attention_mask, options.get("scaling"), capture.score)
            capture.rows[capture.calls] = row
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return output, None


def _first_row(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, score: Score) -> Tensor:
    """[batch, token]: the [CLS] row of the attention, mean over heads (Equation 6)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = (query[:, :, :1].float() @ key.float().transpose(-1, -2)).squeeze(2) * scale
    if mask is not None:
        row = mask[:, :, 0]
        logits = logits.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else logits + row
    return (logits.softmax(dim=-1) if score == "probability" else logits).mean(dim=1)


AttentionInterface.register(SEAM, _attention)
# Without a mask function of its own an implementation gets no mask at all, and padding is attended silently.
AttentionMaskInterface.register(SEAM, sdpa_mask)


@dataclass(frozen=True)
class Features:
    """`hidden` is [batch, token, width] for each of layers 0..L; `token_score` [batch, token] for the layers asked for."""

    hidden: tuple[Float[Tensor, "batch token width"], ...]
    token_score: dict[int, Float[Tensor, "batch token"]]
    logits: Float[Tensor, "batch class"]


class Teacher:
    """A sequence classifier in eval mode, in float32, with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str, device: torch.device, precision: Precision = "fp32") -> None:
        self.name = name
        self.model = model.to(device).eval()
        self.tokenizer = tokenizer
        self.device = device
        self.precision: Precision = precision
        self.eager = False
        model.set_attn_implementation(SEAM)

    @property
    def layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @cached_property
    def sha256(self) -> str:
        """Of the weights as they run: names, shapes and values; not of paths, file layouts or library versions."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def forward(
        self,
        input_ids: Int[Tensor, "batch token"],
        token_type_ids: Int[Tensor, "batch token"],
        attention_mask: Bool[Tensor, "batch token"],
        *,
        rank_layers: frozenset[int] = frozenset(),
        score: Score = "probability",
    ) -> Features:
        """One padded batch [batch, token] through the teacher; `attention_mask` True = real token."""
        inputs = model_inputs(self.model, input_ids, token_type_ids, attention_mask)
        if self.eager and rank_layers and score == "raw":
            raise ModelError(f"{self.name}: --score raw needs a teacher that runs on SDPA; this family runs eager")
        capture = _Capture(rank_layers, score)
        _active.capture = capture
        try:
            with torch.no_grad(), self.autocast():
                output = self.model(**inputs, output_hidden_states=True, output_attentions=self.eager)
        finally:
            _active.capture = None
        rows = capture.rows
        if self.eager and rank_layers:
            rows = {layer: output.attentions[layer - 1][:, :, 0].float().mean(dim=1) for layer in rank_layers}
        return Features(tuple(output.hidden_states), rows, output.logits.float())

    def probe(
        self,
        input_ids: Int[Tensor, "batch token"],
        token_type_ids: Int[Tensor, "batch token"],
        attention_mask: Bool[Tensor, "batch token"],
        *,
        ranks: bool = True,
        score: Score = "probability",
    ) -> None:
        """Run one padded batch through SDPA and eager attention and compare, before anything is stored.

        Falls back to eager for a family that does not call the seam once a layer. Raises ModelError where the two
        disagree, where a number is not finite, where the model cannot run in the teacher's precision, or, if tokens are to be
        ranked by attention (`ranks`), where the family gives none of this `score`.
        """
        batch = (input_ids, token_type_ids, attention_mask)
        every = frozenset(range(1, self.layers + 1))
        real = attention_mask.to(self.device)
        precision, self.precision = self.precision, "fp32"
        try:
            if not self.eager:
                fast = self.forward(*batch, rank_layers=every)
                if len(fast.token_score) != self.layers or len(fast.hidden) != self.layers + 1:
                    self._fall_back_to_eager()
            if self.eager:
                self._check_finite(self._eager_features(batch, ranks, score), real)
            else:
                self._check_finite(fast, real)
                self._fall_back_to_eager()
                slow = self.forward(*batch, rank_layers=every)
                self.eager = False
                self.model.set_attn_implementation(SEAM)
                self._check_same(fast, slow, real)
        finally:
            self.precision = precision
        self._check_precision(batch)

    def _check_finite(self, features: Features, real: Tensor) -> None:
        states = [*(state[real] for state in features.hidden), *(score[real] for score in features.token_score.values())]
        if not all(bool(numbers.isfinite().all()) for numbers in (*states, features.logits)):
            raise ModelError(
                f"{self.name}: its hidden states, attention or logits are not finite on a batch of the data, in fp32: its"
                " weights are damaged, or it was never trained to an end"
            )

    def _check_same(self, fast: Features, slow: Features, real: Tensor) -> None:
        pairs = [*zip(fast.hidden, slow.hidden, strict=True)]
        pairs += [(score, slow.token_score[layer]) for layer, score in fast.token_score.items()]
        # Torch's maximum, not Python's: a difference that is no number is then the largest.
        worst = float(torch.stack([(left - right)[real].abs().max() for left, right in pairs]).max())
        if not worst <= PROBE_TOLERANCE:
            raise ModelError(
                f"{self.name}: SDPA and eager attention differ by {worst:.2g} on a padded batch, so this model's states"
                " cannot be captured faithfully; please report the model's name"
            )

    def _check_precision(self, batch: tuple[Tensor, Tensor, Tensor]) -> None:
        """Raise ModelError for a model that ran in fp32 and does not in the teacher's precision, such as the first DeBERTa."""
        if self.precision == "fp32":
            return
        try:
            self.forward(*batch)
        except RuntimeError as error:
            cause = str(error).strip().partition("\n")[0]
            raise ModelError(f"{self.name} cannot run in {self.precision} ({cause}): choose --precision fp32") from None

    def _fall_back_to_eager(self) -> None:
        self.eager = True
        self.model.set_attn_implementation("eager")

    def _eager_features(self, batch: tuple[Tensor, Tensor, Tensor], ranks: bool, score: Score) -> Features:
        family = self.model.config.model_type
        try:
            layers = frozenset(range(1, self.layers + 1)) if ranks else frozenset[int]()
            features = self.forward(*batch, rank_layers=layers, score=score)
        except (TypeError, IndexError, AttributeError, KeyError) as error:
            raise ModelError(f"{self.name}: the family {family} gives no attention to rank tokens by ({error})") from None
        if len(features.hidden) != self.layers + 1:
            raise ModelError(f"{self.name}: the family {family} gives {len(features.hidden)} hidden states, not L + 1")
        return features

    def autocast(self) -> Any:
        """The context of the teacher's precision; entered around many batches, it casts each weight once."""
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "fp32")


def load_teacher(name: str, *, device: torch.device, precision: Precision = "fp32") -> Teacher:
    """A fine-tuned sequence classifier. Raises ModelError where it has no trained head."""
    model, tokenizer = load_trained(name)
    return Teacher(model, tokenizer, name=name, device=device, precision=precision)
