"""The training loop, one for every method: phases of fused AdamW over batches, checkpoints, the best dev score kept.

Steps, order, dropout and schedules are functions of the settings and the step number, so that a run that was
interrupted and resumed goes on as if it had not been.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from jaxtyping import Float, Shaped
from torch import Tensor

from hskstore.config import TrainPrecision
from hskstore.interrupts import Interrupts, interrupts
from hskstore.methods import Method, Term
from hskstore.models.device import choose_device
from hskstore.stage_two import processes
from hskstore.stage_two.checkpoint import RUN_VERSION, Checkpoint, Ended, PhaseResult, RunState
from hskstore.stage_two.choosing import Choosing
from hskstore.stage_two.dropout import FastDropout
from hskstore.stage_two.feed import Feed, Prefetched, Share, Step, Supply
from hskstore.stage_two.journal import Journal, mean_losses
from hskstore.stage_two.learner import Learner
from hskstore.stage_two.precision import resolve_precision
from hskstore.stage_two.scores import DevScore, OnScore
from hskstore.stage_two.settings import PhaseSettings
from hskstore.stage_two.trackers import LogTo
from hskstore.watch import Watch, unwatched

WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0
STEPS_BETWEEN_READINGS = {"cpu": 1, "cuda": 10}
"""A GPU that is asked for a number waits until it has worked off all that was queued."""

CHECKPOINT_SECONDS = 60
"""Between the checkpoints of a phase without dev scores, at the end of an epoch: writing one takes as long as some steps."""


def train(
    learner: Learner,
    supply: Supply,
    method: Method,
    phases: Sequence[PhaseSettings],
    *,
    data: str,
    order: str,
    seed: int,
    out: Path,
    score: Callable[[Learner], DevScore] | None,
    on_score: OnScore | None = None,
    worth: Callable[[Learner], float] | None = None,
    precision: TrainPrecision = "auto",
    device: str | None = None,
    log_to: LogTo | None = None,
    watch: Watch = unwatched,
) -> list[PhaseResult]:
    """Train in place, phase after phase, and leave the best weights of the last phase in `learner`.

    A student that gets narrower (`learner.pruning`) does so in the first phase.
    `data` names what is learnt from (the store's digest), `order` the rows alone (their sha256), which with the seed orders the
    batches; `score` is the dev score, asked for at the end of each epoch of a phase that predicts (`on_score` is told), and
    `worth` what a chooser of weights learns by. Checkpoints go to `out`/checkpoint with
    every dev score, else at the end of an epoch once a minute at most, and on Ctrl-C; runs go on from them, and the caller
    removes them with `forget_checkpoint` once the student is saved. `log_to` is where its
    numbers go besides. Under `accelerate launch` or `torchrun` the rows of each
    batch are split among the processes, and the first one writes.

    Raises OptionError where a checkpoint belongs to another run or is damaged, ModelError where the loss is no longer finite.
    """
    place = choose_device(device)
    precision = resolve_precision(precision, place)
    accelerator = processes.start(place, bf16=precision == "bf16")
    learner.to(accelerator.device)
    processes.same_weights(learner, accelerator)
    described = {
        "version": RUN_VERSION,
        "data": data,
        "order": order,
        "seed": seed,
        "precision": precision,
        "loader": supply.name,
        "processes": accelerator.num_processes,
        "method": repr(method),
        "phases": [phase.described() for phase in phases],
        "student": _weights_sha256(learner),
        "pruning": repr(learner.pruning),
    }
    start = learner.copied() if any(phase.choice is not None and phase.choice.learning for phase in phases) else {}
    checkpoint = Checkpoint(out / "checkpoint")
    state = checkpoint.read_state(json.dumps(described, sort_keys=True))
    if state.cuts and learner.pruning is not None:
        learner.pruning.cut(learner.student, state.cuts)  # into shape; the weights are the checkpoint's
    if state.step or state.phase:
        checkpoint.restore_weights(state, learner)
        accelerator.wait_for_everyone()  # of a run whose student is still to be saved, the first process then removes them
    journal = Journal((log_to or LogTo()).begin(out, goes_on=bool(state.step or state.phase)), watch)
    try:
        with interrupts() as held:
            scoring = score, on_score, worth
            run = Run(learner, start, supply, method, phases, order, seed, *scoring, accelerator, checkpoint, journal, held)
            while state.phase < len(phases):
                state = PhaseLoop(run, state).train()
    finally:
        journal.close()
    return state.done


@dataclass(frozen=True)
class Run:
    """What the phases of a run share. `start`: the learner as it was when the run began, where phases begin from it."""

    learner: Learner
    start: Mapping[str, Shaped[Tensor, "..."]]
    supply: Supply
    method: Method
    phases: Sequence[PhaseSettings]
    order: str
    seed: int
    score: Callable[[Learner], DevScore] | None
    on_score: OnScore | None
    worth: Callable[[Learner], float] | None
    accelerator: Accelerator
    checkpoint: Checkpoint
    journal: Journal
    held: Interrupts


class PhaseLoop:
    """One phase of a run, from where the state stands: steps, and now and then what follows one."""

    def __init__(self, run: Run, state: RunState) -> None:
        self.run = run
        self.state = state
        self.settings = run.phases[state.phase]
        self.choosing: Choosing | None = None
        if self.settings.choice is not None:
            chooses = _seed_of(run.seed, state.phase)
            self.choosing = Choosing(run.learner, self.settings.choice, state, run.worth, run.accelerator, chooses)
            if not state.step and run.start:
                run.learner.begin_anew(run.start)
        self.optimizer = _optimizer(run.learner, self.settings.lr)
        if state.step:
            run.checkpoint.restore_optimizer(state, self.optimizer)
        self.taken_up = replace(state)  # its step and its times are those before this process's own
        self.began = self.written = time.monotonic()

    def train(self) -> RunState:
        """To the end of the phase; then the state that the next one begins in. Raises KeyboardInterrupt after a checkpoint."""
        set_seed(self.run.seed + self.state.phase)  # whatever a module draws beside torch's numbers
        self.run.learner.train()
        if self.choosing is not None and not self.state.step:
            self.choosing.begin()
        following = self._finish(self._train())
        if processes.greatest([float(self.run.held.seen is not None)], self.run.accelerator)[0]:
            self.run.held.deliver()
        return following

    def _train(self) -> Ended:
        """Step after step until a limit is met: which one."""
        pulse = STEPS_BETWEEN_READINGS[self.run.accelerator.device.type]
        with closing(Prefetched(self._steps())) as steps:
            for step in steps:
                self._step(step)
                done = self.state.step
                if done == self.settings.steps or step.ends_epoch or done % pulse == 0:
                    ended = self._follow(step, steps.waited)
                    if ended is not None:
                        return ended
        raise AssertionError("the last step ends a phase")

    def _steps(self) -> Generator[Step]:
        """This process's share of the batches that are still to come."""
        run, settings = self.run, self.settings
        share = Share(run.accelerator.process_index, run.accelerator.num_processes)
        feed = Feed(run.supply, settings.batch_size, run.order, run.seed, share)
        steps = feed.steps(reads=settings.read.reads, start=self.state.step, stop=settings.steps)
        if run.accelerator.device.type != "cuda":
            return steps
        return (replace(step, batch=step.batch.pinned()) for step in steps)

    # --- one step

    def _step(self, step: Step) -> None:
        """Gradients of a batch, and what the optimiser makes of them. Its numbers are noted, and stay on the device."""
        scheduled = self.settings.progress(step.number, self.state.seconds)
        self._cut_before(scheduled)
        rate = self.settings.rate_at(scheduled)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        terms, chosen, loss = self._gradients(step)
        torch.nn.utils.clip_grad_norm_(self.run.learner.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.run.journal.note(step.number, rate, terms, loss, chosen)
        self.state.step = step.number + 1
        if self.choosing is not None:
            self.choosing.follow()

    def _cut_before(self, scheduled: int) -> None:
        """Make a student as narrow as it must be before the step that schedules go by."""
        pruning = self.run.learner.pruning
        if pruning is None:
            return
        due = pruning.cuts if self.state.phase else pruning.cuts_before(scheduled, self.settings.steps)
        if due > self.state.cuts:
            pruning.cut(self.run.learner.student, due)
            self.state.cuts = due
            self.optimizer = _optimizer(self.run.learner, self.settings.lr)  # its moments belong to weights that are gone

    def _gradients(self, step: Step) -> tuple[dict[str, Float[Tensor, ""]], dict[str, Float[Tensor, ""]], Float[Tensor, ""]]:
        """The terms of the whole batch, the weights that were chosen for some, and the loss, whose gradients are then those of
        every process."""
        run, phase = self.run, self.settings.phase
        device = run.accelerator.device
        dropout = FastDropout if device.type == "cpu" else nullcontext
        torch.manual_seed(_seed_of(run.seed, self.state.phase, step.number, run.accelerator.process_index))
        batch = step.batch.to(device)
        with run.accelerator.autocast():
            with dropout():
                seen = run.learner(batch, self.settings.read)
            if not step.counts:
                seen, batch = seen.emptied(), batch.emptied()
            terms = run.method(phase, seen, batch, run.learner.aids)  # aids compute as the student does; losses in float32
        chosen = self.choosing.weights(step.number, seen, batch) if self.choosing is not None else {}
        values = of_whole_batch(terms, run.accelerator)
        loss = sum_terms(values, phase.weights, chosen)
        loss.backward()  # type: ignore[no-untyped-call]
        processes.add_gradients(run.learner, run.accelerator)
        pruning = run.learner.pruning
        if pruning is not None and self.state.cuts < pruning.cuts:
            pruning.importance.note(run.learner.student)
        return values, chosen, loss

    # --- what follows a step

    def _follow(self, step: Step, waited: float) -> Ended | None:
        """Read back, tell, score, write a checkpoint where one is due; the limit that is met, if any.

        `waited` is the seconds that this process's steps waited for their batch. Raises KeyboardInterrupt after a checkpoint.
        """
        run, state = self.run, self.state
        name, size = self.settings.phase.name, self.settings.batch_size
        run.journal.read_back(name, state)
        spent = self._spent()
        run.journal.tell(name, state.step * size, self.settings.steps * size, state, self._seconds_left(spent))
        state.seconds, stop = processes.greatest([spent, float(run.held.seen is not None)], run.accelerator)
        state.waited = self.taken_up.waited + waited
        ended = self._limit_met()
        scored = self._scored() if step.ends_epoch or ended is not None else None
        if ended is None and scored and self._patience_is_out():
            ended = "patience"
        if scored and run.on_score is not None and run.accelerator.is_main_process:
            number = len(state.scores) + sum(len(phase.scores) for phase in state.done)
            more = any(later.phase.predicts for later in run.phases[state.phase + 1 :])
            run.on_score(scored, number, ended is not None and not more)
        if ended is not None:
            return ended
        if stop or scored or (step.ends_epoch and time.monotonic() - self.written > CHECKPOINT_SECONDS):
            self._write(replace(state, seconds=self._spent()))
            self.written = time.monotonic()
        if stop:
            run.held.deliver()
        return None

    def _spent(self) -> float:
        """Seconds in this phase, those of earlier processes among them."""
        return self.taken_up.seconds + time.monotonic() - self.began

    def _seconds_left(self, spent: float) -> float:
        """To the end of all phases at the speed of this one, in which so many are `spent`, unless their time is up before."""
        per_step = (spent - self.taken_up.seconds) / (self.state.step - self.taken_up.step)
        left = 0.0
        for index, phase in enumerate(self.run.phases[self.state.phase :]):
            by_steps = (phase.steps - (self.state.step if index == 0 else 0)) * per_step
            by_time = math.inf if phase.seconds is None else max(0.0, phase.seconds - (spent if index == 0 else 0.0))
            left += min(by_steps, by_time)
        return left

    def _limit_met(self) -> Ended | None:
        """Of steps or of time."""
        if self.state.step == self.settings.steps:
            return "steps"
        return "minutes" if self.settings.seconds is not None and self.state.seconds >= self.settings.seconds else None

    def _scored(self) -> DevScore | None:
        """The dev score that the first process finds, where one means anything; the best weights are then written.

        A student that is wider than it is to be is not what was asked for, however good.
        """
        run, state, phase, score = self.run, self.state, self.settings.phase, self.run.score
        pruning = run.learner.pruning
        if score is None or not phase.predicts or (pruning is not None and state.cuts < pruning.cuts):
            return None
        began = time.monotonic()
        with run.accelerator.autocast():
            found = processes.from_first(lambda: score(run.learner))
        state.scored += time.monotonic() - began
        values = {"step": state.step, **found.values}
        state.scores = [*state.scores, values]
        run.journal.write(phase.name, {f"dev_{name}": value for name, value in found.values.items()}, state.step, state)
        if state.best is None or found.value > state.best[found.metric]:
            state.best = values
            if run.accelerator.is_main_process:
                run.checkpoint.write_best(state, run.learner)
        run.accelerator.wait_for_everyone()
        run.learner.train()
        return found

    def _patience_is_out(self) -> bool:
        """Whether too many dev scores in a row were no better than the best one before."""
        state, patience = self.state, self.settings.patience
        return (
            patience is not None and state.best is not None and len(state.scores) - 1 - state.scores.index(state.best) >= patience
        )

    # --- the end

    def _finish(self, ended: Ended) -> RunState:
        """The phase's best weights and its result; the state that the next phase begins in is written."""
        run, state = self.run, self.state
        if self.choosing is not None:
            self.choosing.finish()
        if state.best is not None:
            run.checkpoint.restore_best(state, run.learner)
        result = PhaseResult(
            self.settings.phase.name,
            state.step,
            round(self._spent(), 3),
            mean_losses(state.recent),
            state.scores,
            state.best,
            ended,
            round(state.waited, 3),
            state.schedule,
            round(state.rewarded, 3),
            round(state.scored, 3),
        )
        following = RunState(state.settings, phase=state.phase + 1, cuts=state.cuts, done=[*state.done, result])
        run.accelerator.wait_for_everyone()  # until each has read the best weights, which go with the old checkpoint
        self._write(following)
        return following

    def _write(self, state: RunState) -> None:
        if self.run.accelerator.is_main_process:
            self.run.checkpoint.write(state, self.run.learner, self.optimizer)


def _seed_of(*numbers: int) -> int:
    """A seed of 63 bits for some numbers: dropout is a function of the seed, the phase, the step and the process."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _weights_sha256(learner: Learner) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(learner.state_dict().items()):
        digest.update(f"{name}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_whole_batch(terms: Mapping[str, Term], accelerator: Accelerator) -> dict[str, Float[Tensor, ""]]:
    """Each term's value in the whole batch; of its gradient this process has the part that comes from its own rows."""
    sums = iter(processes.added_up([part for term in terms.values() for part in (term.total, term.count)], accelerator))
    return {name: Term(next(sums), next(sums)).value for name in terms}


def sum_terms(
    terms: Mapping[str, Float[Tensor, ""]],
    weights: Mapping[str, float],
    chosen: Mapping[str, Float[Tensor, ""]] = MappingProxyType({}),
) -> Float[Tensor, ""]:
    """The loss of a step: a phase's weights on the values of a method's terms, which must have the same names; those of some
    terms times what was `chosen` for the step."""
    assert terms.keys() == weights.keys(), (sorted(terms), sorted(weights))
    return torch.stack([weights[name] * chosen.get(name, 1.0) * term for name, term in terms.items()]).sum()


def _optimizer(learner: Learner, lr: float) -> torch.optim.AdamW:
    """Fused AdamW with decoupled decay on matrices; biases and LayerNorm weights do not decay."""
    matrices = [p for p in learner.trained() if p.ndim > 1]
    vectors = [p for p in learner.trained() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=True)
