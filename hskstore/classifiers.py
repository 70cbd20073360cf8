"""Hugging Face classifiers as both stages use them: loaded safely, asked for their labels and limits, fed batches."""

import inspect
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from hskstore.errors import ModelError, OptionError


def load_classifier(name: str, **options: Any) -> tuple[Any, bool]:
    """A sequence classifier in float32 from safetensors, and whether its head was trained.

    Raises ModelError where it cannot be loaded, or where its weights lack a part of its own encoder.
    """
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise ModelError(f"{name}: no model could be loaded ({cause})") from None
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key, *_ in report.get("mismatched_keys", ()))
    encoder = [key for key in missing if key.startswith(f"{model.base_model_prefix}.") and "pooler" not in key]
    if encoder:
        raise ModelError(f"{name}: its weights lack {len(encoder)} tensors of its own encoder, such as {encoder[0]}")
    return model, not missing


def label_names(model: Any) -> tuple[str, ...]:
    """A classifier's class names by id; as many as it has outputs."""
    names = model.config.id2label
    return tuple(names[index] for index in sorted(names))


def accepted_inputs(model: Any) -> frozenset[str]:
    """The inputs that a model's forward takes: DistilBERT has no token types, RoBERTa one only."""
    accepted = {"input_ids", "attention_mask", "token_type_ids"} & set(inspect.signature(model.forward).parameters)
    if getattr(model.config, "type_vocab_size", 1) < 2:
        accepted.discard("token_type_ids")
    return frozenset(accepted)


def model_inputs(model: Any, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
    """Keyword arguments for a model's forward, on its device; all are [batch, token], `attention_mask` True = real token."""
    device = next(model.parameters()).device
    inputs = {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": attention_mask.long()}
    return {name: inputs[name].to(device) for name in accepted_inputs(model)}


def usable_positions(model: Any) -> int | None:
    """Tokens that a model has positions for; None where it has no such limit. RoBERTa's first ones belong to padding."""
    limit = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    offset = getattr(table, "padding_idx", None)
    return None if limit is None else int(limit) - (0 if offset is None else offset + 1)


def usual_length(model: Any, tokenizer: Any, wanted: int) -> int:
    """`wanted` tokens, or as many as the tokenizer and the model can take."""
    positions = usable_positions(model)
    return int(min(wanted, tokenizer.model_max_length, wanted if positions is None else positions))


def check_length(model: Any, name: str, longest: int) -> None:
    """Raise ModelError where a row of `longest` tokens has more tokens than the model has positions."""
    positions = usable_positions(model)
    if positions is not None and positions < longest:
        raise ModelError(f"{name} has positions for {positions} tokens; a row has {longest}: pass --max-length {positions}")


def choose_device(text: str | None) -> torch.device:
    """The device of that name; None: a GPU if there is one. Raises OptionError for one that is not here."""
    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    here = device is not None and (
        device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count())
    )
    if device is None or not here:
        raise OptionError(f"--device {text}: not here; choose cpu" + (" or cuda" if torch.cuda.is_available() else ""))
    return device
