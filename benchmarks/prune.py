"""Seconds and memory of pruning a BERT-base-shaped teacher to ROSITA-6, the pass over the data apart.

    python benchmarks/prune.py --vocab-from ../shared/models/minilm-l6 --out benchmarks/results/prune_cpu_DATE.md

The teacher has random weights: neither time nor memory depends on them. The data are 64 made-up sentences of 20 words, two
batches, so the seconds are those of `hsk student prune` from start to end with next to no data.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, set_seed

ROWS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-from", required=True, help="a folder or hub name with BERT's tokenizer")
    parser.add_argument("--out", type=Path, help="the result as Markdown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        tokenizer = AutoTokenizer.from_pretrained(options.vocab_from)
        set_seed(0)
        BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer))).save_pretrained(place / "teacher")
        tokenizer.save_pretrained(place / "teacher")
        found = prune(place)
    result = {
        "seconds, two batches included": round(found["seconds"], 1),
        "peak memory, GiB": round(found["gib"], 2),
        "student's parameters": found["parameters"],
    }
    text = report(result)
    print(text)
    if options.out is not None:
        options.out.write_text(text)


def prune(place: Path) -> dict[str, float]:
    """The command in a process of its own."""
    data = place / "data.tsv"
    words = ("good", "film", "about", "a", "bad", "day")
    rows = [f"{words[row % 6]} " * 20 + f"\t{row % 2}" for row in range(ROWS)]
    data.write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    options = ["student", "prune", place / "teacher", data, "--text", "sentence", "--label", "label", "--layers", "6"]
    options += ["--to", "2,768,128", "--out", place / "student", "--json"]
    code = (
        "import resource, sys; from hskstore.cli import app; app(sys.argv[1:], standalone_mode=False);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    began = time.monotonic()
    run = subprocess.run([sys.executable, "-c", code, *map(str, options)], capture_output=True, text=True, check=True)
    seconds = time.monotonic() - began
    gib = int(run.stderr.split()[-1]) / 2**20
    return {"seconds": seconds, "gib": gib, "parameters": json.loads(run.stdout)["parameters"]}


def report(result: dict[str, float]) -> str:
    lines = ["# Pruning a BERT-base-shaped teacher to ROSITA-6", "", f"`python {' '.join(sys.argv)}`", ""]
    lines += [
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    ]
    lines += ["", "| | |", "|---|---|", *(f"| {name} | {value:,} |" for name, value in result.items()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
