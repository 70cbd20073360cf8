"""How fast stage two is fed, what memory that takes, and whether a step takes longer from a store that is a hundred times as big.

    python benchmarks/loader.py --vocab-from ../shared/models/minilm-l6 --out benchmarks/results/loader_cpu_DATE.md

Stores of made-up rows at (1,9,0.1), 768 wide (`benchmarks/synthetic_store.py`; with `--stores` they are kept and found again).

Rate: batches of 32 with their hidden states, made and taken as the trainer takes them, prefetched, while nothing else runs, in
a process of its own, over a whole epoch and at least `--seconds` (at most six times as long). Its RssAnon is read 50 times a
second; what the process had before the store was opened is taken off. Step: a student of 4 layers, 312 wide, learns hidden
states by `hskstore.stage_two.trainer.train` from the smallest and the biggest store, held in memory and read in blocks, in turns.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as hsk sets it; torch reads it once

import torch
from synthetic_store import make_store
from transformers import BertConfig, BertForSequenceClassification, set_seed

from hskstore.config import Loader
from hskstore.methods import Mud, Phase
from hskstore.methods.serving import teacher_shape
from hskstore.models.run import ModelShape
from hskstore.stage_two.feed import Feed, Prefetched, Supply, open_supply
from hskstore.stage_two.learner import Learner
from hskstore.stage_two.settings import PhaseSettings
from hskstore.stage_two.trainer import train
from hskstore.store import Store, open_store

BATCH_SIZE = 32
STUDENT = ModelShape("the student", 2, (4, 312))
PLACES = {"hidden": (0,)}
"""The one hidden layer that the stores hold, by its place in them."""

TARGETS: dict[Loader, int] = {"ram": 100_000, "blocks": 20_000}
TARGET_MEMORY = 300e6
UNCOUNTED = 3
"""Steps at the start of a segment that are not counted: memory is taken, the first batches are made."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--vocab-from", help="a folder or hub name with BERT's tokenizer")
    parser.add_argument("--stores", type=Path, help="where the stores are kept; else they are made anew and removed")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--steps", type=int, default=300, help="of a segment of training, fewer than an epoch has")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="the result as Markdown")
    parser.add_argument("--case", nargs=2, metavar=("LOADER", "STORE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(rate(*options.case, options.seconds)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        place = options.stores or Path(scratch)
        stores = {rows: store_of(rows, place, options.vocab_from) for rows in options.rows}
        cases = [(loader, rows) for loader in TARGETS for rows in options.rows]
        rates = {case: run(case[0], stores[case[1]], options.seconds) for case in cases}
        steps = step_times(stores[min(stores)], stores[max(stores)], options.steps, options.rounds)
    text = report(rates, steps, options)
    print(text)
    if options.out is not None:
        options.out.write_text(text)


def store_of(rows: int, place: Path, vocab: str | None) -> str:
    folder = place / str(rows)
    if not (folder / "manifest.json").exists():
        began = time.monotonic()
        make_store(folder, rows, vocab_from=vocab)
        print(f"a store of {rows} rows: {time.monotonic() - began:.1f} s", file=sys.stderr)
    return str(folder)


def run(loader: Loader, store: str, seconds: float) -> dict[str, float]:
    """One case of the rate, in a process of its own."""
    command = [sys.executable, __file__, "--case", loader, store, "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{loader} {store}: {found}", file=sys.stderr)
    return found


def rate(loader: Loader, store: str, seconds: float) -> dict[str, float]:
    """Rows a second after the first batch, seconds before it, and the most memory that the feeding took; bytes."""
    before = anonymous_bytes()
    with peak_memory() as peak:
        began = time.perf_counter()
        opened = open_store(store)
        rows = opened.plan.splits["train"].rows
        feed = Feed(open_supply(opened, "train", loader=loader, places=PLACES), BATCH_SIZE, opened.digest, seed=0)
        steps = Prefetched(feed.steps(reads=hidden_phase(opened).reads, start=0, stop=sys.maxsize))
        taken, first, now = 0, 0.0, 0.0
        for step in steps:
            now = time.perf_counter() - began
            first = first or now
            taken += len(step.batch)
            if now > first + seconds and (taken >= rows or now > first + 6 * seconds):
                break
        steps.close()
    return {
        "rows a second": (taken - BATCH_SIZE) / (now - first),
        "seconds to the first batch": first,
        "epochs": taken / rows,
        "bytes": max(0, peak[0] - before),
    }


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The most anonymous memory of this process until the block ends, in the list's one place."""
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], anonymous_bytes())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield peak
    finally:
        over.set()
        looking.join()


def anonymous_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@dataclass(frozen=True)
class Segment:
    """Seconds of every step that counts, and those that steps waited for their batch."""

    steps: list[float]
    waited: float


def step_times(small: str, big: str, steps: int, rounds: int) -> dict[tuple[str, str], list[Segment]]:
    """By loader and store, one a round."""
    stores = {"small": open_store(small), "big": open_store(big)}
    sources: dict[tuple[str, str], Supply] = {
        (loader, size): open_supply(store, "train", loader=loader, places=PLACES)
        for loader in TARGETS
        for size, store in stores.items()
    }
    found: dict[tuple[str, str], list[Segment]] = {case: [] for case in sources}
    for number in range(rounds):
        for case, source in sources.items():
            with tempfile.TemporaryDirectory() as out:
                found[case].append(segment(source, stores[case[1]], steps, number, Path(out)))
            print(f"round {number + 1}, {case}: {1000 * statistics.mean(found[case][-1].steps):.1f} ms a step", file=sys.stderr)
    return found


def hidden_phase(store: Store) -> Phase:
    """The first of mud's, for a student of four layers."""
    return Mud().phases(teacher_shape(store.plan), STUDENT)[0]


def segment(source: Supply, store: Store, steps: int, seed: int, out: Path) -> Segment:
    """One training that begins anew."""
    set_seed(0)
    config = BertConfig(hidden_size=312, num_hidden_layers=4, num_attention_heads=12, intermediate_size=1200)
    method, teacher = Mud(), teacher_shape(store.plan)
    learner = Learner(BertForSequenceClassification(config), aids=method.aids(teacher, STUDENT))
    times: list[float] = []

    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        times.append(time.perf_counter())

    phases = [PhaseSettings(hidden_phase(store), lr=5e-5, batch_size=BATCH_SIZE, steps=steps)]
    (result,) = train(
        learner, source, method, phases, data=store.digest, order=store.digest, seed=seed, out=out, score=None, watch=watch
    )
    taken = [after - before for before, after in itertools.pairwise(times)]
    return Segment(taken[UNCOUNTED - 1 :], result.waited)


def report(rates: dict[tuple[str, int], dict[str, float]], steps: dict[tuple[str, str], list[Segment]], options: Any) -> str:
    lines = ["# Feeding stage two", "", f"`python {' '.join(sys.argv)}`", "", machine(), ""]
    lines += [
        f"Batches of {BATCH_SIZE} rows with their hidden states at (1,9,0.1), prefetched, nothing else running. Targets: "
        + ", ".join(f"{loader} {target:,} rows/s" for loader, target in TARGETS.items())
        + f"; blocks under {TARGET_MEMORY / 1e6:.0f} MB whatever the store.",
        "",
        "| loader | rows of the store | rows/s | to the first batch | epochs | memory it took |",
        "|---|---|---|---|---|---|",
    ]
    for (loader, rows), found in rates.items():
        lines.append(
            f"| {loader} | {rows:,} | {found['rows a second']:,.0f} | {found['seconds to the first batch']:.2f} s |"
            f" {found['epochs']:.1f} | {found['bytes'] / 1e6:,.0f} MB |"
        )
    small, big = min(options.rows), max(options.rows)
    lines += [
        "",
        "Milliseconds of a step of a student of 4 layers, 312 wide, at the precision that the trainer chooses: means of"
        f" {options.steps - UNCOUNTED} steps from the {UNCOUNTED + 1}th on, medians of {options.rounds} rounds in turns. Ratios"
        " are of one round: their median, lowest to highest in brackets.",
        "",
        f"| loader | {small:,} rows | {big:,} rows | ratio | {2 * options.rounds * options.steps} steps waited for data |",
        "|---|---|---|---|---|",
    ]
    for loader in TARGETS:
        few, many = ([1000 * statistics.mean(one.steps) for one in steps[loader, size]] for size in ("small", "big"))
        ratios = [b / a for a, b in zip(few, many, strict=True)]
        lines.append(
            f"| {loader} | {statistics.median(few):.1f} | {statistics.median(many):.1f} | {statistics.median(ratios):.3f}"
            f" ({min(ratios):.3f} to {max(ratios):.3f}) |"
            f" {sum(one.waited for size in ('small', 'big') for one in steps[loader, size]):.2f} s |"
        )
    return "\n".join([*lines, ""])


def machine() -> str:
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    name = model.partition(": ")[2] or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads; torch {torch.__version__}, Python {platform.python_version()}."


if __name__ == "__main__":
    main()
