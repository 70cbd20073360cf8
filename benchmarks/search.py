"""How much of a grid's training a search needs: `hsk search` on a sweep that was recorded, with many draws of its sampler.

    hsk sweep RICH --student DIR --grid grid.toml --seeds 1 --data DATA --split test --out SWEEP
    python benchmarks/search.py SWEEP RICH DIR --data DATA --split test --draws 100

The grid crosses `keep` (depths, lengths and shares of the width as numbers) with `top_layer`. The search proposes as it always
does, TPE on the dev score; what it proposes is answered by the recorded run nearest to it (in layers, and in the logarithms of
length and width), whose steps are counted once. Recorded runs end, so Hyperband saves nothing here. Beside it are as many
configurations of the grid drawn at random. Results go to benchmarks/results/.
"""

import argparse
import math
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hskstore.config import Keep
from hskstore.explore.grids import Configuration
from hskstore.explore.runner import PlannedRun, Runner, Sweeping
from hskstore.explore.runs import RunRow, SweepFolder
from hskstore.explore.scored import FurtherData
from hskstore.explore.search import _Search, _Space

SHARES = (8, 4, 2)
"""A search may train an eighth of the grid's runs, a quarter, half of them."""


class Recorded(Runner):
    """Answers what is planned by the nearest run that was recorded."""

    def __init__(self, shared: Sweeping, recorded: Sequence[RunRow], out: Path) -> None:
        super().__init__(shared)
        self.folder = SweepFolder(out)
        self._recorded = recorded
        for row in recorded:
            self.folder.write_row(row)

    def planned(self, configuration: Configuration, seed: int) -> PlannedRun:
        keep, top = configuration.keep, int(dict(configuration.strategy)["top_layer"])
        assert keep is not None
        nearest = min(self._recorded, key=lambda row: _far(Keep.parse(str(row.keep)), keep) + abs(int(row.top_layer or 0) - top))
        return PlannedRun(nearest.run, configuration, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep")
    parser.add_argument("store")
    parser.add_argument("student")
    parser.add_argument("--data")
    parser.add_argument("--split", nargs="+", default=["test"])
    parser.add_argument("--draws", type=int, default=100, help="of the sampler")
    options = parser.parse_args()
    folder = SweepFolder(options.sweep)
    grid = [row for row in folder.rows() if row.status == "done" and row.keep not in (None, "all,all,all")]
    rows = sum(folder.facts().rows.values())
    best = max(float(row.score or 0) for row in grid)
    error = math.sqrt(best * (1 - best) / rows)
    scores = sorted((float(row.score or 0) for row in grid), reverse=True)
    print(f"{len(grid)} runs of {grid[0].steps} steps, {grid[0].metric} of {rows} rows from {scores[-1]:.4f} to {best:.4f};")
    print("the best:", " ".join(f"{score:.4f}" for score in scores[:10]))
    print(f"{sum(best - score <= error for score in scores)} of them are within one standard error ({error:.4f}) of the best\n")
    print("| of the grid's steps | behind its best, mean | 9 of 10 at most | within one error | at random: mean | within |")
    print("|---|---|---|---|---|---|")
    further = FurtherData(options.data, tuple(options.split)) if options.data else None
    with tempfile.TemporaryDirectory() as place:
        runner = Recorded(Sweeping(options.store, options.student, place, further), grid, Path(place))
        for share in SHARES:
            trials = len(grid) // share
            found = [_searched(runner, trials, draw, Path(place)) for draw in range(options.draws)]
            drawn = [_chosen(random.Random(draw).sample(grid, trials)) for draw in range(options.draws)]
            behind, at_random = ([best - float(row.score or 0) for row in own] for own in (found, drawn))
            most = sorted(behind)[math.ceil(0.9 * len(behind)) - 1]
            print(
                f"| 1/{share} ({trials} runs) | {statistics.mean(behind):.4f} | {most:.4f} | {_within(behind, error):.0%}"
                f" | {statistics.mean(at_random):.4f} | {_within(at_random, error):.0%} |"
            )


def _searched(runner: Recorded, trials: int, draw: int, place: Path) -> RunRow:
    """What a search of so many runs finds, with another seed of the sampler."""
    for file in place.glob("optuna.db*"):
        file.unlink()
    options: dict[str, Any] = {"method": "mud"}
    made = _Search(runner, _Space(runner, options, None), options, trials, None)
    made._study.sampler = made._optuna.samplers.TPESampler(seed=draw)
    return _chosen(made.run())


def _chosen(rows: Sequence[RunRow]) -> RunRow:
    """The best on all scored rows, as `hsk recommend` has it."""
    return max(rows, key=lambda row: float(row.score or 0))


def _far(one: Keep, other: Keep) -> float:
    apart = 0.0
    for name in ("depth", "length", "width"):
        a, b = float(getattr(one, name)), float(getattr(other, name))
        apart += abs(a - b) if name == "depth" else abs(math.log2(a / b))
    return apart


def _within(behind: Sequence[float], error: float) -> float:
    return sum(each <= error for each in behind) / len(behind)


if __name__ == "__main__":
    main()
