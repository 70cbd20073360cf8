"""Which methods a store can serve, and what it lacks for the others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from hskstore.config import Keep
from hskstore.errors import ModelError, OptionError, StoreError
from hskstore.features import TeacherShape
from hskstore.methods import METHODS, parts_of
from hskstore.methods.contract import Method, Phase
from hskstore.models.run import ModelShape
from hskstore.store import open_store
from hskstore.store.features import FEATURES, LISTED, Attended, Qkv, Spans
from hskstore.store.hidden import Hidden
from hskstore.store.plan import Plan


@dataclass(frozen=True)
class Service:
    """What a store is to a method: the depths of the students that it serves, of all from 1 to the teacher's; and what it lacks
    for a student of `depth` layers, with the `command` that makes a store which does not. That depth is the store's own, or the
    nearest that the method can teach. `selected`: of a rich store --keep selects what is lacking.
    """

    method: str
    students: list[int]
    teacher_layers: int
    depth: int
    lacks: list[str]
    command: str
    selected: bool


def teacher_shape(plan: Plan) -> TeacherShape:
    """The teacher of a store."""
    heads = {each.heads for each in plan.features.values() if isinstance(each, Qkv | Attended)}
    return TeacherShape(plan.teacher["layers"], plan.teacher["hidden_size"], plan.hidden, heads=min(heads, default=None))


def is_rich(plan: Plan) -> bool:
    """Whether a store holds what configurations of `hidden` are selected from."""
    return {"states", "cls_row"} <= plan.features.keys()


def lacking(plan: Plan, phases: Iterable[Phase]) -> list[str]:
    """What a store lacks of what some phases read, in words: "cls of teacher layers 2, 4", "labels"."""
    phases = list(phases)
    found = [
        f"{name} of teacher layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}" if layers else name
        for name, layers in _absent(plan, phases).items()
    ]
    if any(phase.reads_labels for phase in phases) and "train/label" not in plan.arrays:
        found.append("labels")
    return found


def _absent(plan: Plan, phases: Sequence[Phase]) -> dict[str, list[int]]:
    """The teacher layers that a store has not of each feature that some phases read; of spans that are not there none."""
    found: dict[str, list[int]] = {}
    for name in FEATURES:
        stored = plan.features.get(name)
        wants = [want for phase in phases for want in phase.reads if want.kind.name == name]
        wanted = {pair.teacher for want in wants for pair in want.pairs}
        absent = sorted(wanted - set(() if stored is None else stored.layers))
        if absent or (wants and stored is None):
            found[name] = absent
    return found


def services_of(root: str) -> list[Service]:
    """Which students a sealed store serves by each method with its defaults. Raises StoreError."""
    plan = open_store(root).plan
    return [_service(plan, method()) for method in METHODS.values()]


def _service(plan: Plan, method: Method) -> Service:
    teacher = teacher_shape(plan)
    own = plan.hidden.strategy.student_layers if plan.hidden is not None else max(1, teacher.layers // 2)
    found = {depth: _phases(plan, method, teacher, depth) for depth in {*range(1, teacher.layers + 1), own, own + 1}}
    taught = {depth: phases for depth, phases in found.items() if phases is not None}
    served = [depth for depth, phases in sorted(taught.items()) if depth <= teacher.layers and not lacking(plan, phases)]
    depth = min(taught, key=lambda each: (abs(each - own), each))
    lacks = lacking(plan, taught[depth])
    selected = is_rich(plan) and _absent(plan, taught[depth]).keys() == {Hidden.name} and len(lacks) == 1
    return Service(method.name, served, teacher.layers, depth, lacks, making(method, depth, lacks), selected)


def to_cut(
    plan: Plan, root: str, methods: Sequence[Method], depths: Sequence[int], keep: Keep | None
) -> tuple[Keep | None, dict[str, list[int]]]:
    """What is to be cut out of the store at `root`, so that methods can train students of these depths: the configuration of
    `hidden`, which is `keep` or the store's own where a method reads it, and the teacher layers of other features by name.

    Raises StoreError where the store lacks some of it.
    """
    teacher = teacher_shape(plan)
    layers: dict[str, set[int]] = {}
    for method, depth in product(methods, depths):
        phases = method.phases(teacher, _student(plan, depth))
        lacks = lacking(plan, phases)
        if lacks:
            raise StoreError(refusal(root, method, depth, lacks))
        for want in (want for phase in phases for want in phase.reads):
            layers.setdefault(want.kind.name, set()).update(pair.teacher for pair in want.pairs)
    if keep is None and "hidden" in layers and plan.hidden is not None:
        keep = plan.hidden.keep
    return keep, {name: sorted(layers[name]) for name in LISTED if name in layers}


def refusal(root: str, method: Method, depth: int, lacks: Sequence[str]) -> str:
    """Why a store cannot serve a method, and what makes one that can."""
    return f"{root} holds no {' and no '.join(lacks)}, which the method {method.name} reads: {making(method, depth, lacks)}"


def making(method: Method, depth: int, lacks: Sequence[str]) -> str:
    """The command that makes a store which serves a method."""
    labels = " --label COLUMN" if "labels" in lacks else ""
    spans = " --spans SPANS" if Spans.name in lacks else ""
    plain = all(part == type(part)() for part in parts_of(method))
    made = "" if plain else ", where hsk distill with the same options and --write-recipe recipe.toml makes that file"
    named = method.name if plain else "recipe.toml"
    return f"hsk extract TEACHER DATA --for {named} --student-layers {depth}{labels}{spans} --out DIR{made}"


def _phases(plan: Plan, method: Method, teacher: TeacherShape, depth: int) -> tuple[Phase, ...] | None:
    """Of a student of so many layers; None where the method cannot teach such a one, whatever is stored."""
    try:
        return method.phases(teacher, _student(plan, depth))
    except (OptionError, ModelError):
        return None


def _student(plan: Plan, depth: int) -> ModelShape:
    return ModelShape("the student", len(plan.teacher["labels"]), (depth, plan.teacher["hidden_size"]))
