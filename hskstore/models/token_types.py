"""Token types of a tokenizer that does not say whether its model reads them: given wherever the model has two."""

import logging

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from hskstore.models.run import accepted_inputs, check_length, check_tokens, put_back, run_model
from hskstore.text.dataset import Examples
from hskstore.text.metrics import compute_metrics
from hskstore.text.rows import Rows
from hskstore.text.tasks import Task
from hskstore.text.tokenise import tokenise
from hskstore.text.tokenizers import TYPES, Tokenizer, makes_types, name_types, pad_id, says_types

log = logging.getLogger(__name__)

MOST_ROWS = 512
"""That both ways are scored on."""

BATCH = 32


def types_are_open(model: nn.Module, tokenizer: Tokenizer, columns: int) -> bool:
    """Whether rows of so many columns have types that the model could read, and the tokenizer's files do not say if it does.

    Such a model may have been trained on them, as older versions of transformers gave them, or on zeros, as newer ones do.
    """
    return TYPES in accepted_inputs(model) and not says_types(tokenizer) and makes_types(tokenizer, columns)


def give_types(model: nn.Module, tokenizer: Tokenizer, columns: int) -> None:
    """Settle what is open for a model that is about to be trained: it gets the types."""
    if types_are_open(model, tokenizer, columns):
        name_types(tokenizer, True)


def chosen_types(
    model: nn.Module, tokenizer: Tokenizer, name: str, task: Task, examples: Examples, max_length: int
) -> bool | None:
    """For a model that is trained, whether it gets the types: what scores better on the first of these rows, as is told; None
    where nothing is open.

    The labels are the model's. Where both score alike, or there is no label, it gets them. Raises ModelError for rows that it
    cannot read.
    """
    if not types_are_open(model, tokenizer, len(examples.text)):
        return None
    said = f"{name}: its tokenizer does not say whether the model reads token types, which tell the texts of a pair apart"
    label = examples.label
    if label is None:
        log.warning("%s; without labels to score both by, it gets them", said)
        return True
    first = Examples(tuple(list(column[:MOST_ROWS]) for column in examples.text), label[:MOST_ROWS])
    rows = _with_types(first, tokenizer, max_length)
    check_length(model, name, rows.longest)
    check_tokens(model, name, {"the rows that both are scored on": rows}, tokenizer)
    found = [_logits(model, rows, tokenizer, types=types) for types in (True, False)]
    if found[0].shape[1] != task.num_labels:  # which is refused elsewhere
        return True
    metric = task.metrics[0]
    types, zeros = (compute_metrics(task, logits, np.asarray(first.label))[metric] for logits in found)
    ways = "%s; on %d rows its %s is %.4f with types and %.4f with zeros: it gets %s"
    log.warning(ways, said, len(rows), metric, types, zeros, "types" if types >= zeros else "zeros")
    return types >= zeros


def _with_types(examples: Examples, tokenizer: Tokenizer, max_length: int) -> Rows:
    names = tokenizer.model_input_names
    tokenizer.model_input_names = [*names, TYPES]
    try:
        return tokenise(examples, tokenizer, max_length)
    finally:
        tokenizer.model_input_names = names


def _logits(model: nn.Module, rows: Rows, tokenizer: Tokenizer, *, types: bool) -> Float[np.ndarray, "row class"]:
    """In the rows' order, whatever mode the model is in now and stays in."""
    order = np.argsort(rows.n_tokens, kind="stable")
    found: list[np.ndarray] = []
    with put_back(model), torch.inference_mode():
        model.eval()
        for start in range(0, len(order), BATCH):
            batch = rows.take(order[start : start + BATCH])
            ids, kinds = (torch.from_numpy(array.astype(np.int64)) for array in batch.padded(pad_id(tokenizer)))
            real = torch.arange(ids.shape[1]) < torch.from_numpy(batch.n_tokens)[:, None]
            found.append(run_model(model, ids, kinds if types else torch.zeros_like(kinds), real).logits.cpu().numpy())
    logits = np.concatenate(found)
    logits[order] = logits.copy()
    return logits
