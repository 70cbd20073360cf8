"""An actor and a critic that weigh kinds of knowledge at every step (KSM): their networks, and how they are trained."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, pad

from hskstore.methods.contract import State
from hskstore.methods.selection import Selection

FEATURES, FEATURE_HIDDEN, HIDDEN = 8, 64, 256
"""Outputs of a feature network and its hidden size, which the paper does not give; hidden size of actor and critic."""

UPDATES = 4
"""Of the networks from each reward."""

BOUND, BOUNDING = 2.5, 0.1
"""An output of the actor costs BOUNDING x the square of what is beyond +-BOUND: a sigmoid that is shut could not open again."""

NOISE = 2.0
"""Standard deviation of what is added to the actor's outputs, before the sigmoid, while the selector learns."""

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Selector(nn.Module):
    """Weights of `terms` for batches of at most `batch` rows, from [CLS] vectors of a student and a teacher of these `widths`:
    section 5 of Wang et al., EMNLP Findings 2023. A batch of fewer rows is filled with features of zero.

    The paper does not say how an action is sampled while it learns: noise that stays the same between two rewards is added to the
    actor's outputs, which are held near +-BOUND. Nor does it say how often a reward is learnt from: `UPDATES` times.

    What it remembers between two steps while it learns, the moments of its optimisers with it, is in its buffers: its state_dict
    is all of it. It is trained when the next state is known, at the step after a reward.
    """

    student_cls: Float[Tensor, "step batch own"]
    teacher_cls: Float[Tensor, "step batch other"]
    rows: Int[Tensor, " step"]
    actions: Float[Tensor, "step term"]
    actions_before: Float[Tensor, "step term"]
    worth: Float[Tensor, ""]
    earned: Float[Tensor, ""]

    def __init__(self, terms: Sequence[str], batch: int, widths: tuple[int, int], options: Selection, *, learns: bool) -> None:
        super().__init__()
        self.terms, self.batch, self.widths, self.options = tuple(terms), batch, widths, options
        state, count, steps = 2 * FEATURES * batch, len(self.terms), options.phase_steps
        self.student_features = _mlp(widths[0], FEATURE_HIDDEN, FEATURES)
        self.teacher_features = _mlp(widths[1], FEATURE_HIDDEN, FEATURES)
        self.actor = _mlp(state, HIDDEN, HIDDEN, count)
        self.critic = _mlp(state + count, HIDDEN, HIDDEN, 1)
        if not learns:
            return
        remembered = {
            "student_cls": torch.zeros(steps, batch, widths[0]),
            "teacher_cls": torch.zeros(steps, batch, widths[1]),
            "rows": torch.zeros(steps, dtype=torch.long),
            "actions": torch.zeros(steps, count),
            "actions_before": torch.zeros(steps, count),
            "worth": torch.zeros(()),
            "earned": torch.zeros(()),
        }
        for name, parameter in self.named_parameters():
            for moment in MOMENTS:
                remembered[_moment(name, moment)] = torch.zeros(()) if moment == "step" else torch.zeros_like(parameter)
        for name, tensor in remembered.items():
            self.register_buffer(name, tensor)

    # --- acting

    def weigh(self, number: int, state: State | None, *, seed: int, learning: bool) -> Float[Tensor, " term"]:
        """The action of Equation 3, or of Equation 5. While it learns, actions are drawn around it, alike in a phase of the
        selector, and what was earned in the phase before is learnt from."""
        assert state is not None
        steps = self.options.phase_steps
        at = number % steps
        if learning and at == 0 and number:
            self._learn(steps, explored=number > steps, following=state)
        with torch.no_grad():
            raw = self.actor(self._state(state))[0]
            if learning:
                raw = raw + NOISE * torch.from_numpy(_draws(seed, number // steps).standard_normal(len(raw))).to(raw)
            action = self._taken(raw.sigmoid())
        if learning:
            for remembered, own in zip((self.student_cls, self.teacher_cls), state, strict=True):
                remembered[at, : len(own)] = own
            self.rows[at] = len(state[0])
        return action

    def _taken(self, soft: Float[Tensor, "*step term"]) -> Float[Tensor, "*step term"]:
        return soft if self.options.action == "soft" else hard(soft, self.options.threshold)

    # --- learning

    def begin(self, worth: Callable[[], float]) -> None:
        """A student is at its start."""
        self.worth.fill_(worth())

    def follow(self, done: int, taken: Float[Tensor, " term"], worth: Callable[[], float]) -> None:
        """So many steps are done: the action, and, at the end of a phase of the selector, what was earned in it."""
        self.actions[(done - 1) % self.options.phase_steps] = taken
        if done % self.options.phase_steps == 0:
            self._earn(worth())

    def finish(self, done: int, worth: Callable[[], float]) -> None:
        """A student's training has ended; no state follows."""
        steps = self.options.phase_steps
        if done % steps:
            self._earn(worth())
        self._learn((done - 1) % steps + 1, explored=done > steps, following=None)

    def _earn(self, worth: float) -> None:
        self.earned.copy_(worth - self.worth)
        self.worth.fill_(worth)

    def _learn(self, steps: int, *, explored: bool, following: State | None) -> None:
        """From the phase of the selector that lies in the buffers: line 13 of Algorithm 2."""
        actions = self.actions[:steps]
        novelty = self._novelty(actions) if explored and self.options.exploration_scale else None
        critic = self._optimizer("critic", "teacher_features")
        actor = self._optimizer("actor", "student_features")
        for _ in range(UPDATES):
            student, teacher = self._features(self.student_cls[:steps], self.teacher_cls[:steps], self.rows[:steps])
            value = self._value(student.detach(), teacher, actions)
            later = self._later(following)
            _descend(critic, critic_loss(value, later, self.earned, novelty, self.options.discount))
            student, teacher = self._features(self.student_cls[:steps], self.teacher_cls[:steps], self.rows[:steps])
            raw = self.actor(_joined(student, teacher.detach()))
            wanted = raw.sigmoid()
            if self.options.action == "hard":
                wanted = wanted + (hard(wanted, self.options.threshold) - wanted).detach()
            beyond = (raw.abs() - BOUND).relu().square().mean()
            _descend(actor, BOUNDING * beyond - self._value(student.detach(), teacher.detach(), wanted).mean())
        self.actions_before.copy_(self.actions)

    def _novelty(self, actions: Float[Tensor, "step term"]) -> Float[Tensor, " step"]:
        """The exploration reward: Equation 12, or Equation 13."""
        found = unlike if self.options.action == "soft" else unrepeated
        return self.options.exploration_scale * found(actions, self.actions_before)

    def _later(self, following: State | None) -> Float[Tensor, ""]:
        """The value of what follows, by the actor as it is; of nothing it is 0."""
        if following is None:
            return self.earned.new_zeros(())
        with torch.no_grad():
            seen = self._state(following)
            found: Tensor = self.critic(torch.cat([seen, self._taken(self.actor(seen).sigmoid())], dim=1))[0, 0]
        return found

    # --- networks

    def _state(self, state: State) -> Float[Tensor, "1 state"]:
        """Equation 2: the features of all rows of a batch, one after the other."""
        own, theirs = (pad(each.float(), (0, 0, 0, self.batch - len(each)))[None] for each in state)
        return _joined(*self._features(own, theirs, torch.full((1,), len(state[0]), device=own.device)))

    def _features(
        self, own: Float[Tensor, "step batch own"], theirs: Float[Tensor, "step batch other"], rows: Int[Tensor, " step"]
    ) -> tuple[Float[Tensor, "step batch feature"], Float[Tensor, "step batch feature"]]:
        there = torch.arange(self.batch, device=rows.device) < rows[:, None]
        student, teacher = self.student_features(own), self.teacher_features(theirs)
        return torch.where(there[..., None], student, 0), torch.where(there[..., None], teacher, 0)

    def _value(
        self,
        student: Float[Tensor, "step batch feature"],
        teacher: Float[Tensor, "step batch feature"],
        actions: Float[Tensor, "step term"],
    ) -> Float[Tensor, " step"]:
        """What the critic says of actions in these states."""
        found: Tensor = self.critic(torch.cat([_joined(student, teacher), actions], dim=1))[:, 0]
        return found

    def _optimizer(self, *parts: str) -> torch.optim.Adam:
        """Adam of some networks, whose moments are this module's buffers."""
        mine = {name: each for name, each in self.named_parameters() if name.partition(".")[0] in parts}
        optimizer = torch.optim.Adam(mine.values(), lr=self.options.selector_lr, fused=True)
        for name, parameter in mine.items():
            optimizer.state[parameter] = {moment: getattr(self, _moment(name, moment)) for moment in MOMENTS}
        return optimizer


class RandomWeights(nn.Module):
    """Weights drawn evenly from 0 to 1, or, hard, terms taken in by the flip of a coin, at least one: Random-Soft and
    Random-Hard of section 6.2."""

    def __init__(self, terms: Sequence[str], *, hard: bool) -> None:
        super().__init__()
        self.terms, self.hard = tuple(terms), hard

    def weigh(self, number: int, state: State | None, *, seed: int, learning: bool) -> Float[Tensor, " term"]:
        drawn = torch.from_numpy(_draws(seed, number).random(len(self.terms), dtype=np.float32))
        return hard(drawn, 0.5) if self.hard else drawn


def hard(soft: Float[Tensor, "*step term"], threshold: float) -> Float[Tensor, "*step term"]:
    """Equation 5: 1 for each term whose share is at least `threshold`, else 0; where none is, the largest is taken in."""
    largest = soft == soft.amax(dim=-1, keepdim=True)
    return ((soft >= threshold) | largest).to(soft.dtype)


def targets(
    value: Float[Tensor, " step"], later: Float[Tensor, ""], reward: Float[Tensor, " step"], discount: float
) -> Float[Tensor, " step"]:
    """Equation 8: what each step's reward, discounted from the beginning of its phase, and the value that follows make."""
    following = torch.cat([value[1:], later[None]])
    return discount ** torch.arange(len(value), device=value.device) * reward + following


def step_loss(
    value: Float[Tensor, " step"], later: Float[Tensor, ""], reward: Float[Tensor, " step"], discount: float
) -> Float[Tensor, ""]:
    """Equation 9, mean over steps: values against their targets, which have no gradient."""
    return (value - targets(value, later, reward, discount).detach()).square().mean()


def phase_loss(
    value: Float[Tensor, " step"], later: Float[Tensor, ""], reward: Float[Tensor, ""], discount: float
) -> Float[Tensor, ""]:
    """Equation 10 of one phase: its reward against the sum of those that the values let expect (Equation 11)."""
    following = torch.cat([value[1:], later[None]])
    expected = (value - following) / discount ** torch.arange(len(value), device=value.device)
    return (reward - expected.sum()).square()


def critic_loss(
    value: Float[Tensor, " step"],
    later: Float[Tensor, ""],
    earned: Float[Tensor, ""],
    novelty: Float[Tensor, " step"] | None,
    discount: float,
) -> Float[Tensor, ""]:
    """Of one phase: Equation 10 of what was earned in it and Equation 9 of the novelty of its steps, if they explored.

    Where the phase is one step, both losses would set the same difference of values. Both rewards are then that step's, and one
    loss of their sum is the usual actor-critic: Equation 9.
    """
    if len(value) == 1:
        return step_loss(value, later, earned[None] if novelty is None else earned + novelty, discount)
    loss = phase_loss(value, later, earned, discount)
    return loss if novelty is None else loss + step_loss(value, later, novelty, discount)


def unlike(actions: Float[Tensor, "step term"], before: Float[Tensor, "step_before term"]) -> Float[Tensor, " step"]:
    """Equation 12 without its scale: 1 less the mean cosine of an action with those of the phase before."""
    return 1 - cosine_similarity(actions[:, None], before[None], dim=-1).mean(dim=1)


def unrepeated(actions: Float[Tensor, "step term"], before: Float[Tensor, "step_before term"]) -> Float[Tensor, " step"]:
    """Equation 13 without its scale: 1 less the share of the phase before that took the same action."""
    return 1 - (actions[:, None] == before[None]).all(dim=-1).to(actions.dtype).mean(dim=1)


def _mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for own, following in pairwise(sizes):
        layers += [nn.Linear(own, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _joined(student: Tensor, teacher: Tensor) -> Tensor:
    return torch.cat([student.flatten(1), teacher.flatten(1)], dim=1)


def _moment(name: str, moment: str) -> str:
    return f"{moment}_{name.replace('.', '_')}"


def _descend(optimizer: torch.optim.Optimizer, loss: Float[Tensor, ""]) -> None:
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()


def _draws(*seeds: int) -> np.random.Generator:
    return np.random.default_rng(seeds)
