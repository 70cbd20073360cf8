"""What a model is made of: parameters by part, FLOPs per token, CPU latency."""

import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hskstore.errors import ModelError
from hskstore.models.load import load_classifier
from hskstore.models.onnx import OnnxClassifier
from hskstore.models.run import Inputs, hugging_face_config, model_inputs, put_back, run_model, usable_positions

LENGTHS = (32, 128)
LATENCY_ROWS = 20
PARTS = ("word embeddings", "other embeddings", "layers", "pooler", "head", "rest")


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


def describe_module(module: nn.Module, name: str) -> Anatomy:
    """A model at hand. It is looked at on the CPU in eval mode, and is then on the device and in the mode it was in before.

    Any that `models.run.run_model` can call, with an `nn.Embedding` for its words. Raises ModelError.
    """
    with put_back(module):
        return describe(module.to("cpu"), name)


def describe(module: nn.Module, name: str) -> Anatomy:
    """The same for a module on the CPU, or on the meta device, where it has no latency."""
    module.eval()
    config = hugging_face_config(module)
    positions = usable_positions(module)
    words = _word_table(module, name)
    rows = {length: _random_rows(words, length) for length in LENGTHS if positions is None or length <= positions}
    flops = {length: _flops(module, batches[0]) for length, batches in rows.items()}
    counted = {length: count / length for length, count in flops.items() if count is not None}
    parameters = _parameters_by_part(module)
    return Anatomy(
        name=name,
        layers=getattr(config, "num_hidden_layers", None),
        hidden_size=getattr(config, "hidden_size", None),
        parameters=parameters,
        total_parameters=sum(parameters.values()),
        flops_per_token=counted if len(counted) == len(flops) else None,
        latency_ms=None
        if _on_meta(module)
        else {length: round(cpu_latency(module, batches), 3) for length, batches in rows.items()},
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


def _random_rows(words: nn.Embedding, length: int) -> list[Inputs]:
    """Rows of `length` random words, none of them padding, each a batch by itself."""
    known = np.setdiff1d(np.arange(words.num_embeddings), [] if words.padding_idx is None else [words.padding_idx])
    drawn = torch.from_numpy(np.random.default_rng(0).choice(known, (LATENCY_ROWS, length)).astype(np.int64))
    return [(row, torch.zeros_like(row), torch.ones_like(row, dtype=torch.bool)) for row in drawn[:, None]]


def _flops(module: nn.Module, row: Inputs) -> int | None:
    """FLOPs of a row's forward pass; None where it runs an operator that the counter does not know.

    Fused CPU kernels are such operators, so attention runs as two matrix products, an LSTM without oneDNN, and torch's
    own transformer layers with gradients, which keeps them off their fast path.
    """
    inputs = model_inputs(module, *row)
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


def cpu_latency(model: Any, batches: Sequence[Inputs]) -> float:
    """Median milliseconds of a batch on the CPU, after a warm-up, with all threads torch uses.

    The model is then on the device and in the mode that it was in before.
    """
    times: list[float] = []
    with put_back(model):
        model.to("cpu").eval()
        with torch.inference_mode():
            for batch in (*batches[:5], *batches):
                began = time.perf_counter()
                run_model(model, *batch)
                times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[len(batches[:5]) :])


def parameters(model: Any) -> int:
    """Numbers that a model is made of; of an exported one they stand in its file."""
    if isinstance(model, OnnxClassifier):
        return model.num_parameters()
    return sum(parameter.numel() for parameter in model.parameters())
