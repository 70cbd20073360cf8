"""Any torch module is a student: what it has to give, what is kept of it, and what a mistake says."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification

from hskstore.config import Keep, Strategy
from hskstore.errors import HskError, OptionError
from hskstore.methods import Kd, Method, Mud
from hskstore.models.anatomy import cpu_latency, describe_module
from hskstore.models.run import accepted_inputs, put_back, shape_of
from hskstore.stage_one.extract import extract
from hskstore.stage_two.distill import distill
from hskstore.stage_two.evaluate import evaluate
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.rows import rows_from_store, single_rows, telling_rows
from hskstore.stage_two.scores import predict
from hskstore.store import Store, open_store

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipelines"))
from bilstm import BiLstm


def few(method: Method) -> Recipe:
    return Recipe(method=method, max_steps=6, batch_size=(16,), lr=(1e-3,))


class Bag(nn.Module):
    """The mean of word embeddings, after one layer; `give` makes the output of logits and hidden states."""

    def __init__(self, give: Callable[[Tensor, tuple[Tensor, ...]], Any], width: int = 12, classes: int = 2) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.give = give
        self.words = nn.Embedding(64, width)
        self.layer = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        embedded = self.words(input_ids)
        state = torch.tanh(self.layer(embedded))
        mask = attention_mask[..., None]
        return self.give(self.head((state * mask).sum(1) / mask.sum(1)), (embedded, state))


class Answer:
    def __init__(self, logits: Tensor, hidden_states: tuple[Tensor, ...]) -> None:
        self.logits, self.hidden_states = logits, hidden_states


OUTPUTS: dict[str, Callable[[Tensor, tuple[Tensor, ...]], Any]] = {
    "pair": lambda logits, states: (logits, states),
    "mapping": lambda logits, states: {"logits": logits, "hidden_states": list(states)},
    "object": Answer,
}


@pytest.fixture(scope="module")
def store(teacher_folder: str, data_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Store:
    (made,) = extract(
        teacher_folder,
        data_folder,
        out=tmp_path_factory.mktemp("stores"),
        keeps=[Keep(1, 4, 0.25)],
        strategies=[Strategy(1)],
        task="sst2",
    )
    return open_store(made.root)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_module_learns_hidden_states_and_logits_however_it_gives_them(kind: str, store: Store, tmp_path: Path) -> None:
    found = distill(store, few(Mud()), student=Bag(OUTPUTS[kind]), out=tmp_path / kind)
    same = distill(store, few(Mud()), student=Bag(OUTPUTS["pair"]), out=tmp_path / "again")
    assert [phase.losses for phase in found.phases] == [phase.losses for phase in same.phases]
    assert found.phases[0].losses["mud.hidden"] > 0 and found.parameters == 64 * 12 + 13 * 12 + 13 * 2


def test_logits_alone_are_enough_for_a_method_without_hidden_states(store: Store, tmp_path: Path) -> None:
    bag = Bag(lambda logits, states: logits)
    before = bag.head.weight.detach().clone()
    distill(store, few(Kd()), student=bag, out=tmp_path / "run")
    assert not torch.equal(before, bag.head.weight)
    with pytest.raises(HskError, match=r"Bag gives no hidden states, which the method learns: return \(logits, hidden_states\)"):
        distill(store, few(Mud()), student=bag, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_saved_weights_are_the_scored_ones(store: Store, tmp_path: Path) -> None:
    found = distill(store, few(Mud()), student=Bag(OUTPUTS["pair"]), out=tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists() and (tmp_path / "run/tokenizer.json").exists()
    assert "It is a torch module, `Bag`" in (card := (tmp_path / "run/README.md").read_text()) and store.digest in card
    fresh = Bag(OUTPUTS["pair"])
    torch.nn.init.zeros_(fresh.head.weight)
    safetensors.torch.load_model(fresh, str(tmp_path / "run/model.safetensors"))
    assert evaluate(fresh, store.root, latency=False).score == found.scores["validation"].score
    with pytest.raises(OptionError, match="already holds a model"):
        distill(store, few(Kd()), student=fresh, out=tmp_path / "run")


def test_a_module_is_scored_on_data_by_the_tokenizer_it_is_given(
    store: Store, data_folder: str, teacher_folder: str, tmp_path: Path
) -> None:
    bag = Bag(OUTPUTS["pair"])
    with pytest.raises(OptionError, match="pass tokenizer="):
        evaluate(bag, data_folder, task="sst2")
    with pytest.raises(OptionError, match="pass classes="):
        evaluate(bag, data_folder, task="sst2", tokenizer=teacher_folder)
    labels = store.plan.task["labels"]
    found = evaluate(bag, data_folder, task="sst2", tokenizer=teacher_folder, classes=labels)
    other = evaluate(bag, data_folder, task="sst2", tokenizer=teacher_folder, classes=labels[::-1], latency=False)
    assert other.score["accuracy"] == pytest.approx(1 - found.score["accuracy"]), "its logits stand for other classes then"
    assert found.score == evaluate(bag, store.root, latency=False).score
    assert found.bytes is None and found.latency_ms is not None and found.parameters == 950


class Configured(Bag):
    """A module with a `config` of its own, which is no Hugging Face config."""

    config = SimpleNamespace(num_labels=7, max_position_embeddings=3, num_hidden_layers=9)


def test_what_a_module_calls_config_is_its_own_business(store: Store, tmp_path: Path) -> None:
    found = distill(store, few(Mud()), student=Configured(OUTPUTS["pair"]), out=tmp_path / "run")
    same = distill(store, few(Mud()), student=Bag(OUTPUTS["pair"]), out=tmp_path / "again")
    assert [phase.losses for phase in found.phases] == [phase.losses for phase in same.phases]
    assert evaluate(Configured(OUTPUTS["pair"]), store.root, latency=False).rows == 60
    shown = describe_module(Configured(OUTPUTS["pair"]), "mine")
    assert (shown.layers, shown.total_parameters) == (None, 950)


def test_hidden_states_that_a_method_does_not_learn_may_be_of_any_width(store: Store, tmp_path: Path) -> None:
    uneven = Bag(lambda logits, states: (logits, (states[0], states[1][..., :5])))
    assert distill(store, few(Kd()), student=uneven, out=tmp_path / "run").phases[0].steps == 6


def test_token_types_go_only_where_a_model_has_a_table_of_them() -> None:
    """GPT-2 would look them up among its words."""
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=20, n_positions=16, pad_token_id=0)
    assert accepted_inputs(GPT2ForSequenceClassification(config)) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("module", "method", "said"),
    [
        (Bag(lambda logits, states: (logits, states), classes=3), Kd(), "Bag has 3 outputs, the store's teacher 2"),
        (Bag(lambda logits, states: logits[0]), Kd(), r"its logits must be \[batch, class\], here \[2, classes\], not \[2\]"),
        (Bag(lambda logits, states: (logits, states[:1])), Mud(), "hidden states must be .* of the embeddings and of each layer"),
        (Bag(lambda logits, states: (logits, (states[0], states[1][..., :5]))), Mud(), "all of one width"),
        (Bag(lambda logits, states: "nothing"), Kd(), "it gave no logits"),
        (Bag(lambda logits, states: (logits, states, 1)), Kd(), "it gave no logits"),
        (nn.Linear(3, 2), Kd(), "Linear: its forward must take input_ids"),
        (Bag(OUTPUTS["pair"]).requires_grad_(False), Kd(), "has no parameter that can be trained"),
    ],
)
def test_what_cannot_be_a_student_is_said(module: nn.Module, method: Method, said: str, store: Store, tmp_path: Path) -> None:
    with pytest.raises(HskError, match=said):
        distill(store, few(method), student=module, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_bilstms_logits_do_not_depend_on_its_neighbours_padding(store: Store) -> None:
    torch.manual_seed(0)
    rows = rows_from_store(store, "validation")
    model = BiLstm(64, 2, width=8).eval()
    together = predict(model, rows)
    with torch.inference_mode():
        for row in (0, 17, 40):
            length = int(rows.n_tokens[row])
            ids = torch.from_numpy(rows.input_ids[row : row + 1, :length]).long()
            alone, _ = model(ids, torch.ones_like(ids))
            torch.testing.assert_close(alone[0], torch.from_numpy(together[row]), rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_the_bilstm_program_learns_from_a_store(store: Store, tmp_path: Path) -> None:
    program = Path(__file__).resolve().parents[1] / "pipelines/bilstm.py"
    words = [sys.executable, program, store.root, "--max-steps", "4", "--out", tmp_path / "run"]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "accuracy" in run.stdout and (tmp_path / "run/metrics.json").exists()


LOOKS: dict[str, Callable[[nn.Module, Store], Any]] = {
    "evaluate": lambda module, store: evaluate(module, store.root),
    "predict": lambda module, store: predict(module, rows_from_store(store, "validation")),
    "cpu_latency": lambda module, store: cpu_latency(module, single_rows(rows_from_store(store, "validation"), 2)),
    "describe_module": lambda module, store: describe_module(module, "it"),
    "shape_of": lambda module, store: shape_of(module, *telling_rows(rows_from_store(store, "validation")), name="it"),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def test_a_module_that_is_looked_at_stays_in_its_mode_and_on_its_device(look: str, device: str, store: Store) -> None:
    module = Bag(lambda logits, states: logits).to(device).train()
    module.layer.eval()  # frozen by its owner, in a module that is being trained
    LOOKS[look](module, store)
    assert module.training and module.head.training and not module.layer.training
    assert {parameter.device.type for parameter in module.parameters()} == {device}
    module.eval()
    LOOKS[look](module, store)
    assert not any(part.training for part in module.modules())


def test_a_module_goes_back_to_another_device_whatever_happens() -> None:
    class Elsewhere(nn.Module):
        """On a device that need not be here."""

        device = "cuda:1"

        def parameters(self, recurse: bool = True) -> Any:
            yield SimpleNamespace(device=self.device)

        def to(self, device: Any) -> Any:
            self.device = device
            return self

    module = Elsewhere()
    with pytest.raises(ZeroDivisionError), put_back(module):
        module.to("cpu").eval()
        1 / 0  # noqa: B018
    assert (module.device, module.training) == ("cuda:1", True)


def test_a_module_that_was_trained_is_left_in_eval_mode(store: Store, tmp_path: Path) -> None:
    module = Bag(lambda logits, states: logits).train()
    distill(store, few(Kd()), student=module, out=tmp_path / "run")
    assert not module.training
