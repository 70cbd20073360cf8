"""Smaller BERTs from scratch, by the names people use or by their numbers."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from hskstore.config import DEFAULT_VOCABULARY, check_count, check_seed
from hskstore.errors import OptionError
from hskstore.models.folder import refuse_existing_model, save_model
from hskstore.models.pruned_bert import PrunedBertConfig, PrunedBertForSequenceClassification
from hskstore.students.new import NewStudent
from hskstore.text.tokenizers import load_tokenizer


@dataclass(frozen=True)
class Shape:
    """A BERT's layers, width, heads and FFN units of each layer.

    `head_size` (None: hidden / heads) and `embedding_rank` (None: one table) are those of a PrunedBert. Raises OptionError for
    a number that is none of these.
    """

    layers: int
    hidden: int
    heads: int
    ffn: int
    head_size: int | None = None
    embedding_rank: int | None = None

    def __post_init__(self) -> None:
        for name, number in asdict(self).items():
            check_count("--" + name.replace("_", "-"), number)


PRESETS: dict[str, Shape] = {
    # Turc et al. (2019), "Well-Read Students Learn Better"
    "bert-tiny": Shape(2, 128, 2, 512),
    "bert-mini": Shape(4, 256, 4, 1024),
    "bert-small": Shape(4, 512, 8, 2048),
    "bert-medium": Shape(8, 512, 8, 2048),
    # Jiao et al. (2020), TinyBERT
    "tinybert-4l-312d": Shape(4, 312, 12, 1200),
    "tinybert-6l-768d": Shape(6, 768, 12, 3072),
    # Sun et al. (2019), BERT-PKD's students
    "bert-3l-768d": Shape(3, 768, 12, 3072),
    "bert-6l-768d": Shape(6, 768, 12, 3072),
    # Wang et al. (2020), MiniLM
    "minilm-6l-384d": Shape(6, 384, 12, 1536),
    # Liu et al. (2021), ROSITA, in the shape of the second student of Marginal Utility Diminishes
    "rosita-6": Shape(6, 768, 2, 768, head_size=64, embedding_rank=128),
}
"""Smaller BERTs by the names that people use."""


def new_student(shape: Shape | str, out: str | Path, *, vocab_from: str = DEFAULT_VOCABULARY, seed: int = 0) -> NewStudent:
    """A randomly initialised student, of a preset's name or a shape, with the tokenizer of `vocab_from`.

    Raises OptionError for an unknown preset or a shape that is none, ModelError where the tokenizer cannot be loaded.
    """
    out = Path(out)
    refuse_existing_model(out)
    check_seed(seed)
    if isinstance(shape, str):
        if shape not in PRESETS:
            raise OptionError(f"unknown preset {shape}: choose one of {', '.join(PRESETS)}")
        shape = PRESETS[shape]
    if shape.head_size is None and shape.hidden % shape.heads:
        raise OptionError(f"--hidden {shape.hidden} --heads {shape.heads}: the width must be a multiple of the heads")
    tokenizer = load_tokenizer(vocab_from)
    torch.manual_seed(seed)
    try:
        model = _model(
            shape,
            vocab_size=len(tokenizer),
            num_hidden_layers=shape.layers,
            hidden_size=shape.hidden,
            num_attention_heads=shape.heads,
            intermediate_size=shape.ffn,
            pad_token_id=tokenizer.pad_token_id,
        )
    except (RuntimeError, TypeError, MemoryError) as error:  # what torch says of numbers beyond all memory
        cause = str(error).strip().partition("\n")[0]
        raise OptionError(f"a student of {shape} cannot be built ({cause})") from None
    save_model(model, tokenizer, out)
    return NewStudent(str(out), shape.layers, int(model.num_parameters()))


def _model(shape: Shape, **fields: Any) -> Any:
    if shape.head_size is None and shape.embedding_rank is None:
        return BertForSequenceClassification(BertConfig(**fields))
    config = PrunedBertConfig(head_size=shape.head_size, embedding_size=shape.embedding_rank, **fields)
    return PrunedBertForSequenceClassification(config)
