"""One file per method of distillation."""

from collections.abc import Mapping
from typing import get_args

from hskstore.config import MethodName, check_choice
from hskstore.errors import OptionError
from hskstore.losses import Term
from hskstore.methods.ckd import Ckd
from hskstore.methods.contract import Method, Phase
from hskstore.methods.distilbert import DistilBert
from hskstore.methods.finetune import Finetune
from hskstore.methods.kd import Kd
from hskstore.methods.minilm import MiniLM
from hskstore.methods.minilmv2 import MiniLMv2
from hskstore.methods.mud import Mud
from hskstore.methods.pkd import Pkd
from hskstore.methods.tinybert import TinyBert
from hskstore.methods.tkd import Tkd
from hskstore.methods.weights import Weights, weighed
from hskstore.options import Option, joined, options_of

METHODS: Mapping[
    MethodName,
    type[Mud]
    | type[Kd]
    | type[Finetune]
    | type[Pkd]
    | type[DistilBert]
    | type[Ckd]
    | type[MiniLMv2]
    | type[MiniLM]
    | type[TinyBert]
    | type[Tkd],
] = {
    "mud": Mud,
    "kd": Kd,
    "finetune": Finetune,
    "pkd": Pkd,
    "distilbert": DistilBert,
    "ckd": Ckd,
    "minilmv2": MiniLMv2,
    "minilm": MiniLM,
    "tinybert": TinyBert,
    "tkd": Tkd,
}


def make_method(name: MethodName, options: Mapping[str, object]) -> Method:
    """A method by its name with the options given. Raises OptionError for another name, or an option that the method has not."""
    check_choice("--method", name, get_args(MethodName))
    chosen = METHODS[name]
    own = options_of(chosen)
    for option in options:
        if option not in own:
            flags = ", ".join(each.flag for each in own.values()) or "none"
            raise OptionError(f"--{option.replace('_', '-')} is no option of the method {name}; its own are: {flags}")
    return chosen(**options)  # type: ignore[arg-type]


def method_options() -> dict[str, Option]:
    """Every option that some method has, by name."""
    return joined(METHODS)


__all__ = [
    "METHODS",
    "Ckd",
    "Finetune",
    "Kd",
    "Method",
    "MiniLM",
    "MiniLMv2",
    "Mud",
    "Phase",
    "Term",
    "TinyBert",
    "Tkd",
    "Weights",
    "make_method",
    "method_options",
    "weighed",
]
