"""How the golden stores were made: `python -m tests.golden.make` makes those that are not there yet. What is committed stays.

Every later version of hskstore must read them to the same numbers; `expected.json` has their digests and some of their rows.
A store carries the least version of the format that can read it: 1 where it holds `hidden`, 2 where it does not, 3 where its
vectors are codes.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hskstore.config import Keep, Strategy, Values
from hskstore.methods import METHODS
from hskstore.stage_one.extract import extract
from hskstore.store import open_store
from hskstore.text.chunker import train_chunker
from tests.conftest import make_bert, save_folder, write_tsv
from tests.test_spans import write_conll

GOLDEN = Path(__file__).parent
STORES: dict[str, dict[str, tuple[Values, bool, tuple[str, ...]]]] = {
    "v1": {
        "f16": ("f16", False, ()),
        "f32": ("f32", False, ()),
        "q8": ("q8", False, ()),
        "q4": ("q4", False, ()),
        "text": ("f16", True, ()),
        "more": ("f16", False, ("mud", "pkd", "distilbert")),
    },
    "v2": {
        "f16": ("f16", False, ("pkd", "distilbert")),
        "q8": ("q8", True, ("pkd", "distilbert")),
        "q4": ("q4", False, ("distilbert",)),
        "logits": ("f16", False, ("kd",)),
        "rich": ("f16", False, ("rich",)),
        "qkv": ("q8", False, ("minilmv2",)),
        "attended": ("q4", False, ("tkd",)),
        "mgskd": ("q8", False, ("mgskd",)),
    },
    "v3": {
        "codes": ("rq4", False, ("mud", "distilbert")),
        "attention": ("rq4", False, ("minilmv2",)),
    },
}
"""By version and folder: how vectors are stored, whether the text is kept, and the methods whose wants are; none: `hidden`.
"rich" is no method: all that `--rich` keeps."""

OPTIONS: dict[str, dict[str, Any]] = {"tkd": {"tree": "teacher"}}
"""Of methods, where they are not the defaults."""

ROWS = [("train", 0), ("train", 511), ("train", 512), ("train", 519), ("validation", 6)]


def plain(row: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: np.asarray(array).astype(float if array.dtype.kind == "f" else int).tolist() for name, array in row.items()}


def main() -> None:
    for version, stores in STORES.items():
        make(GOLDEN / version, stores)


def make(folder: Path, stores: dict[str, tuple[Values, bool, tuple[str, ...]]]) -> None:
    folder.mkdir(exist_ok=True)
    known = folder / "expected.json"
    expected: dict[str, Any] = json.loads(known.read_text()) if known.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        teacher = save_folder(make_bert(), Path(scratch, "teacher"))
        Path(scratch, "data").mkdir()
        write_tsv(Path(scratch, "data", "train.tsv"), 520, seed=1)
        write_tsv(Path(scratch, "data", "dev.tsv"), 7, seed=2)
        train_chunker(write_conll(Path(scratch, "conll")), Path(scratch, "spans"))
        for name in sorted(stores.keys() - expected.keys()):
            values, text, methods = stores[name]
            (made,) = extract(
                teacher,
                f"{scratch}/data",
                task="sst2",
                out=Path(scratch, name),
                keeps=[] if methods and "mud" not in methods else [Keep(2, 3, 1.0 if values == "rq4" else 0.25)],
                methods=[METHODS[each](**OPTIONS.get(each, {})) for each in methods if each != "rich"],
                rich="rich" in methods,
                strategies=[Strategy(2, values=values)],
                keep_offsets=text,
                spans=f"{scratch}/spans" if "mgskd" in methods else None,
            )
            shutil.copytree(made.root, folder / name)
            store = open_store(folder / name)
            rows = {f"{split} {row}": plain(store.row(split, row)) for split, row in ROWS}
            expected[name] = {"digest": made.digest, "rows": rows}
    known.write_text(json.dumps(expected, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
