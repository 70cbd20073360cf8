"""What a model is made of: parameters by part, FLOPs per token, CPU latency; a store's teacher too, from its config alone."""

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedModel
from transformers.initialization import no_init_weights

from hskstore.errors import ModelError, StoreError
from hskstore.models.load import load_classifier
from hskstore.models.run import hugging_face_config, model_inputs, put_back, usable_positions
from hskstore.stage_two.evaluate import cpu_latency
from hskstore.stage_two.rows import TrainingRows
from hskstore.store import Store, open_store
from hskstore.store.commit import TEACHER
from hskstore.store.places import is_store

LENGTHS = (32, 128)
LATENCY_ROWS = 20
PARTS = ("word embeddings", "other embeddings", "layers", "pooler", "head", "rest")

# What a stranger's teacher.json may ask for.
MAX_PARAMETERS = 20 * 10**9
MAX_TENSORS = 10_000
MAX_LAYERS = 500
MAX_INTEGER = 2**21
"""Twice the largest vocabulary: no size in a config is larger, and buffers as long as this are still small."""
MEMORY_SHARE = 0.4


@dataclass(frozen=True)
class Anatomy:
    """A model's size and cost.

    `parameters` has the PARTS that the model has, tied weights in the first of them; `layers` and `hidden_size` are None
    where the model has no config to say so. `flops_per_token` and `latency_ms` are of a batch of one row of so many tokens,
    without padding, for the LENGTHS that the model has positions for: matrix products alone, two FLOPs for a
    multiply-add, divided by the length (None where an operator cannot be counted); median milliseconds of the row on
    the CPU with all threads torch uses (None where the weights would take too much of the free memory).
    """

    name: str
    layers: int | None
    hidden_size: int | None
    parameters: dict[str, int]
    total_parameters: int
    flops_per_token: dict[int, float] | None
    latency_ms: dict[int, float] | None


def describe_model(name: str) -> Anatomy:
    """A model folder or hub name, its head trained or not. Raises ModelError."""
    model, _ = load_classifier(name)
    return describe_module(model, name)


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


def describe_module(module: nn.Module, name: str) -> Anatomy:
    """A model at hand. It is looked at on the CPU in eval mode, and is then on the device and in the mode it was in before.

    Any that `classifiers.run_model` can call, with an `nn.Embedding` for its words. Raises ModelError.
    """
    with put_back(module):
        return _describe(module.to("cpu"), name)


def _describe(module: nn.Module, name: str) -> Anatomy:
    """The same for a module on the CPU, or on the meta device, where it has no latency."""
    module.eval()
    config = hugging_face_config(module)
    positions = usable_positions(module)
    words = _word_table(module, name)
    rows = {length: _random_rows(words, length) for length in LENGTHS if positions is None or length <= positions}
    flops = {length: _flops(module, batch) for length, batch in rows.items()}
    counted = {length: count / length for length, count in flops.items() if count is not None}
    parameters = _parameters_by_part(module)
    return Anatomy(
        name=name,
        layers=getattr(config, "num_hidden_layers", None),
        hidden_size=getattr(config, "hidden_size", None),
        parameters=parameters,
        total_parameters=sum(parameters.values()),
        flops_per_token=counted if len(counted) == len(flops) else None,
        latency_ms=None if _on_meta(module) else {length: round(cpu_latency(module, batch), 3) for length, batch in rows.items()},
    )


def _on_meta(module: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in module.parameters())


# --- parameters


def _parameters_by_part(module: nn.Module) -> dict[str, int]:
    """Parameters of the parts that there are, each counted once; the parts' modules may contain one another."""
    counts = dict.fromkeys(PARTS, 0)
    seen: set[int] = set()
    for part, owners in _owners(module):
        for parameter in (parameter for owner in owners for parameter in owner.parameters()):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                counts[part] += parameter.numel()
    return {part: count for part, count in counts.items() if count}


def _owners(module: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """Parts and where their parameters are, unless a part before has them."""
    yield "word embeddings", _word_embeddings(module)
    if isinstance(module, PreTrainedModel):
        base = module.base_model
        yield "other embeddings", _embeddings(base)
        yield "layers", [child for child in base.modules() if isinstance(child, nn.ModuleList)]
        yield "pooler", [child for name, child in base.named_children() if name == "pooler"]
        yield "rest", [base]
        yield "head", [module]
    yield "rest", [module]


def _embeddings(base: nn.Module) -> list[nn.Module]:
    """BERT's `embeddings`, and ELECTRA's `embeddings_project` beside it."""
    return [child for name, child in base.named_children() if name.startswith("embeddings")]


def _word_embeddings(module: nn.Module) -> list[nn.Module]:
    """The words' table and, where it is narrower than the model, the projection that widens it."""
    if not isinstance(module, PreTrainedModel):
        return [child for child in module.modules() if isinstance(child, nn.Embedding)]
    inside = [child for part in _embeddings(module.base_model) for child in part.modules()]
    return [module.get_input_embeddings(), *(child for child in inside if isinstance(child, nn.Linear))]


def _word_table(module: nn.Module, name: str) -> nn.Embedding:
    for owner in _word_embeddings(module):
        if isinstance(owner, nn.Embedding):
            return owner
    raise ModelError(f"{name} has no table of word embeddings (torch.nn.Embedding): there is no text to run it on")


# --- FLOPs and latency


def _random_rows(words: nn.Embedding, length: int) -> TrainingRows:
    """Rows of `length` random words, none of them padding."""
    known = np.setdiff1d(np.arange(words.num_embeddings), [] if words.padding_idx is None else [words.padding_idx])
    input_ids = np.random.default_rng(0).choice(known, (LATENCY_ROWS, length))
    return TrainingRows(input_ids, np.zeros_like(input_ids), np.full(LATENCY_ROWS, length), None, None, None)


def _flops(module: nn.Module, rows: TrainingRows) -> int | None:
    """FLOPs of the first row's forward pass; None where it runs an operator that the counter does not know.

    Fused CPU kernels are such operators, so attention runs as two matrix products, an LSTM without oneDNN, and torch's
    own transformer layers with gradients, which keeps them off their fast path.
    """
    batch = rows.batch(np.array([0]), hidden=False)
    inputs = model_inputs(module, batch.input_ids, batch.token_type_ids, batch.attention_mask)
    if _on_meta(module):  # transformers looks into a mask, which has no values there; without one every token is real
        inputs.pop("attention_mask", None)
    counter = FlopCounterMode(display=False)
    uncounted = _Uncounted(module, counter.flop_registry)
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        warnings.simplefilter("ignore")  # setting oneDNN's flags speaks of TF32
        with torch.backends.mkldnn.flags(enabled=False), uncounted, counter:
            module(**inputs)
    return None if uncounted.names else int(counter.get_total_flops())


class _Uncounted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the names of operators that multiply matrices, or may do so, and that a FLOP counter has no formula for.

    They are those that take one of the module's weight matrices and are neither look-ups, copies, views nor elementwise;
    and some that are known by name.
    """

    PRODUCTS = frozenset({"addbmm", "addmv", "addr", "dot", "mv", "vdot"})
    MOVES = frozenset({"_to_copy", "cat", "clone", "embedding", "index", "index_select", "stack"})

    def __init__(self, module: nn.Module, formulas: Mapping[Any, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()
        self._matrices = {id(parameter) for parameter in module.parameters() if parameter.ndim > 1}
        self._formulas = formulas

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        harmless = func.is_view or torch.Tag.pointwise in func.tags or name in self.MOVES
        weighs = not harmless and any(id(leaf) in self._matrices for leaf in tree_leaves((args, kwargs)))
        fused = func.namespace != "aten" or name in self.PRODUCTS or "attention" in name
        if func.overloadpacket not in self._formulas and (weighs or fused):
            self.names.add(name)
        return func(*args, **kwargs)


# --- a store's teacher


def _describe_stored(store: Store) -> Anatomy:
    config = _stored_config(store)
    name = f"that of {store.root}"
    with torch.device("meta"), _sane_size(store.root):
        shape = AutoModelForSequenceClassification.from_config(copy.deepcopy(config), trust_remote_code=False)
    needed = sum(parameter.numel() * parameter.element_size() for parameter in shape.parameters())
    if needed > MEMORY_SHARE * psutil.virtual_memory().available:
        return _describe(shape, name)
    with no_init_weights():
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)  # memory as it was found may hold subnormal numbers, which are slow
    return _describe(model, name)


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
