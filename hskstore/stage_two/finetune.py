"""How a teacher is made: a pretrained encoder, fine-tuned on gold labels."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from transformers import PreTrainedModel, set_seed

from hskstore.config import (
    FINETUNE_BATCH_SIZE,
    FINETUNE_EPOCHS,
    FINETUNE_LR,
    LabelKind,
    TrainPrecision,
    check_choice,
    check_count,
    check_positive,
    check_seed,
)
from hskstore.errors import DataError
from hskstore.methods import Finetune
from hskstore.methods.finetune import PHASE
from hskstore.models.anatomy import parameters
from hskstore.models.folder import refuse_existing_model, save_model, set_labels
from hskstore.models.load import load_classifier
from hskstore.models.run import check_length, check_tokens, check_vocabulary, shape_of, usual_length
from hskstore.models.token_types import give_types
from hskstore.stage_two.checkpoint import forget_checkpoint
from hskstore.stage_two.feed import InMemory, steps_per_epoch
from hskstore.stage_two.learner import Learner
from hskstore.stage_two.precision import precision_for
from hskstore.stage_two.processes import from_first, is_main
from hskstore.stage_two.rows import rows_from_data, telling_rows
from hskstore.stage_two.scores import Scored, dev_score, predict_splits, score_splits
from hskstore.stage_two.settings import PhaseSettings
from hskstore.stage_two.trainer import train
from hskstore.text.dataset import read_dataset
from hskstore.text.tally import TextFacts, TokenCounts, warn_of_text
from hskstore.text.tasks import Task
from hskstore.text.tokenise import tokenise
from hskstore.text.tokenizers import Tokenizer, load_tokenizer
from hskstore.watch import Watch, unwatched


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned model: `scores` are those of its best epoch, by split (validation; MNLI has two); `text` is what became of the
    texts of each split as tokens."""

    folder: str
    scores: dict[str, Scored]
    steps: int
    seconds: float
    parameters: int
    text: dict[str, TextFacts]


def finetune(
    model: str,
    data: str,
    *,
    out: str | Path,
    task: str | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    kind: LabelKind | None = None,
    validation: str | None = None,
    epochs: int = FINETUNE_EPOCHS,
    lr: float = FINETUNE_LR,
    batch_size: int = FINETUNE_BATCH_SIZE,
    max_length: int | None = None,
    seed: int = 0,
    precision: TrainPrecision = "auto",
    device: str | None = None,
    watch: Watch = unwatched,
) -> Finetuned:
    """Fine-tune `model` (a folder or hub name) on the gold labels of `data` and save the best epoch in `out`.

    Raises DataError, ModelError or OptionError.
    """
    out = Path(out)
    refuse_existing_model(out, f"name {out} as MODEL to go on from it, at a rate that begins anew")
    check_count("--epochs", epochs)
    check_positive("--lr", lr)
    check_count("--batch-size", batch_size)
    check_count("--max-length", max_length)
    check_seed(seed)
    check_choice("--precision", precision, get_args(TrainPrecision))
    dataset = read_dataset(data, task=task, text=text, label=label, kind=kind, validation=validation)
    if dataset.task.label is None:
        raise DataError("fine-tuning needs gold labels: pass --label COLUMN")
    set_seed(seed)
    classifier, tokenizer = _with_new_head(model, dataset.task)
    length = max_length or usual_length(classifier, tokenizer, dataset.task.max_length)
    give_types(classifier, tokenizer, len(dataset.task.text))
    counts = {name: TokenCounts(tokenizer, len(split.text), length) for name, split in dataset.splits.items()}
    tokenised = {
        name: tokenise(split, tokenizer, length, split=name, watch=watch, counts=counts[name])
        for name, split in dataset.splits.items()
    }
    text_facts = {name: one.facts() for name, one in counts.items()}
    warn_of_text(text_facts)
    check_length(classifier, model, max(int(split.n_tokens.max()) for split in tokenised.values()))
    check_tokens(classifier, model, tokenised, tokenizer)
    dev = {name: rows_from_data(split, tokenizer.pad_token_id) for name, split in tokenised.items()}
    shape_of(classifier, *telling_rows(dev["train"]), name=model)  # it can be loaded and still not run
    supply = InMemory(dev.pop("train"))
    precision = precision_for(classifier, model, telling_rows(dev["validation"]), wanted=precision, device=device)
    settings = PhaseSettings(PHASE, lr, batch_size, steps_per_epoch(supply, batch_size) * epochs)
    (result,) = train(
        Learner(classifier),
        supply,
        Finetune(),
        [settings],
        data=tokenised["train"].sha256(),
        order=tokenised["train"].sha256(),
        seed=seed,
        out=out,
        score=dev_score(dataset.task, dev["validation"], watch=watch),
        precision=precision,
        device=device,
        watch=watch,
    )
    scores = from_first(lambda: score_splits(dataset.task, predict_splits(classifier, dev, watch), dev))
    finetuned = Finetuned(str(out), scores, result.steps, result.seconds, parameters(classifier), text_facts)
    if not is_main():
        return finetuned
    save_model(classifier, tokenizer, out, result=asdict(finetuned) | {"model": model, "seed": seed, "phase": asdict(result)})
    forget_checkpoint(out)
    return finetuned


def _with_new_head(model: str, task: Task) -> tuple[PreTrainedModel, Tokenizer]:
    """A pretrained encoder and its tokenizer, with a head for the task's labels unless it has one. Raises ModelError."""
    classifier, _ = load_classifier(model, num_labels=task.num_labels, ignore_mismatched_sizes=True)
    tokenizer = load_tokenizer(model)
    check_vocabulary(classifier, model, tokenizer)
    set_labels(classifier, task.labels, task.kind)
    return classifier, tokenizer
