"""One file per method of distillation."""

from collections.abc import Mapping

from hskstore.config import MethodName
from hskstore.errors import OptionError
from hskstore.losses import Term
from hskstore.methods.ckd import Ckd
from hskstore.methods.contract import Method, Phase
from hskstore.methods.distilbert import DistilBert
from hskstore.methods.finetune import Finetune
from hskstore.methods.kd import Kd
from hskstore.methods.ksm import Ksm
from hskstore.methods.mgskd import Mgskd
from hskstore.methods.minilm import MiniLM
from hskstore.methods.minilmv2 import MiniLMv2
from hskstore.methods.mud import Mud
from hskstore.methods.part_options import PartOptions, no_option, written
from hskstore.methods.pkd import Pkd
from hskstore.methods.selection import Selection, Terms, chosen_terms
from hskstore.methods.several import MethodNames, Phasing, Several, parts_of
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
    | type[Tkd]
    | type[Mgskd]
    | type[Ksm],
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
    "mgskd": Mgskd,
    "ksm": Ksm,
}
"""Every method by its name: a closed set."""


def make_method(
    name: str, options: Mapping[str, object], *, by_part: PartOptions | None = None, phasing: Phasing | None = None
) -> Method:
    """A method by its name, or several by "mud+ckd", with the options given: each of all that have it, those `by_part` of one
    alone, which then win. `phasing` is that of `Several`.

    Raises OptionError for another name, and for an option that none of them has.
    """
    names = MethodNames.parse(name).names
    known = {str(each): options_of(METHODS[each]) for each in names}
    for option in options:
        if not any(option in own for own in known.values()):
            raise OptionError(no_option(option, known))
    apart = by_part.read(known) if by_part is not None else {}
    parts = []
    for each in names:
        own = {option: value for option, value in options.items() if option in known[each]}
        parts.append(METHODS[each](**own | apart.get(each, {})))  # type: ignore[arg-type]
    return parts[0] if len(parts) == 1 and phasing is None else Several(tuple(parts), phasing)


def method_options() -> dict[str, Option]:
    """Every option that some method has, by name."""
    return joined(METHODS)


__all__ = [
    "METHODS",
    "Ckd",
    "Finetune",
    "Kd",
    "Ksm",
    "Method",
    "MethodNames",
    "Mgskd",
    "MiniLM",
    "MiniLMv2",
    "Mud",
    "PartOptions",
    "Phase",
    "Phasing",
    "Selection",
    "Several",
    "Term",
    "Terms",
    "TinyBert",
    "Tkd",
    "Weights",
    "chosen_terms",
    "make_method",
    "method_options",
    "parts_of",
    "weighed",
    "written",
]
