"""Marginal Utility Diminishes, end to end, on any GLUE task: how much of a teacher's hidden states is worth its bytes?

    python pipelines/mud.py ../shared/data/sst2_small --task sst2 --teacher ../shared/models/minilm-l6-sst2 --students 2,4,6
    python pipelines/mud.py glue/mrpc --task mrpc --model google-bert/bert-base-uncased --students every:4 every:2
    python pipelines/mud.py --quick

A teacher: fine-tuned from --model, or --teacher, a ready folder. It runs once over the data, for one rich store. Students are cut
out of its layers. Each learns every configuration of the paper's grids from the store alone, and gold labels, and the teacher's
predictions (hsk sweep); then what to take is said (hsk recommend), and one page tells it all (hsk report). Stopped and started
again, it goes on where it was. What it leaves in --work: teacher/, stores/rich, students/NAME, sweeps/NAME, report.html.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import get_args

import tomli_w
import typer

from hskstore import Strategy, extract, finetune, recommend, report, sweep
from hskstore.cli.options import quiet_libraries, resumable
from hskstore.cli.print_explore import print_recommended, print_run, print_swept
from hskstore.cli.progress import bars
from hskstore.errors import HskError, OptionError
from hskstore.explore.demo import corpus_tokenizer, new_bert, write_corpus
from hskstore.explore.grids import GridName
from hskstore.models.folder import save_model
from hskstore.students import slice_teacher
from hskstore.watch import Watch

QUICK = {"task": "cola", "grid": ["quick"], "seeds": 2, "steps": 6}
QUICK_ROWS = {"train": 512, "dev": 128}
QUICK_TEACHER = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
GRIDS = {name: {"grid": name} for name in get_args(GridName)} | {"quick": {"keep": ["1,1,1.0", "1,9,0.1", "2,4,0.5"]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="a folder of the task's train and dev files, or a hub name")
    parser.add_argument("--task", help="a GLUE task: cola sst2 mrpc stsb qqp mnli qnli rte wnli")
    teacher = parser.add_mutually_exclusive_group()
    teacher.add_argument("--model", help="the pretrained encoder that becomes the teacher: folder or hub name")
    teacher.add_argument("--teacher", help="a teacher that is ready: folder or hub name")
    parser.add_argument(
        "--students", nargs="+", default=["every:2"], help="the teacher's layers of each: 2,4,6, bottom:3, every:2"
    )
    parser.add_argument("--grid", nargs="+", help="table5 (default), depth, length, width, or TOML files as hsk sweep reads them")
    parser.add_argument("--steps", type=int, help="of a run of the paper's grids, at most; default: the paper's epochs")
    parser.add_argument("--seeds", type=int, help="of each configuration; default: 3")
    parser.add_argument("--split", nargs="+", default=[], help="of the data, labelled, scored besides the dev rows")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--work", type=Path, default=Path("runs/mud"), help="all that is made goes here")
    parser.add_argument("--quick", action="store_true", help="a tiny teacher on made-up data: does it all work?")
    options = parser.parse_args()
    quiet_libraries()
    if options.quick:
        if options.data or options.task or options.model or options.teacher:
            parser.error("--quick makes up its own data and teacher: leave them out")
        make_up(options)
    elif not (options.data and options.task and (options.model or options.teacher)):
        parser.error("name DATA, its --task, and --model or --teacher; or --quick")
    try:
        with resumable(), bars() as watch:
            run(options, watch)
    except HskError as error:
        parser.exit(2, f"mud.py: {error}\n")
    except typer.Exit as stop:
        parser.exit(stop.exit_code)


def make_up(options: argparse.Namespace) -> None:
    """The options of a quick run, where they are not given, and its data and blank teacher."""
    for name, value in QUICK.items():
        if name != "steps" or all(grid in GRIDS for grid in options.grid):
            setattr(options, name, getattr(options, name) or value)
    options.data, options.model = str(options.work / "data"), str(options.work / "blank")
    write_corpus(Path(options.data), QUICK_ROWS, label="label")
    if not Path(options.model, "model.safetensors").exists():
        tokenizer = corpus_tokenizer()
        save_model(new_bert(QUICK_TEACHER, tokenizer), tokenizer, Path(options.model))


def run(options: argparse.Namespace, watch: Watch) -> None:
    work, task, command = options.work, options.task, shlex.join(["python", *sys.argv])
    grids = [grid_file(grid, options) for grid in options.grid or ["table5"]]
    teacher = options.teacher or str(work / "teacher")
    if not options.teacher and not (work / "teacher" / "metrics.json").exists():
        finetune(options.model, options.data, out=teacher, task=task, watch=watch)
    (store,) = extract(teacher, options.data, task=task, rich=True, strategies=[Strategy(1)], out=work / "stores", watch=watch)
    sweeps = []
    for layers in options.students:
        name = layers.replace(",", "-").replace(":", "-")
        student = work / "students" / name
        if not (student / "model.safetensors").exists():
            slice_teacher(teacher, layers, student)
        sweeps.append(work / "sweeps" / name)
        for grid in grids:
            swept = sweep(
                store.root,
                str(student),
                grid=grid,
                out=sweeps[-1],
                seeds=options.seeds or 3,
                jobs=options.jobs,
                data=options.data if options.split else None,
                splits=options.split,
                command=command,
                on_run=print_run,
                watch=watch,
            )
            print_swept(swept)
        print_recommended(recommend(sweeps[-1]))
    page = report([*sweeps, store.root], out=work / "report.html", command=command)
    print(f"{page.page} tells it all")


def grid_file(grid: str, options: argparse.Namespace) -> str:
    """One of the paper's grids as a file, gold labels alone beside it, for so many steps; what is a file stays as it is."""
    if grid not in GRIDS:
        if options.steps is not None:
            raise OptionError(f"--steps {options.steps} is for the paper's grids; in {grid} write max_steps = {options.steps}")
        return grid
    steps = {} if options.steps is None else {"max_steps": options.steps}
    path: Path = options.work / "grids" / f"{grid}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps({"method": ["mud", "finetune"], **GRIDS[grid], **steps}))
    return str(path)


if __name__ == "__main__":
    main()
