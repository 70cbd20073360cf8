"""Hugging Face classifiers, loaded safely: from safetensors, without code, whole; and the names of their classes."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from hskstore.errors import ModelError
from hskstore.models import pruned_bert as pruned_bert  # registered with the Auto classes by being imported
from hskstore.models.folder import is_onnx
from hskstore.text.tokenizers import load_tokenizer

CONVERTER = "https://huggingface.co/spaces/safetensors/convert"


def load_classifier(name: str, **options: Any) -> tuple[PreTrainedModel, bool]:
    """A sequence classifier in float32 from safetensors, and whether its head was trained.

    Raises ModelError where it cannot be loaded, or where its weights lack a part of its own encoder.
    """
    if is_onnx(name):
        raise ModelError(f"{name} is an export to ONNX: hsk eval scores it, but it can be neither trained nor exported again")
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
    except Exception as error:  # whatever the libraries make of a stranger's files
        cause = str(error).strip().partition("\n")[0]
        other_weights = isinstance(error, OSError) and "safetensors" in cause
        advice = f". hskstore reads no pickles: convert other weights once, at {CONVERTER}" if other_weights else ""
        raise ModelError(f"{name}: no model could be loaded ({cause}){advice}") from None
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


def layers_of(name: str) -> int:
    """The layers of a model, from its config alone. Raises ModelError where it does not say."""
    try:
        return int(AutoConfig.from_pretrained(name, trust_remote_code=False).num_hidden_layers)
    except Exception as error:  # whatever the libraries make of a stranger's files
        cause = str(error).strip().partition("\n")[0]
        raise ModelError(f"{name}: its config does not tell its layers ({cause})") from None


def label_names(model: Any) -> tuple[str, ...]:
    """A classifier's class names by id; as many as it has outputs."""
    names = model.config.id2label
    return tuple(names[index] for index in sorted(names))
