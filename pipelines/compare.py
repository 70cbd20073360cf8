r"""Which method teaches best? Every method that a store serves, on one student, with the same steps and batches, and honest ties.

    hsk student slice ../shared/models/minilm-l6-mrpc --layers 2,4,6 --out runs/compare/sliced
    hsk extract ../shared/models/minilm-l6-mrpc ../shared/data/mrpc --task mrpc --student-layers 3 --out runs/compare/stores \
        --for mud --for kd --for finetune --for pkd --for distilbert --for ckd --for minilm --for minilmv2 --for tinybert
    python pipelines/compare.py runs/compare/stores/STORE runs/compare/sliced --test ../shared/data/mrpc/test_labeled.txt

Each method has its defaults, and so has each --recipe FILE its method and weights; steps, rate and batches are the same for all.
Where a method has two phases, two thirds of the steps are the first one's. Scores are of the store's validation rows, which also
choose the best epoch, and of the rows of --test, together. Rows are drawn again (a paired bootstrap: all methods are scored on
the same draws); methods whose difference from the best of their group lies on both sides of zero in 95 % of the draws are tied.
A run that was stopped goes on where it was.
"""

import argparse
import json
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from hskstore.config import Strategy
from hskstore.errors import StoreError
from hskstore.explore.bootstrap import draws, groups, interval
from hskstore.explore.knowledge import bytes_read
from hskstore.explore.show import describe
from hskstore.methods import METHODS, Method
from hskstore.methods.serving import teacher_shape
from hskstore.models.load import load_classifier
from hskstore.models.run import shape_of, usual_length
from hskstore.stage_one.extract import extract
from hskstore.stage_two.distill import distill
from hskstore.stage_two.recipe import Recipe, read_recipe
from hskstore.stage_two.rows import reading_options, rows_from_data, rows_from_store, telling_rows
from hskstore.stage_two.scores import predict
from hskstore.stage_two.selecting import selecting
from hskstore.stage_two.student import check_store
from hskstore.store import Store, open_store
from hskstore.students import slice_teacher
from hskstore.text.dataset import label_ids, read_dataset
from hskstore.text.metrics import compute_metrics
from hskstore.text.tally import TokenCounts
from hskstore.text.tasks import Task
from hskstore.text.tokenise import tokenise
from hskstore.text.tokenizers import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("student", help="the folder that every run starts from")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--recipe", nargs="+", type=Path, default=[], help="recipes whose method and weights are tried as well")
    add_arguments(parser)
    options = parser.parse_args()
    recipes = {name: Recipe(method=METHODS[name]()) for name in options.methods}
    recipes |= {path.stem if path.stem not in recipes else path.name: Recipe.of(read_recipe(path)) for path in options.recipe}
    compare(options.store, options.student, recipes, options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of every comparison."""
    parser.add_argument("--test", help="a file of labelled rows that no run has seen, laid out as the store's task is")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--lr", type=float, default=5e-5, help="the peak rate of every phase")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--top-seeds", type=int, default=3, help="of those that are tied at the top, or that decide")
    parser.add_argument("--work", type=Path, default=Path("runs/compare"), help="students go here")
    parser.add_argument("--out", type=Path, help="what was found, as NAME.json, NAME.md and NAME.svg")


def add_table_arguments(parser: argparse.ArgumentParser, rows: Collection[str]) -> None:
    """Those of a paper's table in small."""
    parser.add_argument("teacher")
    parser.add_argument("data", type=Path, help="a folder with train.tsv and dev.tsv")
    parser.add_argument("--task", required=True)
    parser.add_argument("--rows", type=int, default=5000, help="of train")
    parser.add_argument("--layers", default="2,4,6", help="the teacher's layers that make the student")
    parser.add_argument("--only", nargs="+", choices=rows, default=list(rows), help="some of the table's rows")
    add_arguments(parser)


def small(options: argparse.Namespace) -> tuple[str, str, int]:
    """The first rows of train and all of dev in a folder, the student that is made of the teacher's layers, and its depth."""
    data, student = options.work / "data", options.work / "student"
    data.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train.tsv", options.rows + 1), ("dev.tsv", None)):
        with (options.data / name).open(encoding="utf-8") as source, (data / name).open("w", encoding="utf-8") as out:
            out.writelines(islice(source, rows))
    layers = tuple(int(layer) for layer in options.layers.split(","))
    if not (student / "config.json").exists():
        slice_teacher(options.teacher, layers, student)
    return str(data), str(student), len(layers)


def compare_table(
    options: argparse.Namespace, rows: Mapping[str, Recipe], methods: Sequence[Method], deciding: Collection[str]
) -> None:
    """A paper's table in small: one store for all that `methods` read, and those of its rows that are asked for."""
    data, student, depth = small(options)
    (store,) = extract(
        options.teacher,
        data,
        task=options.task,
        methods=methods,
        strategies=[Strategy(depth)],
        out=options.work / "stores",
    )
    recipes = {name: rows[name] for name in options.only}
    compare(store.root, student, recipes, options, [name for name in deciding if name in recipes])


def compare(
    root: str, student: str, recipes: Mapping[str, Recipe], options: argparse.Namespace, deciding: Collection[str] = ()
) -> None:
    """Train, score, print and write what one store serves. More seeds get those of the recipes that decide, or, where none is
    named, that are tied at the top."""
    contenders, unserved = served(open_store(root), student, recipes, options)
    compare_all(contenders, options, deciding, unserved)


def compare_all(
    contenders: "Mapping[str, Contender]",
    options: argparse.Namespace,
    deciding: Collection[str] = (),
    unserved: Sequence[str] = (),
) -> None:
    """`compare`, whatever store each learns from; all are of the same rows."""
    found: dict[str, list[Run]] = {name: [] for name in contenders}
    for seed in range(options.seeds):
        for name, contender in contenders.items():
            found[name].append(learn(name, contender, seed, options))
    first = next(iter(found))
    gold, task = found[first][0].label, Task.from_json(contenders[first].store.plan.task)
    top = deciding or groups(means(found), drawn_scores(task, found, gold))[0]
    for name in top if len(top) > 1 else ():
        found[name] += [learn(name, contenders[name], seed, options) for seed in range(options.seeds, options.top_seeds)]
    result = conclude(task, found, gold, {name: each.bytes for name, each in contenders.items()})
    text = table(result, task.metrics[0], len(gold)) + "".join(f"\nNot compared: {why}.\n" for why in unserved)
    print(text)
    if options.out is not None:
        numbers = {name: getattr(options, name) for name in ("steps", "lr", "batch_size")}
        stores = {name: each.store.digest for name, each in contenders.items()}
        document = {"stores": stores, **numbers, "metric": task.metrics[0], "rows": len(gold), "methods": result}
        options.out.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
        options.out.with_suffix(".md").write_text(text)
        draw(result, task.metrics[0], options.out.with_suffix(".svg"))


# --- what is compared


@dataclass(frozen=True)
class Contender:
    """A store, a recipe without its numbers, and the bytes on disk of all that it reads of the train rows."""

    store: Store
    recipe: Recipe
    bytes: int


def served(
    store: Store, student: str, recipes: Mapping[str, Recipe], options: argparse.Namespace
) -> tuple[dict[str, Contender], list[str]]:
    """The recipes that a store serves for this student, by name, and why not the others."""
    model, _ = load_classifier(student, num_labels=len(store.plan.teacher["labels"]), ignore_mismatched_sizes=True)
    shape = shape_of(model, *telling_rows(rows_from_store(store, "validation")), name=student)
    teacher = teacher_shape(store.plan)
    contenders: dict[str, Contender] = {}
    unserved: list[str] = []
    sizes = describe(store.root).array_bytes
    for name, recipe in recipes.items():
        phases = recipe.phases(teacher, shape)
        try:
            check_store(store, phases, shape, recipe.method)
            selecting(phases, recipe, store, teacher, shape)
        except StoreError as error:
            unserved.append(str(error))
            continue
        epochs = (200, 100) if len(phases) == 2 else (300,)  # more than any number of steps asked for
        numbers = {"epochs": epochs, "lr": (options.lr,), "batch_size": (options.batch_size,), "max_steps": options.steps}
        whole = replace(recipe, student=student, **numbers)
        contenders[name] = Contender(store, whole, bytes_read(store, recipe.read_phases(teacher, shape), sizes))
    return contenders, unserved


# --- one run


@dataclass(frozen=True)
class Run:
    """A trained student: its metric on all scored rows together, CPU seconds from reading to the saved student, its logits, and
    the gold labels."""

    score: float
    seconds: float
    logits: Float[np.ndarray, "row class"]
    label: Shaped[np.ndarray, " row"]


def learn(name: str, contender: Contender, seed: int, options: argparse.Namespace) -> Run:
    """Train one student, unless that was done, and score it."""
    store = contender.store
    out = (
        options.work
        / f"{store.digest[:8]}-{Path(str(contender.recipe.student)).name}-{name}-{options.steps}-{options.lr:g}-{seed}"
    )
    recipe, noted = replace(contender.recipe, seed=seed), out / "compared.json"
    if not noted.exists():
        began = time.process_time()
        distill(store, recipe, out=out)
        noted.write_text(json.dumps({"recipe": recipe.to_toml(), "cpu_seconds": round(time.process_time() - began, 1)}))
    known = json.loads(noted.read_text())
    if known["recipe"] != recipe.to_toml():
        raise SystemExit(f"{out} was learnt by another recipe of that name: choose another --work, or delete it")
    task = Task.from_json(store.plan.task)
    logits, label = scored(str(out), store, task, options.test)
    score = compute_metrics(task, logits, label)[task.metrics[0]]
    print(json.dumps({"method": name, "seed": seed, "score": round(score, 4), "cpu_seconds": known["cpu_seconds"]}), flush=True)
    return Run(score, known["cpu_seconds"], logits, label)


def scored(
    folder: str, store: Store, task: Task, test: str | None
) -> tuple[Float[np.ndarray, "row class"], Shaped[np.ndarray, " row"]]:
    """A student's logits on the store's validation rows and those of the test file, and their gold labels."""
    model, _ = load_classifier(folder)
    own = load_tokenizer(folder)
    parts = [rows_from_store(store, "validation", **reading_options(model, own, store))]
    labels = [parts[0].label]
    if test is not None:
        length = usual_length(model, own, store.plan.pass_.max_length)
        known = {"task": task.name} if task.name != "custom" else {"text": task.text, "label": task.label, "classes": task.labels}
        data = read_dataset(test, splits=("test",), **known)
        examples = data.splits["test"]
        parts.append(
            rows_from_data(
                tokenise(examples, own, length, split="test", counts=TokenCounts(own, len(examples.text), length)),
                own.pad_token_id,
            )
        )
        labels.append(label_ids(data.task.labels, task.labels)[examples.label] if task.kind == "classes" else examples.label)
    if any(label is None for label in labels):
        raise SystemExit("the rows have no labels to score against: extract with --label")
    return np.concatenate([predict(model, rows) for rows in parts]), np.concatenate(labels)


# --- what it says


def means(found: Mapping[str, Sequence[Run]]) -> dict[str, float]:
    return {name: statistics.mean(run.score for run in runs) for name, runs in found.items()}


def drawn_scores(
    task: Task, found: Mapping[str, Sequence[Run]], gold: Shaped[np.ndarray, " row"]
) -> dict[str, Float[np.ndarray, " draw"]]:
    """Each method's score, mean over its seeds, on the same draws of the rows."""
    return draws(task, {name: [run.logits for run in runs] for name, runs in found.items()}, gold)


def conclude(
    task: Task, found: Mapping[str, Sequence[Run]], gold: Shaped[np.ndarray, " row"], sizes: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The methods by group and score, with what each is behind the best one: the difference, and 95 % of its draws."""
    scores, drawn = means(found), drawn_scores(task, found, gold)
    best = max(scores, key=lambda name: scores[name])
    rows = []
    for place, group in enumerate(groups(scores, drawn)):
        for name in group:
            rows.append(
                {
                    "method": name,
                    "group": chr(ord("a") + place),
                    "score": scores[name],
                    "seeds": [run.score for run in found[name]],
                    "standard_error": float(drawn[name].std(ddof=1)),
                    "behind": scores[best] - scores[name],
                    "behind_95": list(interval(drawn[best], drawn[name])),
                    "cpu_seconds": statistics.mean(run.seconds for run in found[name]),
                    "bytes": sizes[name],
                }
            )
    return rows


def table(result: Sequence[Mapping[str, Any]], metric: str, rows: int) -> str:
    lines = [
        f"{metric} on {rows:,} rows. Methods with one letter are tied: none can be told from the first of them.",
        "",
        "| | method | score | seeds | one standard error | behind the best (95 % of the draws) | CPU seconds | MB read |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result:
        seeds = " ".join(f"{score:.4f}" for score in row["seeds"])
        low, high = row["behind_95"]
        behind = f"{row['behind']:.4f} ({low:.4f} to {high:.4f})" if row["behind"] else ""
        lines.append(
            f"| {row['group']} | {row['method']} | {row['score']:.4f} | {seeds} | {row['standard_error']:.4f} | {behind} "
            f"| {row['cpu_seconds']:.0f} | {row['bytes'] / 1e6:.1f} |"
        )
    return "\n".join(lines) + "\n"


def draw(result: Sequence[Mapping[str, Any]], metric: str, path: Path) -> None:
    """Score against the bytes that were read, with one standard error over the rows."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = metric  # the same figure, the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for row in result:
        axes.errorbar(
            row["bytes"] / 1e6,
            row["score"],
            yerr=row["standard_error"],
            fmt="o",
            color=f"C{ord(row['group']) - ord('a')}",
            capsize=3,
        )
        axes.annotate(
            f"{row['method']} ({row['group']})",
            (row["bytes"] / 1e6, row["score"]),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_xlabel("MB read of the store")
    axes.set_ylabel(metric)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
