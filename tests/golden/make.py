"""How the golden stores were made: `python -m tests.golden.make`, once per format version. What is committed stays.

Every later version of hskstore must read them to the same numbers; `expected.json` has their digests and some of their rows.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hskstore.config import Keep, Strategy
from hskstore.extract import extract
from hskstore.store import open_store
from hskstore.store.schema import FORMAT_VERSION
from tests.conftest import make_bert, save_folder, write_tsv

GOLDEN = Path(__file__).parent
ENCODINGS = ("f16", "q4")
ROWS = [("train", 0), ("train", 511), ("train", 512), ("train", 519), ("validation", 6)]


def plain(row: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: np.asarray(array).astype(float if array.dtype.kind == "f" else int).tolist() for name, array in row.items()}


def main() -> None:
    folder = GOLDEN / f"v{FORMAT_VERSION}"
    if folder.exists():
        raise SystemExit(f"{folder} stands already, and must stay as it is")
    expected: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        teacher = save_folder(make_bert(), Path(scratch, "teacher"))
        Path(scratch, "data").mkdir()
        write_tsv(Path(scratch, "data", "train.tsv"), 520, seed=1)
        write_tsv(Path(scratch, "data", "dev.tsv"), 7, seed=2)
        for values in ENCODINGS:
            strategy = Strategy(2, values=values)
            (made,) = extract(
                teacher,
                f"{scratch}/data",
                task="sst2",
                out=Path(scratch, values),
                keeps=[Keep(2, 3, 0.25)],
                strategies=[strategy],
            )
            shutil.copytree(made.root, folder / values)
            store = open_store(folder / values)
            rows = {f"{split} {row}": plain(store.row(split, row)) for split, row in ROWS}
            expected[values] = {"digest": made.digest, "rows": rows}
    (folder / "expected.json").write_text(json.dumps(expected, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
