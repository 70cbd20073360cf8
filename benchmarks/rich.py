r"""What a rich store costs and saves: extraction beside the bare forward, bytes, configurations cut from it, steps from a view.

    python benchmarks/rich.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2_small --whole ../shared/data/sst2 \
        --out benchmarks/results/rich_cpu_DATE.md

Throughput: the first `--rows` of the data, as benchmarks/features.py measures it. Bytes: of the whole data in each encoding, on
disk; of `--whole`, another data set, as `hsk plan --rich` tells them. Thirty configurations (N^D 1, 2, 3; N^L 1, 4, 9, 16,
50; N^W 0.1, 0.3) are cut one after another from the f16 store for a student of three layers. Steps of mud, fp32, of three of the
teacher's layers, from a view of the store and from the store that is cut from it, in turn.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as hsk sets it; torch reads it once

import torch
from extract_throughput import processor
from features import speed

from hskstore.config import Keep, Strategy, Values
from hskstore.features.view import derive_view, view
from hskstore.stage_one.asked import Asked
from hskstore.stage_one.extract import extract
from hskstore.stage_one.forecast import forecast
from hskstore.stage_two.distill import distill
from hskstore.stage_two.recipe import Recipe
from hskstore.store import Store, open_store
from hskstore.students import slice_teacher

VALUES: tuple[Values, ...] = ("f16", "q8", "q4")
STEPS = 40
PARTS = ["speed", "bytes", "cuts", "steps"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("data", type=Path)
    parser.add_argument("--whole", type=Path)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=5, help="of training, from a view and from a store")
    parser.add_argument("--out", type=Path, help="the result as Markdown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        lines = ["# The rich store", "", f"`python {' '.join(sys.argv)}`", ""]
        lines += [f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}.", ""]
        asked = Asked([], [Strategy(3)], rich=True)
        if "speed" in options.parts:
            lines += [f"Extraction, f16: {speed(options, place / 'speed', asked)}", ""]
        rich, table = stores(options, place)
        if "bytes" in options.parts:
            lines += [*table, ""]
        if "cuts" in options.parts:
            lines += [cuts(rich, place / "cuts"), ""]
        if "steps" in options.parts:
            lines += [steps(options, rich, place)]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out is not None:
        options.out.write_text(text)


def stores(options: argparse.Namespace, place: Path) -> tuple[Store, list[str]]:
    """The f16 store, and a table of bytes."""
    lines = ["| values | on disk | extracted in | planned for the whole set |", "|---|---|---|---|"]
    found: dict[str, Store] = {}
    for values in VALUES if "bytes" in options.parts else VALUES[:1]:
        asked = {"rich": True, "strategies": [Strategy(3, values=values)], "task": "sst2"}
        (made,) = extract(options.teacher, str(options.data), out=place / values, **asked)
        found[values] = open_store(made.root)
        told = ""
        if options.whole is not None and "bytes" in options.parts:
            told = f"{forecast(options.teacher, str(options.whole), **asked).stores[0].bytes / 1e9:.2f} GB"
        lines.append(f"| {values} | {made.bytes / 1e6:.0f} MB | {made.seconds:.0f} s | {told} |")
    return found["f16"], lines


def cuts(rich: Store, place: Path) -> str:
    keeps = [Keep(depth, length, width) for depth, length, width in product((1, 2, 3), (1, 4, 9, 16, 50), (0.1, 0.3))]
    began = time.monotonic()
    for keep in keeps:
        derive_view(view(rich, keep, Strategy(3)), place / keep.name)
    return f"{len(keeps)} configurations cut one after another: {time.monotonic() - began:.0f} s."


def steps(options: argparse.Namespace, rich: Store, place: Path) -> str:
    student = place / "student"
    slice_teacher(options.teacher, (2, 4, 6), student)
    made = view(rich, Keep(1, 9, 0.1), Strategy(3))
    sources = {"view": made, "store": open_store(derive_view(made, place / "cut").root)}
    recipe = Recipe(str(student), epochs=(9, 1), max_steps=STEPS, precision="fp32", loader="ram")
    ratios = []
    for number in range(options.rounds + 1):
        seconds = {}
        for name in list(sources)[:: 1 if number % 2 else -1]:
            done = distill(sources[name], recipe, out=place / f"{name}{number}")
            seconds[name] = done.phases[0].seconds / done.phases[0].steps
        print(f"round {number}: {seconds}", file=sys.stderr, flush=True)
        if number:  # the first is not counted
            ratios.append(seconds["store"] / seconds["view"])
    low, middle, high = (100 * ratio for ratio in (min(ratios), statistics.median(ratios), max(ratios)))
    return (
        f"A step from a view runs at {middle:.1f} % of the speed of one from the store that is cut from it"
        f" ({low:.1f} to {high:.1f} %, {options.rounds} rounds of {STEPS} steps, rows in memory)."
    )


if __name__ == "__main__":
    main()
