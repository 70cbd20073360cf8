"""What came of a run, and the model card that tells it."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hskstore.config import Loader
from hskstore.methods import Method
from hskstore.methods.selector import Selector
from hskstore.models.folder import save_model
from hskstore.models.pruned_bert import PrunedBertForSequenceClassification
from hskstore.models.run import accepted_inputs
from hskstore.stage_two.checkpoint import PhaseResult, forget_checkpoint
from hskstore.stage_two.learner import Learner
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.scores import Scored
from hskstore.stage_two.selecting import FOLDER, save_selector
from hskstore.stage_two.student import Student
from hskstore.store import Plan, Store
from hskstore.store.features import Spans
from hskstore.store.hidden import Hidden
from hskstore.text.tokenizers import TYPES, name_types, tokenizer_from_files

MODULE_CARD = """
It is a torch module, `{name}`: build it and give it the weights with `safetensors.torch.load_model`.
"""
PRUNED_CARD = """
Its architecture is hskstore's: `import hskstore.pruned_bert` once, then transformers' Auto classes load it. What `hsk student
export --onnx` makes of it runs without hskstore.
"""


@dataclass(frozen=True)
class Distilled:
    """A trained student: `scores` are those of its saved weights, by split of the store (validation; MNLI has two).

    `batches` names the batches that it saw, but for the seed: where two runs have it and the seed alike, they saw the same ones,
    whatever their stores keep, and can be compared in pairs.
    """

    folder: str
    digest: str
    phases: list[PhaseResult]
    scores: dict[str, Scored]
    seconds: float
    parameters: int
    precision: str
    loader: Loader
    batches: str


def _code(text: object) -> str:
    """Words of whatever origin for a card: one printable line that means nothing to Markdown."""
    line = str(text)
    line = line if line.isprintable() else ascii(line)
    ticks = "`" * (_longest_ticks(line) + 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"`{line}`"


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def model_card(distilled: Distilled, store: Store, method: Method, student: str, command: str | None, model: Any) -> str:
    """The student's model card: what it learnt from, how, and how well."""
    plan = store.plan
    scores = "\n".join(
        f"| {split} | {metric} | {value:.4f} | {scored.standard_error[metric]:.4f} |"
        for split, scored in distilled.scores.items()
        for metric, value in scored.score.items()
    )
    phases = "\n".join(f"- {phase.name}: {phase.steps} steps, {phase.seconds:.0f} s" for phase in distilled.phases)
    library, loading = "library_name: transformers\npipeline_tag: text-classification\n", ""
    if isinstance(model, PrunedBertForSequenceClassification):
        loading = PRUNED_CARD
    elif not isinstance(model, PreTrainedModel):
        library, loading = "", MODULE_CARD.format(name=student)
    fence = "`" * max(3, _longest_ticks(command or "") + 1)
    how = f"\n{fence}\n{command}\n{fence}\n" if command else ""
    return f"""---
{library}tags: [distillation, hskstore]
---

# A student distilled from a hidden-state store

It was trained by hskstore without its teacher, from the store with the digest
`{distilled.digest}`.

- task: {_code(plan.task["name"])}
- teacher: {_code(plan.teacher.get("model_type"))}, {plan.teacher["layers"]} layers, {plan.teacher["hidden_size"]} wide;
  sha256 of its weights {_code(plan.teacher["sha256"])}
{_kept(plan)}
- student at the start: {_code(student)}
- parameters at the end: {distilled.parameters:,}
- method: {_code(repr(method))}
{phases}
{loading}{how}
| split | metric | score | standard error |
|---|---|---|---|
{scores}
"""


def _kept(plan: Plan) -> str:
    """A line for each feature of the store."""
    lines = [
        f"- kept of its {name}: of layers {', '.join(map(str, feature.layers))}, {feature.values}"
        for name, feature in plan.said.items()
        if name != Hidden.name
    ]
    if isinstance(spans := plan.features.get(Spans.name), Spans):
        lines.append(f"- kept of its rows: spans, whose phrases were found by the chunker {_code(spans.sha256)}")
    if plan.hidden is not None:
        own = plan.hidden
        lines.insert(0, f"- kept of its hidden states: depth, length, width = {own.keep}, {own.strategy.values}")
    return "\n".join(lines)


def save_student(
    distilled: Distilled, store: Store, student: Student, recipe: Recipe, learner: Learner, command: str | None
) -> None:
    """The student's folder; its checkpoint is then of no more use."""
    out, model = Path(distilled.folder), learner.student
    result = asdict(distilled) | {"method": repr(recipe.method), "student": student.name, "seed": recipe.seed}
    if learner.pruning is not None:
        result |= {"pruning": repr(learner.pruning)}
    if recipe.selects is not None:
        result |= {"selection": repr(recipe.selects)}
        if isinstance(learner.chooser, Selector) and recipe.selects.learns:
            save_selector(learner.chooser, out / FOLDER)
    card = model_card(distilled, store, recipe.method, student.name, command, model)
    stored = tokenizer_from_files(store.tokenizer_files())
    words = student.tokenizer or stored
    if TYPES not in accepted_inputs(model):  # which would fail if it were given them
        if TYPES in words.model_input_names:
            name_types(words, False)
    elif not student.reading and len(store.plan.task["text"]) == 2:  # it read the store's rows, whatever its own files say
        name_types(words, TYPES in stored.model_input_names)
    save_model(model, words, out, card=card, result=result, recipe=recipe.to_toml())
    forget_checkpoint(out)
