"""What holds of the paper in a sweep: pairs of its configurations, by a paired bootstrap over the scored rows.

    python pipelines/mud.py ../shared/data/sst2_small --task sst2 --teacher ../shared/models/minilm-l6-sst2 --students 2,4,6 \\
        --grid pipelines/grids/*.toml --split test --work WORK
    python benchmarks/explorer.py WORK/sweeps/2-4-6

Of both the seeds that both have. The last line is where the time of the runs went. Results go to benchmarks/results/, with the
sweep's runs.parquet and the page that `hsk report` makes of it.
"""

import argparse
import statistics

from hskstore.explore.bootstrap import draws, interval
from hskstore.explore.runs import RunRow, SweepFolder, names_of
from hskstore.text.tasks import Task

SLIVER = "mud 1,9,0.1"
QUESTIONS = (
    ("1 % of the states reach all of them", SLIVER, "mud all"),
    ("1 % teach more than logits alone", SLIVER, "kd"),
    ("5 % of the states reach all of them", "mud 3,8,0.2", "mud all"),
    ("35 % of the states reach all of them", "mud 4,18,0.5", "mud all"),
    ("codes of 8 bytes reach f16", "mud all values=rq8", "mud all"),
    ("codes of 8 bytes teach more than 1 % in f16", "mud all values=rq8", SLIVER),
    ("magnitude masks are better than uniform ones", SLIVER, f"{SLIVER} mask=uniform"),
    ("uniform masks are better than random ones", f"{SLIVER} mask=uniform", f"{SLIVER} mask=random"),
    ("attention ranks better without [SEP]", SLIVER, f"{SLIVER} rank=attention-with-sep"),
    ("attention ranks better than the left-most", SLIVER, f"{SLIVER} rank=left"),
    ("to ignore is better than to learn zeros", f"{SLIVER} targets=ignore", SLIVER),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep")
    folder = SweepFolder(parser.parse_args().sweep)
    facts = folder.facts()
    done = [row for row in folder.rows() if row.status == "done"]
    by_name: dict[str, dict[int, RunRow]] = {}
    names = names_of(done)
    for row in done:
        if names[row.configuration] != row.name:
            parser.error(f"several configurations are {row.name}, as {names[row.configuration]}: which is meant cannot be told")
        by_name.setdefault(row.name, {})[row.seed] = row
    print(f"{len(done)} runs; {facts.metric} on {sum(facts.rows.values())} rows\n")
    print("| is it so that | one | the other | difference, 95 % of the draws | seeds |")
    print("|---|---|---|---|---|")
    for words, *asked in QUESTIONS:
        if any(name not in by_name for name in asked):
            continue
        seeds = sorted(by_name[asked[0]].keys() & by_name[asked[1]].keys())
        runs = {name: [by_name[name][seed] for seed in seeds] for name in asked}
        said = {name: [folder.predictions(row.run) for row in own] for name, own in runs.items()}
        gold = said[asked[0]][0].label
        drawn = draws(Task.from_json(facts.task), {name: [each.logits for each in own] for name, own in said.items()}, gold)
        one, other = (statistics.mean(float(row.score or 0) for row in runs[name]) for name in asked)
        low, high = interval(drawn[asked[0]], drawn[asked[1]])
        verdict = "yes" if low > 0 else "no" if high < 0 else "cannot be told"
        print(
            f"| {words}: {verdict} | {one:.4f} | {other:.4f} | {one - other:+.4f} ({low:+.4f} to {high:+.4f}) |"
            f" {', '.join(map(str, seeds))} |"
        )
    # The wall of a run that was stopped and went on is that of its last process.
    at_once = [row for row in done if (row.seconds_wall or 0) >= (row.seconds_training or 0)]
    wall, trained, scored = (
        sum(float(getattr(row, f"seconds_{name}") or 0) for row in at_once) for name in ("wall", "training", "scoring")
    )
    print(f"\nOf {wall:.0f} s of runs {(trained + scored) / wall:.1%} were steps and scoring.")


if __name__ == "__main__":
    main()
