"""Knowledge selection, Tables 1 and 3 in small: does it pay to choose at every step what is learnt?

    python pipelines/ksm.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2 --task sst2 --rows 5000 \\
        --test ../shared/data/sst2_small/test.tsv --out benchmarks/results/ksm_sst2_cpu_DATE

Students with three of the teacher's layers, from one store of the first `--rows` of the data: KSM by soft and by hard actions,
the same with weights at random, each of the four kinds of knowledge alone, all four at fixed weights, PKD and KD. Every student
has the same steps and batches; a selector learns before, from trainings of as many steps each. KD and PKD are at KSM's
temperature. How they are compared: pipelines/compare.py. The scored rows include the validation rows, whose labels reward the
selector: the bias is for KSM.
"""

import argparse

from compare import add_table_arguments, compare_table

from hskstore.methods import Kd, Ksm, Pkd, Selection, Weights
from hskstore.methods.ksm import TERMS
from hskstore.stage_two.recipe import Recipe

PLAIN = Ksm()
FIXED = Selection(action="fixed")
KINDS = dict(zip(("fink", "resk", "feak", "relk"), TERMS, strict=True))
ROWS = {
    "ksm-soft": Recipe(method=PLAIN),
    "ksm-hard": Recipe(method=PLAIN, selection=Selection(action="hard")),
    "random-soft": Recipe(method=PLAIN, selection=Selection(action="random-soft")),
    "random-hard": Recipe(method=PLAIN, selection=Selection(action="random-hard")),
    **{
        name: Recipe(method=PLAIN, selection=FIXED, weight=Weights(tuple((each, float(each == term)) for each in TERMS)))
        for name, term in KINDS.items()
    },
    "all-fixed": Recipe(method=PLAIN, selection=FIXED),
    "pkd": Recipe(method=Pkd(temperature=PLAIN.temperature)),
    "kd": Recipe(method=Kd(temperature=PLAIN.temperature, alpha=0.5)),
}
"""By the names that the tables have for them."""

DECIDING = ("ksm-soft", "ksm-hard", "random-soft", "all-fixed", "pkd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_table_arguments(parser, ROWS)
    compare_table(parser.parse_args(), ROWS, [PLAIN, Pkd()], DECIDING)


if __name__ == "__main__":
    main()
