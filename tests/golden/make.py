"""How the golden stores were made: `python -m tests.golden.make` makes those that are not there yet. What is committed stays.

Every later version of hskstore must read them to the same numbers; `expected.json` has their digests and some of their rows.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hskstore.config import Keep, Strategy, Values
from hskstore.stage_one.extract import extract
from hskstore.store import open_store
from hskstore.store.schema import FORMAT_VERSION
from tests.conftest import make_bert, save_folder, write_tsv

GOLDEN = Path(__file__).parent
STORES: dict[str, tuple[Values, bool]] = {
    "f16": ("f16", False),
    "f32": ("f32", False),
    "q8": ("q8", False),
    "q4": ("q4", False),
    "text": ("f16", True),
}
"""By the folder's name: how the vectors are stored, and whether the text is kept."""

ROWS = [("train", 0), ("train", 511), ("train", 512), ("train", 519), ("validation", 6)]


def plain(row: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: np.asarray(array).astype(float if array.dtype.kind == "f" else int).tolist() for name, array in row.items()}


def main() -> None:
    folder = GOLDEN / f"v{FORMAT_VERSION}"
    known = folder / "expected.json"
    expected: dict[str, Any] = json.loads(known.read_text()) if known.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        teacher = save_folder(make_bert(), Path(scratch, "teacher"))
        Path(scratch, "data").mkdir()
        write_tsv(Path(scratch, "data", "train.tsv"), 520, seed=1)
        write_tsv(Path(scratch, "data", "dev.tsv"), 7, seed=2)
        for name in STORES.keys() - expected.keys():
            values, text = STORES[name]
            (made,) = extract(
                teacher,
                f"{scratch}/data",
                task="sst2",
                out=Path(scratch, name),
                keeps=[Keep(2, 3, 0.25)],
                strategies=[Strategy(2, values=values)],
                keep_offsets=text,
            )
            shutil.copytree(made.root, folder / name)
            store = open_store(folder / name)
            rows = {f"{split} {row}": plain(store.row(split, row)) for split, row in ROWS}
            expected[name] = {"digest": made.digest, "rows": rows}
    known.write_text(json.dumps(expected, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
