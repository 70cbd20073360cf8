"""Distillation with the teacher in the loop: what hskstore's stage two is measured against.

As the public code of Marginal Utility Diminishes (ACL 2021) goes about it, written of transformers' own parts: the teacher
runs at every step, every row is padded to the greatest length, float32, plain AdamW, batches in a shuffled order. The teacher's
attention is eager where it ranks tokens, for only so are there attentions to see, and SDPA where its logits alone are needed.
What is learnt is what `hsk extract --keep 1,9,0.1` stores, and in the same two phases as `hsk distill --method mud` learns it.

    python benchmarks/online_opponent.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2_small --student runs/l3 \
        --steps 1000 --seed 0 --save runs/online --out runs/online.json

The student is a folder that `hsk student slice` or `hsk student new` made. Two thirds of the steps are of the hidden phase, one
third of the prediction phase, of which the weights with the best dev accuracy at the end of an epoch are kept.
"""

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from hskstore.config import resolve
from hskstore.layers import LayerPair, default_top_layer, layer_pairs
from hskstore.losses import hidden_mse, soft_cross_entropy
from hskstore.text.dataset import read_dataset
from hskstore.text.tasks import get_task

LENGTH, WIDTH = 9, 0.1
WEIGHT_DECAY, CLIP_NORM, WARMUP = 0.01, 1.0, 0.1
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Padded:
    """Rows [N, token], every one padded to the same length; `special` True = a separator."""

    input_ids: Tensor
    token_type_ids: Tensor
    attention_mask: Tensor
    special: Tensor

    def __len__(self) -> int:
        return len(self.input_ids)

    def take(self, rows: Any) -> "Padded":
        return Padded(*(tensor[rows] for tensor in (self.input_ids, self.token_type_ids, self.attention_mask, self.special)))

    def inputs(self) -> dict[str, Tensor]:
        return {
            "input_ids": self.input_ids,
            "token_type_ids": self.token_type_ids,
            "attention_mask": self.attention_mask,
        }


@dataclass(frozen=True)
class Target:
    """What a batch's student layer is to learn: [1, batch, token] and, `values`, [1, batch, token, width]."""

    position: Tensor
    token_kept: Tensor
    values: Tensor


class OnlineOpponent:
    """A student beside its teacher; a step takes a batch and a rate, and says the loss.

    A projection is learnt where their widths differ. `fused` is of the optimiser.
    """

    def __init__(self, teacher: Any, student: Any, *, length: int = LENGTH, width: float = WIDTH, fused: bool = False) -> None:
        self.teacher = teacher.eval()
        self.student = student.train()
        self.length = length
        self.pair = pair_of(teacher.config.num_hidden_layers, student.config.num_hidden_layers)
        self.units = resolve(width, teacher.config.hidden_size)
        own, wanted = student.config.hidden_size, teacher.config.hidden_size
        self.projection = nn.Linear(own, wanted) if own != wanted else None
        self.fused = fused
        self.begin_phase()

    def begin_phase(self) -> None:
        """A new optimiser; the rate is each step's own."""
        self.optimizer = torch.optim.AdamW(groups(self.parameters()), lr=0.0, fused=self.fused or None)

    def parameters(self) -> list[nn.Parameter]:
        projection = [] if self.projection is None else list(self.projection.parameters())
        return [*self.student.parameters(), *projection]

    def hidden_step(self, batch: Padded, rate: float) -> float:
        return self.update(self.hidden_loss(batch, self.hidden_target(batch)), rate)

    def prediction_step(self, batch: Padded, rate: float) -> float:
        return self.update(self.prediction_loss(batch, self.teacher_logits(batch)), rate)

    @torch.no_grad()
    def hidden_target(self, batch: Padded) -> Target:
        """The best tokens of one teacher layer, of each the largest units; the other units are zero."""
        attend(self.teacher, "eager")
        output = self.teacher(**batch.inputs(), output_hidden_states=True, output_attentions=True)
        score = output.attentions[self.pair.rank - 1][:, :, 0].mean(dim=1)
        return kept(output.hidden_states[self.pair.teacher], score, batch, length=self.length, units=self.units)

    def hidden_loss(self, batch: Padded, target: Target) -> Tensor:
        output = self.student(**batch.inputs(), output_hidden_states=True)
        state = gathered(output.hidden_states[self.pair.student], target.position[0])
        if self.projection is not None:
            state = self.projection(state)
        return hidden_mse(state.float()[None], target.values, token_kept=target.token_kept).value

    @torch.no_grad()
    def teacher_logits(self, batch: Padded) -> Tensor:
        attend(self.teacher, "sdpa")
        logits: Tensor = self.teacher(**batch.inputs()).logits
        return logits

    def prediction_loss(self, batch: Padded, logits: Tensor) -> Tensor:
        return soft_cross_entropy(self.student(**batch.inputs()).logits.float(), logits, temperature=1.0).value

    def update(self, loss: Tensor, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def pair_of(teacher_layers: int, student_layers: int) -> LayerPair:
    """The topmost student layer, the teacher layer that guides it and the one whose attention ranks its tokens."""
    top = default_top_layer(teacher_layers)
    (pair,) = layer_pairs(1, student_layers=student_layers, teacher_layers=teacher_layers, top_layer=top)
    return pair


def kept(hidden: Tensor, score: Tensor, batch: Padded, *, length: int, units: int) -> Target:
    """Tokens by `score` [batch, token], padding and separators never; units by magnitude, so many of every vector."""
    admitted = batch.attention_mask.bool() & ~batch.special
    best = score.masked_fill(~admitted, -torch.inf).topk(min(length, score.shape[1]), dim=1)
    position, token_kept = best.indices, torch.isfinite(best.values)
    vector = gathered(hidden, position)
    largest = vector.abs().topk(units, dim=-1).indices
    values = torch.zeros_like(vector).scatter(-1, largest, vector.gather(-1, largest))
    return Target(position[None], token_kept[None], values[None])


def gathered(hidden: Tensor, position: Tensor) -> Tensor:
    """Vectors [batch, kept, width] at `position` [batch, kept] of `hidden` [batch, token, width]."""
    return hidden.gather(1, position[..., None].expand(-1, -1, hidden.shape[-1]))


def attend(model: Any, implementation: str) -> None:
    if model.config._attn_implementation != implementation:
        model.set_attn_implementation(implementation)


def groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Matrices decay; biases and LayerNorm weights do not."""
    return [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]


def load(folder: str) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)


def padded(text: list[str], tokenizer: Any, max_length: int) -> Padded:
    read = tokenizer(text, truncation=True, padding="max_length", max_length=max_length, return_tensors="pt")
    ids = read["input_ids"]
    types = read.get("token_type_ids", torch.zeros_like(ids))
    return Padded(ids, types, read["attention_mask"], ids == tokenizer.sep_token_id)


def shuffled(rows: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Every row once but those of the last batch, if that is not a whole one."""
    order = torch.randperm(rows, generator=generator)
    for start in range(0, rows - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def decaying(peak: float, step: int, steps: int) -> float:
    """Up over a tenth of the steps, then down to zero."""
    rising = round(WARMUP * steps)
    return peak * (step + 1) / rising if step < rising else peak * (steps - step) / max(1, steps - rising)


@torch.no_grad()
def correct(model: Any, rows: Padded, label: Tensor) -> Tensor:
    """Whether each row is classified as its label says."""
    training = model.training
    model.eval()
    found = [
        model(**rows.take(slice(start, start + EVALUATION_BATCH)).inputs()).logits.argmax(dim=-1)
        for start in range(0, len(rows), EVALUATION_BATCH)
    ]
    model.train(training)
    return torch.cat(found) == label


@dataclass(frozen=True)
class Run:
    """A whole run: `score` is accuracy on dev and test together; `seconds` of a phase are those of its steps alone."""

    steps: dict[str, int]
    seconds: dict[str, float]
    median_step: dict[str, float]
    dev: list[dict[str, float]]
    score: float
    standard_error: float
    rows: int
    seed: int
    threads: int


def run(opponent: OnlineOpponent, splits: dict[str, tuple[Padded, Tensor]], *, task: str, steps: int, seed: int) -> Run:
    """Both phases, the best weights by dev accuracy, and what they score."""
    train = splits["train"][0]
    defaults = get_task(task).defaults
    counts = {"hidden": round(2 * steps / 3), "prediction": steps - round(2 * steps / 3)}
    times: dict[str, list[float]] = {"hidden": [], "prediction": []}
    dev: list[dict[str, float]] = []
    best: dict[str, Tensor] | None = None
    generator = torch.Generator().manual_seed(seed)
    for phase, count in counts.items():
        numbers = defaults.hidden if phase == "hidden" else defaults.prediction
        opponent.begin_phase()
        step, losses = 0, []
        while step < count:
            for rows in shuffled(len(train), numbers.batch_size, generator):
                if step == count:
                    break
                began = time.perf_counter()
                if phase == "hidden":
                    loss = opponent.hidden_step(train.take(rows), numbers.lr)
                else:
                    loss = opponent.prediction_step(train.take(rows), decaying(numbers.lr, step, count))
                times[phase].append(time.perf_counter() - began)
                losses.append(loss)
                step += 1
                if step % 50 == 0 or step == count:
                    mean, seconds = statistics.mean(losses[-50:]), statistics.median(times[phase][-50:])
                    print(f"{phase} {step}/{count} loss {mean:.4f} {seconds:.3f} s a step", flush=True)
            if phase == "prediction":
                dev.append({"step": step, "accuracy": correct(opponent.student, *splits["validation"]).float().mean().item()})
                print(json.dumps(dev[-1]), flush=True)
                if improved(dev):
                    best = copy.deepcopy(opponent.student.state_dict())
    if best is not None:
        opponent.student.load_state_dict(best)
    right = torch.cat([correct(opponent.student, *splits[split]) for split in ("validation", "test")])
    score = right.float().mean().item()
    return Run(
        steps=counts,
        seconds={phase: round(sum(taken), 1) for phase, taken in times.items()},
        median_step={phase: round(statistics.median(taken), 4) for phase, taken in times.items()},
        dev=dev,
        score=score,
        standard_error=math.sqrt(score * (1 - score) / len(right)),
        rows=len(right),
        seed=seed,
        threads=torch.get_num_threads(),
    )


def improved(dev: list[dict[str, float]]) -> bool:
    return all(dev[-1]["accuracy"] > one["accuracy"] for one in dev[:-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="a fine-tuned classifier's folder")
    parser.add_argument("data", help="a folder with train, dev and test files")
    parser.add_argument("--student", required=True, help="a model folder")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="where the student is saved, with the tokenizer")
    parser.add_argument("--out", type=Path, help="the result as JSON")
    options = parser.parse_args()
    set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.teacher)
    teacher, student = load(options.teacher), load(options.student)
    names = tuple(name for _, name in sorted(teacher.config.id2label.items()))
    data = read_dataset(options.data, task=options.task, splits=("train", "validation", "test")).with_label_order(names)
    splits: dict[str, tuple[Padded, Tensor]] = {}
    for split, examples in data.splits.items():
        label = torch.tensor([] if examples.label is None else examples.label.tolist())
        splits[split] = (padded(list(examples.text[0][:]), tokenizer, options.max_length), label)
    opponent = OnlineOpponent(teacher, student)
    print(f"student layer {opponent.pair.student} <- teacher layer {opponent.pair.teacher}, ranked by {opponent.pair.rank}")
    found = run(opponent, splits, task=options.task, steps=options.steps, seed=options.seed)
    text = json.dumps(asdict(found), indent=2)
    print(text)
    if options.save is not None:
        student.save_pretrained(options.save)
        tokenizer.save_pretrained(options.save)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
