"""What to keep of the teacher's hidden states, and by which strategy.

A configuration is the paper's triplet (N^D, N^L, N^W): how many layers, tokens of each row, and coordinates of each vector
(Marginal Utility Diminishes, section 5.2). A strategy says which ones (section 4).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from typing import Annotated, Literal, TypeAlias, TypedDict, get_args

from annotated_doc import Doc

from hskstore.errors import OptionError

Amount: TypeAlias = int | float | Literal["all"]
"""An integer is a count, a decimal a fraction, "all" is everything."""

LayerMap: TypeAlias = Literal["round", "eq5"]
Rank: TypeAlias = Literal["attention", "attention-with-sep", "left", "random"]
RankLayer: TypeAlias = Literal["aligned", "same"]
Score: TypeAlias = Literal["probability", "raw"]
Mask: TypeAlias = Literal["magnitude", "uniform", "random"]
Values: TypeAlias = Literal["f16", "f32", "q8", "q4", "rq4", "rq8", "rq16", "rq32"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
Engine: TypeAlias = Literal["inline", "procs", "static", "ray"]
TrainPrecision: TypeAlias = Literal["auto", "fp32", "bf16"]
TrackerName: TypeAlias = Literal["tensorboard", "wandb", "mlflow"]
Loader: TypeAlias = Literal["auto", "ram", "blocks"]
Targets: TypeAlias = Literal["zero", "ignore"]
RegressionTarget: TypeAlias = Literal["teacher", "gold"]
Projection: TypeAlias = Literal["shared", "per-layer"]
LabelKind: TypeAlias = Literal["classes", "score"]
MethodName: TypeAlias = Literal[
    "mud", "kd", "finetune", "pkd", "distilbert", "ckd", "minilmv2", "minilm", "tinybert", "tkd", "mgskd", "ksm"
]


DEFAULT_BATCH_TOKENS = 4096
"""Padded tokens of a teacher's batch: the same on every device, because it decides a state's last bits."""

DEFAULT_VOCABULARY = "google-bert/bert-base-uncased"
DEFAULT_WARMUP = 0.1
"""Share of a decaying phase's steps over which the rate rises; phases at a constant rate have no warm-up."""

DEFAULT_PRUNE_SHARE = 0.5
"""Share of the first phase's steps over which a student that is pruned while it learns gets narrower."""

MOST_SEED = 2**32 - 1
"""NumPy takes no larger one."""

MOST_COUNT = 2**31 - 1
"""Of steps, rows or tokens: more than any run has, and products of two are still exact."""

FINETUNE_EPOCHS, FINETUNE_LR, FINETUNE_BATCH_SIZE = 3, 3e-5, 32

# Options that several commands share, by the names of the library's arguments. Their flags are made from what stands here.

TrainSeedOption: TypeAlias = Annotated[int, Doc("Decides new weights, the order of rows, and dropout. Default: 0.")]
TrainPrecisionOption: TypeAlias = Annotated[
    TrainPrecision, Doc("fp32, or bf16 by autocast. Default: bf16 where the device computes in it.")
]


class DataOptions(TypedDict, total=False):
    """How a data set is read."""

    task: Annotated[str | None, Doc("A GLUE task: cola sst2 mrpc stsb qqp mnli qnli rte wnli.")]
    text: Annotated[Sequence[str], Doc("Text column, for data that is no known task; twice for pairs.")]
    label: Annotated[str | None, Doc("Label column: class names, class ids, or scores.")]
    kind: Annotated[LabelKind | None, Doc("What numbers as labels are: classes, or score. Default: as they look.")]
    validation: Annotated[str | None, Doc("A file, or the share of train (0.1), where DATA has no such split.")]
    max_length: Annotated[int | None, Doc("Tokens a row is cut to. Default: the task's (64 or 128).")]


class PassOptions(DataOptions, total=False):
    """What decides a store besides teacher, data and configuration."""

    batch_tokens: Annotated[int, Doc(f"Padded tokens of a teacher's batch. Default: {DEFAULT_BATCH_TOKENS}.")]
    precision: Annotated[Precision, Doc("The teacher's; bf16 and fp16 by autocast. Default: fp32.")]
    seed: Annotated[int, Doc("Decides the order of rows, and random ranks and masks. Default: 0.")]
    keep_offsets: Annotated[
        bool, Doc("Keep the text and each token's characters, so that a student with another tokenizer can learn too.")
    ]
    spans: Annotated[str | None, Doc("A folder of hsk spans train: keep each train row's phrases and split words.")]


class FinetuneOptions(DataOptions, total=False):
    """How a teacher is made of a pretrained encoder."""

    epochs: Annotated[int, Doc(f"Passes over the train rows. Default: {FINETUNE_EPOCHS}.")]
    lr: Annotated[float, Doc(f"Peak learning rate. Default: {FINETUNE_LR:g}.")]
    batch_size: Annotated[int, Doc(f"Rows of a step. Default: {FINETUNE_BATCH_SIZE}.")]
    seed: TrainSeedOption
    precision: TrainPrecisionOption


@dataclass(frozen=True)
class Keep:
    """How many layers (`depth`), tokens (`length`) and coordinates of a vector (`width`) are kept."""

    depth: Amount
    length: Amount
    width: Amount

    def __post_init__(self) -> None:
        for amount in (self.depth, self.length, self.width):
            if type(amount) not in (int, float) and amount != "all":
                raise OptionError(f"--keep {self}: '{amount}' is neither a count (9), a fraction (0.1) nor 'all'")
            if isinstance(amount, float) and not 0 < amount <= 1:
                raise OptionError(f"--keep {self}: the fraction {amount} must be above 0 and at most 1.0")
            if isinstance(amount, int) and amount < 1:
                raise OptionError(f"--keep {self}: the count {amount} must be at least 1")

    @classmethod
    def parse(cls, text: str) -> "Keep":
        """Read "1,9,0.1", "all,all,0.5" or "all". Raises OptionError."""
        parts = [part.strip() for part in text.split(",")]
        if parts == ["all"]:
            parts = ["all"] * 3
        if len(parts) != 3:
            raise OptionError(
                f"--keep {text}: expected DEPTH,LENGTH,WIDTH (layers, tokens, coordinates), such as 1,9,0.1, or all"
            )
        return cls(*(_parse_amount(part, text) for part in parts))

    def __str__(self) -> str:
        return f"{self.depth},{self.length},{self.width}"

    def __eq__(self, other: object) -> bool:
        # Not field by field: a count of 1 equals the fraction 1.0 in Python, and keeps one unit instead of all.
        return isinstance(other, Keep) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def name(self) -> str:
        """The store's name: "d1-l9-w0.1"."""
        return f"d{self.depth}-l{self.length}-w{self.width}"


DEFAULT_KEEP = Keep(1, 9, 0.1)
"""Of `hidden`, where a method reads it and nobody says how much: the configuration of the paper's Figure 10."""


def _parse_amount(part: str, text: str) -> Amount:
    if part == "all":
        return "all"
    try:
        return float(part) if "." in part or "e" in part else int(part)
    except ValueError:
        raise OptionError(f"--keep {text}: '{part}' is neither a count (9), a fraction (0.1) nor 'all'") from None


def resolve(amount: Amount, whole: int) -> int:
    """How many of `whole` an amount is: at least 1, halves to even. A count may exceed `whole`; callers decide."""
    if amount == "all":
        return whole
    if isinstance(amount, int):
        return amount
    # The decimal that was typed, exactly: 0.07 x 150 is a half, and above one in floats.
    return max(1, round(Fraction(str(amount)) * whole))


@dataclass(frozen=True)
class Strategy:
    """Which layers, tokens and coordinates are kept: section 4 of the paper; the defaults are those of its section 5.2.

    `student_layers` is L', the depth of the student the store is made for; `top_layer` is L_top, the teacher layer
    that guides the student's last one (None: round(10 L / 12), the paper's most stable choice).
    """

    student_layers: int
    top_layer: Annotated[int | None, Doc("Teacher layer of the student's last, L_top. Default: 10 of 12, 5 of 6.")] = None
    layer_map: Annotated[
        LayerMap, Doc("Teacher layer of student layer l: round (l L_top / L') or eq5 (the paper's Equation 5).")
    ] = "round"
    rank: Annotated[Rank, Doc("Best tokens by [CLS]'s attention, attention-with-sep ([SEP] too), left or random.")] = "attention"
    rank_layer: Annotated[
        RankLayer, Doc("Whose attention: that of the teacher layer for L_top = last (aligned), or of the kept one (same).")
    ] = "aligned"
    score: Annotated[Score, Doc("Attention as probability, or as raw score before the softmax.")] = "probability"
    mask: Annotated[Mask, Doc("Best coordinates of a vector by magnitude, uniform or random.")] = "magnitude"
    values: Annotated[
        Values, Doc("Stored as f16, f32, q8 (int8), q4 (4 bits), or rq4 to rq32: codes of 4, 8, 16, 32 bytes a vector.")
    ] = "f16"

    @property
    def ranks_separators(self) -> bool:
        """Whether [SEP] may be kept: the paper's "Att w/o [SEP]" is the default and leaves it out."""
        return self.rank != "attention"

    @property
    def ranks_by_attention(self) -> bool:
        """Whether the teacher's attention is looked at."""
        return self.rank.startswith("attention")

    def __post_init__(self) -> None:
        check_count("--student-layers", self.student_layers)
        closed = {
            "--layer-map": (self.layer_map, LayerMap),
            "--rank": (self.rank, Rank),
            "--rank-layer": (self.rank_layer, RankLayer),
            "--score": (self.score, Score),
            "--mask": (self.mask, Mask),
            "--values": (self.values, Values),
        }
        for option, (value, allowed) in closed.items():
            check_choice(option, value, get_args(allowed))


def check_choice(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise OptionError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise OptionError(f"{option} {value}: choose one of {', '.join(allowed)}")


def check_count(option: str, value: int | None, *, least: int = 1, most: int = MOST_COUNT) -> None:
    """Raise OptionError unless `value` is a whole number from `least` to `most`; None, an option left out, is all right."""
    if value is not None and not (isinstance(value, Integral) and not isinstance(value, bool) and least <= value <= most):
        raise OptionError(f"{option} {value}: must be a whole number from {least} to {most}")


def check_seed(value: int) -> None:
    """Raise OptionError for what is no seed."""
    check_count("--seed", value, least=0, most=MOST_SEED)


def check_positive(option: str, value: float | None) -> None:
    """Raise OptionError unless `value` is a finite number above zero; None, an option left out, is all right."""
    if value is not None and not (isinstance(value, Real) and 0 < value < math.inf):
        raise OptionError(f"{option} {value}: must be above zero and finite")


def check_not_negative(option: str, value: float) -> None:
    """Raise OptionError unless `value` is a finite number of at least zero."""
    if not (isinstance(value, Real) and 0 <= value < math.inf):
        raise OptionError(f"{option} {value}: must be from zero, and finite")


def check_share(option: str, value: float) -> None:
    """Raise OptionError unless `value` is from 0 to 1."""
    if not (isinstance(value, Real) and 0 <= value <= 1):
        raise OptionError(f"{option} {value}: must be from 0 to 1")


def units_of_hsk(depth: float, length: float, width: float) -> float:
    """A^HSK (section 5.1): whole hidden vectors kept per row. `width` is the fraction of a vector that is kept."""
    return depth * length * width
