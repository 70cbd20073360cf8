"""What several commands share: arguments and options, and how a command is stopped."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from hskstore import config

TeacherArg = Annotated[str, typer.Argument(metavar="TEACHER", help="A fine-tuned classifier: folder or hub name.")]
DataArg = Annotated[
    str, typer.Argument(metavar="DATA", help="Folder, file (TSV, CSV, JSON lines, Parquet) or hub name (glue/cola).")
]
TaskOpt = Annotated[str | None, typer.Option(help="A GLUE task: cola sst2 mrpc stsb qqp mnli qnli rte wnli.")]
TextOpt = Annotated[list[str] | None, typer.Option(help="Text column, for data that is no known task; twice for pairs.")]
LabelOpt = Annotated[str | None, typer.Option(help="Label column: class names, class ids, or scores.")]
ValidationOpt = Annotated[str | None, typer.Option(help="A file, or the share of train (0.1), where DATA has no such split.")]
MaxLengthOpt = Annotated[int | None, typer.Option(help="Tokens a row is cut to. Default: the task's (64 or 128).")]
TrainSeedOpt = Annotated[int, typer.Option(help="Decides new weights, the order of rows, and dropout.")]
TrainPrecisionOpt = Annotated[
    config.TrainPrecision, typer.Option(help="fp32, or bf16 by autocast. Default: bf16 where the device computes in it.")
]
KEEP = typer.Option(help="DEPTH,LENGTH,WIDTH: counts (9), fractions (0.1) or all. A store each.")
StudentLayersOpt = Annotated[list[int], typer.Option(help="Layers of the student to come. A store each.")]
TopLayerOpt = Annotated[int | None, typer.Option(help="L_top, the teacher layer of the student's last. Default: 10/12 L.")]
LayerMapOpt = Annotated[config.LayerMap, typer.Option(help="g: round (l L_top / L') or eq5 (the paper's Equation 5).")]
RankOpt = Annotated[config.Rank, typer.Option(help="Tokens by attention, attention-with-sep, left or random.")]
RankLayerOpt = Annotated[config.RankLayer, typer.Option(help="Attention of the aligned layer (L_top = last), or the same as g.")]
ScoreOpt = Annotated[config.Score, typer.Option(help="Attention probability, or raw score before softmax.")]
MaskOpt = Annotated[config.Mask, typer.Option(help="Coordinates of a vector by magnitude, uniform or random.")]
ValuesOpt = Annotated[config.Values, typer.Option(help="Stored as f16, f32, q8 (int8) or q4 (4 bits).")]
BatchTokensOpt = Annotated[int, typer.Option(help="Padded tokens of a teacher's batch.")]
PrecisionOpt = Annotated[config.Precision, typer.Option(help="The teacher's; bf16 and fp16 by autocast.")]
PassSeedOpt = Annotated[int, typer.Option(help="Decides the order of rows, and random ranks and masks.")]
KeepOffsetsOpt = Annotated[
    bool,
    typer.Option(
        "--keep-offsets",
        help="Keep the text and each token's characters, so that a student with another tokenizer can learn too.",
    ),
]
StoreArg = Annotated[str, typer.Argument(metavar="STORE", help="A store's folder or URL, sealed or not.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DeviceOpt = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1. Default: a GPU if there is one.")]


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


def quiet_libraries() -> None:
    """Keep the libraries' own bars and advice out of the way, and show our warnings; hub downloads still show their bars."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Big tensors on huge pages: on a CPU, a step over them spends a third of its time on page faults else. Read by torch once.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    import transformers
    from huggingface_hub.utils.tqdm import enable_progress_bars

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    enable_progress_bars()

    from hskstore.cli import console

    logging.getLogger("hskstore").handlers = [console.Warnings()]
