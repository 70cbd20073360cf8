"""Hugging Face classifiers, loaded safely: from safetensors, without code, whole; and the names of their classes."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from hskstore.errors import ModelError
from hskstore.models import pruned_bert as pruned_bert  # registered with the Auto classes by being imported
from hskstore.models.folder import is_onnx
from hskstore.text.table import half_a_character
from hskstore.text.tokenizers import load_tokenizer

log = logging.getLogger(__name__)
CONVERTER = "https://huggingface.co/spaces/safetensors/convert"
_MOST_LETTERS = 500
"""Of what a library says, which may cite a file at length."""
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "num_labels")
"""What a config that has it must say in a whole number above zero."""
MOST = {"num_hidden_layers": 1000, "num_labels": 1_000_000}
"""So many are built, or named, before the weights are looked at, of which no model has more."""


def load_classifier(name: str, **options: Any) -> tuple[PreTrainedModel, bool]:
    """A sequence classifier in float32 from safetensors, and whether its head was trained.

    Raises ModelError where it cannot be loaded, where its weights lack a part of its own encoder, and as `read_config` does.
    """
    if is_onnx(name):
        raise ModelError(f"{name} is an export to ONNX: hsk eval scores it, but it can be neither trained nor exported again")
    read_config(name, new_head="num_labels" in options)
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
    except Exception as error:  # whatever the libraries make of a stranger's files
        cause = _cause(error)
        other_weights = isinstance(error, OSError) and "safetensors" in cause
        advice = f". hskstore reads no pickles: convert other weights once, at {CONVERTER}" if other_weights else ""
        raise ModelError(f"{name}: no model could be loaded ({cause}){advice}") from None
    model.config.return_dict = True  # a config can ask for tuples, whose parts have no names
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key, *_ in report.get("mismatched_keys", ()))
    encoder = [key for key in missing if key.startswith(f"{model.base_model_prefix}.") and "pooler" not in key]
    if encoder:
        raise ModelError(f"{name}: its weights lack {len(encoder)} tensors of its own encoder, such as {encoder[0]}")
    return model, not missing


def load_trained(name: str) -> tuple[Any, Any]:
    """A fine-tuned classifier and its tokenizer. Raises ModelError as `load_classifier` does, and for an untrained head."""
    model, trained = load_classifier(name)
    if not trained:
        raise ModelError(f"{name} has no trained classification head: fine-tune it first with hsk finetune")
    return model, load_tokenizer(name)


def read_config(name: str, *, new_head: bool = False) -> PreTrainedConfig:
    """A model's config, without its weights. With a `new_head` it does not matter what outputs it has.

    Raises ModelError where it cannot be read, where a size is no number, and for outputs that no task here has.
    """
    try:
        written, _ = PreTrainedConfig.get_config_dict(name)
    except Exception as error:  # whatever the libraries make of a stranger's files
        elsewhere = "" if Path(name).exists() else "there is no such folder, and on the hub: "
        raise ModelError(f"{name}: no model could be loaded ({elsewhere}{_cause(error)})") from None
    if isinstance(written, dict):
        _check_numbers(name, written)
        if fault := half_a_character(json.dumps(written, default=str, ensure_ascii=False)):
            raise ModelError(f"{name}/config.json holds {fault}: mend or remove its text")
        _check_sizes(name, written)
        _check_outputs(name, written, new_head)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # whatever the libraries make of a stranger's files
        raise ModelError(f"{name}: no model could be loaded ({_cause(error)})") from None
    return config


def _check_sizes(name: str, written: dict[str, Any]) -> None:
    for size in SIZES:
        number = written.get(size, 1)
        if type(number) is not int or number < 1:
            raise ModelError(f"{name}/config.json: {size} is {number!r}, and must be a whole number above zero")
        if number > MOST.get(size, number):
            raise ModelError(f"{name}/config.json: {size} is {number!r}, and at most {MOST[size]} make sense")
    for flag in ("output_hidden_states", "output_attentions"):
        if not isinstance(written.get(flag), bool | None):
            raise ModelError(f"{name}/config.json: {flag} is {written[flag]!r}, and must be true or false")
    if written.get("chunk_size_feed_forward", 0) != 0:
        raise ModelError(
            f"{name}/config.json: chunk_size_feed_forward is {written['chunk_size_feed_forward']!r}, for rows whose length it"
            " divides; write 0 there, which computes the same for rows of any length"
        )


def _check_numbers(name: str, written: dict[str, Any]) -> None:
    """What Python reads for JSON, and nothing else does: it could not be written into a store or a model."""
    try:
        json.dumps(written, default=str, allow_nan=False)
    except ValueError:
        found = [key for key, value in written.items() if re.search("NaN|Infinity", json.dumps(value, default=str))]
        raise ModelError(f"{name}/config.json: {found[0]} holds NaN or Infinity, which is no JSON: write a number") from None


def _check_outputs(name: str, written: dict[str, Any], new_head: bool) -> None:
    kind, names = written.get("problem_type"), written.get("id2label")
    if kind == "multi_label_classification":
        raise ModelError(
            f"{name} is a multi-label classifier (problem_type in its config.json), whose classes do not exclude each other: they"
            " cannot be distilled or scored yet; choose a model of one class a row, or of a score"
        )
    if names is not None and not (isinstance(names, dict) and all(_is_id(key) for key in names)):
        raise ModelError(f'{name}/config.json: id2label must name each class by its id, such as {{"0": "no", "1": "yes"}}')
    if new_head:
        return
    if names is not None and {int(key) for key in names} != set(range(len(names) or 1)):
        ids = ", ".join(map(str, names)) or "no class"
        raise ModelError(f"{name}/config.json: id2label names {ids}; the ids of its outputs are 0, 1, 2, ...: name each of them")
    if kind == "regression" and names is not None and len(names) > 1:
        raise ModelError(
            f"{name} gives {len(names)} scores (problem_type regression in its config.json): hskstore knows tasks of one; where"
            " they are classes, write single_label_classification there"
        )


def _is_id(key: object) -> bool:
    return isinstance(key, str) and key.isdecimal()


def _cause(error: Exception) -> str:
    """What a library says, in one line: the first of its own, and the next where that one only announces it."""
    first, _, rest = str(error).strip().partition("\n")
    if "ignore_mismatched_sizes" in first:
        return "its weights have other sizes than its config.json says, of its classes or inside"
    if isinstance(error, KeyError) or not first:
        return f"{type(error).__name__} {first}".strip()
    whole = f"{first} {rest.strip().partition(chr(10))[0]}" if first.endswith(":") else first
    return whole if len(whole) <= _MOST_LETTERS else f"{whole[:_MOST_LETTERS]}..."


def layers_of(name: str) -> int:
    """The layers of a model, from its config alone. Raises ModelError where it does not say."""
    layers = getattr(read_config(name, new_head=True), "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise ModelError(f"{name}: its config does not tell its layers")
    return layers


def label_names(model: Any) -> tuple[str, ...]:
    """A classifier's class names by id; as many as it has outputs. A number is a name, by its digits.

    Raises ModelError where a class has none, or one that another has too but for case and blanks.
    """
    config, seen = model.config, dict[str, int]()
    where = f"{getattr(config, 'name_or_path', '') or config.model_type}/config.json: id2label"
    for index, name in sorted(config.id2label.items()):
        if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
            raise ModelError(f"{where} gives class {index} the name {name!r}: write a text there, or leave id2label out")
        same = seen.setdefault(" ".join(str(name).split()).casefold(), index)
        if same != index:
            raise ModelError(
                f"{where} calls class {same} {str(config.id2label[same])!r} and class {index} {str(name)!r}: give each a name"
                " that differs in more than case and blanks"
            )
    names = tuple(str(config.id2label[index]) for index in sorted(config.id2label))
    _tell_contradiction(where, names, config.label2id)
    return names


def _tell_contradiction(where: str, names: tuple[str, ...], ids: object) -> None:
    """Warn where label2id has the same names in another order."""
    if isinstance(ids, dict) and {*map(str, ids)} == {*names} and any(ids.get(name) != at for at, name in enumerate(names)):
        log.warning("%s and label2id number the classes differently; id2label is believed", where)
