r"""What a step of each method costs beside the student alone, in CPU time and in memory, and where it goes.

    python benchmarks/methods.py ../shared/models/minilm-l6-mrpc ../shared/data/mrpc --task mrpc \
        --conll ../shared/data/conll2000 --out benchmarks/results/methods_cpu_DATE.md

One store of what all methods read, of the first `--rows` of the data, with the spans that a chunker trained on `--conll` finds;
a student of half the teacher's layers, cut out of it; fp32.

Time: whole steps as the trainer does them, each phase of each method in turn on the same batches of 32, and CPU seconds of the
process. A ratio is of one round, to kd, which is the student alone: its forward, one loss on its logits, its backward, the
optimiser. Batches are made outside the step, where training has a thread beside. Where it goes: the same steps once more, with
the way back cut where the student ends and the losses begin; what growing tkd's trees takes, which is among its losses; and what
choosing ksm's weights takes.

Memory: rows of 128 tokens, none of them padding (the texts repeated). Of each phase a process of its own makes and takes two
batches of 32; what its resident memory grew to, above what it was with the student and the rows at hand. Of this the weights'
gradients and the optimiser's moments are the same for all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as hsk sets it; torch reads it once

import numpy as np
import torch
from extract_throughput import processor
from records import first_rows
from torch import Tensor

from hskstore.config import Strategy
from hskstore.losses import student_tree
from hskstore.methods import METHODS, Tkd, Weights
from hskstore.models.observe import QueryKeyValue, Seen, showing
from hskstore.stage_one.extract import extract
from hskstore.stage_two import processes
from hskstore.stage_two.checkpoint import Checkpoint, RunState
from hskstore.stage_two.dropout import FastDropout
from hskstore.stage_two.feed import Feed, InMemory, Step, open_supply
from hskstore.stage_two.journal import Journal
from hskstore.stage_two.learner import build_learner
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.settings import phase_settings, with_episodes
from hskstore.stage_two.student import fit_student
from hskstore.stage_two.trackers import Log
from hskstore.stage_two.trainer import CLIP_NORM, PhaseLoop, Run, sum_terms
from hskstore.store import open_store
from hskstore.students import slice_teacher
from hskstore.text.chunker import train_chunker
from hskstore.text.tasks import Task
from hskstore.watch import unwatched

BATCH_SIZE = 32
ALONE = "kd"
WITHOUT_ANGLES = Weights((("ckd.word_angle", 0.0), ("ckd.layer_angle", 0.0)))
VARIANTS = {name: (name, None) for name in METHODS} | {"ckd without angles": ("ckd", WITHOUT_ANGLES)}
"""What is measured: a method, and weights that are not its own."""

TARGETS = {"ckd": 2.0, "tkd": 1.3, "mgskd, structure": 2.0}
TARGET = 1.5
TARGET_GROWING, TARGET_CHOOSING = 0.05, 0.03
TARGET_MEMORY = 2 * 2**30
PARTS = ("making the batch", "seeing", "losses", "losses back", "student back", "optimiser")
MEMORY_STEPS = 2
"""The first has no moments of the optimiser yet."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("data", type=Path, help="a folder with train.tsv and dev.tsv")
    parser.add_argument("--task", required=True)
    parser.add_argument("--conll", type=Path, required=True, help="CoNLL-2000, from which a chunker is trained")
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--steps", type=int, default=4, help="of a round, a batch each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, help="the result as Markdown")
    parser.add_argument("--memory-of", nargs=3, metavar=("CASE", "STORE", "STUDENT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(memory(*options.memory_of)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        student = slice_teacher(str(options.teacher), "every:2", place / "student").folder
        data = first_rows(options.data, options.rows, place / "data")
        train_chunker(options.conll, place / "spans")
        store = stored(options, data, place, "store")
        names = dict.fromkeys((ALONE, *options.only))
        cases = [case for name in names for case in cases_of(name, store, student)]
        rounds, parts = times(cases, options)
        long = stored(options, repeated(data, place / "long", BATCH_SIZE), place, "long_store")
        grown = {case.name: memory_elsewhere(case.name, long, student, options) for case in cases}
        growing = {case.name: growing_of(case, options.steps) for case in cases if isinstance(case.loop.run.method, Tkd)}
        choosing = {case.name: choosing_of(case, options.steps) for case in cases if case.loop.run.learner.chooser is not None}
        text = report(options, cases, rounds, parts, grown, growing, choosing)
    print(text)
    if options.out is not None:
        options.out.write_text(text)


def stored(options: argparse.Namespace, data: Path, place: Path, name: str) -> str:
    """A store of what all methods read, for a student of half the teacher's layers."""
    layers = json.loads((options.teacher / "config.json").read_text())["num_hidden_layers"]
    methods = [kind() for kind in METHODS.values()]
    (made,) = extract(
        str(options.teacher),
        str(data),
        out=place / name,
        task=options.task,
        methods=methods,
        strategies=[Strategy(layers // 2)],
        spans=str(place / "spans"),
    )
    return made.root


def repeated(data: Path, out: Path, rows: int) -> Path:
    """The first rows, so much longer that they are cut to the task's length."""
    out.mkdir()
    for name in ("train.tsv", "dev.tsv"):
        head, *lines = (data / name).read_text().splitlines()[: rows + 1]
        longer = ["\t".join(" ".join([cell] * (30 if " " in cell else 1)) for cell in line.split("\t")) for line in lines]
        (out / name).write_text("\n".join([head, *longer]) + "\n")
    return out


@dataclass(frozen=True)
class Case:
    """A phase of a method, about to be trained, with its rows in memory."""

    name: str
    loop: PhaseLoop
    rows: InMemory

    def batches(self, steps: int) -> Generator[Step]:
        reads = self.loop.settings.read.reads
        return Feed(self.rows, BATCH_SIZE, self.loop.run.order, seed=0).steps(reads=reads, start=0, stop=steps)

    def step(self, step: Step) -> None:
        """What the trainer makes of a batch."""
        run = self.loop.run
        run.learner.train()
        with showing(run.learner.student, self.loop.settings.read.sees):
            self.loop._step(step)
        run.journal.read_back(self.name, self.loop.state)


def cases_of(name: str, root: str, student: str) -> list[Case]:
    """Each phase of a method, as `distill` begins it."""
    method, weight = VARIANTS[name]
    store = open_store(root)
    recipe = Recipe(student, METHODS[method](), batch_size=(BATCH_SIZE,), weight=weight, precision="fp32", loader="ram")
    fitted = fit_student(student, store, recipe, tokenizer=None)
    supply = open_supply(store, "train", loader="ram", places=fitted.places)
    assert isinstance(supply, InMemory)
    settings = phase_settings(recipe, fitted.phases, Task.from_json(store.plan.task).defaults, supply)
    learner = build_learner(fitted, recipe, settings)
    if (own := fitted.selecting) is not None:  # one training in which the selector learns, and the student's own
        settings = with_episodes(settings, replace(own.selection, episodes=1), own.terms, own.want)
    run = Run(
        learner,
        learner.copied(),
        supply,
        recipe.method,
        settings,
        fitted.order,
        0,
        None,
        None,
        processes.start(torch.device("cpu"), bf16=False),
        Checkpoint(Path("nowhere")),
        Journal(Log(Path(), ()), unwatched),
        processes.Interrupts(),
    )
    several = len(settings) > 1
    return [
        Case(f"{name}, {phase.phase.name}" if several else name, PhaseLoop(run, RunState("", phase=number)), supply)
        for number, phase in enumerate(settings)
    ]


def times(cases: list[Case], options: argparse.Namespace) -> tuple[list[dict[str, tuple[float, float]]], dict[str, Counter[str]]]:
    """CPU and wall seconds of each case's steps, by round; and CPU seconds of their parts, by one round more."""
    rounds: list[dict[str, tuple[float, float]]] = []
    for number in range(options.rounds + 1):
        spent = {case.name: (0.0, 0.0) for case in cases}
        batches = {case.name: case.batches(options.steps) for case in cases}
        for _ in range(options.steps if number else 1):
            for case in cases[:: 1 if number % 2 else -1]:
                step = next(batches[case.name])
                began = time.process_time(), time.perf_counter()
                case.step(step)
                cpu, wall = spent[case.name]
                spent[case.name] = cpu + time.process_time() - began[0], wall + time.perf_counter() - began[1]
        if number:  # the first kernels of a process are slow
            rounds.append(spent)
            print(f"round {number}: " + ", ".join(f"{name} {cpu:.1f} s" for name, (cpu, _) in spent.items()), file=sys.stderr)
    return rounds, {case.name: parts_of(case, options.steps) for case in cases}


def parts_of(case: Case, steps: int) -> Counter[str]:
    """CPU seconds by part of a round of steps."""
    run, phase, optimizer = case.loop.run, case.loop.settings.phase, case.loop.optimizer
    run.learner.train()
    spent: Counter[str] = Counter()
    now = time.process_time()

    def note(part: str) -> None:
        nonlocal now
        spent[part] += time.process_time() - now
        now = time.process_time()

    for step in case.batches(steps):
        note("making the batch")
        with FastDropout(), showing(run.learner.student, phase.sees):
            seen, ends = cut(run.learner(step.batch, phase))
        note("seeing")
        terms = run.method(phase, seen, step.batch, run.learner.aids)
        loss = sum_terms({name: term.value for name, term in terms.items()}, phase.weights)
        note("losses")
        loss.backward()
        note("losses back")
        learnt = [(end, own.grad) for end, own in ends if own.grad is not None]
        torch.autograd.backward(*map(list, zip(*learnt, strict=True)))
        note("student back")
        torch.nn.utils.clip_grad_norm_(run.learner.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        note("optimiser")
    return spent


def growing_of(case: Case, steps: int) -> float:
    """CPU seconds in which the trees of so many batches grow, in every head of every layer."""
    run, phase = case.loop.run, case.loop.settings.phase
    assert isinstance(run.method, Tkd)
    spent = 0.0
    for step in case.batches(steps):
        with torch.no_grad(), showing(run.learner.student, phase.sees):
            inside = run.learner(step.batch, phase).qkv
        query, key = ([getattr(inside[layer], part) for layer in sorted(inside)] for part in ("query", "key"))
        now = time.process_time()
        student_tree(query, key, is_real=step.batch.attention_mask, children=run.method.children)
        spent += time.process_time() - now
    return spent


def choosing_of(case: Case, steps: int) -> float:
    """CPU seconds in which the weights of so many steps are chosen."""
    chooser: Any = case.loop.run.learner.chooser
    weigh, spent = chooser.weigh, 0.0

    def timed(*state: Any, **options: Any) -> Any:
        nonlocal spent
        now = time.process_time()
        found = weigh(*state, **options)
        spent += time.process_time() - now
        return found

    chooser.weigh = timed
    for step in case.batches(steps):
        case.step(step)
    chooser.weigh = weigh
    return spent


def cut(seen: Seen) -> tuple[Seen, list[tuple[Tensor, Tensor]]]:
    """The same, from which no gradient goes on into the student; and each of its tensors with what stands for it."""
    ends: list[tuple[Tensor, Tensor]] = []

    def own(end: Tensor) -> Tensor:
        ends.append((end, end.detach().requires_grad_()))
        return ends[-1][1]

    hidden = {layer: own(state) for layer, state in seen.hidden.items()}
    qkv = {layer: QueryKeyValue(own(each.query), own(each.key), own(each.value)) for layer, each in seen.qkv.items()}
    return Seen(own(seen.logits), hidden, qkv=qkv), ends


def memory_elsewhere(case: str, store: str, student: str, options: argparse.Namespace) -> dict[str, int]:
    """`memory` of a process of its own."""
    command = [sys.executable, __file__, str(options.teacher), str(options.data)]
    command += ["--task", options.task, "--conll", str(options.conll)]
    done = subprocess.run([*command, "--memory-of", case, store, student], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    print(f"{case}: {found}", file=sys.stderr)
    return found


def memory(name: str, store: str, student: str) -> dict[str, int]:
    """The most resident memory of this process during some steps beyond what it had before them; bytes."""
    case = next(case for case in cases_of(name.partition(",")[0], store, student) if case.name == name)
    rows, reads = case.rows.rows, case.loop.settings.read.reads
    assert (rows.n_tokens[:BATCH_SIZE] == 128).all()
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is forgotten
    before = resident("VmRSS")
    for number in range(MEMORY_STEPS):
        case.step(Step(number, rows.batch(np.arange(BATCH_SIZE), reads), counts=True, ends_epoch=False))
    weights = sum(parameter.numel() for parameter in case.loop.run.learner.parameters())
    return {"grown": resident("VmHWM") - before, "optimiser": 3 * 4 * weights}


def resident(what: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def report(
    options: argparse.Namespace,
    cases: list[Case],
    rounds: list[dict[str, tuple[float, float]]],
    parts: dict[str, Counter[str]],
    grown: dict[str, dict[str, int]],
    growing: dict[str, float],
    choosing: dict[str, float],
) -> str:
    steps = [step.batch.input_ids.shape[1] for step in cases[0].batches(options.steps)]
    lines = ["# What a step of each method costs", "", f"`python {' '.join(sys.argv)}`", ""]
    cores = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
    threads = torch.get_num_threads()
    lines += [f"{processor().partition(',')[0]}, threads: {threads}, on core {cores}; torch {torch.__version__}; fp32.", ""]
    lines += [
        f"Batches of {BATCH_SIZE} rows of {options.task}, {min(steps)} to {max(steps)} tokens long, {options.steps} in a round."
        f" Medians of {len(rounds)} rounds in which all take turns; a ratio is of CPU seconds in one round. Memory: a batch of"
        f" {BATCH_SIZE} x 128 real tokens.",
        "",
        "| method | CPU ms a step | wall ms | of the student alone | lowest to highest | target | memory of a step | target |",
        "|---|---|---|---|---|---|---|---|",
    ]
    per_step = 1000 / options.steps
    for case in cases:
        name = case.name
        cpu, wall = (per_step * statistics.median(spent[name][kind] for spent in rounds) for kind in (0, 1))
        ratios = [spent[name][0] / spent[ALONE][0] for spent in rounds]
        most, took = TARGETS.get(name, TARGET), grown[name]["grown"]
        lines.append(
            f"| {name} | {cpu:.0f} | {wall:.0f} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"
            f" {most}: {'met' if statistics.median(ratios) <= most else 'missed'} | {took / 2**20:.0f} MiB |"
            f" {TARGET_MEMORY / 2**30:.0f} GiB: {'met' if took < TARGET_MEMORY else 'missed'} |"
        )
    inside = [(f"Growing the trees of {name}", name, seconds, TARGET_GROWING) for name, seconds in growing.items()]
    inside += [(f"Choosing the weights of {name}", name, seconds, TARGET_CHOOSING) for name, seconds in choosing.items()]
    for words, name, seconds, most in inside:
        share = seconds / statistics.median(spent[name][0] for spent in rounds)
        met = "met" if share <= most else "missed"
        lines += ["", f"{words}: {per_step * seconds:.1f} CPU ms, {share:.1%} of a step (target {most:.0%}: {met})."]
    optimiser = grown[ALONE]["optimiser"] / 2**20
    lines += ["", f"Of the memory {optimiser:.0f} MiB are gradients and moments of the weights, whatever the method.", ""]
    lines += ["Where the CPU ms of a step go (one round more; the batch is made beside the step):", ""]
    lines += [f"| method | {' | '.join(PARTS)} |", "|---" * (len(PARTS) + 1) + "|"]
    lines += [
        f"| {case.name} | " + " | ".join(f"{per_step * parts[case.name][part]:.0f}" for part in PARTS) + " |" for case in cases
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
