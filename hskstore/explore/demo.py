"""The whole story in three minutes on a laptop: a made-up corpus, a teacher, two stores, no teacher, four students.

The grammar, the seed and every number below were fixed before the first run; the table is whatever comes out.
"""

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from hskstore.config import Keep, Strategy
from hskstore.errors import OptionError
from hskstore.explore.show import describe
from hskstore.methods import Finetune, Kd, Method, Mud
from hskstore.models.folder import save_model
from hskstore.stage_one.extract import extract
from hskstore.stage_two.distill import distill
from hskstore.stage_two.evaluate import evaluate
from hskstore.stage_two.finetune import finetune
from hskstore.stage_two.recipe import Recipe
from hskstore.watch import Watch, unwatched

SEED = 2021
ROWS = {"train": 8000, "validation": 1000, "test": 2000}
TEACHER = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
STUDENT = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 256}
TEACHER_EPOCHS = 8
STUDENT_STEPS = 750
LEARNING_RATE = 5e-4
SLIVER = Keep(1, 3, 0.1)
EVERYTHING = Keep("all", "all", "all")

NOUNS = ["author", "pilot", "teacher", "farmer", "senator", "dancer", "nurse", "poet", "banker", "guard", "child", "student"]
THINGS = ["letter", "garden", "picture", "engine", "river", "window", "story", "bottle", "painting", "machine"]
INTRANSITIVE = ["sleep", "laugh", "arrive", "complain", "fall", "wait", "sing", "retire"]
TRANSITIVE = ["admire", "describe", "paint", "repair", "ignore", "remember", "avoid", "notice"]
ADJECTIVES = ["old", "clever", "tired", "famous", "quiet", "tall", "angry", "young", "modest"]
PREPOSITIONS = ["near", "behind", "beside", "with"]
ADVERBS = ["often", "never", "rarely", "always", "quietly"]


@dataclass(frozen=True)
class DemoRow:
    """What one student learnt from, and what that took; `bytes` are those of the arrays it read."""

    learns_from: str
    score: float
    standard_error: float
    hidden_share: str
    bytes: int
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    metric: str
    rows_scored: int
    rows: list[DemoRow]
    seconds: float


def run_demo(out: str | Path | None = None, *, say: Callable[[str], None] = print, watch: Watch = unwatched) -> DemoResult:
    """Run the demo in `out`, or in a temporary folder; `say` gets a line for each chapter."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="hsk-demo-") as folder:
            return _run(Path(folder), say, watch)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"--out {out} is not empty: choose another folder, or delete it")
    out.mkdir(parents=True, exist_ok=True)
    return _run(out, say, watch)


def _run(folder: Path, say: Callable[[str], None], watch: Watch) -> DemoResult:
    began = time.monotonic()
    corpus = folder / "corpus"
    say(f"1. a corpus: {sum(ROWS.values())} English sentences, half of them broken, from a grammar of {len(_words())} words")
    write_corpus(corpus, ROWS, label="acceptable")
    tokenizer = corpus_tokenizer()
    columns: dict[str, Any] = {"text": ["sentence"], "label": "acceptable"}

    say("2. a teacher: 4 layers, trained on the gold labels")
    save_model(new_bert(TEACHER, tokenizer), tokenizer, folder / "blank")
    taught = finetune(
        str(folder / "blank"),
        str(corpus),
        out=folder / "teacher",
        epochs=TEACHER_EPOCHS,
        lr=LEARNING_RATE,
        seed=SEED,
        precision="fp32",
        watch=watch,
        **columns,
    )
    teacher = evaluate(str(folder / "teacher"), str(corpus), splits=["test"], latency=False, **columns)

    say("3. the teacher runs once, for two stores: 1 % of its hidden states, and all of them")
    strategy = Strategy(STUDENT["num_hidden_layers"])
    stores = extract(
        str(folder / "teacher"),
        str(corpus),
        out=folder / "stores",
        keeps=[SLIVER, EVERYTHING],
        strategies=[strategy],
        seed=SEED,
        watch=watch,
        **columns,
    )
    shutil.rmtree(folder / "teacher")
    say("4. the teacher is deleted; four students of 2 layers learn, each in the same number of steps")
    save_model(new_bert(STUDENT, tokenizer), tokenizer, folder / "student")
    sliver, everything = (store.root for store in stores)
    ways: dict[str, tuple[Method, str]] = {
        "gold labels alone": (Finetune(), sliver),
        "the teacher's logits": (Kd(), sliver),
        "1 % of the hidden states": (Mud(), sliver),
        "all hidden states": (Mud(), everything),
    }
    metric = next(iter(teacher.score))
    rows = [DemoRow("(the teacher)", teacher.score[metric], teacher.standard_error[metric], "", 0, taught.seconds)]
    for number, (learns_from, (method, store)) in enumerate(ways.items()):
        recipe = Recipe(
            student=str(folder / "student"),
            method=method,
            epochs=(100,),
            lr=(LEARNING_RATE,),
            max_steps=STUDENT_STEPS,
            seed=SEED,
            precision="fp32",
        )
        run = distill(store, recipe, out=folder / f"run{number}", watch=watch)
        found = evaluate(run.folder, str(corpus), splits=["test"], latency=False, **columns)
        described = describe(store)
        uses_hidden = isinstance(method, Mud)
        read = {path: size for path, size in described.array_bytes.items() if uses_hidden or "/hidden/" not in path}
        assert described.kept_units is not None and described.full_units is not None
        share = f"{described.kept_units / described.full_units:.1%}" if uses_hidden else "none"
        rows.append(
            DemoRow(learns_from, found.score[metric], found.standard_error[metric], share, sum(read.values()), run.seconds)
        )
    return DemoResult(metric, teacher.rows, rows, round(time.monotonic() - began, 1))


def write_corpus(folder: Path, rows: Mapping[str, int], *, label: str) -> None:
    """A TSV file of so many distinct sentences for each split; in the column `label` acceptable ones have 1, broken ones 0."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = sentences(SEED)
    for split, count in rows.items():
        lines = [f"{text}\t{acceptable}\n" for text, acceptable in islice(drawn, count)]
        (folder / f"{split}.tsv").write_text(f"sentence\t{label}\n" + "".join(lines))


def sentences(seed: int) -> Iterator[tuple[str, int]]:
    """Endless distinct sentences with labels, acceptable and broken ones in turn."""
    rng = random.Random(seed)
    seen: set[str] = set()
    label = 1
    while True:
        text = " ".join(_sentence(rng, broken=not label))
        if text not in seen:
            seen.add(text)
            yield text, label
            label = 1 - label


def _sentence(rng: random.Random, *, broken: bool) -> list[str]:
    """A clause with one fault or none: agreement across a phrase, determiner, reflexive, missing or extra object, order."""
    fault = rng.choice(["agreement", "determiner", "reflexive", "object", "order"]) if broken else None
    plural = rng.random() < 0.5
    subject = _phrase(rng, NOUNS, plural, wrong_determiner=fault == "determiner")
    if rng.random() < 0.6:
        subject += [rng.choice(PREPOSITIONS), *_phrase(rng, NOUNS + THINGS, rng.random() < 0.5)]
    verb_plural = plural != (fault == "agreement")
    adverb = [rng.choice(ADVERBS)] if rng.random() < 0.4 else []
    kind = "reflexive" if fault == "reflexive" else rng.choice(["intransitive", "transitive", "reflexive"])
    if kind == "intransitive":
        rest = [_inflect(rng.choice(INTRANSITIVE), verb_plural)]
        if fault == "object":
            rest += _phrase(rng, THINGS, rng.random() < 0.5)
    elif kind == "transitive":
        rest = [_inflect(rng.choice(TRANSITIVE), verb_plural)]
        if fault != "object":
            rest += _phrase(rng, NOUNS + THINGS, rng.random() < 0.5)
    else:
        rest = [_inflect(rng.choice(TRANSITIVE), verb_plural)]
        if fault != "object":
            rest.append("themselves" if plural != (fault == "reflexive") else rng.choice(["himself", "herself"]))
    if fault == "order":
        return [*adverb, *rest, *subject] if rng.random() < 0.5 else [subject[-1], *subject[:-1], *adverb, *rest]
    return [*subject, *adverb, *rest]


def _phrase(rng: random.Random, nouns: list[str], plural: bool, *, wrong_determiner: bool = False) -> list[str]:
    singular_only, plural_only = ["a", "this", "every"], ["these", "many", "several"]
    if wrong_determiner:
        determiner = rng.choice(singular_only if plural else plural_only)
    else:
        determiner = rng.choice(["the", "the", *(plural_only if plural else singular_only)])
    adjective = [rng.choice(ADJECTIVES)] if rng.random() < 0.35 else []
    if determiner == "a" and adjective and adjective[0][0] in "aeiou":
        determiner = "this"
    noun = rng.choice(nouns)
    if determiner == "a" and not adjective and noun[0] in "aeiou":
        determiner = "this"
    return [determiner, *adjective, _plural(noun) if plural else noun]


def _plural(noun: str) -> str:
    return {"child": "children", "story": "stories"}.get(noun, noun + "s")


def _inflect(verb: str, plural: bool) -> str:
    return verb if plural else verb + "s"


def _words() -> list[str]:
    nouns = NOUNS + THINGS
    verbs = INTRANSITIVE + TRANSITIVE
    closed = ["the", "a", "this", "every", "these", "many", "several", "himself", "herself", "themselves"]
    inflected = [_plural(noun) for noun in nouns] + [_inflect(verb, False) for verb in verbs]
    return [*closed, *nouns, *verbs, *inflected, *ADJECTIVES, *PREPOSITIONS, *ADVERBS]


def corpus_tokenizer() -> Any:
    """Of the corpus, a word a token."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*special, *_words()])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    raw.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names: dict[str, Any] = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=128, model_input_names=inputs, **names)


def new_bert(shape: Mapping[str, int], tokenizer: Any) -> Any:
    """A classifier of that shape in the tokenizer's words, which has learnt nothing."""
    torch.manual_seed(SEED)
    return BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **shape))
