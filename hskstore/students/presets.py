"""Smaller BERTs from scratch, by the names people use."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from hskstore.config import DEFAULT_VOCABULARY
from hskstore.errors import OptionError
from hskstore.export import NewStudent, refuse_existing_model, save_model
from hskstore.tokenizers import load_tokenizer


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    heads: int
    ffn: int


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
}


def new_student(preset: str, out: Path, *, vocab_from: str = DEFAULT_VOCABULARY, seed: int = 0) -> NewStudent:
    """A randomly initialised student with the tokenizer of `vocab_from`.

    Raises OptionError for an unknown preset, ModelError where the tokenizer cannot be loaded.
    """
    if preset not in PRESETS:
        raise OptionError(f"unknown preset {preset}: choose one of {', '.join(PRESETS)}")
    refuse_existing_model(out)
    tokenizer = load_tokenizer(vocab_from)
    shape = PRESETS[preset]
    torch.manual_seed(seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            num_hidden_layers=shape.layers,
            hidden_size=shape.hidden,
            num_attention_heads=shape.heads,
            intermediate_size=shape.ffn,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    save_model(model, tokenizer, out)
    return NewStudent(str(out), shape.layers, int(model.num_parameters()))
