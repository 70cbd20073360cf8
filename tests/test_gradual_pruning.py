"""A student is pruned while it learns: ROSITA's schedule, step by step, and a stopped run goes on as if it had not been."""

import gc
import itertools
import os
import shutil
import signal
import weakref
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from hskstore.config import Keep, Strategy
from hskstore.errors import ModelError, OptionError
from hskstore.methods import Finetune, Kd, Method, Mud
from hskstore.models.load import load_classifier
from hskstore.models.pruned_bert import PrunedBertConfig, PrunedBertForSequenceClassification
from hskstore.models.pruning import GradualPruning, as_pruned_bert, most_important, widths_of
from hskstore.models.widths import PruneTo, Widths
from hskstore.stage_one.extract import extract
from hskstore.stage_two import trainer
from hskstore.stage_two.distill import distill
from hskstore.stage_two.evaluate import evaluate
from hskstore.stage_two.learner import Learner
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.scores import DevScore
from hskstore.store import Store, open_store
from hskstore.watch import Watch, unwatched
from tests.conftest import WORDS, hsk, make_bert, save_folder, write_tsv
from tests.test_pruning import bert, odd_student
from tests.test_trainer import STUDENT, TEACHER, equal, run
from tests.test_trainer import settings as phases_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tsv(folder / "train.tsv", 160, seed=1)
    write_tsv(folder / "dev.tsv", 40, seed=2)
    return folder


# --- the schedule


def schedule(start: Widths, to: PruneTo, share: float) -> GradualPruning:
    config = PrunedBertConfig(
        hidden_size=max(start.embedding_rank, start.heads),
        num_hidden_layers=1,
        heads_per_layer=[start.heads],
        ffn_per_layer=[start.ffn],
        embedding_size=start.embedding_rank,
        head_size=1,
    )
    return GradualPruning(SimpleNamespace(config=config, device=torch.device("cpu")), to, share, "it")  # type: ignore[arg-type]


@example(start=(8, 8, 8), parts=(0.0, 0.0, 0.0), hundredths=70, steps=10)  # 7 cuts in 7 steps; 0.7 is less in floats
@given(
    start=st.tuples(st.integers(1, 16), st.integers(1, 100), st.integers(1, 100)),
    parts=st.tuples(*[st.floats(0, 1)] * 3),
    hundredths=st.integers(1, 99),
    steps=st.integers(1, 300),
)
def test_a_head_goes_at_a_time_and_all_has_gone_within_the_share(
    start: tuple[int, int, int], parts: tuple[float, float, float], hundredths: int, steps: int
) -> None:
    end = Widths(*(1 + round(part * (most - 1)) for part, most in zip(parts, start, strict=True)))
    pruning = schedule(Widths(*start), PruneTo(*end), hundredths / 100)
    cuts = max(1, start[0] - end.heads)
    assert pruning.cuts == cuts
    limit = Fraction(hundredths, 100) * steps
    if limit < cuts:
        with pytest.raises(OptionError, match=f"--prune-to: {cuts} cuts, a head at a time, need as many steps"):
            pruning.check_steps(steps)
        return
    pruning.check_steps(steps)
    made = [pruning.cuts_before(step, steps) for step in range(steps + 1)]
    at = [made.index(cut) for cut in range(1, cuts + 1)]
    assert at == [limit * cut // cuts for cut in range(1, cuts + 1)], "spread evenly"
    assert at[0] >= 1 and at[-1] <= limit and made[-1] == cuts
    assert all(0 <= later - earlier <= 1 for earlier, later in itertools.pairwise(made)), "each by what it learnt since"

    widths = [pruning.widths_after(cut) for cut in range(cuts + 1)]
    assert widths[0] == start and widths[-1] == end
    for cut, now in enumerate(widths):
        for has, first, last in zip(now, start, end, strict=True):
            assert last <= has <= first
            assert abs(has - (first - (first - last) * cut / cuts)) <= 0.5, "linear"
        assert now.heads == start[0] - min(cut, start[0] - end.heads)


def test_rositas_own_schedule() -> None:
    """12 heads to 2 in 10 cuts over half of 200 steps."""
    pruning = schedule(Widths(12, 3072, 768), PruneTo(2, 768, 128), 0.5)
    assert [pruning.cuts_before(step, 200) for step in (0, 9, 10, 19, 20, 99, 100, 199)] == [0, 0, 1, 1, 2, 9, 10, 10]
    assert [pruning.widths_after(cut) for cut in (0, 1, 5, 10)] == [
        (12, 3072, 768),
        (11, 2842, 704),
        (7, 1920, 448),
        (2, 768, 128),
    ]


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(OptionError, match="--prune-share"):
        schedule(Widths(4, 8, 8), PruneTo(2), share)


# --- the trainer

STEPS = 20
CUTS = [3, 6, 10]
"""Before which steps a student of 4 heads loses one, down to 1, over half of 20 steps; epochs have 6 steps."""


def narrowing(heads: int = 1, share: float = 0.5) -> Learner:
    model = as_pruned_bert(make_bert(layers=2, hidden=16, seed=4), "it")
    torch.manual_seed(0)
    pruning = GradualPruning(model, PruneTo(heads, 20, 5), share, "it")
    return Learner(model, aids=Mud().aids(TEACHER, STUDENT), pruning=pruning)


def train_narrowing(out: Path, method: Method, of: Learner | None = None, **options: Any) -> tuple[dict[str, Any], Any]:
    return run(out, method, of=of or narrowing(), phases=phases_of(method, STEPS), **{"score": None} | options)


def stop_after(stage: str, step: int) -> Any:
    def stop(said: str, done: int, total: int, note: str = "") -> None:
        if (said, done) == (stage, 16 * step):
            os.kill(os.getpid(), signal.SIGINT)

    return stop


def weighed(of: Learner) -> DevScore:
    """A dev score that any difference of the weights would show in."""
    return DevScore("weight", {"weight": float(sum(tensor.double().abs().sum() for tensor in of.state_dict().values()))})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[Method, tuple[dict[str, Any], Any]]:
    folder = tmp_path_factory.mktemp("whole")
    methods: list[Method] = [Mud(), Finetune()]
    return {method: train_narrowing(folder / repr(method), method, score=weighed) for method in methods}


@pytest.mark.parametrize(
    ("method", "stage", "step"),
    [
        *[(Mud(), "hidden", step) for step in (1, 3, 6, 8, 10, 14, STEPS)],
        *[(Mud(), "prediction", step) for step in (9, STEPS)],
        *[(Finetune(), "finetune", step) for step in (6, 10, 13)],
    ],
)
def test_interrupted_and_resumed_it_ends_in_the_same_weights_bit_for_bit(
    method: Method, stage: str, step: int, uninterrupted: dict[Method, tuple[dict[str, Any], Any]], tmp_path: Path
) -> None:
    whole, expected = uninterrupted[method]
    with pytest.raises(KeyboardInterrupt):
        train_narrowing(tmp_path / "broken", method, score=weighed, watch=stop_after(stage, step))
    resumed, results = train_narrowing(tmp_path / "broken", method, score=weighed)
    assert equal(whole, resumed)
    without_times = [[replace(result, seconds=0, waited=0, scored=0) for result in found] for found in (expected, results)]
    assert without_times[0] == without_times[1]
    assert whole["student.bert.encoder.layer.0.attention.self.query.weight"].shape == (4, 16)


def test_a_student_is_cut_when_it_is_due_by_what_mattered_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, Widths, list[int]]] = []
    cut = GradualPruning.cut
    mine = narrowing()
    steps: list[int] = []

    def noted(self: GradualPruning, student: Any, cuts: int) -> None:
        score = self.importance.heads(1).clone()
        assert (score > 0).all()
        before = student.bert.encoder.layer[1].attention.self.query.weight.detach().clone().view(len(score), 4, 16)
        cut(self, student, cuts)
        kept = most_important(score, student.config.heads_per_layer[1]).tolist()
        after = student.bert.encoder.layer[1].attention.self.query.weight.detach().view(len(kept), 4, 16)
        assert torch.equal(after, before[kept])
        assert self.importance.heads(1).tolist() == [0] * len(kept)
        seen.append((len(steps), widths_of(student), kept))

    monkeypatch.setattr(GradualPruning, "cut", noted)
    train_narrowing(tmp_path, Kd(), of=mine, watch=lambda *_: steps.append(1))
    assert [(step, *widths) for step, widths, _ in seen] == [(3, 3, 49, 12), (6, 2, 35, 9), (10, 1, 20, 5)]
    assert mine.pruning is not None and mine.pruning.importance.heads(0).sum() == 0, "nothing is gathered after the last cut"


def test_the_optimisers_moments_start_anew_at_a_cut(tmp_path: Path) -> None:
    for step, expected in ((2, 2), (5, 2), (8, 2), (13, 3)):
        out = tmp_path / str(step)
        with pytest.raises(KeyboardInterrupt):
            train_narrowing(out, Kd(), watch=stop_after("prediction", step))
        (moments,) = (out / "checkpoint").glob("optimizer-*.safetensors")
        counted = {float(tensor) for name, tensor in load_file(moments).items() if name.endswith(".step")}
        assert counted == {expected}


def test_a_wider_student_is_never_the_best(tmp_path: Path) -> None:
    """Cuts before steps 6, 12 and 18; epochs end at 6, 12 and 18."""
    asked: list[Widths] = []
    falling = iter([0.9, 0.8, 0.7, 0.6])

    def score(of: Learner) -> DevScore:
        asked.append(widths_of(of.student))
        return DevScore("accuracy", {"accuracy": next(falling)})

    mine = narrowing(share=0.9)
    _, (result,) = train_narrowing(tmp_path, Kd(), of=mine, score=score)
    assert asked == [(1, 20, 5)] and result.best == {"step": STEPS, "accuracy": 0.9}
    assert widths_of(mine.student) == (1, 20, 5)


def test_an_unfinished_run_is_not_taken_for_one_that_prunes_otherwise(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_narrowing(tmp_path, Mud(), watch=stop_after("hidden", 8))
    for other in (narrowing(heads=2), narrowing(share=0.6)):
        with pytest.raises(OptionError, match="differs in its pruning:"):
            train_narrowing(tmp_path, Mud(), of=other)
    with pytest.raises(OptionError, match="differs in its pruning, student:"):
        train_narrowing(tmp_path, Mud(), of=Learner(narrowing().student, aids=Mud().aids(TEACHER, STUDENT)))


def test_it_is_trained_in_bf16_too(tmp_path: Path) -> None:
    mine = narrowing()
    _, results = train_narrowing(tmp_path, Mud(), of=mine, precision="bf16")
    assert all(np.isfinite(list(result.losses.values())).all() for result in results)
    assert widths_of(mine.student) == (1, 20, 5) and {each.dtype for each in mine.parameters()} == {torch.float32}


def test_no_optimiser_outlives_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []
    original = trainer._optimizer

    def optimizer(*arguments: Any) -> Any:
        new = original(*arguments)
        made.append(weakref.ref(new))
        return new

    def count(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "hidden" and done // 16 in (2, 8, 12):
            gc.collect()
            alive.append(sum(reference() is not None for reference in made))

    monkeypatch.setattr(trainer, "_optimizer", optimizer)
    train_narrowing(tmp_path, Mud(), watch=count)
    assert len(made) == 1 + len(CUTS) + 1 and alive == [1, 1, 1]


# --- distill


@pytest.fixture(scope="module")
def store(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("stores")
    teacher = save_folder(bert(layers=4), folder / "teacher")
    (made,) = extract(teacher, str(data), out=folder, keeps=[Keep(2, 4, 0.25)], strategies=[Strategy(2)], task="sst2")
    shutil.rmtree(teacher)
    return open_store(made.root)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_folder(make_bert(layers=2, hidden=16, seed=1), tmp_path_factory.mktemp("student"))


def learn(store: Store, student: str, out: Path, method: Method, watch: Watch = unwatched, **options: Any) -> Any:
    recipe = Recipe(student, method, max_steps=16, batch_size=(16,), **{"prune_to": PruneTo(2, 32, 8)} | options)
    return distill(store, recipe, out=out, watch=watch)


@pytest.mark.parametrize("method", [Mud(), Kd(alpha=0.5), Finetune()], ids=["mud", "kd", "finetune"])
def test_the_student_has_the_shape_asked_for_and_the_score_of_its_saved_weights(
    method: Method, store: Store, student: str, tmp_path: Path
) -> None:
    found = learn(store, student, tmp_path / "run", method)
    loaded, trained = load_classifier(found.folder)
    assert trained and isinstance(loaded, PrunedBertForSequenceClassification)
    assert (loaded.config.heads_per_layer, loaded.config.ffn_per_layer) == ([2, 2], [32, 32])
    assert (loaded.config.embedding_size, loaded.config.head_size, loaded.config.hidden_size) == (8, 4, 16)
    assert loaded.num_parameters() == found.parameters < make_bert(layers=2, hidden=16).num_parameters()
    again = evaluate(found.folder, store.root, latency=False)
    assert again.score == found.scores["validation"].score
    assert found.phases[-1].best is not None
    assert again.score["accuracy"] == found.phases[-1].best["accuracy"]
    assert "import hskstore.pruned_bert" in (tmp_path / "run" / "README.md").read_text()
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_distillation_that_prunes_goes_on_where_it_was_stopped_and_only_with_the_same_widths(
    store: Store, student: str, tmp_path: Path
) -> None:
    whole = learn(store, student, tmp_path / "whole", Mud())
    with pytest.raises(KeyboardInterrupt):
        learn(store, student, tmp_path / "run", Mud(), watch=stop_after("hidden", 4))
    for other in ({"prune_to": PruneTo(2, 32, 9)}, {"prune_share": 0.6}, {"prune_to": None}):
        with pytest.raises(OptionError, match="an unfinished run that differs in its pruning"):
            learn(store, student, tmp_path / "run", Mud(), **other)
    resumed = learn(store, student, tmp_path / "run", Mud())
    weights = [Path(found.folder, "model.safetensors").read_bytes() for found in (whole, resumed)]
    assert weights[0] == weights[1] and whole.scores == resumed.scores
    assert [replace(phase, seconds=0, scored=0) for phase in whole.phases] == [
        replace(phase, seconds=0, scored=0) for phase in resumed.phases
    ]


def test_a_pruned_student_can_be_pruned_further_while_it_learns(store: Store, tmp_path: Path) -> None:
    student = save_folder(odd_student(), tmp_path / "student")
    found = learn(store, student, tmp_path / "run", Kd(), prune_to=PruneTo(1, 20, None))
    config = load_classifier(found.folder)[0].config
    assert (config.heads_per_layer, config.ffn_per_layer, config.embedding_size) == ([1, 1, 1], [20, 7, 20], 6)


def distilbert() -> Any:
    config = tf.DistilBertConfig(
        vocab_size=5 + len(WORDS), dim=16, n_heads=4, hidden_dim=32, n_layers=2, max_position_embeddings=64, num_labels=2
    )
    return tf.DistilBertForSequenceClassification(config)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--prune-to", "2,32,8", "--max-steps", 4],
            "2 cuts, a head at a time, need as many steps; 0.5 of the first phase are 1",
        ),
        (["--prune-to", "2,32,8", "--prune-share", 1], "--prune-share 1.0: must be between 0 and 1"),
        (["--prune-to", "2,32,8", "--prune-share", 0], "--prune-share 0.0"),
        (["--prune-to", "5,32,8"], "5 heads to keep: {student} has 1 to 4"),
        (["--prune-to", "2,65,8"], "65 FFN units to keep"),
        (["--prune-to", "2,32,17"], "17 dimensions of word embeddings to keep"),
        (["--prune-to", "0,32,8"], "0 heads to keep"),
        (["--prune-to", "2,32"], "expected HEADS,FFN,RANK"),
        (["--prune-to", "2,-3,8"], "expected HEADS,FFN,RANK"),
        (["--prune-to", "2,32,half"], "expected HEADS,FFN,RANK"),
        (["--prune-share", 0.5], "--prune-share goes with --prune-to"),
        (
            ["--student", "{distilbert}", "--prune-to", "1,32,8"],
            "{distilbert}: only BERT models can be pruned; this is distilbert",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_one_message_and_leaves_nothing_behind(
    options: Sequence[Any], said: str, store: Store, student: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {"student": student, "distilbert": str(tmp_path / "distilbert")}
    if "{distilbert}" in options:
        save_folder(distilbert(), tmp_path / "distilbert")
    words = [str(word).format(**places) for word in options]
    capfd.readouterr()
    assert hsk("distill", store.root, "--student", student, "--out", tmp_path / "new", "--batch-size", 16, *words) == 2
    err = capfd.readouterr().err
    assert said.format(**places) in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_module_that_is_no_bert_is_refused_by_name(store: Store, tmp_path: Path) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.EmbeddingBag(5 + len(WORDS), 2)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.table(input_ids)

    with pytest.raises(ModelError, match="Words: only BERT models can be pruned; this is Words"):
        distill(store, Recipe(method=Kd(), prune_to=PruneTo(1)), student=Words(), out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
