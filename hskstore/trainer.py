"""The training loop, one for every method: phases of fused AdamW over batches, checkpoints, the best dev score kept.

Steps, order, dropout and schedules are functions of the settings and the step number, so that a run that was
interrupted and resumed goes on as if it had not been.
"""

import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor, nn

from hskstore.batch import Batch, HiddenTargets, StudentOutput
from hskstore.checkpoint import Checkpoint, RunState, written
from hskstore.classifiers import choose_device, run_model
from hskstore.config import DEFAULT_WARMUP, TrainPrecision
from hskstore.errors import ModelError
from hskstore.loader import TrainingRows, epoch_batches
from hskstore.methods import Method, Phase
from hskstore.pruning import GradualPruning
from hskstore.watch import Watch, unwatched

WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0
RECENT_STEPS = 50
"""Steps whose mean losses a result reports."""


@dataclass(frozen=True)
class PhaseSettings:
    """A phase with its numbers: `steps` of `batch_size` rows at peak rate `lr`."""

    phase: Phase
    lr: float
    batch_size: int
    steps: int
    warmup: float = DEFAULT_WARMUP

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if self.phase.schedule == "constant":
            return self.lr
        rising = round(self.warmup * self.steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * (self.steps - step) / max(1, self.steps - rising)


@dataclass(frozen=True)
class DevScore:
    """A dev score: which metric decided, and all of them."""

    metric: str
    values: dict[str, float]

    @property
    def value(self) -> float:
        return self.values[self.metric]


@dataclass(frozen=True)
class PhaseResult:
    """What a phase did. `best` is None where the phase does not predict; `losses` are means over its last steps."""

    name: str
    steps: int
    seconds: float
    losses: dict[str, float]
    scores: list[dict[str, float]]
    best: dict[str, float] | None


class Learner(nn.Module):
    """A student with what its training needs and export drops: the projection, and the pruning if it gets narrower.

    `layers` are the student layers whose hidden states are learnt, lowest first; the projection is one Linear with bias
    shared by all of them, or one per layer, from the student's width `own` to the teacher's `width`; None where they are
    the same.
    """

    def __init__(
        self,
        student: Any,
        *,
        layers: Sequence[int] = (),
        own: int | None = None,
        width: int | None = None,
        per_layer: bool = False,
        pruning: GradualPruning | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.layers = tuple(layers)
        self.pruning = pruning
        self.projection: nn.ModuleList | None = None
        if layers and own is not None and width is not None and width != own:
            self.projection = nn.ModuleList(nn.Linear(own, width) for _ in range(len(layers) if per_layer else 1))

    def forward(self, batch: Batch, *, hidden: bool = False) -> StudentOutput:
        output = run_model(self.student, batch.input_ids, batch.token_type_ids, batch.attention_mask, hidden=hidden)
        if output.hidden_states is None or batch.hidden is None:
            return StudentOutput(output.logits, None)
        states = [output.hidden_states[layer] for layer in self.layers]
        return StudentOutput(output.logits, self.project(states, batch.hidden))

    def project(self, states: Sequence[Tensor], targets: HiddenTargets) -> Tensor:
        """Each layer's states [batch, token, width] at the kept positions, in the teacher's width: float32."""
        projected: list[Tensor] = []
        for index, (state, position) in enumerate(zip(states, targets.position, strict=True)):
            kept = state.gather(1, position[..., None].expand(-1, -1, state.shape[-1]))
            if self.projection is not None:
                kept = self.projection[index if len(self.projection) > 1 else 0](kept)
            projected.append(kept.float())
        return torch.stack(projected)


def train(
    learner: Learner,
    rows: TrainingRows,
    method: Method,
    phases: Sequence[PhaseSettings],
    *,
    key: str,
    seed: int,
    out: Path,
    score: Callable[[Learner], DevScore] | None,
    precision: TrainPrecision = "fp32",
    device: str | None = None,
    watch: Watch = unwatched,
) -> list[PhaseResult]:
    """Train in place, phase after phase, and leave the best weights of the last phase in `learner`.

    A student that gets narrower (`learner.pruning`) does so in the first phase.
    `key` names the data (the store's digest) and orders the batches; `score` is the dev score, asked for at the end of
    each epoch of a phase that predicts. Checkpoints go to `out`/checkpoint after every epoch and on Ctrl-C, and are
    resumed from; the caller removes them with `forget_checkpoint` once the student is saved. Raises OptionError where a
    checkpoint belongs to another run, ModelError where the loss is no longer finite.
    """
    place = choose_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    # One process may train twice with different precisions; accelerate keeps the first one in a global.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", cpu=place.type == "cpu")
    described = {
        "data": key,
        "seed": seed,
        "precision": precision,
        "method": repr(method),
        "phases": [asdict(phase) for phase in phases],
        "student": _weights_sha256(learner),
        "inputs": hashlib.sha256(rows.input_ids.tobytes()).hexdigest(),
        "pruning": repr(learner.pruning),
    }
    checkpoint = Checkpoint(out / "checkpoint")
    state = checkpoint.read_state(json.dumps(described, sort_keys=True))
    learner.to(accelerator.device)
    if state.cuts:
        _cut(learner, state.cuts)  # into shape; the weights are the checkpoint's
    if state.step or state.phase:
        checkpoint.restore_weights(learner)
    log = _open_log(out / "log")
    with _interrupts() as interrupted:
        for number, run in enumerate(phases):
            if number < state.phase:
                continue
            set_seed(seed + number)
            accelerator.free_memory()  # or it would keep the phase before's moments
            optimizer = _optimizer(learner, run.lr)
            model, prepared = accelerator.prepare(learner, optimizer)
            if state.step:
                checkpoint.restore_optimizer(optimizer)
            began = time.monotonic() - state.seconds
            model.train()
            for step, batch_rows, epoch_ends in _steps(rows, run, key, seed, start=state.step):
                due = _cuts_before(learner, number, step, run.steps)
                if due > state.cuts:
                    _cut(learner, due)
                    state.cuts = due
                    accelerator.free_memory()
                    optimizer = _optimizer(learner, run.lr)  # its moments belong to weights that are gone
                    model, prepared = accelerator.prepare(learner, optimizer)
                rate = run.rate_at(step)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                batch = rows.batch(batch_rows, hidden=run.phase.uses_hidden).to(accelerator.device)
                with accelerator.autocast():
                    output = model(batch, hidden=run.phase.uses_hidden)
                terms = method(run.phase, output, batch)
                loss = sum_terms(terms, run.phase.weights)
                _check_loss(loss, run.phase, step)
                accelerator.backward(loss)
                if learner.pruning is not None and due < learner.pruning.cuts:
                    learner.pruning.importance.note(learner.student)
                accelerator.clip_grad_norm_(model.parameters(), CLIP_NORM)
                prepared.step()
                prepared.zero_grad(set_to_none=True)
                losses = {name: float(term.detach()) for name, term in terms.items()}
                state.step, state.seconds = step + 1, time.monotonic() - began
                state.recent = [*state.recent[1 - RECENT_STEPS :], losses]
                if log is not None:
                    _log_values(log, run.phase, {**losses, "rate": rate}, step)
                note = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
                watch(run.phase.name, state.step * run.batch_size, run.steps * run.batch_size, note)
                last = state.step == run.steps
                if (epoch_ends or last) and run.phase.predicts and score is not None and _has_its_shape(learner, due):
                    _note_score(score(learner), state, checkpoint, learner, log, run.phase)
                    model.train()
                if not last and (epoch_ends or interrupted()):
                    checkpoint.write(state, learner, optimizer)
                if interrupted() and not last:
                    raise KeyboardInterrupt
            if state.best is not None:
                checkpoint.restore_best(learner)
            means = {name: sum(each[name] for each in state.recent) / len(state.recent) for name in state.recent[0]}
            result = PhaseResult(run.phase.name, run.steps, round(state.seconds, 3), means, state.scores, state.best)
            state = RunState(state.settings, phase=number + 1, cuts=state.cuts, done=[*state.done, asdict(result)])
            checkpoint.write(state, learner, optimizer)
            if interrupted():
                raise KeyboardInterrupt
    if log is not None:
        with written(out / "log"):
            log.close()
    return [PhaseResult(**done) for done in state.done]


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


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back until the loop asks for it between two steps; a second Ctrl-C ends at once.

    A checkpoint is then of a whole step, and a resumed run is the uninterrupted one bit for bit.
    """
    seen = False

    def note(number: int, frame: Any) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: seen
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, before)


def _weights_sha256(learner: Learner) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(learner.state_dict().items()):
        digest.update(f"{name}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sum_terms(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The loss of a step: a phase's weights on a method's terms, which must have the same names."""
    assert terms.keys() == weights.keys(), (sorted(terms), sorted(weights))
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def _steps(rows: TrainingRows, run: PhaseSettings, key: str, seed: int, *, start: int) -> Iterator[tuple[int, Any, bool]]:
    """(step, rows of its batch, whether it ends an epoch) from step `start` to the phase's last."""
    step, epoch = 0, 0
    while step < run.steps:
        batches = epoch_batches(rows.n_tokens, batch_size=run.batch_size, key=key, seed=seed, epoch=epoch)
        for index, batch in enumerate(batches):
            if step >= run.steps:
                return
            if step >= start:
                yield step, batch, index == len(batches) - 1
            step += 1
        epoch += 1


def _optimizer(learner: Learner, lr: float) -> torch.optim.AdamW:
    """Fused AdamW with decoupled decay on matrices; biases and LayerNorm weights do not decay."""
    matrices = [p for p in learner.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in learner.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def _check_loss(loss: Tensor, phase: Phase, step: int) -> None:
    if not torch.isfinite(loss):
        raise ModelError(
            f"the loss of phase {phase.name} is not finite at step {step}: lower --lr, or train with --precision fp32"
        )


def _note_score(score: DevScore, state: RunState, checkpoint: Checkpoint, learner: Learner, log: Any, phase: Phase) -> None:
    values = {"step": state.step, **score.values}
    state.scores = [*state.scores, values]
    if log is not None:
        _log_values(log, phase, {f"dev_{name}": value for name, value in score.values.items()}, state.step)
    if state.best is None or score.value > state.best[score.metric]:
        state.best = values
        checkpoint.write_best(learner)


def _log_values(log: Any, phase: Phase, values: Mapping[str, float], step: int) -> None:
    with written(Path(log.log_dir)):
        for name, value in values.items():
            log.add_scalar(f"{phase.name}/{name}", value, step)


def _open_log(folder: Path) -> Any:
    """A TensorBoard writer; None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    with written(folder):
        return SummaryWriter(str(folder))
