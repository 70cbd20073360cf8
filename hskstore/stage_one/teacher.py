"""The teacher as it runs: on SDPA where its family calls the seam, in its precision, and probed before anything is stored."""

import hashlib
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hskstore.config import Precision, Score
from hskstore.errors import ModelError
from hskstore.models.load import load_trained
from hskstore.models.observe import NOTHING, SEAM, Seen, Sight, observe

PROBE_TOLERANCE = 2e-3
"""Largest difference of a probability or hidden value between SDPA and eager attention, fp32, states of order 10."""


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

    def move(self, device: torch.device) -> None:
        """Have it run there from now on."""
        self.model.to(device)
        self.device = device

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
        sight: Sight = NOTHING,
    ) -> Seen:
        """One padded batch [batch, token] through the teacher; `attention_mask` True = real token."""
        if self.eager and sight.raw_cls_row:
            raise ModelError(f"{self.name}: --score raw needs a teacher that runs on SDPA; this family runs eager")
        with torch.no_grad(), self.autocast():
            return observe(self.model, input_ids, token_type_ids, attention_mask, sight, eager=self.eager)

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
        everything = self._everything()
        real = attention_mask.to(self.device)
        precision, self.precision = self.precision, "fp32"
        try:
            if not self.eager:
                fast = self.forward(*batch, everything)
                if len(fast.cls_row) != self.layers or len(fast.hidden) != self.layers + 1:
                    self._fall_back_to_eager()
            if self.eager:
                self._check_finite(self._seen_by_eager(batch, ranks, score), real)
            else:
                self._check_finite(fast, real)
                self._fall_back_to_eager()
                slow = self.forward(*batch, everything)
                self.eager = False
                self.model.set_attn_implementation(SEAM)
                self._check_same(fast, slow, real)
        finally:
            self.precision = precision
        self._check_precision(batch)

    def _everything(self, *, ranks: bool = True, score: Score = "probability") -> Sight:
        rows = frozenset(range(1, self.layers + 1)) if ranks else frozenset[int]()
        hidden = frozenset(range(self.layers + 1))
        return Sight(hidden, rows) if score == "probability" else Sight(hidden, raw_cls_row=rows)

    def _check_finite(self, seen: Seen, real: Tensor) -> None:
        states = [numbers[real] for found in (seen.hidden, seen.cls_row) for numbers in found.values()]
        if not all(bool(numbers.isfinite().all()) for numbers in (*states, seen.logits)):
            raise ModelError(
                f"{self.name}: its hidden states, attention or logits are not finite on a batch of the data, in fp32: its"
                " weights are damaged, or it was never trained to an end"
            )

    def _check_same(self, fast: Seen, slow: Seen, real: Tensor) -> None:
        pairs = [(state, slow.hidden[layer]) for layer, state in fast.hidden.items()]
        pairs += [(row, slow.cls_row[layer]) for layer, row in fast.cls_row.items()]
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

    def _seen_by_eager(self, batch: tuple[Tensor, Tensor, Tensor], ranks: bool, score: Score) -> Seen:
        family = self.model.config.model_type
        try:
            seen = self.forward(*batch, self._everything(ranks=ranks, score=score))
        except (TypeError, IndexError, AttributeError, KeyError) as error:
            raise ModelError(f"{self.name}: the family {family} gives no attention to rank tokens by ({error})") from None
        if len(seen.hidden) != self.layers + 1:
            raise ModelError(f"{self.name}: the family {family} gives {len(seen.hidden)} hidden states, not L + 1")
        return seen

    def autocast(self) -> Any:
        """The context of the teacher's precision; entered around many batches, it casts each weight once."""
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "fp32")


def load_teacher(name: str, *, device: torch.device, precision: Precision = "fp32") -> Teacher:
    """A fine-tuned sequence classifier. Raises ModelError where it has no trained head."""
    model, tokenizer = load_trained(name)
    return Teacher(model, tokenizer, name=name, device=device, precision=precision)
