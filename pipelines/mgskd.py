"""Multi-Granularity Structural Distillation, Table 3 in small: what do tokens, spans and samples each bring?

    python pipelines/mgskd.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2 --task sst2 --rows 5000 \\
        --conll ../shared/data/conll2000 --test ../shared/data/sst2_small/test.tsv --out benchmarks/results/mgskd_sst2_cpu_DATE

The first four rows of the table, with three of the teacher's layers, from one store of the first `--rows` of the data: all of it,
and all but one granularity. As in the paper (its footnote 6), where samples are left out every layer of the student learns of
tokens and spans. Its other rows, of one granularity alone, are not tried. Beside them a student of the teacher's predictions
alone, which structure has to be better than, and a fine-tuned one. Weights are the method's defaults.

Spans are found by a chunker: one that is trained on `--conll`, or `--spans`, a folder of hsk spans train. How they are compared:
pipelines/compare.py.
"""

import argparse
from pathlib import Path

from compare import add_table_arguments, compare, small

from hskstore.config import Strategy
from hskstore.methods import Finetune, Kd, Mgskd, Weights
from hskstore.stage_one.extract import extract
from hskstore.stage_two.recipe import Recipe
from hskstore.text.chunker import train_chunker

PLAIN = Mgskd()


def rows_of(depth: int) -> dict[str, Recipe]:
    """The table's, for a student of so many layers."""
    return {
        "mgskd": Recipe(method=PLAIN),
        "without-tokens": Recipe(method=PLAIN, weight=Weights((("mgskd.token_pair", 0.0), ("mgskd.token_angle", 0.0)))),
        "without-spans": Recipe(method=PLAIN, weight=Weights((("mgskd.span_pair", 0.0), ("mgskd.span_angle", 0.0)))),
        "without-samples": Recipe(method=Mgskd(boundary=depth + 1)),
        "kd": Recipe(method=Kd(temperature=PLAIN.temperature)),
        "finetune": Recipe(method=Finetune()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_table_arguments(parser, rows_of(1))
    found = parser.add_mutually_exclusive_group(required=True)
    found.add_argument("--conll", type=Path, help="CoNLL-2000, from which a chunker is trained")
    found.add_argument("--spans", type=Path, help="a folder of hsk spans train")
    options = parser.parse_args()
    data, student, depth = small(options)
    spans = options.spans or options.work / "spans"
    if options.conll is not None and not spans.exists():
        train_chunker(options.conll, spans)
    recipes = {name: recipe for name, recipe in rows_of(depth).items() if name in options.only}
    (store,) = extract(
        options.teacher,
        data,
        task=options.task,
        methods=[PLAIN, Mgskd(boundary=depth + 1)],
        strategies=[Strategy(depth)],
        spans=str(spans),
        out=options.work / "stores",
    )
    compare(store.root, student, recipes, options, [name for name in recipes if name not in ("kd", "finetune")])


if __name__ == "__main__":
    main()
