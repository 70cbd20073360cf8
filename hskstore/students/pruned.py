"""A student made of what matters most of a teacher: ROSITA's one-step pruning, after one pass over the training data."""

from collections.abc import Sequence
from pathlib import Path

from hskstore.config import FINETUNE_BATCH_SIZE, LabelKind, check_count
from hskstore.errors import DataError, ModelError, OptionError
from hskstore.interrupts import interrupts
from hskstore.methods.finetune import gold_terms
from hskstore.models.device import choose_device
from hskstore.models.folder import refuse_existing_model, save_model, set_labels
from hskstore.models.load import label_names, load_trained
from hskstore.models.observe import NOTHING, observe
from hskstore.models.pruned_bert import PrunedBertForSequenceClassification
from hskstore.models.pruning import Importance, as_pruned_bert, widths_of
from hskstore.models.run import check_length, check_tokens, usual_length
from hskstore.models.token_types import chosen_types
from hskstore.models.widths import PruneTo
from hskstore.stage_two.feed import Feed, InMemory
from hskstore.stage_two.rows import TrainingRows, rows_from_data
from hskstore.students.new import NewStudent
from hskstore.students.slices import take_layers
from hskstore.text.dataset import fit_labels, read_dataset
from hskstore.text.tokenise import tokenise
from hskstore.text.tokenizers import name_types
from hskstore.watch import Watch, unwatched


def prune_teacher(
    teacher: str,
    data: str,
    *,
    out: str | Path,
    layers: int | None = None,
    to: PruneTo | None = None,
    task: str | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    kind: LabelKind | None = None,
    max_length: int | None = None,
    device: str | None = None,
    watch: Watch = unwatched,
) -> NewStudent:
    """Prune `teacher`, a fine-tuned BERT, by one pass over the train split of `data`, and save the student in `out`.

    The `layers` at the bottom stay (None: all); of each the most important heads and FFN units, heads in their original
    order; the word embeddings are factorised. Importance is that of the whole teacher, in eval mode like everywhere, by its
    loss on the gold labels. Raises DataError, ModelError or OptionError.
    """
    out = Path(out)
    refuse_existing_model(out)
    check_count("--layers", layers)
    check_count("--max-length", max_length)
    on = choose_device(device)
    loaded, tokenizer = load_trained(teacher)
    model = as_pruned_bert(loaded, teacher).to(on).eval()
    total = int(model.config.num_hidden_layers)
    if layers is not None and not 1 <= layers <= total:
        raise OptionError(f"--layers {layers}: {teacher} has 1 to {total}")
    widths = (to or PruneTo()).within(widths_of(model), teacher)
    names = label_names(loaded)
    classes = names if len(names) > 1 else ()
    dataset = read_dataset(data, task=task, text=text, label=label, kind=kind, splits=("train",), classes=classes)
    dataset = fit_labels(dataset, names, teacher)
    if dataset.task.label is None:
        raise DataError("pruning asks what the loss on gold labels hangs on: pass --label COLUMN")
    length = max_length or usual_length(model, tokenizer, dataset.task.max_length)
    types = chosen_types(loaded, tokenizer, teacher, dataset.task, dataset.splits["train"], length)
    if types is not None:
        name_types(tokenizer, types)
    tokenised = tokenise(dataset.splits["train"], tokenizer, length, split="train", watch=watch)
    check_length(model, teacher, int(tokenised.n_tokens.max()))
    check_tokens(model, teacher, {"train": tokenised}, tokenizer)
    rows = rows_from_data(tokenised, tokenizer.pad_token_id)
    importance = measure_importance(model, rows, order=tokenised.sha256(), name=teacher, watch=watch)
    take_layers(model, range(1, (layers or total) + 1))
    importance.keep(model, widths)
    set_labels(model, dataset.task.labels, dataset.task.kind)
    save_model(model, tokenizer, out)
    return NewStudent(str(out), layers or total, int(model.num_parameters()))


def measure_importance(
    model: PrunedBertForSequenceClassification,
    rows: TrainingRows,
    *,
    order: str,
    name: str = "the model",
    watch: Watch = unwatched,
) -> Importance:
    """Importance over one epoch of `rows` in batches of 32, whose order `order` decides; no weight changes.

    Raises ModelError, with the model's `name`, where its loss is not finite.
    """
    importance = Importance(model)
    done = 0
    with interrupts() as held:
        for step in Feed(InMemory(rows), FINETUNE_BATCH_SIZE, order, seed=0).epoch(0):
            batch = step.batch.to(model.device)
            seen = observe(model, *batch.inputs, NOTHING)
            model.zero_grad()
            loss = gold_terms(seen, batch)["gold"].value
            if not loss.isfinite():
                raise ModelError(
                    f"{name}: its loss on the train rows is not finite and tells nothing of what matters: its weights are damaged"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            importance.note(model)
            done += len(batch)
            watch("importance", done, len(rows))
            held.check()
    return importance
