"""A student made of some of a teacher's layers, with its embeddings, pooler and head."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed

from hskstore.classifiers import load_classifier
from hskstore.errors import ModelError, OptionError
from hskstore.export import NewStudent, refuse_existing_model, save_model
from hskstore.tokenizers import load_tokenizer


def parse_layers(text: str) -> tuple[int, ...]:
    """Read "2,4,6": the teacher's layers, counted from 1. Raises OptionError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"--layers {text}: expected numbers from 1 with commas, such as 2,4,6") from None


def slice_teacher(teacher: str, layers: Sequence[int], out: Path) -> NewStudent:
    """Copy `layers` (from 1, in this order) out of `teacher` into a model folder. Raises ModelError or OptionError."""
    refuse_existing_model(out)
    set_seed(0)  # for the head of a model that has none
    model, _ = load_classifier(teacher)
    tokenizer = load_tokenizer(teacher)
    total = int(model.config.num_hidden_layers)
    beyond = [layer for layer in layers if not 1 <= layer <= total]
    if beyond or not layers:
        raise OptionError(f"--layers {','.join(map(str, layers))}: {teacher} has layers 1 to {total}")
    parent, name, blocks = encoder_layers(model)
    setattr(parent, name, nn.ModuleList(copy.deepcopy(blocks[layer - 1]) for layer in layers))
    model.config.num_hidden_layers = len(layers)
    save_model(model, tokenizer, out)
    return NewStudent(str(out), len(layers), int(model.num_parameters()))


def encoder_layers(model: Any) -> tuple[nn.Module, str, nn.ModuleList]:
    """The module that holds the encoder's layers, the name they have there, and they themselves."""
    total = int(model.config.num_hidden_layers)
    found = [
        (parent, name, child)
        for parent in model.base_model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == total
    ]
    if len(found) != 1:
        raise ModelError(f"the family {model.config.model_type} has no single list of {total} layers to choose from")
    return found[0]
