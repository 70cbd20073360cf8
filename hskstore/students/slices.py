"""A student made of some of a teacher's layers, with its embeddings, pooler and head."""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from hskstore.errors import ModelError, OptionError
from hskstore.models.folder import refuse_existing_model, save_model
from hskstore.models.load import load_classifier
from hskstore.models.pruned_bert import PrunedBertConfig
from hskstore.models.run import put_back, run_model, usable_positions
from hskstore.students.new import NewStudent
from hskstore.text.tokenizers import load_tokenizer

log = logging.getLogger(__name__)

KINDS = ("layer_types", "mlp_layer_types")
"""Where a config says of each layer what kind it is: seeing a whole row or a window of it, with or without experts."""

PLACE_TOLERANCE = 1e-4
"""Largest difference of a logit, by the largest, between layers as they were copied and as a new model of their config."""

CHECKED_TOKENS = 64
"""Of the row on which both are run."""


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
    _check_places(model, chosen, teacher)
    save_model(model, tokenizer, out)
    return NewStudent(str(out), len(chosen), int(model.num_parameters()))


def take_layers(model: Any, chosen: Sequence[int]) -> None:
    """Leave a model these of its layers, counted from 1, in this order, in place."""
    parent, name, blocks = encoder_layers(model)
    setattr(parent, name, nn.ModuleList(copy.deepcopy(blocks[layer - 1]) for layer in chosen))
    model.config.num_hidden_layers = len(chosen)
    for name in KINDS:
        kinds = getattr(model.config, name, None)
        if kinds and not isinstance(getattr(type(model.config), name, None), property):  # which Jamba counts anew
            setattr(model.config, name, [kinds[layer - 1] for layer in chosen])
    _name_cadence(model.config)
    if isinstance(model.config, PrunedBertConfig):
        heads, ffn = model.config.heads_per_layer, model.config.ffn_per_layer
        model.config.set_widths([heads[layer - 1] for layer in chosen], [ffn[layer - 1] for layer in chosen])


def _name_cadence(config: Any) -> None:
    """ModernBERT's cadence as transformers 4 reads it: every n-th layer, from the first, sees the whole row."""
    name = "global_attn_every_n_layers"
    if not hasattr(config, name):
        return
    whole = [kind == "full_attention" for kind in config.layer_types]
    for every in range(1, len(whole) + 1):
        if whole == [place % every == 0 for place in range(len(whole))]:
            setattr(config, name, every)
            return
    delattr(config, name)
    log.warning(
        "no one number says which of these layers see the whole row: transformers 5 reads it of each, 4 would take others"
    )


def _check_places(model: Any, chosen: Sequence[int], name: str) -> None:
    """Raise ModelError where a layer is built for its place, as ModernBERT's first is, without a norm, and would be another
    elsewhere: where a model of the same config lacks parts of what was copied, or computes something else of them."""
    fresh = type(model)(copy.deepcopy(model.config)).eval()
    own, theirs = ({key: each.shape for key, each in of.state_dict().items()} for of in (model, fresh))
    same = own == theirs
    if same:
        fresh.load_state_dict(model.state_dict())
        positions = usable_positions(model) or CHECKED_TOKENS
        words = torch.Generator().manual_seed(0)
        ids = torch.randint(int(model.config.vocab_size), (1, min(positions, CHECKED_TOKENS)), generator=words)
        batch = ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool)
        with put_back(model), torch.no_grad(), _without_cache(model):
            expected, found = (run_model(of.eval(), *batch).logits for of in (model, fresh))
        same = bool((found - expected).abs().max() <= PLACE_TOLERANCE * expected.abs().max())
    if not same:
        raise ModelError(
            f"{name}: the layers of a {model.config.model_type} are built for their places; {','.join(map(str, chosen))} would be"
            f" others as layers 1 to {len(chosen)}: choose from the bottom, such as bottom:2"
        )


@contextmanager
def _without_cache(model: Any) -> Iterator[None]:
    """Within, a decoder keeps no keys and values, in whose cache copied layers have the places that they came from."""
    cached = getattr(model.config, "use_cache", False)
    if cached:
        model.config.use_cache = False
    try:
        yield
    finally:
        if cached:
            model.config.use_cache = cached


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
