"""A classifier as ONNX gives the logits that torch gives, whatever the batch, and anyone's file is safe to open."""

import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import hskstore.models.onnx
from hskstore.errors import ModelError, OptionError
from hskstore.models.load import load_classifier
from hskstore.models.onnx import Exported, export_onnx, load_onnx_classifier
from hskstore.models.pruned_bert import PrunedBertConfig, PrunedBertForSequenceClassification
from hskstore.models.run import accepted_inputs, usable_positions
from hskstore.text.tokenizers import load_tokenizer
from tests.conftest import SHARED, WORDS, hsk, make_bert, make_tokenizer, save_folder

SHAPES = [(1, 1), (1, 3), (1, 60), (7, 1), (7, 3), (7, 60)]
SIZES: dict[str, Any] = {"vocab_size": 5 + len(WORDS), "initializer_range": 0.2}


def make_roberta() -> Any:
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    # RoBERTa counts positions from behind the padding's; 62 are left.
    config = RobertaConfig(
        **SIZES, **sizes, max_position_embeddings=64, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2
    )
    return RobertaForSequenceClassification(config)


def make_distilbert() -> Any:
    torch.manual_seed(3)
    config = DistilBertConfig(**SIZES, dim=32, n_layers=1, n_heads=4, hidden_dim=64, max_position_embeddings=64, pad_token_id=0)
    return DistilBertForSequenceClassification(config)


def make_pruned_bert() -> Any:
    torch.manual_seed(4)
    config = PrunedBertConfig(
        heads_per_layer=[1, 3],
        ffn_per_layer=[40, 7],
        embedding_size=8,
        **SIZES,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return PrunedBertForSequenceClassification(config)


MODELS = {
    "bert": lambda: make_bert(layers=2, labels=3, output_hidden_states=True),
    "roberta": make_roberta,
    "distilbert": make_distilbert,
    "pruned_bert": make_pruned_bert,
}


def batch(classifier: Any, rows: int, length: int, *, padded: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * rows + length)
    n_tokens = torch.randint(1, length + 1, (rows,), generator=generator) if padded else torch.full((rows,), length)
    mask = torch.arange(length) < n_tokens[:, None]
    words = torch.randint(2, SIZES["vocab_size"], (rows, length), generator=generator)
    second = mask & (torch.arange(length) >= 2)
    return {
        "input_ids": torch.where(mask, words, classifier.config.pad_token_id),
        "attention_mask": mask.long(),
        "token_type_ids": second.long(),
    }


def largest_difference(classifier: Any, exported: Any) -> float:
    classifier.eval()
    with torch.inference_mode():
        return max(
            float((classifier(**accepted(classifier, inputs)).logits - exported(**inputs).logits).abs().max())
            for rows, length in SHAPES
            for padded in (False, True)
            for inputs in [batch(classifier, rows, length, padded=padded)]
        )


def accepted(classifier: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in inputs.items() if name in accepted_inputs(classifier)}


@dataclass(frozen=True)
class Export:
    """A model, its folder, and what became of it."""

    model: Any
    source: str
    result: Exported

    @property
    def folder(self) -> Path:
        return Path(self.result.folder)


@pytest.fixture(scope="module")
def export_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Export]:
    @functools.cache
    def export(kind: str) -> Export:
        model, folder = MODELS[kind](), tmp_path_factory.mktemp(kind)
        source = save_folder(model, folder / "torch")
        return Export(model, source, export_onnx(source, folder / "onnx"))

    return export


@pytest.fixture(params=MODELS)
def exported(request: pytest.FixtureRequest, export_of: Callable[[str], Export]) -> Export:
    """One of each kind."""
    return export_of(request.param)


@pytest.fixture
def bert(export_of: Callable[[str], Export]) -> Export:
    return export_of("bert")


def reuse_graph(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let torch.export, which takes seconds, be what it was in another export of the same model."""
    patch.setattr(hskstore.models.onnx, "_graph", lambda *_: onnx.load(folder / "model.onnx"))


def test_its_logits_are_those_of_torch_for_any_rows_length_and_padding(exported: Export) -> None:
    model, result = exported.model, exported.result
    assert 0 <= result.difference <= 1e-4
    assert largest_difference(model, load_onnx_classifier(result.folder)) <= 1e-4


def test_one_file_holds_the_weights_beside_config_and_tokenizer(exported: Export) -> None:
    folder, result = exported.folder, exported.result
    assert {file.name for file in folder.iterdir()} == {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert result.bytes == (folder / "model.onnx").stat().st_size > 4 * result.parameters
    assert str(Path.cwd()).encode() not in (folder / "model.onnx").read_bytes()
    words = "the cat sees a dog"
    assert load_tokenizer(result.folder)(words)["input_ids"] == make_tokenizer()(words)["input_ids"]


def test_it_stands_in_for_the_model(exported: Export) -> None:
    model, result = exported.model, exported.result
    stand_in = load_onnx_classifier(result.folder)
    assert {node.name for node in stand_in.session.get_inputs()} == accepted_inputs(model) <= accepted_inputs(stand_in)
    assert [node.name for node in stand_in.session.get_outputs()] == ["logits"]
    assert stand_in.num_parameters() == result.parameters == model.num_parameters()
    assert usable_positions(stand_in) == usable_positions(model)
    assert stand_in.config.id2label == model.config.id2label
    assert json.loads(stand_in.session.get_modelmeta().custom_metadata_map["labels"]) == list(model.config.id2label.values())
    assert stand_in.to("cpu").eval() is stand_in


def test_a_model_without_a_last_position_is_tried_at_every_length(bert: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = (300, 2)
    assert hskstore.models.onnx._batch(bert.model, lengths)["attention_mask"].sum(dim=1).tolist() == [64, 2]
    monkeypatch.setattr(hskstore.models.onnx, "usable_positions", lambda _: None)  # BLOOM, MPT
    assert hskstore.models.onnx._batch(bert.model, lengths)["attention_mask"].sum(dim=1).tolist() == [300, 2]


def test_int8_is_smaller_and_near(exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, result = exported.model, exported.result
    reuse_graph(monkeypatch, exported.folder)
    small = export_onnx(exported.source, tmp_path, int8=True)
    assert small.int8 and small.bytes < result.bytes
    assert small.parameters == load_onnx_classifier(small.folder).num_parameters() == result.parameters
    assert 1e-4 < small.difference < 0.5
    assert largest_difference(model, load_onnx_classifier(small.folder)) < 0.5


def test_onnxruntime_and_numpy_alone_can_run_it(bert: Export, tmp_path: Path) -> None:
    inputs = batch(bert.model, 5, 9, padded=True)
    np.savez(tmp_path / "inputs.npz", **{name: tensor.numpy() for name, tensor in inputs.items()})
    code = (
        "import sys\n"
        "for name in ('hskstore', 'torch', 'transformers', 'onnx', 'onnxscript'): sys.modules[name] = None\n"
        "import numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession('model.onnx', providers=['CPUExecutionProvider'])\n"
        f"inputs = dict(numpy.load({str(tmp_path / 'inputs.npz')!r}))\n"
        f"numpy.save({str(tmp_path / 'logits.npy')!r}, session.run(['logits'], inputs)[0])\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=bert.folder, check=True)
    with torch.inference_mode():
        logits = bert.model.eval()(**inputs).logits.numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), logits, atol=1e-4)


@pytest.mark.long
def test_nothing_is_printed(bert: Export, tmp_path: Path) -> None:
    code = f"from hskstore.models.onnx import export_onnx; export_onnx({bert.source!r}, 'out', int8=True)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line and not line.startswith("Loading weights")]
    assert (done.stdout, lines) == ("", [])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "step", ["torch.onnx.export", "onnxruntime.InferenceSession", "onnxruntime.quantization.quantize_dynamic"]
)
def test_a_failure_leaves_nothing(bert: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*given: Any, **options: Any) -> None:
        raise RuntimeError("no such operator\nand a page of advice")

    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    if step != "torch.onnx.export":
        reuse_graph(monkeypatch, bert.folder)
    monkeypatch.setattr(step, fail)
    for out in ("new", "there"):
        with pytest.raises(ModelError, match=r"no such operator\)$"):
            export_onnx(bert.source, tmp_path / out, int8=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "notes.txt"]


def test_an_export_cut_short_while_its_files_move_is_made_by_the_same_call_again(
    bert: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reuse_graph(monkeypatch, bert.folder)
    for moved in range(4):
        calls = itertools.count()

        def move(*paths: Any, calls: Any = calls, last: int = moved, original: Any = os.replace) -> None:
            if next(calls) == last:
                raise KeyboardInterrupt
            original(*paths)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", move)
            patch.setattr(os, "rename", move)
            export_onnx(bert.source, tmp_path / "out")
        assert len(list((tmp_path / "out").glob("*"))) == moved
    export_onnx(bert.source, tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == {
        file.name: file.read_bytes() for file in bert.folder.iterdir()
    }


@pytest.mark.parametrize("by", [0.01, float("nan")])
def test_an_export_that_differs_is_not_kept(bert: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    wrong = onnx.load(bert.folder / "model.onnx")
    (head,) = (weights for weights in wrong.graph.initializer if weights.name.endswith("classifier.weight"))
    head.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(head) + np.float32(by), head.name))
    monkeypatch.setattr(hskstore.models.onnx, "_graph", lambda *_: wrong)
    with pytest.raises(ModelError, match="differ from torch's by"):
        export_onnx(bert.source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_why_a_model_cannot_be_exported_is_said_instead_of_torchs_advice(
    bert: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(*_: object, **__: object) -> None:
        raise RuntimeError("Failed. \x1b[96mThis is step 1/3\x1b[0m. Next steps:\n- ...") from ValueError("no such operator\n...")

    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(ModelError, match=r"to ONNX \(no such operator\)$"):
        export_onnx(bert.source, tmp_path / "out")


def test_what_cannot_be_exported_is_refused(bert: Export, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="already holds a model"):
        export_onnx(bert.source, Path(bert.source))
    with pytest.raises(OptionError, match="already holds a model"):
        export_onnx(bert.source, bert.source)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "model.onnx").touch()
    with pytest.raises(OptionError, match="already holds a model"):
        export_onnx(bert.source, tmp_path / "half")
    with pytest.raises(ModelError, match="no model could be loaded"):
        export_onnx(str(tmp_path / "nowhere"), tmp_path / "out")
    headless = save_folder(make_bert(layers=1).bert, tmp_path / "headless")
    with pytest.raises(ModelError, match="no trained classification head"):
        export_onnx(headless, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_beyond_one_file_is_refused(bert: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hskstore.models.onnx, "LARGEST_BYTES", 1000)
    with pytest.raises(ModelError, match="more than one ONNX file can hold"):
        export_onnx(bert.source, tmp_path / "out")


def test_missing_packages_are_named(bert: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for use in (lambda: export_onnx(bert.source, tmp_path / "out"), lambda: load_onnx_classifier(tmp_path)):
        with pytest.raises(OptionError, match=r"pip install 'hskstore\[onnx\]'"):
            use()


def copy_with(bert: Export, to: Path, content: bytes) -> Path:
    to.mkdir()
    (to / "config.json").write_bytes((bert.folder / "config.json").read_bytes())
    (to / "model.onnx").write_bytes(content)
    return to


def test_a_damaged_file_is_refused(bert: Export, tmp_path: Path) -> None:
    content = (bert.folder / "model.onnx").read_bytes()
    for number, damaged in enumerate([b"", content[: len(content) // 2], b"\xff" * 100, b"\0\0\0\0ORTM" + content]):
        folder = copy_with(bert, tmp_path / str(number), damaged)
        with pytest.raises(ModelError, match=r"damaged|not a classifier"):
            load_onnx_classifier(folder)
    (tmp_path / "0" / "config.json").write_text('{"model_type": "bert", "hidden_size": {}}')
    for folder, said in ((tmp_path, "no ONNX model could be loaded"), (tmp_path / "0", "hidden_size is {}, and must be")):
        with pytest.raises(ModelError, match=said):
            load_onnx_classifier(folder)


@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph", "sparse", "address"])
def test_weights_in_another_file_are_never_read(bert: Export, tmp_path: Path, place: str) -> None:
    """A stranger's file that points elsewhere would send what lies there through the network, as weights."""
    model = onnx.load(bert.folder / "model.onnx")
    name = "*/_ORT_MEM_ADDR_/*" if place == "address" else "secret"
    outside = onnx.helper.make_tensor("outside", onnx.TensorProto.FLOAT, [2], [0.0, 0.0])
    outside.ClearField("float_data")
    outside.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", "0"), ("length", "8")):
        outside.external_data.add(key=key, value=value)
    if place in ("initializer", "address"):
        model.graph.initializer.append(outside)
    elif place == "attribute":
        model.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=outside))
    elif place == "subgraph":
        inner = onnx.helper.make_graph([], "g", [], [], initializer=[outside])
        model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))
    else:
        indices = onnx.helper.make_tensor("i", onnx.TensorProto.INT64, [2], [0, 1])
        model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(outside, indices, [2]))
    folder = copy_with(bert, tmp_path / place, model.SerializeToString())
    (folder / "secret").write_bytes(b"password")
    with pytest.raises(ModelError, match="wants weights from another file"):
        load_onnx_classifier(folder)


def test_another_sound_model_is_refused(bert: Export, tmp_path: Path) -> None:
    model = onnx.load(bert.folder / "model.onnx")
    del model.metadata_props[:]
    with pytest.raises(ModelError, match="not a classifier that hsk exported"):
        load_onnx_classifier(copy_with(bert, tmp_path / "bare", model.SerializeToString()))
    folder = copy_with(bert, tmp_path / "five", (bert.folder / "model.onnx").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(index): f"star {index}" for index in range(5)}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"has 3 outputs; its config\.json names 5 classes"):
        load_onnx_classifier(folder)


def test_rows_that_are_too_long_are_said_to_be(bert: Export) -> None:
    long = torch.ones(1, 65, dtype=torch.long)
    with pytest.raises(ModelError, match=r"onnxruntime cannot run model\.onnx on these rows"):
        load_onnx_classifier(bert.folder)(long, long, long)


def test_an_export_is_scored_like_any_model(
    teacher_folder: str, data_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "onnx", [data_folder, "--task", "sst2"]
    assert hsk("student", "export", teacher_folder, "--onnx", "--out", out) == 0
    assert "float32" in (said := capsys.readouterr().out) and "differ from torch's by" in said
    scores = []
    for model in (teacher_folder, out):
        assert hsk("eval", model, *data, "--json") == 0
        scores.append(json.loads(capsys.readouterr().out))
    torch_score, onnx_score = scores
    assert all(onnx_score[name] == torch_score[name] for name in ("score", "rows", "by_split", "parameters"))
    assert onnx_score["bytes"] == (out / "model.onnx").stat().st_size and onnx_score["latency_ms"] > 0


@pytest.mark.long
@pytest.mark.real
def test_a_real_classifier_keeps_its_judgement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(SHARED / "models" / "minilm-l6-sst2")
    full = export_onnx(source, tmp_path / "float")
    reuse_graph(monkeypatch, tmp_path / "float")
    small = export_onnx(source, tmp_path / "int8", int8=True)
    assert full.difference <= 1e-4 and small.bytes < 0.3 * full.bytes
    lines = (SHARED / "data" / "sst2_small" / "dev.tsv").read_text().splitlines()[1:101]
    inputs = dict(load_tokenizer(source)([line.split("\t")[0] for line in lines], padding=True, return_tensors="pt"))
    with torch.inference_mode():
        expected = load_classifier(source)[0].eval()(**inputs).logits
    exact, near = (load_onnx_classifier(result.folder)(**inputs).logits for result in (full, small))
    assert (exact - expected).abs().max() <= 1e-4
    assert (near.argmax(1) == expected.argmax(1)).float().mean() >= 0.95
