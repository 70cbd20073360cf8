"""BERT with heads and FFN units of any number per layer, and word embeddings of any rank.

Importing this module registers the architecture, so that transformers' Auto classes load such a folder:

    import hskstore.pruned_bert
    model = AutoModelForSequenceClassification.from_pretrained("students/rosita")
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)


class PrunedBertConfig(BertConfig):  # type: ignore[misc]
    """A BertConfig with per-layer widths.

    `heads_per_layer` heads of `head_size` units each, `ffn_per_layer` units between a layer's two dense parts,
    `embedding_size` the rank of the word embeddings (None: they are one table). Raises ValueError for widths that are none.
    """

    model_type = "pruned_bert"

    def __init__(
        self,
        heads_per_layer: Sequence[int] | None = None,
        ffn_per_layer: Sequence[int] | None = None,
        head_size: int | None = None,
        embedding_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        plain: Any = self  # as BertConfig has made it
        self.head_size = plain.hidden_size // plain.num_attention_heads if head_size is None else head_size
        self.embedding_size = embedding_size
        self.set_widths(
            [plain.num_attention_heads] * plain.num_hidden_layers if heads_per_layer is None else heads_per_layer,
            [plain.intermediate_size] * plain.num_hidden_layers if ffn_per_layer is None else ffn_per_layer,
        )

    def set_widths(self, heads: Sequence[int], ffn: Sequence[int]) -> None:
        """Say how many heads and FFN units each layer has."""
        rank = () if self.embedding_size is None else (self.embedding_size,)
        lists = isinstance(heads, list | tuple) and isinstance(ffn, list | tuple)
        if not lists or not len(heads) == len(ffn) == self.num_hidden_layers or not _counts(self.head_size, *rank, *heads, *ffn):
            raise ValueError(
                f"{self.num_hidden_layers} layers of {heads} heads, {self.head_size} units each, and {ffn} FFN units, on word"
                f" embeddings of rank {self.embedding_size}, are no BERT"
            )
        self.heads_per_layer, self.ffn_per_layer = list(heads), list(ffn)
        # What a plain BERT says with one number, for those who ask.
        self.num_attention_heads, self.intermediate_size = max(heads), max(ffn)


def _counts(*values: object) -> bool:
    """Whether all are integers from 1: a config comes from a file."""
    return all(type(value) is int and value > 0 for value in values)


class FactorisedEmbedding(nn.Module):
    """Word embeddings as a table [word, rank] and a projection to the hidden size."""

    def __init__(self, words: int, rank: int, width: int, padding_idx: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(words, rank, padding_idx=padding_idx)
        self.projection = nn.Linear(rank, width, bias=False)

    def forward(self, input_ids: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token width"]:
        projected: Tensor = self.projection(self.table(input_ids))
        return projected


def word_vectors(embedding: nn.Module) -> Float[Tensor, "word width"]:
    """Word embeddings as one table, factorised or not."""
    if isinstance(embedding, FactorisedEmbedding):
        return embedding.table.weight @ embedding.projection.weight.T
    assert isinstance(embedding, nn.Embedding)
    return embedding.weight


def shape_as_configured(bert: BertModel) -> None:
    """Give a BertModel the widths of its PrunedBertConfig. A part whose width changes gets new, untrained weights."""
    config = bert.config
    words, rank, width = config.vocab_size, config.embedding_size, config.hidden_size
    old = bert.embeddings.word_embeddings
    has = old.table.embedding_dim if isinstance(old, FactorisedEmbedding) else None
    if rank != has:
        bert.embeddings.word_embeddings = (
            nn.Embedding(words, width, padding_idx=config.pad_token_id)
            if rank is None
            else FactorisedEmbedding(words, rank, width, config.pad_token_id)
        )
    for layer, heads, ffn in zip(bert.encoder.layer, config.heads_per_layer, config.ffn_per_layer, strict=True):
        attention, units = layer.attention.self, heads * config.head_size
        attention.num_attention_heads, attention.attention_head_size, attention.all_head_size = heads, config.head_size, units
        attention.scaling = config.head_size**-0.5
        for parent, name in ((attention, "query"), (attention, "key"), (attention, "value")):
            _resize(parent, name, width, units)
        _resize(layer.attention.output, "dense", units, width)
        _resize(layer.intermediate, "dense", width, ffn)
        _resize(layer.output, "dense", ffn, width)


def _resize(parent: nn.Module, name: str, inputs: int, outputs: int) -> None:
    old = getattr(parent, name)
    if (old.in_features, old.out_features) != (inputs, outputs):
        setattr(parent, name, nn.Linear(inputs, outputs))


class PrunedBertModel(BertModel):  # type: ignore[misc]
    """The encoder."""

    config_class = PrunedBertConfig
    config: PrunedBertConfig

    def __init__(self, config: PrunedBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer)
        shape_as_configured(self)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return _table(self)

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        _set_table(self, value)


class PrunedBertForSequenceClassification(BertForSequenceClassification):  # type: ignore[misc]
    """The encoder with BERT's classification head."""

    config_class = PrunedBertConfig
    config: PrunedBertConfig

    def __init__(self, config: PrunedBertConfig) -> None:
        super().__init__(config)
        shape_as_configured(self.bert)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return _table(self.bert)

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        _set_table(self.bert, value)


def _table(bert: Any) -> nn.Module:
    embedding = bert.embeddings.word_embeddings
    table: nn.Module = embedding.table if isinstance(embedding, FactorisedEmbedding) else embedding
    return table


def _set_table(bert: Any, value: nn.Embedding) -> None:
    embedding = bert.embeddings.word_embeddings
    if isinstance(embedding, FactorisedEmbedding):
        embedding.table = value
    else:
        bert.embeddings.word_embeddings = value


AutoConfig.register(PrunedBertConfig.model_type, PrunedBertConfig)
AutoModel.register(PrunedBertConfig, PrunedBertModel)
AutoModelForSequenceClassification.register(PrunedBertConfig, PrunedBertForSequenceClassification)
