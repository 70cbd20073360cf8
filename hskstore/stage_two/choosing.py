"""The weights of terms, chosen anew at every step alike on every process, and the rewards that the chooser learns by."""

import time
from collections.abc import Callable
from typing import cast

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from hskstore.losses import whole_batch
from hskstore.methods.batch import Batch
from hskstore.methods.contract import Chooser, LearningChooser, State
from hskstore.models.observe import Seen
from hskstore.stage_two import processes
from hskstore.stage_two.checkpoint import RunState
from hskstore.stage_two.learner import Learner
from hskstore.stage_two.settings import Choice


class Choosing:
    """What a phase asks of the learner's chooser. `worth` is how good the student is, as the first process finds it."""

    def __init__(
        self,
        learner: Learner,
        choice: Choice,
        state: RunState,
        worth: Callable[[Learner], float] | None,
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        self._learner = learner
        self._chooser = cast(Chooser, learner.chooser)
        self._learns = cast(LearningChooser, learner.chooser) if choice.learning else None
        self._taken: Float[Tensor, " term"] = torch.empty(0)
        self._choice = choice
        self._state = state
        self._worth = worth
        self._accelerator = accelerator
        self._seed = seed

    @torch.no_grad()
    def weights(self, number: int, seen: Seen, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """What the weights of the chosen terms are multiplied by at this step, on every process those of the first one."""
        state = self._state_of(seen, batch)
        with torch.enable_grad():  # it may learn from what it earned before
            found = self._chooser.weigh(number, state, seed=self._seed, learning=self._choice.learning)
        self._taken = processes.first_ones(found.to(self._accelerator.device), self._accelerator)
        return dict(zip(self._choice.terms, self._taken, strict=True))

    def _state_of(self, seen: Seen, batch: Batch) -> State | None:
        """What the chooser looks at, of this process's rows and those of the others."""
        want = self._choice.want
        if want is None:
            return None
        (pair,) = want.pairs
        own = (seen.hidden[pair.student][:, 0].float(), batch[want].values[0].float())
        student, teacher = (processes.in_batch_order(whole_batch(each), self._accelerator) for each in own)
        return student, teacher

    def begin(self) -> None:
        """The phase begins."""
        if self._learns is not None:
            self._learns.begin(self._worth_now)

    def follow(self) -> None:
        """A step is done."""
        if self._learns is not None:
            self._learns.follow(self._state.step, self._taken, self._worth_now)

    def finish(self) -> None:
        """The last step is done."""
        if self._learns is not None:
            self._learns.finish(self._state.step, self._worth_now)

    def _worth_now(self) -> float:
        worth, began = self._worth, time.monotonic()
        assert worth is not None, "a chooser learns by the worth of a student"
        with self._accelerator.autocast():
            found = processes.from_first(lambda: worth(self._learner))
        self._learner.train()
        self._state.rewarded += time.monotonic() - began
        return found
