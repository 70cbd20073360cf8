"""The teacher as it runs: on SDPA where its family calls the seam, in its precision, and probed before anything is stored."""

import hashlib
import logging
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hskstore.config import Precision, Score
from hskstore.errors import ModelError
from hskstore.models.load import load_trained, read_config
from hskstore.models.observe import NOTHING, SEAM, Seen, Sight, heads_of, observe
from hskstore.models.run import Inputs

log = logging.getLogger(__name__)

PROBE_TOLERANCE = 2e-3
"""Largest difference of a probability or hidden value between SDPA and eager attention, fp32, states of order 10; where the
numbers of a layer are larger, as in MobileBERT, it grows with the largest."""

SUMMARIZED = ("xlnet", "xlm", "flaubert")
"""Families that classify by one position of a row, which their config names."""

PADDING_TOLERANCE = 1e-2
"""Largest difference that padding may make to a logit, by the largest of the row."""


class Teacher:
    """A sequence classifier in eval mode, in float32, with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str, device: torch.device, precision: Precision = "fp32") -> None:
        self.name = name
        self.model = model.to(device).eval()
        self.tokenizer = tokenizer
        self.device = device
        self.precision: Precision = precision
        self.eager = False
        try:
            model.set_attn_implementation(SEAM)
        except ValueError:  # a family without SDPA
            self._fall_back_to_eager()

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
        first: bool = False,
        heads: bool = False,
    ) -> None:
        """Run one padded batch through SDPA and eager attention and compare, before anything is stored.

        Falls back to eager for a family that does not call the seam once a layer. Raises ModelError where the two
        disagree, where a number is not finite, where the model cannot run on the batch or in the teacher's precision, where it
        has no state for each token, or, if tokens are to be ranked by attention (`ranks`), where the family gives none of this
        `score`. With `ranks`, and where its vector is asked for (`first`), the first token must see its row. With `heads` its
        attention must show queries, keys and values.
        """
        batch = (input_ids, token_type_ids, attention_mask)
        real = attention_mask.to(self.device)
        precision, self.precision = self.precision, "fp32"
        try:
            seen = self._tried(batch)
            if not self.eager and (len(seen.cls_row) != self.layers or len(seen.hidden) != self.layers + 1):
                self._fall_back_to_eager()
                seen = self._tried(batch, ranks)
            self._check_states(seen, input_ids)
            self._check_finite(seen, real)
            reads_on = self._reads_left_to_right(batch, seen)
            if reads_on and (ranks or first):
                raise ModelError(
                    f"{self.name}: the first token of a row sees itself alone in this {self.family}, as in all models that read"
                    " from left to right: it can rank no tokens, and its vector says nothing of the row. Choose --rank left or"
                    " random, or --for a method that reads neither, such as kd"
                )
            if self.eager and ranks:
                self._check_rows(seen, real, score)
            elif not self.eager:
                self._fall_back_to_eager()
                slow = self._tried(batch, ranks)
                self.eager = False
                self.model.set_attn_implementation(SEAM)
                self._check_same(seen, slow, real)
            self._check_padding(batch, reads_on)
            if heads:
                self._check_heads(batch)
        finally:
            self.precision = precision
        self._check_precision(batch)

    @property
    def family(self) -> str:
        return str(self.model.config.model_type)

    def _tried(self, batch: Inputs, ranks: bool = True) -> Seen:
        """All that is to be seen of a batch. Raises ModelError where the model cannot run on it."""
        everything = Sight(frozenset(range(self.layers + 1)), frozenset(range(1, self.layers + 1)) if ranks else frozenset())
        try:
            return self.forward(*batch, everything)
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
            cause = str(error).strip().partition("\n")[0]
            advice = ": write its tokenizer's pad_token_id into its config.json" if "padding token" in cause else ""
            raise ModelError(f"{self.name}: this {self.family} does not run on a batch of the data ({cause}){advice}") from None

    def _check_states(self, seen: Seen, input_ids: Tensor) -> None:
        shapes = {tuple(state.shape) for state in seen.hidden.values()}
        if len(seen.hidden) == self.layers + 1 and shapes == {(*input_ids.shape, int(self.model.config.hidden_size))}:
            return
        found = ", ".join(str(list(shape)) for shape in sorted(shapes)) or "none at all"
        wanted = [*input_ids.shape, int(self.model.config.hidden_size)]
        raise ModelError(
            f"{self.name}: the family {self.family} does not give a hidden state for each token and layer: {len(seen.hidden)} of"
            f" {found}, not {self.layers + 1} of {wanted} (rows, tokens, width). Choose a teacher of another family"
        )

    def _check_finite(self, seen: Seen, real: Tensor) -> None:
        rows = [row for row in seen.cls_row.values() if row.shape == real.shape]
        states = [numbers[real] for numbers in (*seen.hidden.values(), *rows)]
        if not all(bool(numbers.isfinite().all()) for numbers in (*states, seen.logits)):
            raise ModelError(
                f"{self.name}: its hidden states, attention or logits are not finite on a batch of the data, in fp32: its"
                " weights are damaged, or it was never trained to an end"
            )

    def _check_rows(self, seen: Seen, real: Tensor, score: Score) -> None:
        """Raise ModelError unless a family that runs eager shows, of each layer, how the first token attends to every token."""
        if score == "raw":
            raise ModelError(f"{self.name}: --score raw needs a teacher that runs on SDPA; this family runs eager")
        whole = torch.ones(len(real), device=self.device)
        rows = [row.masked_fill(~real, 0).sum(dim=1) for row in seen.cls_row.values()]
        if len(rows) != self.layers or any(not torch.allclose(row, whole, atol=1e-3) for row in rows):
            raise ModelError(
                f"{self.name}: the family {self.family} gives no attention of every token to every token to rank tokens by:"
                " choose --rank left or random, or --for a method that needs no ranks, such as kd"
            )

    def _check_heads(self, batch: Inputs) -> None:
        """Raise ModelError unless every layer's attention shows heads as its config has them, side by side as wide as a state."""
        config = self.model.config
        if self.eager:
            raise ModelError(
                f"{self.name}: the family {self.family} runs with eager attention, which shows no queries, keys and values:"
                " choose a teacher of another family, such as a BERT, or --for a method without attention, such as kd"
            )
        found = set(heads_of(self.model, *batch, layers=self.layers, name=self.name))
        if found != {(config.num_attention_heads, config.hidden_size // config.num_attention_heads)}:
            shown = ", ".join(f"{heads} x {size}" for heads, size in sorted(found))
            raise ModelError(
                f"{self.name}: its heads ({shown}) are not {config.num_attention_heads} that make up its width of"
                f" {config.hidden_size}: choose another teacher, or --for a method without attention, such as kd"
            )

    def _reads_left_to_right(self, batch: Inputs, seen: Seen) -> bool:
        """Whether the first token attends to itself alone; where its attention is not seen, whether its last state stays the
        same, whatever follows it."""
        ids, types, mask = batch
        if ids.shape[1] < 2:
            return False
        rows = [row[mask.sum(dim=1) > 1] for row in seen.cls_row.values() if row.shape == mask.shape]
        if len(rows) == self.layers:
            own = torch.stack([row[:, 0] for row in rows])  # less than 1 where there are sinks, as in GPT-OSS
            others = torch.stack([row[:, 1:].sum(dim=1) for row in rows])
            return own.numel() > 0 and bool(((others < 1e-6) & (own > 1e-6)).all())
        last = ids.gather(1, mask.sum(dim=1, keepdim=True) - 1)
        follows = mask & (torch.arange(ids.shape[1]) > 0)
        others = torch.where(follows, last, ids)
        changed = (others != ids).any(dim=1)
        if not bool(changed.any()):  # of rows without text there is nothing to see
            return False
        other = self._tried((others, types, mask), ranks=False)
        before, after = (found.hidden[self.layers][changed, 0] for found in (seen, other))
        return bool(torch.allclose(before, after, atol=1e-6, rtol=1e-5))

    def _check_padding(self, batch: Inputs, reads_on: bool) -> None:
        """Tell where a row's logits change with the padding behind it; raise ModelError where that is a token misread."""
        longest = batch[2].sum(dim=1).argmax()
        ids, types, mask = (each[longest : longest + 1] for each in batch)
        half = ids.shape[1] // 2
        if half < 1:
            return
        pad = self.model.config.pad_token_id if self.tokenizer is None else self.tokenizer.pad_token_id
        behind = (torch.arange(ids.shape[1]) >= half)[None]
        padded = (ids.masked_fill(behind, pad or 0), types.masked_fill(behind, 0), mask & ~behind)
        alone = self.forward(ids[:, :half], types[:, :half], mask[:, :half]).logits
        beside = self.forward(*padded).logits
        difference = float((alone - beside).abs().max()) / max(1e-3, float(alone.abs().max()))
        if difference <= PADDING_TOLERANCE:
            return
        if reads_on:
            raise ModelError(
                f"{self.name}: it classifies by the last token of a row and takes padding for it: pad_token_id in its config.json"
                f" is {self.model.config.pad_token_id}, and its tokenizer pads with {pad}: write that there"
            )
        log.warning(
            "%s: padding behind a row changes its logits, by up to %.2g of the largest, as in some models of the family %s: what"
            " is stored of a row depends on the rows of its batch",
            self.name,
            difference,
            self.family,
        )

    def _check_same(self, fast: Seen, slow: Seen, real: Tensor) -> None:
        pairs = [(state, slow.hidden[layer]) for layer, state in fast.hidden.items()]
        pairs += [(fast.cls_row[layer], row) for layer, row in slow.cls_row.items()]
        # Torch's maximum, not Python's: a difference that is no number is then the largest.
        differences = [(left - right)[real].abs().max() / (right[real].abs().max() / 10).clamp(min=1) for left, right in pairs]
        worst = float(torch.stack(differences).max())
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

    def autocast(self) -> Any:
        """The context of the teacher's precision; entered around many batches, it casts each weight once."""
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "fp32")


def load_teacher(name: str, *, device: torch.device, precision: Precision = "fp32") -> Teacher:
    """A fine-tuned sequence classifier. Raises ModelError where it has no trained head, or is no encoder of layers."""
    config = read_config(name)
    if config.is_encoder_decoder:
        raise ModelError(
            f"{name}: a {config.model_type} is an encoder and a decoder, which has no one stack of layers to learn from: choose"
            " an encoder as teacher, such as a BERT"
        )
    if getattr(config, "summary_type", "first") == "last" and config.model_type in SUMMARIZED:
        raise ModelError(
            f"{name}: a {config.model_type} classifies by a row's last position (summary_type in its config.json), which is"
            " padding here, where rows are padded at their end: choose another teacher"
        )
    if not all(isinstance(getattr(config, size, None), int) for size in ("num_hidden_layers", "hidden_size")):
        raise ModelError(f"{name}: a {config.model_type} does not say its layers and their width: choose another teacher")
    model, tokenizer = load_trained(name)
    return Teacher(model, tokenizer, name=name, device=device, precision=precision)
