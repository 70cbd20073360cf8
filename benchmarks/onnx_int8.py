r"""What the answer of an int8 export depends on besides its row: the rows beside it in a batch, and the processor.

    python benchmarks/onnx_int8.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2_small --task sst2 \
        --out benchmarks/results/onnx_int8_cpu_DATE.md

Rows of the dev split are read alone and in batches of several sizes, by torch, by the float export and by the int8 one. Inputs of
int8 products are quantised by one scale for the whole batch, padding included, so that a row's answer follows its neighbours.
Weights are read from the file: with a VNNI processor and without the products are the same integers while no sum of two products
leaves 16 bits.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from hskstore.models.load import load_trained
from hskstore.models.onnx import export_onnx, load_onnx_classifier
from hskstore.models.run import run_model
from hskstore.text.dataset import read_dataset
from hskstore.text.rows import Rows
from hskstore.text.tokenise import tokenise
from hskstore.text.tokenizers import pad_id

BATCHES = (8, 32, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--task", required=True)
    parser.add_argument("--rows", type=int, default=872)
    parser.add_argument("--out", type=Path, help="the result as Markdown")
    options = parser.parse_args()
    model, tokenizer = load_trained(options.model)
    examples = read_dataset(options.data, task=options.task).splits["validation"]
    rows = tokenise(examples, tokenizer, 64).take(np.arange(min(options.rows, len(examples.text[0]))))
    label = np.asarray(examples.label)[rows.row_id]
    lines = ["| form | rows of a batch | accuracy | largest difference of a logit to the row alone | rows with another answer |"]
    lines += ["|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as scratch:
        forms = {"torch": model.eval()}
        for name, int8 in (("ONNX", False), ("ONNX int8", True)):
            export_onnx(options.model, Path(scratch, name), int8=int8)
            forms[name] = load_onnx_classifier(Path(scratch, name))
        largest = weights_of(Path(scratch, "ONNX int8", "model.onnx"))
        for name, form in forms.items():
            alone = logits_of(form, rows, 1, tokenizer)
            lines.append(f"| {name} | 1 | {(alone.argmax(1) == label).mean():.4f} | 0 | 0 |")
            for size in BATCHES:
                beside = logits_of(form, rows, size, tokenizer)
                other = int((alone.argmax(1) != beside.argmax(1)).sum())
                accuracy = (beside.argmax(1) == label).mean()
                lines.append(
                    f"| {name} | {size} | {accuracy:.4f} | {np.abs(alone - beside).max():.2g} | {other} of {len(label)} |"
                )
    head = ["# What an int8 answer depends on", "", f"`python {' '.join(sys.argv)}`", ""]
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    vnni = "with VNNI" if {"avx512_vnni", "avx_vnni"} & set(flags) else "without VNNI"
    pair = 2 * 255 * largest
    told = (
        f"Weights are from {-largest} to {largest} at most: two products add up to {pair:,} at most, of 32,767 that 16 bits hold."
    )
    text = "\n".join([*head, f"A processor {vnni}. {told}", "", *lines, ""])
    print(text)
    if options.out is not None:
        options.out.write_text(text)


def logits_of(form: Any, rows: Rows, size: int, tokenizer: Any) -> np.ndarray:
    """Of all rows in their order, `size` at a time."""
    found = []
    for start in range(0, len(rows), size):
        batch = rows.take(np.arange(start, min(start + size, len(rows))))
        ids, types = (torch.from_numpy(array.astype(np.int64)) for array in batch.padded(pad_id(tokenizer)))
        real = torch.arange(ids.shape[1]) < torch.from_numpy(batch.n_tokens)[:, None]
        with torch.inference_mode():
            found.append(run_model(form, ids, types, real).logits.numpy())
    return np.concatenate(found)


def weights_of(file: Path) -> int:
    """The largest int8 weight of a file, whatever its sign."""
    tensors = [onnx.numpy_helper.to_array(each) for each in onnx.load(file).graph.initializer]
    return max(int(np.abs(each.astype(np.int32)).max()) for each in tensors if each.dtype == np.int8 and each.ndim > 1)


if __name__ == "__main__":
    main()
