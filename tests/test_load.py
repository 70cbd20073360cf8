"""A stranger's config: its classes and sizes are believed where they can be right, and refused in one line where they cannot."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.models.bert.modeling_bert import BertEncoder

from hskstore.config import Strategy
from hskstore.errors import HskError, ModelError
from hskstore.methods import Kd
from hskstore.models.folder import ONNX_FILE
from hskstore.models.load import label_names, layers_of, load_classifier
from hskstore.stage_one.extract import extract
from hskstore.stage_two.distill import distill
from hskstore.stage_two.evaluate import evaluate
from hskstore.stage_two.finetune import finetune
from hskstore.stage_two.recipe import Recipe
from tests.conftest import make_bert, save_folder

WithConfig = Callable[..., str]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three classes without names."""
    return Path(save_folder(make_bert(layers=1, hidden=8, labels=3), tmp_path_factory.mktemp("three")))


@pytest.fixture
def with_config(three: Path, tmp_path: Path) -> WithConfig:
    """The same with other fields in its config.json; ... takes one out. Or with another config.json altogether."""

    def made(fields: dict[str, Any] | bytes) -> str:
        folder = shutil.copytree(three, tmp_path / "model")
        if isinstance(fields, bytes):
            (folder / "config.json").write_bytes(fields)
        else:
            document = json.loads((folder / "config.json").read_text()) | fields
            kept = {name: value for name, value in document.items() if value is not ...}
            (folder / "config.json").write_text(json.dumps(kept))
        return str(folder)

    return made


def named(*names: Any) -> dict[str, Any]:
    return {"id2label": {str(index): name for index, name in enumerate(names)}}


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (named("no", "maybe", "yes"), ("no", "maybe", "yes")),
        (named(0, 1, 2), ("0", "1", "2")),
        (named(-1, 0, 1), ("-1", "0", "1")),
        ({"id2label": {"2": "c", "0": "a", "1": "b"}}, ("a", "b", "c")),
        ({"label2id": None}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"label2id": ["a"]}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        (named("a", "b", "c") | {"label2id": {"LABEL_0": 0}}, ("a", "b", "c")),
        ({"problem_type": None, "return_dict": False}, ("LABEL_0", "LABEL_1", "LABEL_2")),
    ],
    ids=str,
)
def test_class_names_are_texts_in_the_order_of_the_outputs(
    fields: dict[str, Any], names: tuple[str, ...], with_config: WithConfig, caplog: pytest.LogCaptureFixture
) -> None:
    model, trained = load_classifier(with_config(fields))
    assert trained and label_names(model) == names and not caplog.records
    assert model.config.return_dict


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (named("a", None, "c"), "gives class 1 the name None"),
        (named("a", "b", ["c"]), r"gives class 2 the name \['c'\]"),
        (named("a", "b", {}), "gives class 2 the name {}"),
        (named(True, False, "c"), "gives class 0 the name True"),
        (named("a", " ", "c"), "gives class 1 the name ' '"),
        (named(0.0, 1.0, 2.0), "gives class 0 the name 0.0"),
        (named("a", "b", "a"), "calls class 0 'a' and class 2 'a'"),
        (named("pos", "neg", "Pos"), "calls class 0 'pos' and class 2 'Pos'"),
        (named("pos", "neg", "pos "), "calls class 0 'pos' and class 2 'pos '"),
        (named("very  good", "neg", "very good"), "calls class 0 'very  good' and class 2 'very good'"),
        (named(1, "neg", "1"), "calls class 0 '1' and class 2 '1'"),
    ],
    ids=str,
)
def test_what_is_no_name_and_what_two_classes_share_is_refused_where_names_are_asked_for(
    fields: dict[str, Any], said: str, with_config: WithConfig
) -> None:
    folder = with_config(fields)
    model, _ = load_classifier(folder)  # the sizes are right, and a student's names are its teacher's
    with pytest.raises(ModelError, match=f"^{folder}/config.json: id2label {said}"):
        label_names(model)


def test_a_label2id_that_says_otherwise_is_told(with_config: WithConfig, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = load_classifier(with_config(named("a", "b", "c") | {"label2id": {"a": 2, "b": 1, "c": 0}}))
    assert label_names(model) == ("a", "b", "c")
    assert "label2id number the classes differently; id2label is believed" in caplog.text


UNREADABLE = [
    *(
        {"id2label": strange}
        for strange in (["a", "b", "c"], "abc", 3, {"a": "0", "b": "1"}, {"-1": "a", "0": "b"}, {"0.0": "a"})
    ),
    *({size: 0} for size in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")),
    *({"hidden_size": strange} for strange in ("8", None, -8, 8.0, [8], True)),
    *({"id2label": ..., "num_labels": strange} for strange in (0, -1, "3", 3.0, None)),
    {"max_position_embeddings": "64"},
    {"layer_norm_eps": "small"},
    {"hidden_act": "unheard of"},
    {"model_type": None},
    {"model_type": ...},
    b"{",
    b"[1]",
    b"",
    b"\xff\xfe{}",
]


@pytest.mark.parametrize("fields", UNREADABLE, ids=str)
def test_a_config_that_cannot_be_right_is_refused_in_one_line_with_or_without_a_new_head(
    fields: dict[str, Any] | bytes, with_config: WithConfig
) -> None:
    folder = with_config(fields)
    for options in ({}, {"num_labels": 2, "ignore_mismatched_sizes": True}):
        with pytest.raises(ModelError) as raised:
            load_classifier(folder, **options)
        said = str(raised.value)
        assert said.startswith(folder) and "\n" not in said and not said.rstrip(")").endswith(":")
    if not isinstance(fields, bytes):
        for size in fields.keys() & {"num_hidden_layers", "hidden_size", "num_labels"}:
            assert f"{size} is {fields[size]!r}, and must be a whole number above zero" in said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id2label": {"0": "a", "1": "b", "3": "c"}}, "id2label names 0, 1, 3; the ids of its outputs are 0, 1, 2, ..."),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "id2label names 1, 2, 3"),
        ({"id2label": {}}, "id2label names no class"),
        ({"problem_type": "regression"} | named("a", "b", "c"), "gives 3 scores"),
    ],
    ids=str,
)
def test_outputs_that_no_task_has_are_refused_unless_the_head_is_new(
    fields: dict[str, Any], said: str, with_config: WithConfig
) -> None:
    folder = with_config(fields)
    with pytest.raises(ModelError, match=said):
        load_classifier(folder)
    model, trained = load_classifier(folder, num_labels=2, ignore_mismatched_sizes=True)
    assert not trained and label_names(model) == ("LABEL_0", "LABEL_1")


def test_weights_of_another_number_of_classes_are_told_as_such(with_config: WithConfig) -> None:
    with pytest.raises(ModelError, match="its weights have other sizes than its config"):
        load_classifier(with_config(named("a", "b")))


@pytest.mark.parametrize("command", ["evaluate", "finetune"])
def test_a_model_that_does_not_run_is_neither_scored_nor_trained(
    command: str, with_config: WithConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("text\tlabel\nthe cat\t0\na dog sees\t2\nthe bird\t1\n")
    folder = with_config({})
    monkeypatch.setattr(BertEncoder, "forward", lambda *_, **__: 1 < "a")  # type: ignore[operator]
    how: dict[str, Any] = {"text": ["text"], "label": "label"}
    with pytest.raises(ModelError, match=f"^{folder}: it gave no logits"):
        if command == "evaluate":
            evaluate(folder, str(tmp_path), latency=False, **how)
        else:
            finetune(folder, str(tmp_path), out=tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_hidden_layers": 2**31}, "num_hidden_layers is 2147483648, and at most 1000"),
        ({"id2label": ..., "num_labels": 10**9}, "num_labels is 1000000000, and at most 1000000"),
        ({"chunk_size_feed_forward": "a"}, "chunk_size_feed_forward is 'a'"),
        ({"chunk_size_feed_forward": 2}, "chunk_size_feed_forward is 2"),
        ({"chunk_size_feed_forward": None}, "chunk_size_feed_forward is None"),
        ({"output_hidden_states": "a"}, "output_hidden_states is 'a', and must be true or false"),
        ({"output_attentions": 1.5}, "output_attentions is 1.5, and must be true or false"),
        ({"hidden_dropout_prob": float("nan")}, "hidden_dropout_prob holds NaN or Infinity"),
        ({"unheard_of": {"a": [float("-inf")]}}, "unheard_of holds NaN or Infinity"),
        ({"unheard_of": "\ud83d"}, "holds half a character"),
    ],
)
def test_a_config_that_would_hang_or_fail_later_is_refused_at_once(
    fields: dict[str, Any], said: str, with_config: WithConfig
) -> None:
    folder = with_config(fields)
    for options in ({}, {"num_labels": 2, "ignore_mismatched_sizes": True}):
        with pytest.raises(ModelError, match=f"^{folder}/config.json:? .*{said}|^{folder}/config.json: {said}"):
            load_classifier(folder, **options)


def test_what_a_library_says_at_length_is_cut(with_config: WithConfig) -> None:
    folder = with_config({})
    header = json.dumps({"x" * 20_000: 1}).encode()
    (Path(folder) / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match="no model could be loaded") as raised:
        load_classifier(folder)
    assert len(str(raised.value)) < 1000


def test_layers_are_told_without_weights(with_config: WithConfig) -> None:
    folder = with_config({})
    (Path(folder) / "model.safetensors").unlink()
    assert layers_of(folder) == 1


@pytest.mark.parametrize("command", ["finetune", "extract", "eval", "eval of onnx", "distill"])
def test_a_multi_label_model_is_refused_by_name_everywhere(
    command: str, with_config: WithConfig, teacher_folder: str, data_folder: str, tmp_path: Path
) -> None:
    folder, out = with_config({"problem_type": "multi_label_classification"}), tmp_path / "out"
    (Path(folder) / "model.safetensors").unlink()  # its config is enough

    def run() -> Any:
        if command == "finetune":
            return finetune(folder, data_folder, task="sst2", out=out)
        if command == "extract":
            return extract(folder, data_folder, out=out, strategies=[Strategy(1)], methods=[Kd()], task="sst2")
        if command == "eval":
            return evaluate(folder, data_folder, task="sst2")
        if command == "eval of onnx":
            (Path(folder) / ONNX_FILE).write_bytes(b"")
            return evaluate(folder, data_folder, task="sst2")
        (store,) = extract(teacher_folder, data_folder, out=tmp_path, strategies=[Strategy(1)], methods=[Kd()], task="sst2")
        return distill(store.root, Recipe(student=folder, method=Kd()), out=out)

    with pytest.raises(HskError, match=f"^{folder} is a multi-label classifier .*cannot be distilled or scored yet"):
        run()
    assert not out.exists() or not list(out.iterdir())
