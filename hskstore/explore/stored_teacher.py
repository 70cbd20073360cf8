"""What a store's teacher is made of, from the shape that the store keeps; its weights need not be there."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification
from transformers.initialization import no_init_weights

from hskstore.errors import StoreError
from hskstore.memory import free_memory
from hskstore.models.anatomy import Anatomy, describe, describe_model
from hskstore.store import Store, open_store
from hskstore.store.commit import TEACHER
from hskstore.store.places import is_store

# What a stranger's teacher.json may ask for.
MAX_PARAMETERS = 20 * 10**9
MAX_TENSORS = 10_000
MAX_LAYERS = 500
MAX_INTEGER = 2**21
"""Twice the largest vocabulary: no size in a config is larger, and buffers as long as this are still small."""
MEMORY_SHARE = 0.4


def describe_teacher(name_or_store: str) -> Anatomy:
    """A model, or the teacher of a store, whose weights need not be there: nothing here depends on them.

    Raises ModelError or StoreError.
    """
    if not is_store(name_or_store):
        return describe_model(name_or_store)
    store = open_store(name_or_store)
    try:
        return _describe_stored(store)
    except StoreError:
        raise
    except Exception as error:  # whatever the libraries make of a stranger's config
        cause = str(error).strip().partition("\n")[0]
        raise StoreError(f"{store.root}/{TEACHER}: no teacher can be built from it ({type(error).__name__}: {cause})") from None


# --- a store's teacher


def _describe_stored(store: Store) -> Anatomy:
    config = _stored_config(store)
    name = f"that of {store.root}"
    with torch.device("meta"), _sane_size(store.root):
        shape = AutoModelForSequenceClassification.from_config(copy.deepcopy(config), trust_remote_code=False)
    needed = sum(parameter.numel() * parameter.element_size() for parameter in shape.parameters())
    if needed > MEMORY_SHARE * free_memory():
        return describe(shape, name)
    with no_init_weights():
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)  # memory as it was found may hold subnormal numbers, which are slow
    return describe(model, name)


def _stored_config(store: Store) -> Any:
    """The teacher's config, of what its family's config knows; what says where code or kernels come from is left out."""
    where = f"{store.root}/{TEACHER}"
    document = json.loads(store.file(TEACHER), parse_int=_sane_integer)
    given = document.get("config") if isinstance(document, dict) else None
    family = given.get("model_type") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(family, str):
        raise StoreError(f"{where} does not say what the teacher's shape is")
    if family not in CONFIG_MAPPING or CONFIG_MAPPING[family].sub_configs:
        raise StoreError(f"{where}: no text classifier of the family {family} is known; a newer transformers may know it")
    known = {name for name in CONFIG_MAPPING[family]().to_dict() if not name.startswith("_")} - {"model_type", "dtype"}
    config = CONFIG_MAPPING[family](**{name: value for name, value in given.items() if name in known})
    layers = config.num_hidden_layers
    if layers > MAX_LAYERS:
        raise StoreError(f"{where} asks for {layers} layers; refused")
    return config


def _sane_integer(text: str) -> int:
    if abs(int(text)) > MAX_INTEGER:
        raise ValueError(f"{text[:40]} is no size")
    return int(text)


@contextmanager
def _sane_size(root: str) -> Iterator[None]:
    """Raise StoreError as soon as a model that is being built has more parameters than any teacher has."""
    tensors = total = 0

    def count(_module: nn.Module, _name: str, parameter: Any) -> None:
        nonlocal tensors, total
        tensors += 1
        total += 0 if parameter is None else parameter.numel()
        if total > MAX_PARAMETERS or tensors > MAX_TENSORS:
            limit = f"{MAX_PARAMETERS:,} parameters or {MAX_TENSORS:,} tensors"
            raise StoreError(f"{root}/{TEACHER} asks for more than {limit}; refused")

    hook = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
