"""A trained student as torch, ONNX and int8 ONNX: bytes, score, CPU milliseconds of an example, all in one run.

    python benchmarks/onnx_export.py runs/mud ../shared/data/sst2_small --task sst2 --out benchmarks/results/onnx_cpu_DATE.md

Each is timed three times in turn, and the median stands in the table: machines are noisy.
"""

import argparse
import platform
import statistics
import sys
import tempfile
from pathlib import Path

import onnxruntime
import torch

from hskstore.models.onnx import export_onnx
from hskstore.stage_two.evaluate import evaluate

ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="trained students, and last the data they are scored on")
    parser.add_argument("--task", required=True)
    parser.add_argument("--splits", nargs="+", default=["validation", "test"], help="scored together")
    parser.add_argument("--out", type=Path, help="the result as Markdown")
    options = parser.parse_args()
    *models, data = options.models

    lines = ["| model | form | bytes | score | ± one s.e. | ms an example | torch's ms / this |", "|---|---|---|---|---|---|---|"]
    for model in models:
        with tempfile.TemporaryDirectory() as scratch:
            forms = {"torch": model, "ONNX": f"{scratch}/float", "ONNX int8": f"{scratch}/int8"}
            export_onnx(model, Path(forms["ONNX"]))
            export_onnx(model, Path(forms["ONNX int8"]), int8=True)
            rounds = [
                {form: evaluate(place, data, task=options.task, splits=options.splits) for form, place in forms.items()}
                for _ in range(ROUNDS)
            ]
        latency = {form: statistics.median(found[form].latency_ms or 0 for found in rounds) for form in forms}
        for form, found in rounds[0].items():
            metric = next(iter(found.score))
            lines.append(
                f"| {Path(model).name} | {form} | {(found.bytes or 0) / 1e6:.1f} MB | {found.score[metric]:.4f}"
                f" | {found.standard_error[metric]:.4f} | {latency[form]:.2f} | {latency['torch'] / latency[form]:.2f} |"
            )
    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    head = ["# A student as torch, ONNX and int8 ONNX", "", f"`python {' '.join(sys.argv)}`", ""]
    text = "\n".join([*head, f"{platform.machine()}, {torch.get_num_threads()} threads, {versions}", "", *lines, ""])
    print(text)
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
