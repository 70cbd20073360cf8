"""What a model is made of and costs: counted, and the counts are those that a hand comes to."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hskstore.config import Keep, Strategy
from hskstore.errors import ModelError, StoreError
from hskstore.explore.stored_teacher import describe_teacher
from hskstore.models.anatomy import PARTS, Anatomy, describe_model, describe_module, parameters
from hskstore.models.pruned_bert import PrunedBertConfig, PrunedBertForSequenceClassification
from hskstore.stage_one.extract import extract
from tests.conftest import WORDS, make_bert, save_folder
from tests.store.conftest import forge

VOCABULARY = 5 + len(WORDS)
SMALL: dict[str, Any] = {"vocab_size": 30, "max_position_embeddings": 140, "num_labels": 2}
BERT_SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}


@pytest.fixture(scope="module")
def stored(teacher_folder: str, data_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the tiny teacher, to be read only."""
    out = tmp_path_factory.mktemp("stores")
    extract(teacher_folder, data_folder, out=out, keeps=[Keep(1, 2, 4)], strategies=[Strategy(2)], task="sst2")
    return out / "d1-l2-w4"


@pytest.fixture
def forged(stored: Path, tmp_path: Path) -> Any:
    """Makes a store whose teacher.json is a stranger's."""

    def make(document: bytes) -> str:
        root = Path(shutil.copytree(stored, tmp_path / "forged"))
        forge(root, {"teacher.json": document})
        return str(root)

    return make


def encoder_flops(layers: int, hidden: int, ffn: int, length: int) -> int:
    """Of each token: four square projections and two of the FFN, and in attention two products with every token."""
    return layers * (2 * (4 * hidden**2 + 2 * hidden * ffn) + 4 * length * hidden)


def test_a_tiny_bert_has_the_parameters_that_a_hand_counts() -> None:
    found = describe_module(make_bert(), "tiny")
    norm, layer = 2 * 32, 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32)
    assert found.parameters == {
        "word embeddings": VOCABULARY * 32,
        "other embeddings": 64 * 32 + 2 * 32 + norm,
        "layers": 4 * (layer + 2 * norm),
        "pooler": 32 * 32 + 32,
        "head": 32 * 2 + 2,
    }
    assert (found.name, found.layers, found.hidden_size) == ("tiny", 4, 32)


def test_a_tiny_bert_has_the_flops_that_a_hand_counts() -> None:
    found = describe_module(make_bert(), "tiny")
    once_a_row = 2 * 32 * 32 + 2 * 32 * 2  # pooler and head see [CLS] alone
    assert found.flops_per_token == {32: encoder_flops(4, 32, 64, 32) + once_a_row / 32}


def test_lengths_beyond_the_models_positions_are_left_out() -> None:
    assert describe_module(make_bert(), "64 positions").latency_ms.keys() == {32}  # type: ignore[union-attr]
    short = RobertaConfig(**{**SMALL, "max_position_embeddings": 33}, **BERT_SHAPE, pad_token_id=1)
    found = describe_module(RobertaForSequenceClassification(short), "31 positions, for two are padding's")
    assert found.latency_ms == found.flops_per_token == {}


FAMILIES = {
    "distilbert": DistilBertForSequenceClassification(DistilBertConfig(**SMALL, dim=16, n_layers=2, n_heads=2, hidden_dim=40)),
    "roberta": RobertaForSequenceClassification(RobertaConfig(**SMALL, **BERT_SHAPE, type_vocab_size=1, pad_token_id=1)),
    "electra": ElectraForSequenceClassification(ElectraConfig(**SMALL, **BERT_SHAPE, embedding_size=8)),
    "pruned bert": PrunedBertForSequenceClassification(PrunedBertConfig(**SMALL, **BERT_SHAPE)),
    "albert": AlbertForSequenceClassification(AlbertConfig(**SMALL, **BERT_SHAPE, embedding_size=8)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_counted_whole(family: str) -> None:
    model = FAMILIES[family]
    found = describe_module(model, family)
    assert sum(found.parameters.values()) == found.total_parameters == parameters(model)
    assert list(found.parameters) == [part for part in PARTS if part in found.parameters]
    assert (found.layers, found.hidden_size) == (2, 16)
    projected = {"electra": 2 * 8 * 16, "albert": 2 * 8 * 16}.get(family, 0)
    once_a_row = 2 * 16 * 16 + 2 * 16 * 2
    assert found.flops_per_token == {
        length: encoder_flops(2, 16, 40, length) + projected + once_a_row / length for length in (32, 128)
    }
    assert found.latency_ms is not None and all(0 < found.latency_ms[length] < 1000 for length in (32, 128))


def test_families_differ_in_what_they_have() -> None:
    found = {family: describe_module(model, family).parameters for family, model in FAMILIES.items()}
    square = 16 * 16 + 16
    assert [family for family in FAMILIES if "pooler" in found[family]] == ["pruned bert", "albert"]
    assert {found[family]["head"] for family in ("distilbert", "roberta", "electra")} == {square + 16 * 2 + 2}
    assert found["distilbert"]["word embeddings"] == found["roberta"]["word embeddings"] == 30 * 16
    assert found["electra"]["word embeddings"] == 30 * 8 + 8 * 16 + 16, "the projection that widens it is part of it"
    layer = 4 * square + 2 * 16 * 40 + 40 + 16 + 2 * 2 * 16
    assert {found[family]["layers"] for family in ("distilbert", "roberta", "electra")} == {2 * layer}
    assert found["albert"]["layers"] == layer, "its layers share their weights"


def test_heads_and_units_that_were_pruned_cost_nothing() -> None:
    config = PrunedBertConfig(**SMALL, **BERT_SHAPE, heads_per_layer=[1, 2], ffn_per_layer=[3, 40], embedding_size=4)
    model = PrunedBertForSequenceClassification(config)
    found = describe_module(model, "pruned")
    assert found.total_parameters == parameters(model)
    assert found.parameters["word embeddings"] == 30 * 4 + 4 * 16
    assert found.parameters["other embeddings"] == (140 + 2 + 2) * 16
    once_a_row = 2 * 16 * 16 + 2 * 16 * 2
    assert found.flops_per_token is not None and found.flops_per_token.keys() == {32, 128}
    for length, flops in found.flops_per_token.items():
        layers = [2 * (4 * 16 * units + 2 * 16 * ffn) + 4 * length * units for units, ffn in ((8, 3), (16, 40))]
        assert flops == 2 * 4 * 16 + sum(layers) + once_a_row / length


class Tied(nn.Module):
    """Words, and a head that is the words' table again."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 16)
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.words.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        scores: Tensor = self.head(self.mix(self.words(input_ids)).mean(1))
        return scores


def test_tied_weights_are_counted_once() -> None:
    found = describe_module(Tied(), "tied")
    assert found.parameters == {"word embeddings": 30 * 16, "rest": 16 * 16 + 16}
    assert found.total_parameters == 30 * 16 + 16 * 16 + 16
    assert found.flops_per_token is not None
    assert found.flops_per_token[32] == 2 * 16 * 16 + 2 * 16 * 30 / 32


class Recurrent(nn.Module):
    """A BiLSTM of two layers; the rows' lengths come from their mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 16)
        self.lstm = nn.LSTM(16, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        lengths = attention_mask.sum(dim=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(self.words(input_ids), lengths, batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        scores: Tensor = self.head(states.mean(dim=1))
        return scores


def test_a_bilstm_is_counted_though_its_kernel_is_fused() -> None:
    model = Recurrent()
    found = describe_module(model, "bilstm")
    assert found.parameters == {"word embeddings": 30 * 16, "rest": parameters(model) - 30 * 16}
    assert (found.layers, found.hidden_size) == (None, None)
    direction = 2 * 4 * 8 * (16 + 8)  # four gates see the input and the state
    assert found.flops_per_token == {length: 2 * 2 * direction + 2 * 16 * 2 / length for length in (32, 128)}
    assert found.latency_ms is not None and found.latency_ms.keys() == {32, 128}
    assert not hasattr(model, "config"), "the module at hand stays as it is"


class Transformer(nn.Module):
    """torch's own layer, which in eval mode runs as one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 40, batch_first=True)

    def forward(self, input_ids: Tensor) -> Tensor:
        states: Tensor = self.layer(self.words(input_ids))
        return states


def test_what_runs_as_one_unknown_kernel_has_no_flops_rather_than_too_few() -> None:
    model = Transformer()
    found = describe_module(model, "its gradients keep it off the kernel")
    assert found.flops_per_token == {length: encoder_flops(1, 16, 40, length) for length in (32, 128)}
    frozen = describe_module(model.requires_grad_(False), "frozen")
    assert frozen.flops_per_token is None and frozen.latency_ms is not None


class Attentive(nn.Module):
    """Pools with a vector: a product that FlopCounterMode has no formula for."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 16)
        self.query = nn.Parameter(torch.ones(16))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.words(input_ids)[0] @ self.query


def test_a_product_without_a_formula_is_not_passed_over() -> None:
    assert describe_module(Attentive(), "attentive").flops_per_token is None


def test_a_model_without_words_is_refused() -> None:
    with pytest.raises(ModelError, match="images has no table of word embeddings"):
        describe_module(nn.Linear(3, 3), "images")


# --- teachers


def shape_of(anatomy: Anatomy) -> tuple[Any, ...]:
    return anatomy.layers, anatomy.hidden_size, anatomy.parameters, anatomy.total_parameters, anatomy.flops_per_token


def test_a_stores_teacher_is_like_the_teacher_itself(stored: Path, teacher_folder: str) -> None:
    found = describe_teacher(str(stored))
    assert shape_of(found) == shape_of(describe_model(teacher_folder)) == shape_of(describe_teacher(teacher_folder))
    assert found.name == f"that of {stored}" and found.latency_ms is not None and found.latency_ms[32] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_teacher_is_known_by_its_config(family: str, forged: Any) -> None:
    model = FAMILIES[family]
    document = json.dumps({"config": model.config.to_dict() | {"dtype": None}})
    assert shape_of(describe_teacher(forged(document.encode()))) == shape_of(describe_module(model, family))


def test_a_teacher_too_big_for_the_memory_has_a_shape_and_no_latency(
    stored: Path, teacher_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    needed = 4 * describe_model(teacher_folder).total_parameters
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * needed))
    found = describe_teacher(str(stored))
    assert found.latency_ms is None
    assert shape_of(found) == shape_of(describe_model(teacher_folder))


BERT = {"model_type": "bert", **SMALL, **BERT_SHAPE}
STRANGERS = {
    "no JSON": (b"\xff{", "no teacher can be built"),
    "no object": (b"[]", "does not say what the teacher's shape is"),
    "no config": (b'{"sha256":"5e"}', "does not say what the teacher's shape is"),
    "no family": ({"hidden_size": 16}, "does not say what the teacher's shape is"),
    "a family that is no name": ({"model_type": ["bert"]}, "does not say what the teacher's shape is"),
    "an unknown family": ({"model_type": "no-such-bert", "auto_map": {"AutoConfig": "evil--code.Config"}}, "family no-such-bert"),
    "a family of several models": ({"model_type": "clip"}, "no text classifier of the family clip"),
    "a family that classifies no text": ({"model_type": "vit"}, "no teacher can be built"),
    "nested beyond all depth": (b'{"config":' + b"[" * 200_000, "no teacher can be built"),
    "a negative size": (BERT | {"hidden_size": -16}, "no teacher can be built"),
    "a size in words": (BERT | {"hidden_size": "many"}, "no teacher can be built"),
    "heads that do not divide": (BERT | {"num_attention_heads": 3}, "no teacher can be built"),
    "an unknown activation": (BERT | {"hidden_act": "__import__('os')"}, "no teacher can be built"),
    "10^12 words": (BERT | {"vocab_size": 10**12}, "1000000000000 is no size"),
    "10^5000 words": (b'{"config":{"model_type":"bert","vocab_size":1' + b"0" * 5000 + b"}}", "no teacher can be built"),
    "2 million layers": (BERT | {"num_hidden_layers": 2 * 10**6}, "asks for 2000000 layers; refused"),
    "a shared layer 2 million times": (
        {"model_type": "albert", "num_hidden_layers": 2 * 10**6},
        "asks for 2000000 layers; refused",
    ),
    "2 million layers in a group": (
        {"model_type": "albert", "hidden_size": 16, "num_attention_heads": 2, "inner_group_num": 2 * 10**6},
        r"asks for more than .* tensors; refused",
    ),
    "a table of 10^12 numbers": (BERT | {"vocab_size": 2 * 10**6, "hidden_size": 5 * 10**5}, "20,000,000,000 parameters"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_strangers_teacher_is_refused_at_once_with_one_message(name: str, forged: Any) -> None:
    document, message = STRANGERS[name]
    root = forged(document if isinstance(document, bytes) else json.dumps({"config": document}).encode())
    began = time.process_time()
    with pytest.raises(StoreError, match=message) as raised:
        describe_teacher(root)
    assert root in str(raised.value) and "\n" not in str(raised.value)
    assert time.process_time() - began < 10


def test_a_strangers_config_brings_no_code(forged: Any) -> None:
    """What names code, kernels or types elsewhere is not even read; what has the shape of a BERT is one."""
    elsewhere = {
        "auto_map": {"AutoModelForSequenceClassification": "evil--code.Model"},
        "_attn_implementation": "kernels-community/evil",
        "attn_implementation": "kernels-community/evil",
        "quantization_config": {"quant_method": "evil"},
        "num_labels": 10**6,
        "dtype": "float8_e5m2",
    }
    config = make_bert().config.to_dict() | elsewhere
    found = describe_teacher(forged(json.dumps({"config": config}).encode()))
    assert shape_of(found) == shape_of(describe_module(make_bert(), "itself"))


def test_a_damaged_store_is_said_to_be_damaged(forged: Any) -> None:
    root = forged(b"{}")
    (Path(root) / "teacher.json").write_bytes(b"[]")
    with pytest.raises(StoreError, match="damaged"):
        describe_teacher(root)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model could be loaded"):
        describe_teacher(save_folder(make_bert(), tmp_path / "model") + "/nothing")
