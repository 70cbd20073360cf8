"""Classifiers as ONNX: exported to one self-contained file, float32 or int8, and run by onnxruntime on the CPU."""

import contextlib
import importlib.util
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hskstore.errors import HskError, ModelError, OptionError
from hskstore.models.folder import ONNX_FILE, new_model, refuse_existing_model
from hskstore.models.load import label_names, load_classifier, read_config
from hskstore.models.run import INPUTS, accepted_inputs, usable_positions
from hskstore.text.tokenizers import load_tokenizer, model_files

TOLERANCE = 1e-4
"""By how much the logits of the float file may differ from torch's."""
LARGEST_BYTES = 2_000_000_000
"""Protobuf ends at 2 GiB, and a larger model would need its weights in a second file."""
CHECKED_LENGTHS = ((64, 3, 31, 2, 17), (3,), (8, 8))
"""Tokens of each row of the batches on which an export is compared with its model: one row and several, padded or not."""


@dataclass(frozen=True)
class Exported:
    """An exported classifier: where it lies, the bytes of its model.onnx, and the largest difference of a logit to torch's."""

    folder: str
    bytes: int
    parameters: int
    difference: float
    int8: bool


class OnnxClassifier(torch.nn.Module):
    """A classifier that onnxruntime runs on the CPU, called as Hugging Face's are; with as many threads as torch has now.

    Its weights are no torch parameters, and of positions its config counts those that a row may use.
    """

    def __init__(self, session: Any, config: PreTrainedConfig) -> None:
        super().__init__()
        about = session.get_modelmeta().custom_metadata_map
        self.session, self.config = session, config
        config.max_position_embeddings = int(about["positions"]) if "positions" in about else None
        self._parameters_in_file = int(about["parameters"])
        self._fed = {node.name for node in session.get_inputs()}

    def num_parameters(self) -> int:
        """Parameters of the model that was exported."""
        return self._parameters_in_file

    def forward(
        self,
        input_ids: Int[Tensor, "batch token"],
        attention_mask: Int[Tensor, "batch token"],
        token_type_ids: Int[Tensor, "batch token"] | None = None,
    ) -> SequenceClassifierOutput:
        """Logits [batch, class] of int64 inputs. Raises ModelError where onnxruntime cannot run them."""
        given = zip(INPUTS, (input_ids, attention_mask, token_type_ids), strict=True)
        feed = {name: tensor.numpy() for name, tensor in given if name in self._fed and tensor is not None}
        try:
            (logits,) = self.session.run(["logits"], feed)
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ModelError(f"onnxruntime cannot run {ONNX_FILE} on these rows ({_cause(error)})") from None
        return SequenceClassifierOutput(logits=torch.from_numpy(logits))


def load_onnx_classifier(folder: str | Path) -> OnnxClassifier:
    """The classifier in a folder with model.onnx and config.json. Nothing but these two files is read, and no code is run.

    Raises ModelError for a file that is missing, damaged, or not of export_onnx's making; OptionError without onnxruntime.
    """
    _require("onnx", "onnxruntime")
    import onnxruntime

    file = Path(folder) / ONNX_FILE
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{folder}: no ONNX model could be loaded ({_cause(error)})") from None
    config = read_config(str(folder))
    _refuse_other_files(file, content)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    # Otherwise the content itself chooses, and could ask for ORT's format, which was not looked through.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ModelError(f"{file} is damaged, or onnxruntime cannot run it ({_cause(error)})") from None
    _refuse_other_models(file, session, config)
    return OnnxClassifier(session, config)


def _refuse_other_files(file: Path, content: bytes) -> None:
    """Raise ModelError for what is no ONNX model, or would read weights from elsewhere on this machine."""
    import onnx

    try:
        tensors = list(_tensors(onnx.load_model_from_string(content)))
    except Exception:  # protobuf's, or a name that is no text
        raise ModelError(f"{file} is damaged: it is no ONNX model. Export it again") from None
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data for tensor in tensors):
        raise ModelError(f"{file} wants weights from another file, which is not opened: export it again as one file")


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor in a protobuf message, however deep: weights, sparse ones, attributes, those of subgraphs and functions."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "DESCRIPTOR") else value:
                yield from _tensors(part)


def _refuse_other_models(file: Path, session: Any, config: PreTrainedConfig) -> None:
    """Raise ModelError for a sound ONNX model that is not the exported classifier which the config speaks of."""
    about = session.get_modelmeta().custom_metadata_map
    fed = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    numbers = [about.get("parameters", ""), about.get("positions", "0")]
    known = "input_ids" in fed and fed.keys() <= set(INPUTS) and all(node.type == "tensor(int64)" for node in fed.values())
    if not known or "logits" not in outputs or not all(text.isdecimal() and len(text) < 16 for text in numbers):
        raise ModelError(f"{file} is not a classifier that hsk exported")
    classes = outputs["logits"].shape[-1:]
    if outputs["logits"].type != "tensor(float)" or classes != [config.num_labels]:
        raise ModelError(f"{file} has {classes[0] if classes else 0} outputs; its config.json names {config.num_labels} classes")


def export_onnx(model: str, out: str | Path, *, int8: bool = False) -> Exported:
    """Write a classifier to `out`: model.onnx, config.json and the tokenizer's files, none before all are written.

    The file takes int64 [batch, token] of any size and returns the logits [batch, class]. The float one is compared with
    torch before it is kept. With `int8`, weights and the inputs of matrix products are then quantised, which is not bounded.
    Raises ModelError for a model that has no trained head, cannot be exported or comes out different; OptionError.
    """
    _require("onnx", "onnxruntime", "onnxscript")
    out = Path(out)
    refuse_existing_model(out)
    # Eager attention is plain matrix products and one mask, which become the smaller graph; the numbers are the same.
    classifier, trained = load_classifier(model, attn_implementation="eager")
    if not trained:
        raise ModelError(f"{model} has no trained classification head: there is nothing to export")
    classifier.eval()
    tokenizer = load_tokenizer(model)
    parameters = sum(parameter.numel() for parameter in classifier.parameters())
    if 4 * parameters > LARGEST_BYTES:
        raise ModelError(f"{model} has {parameters:,} parameters: more than one ONNX file can hold")
    is_new = not out.exists()
    try:
        with new_model(out) as folder:
            file = folder / ONNX_FILE
            classifier.config.save_pretrained(folder)
            for name, data in model_files(tokenizer).items():
                (folder / name).write_bytes(data)
            graph = _graph(classifier, model)
            # The class names are for those who have this file alone.
            about = {"parameters": str(parameters), "labels": json.dumps(label_names(classifier))}
            if (positions := usable_positions(classifier)) is not None:
                about["positions"] = str(positions)
            _save(graph, about, file)
            difference = _largest_difference(classifier, load_onnx_classifier(folder))
            if not difference <= TOLERANCE:  # nor if it is not a number
                raise ModelError(f"{model}: its logits as ONNX differ from torch's by {difference:.2g}: it cannot be exported")
            if int8:
                _save(_quantised(graph, model), about, file)
                difference = _largest_difference(classifier, load_onnx_classifier(folder))
            size = file.stat().st_size
    except OSError as error:
        cause = error.strerror or error
        raise HskError(f"{out} could not be written ({cause}): make room, or choose another --out") from None
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # not empty: it was written
                out.rmdir()
    return Exported(str(out), size, parameters, difference, int8)


class _Logits(torch.nn.Module):
    """A classifier that returns its logits alone, whatever else its config makes it return."""

    def __init__(self, classifier: PreTrainedModel) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Tensor:
        given = zip(INPUTS, (input_ids, attention_mask, token_type_ids), strict=True)
        logits: Tensor = self.classifier(**{name: tensor for name, tensor in given if tensor is not None}).logits
        return logits


def _graph(classifier: PreTrainedModel, name: str) -> Any:
    """The classifier as an ONNX ModelProto, by torch.export. Raises ModelError."""
    # torch.export takes axes of 0 or 1 for constants, and equal ones for the same: these are neither.
    example = {name: tensor for name, tensor in _batch(classifier, (7, 5, 7)).items() if name in accepted_inputs(classifier)}
    try:
        with _quiet():
            program = torch.onnx.export(
                _Logits(classifier).eval(),
                kwargs=example,
                dynamo=True,
                dynamic_shapes={name: {0: "batch", 1: "token"} for name in example},
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:  # whatever the exporter makes of an architecture
        raise ModelError(f"{name}: torch cannot export a {type(classifier).__name__} to ONNX ({_cause(error)})") from None
    assert program is not None
    graph = program.model_proto
    # Shapes of all that flows within: onnxruntime infers them anew, and its quantiser trips over them (its issue 25890).
    del graph.graph.value_info[:]
    # Source lines and paths of the machine that exported.
    for part in (graph.graph, *graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del part.metadata_props[:]
    return graph


def _quantised(graph: Any, name: str) -> Any:
    """The graph with int8 weights, and with products of int8 matrices where one of them is a weight. Raises ModelError.

    One scale per column of a weight, and seven of the eight bits: CPUs without VNNI add pairs of products in 16 bits, which
    eight would overflow (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / ONNX_FILE
        try:
            with _quiet():
                quantize_dynamic(graph, file, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
        except Exception as error:  # whatever the quantiser makes of a graph
            raise ModelError(f"{name}: onnxruntime cannot quantise it ({_cause(error)})") from None
        return onnx.load(file)


def _save(graph: Any, about: dict[str, str], file: Path) -> None:
    import onnx

    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, about)
    file.write_bytes(graph.SerializeToString(deterministic=True))


def _batch(classifier: PreTrainedModel, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    """Random rows of so many tokens, or as many as the classifier has positions for, padded to the longest."""
    config, positions = classifier.config, usable_positions(classifier)
    n_tokens = torch.tensor([length if positions is None else min(length, positions) for length in lengths])
    padding = getattr(config, "pad_token_id", None) or 0
    attention_mask = torch.arange(int(n_tokens.max())) < n_tokens[:, None]
    words = torch.randint(1, config.vocab_size, attention_mask.shape, generator=torch.Generator().manual_seed(0))
    # Any word but that of padding, from whose place RoBERTa counts positions.
    input_ids = torch.where(attention_mask, (padding + words) % config.vocab_size, padding)
    second = attention_mask & (torch.arange(attention_mask.shape[1]) >= n_tokens[:, None] // 2)
    return {"input_ids": input_ids, "attention_mask": attention_mask.long(), "token_type_ids": second.long()}


def _largest_difference(classifier: PreTrainedModel, exported: OnnxClassifier) -> float:
    """Of any logit, over batches of several shapes."""
    largest = 0.0
    with torch.inference_mode():
        for lengths in CHECKED_LENGTHS:
            batch = _batch(classifier, lengths)
            inputs = {name: tensor for name, tensor in batch.items() if name in accepted_inputs(classifier)}
            difference = (_Logits(classifier)(**inputs) - exported(**batch).logits).abs().max()
            largest = float(torch.maximum(torch.tensor(largest), difference))
    return largest


def _require(*packages: str) -> None:
    if any(importlib.util.find_spec(package) is None for package in packages):
        raise OptionError("ONNX needs packages that are not installed: pip install 'hskstore[onnx]'")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither prints nor warnings nor log lines of the libraries within; what they raise still comes out."""
    disabled, handlers = logging.root.manager.disable, logging.root.handlers[:]
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers  # logging.warning() adds one where there is none


def _cause(error: BaseException) -> str:
    """The first line of what went wrong first: the exporter's own words above it are advice, in colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0]
