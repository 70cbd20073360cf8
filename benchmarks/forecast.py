"""How far hsk plan is off: bytes by a trial of some seconds, and by the rule of thumb, beside those of the store then made.

    python benchmarks/forecast.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2_small --task sst2 --student-layers 3

The last columns are what the rule's constants (`hskstore/stage_one/sizes.py`) are read from: values on disk to uncompressed
ones, of kept vectors, and masks on disk to log2 C(d, K). Results go to benchmarks/results/.
"""

import argparse
import math
import tempfile
import time
from dataclasses import dataclass

import numpy as np

from hskstore.config import Keep, Strategy, Values
from hskstore.stage_one.extract import ExtractedStore, extract
from hskstore.stage_one.forecast import Forecast, forecast
from hskstore.store import open_store

CONFIGURATIONS = ["1,9,0.1", "3,8,0.2", "2,20,0.6", "2,12,1.0"]
ENCODINGS: list[Values] = ["f16", "f32", "q8", "q4"]


@dataclass(frozen=True)
class Ratios:
    values: float
    mask: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("data")
    parser.add_argument("--task", required=True)
    parser.add_argument("--student-layers", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=20.0, help="Of a trial.")
    parser.add_argument("--values", nargs="+", default=ENCODINGS)
    options = parser.parse_args()
    keeps = [Keep.parse(keep) for keep in CONFIGURATIONS]
    print("| keep | values | store, MB | trial, MB | off | rule, MB | off | values ratio | mask ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for values in options.values:
        strategies = [Strategy(options.student_layers, values=values)]

        def told(rate: float | None = None, strategies: list[Strategy] = strategies) -> Forecast:
            return forecast(
                options.teacher,
                options.data,
                keeps=keeps,
                strategies=strategies,
                task=options.task,
                rate=rate,
                seconds=options.seconds,
            )

        tried, ruled = told(), told(rate=1)
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            made = extract(options.teacher, options.data, task=options.task, keeps=keeps, strategies=strategies, out=folder)
            seconds = time.monotonic() - began - tried.time.preparation_seconds
            for keep, store, by_trial, by_rule in zip(CONFIGURATIONS, made, tried.stores, ruled.stores, strict=True):
                found = ratios(store)
                mask = "" if found.mask is None else f"{found.mask:.2f}"
                print(
                    f"| {keep} | {values} | {store.bytes / 1e6:.2f} | {off(by_trial.bytes, store)} | {off(by_rule.bytes, store)}"
                    f" | {found.values:.3f} | {mask} |",
                    flush=True,
                )
        print(f"| | {values} | took {seconds:.0f} s | said {tried.time.seconds:.0f} s | | | | | |", flush=True)


def off(told: int, store: ExtractedStore) -> str:
    return f"{told / 1e6:.2f} | {100 * (told / store.bytes - 1):+.1f} %"


def ratios(made: ExtractedStore) -> Ratios:
    """What compression leaves of a store's values and masks, of the vectors that are really kept."""
    store = open_store(made.root)
    plan, sizes = store.plan, store.sizes()
    vectors = int(store.read_all("train/hidden/n_kept").sum())
    on_disk = {
        name: sum(size for key, size in sizes.items() if key.startswith(f"train/hidden/{name}/c/")) for name in ("values", "mask")
    }
    spec = plan.arrays["train/hidden/values"]
    assert plan.hidden is not None
    entropy = math.log2(math.comb(plan.hidden.hidden_size, plan.hidden.width)) / 8
    return Ratios(
        values=on_disk["values"] / (vectors * spec.shape[-1] * np.dtype(spec.dtype).itemsize),
        mask=on_disk["mask"] / (vectors * entropy) if entropy else None,
    )


if __name__ == "__main__":
    main()
