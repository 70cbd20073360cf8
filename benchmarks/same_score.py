"""Do the ways of training reach the same score? Rows in memory or read in blocks, float32 or what "auto" chooses; several seeds.

    python benchmarks/same_score.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2_small --work runs/same_score \
        --ways "in memory, auto" "in blocks, auto" --online runs/online.json --out benchmarks/results/same_score_cpu_DATE.md

The student is three of the teacher's layers, the store (1,9,0.1), the method `mud`. A window of `blocks` is one unit of 512 rows
here, as if the store were a thousand times as big: the least shuffling that there is. Runs are kept in `--work` and found again.
`--online JSON...` adds what `online_opponent.py --out` wrote.
"""

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path

import hskstore.stage_two.feed
from hskstore.config import Keep, Loader, Strategy, TrainPrecision
from hskstore.methods import Mud
from hskstore.stage_one.extract import extract
from hskstore.stage_two.distill import distill
from hskstore.stage_two.evaluate import evaluate
from hskstore.stage_two.recipe import Recipe
from hskstore.students import slice_teacher

SLICED = (2, 4, 6)
WAYS: dict[str, tuple[Loader, TrainPrecision]] = {
    "in memory, auto": ("ram", "auto"),
    "in blocks, auto": ("blocks", "auto"),
    "in memory, fp32": ("ram", "fp32"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--online", type=Path, nargs="*", default=[])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="the result as Markdown")
    options = parser.parse_args()
    student = options.work / "student"
    if not (student / "config.json").exists():
        slice_teacher(options.teacher, SLICED, student)
    strategies = [Strategy(len(SLICED))]
    keeps = [Keep.parse("1,9,0.1")]
    (store,) = extract(
        options.teacher, options.data, task="sst2", keeps=keeps, strategies=strategies, out=options.work / "stores"
    )
    hskstore.stage_two.feed.WINDOW_BYTES = 1
    scores: dict[str, list[float]] = {}
    errors: list[float] = []
    for way in options.ways:
        for seed in range(options.seeds):
            out = options.work / f"{way.replace(', ', '-').replace(' ', '-')}-{options.steps}-{seed}"
            if not (out / "metrics.json").exists():
                loader, precision = WAYS[way]
                recipe = Recipe(
                    student=str(student),
                    method=Mud(),
                    epochs=(200, 100),
                    max_steps=options.steps,
                    seed=seed,
                    loader=loader,
                    precision=precision,
                )
                distill(store.root, recipe, out=out)
            found = evaluate(str(out), options.data, task="sst2", splits=["validation", "test"], latency=False)
            scores.setdefault(way, []).append(found.score["accuracy"])
            errors.append(found.standard_error["accuracy"])
            precision = json.loads((out / "metrics.json").read_text())["precision"]
            print(f"{way}, seed {seed}: {found.score['accuracy']:.4f} ({precision})", file=sys.stderr, flush=True)
    for file in options.online:
        scores.setdefault("the teacher in the loop, fp32, padded to 64", []).append(json.loads(file.read_text())["score"])
    text = report(scores, statistics.mean(errors), options.steps)
    print(text)
    if options.out is not None:
        options.out.write_text(text)


def report(scores: dict[str, list[float]], error: float, steps: int) -> str:
    lines = [
        "# The same score, however it is trained",
        "",
        f"`python {shlex.join(sys.argv)}`",
        "",
        f"Accuracy on dev and test together after {steps} steps; one standard error over the rows is {error:.4f}.",
        "",
        "| rows and precision | by seed | mean | spread over seeds |",
        "|---|---|---|---|",
    ]
    for way, found in scores.items():
        spread = f"{statistics.stdev(found):.4f}" if len(found) > 1 else ""
        lines.append(f"| {way} | {', '.join(f'{score:.4f}' for score in found)} | {statistics.mean(found):.4f} | {spread} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
