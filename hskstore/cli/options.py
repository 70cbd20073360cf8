"""What several commands share: arguments and options, and how a command is stopped."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

DataArg = Annotated[
    str, typer.Argument(metavar="DATA", help="Folder, file (TSV, CSV, JSON lines, Parquet) or hub name (glue/cola).")
]
TaskOpt = Annotated[str | None, typer.Option(help="A GLUE task: cola sst2 mrpc stsb qqp mnli qnli rte wnli.")]
TextOpt = Annotated[list[str] | None, typer.Option(help="Text column, for data that is no known task; twice for pairs.")]
LabelOpt = Annotated[str | None, typer.Option(help="Label column: class names, class ids, or scores.")]
ValidationOpt = Annotated[str | None, typer.Option(help="A file, or the share of train (0.1), where DATA has no such split.")]
MaxLengthOpt = Annotated[int | None, typer.Option(help="Tokens a row is cut to. Default: the task's (64 or 128).")]
MOST_SEED = 2**32 - 1
"""NumPy takes no larger one."""
TrainSeedOpt = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Decides new weights, the order of rows, and dropout.")]
StoreArg = Annotated[str, typer.Argument(metavar="STORE", help="A store's folder or URL, sealed or not.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DeviceOpt = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1. Default: a GPU if there is one.")]


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C in a command that goes on where it was."""
    try:
        yield
    except KeyboardInterrupt:
        print("\nhsk: stopped. What was finished is kept; the same command goes on from there.", file=sys.stderr)
        raise typer.Exit(130) from None


def quiet_libraries() -> None:
    """Keep the libraries' own bars and advice out of the way, and show our warnings; hub downloads still show their bars."""
    import os

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import transformers
    from huggingface_hub.utils.tqdm import enable_progress_bars

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    enable_progress_bars()

    from hskstore import console

    logging.getLogger("hskstore").handlers = [console.Warnings()]
