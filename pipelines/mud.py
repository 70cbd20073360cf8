"""Marginal Utility Diminishes, Figure 8 in small: does a sliver of the hidden states teach as well as all of them?

One teacher, one student cut from its layers, the same number of steps for every method, several seeds:

    python pipelines/mud.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2_small --task sst2 --student-layers 2,4,6

The teacher runs once, for one rich store, of which both configurations are views; after that only the store is read. A run that
was stopped goes on where it was.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

from hskstore.config import Keep, Strategy
from hskstore.features.view import view
from hskstore.methods import Finetune, Kd, Method, Mud
from hskstore.stage_one.extract import extract
from hskstore.stage_two.distill import distill
from hskstore.stage_two.evaluate import evaluate
from hskstore.stage_two.recipe import Recipe
from hskstore.store import Store, open_store
from hskstore.students import slice_teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("data")
    parser.add_argument("--task", required=True)
    parser.add_argument("--student-layers", default="2,4,6", help="the teacher's layers that make the student")
    parser.add_argument("--keep", default="1,9,0.1", help="the sliver; it is compared with keeping all")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--splits", nargs="+", default=["validation", "test"], help="scored together")
    parser.add_argument("--work", type=Path, default=Path("runs/mud_figure"), help="stores, students and runs go here")
    parser.add_argument("--out", type=Path, help="the result as JSON")
    options = parser.parse_args()

    layers = tuple(int(layer) for layer in options.student_layers.split(","))
    student = options.work / "student"
    if not (student / "config.json").exists():
        slice_teacher(options.teacher, layers, student)
    strategy = Strategy(len(layers))
    (rich,) = extract(
        options.teacher, options.data, task=options.task, rich=True, strategies=[strategy], out=options.work / "stores"
    )
    sliver, everything = (view(open_store(rich.root), Keep.parse(keep), strategy) for keep in (options.keep, "all"))
    result = {
        "teacher": score(options.teacher, options),
        "store": {"bytes": rich.bytes, "digest": rich.digest},
        "steps": options.steps,
        "runs": [],
    }
    methods: dict[str, tuple[Method, Store]] = {
        "finetune": (Finetune(), sliver),
        "kd": (Kd(), sliver),
        f"mud {options.keep}": (Mud(), sliver),
        "mud all": (Mud(), everything),
    }
    for seed in range(options.seeds):
        for name, (method, store) in methods.items():
            out = options.work / f"{name.replace(' ', '-').replace(',', '_')}-{options.steps}-{seed}"
            if not (out / "metrics.json").exists():
                recipe = Recipe(str(student), method, epochs=epochs(method), max_steps=options.steps, seed=seed)
                distill(store, recipe, out=out)
            seconds = json.loads((out / "metrics.json").read_text())["seconds"]
            result["runs"].append({"method": name, "seed": seed, "seconds": seconds} | score(str(out), options))
            print(json.dumps(result["runs"][-1]), flush=True)
            if options.out is not None:
                options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


def epochs(method: Method) -> tuple[int, ...]:
    """More than any number of steps asked for, in the paper's proportion of the phases: hidden states 2, predictions 1."""
    return (200, 100) if method.name == Mud.name else (300,)


def score(model: str, options: argparse.Namespace) -> dict[str, object]:
    """The first metric on all scored rows together, with its standard error."""
    found = evaluate(model, options.data, task=options.task, splits=options.splits, latency=False)
    metric = next(iter(found.score))
    return {"metric": metric, "score": found.score[metric], "standard_error": found.standard_error[metric], "rows": found.rows}


def table(result: dict) -> str:
    """Means over seeds: the score, one standard error of a model's score over the choice of rows, the spread over seeds."""
    lines = ["| method | score | one standard error | seeds' spread | seconds |", "|---|---|---|---|---|"]
    teacher = result["teacher"]
    lines.append(f"| teacher | {teacher['score']:.4f} | {teacher['standard_error']:.4f} | | |")
    for name in dict.fromkeys(run["method"] for run in result["runs"]):
        runs = [run for run in result["runs"] if run["method"] == name]
        scores = [run["score"] for run in runs]
        spread = statistics.stdev(scores) if len(scores) > 1 else math.nan
        rows_error = statistics.mean(run["standard_error"] for run in runs)
        seconds = statistics.mean(run["seconds"] for run in runs)
        lines.append(f"| {name} | {statistics.mean(scores):.4f} | {rows_error:.4f} | {spread:.4f} | {seconds:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
