"""Is this code as fast as that code? Two trees in turn, in a lasting process of one thread each.

    python benchmarks/speed.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2_small --against HEAD~1 --rounds 15 \
        --out benchmarks/results/speed_cpu_DATE.md

In every round each tree extracts `hidden` at (1,9,0.1) from the first `--rows` of the data, and trains three of the teacher's
layers from such a store by mud for 24 steps, fp32; the order changes from round to round. Ratios are within a round.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from records import HERE, code_of, first_rows, machine, tree_of

STEPS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--against", help="a commit")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="the result as Markdown")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        work(options.teacher, options.data, options.work)
        return
    with tempfile.TemporaryDirectory() as scratch:
        data = first_rows(options.data.resolve(), options.rows, Path(scratch, "data"))
        trees = {"before": tree_of(options.against, Path(scratch, "there")), "now": HERE}
        text = report(measure(trees, options.teacher.resolve(), data, Path(scratch), options.rounds), options)
    print(text)
    if options.out is not None:
        options.out.write_text(text)


def work(teacher: Path, data: Path, place: Path) -> None:
    """Do what is asked for line by line on standard input, and say what it took."""
    from hskstore.config import Keep, Strategy
    from hskstore.stage_one.extract import extract
    from hskstore.stage_two.distill import distill
    from hskstore.stage_two.recipe import Recipe
    from hskstore.students import slice_teacher

    def extracted(out: Path) -> Any:
        (made,) = extract(str(teacher), str(data), out=out, keeps=[Keep(1, 9, 0.1)], strategies=[Strategy(3)], task="sst2")
        return made

    slice_teacher(str(teacher), (2, 4, 6), place / "student")
    store = extracted(place / "base").root
    print("ready", flush=True)
    for number, line in enumerate(sys.stdin):
        out = place / str(number)
        wall, cpu = time.monotonic(), time.process_time()
        phases = 0.0
        if line.strip() == "extract":
            extracted(out)
        else:
            recipe = Recipe(student=str(place / "student"), max_steps=STEPS, precision="fp32")
            phases = sum(phase.seconds for phase in distill(store, recipe, out=out).phases)
        print(json.dumps([time.monotonic() - wall, time.process_time() - cpu, phases]), flush=True)
        shutil.rmtree(out)


def measure(
    trees: dict[str, Path], teacher: Path, data: Path, scratch: Path, rounds: int
) -> dict[tuple[str, str], list[list[float]]]:
    """Seconds by tree and task: wall clock, CPU, and of the training's phases alone; the first round is not counted."""
    workers: dict[str, subprocess.Popen[str]] = {}
    for name, tree in trees.items():
        place = scratch / name
        place.mkdir()
        command = [sys.executable, __file__, str(teacher), str(data), "--work", str(place)]
        environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        workers[name] = subprocess.Popen(command, cwd=tree, env=environment, text=True, **pipes)
    found: dict[tuple[str, str], list[list[float]]] = {(name, task): [] for name in trees for task in ("extract", "train")}
    for name in workers:
        answer(workers[name], "ready")
    for number in range(rounds + 1):
        for task in ("extract", "train"):
            for name in list(workers)[:: 1 if number % 2 else -1]:
                stdin = workers[name].stdin
                assert stdin is not None
                stdin.write(task + "\n")
                stdin.flush()
                taken = json.loads(answer(workers[name], "["))
                if number:
                    found[name, task].append(taken)
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.communicate()
    return found


def answer(worker: "subprocess.Popen[str]", beginning: str) -> str:
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.startswith(beginning):
            return line
    sys.exit("a worker ended; run it alone with --work to see why")


def report(found: dict[tuple[str, str], list[list[float]]], options: argparse.Namespace) -> str:
    told = machine()
    lines = ["# This code beside that", "", f"`python {' '.join(sys.argv)}`", ""]
    lines += [f"Before: {options.against}; now: {code_of(HERE)}. {told['processor']}, one thread, torch {told['torch']}.", ""]
    lines += [f"{options.rounds} rounds; seconds are medians, ratios medians within a round, and their range.", ""]
    lines += ["| | before | now | now / before |", "|---|---|---|---|"]
    rows = [("extract", 0, "extraction, wall clock"), ("extract", 1, "extraction, CPU")]
    rows += [("train", 0, f"{STEPS} steps of mud with all around them, wall clock"), ("train", 1, "the same, CPU")]
    rows += [("train", 2, "the steps alone, wall clock")]
    for task, part, name in rows:
        before, now = ([taken[part] for taken in found[tree, task]] for tree in ("before", "now"))
        ratios = [new / old for old, new in zip(before, now, strict=True)]
        lines.append(
            f"| {name} | {statistics.median(before):.3f} s | {statistics.median(now):.3f} s"
            f" | {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
