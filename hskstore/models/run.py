"""A classifier, fed batches: a Hugging Face model, an export to ONNX, or any torch module that `run_model` can call."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig

from hskstore.errors import ModelError
from hskstore.text.rows import Rows
from hskstore.text.tokenizers import TYPES, Tokenizer, highest_id, pad_id

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


Inputs = tuple[Int[Tensor, "_batch _token"], Int[Tensor, "_batch _token"], Bool[Tensor, "_batch _token"]]
"""A padded batch: `input_ids`, `token_type_ids` and `attention_mask` (True = real token)."""


class Outputs(NamedTuple):
    """`logits` [batch, class]; `hidden_states` [batch, token, width] of the embeddings and then of each layer, or None; likewise
    `attentions` of each layer, which some families give in another shape, or not at all."""

    logits: Float[Tensor, "batch class"]
    hidden_states: tuple[Float[Tensor, "batch token width"], ...] | None
    attentions: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class ModelShape:
    """What a classifier was seen to give, or shall have: `hidden` are its layers and the width of its hidden states, or why it
    has none that a method could learn from; `heads` those of each layer and their size, where its attention was looked at."""

    name: str
    outputs: int
    hidden: tuple[int, int] | str
    heads: tuple[tuple[int, int], ...] | None = None

    @property
    def layers(self) -> int:
        """Raises ModelError where it gives no hidden states."""
        return self._inside()[0]

    @property
    def width(self) -> int:
        """Of its hidden states. Raises ModelError where it gives none."""
        return self._inside()[1]

    def _inside(self) -> tuple[int, int]:
        if isinstance(self.hidden, str):
            raise ModelError(f"{self.name}{self.hidden}")
        return self.hidden


def hugging_face_config(model: nn.Module) -> PreTrainedConfig | None:
    """A Hugging Face model's config; None of any other module, whatever it calls `config`."""
    config = getattr(model, "config", None)
    return config if isinstance(config, PreTrainedConfig) else None


def accepted_inputs(model: nn.Module) -> frozenset[str]:
    """The inputs that a model's forward names: DistilBERT has no token types, RoBERTa one only."""
    accepted = set(INPUTS) & set(inspect.signature(model.forward).parameters)
    config = hugging_face_config(model)
    if config is not None and getattr(config, "type_vocab_size", 1) < 2:
        accepted.discard("token_type_ids")
    return frozenset(accepted)


def model_inputs(
    model: nn.Module,
    input_ids: Int[Tensor, "batch token"],
    token_type_ids: Int[Tensor, "batch token"],
    attention_mask: Bool[Tensor, "batch token"],
) -> dict[str, Int[Tensor, "batch token"]]:
    """Keyword arguments for a model's forward, on its device; all are [batch, token], `attention_mask` True = real token."""
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    inputs = {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": attention_mask.long()}
    return {name: inputs[name].to(device) for name in accepted_inputs(model)}


def run_model(
    model: nn.Module,
    input_ids: Int[Tensor, "batch token"],
    token_type_ids: Int[Tensor, "batch token"],
    attention_mask: Bool[Tensor, "batch token"],
    *,
    hidden: bool = False,
    attentions: bool = False,
) -> Outputs:
    """One padded batch through a classifier, as `model_inputs` takes it.

    The model is called with those of `INPUTS` that its forward names, and with `output_hidden_states` if it names that. It
    returns logits, or a pair of logits and hidden states, or an object or mapping with `logits` and `hidden_states`. Batches
    may have a single row, which BatchNorm cannot train on. `attentions` are those of a Hugging Face model that runs eager.
    """
    options: dict[str, Any] = dict(model_inputs(model, input_ids, token_type_ids, attention_mask))
    named = "output_hidden_states" in inspect.signature(model.forward).parameters
    if hidden and (named or hugging_face_config(model) is not None):
        options["output_hidden_states"] = True
    if attentions:
        options["output_attentions"] = True
    output = model(**options)
    if isinstance(output, Tensor):
        return Outputs(output.float(), None)
    if isinstance(output, Mapping):
        logits, states = output["logits"], output.get("hidden_states")
    elif isinstance(output, tuple):
        logits, states = output
    else:
        logits, states = output.logits, getattr(output, "hidden_states", None)
    maps = getattr(output, "attentions", None) if attentions else None
    return Outputs(
        logits.float(), tuple(states) if hidden and states is not None else None, None if maps is None else tuple(maps)
    )


@contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    """Afterwards the model is on the device, and each of its modules in the mode (train or eval), that it was in before."""
    modes = [(module, module.training) for module in model.modules()]
    device = next((parameter.device for parameter in model.parameters()), None)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        if device is not None and next(model.parameters()).device != device:
            model.to(device)


def shape_of(
    model: nn.Module,
    input_ids: Int[Tensor, "batch token"],
    token_type_ids: Int[Tensor, "batch token"],
    attention_mask: Bool[Tensor, "batch token"],
    *,
    name: str,
) -> ModelShape:
    """What a classifier gives for a batch. Raises ModelError where it gives no logits."""
    if "input_ids" not in accepted_inputs(model):
        raise ModelError(f"{name}: its forward must take input_ids (and, if it wants them, attention_mask, token_type_ids)")
    try:
        with put_back(model), torch.no_grad():
            model.eval()
            output = run_model(model, input_ids, token_type_ids, attention_mask, hidden=True)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{name}: it gave no logits, or logits and hidden states, for a batch ({error})") from None
    rows, tokens = input_ids.shape
    if output.logits.ndim != 2 or len(output.logits) != rows:
        raise ModelError(f"{name}: its logits must be [batch, class], here [{rows}, classes], not {list(output.logits.shape)}")
    states = output.hidden_states
    if states is None:
        lacks = " gives no hidden states, which the method learns: return (logits, hidden_states), or choose kd"
        return ModelShape(name, output.logits.shape[1], lacks)
    width = states[-1].shape[-1]
    if len(states) < 2 or any(state.shape != (rows, tokens, width) for state in states):
        shapes = ", ".join(str(list(state.shape)) for state in states)
        lacks = ": its hidden states must be [batch, token, width] of the embeddings and of each layer, all of one width,"
        return ModelShape(name, output.logits.shape[1], f"{lacks} here [{rows}, {tokens}, width]; they are {shapes}")
    return ModelShape(name, output.logits.shape[1], (len(states) - 1, width))


def usable_positions(model: nn.Module) -> int | None:
    """Tokens that a model has positions for; None where it has no such limit. RoBERTa's first ones belong to padding."""
    config = hugging_face_config(model)
    if config is None:
        return None
    limit = getattr(config, "max_position_embeddings", None)
    table = getattr(getattr(getattr(model, "base_model", None), "embeddings", None), "position_embeddings", None)
    offset = getattr(table, "padding_idx", None)
    # XLNet, whose positions are relative, says -1.
    return None if limit is None or int(limit) < 1 else int(limit) - (0 if offset is None else offset + 1)


def attention_windows(config: PreTrainedConfig) -> tuple[int | None, ...]:
    """How many tokens to its right a token attends to in each layer, from the first; None: all of them."""
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if not kinds:
        return (None,) * int(config.num_hidden_layers)
    return tuple(None if kind == "full_attention" else int(window or 0) for kind in kinds)


def usual_length(model: nn.Module, tokenizer: Tokenizer, wanted: int) -> int:
    """`wanted` tokens, or as many as the tokenizer and the model can take."""
    positions = usable_positions(model)
    return int(min(wanted, tokenizer.model_max_length, wanted if positions is None else positions))


def check_length(model: nn.Module, name: str, longest: int, *, advice: str = "pass --max-length {}") -> None:
    """Raise ModelError where a row of `longest` tokens has more tokens than the model has positions."""
    check_positions(usable_positions(model), name, longest, advice=advice)


def check_positions(positions: int | None, name: str, longest: int, *, advice: str = "pass --max-length {}") -> None:
    """Raise ModelError where a row of `longest` tokens has more tokens than there are `positions`; None is no limit."""
    if positions is not None and positions < longest:
        raise ModelError(f"{name} has positions for {positions} tokens; a row has {longest}: {advice.format(positions)}")


def known_words(model: nn.Module) -> int | None:
    """Rows of a model's table of words: an id that it knows is below. None of a module that does not say."""
    words = getattr(hugging_face_config(model), "vocab_size", None)
    return None if words is None else int(words)


def check_vocabulary(model: nn.Module, name: str, tokenizer: Tokenizer) -> None:
    """Raise ModelError where the tokenizer has a token that the model has no embedding of, whether or not a row has it."""
    words, highest = known_words(model), highest_id(tokenizer)
    if words is not None and highest >= words:
        raise _no_embedding(name, words, f"its tokenizer gives {_token(tokenizer, highest)}")


def check_tokens(model: nn.Module, name: str, splits: Mapping[str, Rows], tokenizer: Tokenizer) -> None:
    """Raise ModelError where a row, or its padding, has an id or a token type that the model has no embedding of.

    The tokenizer is the one that made the rows.
    """
    words, pad = known_words(model), pad_id(tokenizer)
    if words is not None and pad >= words:
        raise _no_embedding(name, words, f"padding is {_token(tokenizer, pad)}")
    types = getattr(hugging_face_config(model), "type_vocab_size", None) if TYPES in accepted_inputs(model) else None
    for split, rows in splits.items():
        if words is not None and (found := _first_beyond(rows, lambda block: block.input_ids, words)):
            raise _no_embedding(name, words, f"row {found[0] + 1} of {split} has {_token(tokenizer, found[1])}")
        if types is not None and (found := _first_beyond(rows, lambda block: block.token_type_ids, types)):
            raise ModelError(
                f"{name} has {types} token types; row {found[0] + 1} of {split} has type {found[1]}: mend the template of its"
                ' tokenizer ("post_processor" in tokenizer.json)'
            )


def _token(tokenizer: Tokenizer, token: int) -> str:
    return f"{tokenizer.convert_ids_to_tokens([token])[0]}, id {token}"


def _no_embedding(name: str, words: int, what: str) -> ModelError:
    return ModelError(
        f"{name} has a vocabulary of {words} words, ids 0 to {words - 1}, but {what}: the tokenizer was given tokens that the"
        " model was not, or is another model's. Take them out of tokenizer.json, or give the model more words"
        " (resize_token_embeddings) and train it on them"
    )


def _first_beyond(rows: Rows, of: Callable[[Rows], Any], limit: int) -> tuple[int, int] | None:
    """The first number that is `limit` or more: the row that has it, as it was numbered when it was read, and the number."""
    for block in rows.in_runs():
        numbers = of(block)
        if len(numbers) and int(numbers.max()) >= limit:
            place = int((numbers >= limit).argmax())
            return int(block.row_id[block.bounds.searchsorted(place, side="right") - 1]), int(numbers[place])
    return None
