r"""What `states` and `cls` cost: extraction beside the bare forward pass, and bytes, planned and real.

    python benchmarks/features.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2_small \
        --out benchmarks/results/features_cpu_DATE.md

Throughput: the first `--rows` of the data. In every round the bare forward over the very batches of the pass, as torch runs it
and with as many batches side by side as extraction has, and extraction of `states` of four layers in f16, from the first batch to
the seal; the bare rate is the better of the two. Bytes: of the whole data, `hsk plan`'s with its trial, and those on disk.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as hsk sets it; torch reads it once

import torch
from extract_throughput import bare, batches_of, extraction, first_rows, processor

from hskstore.config import Strategy, Values
from hskstore.features import CLS, STATES, Want
from hskstore.layers import LayerPair
from hskstore.stage_one.asked import Asked
from hskstore.stage_one.extract import extract
from hskstore.stage_one.forecast import forecast
from hskstore.stage_one.planning import prepare
from hskstore.stage_one.teacher_pass import TeacherPass, probe, sight_of
from hskstore.store import open_store

LAYERS = (1, 3, 4, 6)


@dataclass(frozen=True)
class Reading:
    """As much of a method as an extraction asks: it reads these layers of these features."""

    name: str
    kinds: tuple[Any, ...]
    layers: tuple[int, ...] = LAYERS

    def phases(self, teacher: Any, student: Any) -> Sequence[Any]:
        pairs = tuple(LayerPair(0, layer) for layer in self.layers)
        return [SimpleNamespace(reads=tuple(Want(kind, pairs) for kind in self.kinds))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--values", nargs="*", default=["f16", "q8", "q4"], choices=get_args(Values))
    parser.add_argument("--out", type=Path, help="the result as Markdown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        lines = ["# states and cls", "", f"`python {' '.join(sys.argv)}`", ""]
        lines += [f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}.", ""]
        asked = Asked([], [Strategy(3)], [Reading("states", (STATES,))])
        told = speed(options, Path(scratch, "speed"), asked)
        lines += [f"Extraction of states of layers {', '.join(map(str, LAYERS))} in f16: {told}"]
        lines += ["", *sizes(options, Path(scratch, "sizes"))]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out is not None:
        options.out.write_text(text)


def speed(options: argparse.Namespace, scratch: Path, asked: Asked) -> str:
    """Rows a second of an extraction beside those of the bare forward."""
    scratch.mkdir()
    data, rows = first_rows(options.data, options.rows, scratch), scratch / "rows"
    rows.mkdir()
    ready = prepare(options.teacher, str(data), rows, asked, device=torch.device("cpu"), task="sst2")
    probe(ready.teacher, sight_of(ready.plans.values()), ready.rows["train"])
    batches = list(batches_of(ready))
    streams = TeacherPass(list(ready.plans.values()), ready.teacher).streams
    bare(ready, batches[: 2 * streams], 1)  # the first kernels of a process are slow
    shares, rates = [], []
    total = sum(map(len, ready.rows.values()))
    for number in range(options.repeats):
        fastest = min(bare(ready, batches, 1), bare(ready, batches, streams))
        seconds = extraction(ready, scratch / "store")
        shares.append(fastest / seconds)
        rates.append((total / fastest, total / seconds))
        print(f"round {number + 1}: bare {fastest:.1f} s, states {seconds:.1f} s", file=sys.stderr, flush=True)
    plain, own = (statistics.median(rate[part] for rate in rates) for part in (0, 1))
    low, middle, high = (100 * share for share in (min(shares), statistics.median(shares), max(shares)))
    return (
        f"{own:.0f} rows a second where the bare forward makes {plain:.0f}, that is {middle:.1f} % of it"
        f" ({low:.1f} to {high:.1f} %; {total:,} rows, {options.repeats} rounds)."
    )


def sizes(options: argparse.Namespace, scratch: Path) -> list[str]:
    lines = ["| feature | values | planned | on disk | off | decoded, padding counted | planned in | extracted in |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for values in options.values:
        strategies = [Strategy(3, values=values)]
        methods = [Reading("both", (STATES, CLS))]
        began = time.monotonic()
        cost = forecast(options.teacher, str(options.data), strategies=strategies, methods=methods, task="sst2")
        planned = time.monotonic() - began
        made = extract(
            options.teacher, str(options.data), out=scratch / values, strategies=strategies, methods=methods, task="sst2"
        )
        store = open_store(made[0].root)
        real = store.sizes()
        for name in store.plan.features:
            paths = [path for path in store.plan.arrays if path.startswith(f"train/{name}/")]
            told = sum(cost.stores[0].arrays[path].on_disk for path in paths)
            decoded = sum(cost.stores[0].arrays[path].decoded for path in paths)
            found = sum(size for key, size in real.items() if any(key.startswith(f"{path}/c/") for path in paths))
            lines.append(
                f"| {name} | {values} | {told / 1e6:.2f} MB | {found / 1e6:.2f} MB | {100 * (told / found - 1):+.2f} %"
                f" | {decoded / 1e6:.1f} MB | {planned:.0f} s | {made[0].seconds:.0f} s |"
            )
    return lines


if __name__ == "__main__":
    main()
