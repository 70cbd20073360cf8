"""Knowledge selection: its losses, what an actor and a critic learn by, toys whose best choice is known, and runs."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hskstore.config import Strategy
from hskstore.errors import ModelError, OptionError, StoreError
from hskstore.explore.methods import describe_methods
from hskstore.features import RowTargets, TeacherShape
from hskstore.losses import direction_distance, flow_mse
from hskstore.methods import Ckd, Kd, Ksm, Mud, Selection, Several, Terms, Weights
from hskstore.methods.batch import Batch
from hskstore.methods.selector import (
    RandomWeights,
    Selector,
    critic_loss,
    hard,
    phase_loss,
    step_loss,
    targets,
    unlike,
    unrepeated,
)
from hskstore.models.observe import Seen
from hskstore.models.run import ModelShape
from hskstore.stage_one.extract import extract
from hskstore.stage_two.card import Distilled
from hskstore.stage_two.distill import distill
from hskstore.stage_two.journal import scheduled
from hskstore.stage_two.learner import Learner
from hskstore.stage_two.recipe import Recipe
from hskstore.store import Store, open_store
from hskstore.text.tasks import TASKS
from hskstore.watch import unwatched
from tests.conftest import make_bert, save_folder, write_tsv

ROOT = Path(__file__).resolve().parents[1]
SMALL = Selection(episodes=2, phase_steps=3)
TEACHER, STUDENT = TeacherShape(12, 8), ModelShape("it", 2, (3, 8))


# --- losses


def test_the_distance_of_directions_by_hand() -> None:
    """(3, 4) is (0.6, 0.8), (0, 2) is (0, 1): the root of 0.36 + 0.04; a right angle is the root of 2, the opposite 2."""
    student = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[2.0, 0.0], [0.0, 1.0]]])
    teacher = torch.tensor([[[0.0, 2.0], [0.0, 5.0]], [[-1.0, 0.0], [0.0, 3.0]]])
    term = direction_distance(student, teacher)
    assert term.total.tolist() == pytest.approx([0.4**0.5 + 2**0.5, 2.0]) and term.count.tolist() == [2, 2]
    assert float(term.value) == pytest.approx((0.4**0.5 + 2**0.5) / 2 + 1)


def test_flows_by_hand() -> None:
    """(2, 0) to (1, 3) is ((1, 3), (0, 0)) at length 1 of the lower; (0, 5) to (1, 1) is ((0, 0), (1, 1)): 1 + 9 + 1 + 1 over
    4."""
    student, above = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[1.0, 3.0]]])
    term = flow_mse(student, above, teacher_lower=torch.tensor([[[0.0, 5.0]]]), teacher_upper=torch.tensor([[[1.0, 1.0]]]))
    assert term.total.tolist() == pytest.approx([3.0]) and term.count.tolist() == [1]


def test_flows_are_those_of_whole_matrices() -> None:
    torch.manual_seed(0)
    own, above, lower, upper = torch.randn(4, 3, 5, 6, dtype=torch.float64)
    expected = sum(
        ((torch.outer(a / a.norm(), b) - torch.outer(c / c.norm(), d)) ** 2).mean() / 5
        for pair in zip(own, above, lower, upper, strict=True)
        for a, b, c, d in zip(*pair, strict=True)
    )
    assert float(flow_mse(own, above, teacher_lower=lower, teacher_upper=upper).value) == pytest.approx(float(expected))


def test_degenerate_vectors_have_finite_gradients_and_the_teacher_has_none() -> None:
    same = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(1))
    for student in (same.clone(), torch.zeros(1, 4, 3), same * 1e-8):
        student.requires_grad_()
        teacher = same.clone().requires_grad_()
        direction_distance(student, teacher).value.backward()
        flow_mse(student, student, teacher_lower=teacher, teacher_upper=teacher).value.backward()
        assert student.grad is not None and student.grad.isfinite().all() and teacher.grad is None
    assert float(direction_distance(same, same * 3).value) == 0


def test_the_layers_of_vectors_and_of_flows_are_told_together() -> None:
    (found,) = (each for each in describe_methods() if each.name == "ksm")
    assert found.phases[0].reads == {"cls": [*range(2, 13)]}


def test_what_ksm_reads_and_weighs() -> None:
    (phase,) = Ksm().phases(TEACHER, STUDENT)
    features, flows = phase.reads
    assert [(pair.student, pair.teacher) for pair in features.pairs] == [(1, 4), (2, 8), (3, 12)]
    assert [(pair.student, pair.teacher) for pair in flows.pairs] == [(2, 5), (3, 9)]
    assert phase.weights == {"gold": 1, "prediction": 1, "ksm.feature": 1, "ksm.relation": 1000} and phase.reads_labels
    (phase,) = Ksm().phases(TEACHER, ModelShape("it", 2, (1, 8)))
    assert "ksm.relation" not in phase.weights and len(phase.reads) == 1
    with pytest.raises(OptionError, match=r"^the method ksm teaches .* one of 13 layers is deeper than the teacher's 12"):
        Ksm().phases(TEACHER, ModelShape("it", 2, (13, 8)))


def test_sums_are_the_means_times_the_rows() -> None:
    """The second row is as the teacher has it, but for its label: ln 2, as of the first. Of that also 1/2 ln 2/3 + 1/2 ln 2 of
    its logits, at a temperature of 10; a right angle; ((1, 3), (0, 0)) to ((0, 0), (1, 1)), 12 over 4 entries."""
    shapes = TeacherShape(4, 2), ModelShape("it", 2, (2, 2))
    wants = Ksm().phases(*shapes)[0].reads
    own = torch.tensor([[[2.0, 0.0], [1.0, 1.0]], [[1.0, 3.0], [0.0, 1.0]]])
    features = RowTargets(torch.tensor([[[0.0, 5.0], [1.0, 1.0]], [[1.0, 3.0], [0.0, 1.0]]]))
    flows = RowTargets(torch.tensor([[[1.0, 1.0], [0.0, 1.0]]]))
    tokens = torch.ones(2, 1, dtype=torch.long)
    logits, knowledge = torch.tensor([[10 * math.log(3), 0], [0, 0]]), {wants[0]: features, wants[1]: flows}
    batch = Batch(tokens, tokens, tokens.bool(), torch.tensor([0, 1]), logits, knowledge)
    seen = Seen(torch.zeros(2, 2), {1: own[0][:, None], 2: own[1][:, None]})
    found = {}
    for reduction in ("mean", "sum"):
        method = Ksm(reduction=reduction)  # type: ignore[arg-type]
        found[reduction] = {name: float(term.value) for name, term in method(*method.phases(*shapes), seen, batch, None).items()}
    expected = {"gold": 2 * math.log(2), "prediction": 50 * math.log(4 / 3), "ksm.feature": 2**0.5, "ksm.relation": 3}
    assert found["sum"] == pytest.approx(expected)
    assert found["sum"] == pytest.approx({name: 2 * mean for name, mean in found["mean"].items()})


# --- actions, targets, exploration


def test_a_hard_action_takes_in_what_is_at_least_the_threshold_or_the_largest() -> None:
    soft = torch.tensor([[0.2, 0.19, 0.9], [0.1, 0.15, 0.05]])
    assert hard(soft, 0.2).tolist() == [[1, 0, 1], [0, 1, 0]]


def test_targets_and_losses_of_values_by_hand() -> None:
    """With a discount of 1/2: targets 1 + 2, 0.5 x 1 + 4; rewards expected (1 - 2) / 1 + (2 - 4) / 0.5."""
    value, later, reward = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(4.0), torch.tensor([1.0, 1.0])
    assert targets(value, later, reward, 0.5).tolist() == [3.0, 4.5]
    loss = step_loss(value, later, reward, 0.5)
    assert float(loss.detach()) == pytest.approx((2**2 + 2.5**2) / 2)
    assert torch.autograd.grad(loss, value)[0].tolist() == pytest.approx([-2.0, -2.5]), "targets have no gradient"
    loss = phase_loss(value, later, torch.tensor(0.5), 0.5)
    assert float(loss.detach()) == pytest.approx((0.5 + 1 + 4) ** 2)
    assert torch.autograd.grad(loss, value)[0].tolist() == pytest.approx([-11.0, -11.0]), "1 and 2 - 1 times -2 x 5.5"


def test_a_phase_of_one_step_is_the_usual_actor_critic() -> None:
    """0.3 were earned and 0.1 explored: the value is the sum of both and what follows, 0.2. Of more steps they are two losses."""
    value, later, earned, novelty = torch.tensor([0.6]), torch.tensor(0.2), torch.tensor(0.3), torch.tensor([0.1])
    assert float(critic_loss(value, later, earned, novelty, 0.98)) == pytest.approx(0, abs=1e-12)
    assert float(critic_loss(value + 0.5, later, earned, novelty, 0.98)) == pytest.approx(0.25)
    assert float(critic_loss(value, later, earned, None, 0.98)) == pytest.approx(0.1**2)
    value, novelty = torch.tensor([0.6, 0.4]), torch.tensor([0.1, 0.2])
    of_phase = phase_loss(value, later, earned, 0.98)
    assert critic_loss(value, later, earned, None, 0.98) == of_phase, "where nothing is explored Equation 9 has nothing to say"
    both = of_phase + step_loss(value, later, novelty, 0.98)
    assert critic_loss(value, later, earned, novelty, 0.98) == both


def test_what_is_unlike_the_actions_before_is_rewarded() -> None:
    actions, before = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert unlike(actions, before).tolist() == pytest.approx([0.5, 1 - 0.5**0.5])
    assert unrepeated(actions, torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])).tolist() == [0.5, 0.75]


def test_random_weights_are_of_the_step_and_the_seed() -> None:
    soft, flips = RandomWeights(("a", "b"), hard=False), RandomWeights(("a", "b"), hard=True)
    drawn = torch.stack([soft.weigh(step, None, seed=1, learning=False) for step in range(300)])
    assert torch.equal(drawn[7], soft.weigh(7, None, seed=1, learning=False)) and not torch.equal(drawn[7], drawn[8])
    assert (drawn >= 0).all() and (drawn <= 1).all() and drawn.mean(dim=0).sub(0.5).abs().max() < 0.06
    taken = torch.stack([flips.weigh(step, None, seed=1, learning=False) for step in range(300)])
    assert set(taken.flatten().tolist()) == {0.0, 1.0} and taken.sum(dim=1).min() == 1


def test_rows_that_a_short_batch_lacks_change_nothing_and_learning_updates_each_network() -> None:
    torch.manual_seed(0)
    selector = Selector(("a", "b"), 4, (3, 5), Selection(phase_steps=2, episodes=1), learns=True)
    own = torch.randn(4, 3), torch.randn(4, 5)
    short = tuple(each[:2] for each in own)
    before = {name: each.clone() for name, each in selector.named_parameters()}
    worths = iter([0.0, 1.0, 1.5])
    selector.begin(lambda: next(worths))
    for step in range(3):
        selector.weigh(step, (own, short, own)[step], seed=3, learning=True)
        selector.follow(step + 1, torch.tensor([0.25, step / 4]), lambda: next(worths))
        assert selector.actions[step % 2].tolist() == [0.25, step / 4], "what was taken on the first process"
    assert selector.rows.tolist() == [4, 2] and float(selector.earned) == 1.0
    selector.finish(3, lambda: next(worths))
    assert float(selector.earned) == 0.5 and float(selector.worth) == 1.5
    moved = {name.partition(".")[0] for name, each in selector.named_parameters() if not torch.equal(each, before[name])}
    assert moved == {"student_features", "teacher_features", "actor", "critic"}
    selector.student_cls[1, 2:] = 9.0
    again = Selector(("a", "b"), 4, (3, 5), Selection(phase_steps=2), learns=True)
    again.load_state_dict(selector.state_dict())
    chosen = [each.weigh(0, short, seed=0, learning=False) for each in (selector, again)]
    assert torch.equal(*chosen) and not torch.equal(chosen[0], again.weigh(0, own, seed=0, learning=False))


# --- toys


def toy(
    bad: Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor], seed: int, action: Any, *, episodes: int = 15
) -> torch.Tensor:
    """The weights of two kinds of knowledge over a training of a vector towards the `truth`, after a selector has learnt: one
    pulls to the truth, the other as `bad` has it."""
    options = Selection(action=action, episodes=episodes, phase_steps=8, selector_lr=1e-3)
    torch.manual_seed(seed)
    selector = Selector(("good", "bad"), 8, (4, 4), options, learns=True)
    draws = torch.Generator().manual_seed(seed)
    truth, rows = torch.randn(4, generator=draws), torch.randn(64, 4, generator=draws)

    def train(episode: int, *, learning: bool) -> torch.Tensor:
        own, random, weights = torch.zeros(4), torch.Generator().manual_seed(1000 * seed + episode), []

        def worth() -> float:
            return -float((rows @ (own - truth)).square().mean())

        if learning:
            selector.begin(worth)
        for step in range(96):
            batch = torch.randn(8, 4, generator=random)
            good, other = selector.weigh(step, (batch * own, batch * truth), seed=100 * seed + episode, learning=learning)
            own = own - 0.1 * (good * (own - truth) + other * bad(own, truth, random))
            weights.append(torch.stack([good, other]))
            if learning:
                selector.follow(step + 1, weights[-1], worth)
        if learning:
            selector.finish(96, worth)
        return torch.stack(weights)

    for episode in range(options.episodes):
        train(episode, learning=True)
    return train(99, learning=False)


TOYS: dict[str, Any] = {
    "noise": lambda own, truth, random: 6 * torch.randn(4, generator=random),
    "conflict": lambda own, truth, random: own + truth,
    "early": lambda own, truth, random: own - 2.5 * truth,  # twice as fast to the truth, and beyond it
}


@pytest.mark.long
@pytest.mark.parametrize("kind", TOYS)
def test_what_is_bad_is_found_out_in_nine_of_ten_seeds(kind: str) -> None:
    late = [toy(TOYS[kind], seed, "soft")[-48:].mean(dim=0) for seed in range(10, 20)]  # the toys were made with others
    assert sum(bool(bad < good / 5) for good, bad in late) >= 9, late


@pytest.mark.long
@pytest.mark.parametrize("kind", ["noise", "conflict"])
def test_a_hard_action_leaves_out_what_is_bad(kind: str) -> None:
    late = [toy(TOYS[kind], seed, "hard")[-48:].mean(dim=0) for seed in range(10, 13)]
    assert all(bool(bad < good / 5) for good, bad in late), late


@pytest.mark.long
def test_what_conflicts_with_the_truth_is_found_out() -> None:
    good, bad = toy(TOYS["conflict"], 0, "soft", episodes=4)[-48:].mean(dim=0)
    assert bad < good / 2


# --- runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of what ksm, ckd and mud read for students of two layers, such a student without dropout, and stores without labels
    and without [CLS]."""
    place = tmp_path_factory.mktemp("ksm")
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    teacher = save_folder(make_bert(layers=4, hidden=16, **still), place / "teacher")
    for name, rows in (("train", 60), ("dev", 40)):
        (place / "data").mkdir(exist_ok=True)
        write_tsv(place / "data" / f"{name}.tsv", rows, seed=rows)
    shared: dict[str, Any] = {"strategies": [Strategy(2)], "task": "sst2"}
    extract(teacher, str(place / "data"), out=place / "stores", methods=[Ksm(), Ckd(), Mud()], **shared)
    extract(teacher, str(place / "data"), out=place / "bare", methods=[Kd()], **shared)
    bare = {"strategies": [Strategy(2)], "text": ["sentence"], "validation": "0.2"}
    extract(teacher, str(place / "data" / "train.tsv"), out=place / "unlabelled", methods=[Ksm()], **bare)  # type: ignore[arg-type]
    save_folder(make_bert(layers=2, hidden=16, seed=1, **still), place / "student")
    return place


def store_in(folder: Path) -> Store:
    (root,) = folder.iterdir()
    return open_store(root)


def learn(place: Path, out: Path, *, watch: Any = unwatched, store: str = "stores", **options: Any) -> Distilled:
    shared = {"method": Ksm(), "selection": SMALL, "max_steps": 8, "batch_size": (16,), "lr": (1e-3,), "precision": "fp32"}
    return distill(store_in(place / store), Recipe(str(place / "student"), **shared | options), out=out, watch=watch)  # type: ignore[arg-type]


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of KSM, from front to end."""
    out = tmp_path_factory.mktemp("whole") / "run"
    learn(place, out)
    return out


def test_a_selector_learns_is_kept_and_is_used_again(place: Path, tmp_path: Path) -> None:
    found = learn(place, tmp_path / "one")
    assert [phase.name for phase in found.phases] == ["episode-1", "episode-2", "ksm"]
    assert [phase.steps for phase in found.phases] == [8, 8, 8], "an episode is as long as the training that counts"
    assert [bool(phase.scores) for phase in found.phases] == [False, False, True]
    told = json.loads((tmp_path / "one" / "metrics.json").read_text())
    for phase in told["phases"]:
        (row,) = phase["schedule"]
        assert row.keys() == {"step", "steps", "gold", "prediction", "ksm.feature", "ksm.relation"} and row["steps"] == 8
        assert (phase["rewarded"] > 0) == phase["name"].startswith("episode")
    assert "Selection(" in told["selection"]
    selector = tmp_path / "one" / "selector"
    assert json.loads((selector / "selector.json").read_text())["terms"][0] == "gold"
    again = learn(place, tmp_path / "two", selection=Selection(selector=str(selector)))
    assert [phase.name for phase in again.phases] == ["ksm"] and not (tmp_path / "two" / "selector").exists()
    assert weights(tmp_path / "one") == weights(tmp_path / "two"), "the last training is that of the trained selector"
    assert again.batches == found.batches


@pytest.mark.long
def test_every_training_begins_with_the_same_student_and_only_the_selector_goes_on(place: Path, tmp_path: Path) -> None:
    """Of a selector that hardly learns all episodes but for the noise are one."""
    kept: dict[str, Any] = {}

    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        if done == 16:
            kept[stage] = note.partition(";")[0]

    learn(place, tmp_path / "run", watch=watch)
    assert (
        kept.keys() >= {"episode-1", "episode-2", "ksm"} and len({kept[name] for name in ("episode-1", "episode-2", "ksm")}) == 1
    )


@pytest.mark.parametrize("stop_at", [("episode-1", 2), ("episode-1", 3), ("episode-2", 8), ("ksm", 3)])
def test_a_run_that_is_stopped_anywhere_goes_on_bit_for_bit(
    stop_at: tuple[str, int], place: Path, whole: Path, tmp_path: Path
) -> None:
    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if (stage, done) == (stop_at[0], 16 * stop_at[1]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(place, tmp_path / "parts", watch=stop)
    learn(place, tmp_path / "parts")
    assert weights(whole) == weights(tmp_path / "parts")
    one, two = (load_file(each / "selector" / "selector.safetensors") for each in (whole, tmp_path / "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    told = [json.loads((each / "metrics.json").read_text())["phases"] for each in (whole, tmp_path / "parts")]
    assert [phase["schedule"] for phase in told[0]] == [phase["schedule"] for phase in told[1]]


def test_weights_at_random_and_fixed_ones_need_no_training_before(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Learner, "copied", lambda self: pytest.fail("nothing begins anew"))
    made = {}
    for action in ("random-soft", "random-hard", "fixed"):
        found = learn(place, tmp_path / action, selection=Selection(action=action))  # type: ignore[arg-type]
        assert [phase.name for phase in found.phases] == ["ksm"] and not (tmp_path / action / "selector").exists()
        assert bool(found.phases[0].schedule) == (action != "fixed")
        made[action] = weights(tmp_path / action)
    assert len(set(made.values())) == 3
    at_random = Selection(select=Terms(("prediction", "gold")), action="random-hard")
    found = learn(place, tmp_path / "kd", store="bare", method=Kd(alpha=0.5), selection=at_random, max_steps=2)
    assert found.phases[0].schedule[0].keys() >= {"prediction", "gold"}, "they look at no [CLS] vectors: the store has none"


@pytest.mark.long
def test_any_terms_of_any_methods_can_be_chosen_among(place: Path, tmp_path: Path) -> None:
    chosen = Selection(select=Terms(("ckd.word_pair", "prediction")), episodes=1, phase_steps=2)
    learn(place, tmp_path / "ckd", method=Ckd(), selection=chosen, max_steps=2)
    used = Selection(selector=str(tmp_path / "ckd" / "selector"))
    found = learn(place, tmp_path / "used", method=Ckd(), selection=used, max_steps=2)
    assert [phase.name for phase in found.phases] == ["ckd"], "a method is given its own phase, of what it reads itself"
    words = {"method": "mud+ckd", "select": "mud.hidden,ckd.word_pair,prediction", "episodes": 1, "phase_steps": 4}
    recipe = Recipe.of(words)
    assert recipe.method == Several((Mud(), Ckd()), "joint") and recipe == Recipe.of(recipe.as_options())
    found = learn(place, tmp_path / "run", method=recipe.method, selection=recipe.selection)
    assert found.phases[-1].schedule[0].keys() == {"step", "steps", "mud.hidden", "ckd.word_pair", "prediction"}
    assert Recipe.of({"method": "mud+ksm"}).method == Several((Mud(), Ksm()), "joint")
    assert Recipe.of({"method": "mud+ckd", "selector": "runs/it/selector"}).method == Several((Mud(), Ckd()), "joint")
    assert Recipe.of({"method": "mud+ksm", "action": "fixed"}).method == Several((Mud(), Ksm()))
    with pytest.raises(OptionError, match=r"^--select: weights are chosen in one phase, and mud has hidden and prediction: add"):
        learn(place, tmp_path / "other", method=Mud(), selection=recipe.selection)
    with pytest.raises(OptionError, match=r"^--select mud.hidden: there is no such term; those that are weighed are gold, "):
        learn(place, tmp_path / "other", selection=recipe.selection)
    one_left = Weights((("prediction", 0.0), ("ksm.feature", 0.0), ("ksm.relation", 0.0)))
    with pytest.raises(OptionError, match=r"^--action soft: of gold gold is left to choose among"):
        learn(place, tmp_path / "other", weight=one_left)
    assert not (tmp_path / "other" / "model.safetensors").exists()


def test_what_cannot_be_learnt_by_is_refused(place: Path, tmp_path: Path) -> None:
    chosen = Selection(select=Terms(("prediction", "gold")))
    with pytest.raises(
        StoreError, match=r"holds no cls of teacher layer 4, from which weights are chosen: extract with --for ksm"
    ):
        learn(place, tmp_path / "run", store="bare", method=Kd(alpha=0.5), selection=chosen)
    with pytest.raises(StoreError, match=r"holds no label, which the method ksm needs: extract with --label"):
        learn(place, tmp_path / "run", store="unlabelled")
    inside = Selection(select=Terms(("prediction", "ksm.feature")))
    with pytest.raises(StoreError, match=r"holds no label, by which a selector is rewarded: extract with --label"):
        learn(place, tmp_path / "run", store="unlabelled", selection=inside, weight=Weights((("gold", 0.0),)))
    with pytest.raises(OptionError, match=r"^the method kd chooses no weights by itself: name the terms with --select"):
        Recipe(method=Kd(), selection=Selection(action="hard"))


def test_a_selector_that_does_not_fit_is_refused(place: Path, tmp_path: Path) -> None:
    learn(place, tmp_path / "run", selection=Selection(episodes=1), max_steps=2)
    kept = str(tmp_path / "run" / "selector")
    used = Selection(selector=kept)
    with pytest.raises(OptionError, match=r"looks at batches of 16 rows: give --batch-size 16, not 15"):
        learn(place, tmp_path / "other", selection=used, batch_size=(15,))
    with pytest.raises(OptionError, match=r"weighs ksm.relation, of which the run has none; its terms are gold, prediction,"):
        learn(place, tmp_path / "other", selection=used, weight=Weights((("ksm.relation", 0.0),)))
    narrow = save_folder(make_bert(layers=2, hidden=8, seed=1), tmp_path / "narrow")
    with pytest.raises(ModelError, match=r"looks at a student 16 wide, and this one is 8: train another"):
        distill(store_in(place / "stores"), Recipe(narrow, Ksm(), selection=used), out=tmp_path / "other")
    with pytest.raises(OptionError, match=r"^--selector .* brings its own options: leave out --action, --episodes"):
        Selection(selector=kept, action="hard", episodes=2)
    for text in ("{}", "[", '{"terms": ["a", "b"], "batch_size": 1e9, "widths": [1, 2], "options": {}}'):
        (tmp_path / "run" / "selector" / "selector.json").write_text(text)
        with pytest.raises(OptionError, match=r"^--selector .*: no trained selector could be read there \(.*it is the folder"):
            learn(place, tmp_path / "other", selection=used)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"action": "both"}, "--action both: choose one of soft, hard"),
        ({"threshold": 1.5}, "--threshold 1.5: must be from 0 to 1"),
        ({"episodes": 0}, "--episodes 0"),
        ({"phase_steps": 0}, "--phase-steps 0"),
        ({"reward": "f1"}, "--reward f1: choose one of loss, metric"),
        ({"exploration_scale": -1}, "--exploration-scale -1"),
        ({"discount": 0}, "--discount 0"),
        ({"discount": 1.5}, "--discount 1.5"),
        ({"selector_lr": 0}, "--selector-lr 0"),
        ({"action": "random-soft", "episodes": 2}, "--action random-soft trains no selector: leave out --episodes"),
        ({"threshold": 0.3}, "--action soft takes in all terms: leave out --threshold"),
        ({"phase_steps": 4000}, "--discount 0.98 over --phase-steps 4000: .* choose a discount nearer to 1, or fewer steps"),
        ({"discount": 0.4}, "--discount 0.4 over --phase-steps 64"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Selection(**options)


@pytest.mark.parametrize("text", ["gold", "gold,gold", "gold,,kd", "a=1,b"])
def test_terms_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"^--select"):
        Terms.parse(text)


def test_the_reward_is_how_far_the_loss_falls_or_the_metric_rises(place: Path, tmp_path: Path) -> None:
    from hskstore.stage_two.rows import rows_from_store
    from hskstore.stage_two.scores import dev_worth, predict

    dev = rows_from_store(store_in(place / "stores"), "validation")
    model = make_bert(layers=2, hidden=16, seed=1)
    logits, label = torch.from_numpy(predict(model, dev)), torch.from_numpy(dev.label).long()
    task = TASKS["sst2"]
    loss = float(torch.nn.functional.cross_entropy(logits, label))
    assert dev_worth(task, dev, "loss")(Learner(model)) == pytest.approx(-loss, rel=1e-5)
    right = float((logits.argmax(dim=1) == label).double().mean())
    assert dev_worth(task, dev, "metric")(Learner(model)) == pytest.approx(right)
    assert len(dev.at_most(7)) == 7 and len(dev.at_most(1000)) == 40


def test_a_schedule_is_means_of_some_steps_each() -> None:
    schedule: list[dict[str, float]] = []
    for step in range(100):
        schedule = scheduled(schedule, step, {"a": float(step), "b": 1.0})
    assert [(row["step"], row["steps"], row["b"]) for row in schedule] == [(0, 64, 1), (64, 36, 1)]
    assert schedule[0]["a"] == pytest.approx(31.5) and schedule[1]["a"] == pytest.approx(81.5)


def test_a_recipe_of_a_selection_says_all_of_it() -> None:
    for recipe in (Recipe(method=Ksm()), Recipe(method=Ksm(), selection=replace(SMALL, action="hard"))):
        assert Recipe.of(recipe.as_options()) == recipe
    assert Recipe(method=Ksm()).selects == Selection() and Recipe().selects is None
    assert Recipe(method=Ksm(), selection=Selection(action="fixed")).selects is None


@pytest.mark.long
def test_the_pipeline_compares_every_row_of_its_tables(tmp_path: Path) -> None:
    teacher = save_folder(make_bert(layers=4, hidden=16), tmp_path / "teacher")
    (tmp_path / "data").mkdir()
    for name, rows in (("train", 60), ("dev", 20)):
        write_tsv(tmp_path / "data" / f"{name}.tsv", rows, seed=rows)
    words = [str(ROOT / "pipelines" / "ksm.py"), teacher, str(tmp_path / "data"), "--task", "sst2", "--layers", "2,4"]
    words += ["--steps", "3", "--seeds", "1", "--top-seeds", "1", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "it")]
    ran = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = {row["method"] for row in json.loads((tmp_path / "it.json").read_text())["methods"]}
    kinds = {"fink", "resk", "feak", "relk", "all-fixed", "random-soft", "random-hard"}
    assert found == kinds | {"ksm-soft", "ksm-hard", "pkd", "kd"} and "Not compared" not in ran.stdout
