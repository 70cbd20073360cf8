"""The training loop, one for every method: phases of fused AdamW over batches, checkpoints, the best dev score kept.

Steps, order, dropout and schedules are functions of the settings and the step number, so that a run that was
interrupted and resumed goes on as if it had not been.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from jaxtyping import Float
from torch import Tensor

from hskstore.config import TrainPrecision
from hskstore.methods import Method, Phase, Term
from hskstore.models.device import choose_device
from hskstore.stage_two import processes
from hskstore.stage_two.checkpoint import Checkpoint, Ended, PhaseResult, RunState
from hskstore.stage_two.dropout import FastDropout
from hskstore.stage_two.feed import Feed, Prefetched, Share, Supply
from hskstore.stage_two.journal import Journal, mean_losses, open_log
from hskstore.stage_two.learner import Learner
from hskstore.stage_two.precision import resolve_precision
from hskstore.stage_two.scores import DevScore
from hskstore.stage_two.settings import PhaseSettings
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
    key: str,
    seed: int,
    out: Path,
    score: Callable[[Learner], DevScore] | None,
    precision: TrainPrecision = "auto",
    device: str | None = None,
    watch: Watch = unwatched,
) -> list[PhaseResult]:
    """Train in place, phase after phase, and leave the best weights of the last phase in `learner`.

    A student that gets narrower (`learner.pruning`) does so in the first phase.
    `key` names the data (the store's digest) and orders the batches; `score` is the dev score, asked for at the end of
    each epoch of a phase that predicts. Checkpoints go to `out`/checkpoint with every dev score, else at the end of an epoch
    once a minute at most, and on Ctrl-C; runs go on from them, and the caller removes them with `forget_checkpoint` once the
    student is saved. Under `accelerate launch` or `torchrun` the rows of each batch are split among the processes, and the
    first one writes.

    Raises OptionError where a checkpoint belongs to another run or is damaged, ModelError where the loss is no longer finite.
    """
    place = choose_device(device)
    precision = resolve_precision(precision, place)
    accelerator = processes.start(place, bf16=precision == "bf16")
    learner.to(accelerator.device)
    processes.same_weights(learner, accelerator)
    described = {
        "data": key,
        "seed": seed,
        "precision": precision,
        "loader": supply.name,
        "processes": accelerator.num_processes,
        "method": repr(method),
        "phases": [asdict(phase) for phase in phases],
        "student": _weights_sha256(learner),
        "pruning": repr(learner.pruning),
    }
    checkpoint = Checkpoint(out / "checkpoint")
    state = checkpoint.read_state(json.dumps(described, sort_keys=True))
    if state.cuts:
        _cut(learner, state.cuts)  # into shape; the weights are the checkpoint's
    if state.step or state.phase:
        checkpoint.restore_weights(state, learner)
        accelerator.wait_for_everyone()  # of a run whose student is still to be saved, the first process then removes them
    journal = Journal(open_log(out / "log") if accelerator.is_main_process else None, watch)
    loop = Loop(learner, supply, method, phases, key, seed, score, accelerator, checkpoint, state, journal)
    with processes.interrupts() as held:
        for number in range(state.phase, len(phases)):
            loop.run(number, held)
    journal.close()
    return loop.state.done


@dataclass
class Loop:
    """One run: what its phases share."""

    learner: Learner
    supply: Supply
    method: Method
    phases: Sequence[PhaseSettings]
    key: str
    seed: int
    score: Callable[[Learner], DevScore] | None
    accelerator: Accelerator
    checkpoint: Checkpoint
    state: RunState
    journal: Journal

    def run(self, number: int, held: processes.Interrupts) -> None:
        """One phase, from where the state stands to its end. Raises KeyboardInterrupt after a checkpoint."""
        run, state, learner = self.phases[number], self.state, self.learner
        device, rank = self.accelerator.device, self.accelerator.process_index
        hidden = run.phase.uses_hidden
        set_seed(self.seed + number)  # whatever a module draws beside torch's numbers
        optimizer = _optimizer(learner, run.lr)
        if state.step:
            self.checkpoint.restore_optimizer(state, optimizer)
        learner.train()
        share = Share(rank, self.accelerator.num_processes)
        steps = Feed(self.supply, run.batch_size, self.key, self.seed, share).steps(
            hidden=hidden, start=state.step, stop=run.steps
        )
        made = (replace(step, batch=step.batch.pinned()) for step in steps) if device.type == "cuda" else steps
        dropout = FastDropout if device.type == "cpu" else nullcontext
        pulse = STEPS_BETWEEN_READINGS[device.type]
        before, waited, first, began = state.seconds, state.waited, state.step, time.monotonic()
        ended: Ended | None = None
        written = began
        with closing(Prefetched(made)) as prefetched:
            for step in prefetched:
                scheduled = run.progress(step.number, state.seconds)
                due = _cuts_before(learner, number, scheduled, run.steps)
                if due > state.cuts:
                    _cut(learner, due)
                    state.cuts = due
                    optimizer = _optimizer(learner, run.lr)  # its moments belong to weights that are gone
                rate = run.rate_at(scheduled)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                torch.manual_seed(_seed_of(self.seed, number, step.number, rank))
                batch = step.batch.to(device)
                with self.accelerator.autocast(), dropout():
                    output = learner(batch, hidden=hidden)
                if not step.counts:
                    output, batch = output.emptied(), batch.emptied()
                terms = of_whole_batch(self.method(run.phase, output, batch), self.accelerator)
                loss = sum_terms(terms, run.phase.weights)
                loss.backward()  # type: ignore[no-untyped-call]
                processes.add_gradients(learner, self.accelerator)
                if learner.pruning is not None and due < learner.pruning.cuts:
                    learner.pruning.importance.note(learner.student)
                torch.nn.utils.clip_grad_norm_(learner.parameters(), CLIP_NORM)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                self.journal.note(step.number, rate, terms, loss)
                state.step = step.number + 1
                last = state.step == run.steps
                if not (last or step.ends_epoch or state.step % pulse == 0):
                    continue
                self.journal.read_back(run.phase.name, state)
                spent = before + time.monotonic() - began
                left = self._seconds_left(number, spent, (spent - before) / (state.step - first))
                self.journal.tell(run.phase.name, state.step * run.batch_size, run.steps * run.batch_size, state, left)
                state.seconds, stop = processes.greatest([spent, float(held.seen is not None)], self.accelerator)
                state.waited = waited + prefetched.waited
                late = run.seconds is not None and state.seconds >= run.seconds
                ended = "steps" if last else "minutes" if late else None
                scored = (step.ends_epoch or ended) and run.phase.predicts and self.score and _has_its_shape(learner, due)
                if scored:
                    self._note_score(run.phase)
                    learner.train()
                    if ended is None and run.patience is not None and _worse(state) >= run.patience:
                        ended = "patience"
                if ended is not None:
                    break
                if stop or scored or (step.ends_epoch and time.monotonic() - written > CHECKPOINT_SECONDS):
                    self._write(optimizer)
                    written = time.monotonic()
                if stop:
                    held.deliver()
        assert ended is not None
        self._finish(number, ended, optimizer)
        if processes.greatest([float(held.seen is not None)], self.accelerator)[0]:
            held.deliver()

    def _finish(self, number: int, ended: Ended, optimizer: torch.optim.AdamW) -> None:
        """A phase's result, and the state that the next one begins in."""
        state = self.state
        if state.best is not None:
            self.checkpoint.restore_best(state, self.learner)
        result = PhaseResult(
            self.phases[number].phase.name,
            state.step,
            round(state.seconds, 3),
            mean_losses(state.recent),
            state.scores,
            state.best,
            ended,
            round(state.waited, 3),
        )
        self.state = RunState(state.settings, phase=number + 1, cuts=state.cuts, done=[*state.done, result])
        self.accelerator.wait_for_everyone()  # until each has read the best weights, which go with the old checkpoint
        self._write(optimizer)

    def _write(self, optimizer: torch.optim.AdamW) -> None:
        if self.accelerator.is_main_process:
            self.checkpoint.write(self.state, self.learner, optimizer)

    def _note_score(self, phase: Phase) -> None:
        """The dev score as the first process finds it; the best weights are written."""
        state, score = self.state, self.score
        assert score is not None
        with self.accelerator.autocast():
            found = processes.from_first(lambda: score(self.learner))
        values = {"step": state.step, **found.values}
        state.scores = [*state.scores, values]
        self.journal.write(phase.name, {f"dev_{name}": value for name, value in found.values.items()}, state.step)
        if state.best is None or found.value > state.best[found.metric]:
            state.best = values
            if self.accelerator.is_main_process:
                self.checkpoint.write_best(state, self.learner)
        self.accelerator.wait_for_everyone()

    def _seconds_left(self, number: int, spent: float, per_step: float) -> float:
        """To the end of all phases at the speed of this one, in which so many are `spent`, unless their time is up before."""
        left = 0.0
        for index, run in enumerate(self.phases[number:]):
            by_steps = (run.steps - (self.state.step if index == 0 else 0)) * per_step
            by_time = math.inf if run.seconds is None else max(0.0, run.seconds - (spent if index == 0 else 0.0))
            left += min(by_steps, by_time)
        return left


def _seed_of(*numbers: int) -> int:
    """A seed of 63 bits for some numbers: dropout is a function of the seed, the phase, the step and the process."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _worse(state: RunState) -> int:
    """Dev scores since the best one."""
    return 0 if state.best is None else len(state.scores) - 1 - state.scores.index(state.best)


def _cuts_before(learner: Learner, phase: int, step: int, steps: int) -> int:
    """Cuts that a student must have had before a step."""
    if learner.pruning is None:
        return 0
    return learner.pruning.cuts if phase else learner.pruning.cuts_before(step, steps)


def _cut(learner: Learner, cuts: int) -> None:
    assert learner.pruning is not None
    learner.pruning.cut(learner.student, cuts)


def _has_its_shape(learner: Learner, cuts: int) -> bool:
    """Whether a student is as narrow as it is to be: what is wider is not what was asked for, however good."""
    return learner.pruning is None or cuts == learner.pruning.cuts


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


def sum_terms(terms: Mapping[str, Float[Tensor, ""]], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """The loss of a step: a phase's weights on the values of a method's terms, which must have the same names."""
    assert terms.keys() == weights.keys(), (sorted(terms), sorted(weights))
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def _optimizer(learner: Learner, lr: float) -> torch.optim.AdamW:
    """Fused AdamW with decoupled decay on matrices; biases and LayerNorm weights do not decay."""
    matrices = [p for p in learner.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in learner.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=True)
