"""What the teacher costs: a step of training from a store beside one with the teacher in the loop.

    python benchmarks/online_vs_offline.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2_small \
        --vocab-from ../shared/models/minilm-l6 --work runs/online --out benchmarks/results/online_vs_offline_cpu_DATE.md

Three tables, of which `--tables` chooses some.

figure: Figure 10 of Marginal Utility Diminishes. A teacher of BERT-base's shape and random weights; rows of made-up words, each
of exactly `--length` tokens; batches of 16; float32; hidden states at (1,9,0.1). A student alone (forward, backward, clipping,
fused AdamW; the loss is of its own hidden state); stage two's `train` from a store that was extracted from that teacher; and
the student alone with the teacher beside it: eval mode, no gradients, SDPA, the [CLS] row of one layer's attention as extraction
takes it, what to keep chosen anew in every step. All three have the trainer's dropout.

whole: hskstore as it comes (`train` at the precision that "auto" chooses) beside `online_opponent.py`, the same rows in batches
of 32, both phases: three layers of the sst2 teacher, and TinyBERT-4 of a teacher of BERT-base's shape.

factors: from that opponent one change at a time, in the hidden phase of the sst2 teacher's student.

oneDNN makes its kernels at the first visit to a length, so hskstore trains an epoch of its store before its steps are counted;
that epoch stands in the table too. The opponent has one length only.

Segments of `--steps` steps run in turns, `--rounds` times; the first two steps of a segment are not counted, and a ratio is of
one round. With `--work` stores and students are kept there and found again.
"""

import argparse
import copy
import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as hsk sets it; torch reads it once

import numpy as np
import torch
import transformers
from online_opponent import OnlineOpponent, Padded, Target, kept, load
from torch.nn.functional import pad
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, set_seed

from hskstore.config import Keep, Strategy, TrainPrecision
from hskstore.methods import Mud
from hskstore.methods.batch import Batch
from hskstore.methods.serving import teacher_shape
from hskstore.models.observe import Sight
from hskstore.models.run import ModelShape
from hskstore.stage_one.extract import extract
from hskstore.stage_one.teacher import Teacher, load_teacher
from hskstore.stage_two.dropout import FastDropout
from hskstore.stage_two.feed import Feed, InMemory, open_supply, steps_per_epoch
from hskstore.stage_two.learner import Learner
from hskstore.stage_two.settings import PhaseSettings
from hskstore.stage_two.trainer import train
from hskstore.store import Store, open_store
from hskstore.students import new_student, slice_teacher
from hskstore.text.tasks import get_task

KEEP = Keep(1, 9, 0.1)
SLICED = (2, 4, 6)
FIGURE_BATCH, WHOLE_BATCH = 16, 32
WHOLE_LENGTH = 64
EPOCH_STEPS = 217
"""An epoch of sst2_small in batches of 32."""

WARM_SEED = 1000
UNCOUNTED = 2
FIGURE_STUDENTS = {"TinyBERT-4": "tinybert-4l-312d", "ROSITA-6": "rosita-6"}
ALONE, OFFLINE, ONLINE, FORWARD = "student alone", "from the store", "teacher beside it", "teacher's forward alone"
OPPONENT, HSKSTORE = "the opponent", "hskstore"
PHASES = ("hidden", "prediction")

Segment = Callable[[int], list[float]]
"""Runs some steps and says the seconds of those that count; takes the number of the round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="a fine-tuned classifier's folder")
    parser.add_argument("data", type=Path, help="a folder with train.tsv and dev.tsv (sentence, label)")
    parser.add_argument("--vocab-from", required=True, help="a folder with BERT's tokenizer")
    parser.add_argument("--tables", nargs="+", choices=["figure", "whole", "factors"], default=["figure", "whole", "factors"])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="of a segment, with those that are not counted")
    parser.add_argument("--length", type=int, default=128, help="tokens of the figure's rows")
    parser.add_argument("--figure-rows", type=int, default=320)
    parser.add_argument("--rows", type=int, default=6920, help="of DATA, for the sst2 teacher")
    parser.add_argument("--base-rows", type=int, default=1280, help="of DATA, for the teacher of BERT-base's shape")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, help="the result as Markdown")
    options = parser.parse_args()
    tables = {"figure": figure, "whole": whole, "factors": factors}
    with tempfile.TemporaryDirectory() as scratch:
        options.work = options.work or Path(scratch)
        options.work.mkdir(parents=True, exist_ok=True)
        lines = heading()
        for name in options.tables:
            part = tables[name](options)
            print("\n".join(part), file=sys.stderr, flush=True)
            lines += ["", *part]
    text = "\n".join([*lines, ""])
    print(text)
    if options.out is not None:
        options.out.write_text(text)


@dataclass(frozen=True)
class Case:
    """A student and the store it learns from. A plain loop has every row padded to `length` tokens."""

    student: Any
    store: Store
    rows: InMemory
    length: int
    batch_size: int
    steps: int
    precision: TrainPrecision = "fp32"

    def batches(self, seed: int) -> list[Padded]:
        """The batches that `train_segment` takes with this seed."""
        feed = Feed(self.rows, self.batch_size, self.store.digest, seed)
        return [self.padded(step.batch) for step in feed.steps(start=0, stop=self.steps)]

    def padded(self, batch: Batch) -> Padded:
        plan = self.store.plan
        missing = (0, self.length - batch.input_ids.shape[1])
        ids = pad(batch.input_ids.long(), missing, value=plan.tokenizer["pad_token_id"])
        types, mask = pad(batch.token_type_ids.long(), missing), pad(batch.attention_mask.long(), missing)
        return Padded(ids, types, mask, torch.isin(ids, torch.tensor(plan.tokenizer["separators"])))


def case_of(student: str, store: str, **numbers: Any) -> Case:
    opened = open_store(store)
    assert opened.plan.hidden is not None
    rows = open_supply(opened, "train", loader="ram", places={"hidden": tuple(range(len(opened.plan.hidden.pairs)))})
    assert isinstance(rows, InMemory)
    return Case(load(student), opened, rows, **numbers)


def train_segment(case: Case, phase: str, seed: int) -> list[float]:
    """A real training, from its beginning."""
    config, teacher = case.student.config, teacher_shape(case.store.plan)
    shape = ModelShape("the student", config.num_labels, (config.num_hidden_layers, config.hidden_size))
    phases = {each.name: each for each in Mud().phases(teacher, shape)}
    learner = Learner(copy.deepcopy(case.student), aids=Mud().aids(teacher, shape))
    settings = PhaseSettings(phases[phase], lr=peak(phase), batch_size=case.batch_size, steps=case.steps)
    ended: list[float] = []

    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        ended.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as out:
        train(
            learner,
            case.rows,
            Mud(),
            [settings],
            data=case.store.digest,
            order=case.store.digest,
            seed=seed,
            out=Path(out),
            score=None,
            precision=case.precision,
            watch=watch,
        )
    assert len(ended) == case.steps
    return [after - before for before, after in itertools.pairwise(ended)][UNCOUNTED - 1 :]


def loop_segment(batches: Sequence[Any], step: Callable[[Any], object]) -> list[float]:
    """A plain loop."""
    taken: list[float] = []
    for batch in batches:
        began = time.perf_counter()
        step(batch)
        taken.append(time.perf_counter() - began)
    return taken[UNCOUNTED:]


def peak(phase: str) -> float:
    return getattr(get_task("sst2").defaults, phase).lr


def in_turns(ways: dict[str, Segment], rounds: int) -> dict[str, list[list[float]]]:
    """Every way's segment of every round."""
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, segment in ways.items():
            found[name].append(segment(number))
            print(f"round {number + 1}, {name}: {statistics.mean(found[name][-1]):.3f} s a step", file=sys.stderr, flush=True)
    return found


# Figure 10


def figure(options: argparse.Namespace) -> list[str]:
    folder = base_teacher(options)
    teacher = load_teacher(folder, device=torch.device("cpu"))
    students = {name: new(preset, options) for name, preset in FIGURE_STUDENTS.items()}
    depths = {name: load(student).config.num_hidden_layers for name, student in students.items()}
    data = exact_sentences(options)
    stores = stores_of(folder, data, f"figure-{options.figure_rows}-{options.length}", depths.values(), options)
    lines = [
        f"## Figure 10: rows of {options.length} tokens, batches of {FIGURE_BATCH}, float32, hidden states at ({KEEP})",
        "",
        f"Seconds of a step, medians of {options.rounds} rounds of {options.steps - UNCOUNTED} steps. {RATIOS} The limit is what"
        " the teacher's forward alone and the student alone take together, over the student alone. Targets: store / alone at most"
        " 1.03, beside / store at least 2.7.",
        "",
        f"| student | {ALONE} | {OFFLINE} | {ONLINE} | {FORWARD} | store / alone | beside / store | limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, student in students.items():
        case = case_of(
            student,
            stores[depths[name]],
            length=options.length,
            batch_size=FIGURE_BATCH,
            steps=options.steps,
        )
        assert int(case.rows.rows.n_tokens.min()) == options.length, "a made-up sentence has fewer tokens than it should"
        times = in_turns(figure_ways(case, teacher), options.rounds)
        median = {way: [statistics.median(one) for one in rounds] for way, rounds in times.items()}
        both = [forward + alone for forward, alone in zip(median[FORWARD], median[ALONE], strict=True)]
        seconds = " | ".join(
            f"{statistics.median(itertools.chain(*times[way])):.3f}" for way in (ALONE, OFFLINE, ONLINE, FORWARD)
        )
        lines.append(
            f"| {name} | {seconds} | {ratio(median[OFFLINE], median[ALONE])} | {ratio(median[ONLINE], median[OFFLINE])} |"
            f" {ratio(both, median[ALONE])} |"
        )
    return lines


def figure_ways(case: Case, teacher: Teacher) -> dict[str, Segment]:
    def loop() -> OnlineOpponent:
        return OnlineOpponent(teacher.model, copy.deepcopy(case.student), fused=True)

    def alone(number: int) -> list[float]:
        own = loop()

        def step(batch: Padded) -> None:
            with FastDropout():
                loss = own_loss(own, batch)
            own.update(loss, peak("hidden"))

        return loop_segment(case.batches(number), step)

    def online(number: int) -> list[float]:
        own = loop()

        def step(batch: Padded) -> None:
            target = fair_target(teacher, own, batch)
            with FastDropout():
                loss = own.hidden_loss(batch, target)
            own.update(loss, peak("hidden"))

        return loop_segment(case.batches(number), step)

    @torch.no_grad()
    def forward(batch: Padded) -> None:
        teacher.model(**batch.inputs())

    return {
        ALONE: alone,
        OFFLINE: lambda number: train_segment(case, "hidden", number),
        ONLINE: online,
        FORWARD: lambda number: loop_segment(case.batches(number), forward),
    }


def own_loss(loop: OnlineOpponent, batch: Padded) -> torch.Tensor:
    """A loss that asks nothing of anyone: the mean square of the hidden state that would be guided."""
    output = loop.student(**batch.inputs(), output_hidden_states=True)
    return output.hidden_states[loop.pair.student].square().mean()


def fair_target(teacher: Teacher, loop: OnlineOpponent, batch: Padded) -> Target:
    """What extraction would keep of this batch."""
    rank = loop.pair.rank
    sight = Sight(frozenset({loop.pair.teacher}), frozenset({rank}))
    features = teacher.forward(batch.input_ids, batch.token_type_ids, batch.attention_mask.bool(), sight)
    with torch.no_grad():
        return kept(features.hidden[loop.pair.teacher], features.cls_row[rank], batch, length=loop.length, units=loop.units)


# The whole way


def whole(options: argparse.Namespace) -> list[str]:
    defaults = get_task("sst2").defaults
    epochs = {name: getattr(defaults, name).epochs for name in PHASES}
    lines = [
        f"## The whole way: sentences of sst2, batches of {WHOLE_BATCH} of the same rows",
        "",
        f"Seconds of a step, means of {options.rounds} rounds of {options.steps - UNCOUNTED} steps; an epoch is {EPOCH_STEPS} of"
        f" them, the recipe {' and '.join(f'{count} epochs of the {name} phase' for name, count in epochs.items())}. {RATIOS}",
        "",
        f"| student | phase | {OPPONENT} | {HSKSTORE} | an epoch of {OPPONENT} | an epoch of {HSKSTORE} | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, target, make in (
        ("three of six layers, 384 wide", 8, sst2_case),
        ("TinyBERT-4 of BERT-base", 14, base_case),
    ):
        case, teacher = make(options)
        first = train_segment(replace(case, steps=steps_per_epoch(case.rows, WHOLE_BATCH)), "hidden", seed=WARM_SEED)
        lines.append(f"| {name} | hidden, a first epoch ({len(first)} steps) | | {statistics.mean(first):.3f} | | | |")
        total = {way: [0.0] * options.rounds for way in (OPPONENT, HSKSTORE)}
        for phase in PHASES:
            times = in_turns(whole_ways(case, teacher, phase), options.rounds)
            mean = {way: [statistics.mean(one) for one in rounds] for way, rounds in times.items()}
            for way, rounds in mean.items():
                total[way] = [sum_ + epochs[phase] * EPOCH_STEPS * one for sum_, one in zip(total[way], rounds, strict=True)]
            lines.append(
                f"| {name} | {phase} | {cells(mean, '.3f')} | {cells(mean, ',.0f', EPOCH_STEPS, ' s')} |"
                f" {ratio(mean[OPPONENT], mean[HSKSTORE])} |"
            )
        recipe_seconds, times_faster = cells(total, ",.0f", 1, " s"), ratio(total[OPPONENT], total[HSKSTORE])
        lines.append(f"| {name} | the recipe (target {target}) | | | {recipe_seconds} | {times_faster} |")
    return lines


def whole_ways(case: Case, teacher: Any, phase: str) -> dict[str, Segment]:
    def opponent(number: int) -> list[float]:
        own = OnlineOpponent(teacher, copy.deepcopy(case.student))
        step = own.hidden_step if phase == "hidden" else own.prediction_step
        return loop_segment(case.batches(number), lambda batch: step(batch, peak(phase)))

    return {OPPONENT: opponent, HSKSTORE: lambda number: train_segment(case, phase, number)}


def cells(found: dict[str, list[float]], form: str, times: int = 1, unit: str = "") -> str:
    return " | ".join(f"{times * statistics.mean(found[way]):{form}}{unit}" for way in (OPPONENT, HSKSTORE))


def sst2_case(options: argparse.Namespace) -> tuple[Case, Any]:
    student = options.work / "l3"
    if not (student / "config.json").exists():
        slice_teacher(options.teacher, SLICED, student)
    data = first_rows(options, options.rows)
    (store,) = stores_of(options.teacher, data, f"sst2-{options.rows}", [len(SLICED)], options, WHOLE_LENGTH).values()
    case = case_of(str(student), store, length=WHOLE_LENGTH, precision="auto", batch_size=WHOLE_BATCH, steps=options.steps)
    return case, load(options.teacher)


def base_case(options: argparse.Namespace) -> tuple[Case, Any]:
    student, teacher = new("tinybert-4l-312d", options), base_teacher(options)
    layers = load(student).config.num_hidden_layers
    data = first_rows(options, options.base_rows)
    (store,) = stores_of(teacher, data, f"base-{options.base_rows}", [layers], options, WHOLE_LENGTH).values()
    case = case_of(student, store, length=WHOLE_LENGTH, precision="auto", batch_size=WHOLE_BATCH, steps=options.steps)
    return case, load(teacher)


# One factor at a time


@dataclass(frozen=True)
class Change:
    """What is otherwise than in the opponent."""

    teacher: bool = True
    cut: bool = False
    fused: bool = False
    bf16: bool = False
    dropout: bool = False


CHANGES = {
    OPPONENT: Change(),
    "no teacher in the loop": Change(teacher=False),
    "batches as long as their longest row": Change(cut=True),
    "fused AdamW": Change(fused=True),
    "bf16 autocast": Change(bf16=True),
    "the trainer's dropout": Change(dropout=True),
    "all of these": Change(teacher=False, cut=True, fused=True, bf16=True, dropout=True),
}


def factors(options: argparse.Namespace) -> list[str]:
    case, teacher = sst2_case(options)
    ways = {name: changed(case, teacher, change) for name, change in CHANGES.items()}
    ways[HSKSTORE] = lambda number: train_segment(case, "hidden", number)
    times = in_turns(ways, options.rounds)
    mean = {way: [statistics.mean(one) for one in rounds] for way, rounds in times.items()}
    lines = [
        "## One factor at a time: the hidden phase of three of six layers, 384 wide",
        "",
        f"Seconds of a step, means of {options.rounds} rounds of {options.steps - UNCOUNTED} steps, the same rows for all,"
        f" those of a batch of similar length. {RATIOS} `hskstore` is the trainer itself, at the precision that it chooses.",
        "",
        "| | seconds | times as fast as the opponent |",
        "|---|---|---|",
    ]
    return lines + [f"| {way} | {statistics.mean(mean[way]):.3f} | {ratio(mean[OPPONENT], mean[way])} |" for way in mean]


def changed(case: Case, teacher: Any, change: Change) -> Segment:
    def segment(number: int) -> list[float]:
        own = OnlineOpponent(teacher, copy.deepcopy(case.student), fused=change.fused)
        batches = [cut(batch) if change.cut else batch for batch in case.batches(number)]
        ready = [None if change.teacher else own.hidden_target(batch) for batch in batches]

        def step(work: tuple[Padded, Target | None]) -> None:
            batch, target = work
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=change.bf16):
                target = target or own.hidden_target(batch)
                with FastDropout() if change.dropout else nullcontext():
                    loss = own.hidden_loss(batch, target)
            own.update(loss, peak("hidden"))

        return loop_segment(list(zip(batches, ready, strict=True)), step)

    return segment


def cut(batch: Padded) -> Padded:
    """Rows as long as the longest of them."""
    longest = int(batch.attention_mask.sum(dim=1).max())
    return Padded(*(tensor[:, :longest] for tensor in vars(batch).values()))


# Teachers, students, data, stores


def base_teacher(options: argparse.Namespace) -> str:
    folder = options.work / "bert-base"
    if not (folder / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(options.vocab_from)
        set_seed(0)
        BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def new(preset: str, options: argparse.Namespace) -> str:
    folder = options.work / preset
    if not (folder / "config.json").exists():
        new_student(preset, folder, vocab_from=options.vocab_from)
    return str(folder)


def exact_sentences(options: argparse.Namespace) -> Path:
    """Made-up sentences of exactly so many tokens, with [CLS] and [SEP]: words that the vocabulary has whole."""
    words = [word for word in AutoTokenizer.from_pretrained(options.vocab_from).get_vocab() if word.isascii() and word.isalpha()]
    chosen = np.array(sorted(word for word in words if word.islower()))
    rng = np.random.default_rng(0)
    folder = options.work / f"sentences-{options.figure_rows}-{options.length}"
    folder.mkdir(exist_ok=True)
    for split, count in (("train", options.figure_rows), ("dev", FIGURE_BATCH)):
        lines = [" ".join(rng.choice(chosen, options.length - 2)) + f"\t{row % 2}" for row in range(count)]
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]))
    return folder


def first_rows(options: argparse.Namespace, rows: int) -> Path:
    folder = options.work / f"rows-{rows}"
    folder.mkdir(exist_ok=True)
    for split, most in (("train", rows), ("dev", 64)):
        lines = (options.data / f"{split}.tsv").read_text().splitlines()
        (folder / f"{split}.tsv").write_text("\n".join([*lines[: most + 1], ""]))
    return folder


def stores_of(
    teacher: str, data: Path, name: str, depths: Collection[int], options: argparse.Namespace, length: int | None = None
) -> dict[int, str]:
    """A store for each depth of a student; extraction finds what is there already."""
    strategies = [Strategy(depth) for depth in dict.fromkeys(depths)]
    made = extract(
        teacher,
        str(data),
        out=options.work / name,
        keeps=[KEEP],
        strategies=strategies,
        task="sst2",
        max_length=length or options.length,
    )
    return {strategy.student_layers: store.root for strategy, store in zip(strategies, made, strict=True)}


# The report

RATIOS = "Ratios are of one round: their median, lowest to highest in brackets."


def ratio(many: Sequence[float], few: Sequence[float]) -> str:
    ratios = [a / b for a, b in zip(many, few, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def heading() -> list[str]:
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return [
        "# A step from the store beside a step with the teacher",
        "",
        f"`python {' '.join(sys.argv)}`",
        "",
        f"{model.partition(': ')[2] or platform.machine()}, {torch.get_num_threads()} threads; torch {torch.__version__},"
        f" transformers {transformers.__version__}, Python {platform.python_version()}.",
    ]


if __name__ == "__main__":
    main()
