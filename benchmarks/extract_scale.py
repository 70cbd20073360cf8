"""Stage one over many rows: peak anonymous memory for ten times the rows, and the seconds of every stage over a million.

    python benchmarks/extract_scale.py --vocab-from ../shared/models/minilm-l6 --out benchmarks/results/extract_scale_cpu_DATE.md
    python benchmarks/extract_scale.py --vocab-from ../shared/models/minilm-l6 --rows 10000 100000 --feature states \
        --out benchmarks/results/extract_scale_states_cpu_DATE.md

The teacher is a BERT of 2 layers, 128 wide, with random weights; the rows are made up, 3 to 20 vocabulary words each, in a TSV.
Each extraction is `hskstore.extract` in a process of its own, whose RssAnon is read 50 times a second: of `hidden` at (1,9,0.1),
or of `states` or `cls` of all three layers in f16.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as hsk sets it; torch reads it once

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, set_seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-from", help="a folder or hub name with BERT's tokenizer")
    parser.add_argument("--rows", nargs=2, type=int, default=[100_000, 1_000_000], metavar=("FEW", "MANY"))
    parser.add_argument("--feature", choices=["hidden", "states", "cls"], default="hidden")
    parser.add_argument("--out", type=Path, help="the result as Markdown")
    parser.add_argument("--run", nargs=4, metavar=("TEACHER", "DATA", "STORES", "FEATURE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(extraction(*options.run)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        teacher = make_teacher(options.vocab_from, place / "teacher")
        found = {rows: run(teacher, rows, place, options.feature) for rows in options.rows}
    text = report(found, options.feature)
    print(text)
    if options.out is not None:
        options.out.write_text(text)


def make_teacher(vocab: str, folder: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(vocab)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run(teacher: str, rows: int, place: Path, feature: str) -> dict[str, float]:
    """One extraction over so many made-up rows, in a process of its own."""
    words = np.array([word for word in AutoTokenizer.from_pretrained(teacher).get_vocab() if word.isascii() and word.isalpha()])
    rng = np.random.default_rng(0)
    data = place / str(rows)
    data.mkdir()
    for split, count in (("train", rows), ("dev", 1000)):
        with (data / f"{split}.tsv").open("w") as file:
            file.write("sentence\tlabel\n")
            for length in rng.integers(3, 21, count).tolist():
                file.write(" ".join(words[rng.integers(0, len(words), length)]) + f"\t{length % 2}\n")
    command = [sys.executable, __file__, "--run", teacher, str(data), str(place / f"stores{rows}"), feature]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{rows} rows: {found}", file=sys.stderr)
    return found


def extraction(teacher: str, data: str, stores: str, feature: str) -> dict[str, float]:
    """Seconds of every stage, and the peak of anonymous memory in each; bytes."""
    from types import SimpleNamespace

    from hskstore.config import Keep, Strategy
    from hskstore.features import KINDS, Want
    from hskstore.layers import LayerPair
    from hskstore.stage_one.extract import extract
    from hskstore.store import open_store
    from hskstore.store.verify import verify

    peaks = {"planning": 0, "teacher": 0, "seal": 0}
    seconds: dict[str, float] = {}
    stage = "planning"
    began = time.monotonic()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            peaks[stage] = max(peaks[stage], anonymous_bytes())

    def turn(following: str) -> None:
        nonlocal stage, began
        seconds[stage] = time.monotonic() - began
        stage, began = following, time.monotonic()

    def watch(name: str, done: int, total: int, note: str = "") -> None:
        if name == "seal" and stage == "teacher":
            turn("seal")

    looking = threading.Thread(target=look)
    looking.start()
    every = tuple(LayerPair(0, layer) for layer in range(3))
    reading = SimpleNamespace(reads=(Want(KINDS[feature], every),))
    method = SimpleNamespace(name=feature, phases=lambda teacher, student: [reading])
    (made,) = extract(
        teacher,
        data,
        out=stores,
        keeps=[Keep(1, 9, 0.1)] if feature == "hidden" else [],
        methods=[] if feature == "hidden" else [method],
        strategies=[Strategy(2)],
        task="sst2",
        on_plan=lambda planned: turn("teacher"),
        watch=watch,
    )
    turn("over")
    over.set()
    looking.join()
    clock = time.monotonic()
    store = open_store(made.root)
    seconds["open"] = time.monotonic() - clock
    assert store.plan.splits["train"].rows > 0
    clock = time.monotonic()
    assert not verify(made.root, deep=True).problems
    seconds["verify --deep"] = time.monotonic() - clock
    return (
        {f"{name}, s": round(taken, 2) for name, taken in seconds.items() if name != "over"}
        | {f"peak while {name}, B": peak for name, peak in peaks.items()}
        | {"store, B": made.bytes}
    )


def anonymous_bytes() -> int:
    line = next(line for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def report(found: dict[int, dict[str, float]], feature: str) -> str:
    fewer, more = found
    few, many = (max(value for name, value in told.items() if name.startswith("peak")) for told in found.values())
    lines = [f"# Stage one over many rows: {feature}", "", f"`python {' '.join(sys.argv)}`", ""]
    lines += [
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    ]
    lines += ["", "| | " + " | ".join(f"{rows:,} rows" for rows in found) + " |", "|---|" + "---|" * len(found)]
    for name in found[fewer]:
        what, unit = name.rsplit(", ", 1)
        cells = (f"{one[name] / 1e6:,.0f} MB" if unit == "B" else f"{one[name]:,.2f} s" for one in found.values())
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Peak anonymous memory: {few / 1e6:,.0f} MB for {fewer:,} rows, {many / 1e6:,.0f} MB for {more:,}"
        f" ({100 * (many / few - 1):+.1f} %); 5 % and 32 B a row would be {(1.05 * few + 32 * more) / 1e6:,.0f} MB.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
