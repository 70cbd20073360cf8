"""What is planned and stored of a teacher beside what it says: all that anyone asks of it who does not run it."""

import json
from dataclasses import dataclass
from typing import Any

from hskstore.config import MOST_COUNT
from hskstore.models.load import label_names
from hskstore.models.run import attention_windows, usable_positions, usual_length
from hskstore.stage_one.teacher import Teacher
from hskstore.store.schema import canonical_json
from hskstore.text.tokenizers import pad_id, tokenizer_files, tokenizer_sha256


@dataclass(frozen=True)
class TeacherFacts:
    """Of a teacher and its tokenizer. `planned` and `tokenizer` are plain JSON, as a plan holds them.

    `positions` are the tokens that the teacher has positions for (None: no such limit), `most_tokens` those that it and its
    tokenizer take, `windows` how many behind it the first token attends to in each layer (None: all), `heads` those of its
    attention as its config has them. `files` travel beside the arrays: the tokenizer's, and the teacher's config and hash (never
    its weights).
    """

    label_names: tuple[str, ...]
    positions: int | None
    most_tokens: int
    windows: tuple[int | None, ...]
    heads: int | None
    planned: dict[str, Any]
    tokenizer: dict[str, Any]
    files: dict[str, bytes]

    def ranking(self, longest: int) -> tuple[int, ...] | None:
        """The layers, from 1, in which the first token attends to all of a row of `longest` tokens; None: every layer."""
        able = tuple(layer for layer, window in enumerate(self.windows, 1) if window is None or longest - 1 <= window)
        return None if len(able) == len(self.windows) else able


def facts_of(teacher: Teacher) -> TeacherFacts:
    """Its weights are hashed here, which takes a while."""
    model, tokenizer, names = teacher.model, teacher.tokenizer, label_names(teacher.model)
    return TeacherFacts(
        label_names=names,
        positions=usable_positions(model),
        most_tokens=usual_length(model, tokenizer, MOST_COUNT),
        windows=attention_windows(model.config),
        heads=getattr(model.config, "num_attention_heads", None),
        planned={
            "sha256": teacher.sha256,
            "model_type": model.config.model_type,
            "layers": teacher.layers,
            "hidden_size": int(model.config.hidden_size),
            "labels": list(names),
        },
        tokenizer={
            "sha256": tokenizer_sha256(tokenizer),
            "vocabulary": len(tokenizer),
            "pad_token_id": pad_id(tokenizer),
            "separators": _separators(tokenizer),
        },
        files={f"tokenizer/{name}": data for name, data in tokenizer_files(tokenizer).items()}
        | {"teacher.json": _document(teacher)},
    )


def _separators(tokenizer: Any) -> list[int]:
    """Every separator id: BERT's [SEP]; RoBERTa's </s> is also its end of text."""
    return sorted({token for token in (tokenizer.sep_token_id, tokenizer.eos_token_id) if token is not None})


def _document(teacher: Teacher) -> bytes:
    config = teacher.model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation"):
        config.pop(name, None)
    return canonical_json({"sha256": teacher.sha256, "config": json.loads(json.dumps(config, default=str))})
