r"""Students' folders in another environment: does transformers 4 load model and tokenizer, and say the same?

    python -m venv /tmp/t457 && /tmp/t457/bin/pip install 'transformers==4.57.*' torch
    python benchmarks/transformers4.py /tmp/t457/bin/python --out benchmarks/results/transformers4_cpu_DATE.md

Small teachers with tokenizers of every kind, each saved by its own class of transformers and as a tokenizer.json alone, are
sliced; the student's token ids and logits here are compared with those that the other Python gives, by the Auto classes.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers as tf
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from hskstore.models.load import load_trained
from hskstore.students.slices import slice_teacher

TEXTS = ["the cat sees a dog", "a small bird sings, often!", "Nobody ever hears it - naïve 東京 or 🙂", ""]
PAIRS = ["the dog", "yes", "no: it runs", "a"]
WORDS = (("cat", "dog", "bird", "naïve"), ("sees", "hears", "runs", "sings"), ("today", "often", "small", "東京"))
CORPUS = [f"the {one} {two} {three}, and a {one} never {two}!" for one, two, three in itertools.product(*WORDS)]
SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.2}
SIZES = SMALL | {"max_position_embeddings": 80}
READ = r"""
import json, sys, warnings, torch, transformers
warnings.simplefilter("ignore")
folder, texts, pairs = json.load(sys.stdin)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
said = {"version": transformers.__version__, "class": type(tokenizer).__name__, "ids": [], "logits": []}
for one, two in zip(texts, pairs):
    inputs = tokenizer(one, two, return_tensors="pt")
    with torch.no_grad():
        said["logits"].append(model(**inputs).logits[0].tolist())
    said["ids"].append(inputs["input_ids"][0].tolist())
print(json.dumps(said))
"""


def trained(kind: str) -> tokenizers.Tokenizer:
    """A tokenizer of that model, trained on a few sentences, with the template of its family."""
    roberta = kind == "BPE"
    special = (
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if kind != "WordPiece" else ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    )
    if kind == "WordPiece":
        raw = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special)
        raw.decoder = decoders.WordPiece()
    elif roberta:
        raw = tokenizers.Tokenizer(models.BPE())
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    else:
        raw = tokenizers.Tokenizer(models.Unigram())
        raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>")
    raw.train_from_iterator(CORPUS, trainer)
    first, last = (special[2], special[3]) if kind == "WordPiece" else ("<s>", "</s>")
    ends = [(each, raw.token_to_id(each)) for each in (first, last)]
    if kind == "WordPiece":
        pair = f"{first} $A {last} $B:1 {last}:1"
        raw.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", pair=pair, special_tokens=ends)
    elif roberta:
        raw.post_processor = processors.RobertaProcessing(ends[1], ends[0], add_prefix_space=False)
    else:
        pair = f"{first} $A {last} {last} $B {last}"
        raw.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", pair=pair, special_tokens=ends)
    return raw


PARTS = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token")
NAMES: dict[str, dict[str, Any]] = {
    "WordPiece": dict(zip(PARTS[:5], ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), strict=True)),
    "BPE": dict(zip(PARTS, ("<pad>", "<unk>", "<s>", "</s>", "<mask>", "<s>", "</s>"), strict=True)),
}
# As whatever hskstore trained has them: left out, transformers 4 gives token types and 5 does not.
NAMES["WordPiece"]["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
NAMES["Unigram"] = NAMES["BPE"]
CLASSES = {"WordPiece": "BertTokenizer", "BPE": "RobertaTokenizer", "Unigram": "XLMRobertaTokenizer"}


def saved(kind: str, how: str, folder: Path) -> None:
    """The tokenizer's files: as its own class saves them, or tokenizer.json and the least that names its special tokens."""
    fast = tf.PreTrainedTokenizerFast(tokenizer_object=trained(kind), model_max_length=64, **NAMES[kind])
    fast.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    if how == "its own class":
        config["tokenizer_class"] = CLASSES[kind]
        file.write_text(json.dumps(config))
        tf.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    elif how == "with more special tokens":
        fast.add_special_tokens({"additional_special_tokens": ["cat", "東京"]})
        fast.save_pretrained(folder)
    elif how == "tokenizer.json alone":
        file.unlink()
        (folder / "special_tokens_map.json").unlink(missing_ok=True)


def bert(words: int) -> Any:
    return tf.BertForSequenceClassification(tf.BertConfig(**SIZES, vocab_size=words))


ENDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}


def roberta(words: int) -> Any:
    return tf.RobertaForSequenceClassification(tf.RobertaConfig(**SIZES, **ENDS, vocab_size=words, type_vocab_size=1))


def xlm_roberta(words: int) -> Any:
    return tf.XLMRobertaForSequenceClassification(tf.XLMRobertaConfig(**SIZES, **ENDS, vocab_size=words, type_vocab_size=1))


def modernbert(words: int) -> Any:
    ends = {**ENDS, "cls_token_id": 0, "sep_token_id": 2}
    local = {"local_attention": 8, "global_attn_every_n_layers": 3}
    return tf.ModernBertForSequenceClassification(tf.ModernBertConfig(**SIZES, **ends, **local, vocab_size=words))


CASES: tuple[tuple[str, str, str, Callable[[int], Any], str], ...] = (
    ("BERT", "WordPiece", "its own class", bert, "2,4"),
    ("BERT", "WordPiece", "PreTrainedTokenizerFast", bert, "2,4"),
    ("BERT", "WordPiece", "tokenizer.json alone", bert, "2,4"),
    ("BERT", "WordPiece", "with more special tokens", bert, "2,4"),
    ("RoBERTa", "BPE", "its own class", roberta, "2,4"),
    ("RoBERTa", "BPE", "PreTrainedTokenizerFast", roberta, "2,4"),
    ("RoBERTa", "BPE", "tokenizer.json alone", roberta, "2,4"),
    ("XLM-R", "Unigram", "its own class", xlm_roberta, "2,4"),
    ("XLM-R", "Unigram", "PreTrainedTokenizerFast", xlm_roberta, "2,4"),
    ("XLM-R", "Unigram", "tokenizer.json alone", xlm_roberta, "2,4"),
    ("ModernBERT", "BPE", "PreTrainedTokenizerFast", modernbert, "1,4"),
    ("ModernBERT", "BPE", "PreTrainedTokenizerFast", modernbert, "bottom:3"),
)


def tried(case: tuple[str, str, str, Callable[[int], Any], str], python: str, scratch: Path) -> tuple[str, str]:
    """What came of a teacher's student in the other environment, in words; and that environment's version."""
    _, kind, how, make, layers = case
    teacher, student = scratch / "teacher", scratch / "student"
    torch.manual_seed(0)
    saved(kind, how, teacher)
    make(trained(kind).get_vocab_size() + 2).save_pretrained(teacher)
    slice_teacher(str(teacher), layers, student)
    model, tokenizer = load_trained(str(student))
    asked = json.dumps([str(student), TEXTS, PAIRS])
    other = subprocess.run([python, "-c", READ], input=asked, capture_output=True, text=True, check=False)
    if other.returncode:
        return f"not loaded: {other.stderr.strip().splitlines()[-1]}".replace(str(student), "the student"), ""
    said = json.loads(other.stdout.splitlines()[-1])
    worst = 0.0
    for at, (one, two) in enumerate(zip(TEXTS, PAIRS, strict=True)):
        inputs = tokenizer(one, two, return_tensors="pt")
        if inputs["input_ids"][0].tolist() != said["ids"][at]:
            return f"other tokens, by {said['class']}", said["version"]
        with torch.no_grad():
            worst = max(worst, float(np.abs(model.eval()(**inputs).logits[0].numpy() - np.array(said["logits"][at])).max()))
    return f"same tokens, by {said['class']}; logits differ by {worst:.1g}", said["version"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="of an environment with transformers 4")
    parser.add_argument("--out", type=Path, help="the result as Markdown")
    options = parser.parse_args()
    lines = ["| teacher | tokenizer | saved as | layers | in transformers 4 |", "|---|---|---|---|---|"]
    versions = set()
    for case in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            found, version = tried(case, options.python, Path(scratch))
        versions.add(version)
        lines.append(f"| {case[0]} | {case[1]} | {case[2]} | {case[4]} | {found} |")
        print(lines[-1], flush=True)
    told = f"Students made by transformers {tf.__version__}, loaded by transformers {', '.join(sorted(versions - {''}))}."
    text = "\n".join(["# Students in transformers 4", "", f"`python {' '.join(sys.argv)}`", "", told, "", *lines, ""])
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
