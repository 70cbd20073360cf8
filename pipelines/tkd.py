"""Tree Knowledge Distillation, Table 1 in small: who shall choose the tokens that a student learns?

    python pipelines/tkd.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2 --task sst2 --rows 5000 \\
        --test ../shared/data/sst2_small/test.tsv --out benchmarks/results/tkd_sst2_cpu_DATE

The eleven students of the table, with three of the teacher's layers, from one store of the first `--rows` of the data:
fine-tuned, KD, PKD, and TKD by the student's own tree, with all tokens, random ones, the teacher's tree, and what is joined of
them. Weights are the methods' defaults; KD and PKD are at TKD's temperature, with as much of the gold label. How they are
compared: pipelines/compare.py.
"""

import argparse

from compare import add_table_arguments, compare_table

from hskstore.methods import Finetune, Kd, Pkd, Tkd
from hskstore.stage_two.recipe import Recipe

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
    add_table_arguments(parser, ROWS)
    compare_table(
        parser.parse_args(),
        {name: Recipe(method=method) for name, method in ROWS.items()},
        [Pkd(), Tkd(tree="teacher")],
        DECIDING,
    )


if __name__ == "__main__":
    main()
