"""One store, students of every origin: what each learns from gold labels, logits, and a sliver of the hidden states.

    python pipelines/students.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2_small --task sst2

The students: three layers of the teacher; the whole teacher pruned to half its heads and FFN units (ROSITA), before it learns
(rosita) or while it does (gradual); a small BERT from scratch; a BiLSTM. The teacher runs once; after that only the store is
read. A run that was stopped goes on where it was.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from bilstm import BiLstm
from transformers import AutoConfig

from hskstore.config import Keep, Strategy
from hskstore.methods import Finetune, Kd, Method, Mud
from hskstore.models.anatomy import describe_model, describe_module
from hskstore.models.folder import weight_bytes
from hskstore.models.widths import PruneTo
from hskstore.stage_one.extract import extract
from hskstore.stage_two.distill import distill
from hskstore.stage_two.evaluate import evaluate
from hskstore.stage_two.recipe import Recipe
from hskstore.store import Store, open_store
from hskstore.students import Shape, new_student, prune_teacher, slice_teacher

STUDENTS = ["sliced", "rosita", "gradual", "scratch", "bilstm"]
METHODS: dict[str, Method] = {"finetune": Finetune(), "kd": Kd(), "mud": Mud()}


@dataclass(frozen=True)
class Student:
    """Where a student comes from (by seed), and the peak rate it learns at: None, the paper's for pretrained weights.

    `prune_to` is how narrow it gets while it learns.
    """

    make: Callable[[int], Any]
    lr: float | None = None
    prune_to: PruneTo | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("data")
    parser.add_argument("--task", required=True)
    parser.add_argument("--keep", default="1,9,0.1")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--splits", nargs="+", default=["validation", "test"], help="scored together")
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=STUDENTS)
    parser.add_argument("--work", type=Path, default=Path("runs/students"), help="store, students and runs go here")
    parser.add_argument("--out", type=Path, help="the result as JSON")
    options = parser.parse_args()

    (store,) = extract(
        options.teacher,
        options.data,
        task=options.task,
        keeps=[Keep.parse(options.keep)],
        strategies=[Strategy(3)],  # the layer kept at depth 1 guides the last layer of a student of any depth
        out=options.work / "stores",
    )
    students = {name: student for name, student in origins(options, store.root).items() if name in options.students}
    result: dict[str, Any] = {
        "teacher": {"anatomy": describe_model(options.teacher).__dict__} | score(options.teacher, options),
        "steps": options.steps,
        "store": {"keep": options.keep, "bytes": store.bytes, "digest": store.digest},
        "students": {},
        "runs": [],
    }
    for name, student in students.items():
        for seed in range(options.seeds):
            for method in METHODS:
                result["runs"].append(
                    {"student": name, "method": method, "seed": seed}
                    | learn(name, student, method, seed, open_store(store.root), options)
                )
                print(json.dumps(result["runs"][-1]), flush=True)
    for name, student in students.items():
        folder = options.work / "runs" / f"{name}-kd-{options.steps}-0"
        made = student.make(0)
        anatomy = describe_model(str(folder)) if isinstance(made, str) else describe_module(made, name)
        result["students"][name] = anatomy.__dict__ | {"bytes": weight_bytes(str(folder)), "lr": student.lr}
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


def origins(options: argparse.Namespace, store: str) -> dict[str, Student]:
    """The students, each made when it is asked for and kept in a folder."""
    folders = options.work / "students"
    teacher, plan = options.teacher, open_store(store).plan
    half = half_as_wide(teacher)

    def once(name: str, make: Callable[[Path], object]) -> str:
        if not (folders / name / "config.json").exists():
            make(folders / name)
        return str(folders / name)

    def bilstm(seed: int) -> BiLstm:
        torch.manual_seed(seed)
        return BiLstm(plan.tokenizer["vocabulary"], len(plan.teacher["labels"]))

    def scratch(seed: int) -> str:
        shape = Shape(layers=4, hidden=192, heads=3, ffn=768)
        return once(f"scratch-{seed}", lambda out: new_student(shape, out, vocab_from=teacher, seed=seed))

    def pruned(out: Path) -> None:
        prune_teacher(teacher, options.data, task=options.task, to=half, out=out)

    return {
        "sliced": Student(lambda seed: once("sliced", lambda out: slice_teacher(teacher, "every:2", out))),
        "rosita": Student(lambda seed: once("rosita", pruned)),
        "gradual": Student(lambda seed: once("whole", lambda out: slice_teacher(teacher, "every:1", out)), prune_to=half),
        "scratch": Student(scratch, lr=3e-4),
        "bilstm": Student(bilstm, lr=1e-3),
    }


def half_as_wide(teacher: str) -> PruneTo:
    """Half the teacher's heads and FFN units, and word embeddings of rank 128, as in the paper."""
    config = AutoConfig.from_pretrained(teacher)
    return PruneTo(config.num_attention_heads // 2, config.intermediate_size // 2, 128)


def learn(name: str, student: Student, method: str, seed: int, store: Store, options: argparse.Namespace) -> dict[str, Any]:
    """Train one student by one method, unless that was done, and score it on all scored rows together."""
    out = options.work / "runs" / f"{name}-{method}-{options.steps}-{seed}"
    made = student.make(seed)
    if not was_done(out, store):
        # More epochs than any number of steps asked for, in the paper's proportion: hidden states 2, predictions 1.
        recipe = Recipe(
            student=made if isinstance(made, str) else None,
            method=METHODS[method],
            epochs=(200, 100) if method == Mud.name else (300,),
            lr=None if student.lr is None else (student.lr,),
            max_steps=options.steps,
            prune_to=student.prune_to,
            seed=seed,
        )
        distill(store, recipe, student=None if isinstance(made, str) else made, out=out)
    seconds = json.loads((out / "metrics.json").read_text())["seconds"]
    if isinstance(made, str):
        return {"seconds": seconds} | score(str(out), options)
    safetensors.torch.load_model(made, str(out / "model.safetensors"))
    return {"seconds": seconds} | score(made, options, classes=store.plan.task["labels"])


def was_done(out: Path, store: Store) -> bool:
    """Whether a run ended, and was of this store."""
    done = out / "metrics.json"
    if done.exists() and json.loads(done.read_text())["digest"] != store.digest:
        raise SystemExit(f"{out} learnt from another store: choose another --work")
    return done.exists()


def score(model: str | torch.nn.Module, options: argparse.Namespace, classes: Sequence[str] = ()) -> dict[str, Any]:
    """The first metric on all scored rows together, with its standard error; `classes` are those of a module's logits."""
    found = evaluate(
        model,
        options.data,
        task=options.task,
        splits=options.splits,
        tokenizer=options.teacher,
        classes=classes,
        latency=False,
    )
    metric = next(iter(found.score))
    return {"metric": metric, "score": found.score[metric], "standard_error": found.standard_error[metric], "rows": found.rows}


def table(result: dict[str, Any]) -> str:
    """Means over seeds with the seeds' spread; size and cost of each student beside them."""
    methods = " | ".join(METHODS)
    lines = [
        f"| student | {methods} | parameters | bytes | MFLOPs a token | CPU ms, 32 tokens | CPU ms, 128 tokens |",
        "|---" * (len(METHODS) + 6) + "|",
    ]
    teacher = result["teacher"]
    blank = " | ".join(["", *[""] * (len(METHODS) - 1)])
    lines.append(f"| teacher ({teacher['score']:.4f} ± {teacher['standard_error']:.4f}) | {blank} | {cost(teacher['anatomy'])} |")
    for name, anatomy in result["students"].items():
        scores = []
        for method in METHODS:
            found = [run["score"] for run in result["runs"] if (run["student"], run["method"]) == (name, method)]
            spread = (max(found) - min(found)) / 2 if len(found) > 1 else math.nan
            scores.append(f"{statistics.mean(found):.4f} ± {spread:.4f}")
        lines.append(f"| {name} | {' | '.join(scores)} | {cost(anatomy)} |")
    return "\n".join(lines)


def cost(anatomy: dict[str, Any]) -> str:
    flops, latency = anatomy["flops_per_token"] or {}, anatomy["latency_ms"] or {}
    megabytes = anatomy.get("bytes", 4 * anatomy["total_parameters"]) / 1e6
    return (
        f"{anatomy['total_parameters']:,} | {megabytes:.1f} MB | {flops.get(32, math.nan) / 1e6:.1f}"
        f" | {latency.get(32, math.nan):.1f} | {latency.get(128, math.nan):.1f}"
    )


if __name__ == "__main__":
    main()
