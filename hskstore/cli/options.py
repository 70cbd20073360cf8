"""What several commands share: arguments and options, and how a command is stopped."""

import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from hskstore import config
from hskstore.errors import OptionError

TeacherArg = Annotated[str, typer.Argument(metavar="TEACHER", help="A fine-tuned classifier: folder or hub name.")]
DataArg = Annotated[
    str, typer.Argument(metavar="DATA", help="Folder, file (TSV, CSV, JSON lines, Parquet) or hub name (glue/cola).")
]
KeepOpt = Annotated[
    list[str] | None, typer.Option(help="DEPTH,LENGTH,WIDTH of `hidden`: counts (9), fractions (0.1) or all. A store each.")
]
ForOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--for", help="Keep what a method reads: its name (hsk methods), mud+ckd of two, or a recipe file. All in one store."
    ),
]
StudentLayersOpt = Annotated[
    list[int] | None, typer.Option(help="Layers of the student to come; several: for each of them. --rich needs none.")
]
RichOpt = Annotated[
    bool, typer.Option("--rich", help="Keep every layer's states and attention, of which any --keep can be made later.")
]
StoreArg = Annotated[str, typer.Argument(metavar="STORE", help="A store's folder or URL, sealed or not.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
STRATEGY = "Which layers, tokens and coordinates of hidden states are kept, and as what numbers vectors are stored"
"""What `--help` calls the options of a strategy."""
BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

LogWithOpt = Annotated[
    str | None,
    typer.Option(
        metavar="tensorboard,wandb,mlflow",
        help="Where losses and scores are logged while it trains. Default: tensorboard, where it is installed.",
    ),
]
DeviceOpt = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1. Default: a GPU if there is one.")]


def strategies_for(student_layers: Sequence[int] | None, strategy: dict[str, Any], *, needed: bool) -> list[config.Strategy]:
    """A strategy for each depth of the student. A rich store serves all: without one, that of any will do."""
    if needed and not student_layers:
        raise OptionError("--keep and --for need --student-layers: which layers are kept follows from the depth of the student")
    return [config.Strategy(layers, **strategy) for layers in student_layers or (1,)]


def first_process() -> bool:
    """Whether this is the only process of a training run, or the first that a launcher started: the one that prints."""
    return int(os.environ.get("RANK", "0")) == 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler wants the machine back."""


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C, or SIGTERM, in a command that goes on where it was."""

    def terminate(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt as stop:
        print("\nhsk: stopped. What was finished is kept; the same command goes on from there.", file=sys.stderr)
        raise typer.Exit(128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def prepare_torch() -> None:
    """What torch and tokenizers read once, when they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Big tensors on huge pages: on a CPU, a step over them spends a third of its time on page faults else.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from hskstore.memory import cores

    # Threads that a container gives no time to hold up those that have some; torch knows the machine's cores alone.
    if cores() < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def quiet_libraries() -> None:
    """Keep the libraries' own bars and advice out of the way, and show our warnings; downloads have bars on a terminal."""
    prepare_torch()
    import transformers
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    from hskstore.cli import console

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    enable_progress_bars() if console.err.is_terminal else disable_progress_bars()
    logging.getLogger("hskstore").handlers = [console.Warnings()]


def trackers_of(log_with: str | None) -> tuple[Any, ...] | None:
    """Of --log-with. Raises OptionError for one that is unknown or not installed."""
    from hskstore.stage_two.trackers import LogTo

    named = None if log_with is None else tuple(dict.fromkeys(name.strip() for name in log_with.split(",")))
    LogTo(named)
    return named


def bytes_of(text: str) -> int:
    """Of --budget: "500MB", "1.5 GiB" or "20000", powers of ten, and of two with an i. Raises OptionError."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*(?:([kKMGT]i?)?B?)", text.strip(), flags=re.ASCII)
    unit = (found[2] or "").replace("K", "k").replace("ki", "Ki") if found else ""
    count = int(float(found[1]) * BYTES[unit]) if found else 0
    if count < 1:
        raise OptionError(f"--budget {text}: expected a number of bytes above zero, such as 500MB, 2GB or 1.5GiB")
    return count
