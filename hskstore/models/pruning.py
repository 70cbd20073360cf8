"""How a BERT is made narrower: which heads and FFN units matter, and what the model is without the others (ROSITA).

Liu et al., ROSITA (AAAI 2021): the importance of a weight is |gradient x weight|, summed over batches; word embeddings are
factorised by a truncated singular value decomposition.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from hskstore.errors import ModelError, OptionError
from hskstore.models.pruned_bert import (
    FactorisedEmbedding,
    PrunedBertConfig,
    PrunedBertForSequenceClassification,
    shape_as_configured,
    word_vectors,
)
from hskstore.models.widths import PruneTo, Widths

NOT_OF_THE_SHAPE = ("model_type", "architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype")


def as_pruned_bert(model: Any, name: str) -> PrunedBertForSequenceClassification:
    """A BERT classifier as a PrunedBert of the same widths, which computes the same. Raises ModelError for another family."""
    if isinstance(model, PrunedBertForSequenceClassification):
        return model
    if type(model) is not BertForSequenceClassification:  # one made of it might compute something else
        family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise ModelError(f"{name}: only BERT models can be pruned; this is {family}")
    fields = {field: value for field, value in model.config.to_dict().items() if field not in NOT_OF_THE_SHAPE}
    pruned = PrunedBertForSequenceClassification(PrunedBertConfig(**fields))
    pruned.load_state_dict(model.state_dict())
    pruned.train(model.training)
    return pruned


def widths_of(model: PrunedBertForSequenceClassification) -> Widths:
    """Those of its widest layer."""
    config = model.config
    return Widths(max(config.heads_per_layer), max(config.ffn_per_layer), config.embedding_size or config.hidden_size)


class Importance(nn.Module):
    """How much the loss hangs on each head and FFN unit of a BERT: |gradient x weight| summed over its weights and batches.

    Of a head the columns of the attention's output are its weights, of a unit its row of the first dense part and its
    column of the second. Buffers `heads_0` [head], `units_0` [unit] and so on, one pair per layer.
    """

    def __init__(self, model: PrunedBertForSequenceClassification) -> None:
        super().__init__()
        self.restart(model)

    def restart(self, model: PrunedBertForSequenceClassification) -> None:
        """Start from zero, in the widths the model has now."""
        config, device = model.config, model.device
        for layer, (heads, ffn) in enumerate(zip(config.heads_per_layer, config.ffn_per_layer, strict=True)):
            self.register_buffer(f"heads_{layer}", torch.zeros(heads, device=device))
            self.register_buffer(f"units_{layer}", torch.zeros(ffn, device=device))

    def heads(self, layer: int) -> Float[Tensor, " head"]:
        return self.get_buffer(f"heads_{layer}")

    def units(self, layer: int) -> Float[Tensor, " unit"]:
        return self.get_buffer(f"units_{layer}")

    def keep(self, model: PrunedBertForSequenceClassification, to: Widths) -> None:
        """Narrow every layer to its most important heads and units, and the word embeddings to their best approximation."""
        layers = range(model.config.num_hidden_layers)
        narrow(
            model,
            heads=[most_important(self.heads(layer), to.heads) for layer in layers],
            units=[most_important(self.units(layer), to.ffn) for layer in layers],
            embedding_rank=to.embedding_rank if to.embedding_rank < widths_of(model).embedding_rank else None,
        )

    @torch.no_grad()
    def note(self, model: PrunedBertForSequenceClassification) -> None:
        """Count one batch, after its backward pass and before its gradients are clipped or cleared."""
        for number, layer in enumerate(model.bert.encoder.layer):
            by_column = _first_order(layer.attention.output.dense.weight).sum(dim=0)
            self.heads(number).add_(by_column.view(-1, model.config.head_size).sum(dim=1))
            self.units(number).add_(_first_order(layer.intermediate.dense.weight).sum(dim=1))
            self.units(number).add_(_first_order(layer.output.dense.weight).sum(dim=0))


def _first_order(weight: Tensor) -> Tensor:
    """|gradient x weight| of every element: the first-order change of the loss if it were zero."""
    return torch.zeros_like(weight) if weight.grad is None else (weight.grad * weight).abs()


def most_important(score: Float[Tensor, " item"], keep: int) -> Int[Tensor, " kept"]:
    """The `keep` items of the highest score, in their own order; ties go to the lower index."""
    order = score.argsort(descending=True, stable=True)
    return order[:keep].sort().values


@torch.no_grad()
def narrow(
    model: PrunedBertForSequenceClassification,
    *,
    heads: Sequence[Int[Tensor, " _head"]],
    units: Sequence[Int[Tensor, " _unit"]],
    embedding_rank: int | None = None,
) -> None:
    """Keep only these heads and FFN units of each layer, in place, and `embedding_rank` dimensions of the word embeddings.

    The model then computes what it computed with the other heads and units masked, and with the word embeddings' best
    approximation of that rank (None: as they are).
    """
    config = model.config
    config.set_widths([len(kept) for kept in heads], [len(kept) for kept in units])
    for layer, kept_heads, kept_units in zip(model.bert.encoder.layer, heads, units, strict=True):
        attention, size = layer.attention, config.head_size
        columns = (kept_heads[:, None] * size + torch.arange(size, device=kept_heads.device)).flatten()
        for part in ("query", "key", "value"):
            setattr(attention.self, part, _rows(getattr(attention.self, part), columns))
        attention.output.dense = _columns(attention.output.dense, columns)
        layer.intermediate.dense = _rows(layer.intermediate.dense, kept_units)
        layer.output.dense = _columns(layer.output.dense, kept_units)
    if embedding_rank is not None:
        embeddings = model.bert.embeddings
        embeddings.word_embeddings = factorise(embeddings.word_embeddings, embedding_rank, config.pad_token_id)
        config.embedding_size = embedding_rank
    shape_as_configured(model.bert)


def _rows(linear: nn.Linear, kept: Tensor) -> nn.Linear:
    return _linear(linear.weight[kept], linear.bias[kept])


def _columns(linear: nn.Linear, kept: Tensor) -> nn.Linear:
    return _linear(linear.weight[:, kept], linear.bias)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    made.weight.copy_(weight)
    made.bias.copy_(bias)
    return made


@torch.no_grad()
def factorise(embedding: nn.Module, rank: int, padding_idx: int | None) -> FactorisedEmbedding:
    """The best approximation of word embeddings W [word, width] of a rank: U S [word, rank] times V' (truncated SVD).

    V holds the eigenvectors of W'W [width, width], and U S = W V: nothing bigger than W is built.
    """
    vectors = word_vectors(embedding).double()
    if not vectors.isfinite().all():
        raise ModelError("word embeddings that are not finite have no approximation: the model's weights are damaged")
    _, eigenvectors = torch.linalg.eigh(vectors.T @ vectors)  # ascending
    basis = eigenvectors.flip(1)[:, :rank]
    made = FactorisedEmbedding(len(vectors), rank, vectors.shape[1], padding_idx)
    made.to(device=vectors.device, dtype=word_vectors(embedding).dtype)
    made.table.weight.copy_(vectors @ basis)
    made.projection.weight.copy_(basis)
    return made


class GradualPruning(nn.Module):
    """ROSITA's iterative width pruning of a student while it learns: one head of each layer at a time.

    FFN units and the embeddings' rank shrink linearly in step. The cuts are spread evenly over `share` of the steps; what a
    cut takes out is what mattered least to the loss since the cut before. Its only tensors are the importance gathered
    since then, so that a checkpoint holds all of its state.
    """

    def __init__(self, student: PrunedBertForSequenceClassification, to: PruneTo, share: float, name: str) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise OptionError(f"--prune-share {share}: must be between 0 and 1")
        self.start = widths_of(student)
        self.end = to.within(self.start, name)
        self.share = Fraction(str(share))  # the decimal that was typed, exactly: in floats two cuts may fall together
        self.cuts = max(1, self.start.heads - self.end.heads)
        self.importance = Importance(student)

    def __repr__(self) -> str:
        return f"GradualPruning({tuple(self.start)} -> {tuple(self.end)}, cuts={self.cuts}, share={float(self.share)})"

    def cuts_before(self, step: int, steps: int) -> int:
        """Cuts that must have been made before a step, counted from 0, of a phase of `steps`."""
        return sum(step >= int(cut * self.share * steps / self.cuts) for cut in range(1, self.cuts + 1))

    def check_steps(self, steps: int) -> None:
        """Raise OptionError where a phase of `steps` leaves no step between two cuts."""
        if int(self.share * steps) < self.cuts:
            raise OptionError(
                f"--prune-to: {self.cuts} cuts, a head at a time, need as many steps; {float(self.share)} of the first phase are"
                f" {int(self.share * steps)}: train longer, raise --prune-share, or start from a narrower student"
            )

    def widths_after(self, cuts: int) -> Widths:
        """The widths of every layer after so many cuts."""
        return Widths(*(start - round((start - end) * cuts / self.cuts) for start, end in zip(self.start, self.end, strict=True)))

    def cut(self, student: PrunedBertForSequenceClassification, cuts: int) -> None:
        """Make the student as narrow as it is after `cuts` cuts, and start to gather importance anew."""
        self.importance.keep(student, self.widths_after(cuts))
        self.importance.restart(student)
