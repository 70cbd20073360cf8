"""A student made of some of a teacher's layers, with its embeddings, pooler and head."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed

from hskstore.errors import ModelError, OptionError
from hskstore.models.folder import refuse_existing_model, save_model
from hskstore.models.load import load_classifier
from hskstore.models.pruned_bert import PrunedBertConfig
from hskstore.students.new import NewStudent
from hskstore.text.tokenizers import load_tokenizer


def parse_layers(text: str, total: int) -> tuple[int, ...]:
    """Which of `total` layers "4,8,12", "bottom:3" (1,2,3) or "every:2" (2,4,6 to the top) names. Raises OptionError."""
    kind, colon, number = text.partition(":")
    try:
        if not colon:
            return tuple(int(part) for part in text.split(","))
        count = int(number)
    except ValueError:
        kind, count = "", 0
    if count > 0 and kind == "bottom":
        return tuple(range(1, min(count, total + 1) + 1))  # one too many is enough to be refused
    if count > 0 and kind == "every":
        return tuple(range(count, total + 1, count))
    raise OptionError(f"--layers {text}: expected layers from 1 with commas (4,8,12), bottom:3 or every:2")


def slice_teacher(teacher: str, layers: str | Sequence[int], out: str | Path) -> NewStudent:
    """Copy `layers` (from 1, in this order, or as `parse_layers` reads them) out of `teacher` into a model folder.

    Raises ModelError or OptionError.
    """
    out = Path(out)
    refuse_existing_model(out)
    set_seed(0)  # for the head of a model that has none
    model, _ = load_classifier(teacher)
    tokenizer = load_tokenizer(teacher)
    total = int(model.config.num_hidden_layers)
    chosen = parse_layers(layers, total) if isinstance(layers, str) else tuple(layers)
    beyond = [layer for layer in chosen if not 1 <= layer <= total]
    if beyond or not chosen:
        asked = layers if isinstance(layers, str) else ",".join(map(str, layers))
        raise OptionError(f"--layers {asked}: {teacher} has layers 1 to {total}")
    take_layers(model, chosen)
    save_model(model, tokenizer, out)
    return NewStudent(str(out), len(chosen), int(model.num_parameters()))


def take_layers(model: Any, chosen: Sequence[int]) -> None:
    """Leave a model these of its layers, counted from 1, in this order, in place."""
    parent, name, blocks = encoder_layers(model)
    setattr(parent, name, nn.ModuleList(copy.deepcopy(blocks[layer - 1]) for layer in chosen))
    model.config.num_hidden_layers = len(chosen)
    if isinstance(model.config, PrunedBertConfig):
        heads, ffn = model.config.heads_per_layer, model.config.ffn_per_layer
        model.config.set_widths([heads[layer - 1] for layer in chosen], [ffn[layer - 1] for layer in chosen])


def encoder_layers(model: Any) -> tuple[nn.Module, str, nn.ModuleList]:
    """The module that holds the encoder's layers, the name they have there, and they themselves."""
    total = int(model.config.num_hidden_layers)
    if getattr(model.config, "layer_types", None):  # ModernBERT: a layer is built for its place, the first without a norm
        raise ModelError(f"the layers of the family {model.config.model_type} are of several kinds: none can be left out")
    found = [
        (parent, name, child)
        for parent in model.base_model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == total
    ]
    if len(found) != 1:
        raise ModelError(f"the family {model.config.model_type} has no single list of {total} layers to choose from")
    return found[0]
