"""Score against bytes: is a sliver of the hidden states the best use of its bytes, or all of them as codes?

    python pipelines/codes.py ../shared/models/minilm-l6-stsb ../shared/data/stsb --task stsb --steps 1000 \\
        --test ../shared/data/stsb/test_labeled.tsv --out benchmarks/results/codes_stsb_cpu_DATE

One student, three of the teacher's layers, learns what `--only` names: logits alone; the sliver of the paper (`--keep 1,9,0.1`)
in f16 and in q4; all tokens of all mapped layers (`--keep all,all,all`) in codes of 4, 8 and 16 bytes, in q4 and in f16. Each has
a store of its own, of the same rows in the same order: batches are the same. With `--method` another method is asked instead of
`mud`, of what it reads. How they are compared: pipelines/compare.py.
"""

import argparse

from compare import Contender, add_arguments, compare_all, served

from hskstore.config import Keep, Strategy, Values
from hskstore.methods import METHODS, Kd, Method
from hskstore.stage_one.extract import extract
from hskstore.stage_two.recipe import Recipe
from hskstore.store import open_store
from hskstore.students import slice_teacher

SLIVER, EVERYTHING = "1,9,0.1", "all,all,all"
KNOWLEDGE: dict[str, tuple[str | None, Values]] = {
    "logits": (None, "f16"),
    "sliver-f16": (SLIVER, "f16"),
    "sliver-q4": (SLIVER, "q4"),
    "all-rq4": (EVERYTHING, "rq4"),
    "all-rq8": (EVERYTHING, "rq8"),
    "all-rq16": (EVERYTHING, "rq16"),
    "all-q4": (EVERYTHING, "q4"),
    "all-f16": (EVERYTHING, "f16"),
}
"""By name: what is kept of the hidden states, and how."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("data")
    parser.add_argument("--task", required=True)
    parser.add_argument("--layers", default="2,4,6", help="the teacher's layers that make the student")
    parser.add_argument("--student", help="another student's folder")
    parser.add_argument("--method", choices=METHODS, default="mud")
    parser.add_argument("--only", nargs="+", choices=KNOWLEDGE, default=list(KNOWLEDGE))
    add_arguments(parser)
    options = parser.parse_args()
    layers = tuple(int(layer) for layer in options.layers.split(","))
    student = options.student or str(options.work / "student")
    if options.student is None and not (options.work / "student" / "config.json").exists():
        slice_teacher(options.teacher, layers, student)
    method = METHODS[options.method]()
    compare_all({name: contender(name, method, student, len(layers), options) for name in options.only}, options)


def contender(name: str, method: Method, student: str, depth: int, options: argparse.Namespace) -> Contender:
    """A store that holds one kind of knowledge, and what is learnt from it."""
    keep, values = KNOWLEDGE[name]
    asked: Method = Kd() if keep is None else method
    keeps = [Keep.parse(keep)] if keep is not None and method.name == "mud" else []
    (made,) = extract(
        options.teacher,
        options.data,
        task=options.task,
        keeps=keeps,
        methods=[] if keeps else [asked],
        strategies=[Strategy(depth, values=values)],
        out=options.work / "stores" / name,
    )
    contenders, unserved = served(open_store(made.root), student, {name: Recipe(method=asked)}, options)
    if unserved:
        raise SystemExit(unserved[0])
    return contenders[name]


if __name__ == "__main__":
    main()
