"""Bytes of a store's hidden states beside the paper's: float32 values and one byte per mask element, of the tokens kept.

    python benchmarks/store_size.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2_small --task sst2 --student-layers 3

Table 3 of Marginal Utility Diminishes counts so. The whole store's ratio, inputs, logits and metadata included, stands
beside it. Results go to benchmarks/results/.
"""

import argparse
import json
import tempfile
from pathlib import Path

from hskstore.config import Keep, Strategy
from hskstore.stage_one.extract import extract
from hskstore.store import open_store

CONFIGURATIONS = ["1,9,0.1", "3,8,0.2", "all"]
ENCODINGS = ["f16", "q8", "q4"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("data")
    parser.add_argument("--task", required=True)
    parser.add_argument("--student-layers", type=int, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for values in ENCODINGS:
        with tempfile.TemporaryDirectory() as folder:
            stores = extract(
                options.teacher,
                options.data,
                task=options.task,
                keeps=[Keep.parse(keep) for keep in CONFIGURATIONS],
                strategies=[Strategy(options.student_layers, values=values)],
                out=folder,
            )
            rows += [measure(keep, values, store.root) for keep, store in zip(CONFIGURATIONS, stores, strict=True)]
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=2) + "\n")
    print("| keep | values | hidden states, MB | the paper's, MB | ratio | whole store, MB | its ratio | bytes a vector |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['keep']} | {row['values']} | {row['hidden'] / 1e6:.2f} | {row['paper'] / 1e6:.2f}"
            f" | {row['paper'] / row['hidden']:.1f} | {row['store'] / 1e6:.2f} | {row['paper'] / row['store']:.1f}"
            f" | {row['hidden'] / row['vectors']:.1f} |"
        )


def measure(keep: str, values: str, root: str) -> dict[str, object]:
    """Bytes of one store, and what the paper would count for the vectors that it really keeps."""
    store = open_store(root)
    vectors = int(store.read_all("train/hidden/n_kept").sum())
    sizes = store.sizes()
    hidden = store.plan.hidden
    assert hidden is not None
    full = hidden.width == hidden.hidden_size
    return {
        "keep": keep,
        "values": values,
        "vectors": vectors,
        "hidden": sum(size for key, size in sizes.items() if key.startswith("train/hidden/")),
        "paper": vectors * (4 * hidden.width + (0 if full else hidden.hidden_size)),
        "store": sum(sizes.values()),
    }


if __name__ == "__main__":
    main()
