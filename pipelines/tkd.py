"""Tree Knowledge Distillation, Table 1 in small: who shall choose the tokens that a student learns?

    python pipelines/tkd.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2 --task sst2 --rows 5000 \\
        --test ../shared/data/sst2_small/test.tsv --out benchmarks/results/tkd_sst2_cpu_DATE

The eleven students of the table, with three of the teacher's layers, from one store of the first `--rows` of the data:
fine-tuned, KD, PKD, and TKD by the student's own tree, with all tokens, random ones, the teacher's tree, and what is joined of
them. Weights are the methods' defaults; KD and PKD are at TKD's temperature, with as much of the gold label. How they are
compared: pipelines/compare.py.
"""

import argparse
from itertools import islice
from pathlib import Path

from compare import add_arguments, compare

from hskstore.config import Strategy
from hskstore.methods import Finetune, Kd, Pkd, Tkd
from hskstore.stage_one.extract import extract
from hskstore.stage_two.recipe import Recipe
from hskstore.students import slice_teacher

PLAIN = Tkd()
ROWS = {
    "finetune": Finetune(),
    "kd": Kd(temperature=PLAIN.temperature, alpha=PLAIN.alpha),
    "pkd": Pkd(temperature=PLAIN.temperature, alpha=PLAIN.alpha),
    "tkd": PLAIN,
    "all": Tkd(tree="none", all_tokens=True),
    "rand": Tkd(tree="random"),
    "teacher-tkd": Tkd(tree="teacher"),
    "t-s-tkd": Tkd(tree="teacher+student"),
    "all-t-tkd": Tkd(tree="teacher", all_tokens=True),
    "all-tkd": Tkd(all_tokens=True),
    "all-t-s-tkd": Tkd(tree="teacher+student", all_tokens=True),
}
"""By the names that the table has for them."""

DECIDING = ("tkd", "all", "teacher-tkd", "all-tkd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("data", type=Path, help="a folder with train.tsv and dev.tsv")
    parser.add_argument("--task", required=True)
    parser.add_argument("--rows", type=int, default=5000, help="of train")
    parser.add_argument("--layers", default="2,4,6", help="the teacher's layers that make the student")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="some of the table's rows")
    add_arguments(parser)
    options = parser.parse_args()

    data, student = options.work / "data", options.work / "student"
    data.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train.tsv", options.rows + 1), ("dev.tsv", None)):
        with (options.data / name).open(encoding="utf-8") as source, (data / name).open("w", encoding="utf-8") as out:
            out.writelines(islice(source, rows))
    layers = tuple(int(layer) for layer in options.layers.split(","))
    if not (student / "config.json").exists():
        slice_teacher(options.teacher, layers, student)
    (store,) = extract(
        options.teacher,
        str(data),
        task=options.task,
        methods=[Pkd(), Tkd(tree="teacher")],
        strategies=[Strategy(len(layers))],
        out=options.work / "stores",
    )
    recipes = {name: Recipe(method=ROWS[name]) for name in options.only}
    compare(store.root, str(student), recipes, options, [name for name in DECIDING if name in recipes])


if __name__ == "__main__":
    main()
