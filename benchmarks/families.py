r"""Every family of sequence classifiers of transformers as a teacher and as a student: what runs, what is right, what is refused.

    python benchmarks/families.py --out docs/families.md --raw benchmarks/results/families_cpu_DATE.json

Of each family a tiny random model is made and saved with a tokenizer, and then: `extract --for mud --for pkd` of all there is,
a rich store, and one of queries, keys and values; `distill` of a smaller model of the same family; `student export --onnx`. What
is stored is compared, number by number, with an independent reading: transformers alone, eager attention, each row without
padding. Each family has a process of its own, forked from one that has imported everything, and a time limit.
"""

import argparse
import json
import logging
import multiprocessing
import os
import re
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSES

from hskstore.config import Keep, Strategy
from hskstore.errors import HskError
from hskstore.features import ATTENDED, QKV, Want
from hskstore.layers import LayerPair
from hskstore.methods import METHODS
from hskstore.models.onnx import export_onnx
from hskstore.stage_one.extract import extract
from hskstore.stage_one.teacher import load_teacher
from hskstore.stage_two.distill import distill
from hskstore.stage_two.recipe import Recipe
from hskstore.store import Store, open_store

WORDS = tuple("the a cat dog bird sees hears likes old young red small big never often today runs sleeps and or".split())  # noqa: SIM905
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROWS, DEV_ROWS = 24, 8
LAYERS, STUDENT_LAYERS = 4, 2
SECONDS = 40
TOLERANCE = 1e-4
"""Largest difference, relative to the largest number of what is compared; of probabilities absolute."""

TINY: dict[str, Any] = (
    dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim"), 32)
    | dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"), 4
    )
    | dict.fromkeys(("intermediate_size", "hidden_dim", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff"), 64)
    | dict.fromkeys(("d_inner", "ffn_hidden_size"), 64)
    | dict.fromkeys(("head_dim", "d_kv", "d_head", "kv_channels", "v_head_dim", "qk_rope_head_dim", "qk_nope_head_dim"), 8)
    | dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4)
    | dict.fromkeys(("kv_lora_rank", "q_lora_rank", "moe_intermediate_size", "shared_expert_intermediate_size"), 16)
    | dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 80)
    | dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 1)
    | {"num_key_value_heads": 2, "num_experts_per_tok": 2, "vocab_size": len(SPECIAL) + len(WORDS)}
    | {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "mask_token_id": 4}
    | {"initializer_range": 0.2, "init_std": 0.2, "sliding_window": 8, "local_attention": 8}
)
"""By the names that configs have for them."""

DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers")

KEYS_OF_THEIR_OWN = {"num_key_value_heads": 4}
SEES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 16,
}


def inside(*names: str, **more: Any) -> Callable[[int], dict[str, Any]]:
    """The sizes of a config within a config."""
    own = {name: TINY[name] for name in (*names, "vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")}
    return lambda layers: own | {"num_hidden_layers": layers} | more


GEMMA = ("num_key_value_heads", "head_dim", "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id", "sliding_window")
BERT = ("initializer_range", "pad_token_id", "max_position_embeddings", "bos_token_id", "eos_token_id")

OTHERWISE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "esmc", "minicpm3", "mistral4"), KEYS_OF_THEIR_OWN),
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "ctrl": {"dff": 64},
    "gemma3": {"text_config": inside(*GEMMA), "vision_config": SEES, "mm_tokens_per_image": 4, "image_token_index": 4},
    "gpt_neo": {"attention_types": lambda layers: [[["global", "local"], layers // 2]], "window_size": 8},
    "gptj": {"rotary_dim": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "visual_embed": False},
    "lilt": {"hidden_size": 48},
    "longformer": {"attention_window": 8},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 16},
    "mobilebert": {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32, "initializer_range": 0.02},
    "modernvbert": {"text_config": inside(*BERT), "vision_config": SEES, "image_token_id": 4},
    "perceiver": {"d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 1},
    "qwen3_5": {
        "text_config": inside(*GEMMA[:-1]),
        "vision_config": {"depth": 1, "hidden_size": 32, "num_heads": 4, "intermediate_size": 32, "out_hidden_size": 32},
    },
    "reformer": {
        "attn_layers": lambda layers: ["local", "lsh"] * (layers // 2),
        "axial_pos_shape": (8, 8),
        "axial_pos_embds_dim": (16, 16),
        "attention_head_size": 8,
        "feed_forward_size": 64,
        "max_position_embeddings": 64,
    },
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roc_bert": {"pronunciation_vocab_size": 25, "shape_vocab_size": 25, "pronunciation_embed_dim": 8, "shape_embed_dim": 8},
    "squeezebert": {"embedding_size": 32},
    "t5gemma": {side: inside(*GEMMA) for side in ("encoder", "decoder")},
    "ultravbert": {"text_config": inside(*BERT), "vision_config": SEES, "image_token_id": 4},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba2": {"layers_block_type": lambda layers: ["mamba", "hybrid"] * (layers // 2), "n_mamba_heads": 4, "mamba_d_state": 4},
    "zamba": {"n_mamba_heads": 2, "mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
}
"""Families whose sizes hang together otherwise, or stand elsewhere."""

NOT_TRIED = {
    "layoutlmv2": "reads images of pages, by detectron2",
    "t5gemma2": "cannot be made tiny by its config; refused by that alone, as an encoder and a decoder",
    "zamba": "transformers cannot tie the shared weights of so few layers",
    "mra": "attends to nothing where its CUDA kernels are not: transformers gives zeros",
}
"""Families that cannot be tried here, and why."""


@dataclass(frozen=True)
class Reading:
    """As much of a method as an extraction asks: the inside of the attention of every layer."""

    name: str = "inside"

    def phases(self, teacher: Any, student: Any) -> Sequence[Any]:
        pairs = tuple(LayerPair(0, layer) for layer in range(1, teacher.layers + 1))
        return [SimpleNamespace(reads=(Want(QKV, pairs), Want(ATTENDED, pairs)))]


@dataclass
class Found:
    """What came of a family. `attention` is how its teacher runs: SDPA or eager; None: refused. `asked` is what was extracted.
    `differences` are the largest of what is stored to each row alone, `beside` to the rows padded to one length.
    What is refused, or fails, stands in words."""

    family: str
    model: str
    attention: str | None = None
    asked: str | None = None
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    warned: list[str] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)
    beside: dict[str, float] = field(default_factory=dict)
    student: str | None = None
    onnx: float | None = None
    seconds: float = 0.0


# --- a world to try them in


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=64, model_input_names=inputs, **names)


def pairs(rows: int, seed: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    return [tuple(" ".join(rng.choice(WORDS, size=rng.integers(1, 9))) for _ in range(2)) for _ in range(rows)]


def write_data(folder: Path) -> None:
    for name, rows, seed in (("train", ROWS, 1), ("dev", DEV_ROWS, 2)):
        lines = [f"{one}\t{two}\t{index % 2}" for index, (one, two) in enumerate(pairs(rows, seed))]
        (folder / f"{name}.tsv").write_text("\n".join(["one\ttwo\tlabel", *lines]) + "\n")


def tiny(family: str, layers: int, folder: Path) -> Path:
    """A random model of so many layers, in a folder with its tokenizer."""
    torch.manual_seed(layers)
    kind = CONFIG_MAPPING[family]
    known = {each.name for each in fields(kind)}
    sizes = {name: value for name, value in (TINY | dict.fromkeys(DEPTHS, layers)).items() if name in known}
    own = {name: value(layers) if callable(value) else value for name, value in OTHERWISE.get(family, {}).items()}
    sizes = {name: value for name, value in sizes.items() if "text_config" not in own or name.endswith("token_id")}
    model = AutoModelForSequenceClassification.from_config(kind(**(sizes | own), num_labels=2), dtype=torch.float32)
    model.eval().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


# --- the independent reading


def read(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of each row, alone and padded beside all the others, by transformers alone: logits, hidden states [layer, token, width]
    and, where there are any, attention maps."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    alone = [one for text in pairs(ROWS, 1) for one in plain_forward(model, tokenizer, [text])]
    return alone, plain_forward(model, tokenizer, pairs(ROWS, 1))


def plain_forward(model: Any, tokenizer: Any, texts: list[tuple[str, str]]) -> list[dict[str, Any]]:
    inputs = dict(tokenizer([one for one, _ in texts], [two for _, two in texts], padding=True, return_tensors="pt"))
    if getattr(model.config, "type_vocab_size", 1) < 2:
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True, output_attentions=True, return_dict=True)
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    states, maps = output.hidden_states, getattr(output, "attentions", None)
    return [
        {
            "ids": inputs["input_ids"][row, :length].numpy(),
            "logits": output.logits[row].numpy(),
            "states": np.stack([state[row, :length].numpy() for state in states]),
            "maps": [each[row, :, :length, :length].numpy() for each in maps or () if each is not None and each.ndim == 4],
        }
        for row, length in enumerate(lengths)
    ]


def largest(pairs_: Sequence[tuple[np.ndarray, np.ndarray]], relative: bool) -> float:
    """The largest difference; NaN where a number is none, or shapes differ."""
    worst = 0.0
    for found, expected in pairs_:
        if found.shape != expected.shape:
            return float("nan")
        scale = max(1e-6, float(np.abs(expected).max())) if relative else 1.0
        worst = float(np.maximum(worst, np.abs(found - expected).max() / scale))
    return worst


class Check:
    """What is stored beside what was read, in the store's order of rows."""

    def __init__(self, read: list[dict[str, Any]]) -> None:
        self.read = read

    def rows(self, store: Store) -> list[tuple[int, dict[str, Any]]]:
        ids, n_tokens = store.read_all("train/input_ids"), store.read_all("train/n_tokens")
        rows = list(enumerate(self.read[row] for row in store.read_all("train/row_id")))
        assert all(np.array_equal(ids[at, : n_tokens[at]], own["ids"]) for at, own in rows), "other tokens"
        return rows

    def logits(self, store: Store) -> float:
        logits = store.read_all("train/logits")
        return largest([(logits[at], own["logits"]) for at, own in self.rows(store)], relative=True)

    def hidden(self, store: Store) -> float:
        """Every token in the order of its rank, and every layer."""
        feature = store.plan.hidden
        assert feature is not None
        values, token, n_kept = (store.read_all(f"train/hidden/{name}") for name in ("values", "token", "n_kept"))
        found = []
        for at, own in self.rows(store):
            for place, pair in enumerate(feature.pairs):
                kept = token[at, place, : n_kept[at, place]]
                if sorted(kept) != list(range(len(own["ids"]))):
                    return float("nan")
                found.append((values[at, place, : len(kept)], own["states"][pair.teacher][kept]))
        return largest(found, relative=True)

    def ranks(self, store: Store) -> float:
        """By how much a token attends more than the one before it in the stored order; [CLS] and [SEP] rank as any."""
        feature = store.plan.hidden
        assert feature is not None
        token, n_kept = (store.read_all(f"train/hidden/{name}") for name in ("token", "n_kept"))
        worst = 0.0
        for at, own in self.rows(store):
            for place, pair in enumerate(feature.pairs):
                if pair.rank is not None and feature.strategy.ranks_by_attention:
                    row = own["maps"][pair.rank - 1][:, 0].mean(axis=0)[token[at, place, : n_kept[at, place]]]
                    worst = max(worst, float(np.diff(row).max(initial=0)))
        return worst

    def cls(self, store: Store) -> float:
        values, layers = store.read_all("train/cls/values"), store.plan.features["cls"].layers
        return largest([(values[at], own["states"][list(layers), 0]) for at, own in self.rows(store)], relative=True)

    def states(self, store: Store) -> float:
        values = store.read_all("train/states/values")
        layers = list(store.plan.features["states"].layers)
        return largest([(values[at][:, : len(own["ids"])], own["states"][layers]) for at, own in self.rows(store)], relative=True)

    def cls_row(self, store: Store) -> float:
        found, layers = store.read_all("train/cls_row/probability"), store.plan.features["cls_row"].layers
        expected = [
            (found[at][:, : len(own["ids"])], np.stack([own["maps"][layer - 1][:, 0].mean(axis=0) for layer in layers]))
            for at, own in self.rows(store)
        ]
        return largest(expected, relative=False)

    def qkv(self, store: Store) -> float:
        """The maps that queries and keys make, within what a token may see, beside the model's own."""
        values, heads = store.read_all("train/qkv/values"), store.plan.features["qkv"].heads
        found = []
        for at, own in self.rows(store):
            query, key, _ = (
                torch.from_numpy(values[at][:, :, : len(own["ids"])]).unflatten(-1, (heads, -1)).permute(1, 0, 3, 2, 4)
            )
            expected = np.stack(own["maps"])
            scores = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(torch.from_numpy(expected == 0), -torch.inf)
            found.append((scores.softmax(dim=-1).numpy(), expected))
        return largest(found, relative=False)

    def attended(self, store: Store) -> float:
        """By how much the token that is said to be attended to most is attended to less than another."""
        tokens = store.read_all("train/attended/token")
        worst = 0.0
        for at, own in self.rows(store):
            maps = np.stack(own["maps"])
            first = tokens[at][:, :, : len(own["ids"]), :1]
            worst = max(worst, float((maps.max(axis=-1, keepdims=True) - np.take_along_axis(maps, first, axis=-1)).max()))
        return worst


# --- what is tried

EVERYTHING = Keep("all", "all", "all")
RANKED = {"rank": "attention-with-sep", "rank_layer": "same"}
WAYS: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
    ("mud, pkd", ("mud", "pkd"), RANKED),
    ("mud by --rank left, pkd", ("mud", "pkd"), {"rank": "left"}),
    ("mud by --rank left, distilbert", ("mud", "distilbert"), {"rank": "left"}),
)
"""What is asked for, until one way is not refused."""


def examine(family: str, scratch: Path, export: bool = True) -> Found:
    found = Found(family, CLASSES[family])
    said = Said()
    logging.getLogger("hskstore").addHandler(said)
    teacher = tiny(family, LAYERS, scratch / "teacher")
    write_data_in = scratch / "data"
    write_data_in.mkdir()
    write_data(write_data_in)

    def tried(what: str, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except HskError as error:
            found.refused[what] = without_paths(str(error), scratch)
        except Exception as error:
            found.failed[what] = without_paths("".join(traceback.format_exception_only(error)).strip(), scratch)
        return None

    def extracted(name: str, **asked: Any) -> Store | None:
        strategy = Strategy(LAYERS, top_layer=LAYERS, values="f32", **asked.pop("strategy", {}))
        options = {"text": ["one", "two"], "label": "label", "max_length": 64}
        made = tried(
            name,
            lambda: extract(
                str(teacher), str(write_data_in), out=scratch / name.replace(" ", "-"), strategies=[strategy], **asked, **options
            ),
        )
        return None if made is None else open_store(made[0].root)

    store = None
    for what, names, strategy in WAYS:
        methods = [METHODS[name]() for name in names]
        store = extracted(what, keeps=[EVERYTHING], methods=methods, strategy=strategy)
        if store is not None:
            found.asked = what
            break
        if what in found.failed:
            break
    if store is None:
        return found
    found.attention = "eager" if runs_eager(teacher) else "SDPA"
    alone, beside = map(Check, read(teacher))
    checks = [
        "logits",
        "hidden",
        *(["ranks"] if found.asked == WAYS[0][0] else []),
        *(name for name in ("cls", "states") if name in store.plan.features),
    ]
    stores = dict.fromkeys(checks, store)
    rich = extracted("rich", rich=True)
    if rich is not None:
        stores |= {"states": rich, "cls_row": rich}
    inside = extracted("inside", methods=[Reading()])
    if inside is not None:
        stores |= {"qkv": inside, "attended": inside}
    for name, own in stores.items():
        for check, into in ((alone, found.differences), (beside, found.beside)):
            difference = tried(f"check of {name}", lambda: getattr(check, name)(own))  # noqa: B023
            if difference is not None:
                into[name] = difference
    method = "mud" if found.asked == WAYS[0][0] else "kd"
    student = tried("student", lambda: tiny(family, STUDENT_LAYERS, scratch / "small"))
    if student is not None:
        recipe = Recipe(
            student=str(student),
            method=METHODS[method](),
            epochs=(1,),
            lr=(1e-3,),
            batch_size=(8,),
            max_steps=4,
            precision="fp32",
        )
        if tried("distill", lambda: distill(store, recipe, out=scratch / "student")) is not None:
            found.student = method
        if found.student is not None and export:
            exported = tried("onnx", lambda: export_onnx(str(scratch / "student"), scratch / "onnx"))
            found.onnx = None if exported is None else exported.difference
    found.warned = sorted({without_paths(text, scratch) for text in said.lines})
    return found


class Said(logging.Handler):
    """What hskstore warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def runs_eager(folder: Path) -> bool:
    teacher = load_teacher(str(folder), device=torch.device("cpu"))
    texts = pairs(8, 1)
    batch = make_tokenizer()([one for one, _ in texts], [two for _, two in texts], padding=True, return_tensors="pt")
    teacher.probe(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"].bool(), ranks=False)
    return teacher.eager


def without_paths(text: str, scratch: Path) -> str:
    for name in ("teacher", "small", "student"):
        text = text.replace(str(scratch / name), "it")
    return text.replace(str(scratch), "")


# --- the table

HEAD = """# Families

Every family of transformers' sequence classifiers, as a teacher and as a student: {total} of transformers {version}, each a
random model of {layers} layers and width 32, {rows} rows of two texts. `{command}`; {seconds:.0f} CPU seconds in all.
Families that were looked at again are of a later run.

- **teacher**: how it runs, SDPA or eager, and what was kept: with *ranks*, tokens by the [CLS] row of the attention (`--for mud`)
  and [CLS] vectors (`--for pkd`); *[CLS]*, these alone, tokens by `--rank left`; *states*, neither (`--rank left`, `--for
  distilbert`, `--for kd`). What is asked beyond that is refused before anything is stored, and so is a *refused* family, by name.
- **right**: the largest difference of any number that is stored to what transformers alone says of the row by itself, with eager
  attention and without padding: hidden states of the embeddings and of each layer, logits, [CLS] rows of the attention, ranks.
  *In its batch*: padding changes a row in this family, which is told; what is stored is what the batch gives.
- **queries, keys**: whether they are shown (`--for minilmv2`, `tinybert`, `tkd`) and give the model's own attention maps.
- **student**: a smaller model of the family learnt by that method. **ONNX**: the largest difference of a logit of the student's
  export to torch's; *not tried*: in this run its export was left out.

| family | teacher | right | queries, keys | student | ONNX | what is said |
|---|---|---|---|---|---|---|
"""
ALSO_CALLED = {"gpt-sw3": ("gpt2",)}
KEPT = {WAYS[0][0]: "ranks", WAYS[1][0]: "[CLS]", WAYS[2][0]: "states"}


def table(found: Sequence[Found], command: str) -> str:
    head = HEAD.format(
        total=len(CLASSES),
        version=transformers.__version__,
        layers=LAYERS,
        rows=ROWS,
        command=command,
        seconds=sum(each.seconds for each in found),
    )
    rows = {each.family: row_of(each) for each in found}
    said = {each.family: [of_any_family(text, each) for text in told(each)] for each in found}
    for name, why in NOT_TRIED.items():
        rows[name], said[name] = f"| {name} | not tried | | | | |", [why]
    often = [text for text, families in Counter(text for own in said.values() for text in own).most_common() if families > 1]
    own = {each.family: told(each) for each in found} | {name: [why] for name, why in NOT_TRIED.items()}
    lines = []
    for name in sorted(rows):
        notes = [
            f"note {often.index(text) + 1}" if text in often else as_it_is
            for text, as_it_is in zip(said[name], own[name], strict=True)
        ]
        lines.append(f"{rows[name]} {'; '.join(notes)} |")
    notes_told = "".join(f"\n{number}. {text}\n" for number, text in enumerate(often, 1))
    return head + "\n".join(lines) + f"\n\n## Notes\n{notes_told}"


def told(found: Found) -> list[str]:
    """What is said of a family, a sentence each: why it is refused, or what of it."""
    said = [*found.failed.values(), *(found.refused[what] for what in ("distill", "onnx") if what in found.refused)]
    if found.attention is None:
        said = [*found.failed.values(), *found.refused.values()][:1]
    else:
        said += [found.refused[what] for what, _, _ in WAYS if what in found.refused][-1:]
        said += [text for text in found.warned if "padding behind" in text][:1]
    return [text.removeprefix("it: ").partition("\n")[0].replace("|", "/") for text in said]


def of_any_family(text: str, found: Found) -> str:
    """A sentence as it is said of every family, whichever name its config has."""
    for name in (found.family, *ALSO_CALLED.get(found.family, ())):
        text = re.sub(rf"\b{re.escape(name)}\b", "FAMILY", text)
    return text.replace(found.model, "MODEL")


def row_of(found: Found) -> str:
    """All cells of a row but the last."""
    if found.attention is None:
        return f"| {found.family} | {'failed' if found.failed else 'refused'} | | | | |"
    worst, beside = (
        max(of.values(), key=lambda each: (each != each, each), default=float("nan")) for of in (found.differences, found.beside)
    )
    right = f"{worst:.0e}" if worst <= TOLERANCE else f"in its batch, {beside:.0e}" if beside <= TOLERANCE else "**no**"
    inside = "yes" if "qkv" in found.differences else "no"
    onnx = "not tried" if found.onnx is None else f"{found.onnx:.0e}"
    if "onnx" in found.refused or "onnx" in found.failed or found.student is None:
        onnx = "no"
    kept = KEPT[found.asked or ""]
    return f"| {found.family} | {found.attention}, {kept} | {right} | {inside} | {found.student or 'no'} | {onnx} |"


# --- a process each


def in_a_process(family: str, export: bool) -> Found:
    with tempfile.TemporaryDirectory(prefix="families-") as scratch:
        result = Path(scratch) / "found.json"

        def work() -> None:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            began = time.process_time()
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            warnings.simplefilter("ignore")
            try:
                found = examine(family, Path(scratch), export)
            except Exception as error:
                found = Found(family, CLASSES[family], failed={"model": "".join(traceback.format_exception_only(error)).strip()})
                found.failed["where"] = traceback.format_exc()
            found.seconds = round(time.process_time() - began, 2)
            result.write_text(json.dumps(asdict(found)))

        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join(10 * SECONDS)
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            return Found(family, CLASSES[family], failed={"time": f"not done in {SECONDS} seconds"}, seconds=SECONDS)
        if not result.exists():
            return Found(family, CLASSES[family], failed={"process": f"ended with {process.exitcode}"})
        return Found(**json.loads(result.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="these families alone, or none; what --raw holds of others stays")
    parser.add_argument("--out", type=Path, help="the table as Markdown")
    parser.add_argument("--raw", type=Path, help="what was found as JSON")
    parser.add_argument("--no-export", action="store_true", help="leave ONNX out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only != [] and not options.no_export:
        with tempfile.TemporaryDirectory() as scratch:  # what torch.export loads when it is first used, once for all
            export_onnx(str(tiny("bert", 1, Path(scratch, "model"))), Path(scratch, "onnx"))

    stood = options.raw is not None and options.raw.exists()
    found = {each["family"]: Found(**each) for each in json.loads(options.raw.read_text())} if stood else {}
    for family in sorted(CLASSES) if options.only is None else options.only:
        if family not in NOT_TRIED:
            found[family] = in_a_process(family, not options.no_export)
            print(row_of(found[family]), *told(found[family]), flush=True)
            if options.raw is not None:
                text = json.dumps([asdict(found[name]) for name in sorted(found)], indent=1)
                options.raw.write_text(text + "\n")
    if options.out is not None:
        options.out.write_text(
            table(list(found.values()), f"python benchmarks/families.py --raw {options.raw} --out {options.out}")
        )


if __name__ == "__main__":
    main()
