r"""Does this code do what that code did, to the last bit? Digests of stores and weights of students, of two trees on one machine.

    python benchmarks/records.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2_small --against HEAD~1
    python benchmarks/records.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2_small \
        --out benchmarks/results/records_cpu_DATE.json

Stores: one extraction for every strategy that chooses other layers, tokens or coordinates, or encodes them otherwise, over the
first `--rows` of the data. Students: three of the teacher's layers after 20 steps of each method, fp32, from the first store.

Other processors and other versions of the libraries may have other last bits. So `--against COMMIT` makes the records of that
commit's code anew, here and now, and `--against FILE` compares with what `--out` wrote, only if the processor is the same. Each
difference is told, and the exit code is 1 where there is one. All is done by the command line in processes of its own, which
import the `hskstore` of one tree or the other; modules may have moved in between.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parents[1]
KEEPS = ["--keep", "1,9,0.1", "--keep", "3,8,0.2"]
STRATEGIES: dict[str, list[str]] = {
    "f16": [],
    "q8": ["--values", "q8"],
    "q4": ["--values", "q4"],
    "left, uniform, f32": ["--rank", "left", "--mask", "uniform", "--values", "f32"],
    "all, with sep, offsets": ["--keep", "all", "--rank", "attention-with-sep", "--keep-offsets"],
    "random, eq5": ["--rank", "random", "--mask", "random", "--layer-map", "eq5"],
    "raw, same layer": ["--score", "raw", "--rank-layer", "same"],
}
"""Options of `hsk extract` beside KEEPS and --student-layers 3."""

STORE = "d3-l8-w0.2"
"""Of the first strategy: what the students learn from."""

METHODS = ("mud", "kd", "finetune")
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "zarr", "numcodecs", "safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path, help="a folder with six layers")
    parser.add_argument("data", type=Path, help="a folder as GLUE's SST-2")
    parser.add_argument("--rows", type=int, default=600, help="of train; a sixth of it of dev")
    parser.add_argument("--against", metavar="COMMIT|FILE", help="what to compare with")
    parser.add_argument("--out", type=Path, help="the records as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = first_rows(options.data, options.rows, Path(scratch, "data"))
        made = {
            "command": f"python {shlex.join(sys.argv)}",
            "code": code_of(HERE),
            "machine": machine(),
            "inputs": inputs(options.teacher, data),
        }
        before = None if options.against is None else known(options.against, made, parser)
        if options.against is not None and before is None:
            there = tree_of(options.against, Path(scratch, "there"))
            before = records(there, options.teacher.resolve(), data, Path(scratch, "theirs"))
        made["records"] = records(HERE, options.teacher.resolve(), data, Path(scratch, "ours"))
    if options.out is not None:
        options.out.write_text(json.dumps(made, indent=2) + "\n")
    if before is not None:
        sys.exit(compare(before, made["records"], options.against))
    print(json.dumps(made, indent=2))


def known(against: str, made: Mapping[str, Any], parser: argparse.ArgumentParser) -> dict[str, str] | None:
    """The records of a file; None if `against` is none. Ends with a message where they cannot be compared with those of here."""
    if not Path(against).is_file():
        return None
    found = json.loads(Path(against).read_text())
    for what in ("processor", "instructions"):
        if found["machine"][what] != made["machine"][what]:
            parser.error(
                f"{against} holds for the {what} {found['machine'][what]}, and this is {made['machine'][what]}: --against its"
                f" code, {found['code']}, instead"
            )
    if found["inputs"] != made["inputs"]:
        parser.error(f"{against} was made of another teacher, other data, or other --rows: as {found['command']}")
    for what, version in found["machine"].items():
        if version != made["machine"].get(what):
            print(f"{what} was {version}, and is {made['machine'].get(what)}", file=sys.stderr)
    records: dict[str, str] = found["records"]
    return records


def records(tree: Path, teacher: Path, data: Path, place: Path) -> dict[str, str]:
    """Every record of one tree's code, by its name; `place` is a new folder for the stores and students."""
    found: dict[str, str] = {}
    for number, (strategy, words) in enumerate(STRATEGIES.items()):
        options = ["--task", "sst2", "--student-layers", 3, *KEEPS, *words, "--out", place / f"stores{number}"]
        for store in run(tree, "extract", teacher, data, *options, "--device", "cpu"):
            found[f"store: {strategy}; {Path(store['root']).name}"] = store["digest"]
    student = place / "student"
    run(tree, "student", "slice", teacher, "--layers", "2,4,6", "--out", student)
    found["student: sliced"] = weights(student)
    training = ["--max-steps", 20, "--precision", "fp32", "--seed", 0, "--device", "cpu"]
    for method in METHODS:
        out = place / method
        run(tree, "distill", place / "stores0" / STORE, "--student", student, "--method", method, "--out", out, *training)
        found[f"student: {method}, 20 steps"] = weights(out)
    return found


def run(tree: Path, *words: object) -> Any:
    """What `hsk WORDS --json` of this tree prints, in a process of one thread."""
    command = [sys.executable, "-m", "hskstore", *map(str, words), "--json"]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    print(f"{tree}: hsk {shlex.join(command[3:])}", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def weights(model: Path) -> str:
    """A hash of a model's tensors by their names; the file may order them otherwise."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(model / "model.safetensors").items()):
        digest.update(f"{name}:{tensor.dtype}:{tensor.shape};".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def compare(before: Mapping[str, str], now: Mapping[str, str], against: str) -> int:
    """Print both, side by side; 1 where they differ, else 0."""
    print(f"| record | {against} | here | |\n|---|---|---|---|")
    for name in before | now:
        old, new = before.get(name, "none"), now.get(name, "none")
        print(f"| {name} | {old[:12]} | {new[:12]} | {'equal' if old == new else 'DIFFERS'} |")
    print("\nall equal" if before == now else "\nthey differ")
    return int(before != now)


def first_rows(data: Path, rows: int, out: Path) -> Path:
    out.mkdir()
    for name, count in (("train.tsv", rows), ("dev.tsv", rows // 6)):
        lines = (data / name).read_text().splitlines(keepends=True)
        (out / name).write_text("".join(lines[: count + 1]))
    return out


def inputs(teacher: Path, data: Path) -> dict[str, str]:
    files = [teacher / "model.safetensors", teacher / "tokenizer.json", data / "train.tsv", data / "dev.tsv"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def tree_of(commit: str, out: Path) -> Path:
    """The package as it was at a commit."""
    out.mkdir()
    archive = out / "tree.tar"
    git("archive", "--output", str(archive), commit, "hskstore")
    with tarfile.open(archive) as files:
        files.extractall(out, filter="data")
    return out


def code_of(tree: Path) -> str:
    """The last commit that changed the package."""
    changed = git("status", "--porcelain", "--", str(tree / "hskstore"))
    return git("log", "-1", "--format=%h", "--", str(tree / "hskstore")) + (" and changes" if changed else "")


def git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()]
    told = {name.strip(): value.strip() for name, _, value in lines}
    # The name alone may be "AMD EPYC" for any of them.
    parts = [told[name] for name in ("model name", "cpu family", "model", "stepping") if name in told]
    return {
        "processor": " ".join(parts) or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        "mkl": torch.backends.mkl.is_available(),
        "mkldnn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


if __name__ == "__main__":
    main()
