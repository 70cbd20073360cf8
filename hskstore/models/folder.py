"""Models as plain folders: safetensors, config, tokenizer, card. Of a torch module that is no Hugging Face model, no config."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from hskstore.errors import HskError, OptionError
from hskstore.models import pruned_bert as pruned_bert  # registered with the Auto classes by being imported
from hskstore.text.tokenizers import Tokenizer, model_files

RESULT = "metrics.json"
RECIPE = "recipe.toml"
WEIGHTS = "model.safetensors"
ONNX_FILE = "model.onnx"
WEIGHTS_SUFFIXES = (".safetensors", ".onnx", ".bin")


def refuse_existing_model(out: Path, more: str = "") -> None:
    """Raise OptionError where a model stands: nothing is overwritten. One whose weights have not come yet is none.

    `more` says how to get more epochs of a finished run.
    """
    if any(path.suffix in WEIGHTS_SUFFIXES for path in out.glob("*")):
        finished = f". It is that of a finished run; more epochs are a run of their own: {more}" if more else ""
        raise OptionError(
            f"{out} already holds a model: choose another --out, or delete it{finished if (out / RESULT).exists() else ''}"
        )


@contextmanager
def new_model(out: Path) -> Iterator[Path]:
    """A folder for a model's files, which move to `out` once all are written; its weights last, which make it a model.

    So a process that is killed leaves a model or, to be overwritten by the next, parts of one.
    """
    folder = out / ".new-model"
    shutil.rmtree(folder, ignore_errors=True)  # a killed process's
    folder.mkdir(parents=True)
    try:
        yield folder
        for file in sorted(folder.iterdir(), key=lambda file: (file.suffix in WEIGHTS_SUFFIXES, file.name)):
            file.replace(out / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save_model(
    model: Any,
    tokenizer: Tokenizer,
    out: Path,
    *,
    card: str | None = None,
    result: Mapping[str, Any] | None = None,
    recipe: str | None = None,
) -> None:
    """Write a model folder beside what is there; files appear only once all of them are written.

    `card` becomes README.md, `result` metrics.json, `recipe` recipe.toml. Raises HskError where the disk refuses.
    """
    try:
        with new_model(out) as folder:
            if hasattr(model, "save_pretrained"):
                model.save_pretrained(folder)
            else:
                safetensors.torch.save_model(model, str(folder / WEIGHTS))
            for name, data in model_files(tokenizer).items():
                (folder / name).write_bytes(data)
            if card is not None:
                (folder / "README.md").write_text(card)
            if result is not None:
                (folder / RESULT).write_text(json.dumps(result, indent=2) + "\n")
            if recipe is not None:
                (folder / RECIPE).write_text(recipe, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or error
        raise HskError(f"{out} could not be written ({cause}): make room, or choose another --out") from None


def set_labels(model: Any, labels: tuple[str, ...], kind: str) -> None:
    """Name a model's outputs, so that pipelines show them and its loss is the right one when it is trained further."""
    if not hasattr(model, "save_pretrained"):
        return
    model.config.problem_type = "single_label_classification" if kind == "classes" else "regression"
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {name: index for index, name in enumerate(labels)}


def is_onnx(name: str) -> bool:
    """Whether a folder holds an export to ONNX, and no weights beside it."""
    return (Path(name) / ONNX_FILE).exists() and not list(Path(name).glob("*.safetensors"))


def weight_bytes(folder: str) -> int | None:
    """Bytes of a local model folder's weights; None for a model on the hub."""
    files = list(Path(folder).glob("*.safetensors")) or list(Path(folder).glob(ONNX_FILE))
    return sum(file.stat().st_size for file in files) or None
