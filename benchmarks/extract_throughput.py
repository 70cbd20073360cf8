"""What stage one costs beside the bare forward pass of its teacher, and beside the plain way of caching hidden states.

    python benchmarks/extract_throughput.py ../shared/models/minilm-l6-sst2 --data ../shared/data/sst2_small --rows 4096 \
        --repeats 4 --plain 256 --out benchmarks/results/extract_throughput_minilm_cpu_DATE.md
    python benchmarks/extract_throughput.py bert-base --vocab-from ../shared/models/minilm-l6 --data ../shared/data/sst2_small \
        --rows 512 --batch-tokens 1024 --plain 32 --out benchmarks/results/extract_throughput_bertbase_cpu_DATE.md
    python benchmarks/extract_throughput.py bert-base --vocab-from minilm-l6 --lengths mnli --rows 392702 --precision bf16 \
        --batch-tokens 16384 --repeats 1 --out benchmarks/results/extract_throughput_bertbase_h200_DATE.md

`bert-base` is BERT-base's shape with random weights: the time does not depend on them. `--data` is a folder of train.tsv and
dev.tsv (sentence, label), of which the first rows are taken; `--lengths mnli` makes up as many rows, of vocabulary words, with
about MNLI's lengths: log-normal, median 36 tokens, sigma 0.4, cut to 128.

In every round, one after the other: the bare forward over the very batches of the pass (no hidden states asked for, nothing
kept), once as torch runs it and once with as many batches side by side as extraction has; extraction of one configuration, and of
three, from the first batch to the seal. The bare rate is the better of the two. The plain way: eager attentions, all hidden
states, batches of 32 in the order of the file padded to 128 tokens, torch.save of the hidden states and of the [CLS] rows.
"""

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as hsk sets it; torch reads it once

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, set_seed

import hskstore.models.observe
import hskstore.stage_one.teacher
import hskstore.stage_one.teacher_pass
import hskstore.stage_one.worker
from hskstore.config import DEFAULT_BATCH_TOKENS, Keep, Strategy
from hskstore.engines import run_inline
from hskstore.models.device import choose_device
from hskstore.stage_one.asked import Asked
from hskstore.stage_one.codebooks import lay_codebooks
from hskstore.stage_one.jobs import make_jobs
from hskstore.stage_one.planning import Prepared, prepare
from hskstore.stage_one.teacher_pass import TeacherPass, block_batches, padded, probe, sight_of
from hskstore.stage_one.worker import UnitWorker
from hskstore.store.commit import begin, seal
from hskstore.store.objects import Objects

ONE = ("1,9,0.1",)
THREE = ("1,9,0.1", "3,8,0.2", "1,4,0.5")
STUDENT_LAYERS = 3
PLAIN_LENGTH, PLAIN_BATCH = 128, 32
MNLI_MEDIAN, MNLI_SIGMA = 36, 0.4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="a fine-tuned classifier's folder, or bert-base")
    parser.add_argument("--vocab-from", help="for bert-base: a folder with BERT's tokenizer")
    parser.add_argument("--data", type=Path, help="a folder with train.tsv and dev.tsv")
    parser.add_argument("--lengths", choices=["mnli"], help="in place of --data: made-up rows of such lengths")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--batch-tokens", type=int, default=DEFAULT_BATCH_TOKENS)
    parser.add_argument("--device")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain", type=int, default=0, metavar="ROWS", help="also time the plain way, over so many rows")
    parser.add_argument("--out", type=Path, help="the result as Markdown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        text = report(options, *measure(options, Path(scratch)))
    print(text)
    if options.out is not None:
        options.out.write_text(text)


def measure(options: argparse.Namespace, scratch: Path) -> tuple[list[dict[str, float]], dict[str, float], dict[str, Any]]:
    """Seconds of everything in each round, CPU seconds by part of one extraction, and what was run."""
    device = choose_device(options.device)
    teacher = options.teacher if options.teacher != "bert-base" else bert_base(options.vocab_from, scratch / "teacher")
    data = first_rows(options.data, options.rows, scratch) if options.data else made_up(teacher, options.rows, scratch)
    rounds: list[dict[str, float]] = []
    began = time.monotonic()
    ready = ready_for(THREE, teacher, data, scratch, device, options)
    planning = time.monotonic() - began
    one = replace(
        ready, plans={name: plan for name, plan in ready.plans.items() if str(plan.hidden and plan.hidden.keep) == ONE[0]}
    )
    probe(ready.teacher, sight_of(ready.plans.values()), ready.rows["train"])
    batches = list(batches_of(ready))
    streams = TeacherPass(list(ready.plans.values()), ready.teacher).streams
    bare(ready, batches[: 2 * streams], 1)  # the first kernels of a process are slow
    for number in range(options.repeats):
        found = {
            "bare, as torch runs it": bare(ready, batches, 1),
            "bare, side by side": bare(ready, batches, streams),
            "one configuration": extraction(one, scratch / "one"),
            "three configurations": extraction(ready, scratch / "three"),
        }
        rounds.append(found)
        print(f"round {number + 1}: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.items()), file=sys.stderr)
    with thread_seconds() as parts:
        extraction(ready if device.type == "cuda" else one, scratch / "profile")
    if options.plain:
        rounds[0]["plain"] = plain(ready, options.plain, scratch / "plain")
    tokens = sum(int(split.bounds[-1]) for split in ready.rows.values())
    facts = {
        "rows": sum(map(len, ready.rows.values())),
        "tokens": tokens,
        "padding": sum(batch[0].numel() for batch in batches) / tokens,
        "batches": len(batches),
        "streams": streams,
        "planning": planning,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "layers": ready.teacher.layers,
        "hidden": ready.facts.planned["hidden_size"],
    }
    return rounds, parts, facts


def ready_for(
    keeps: tuple[str, ...], teacher: str, data: Path, scratch: Path, device: torch.device, options: argparse.Namespace
) -> Prepared:
    rows = scratch / "rows"
    rows.mkdir(exist_ok=True)
    return prepare(
        teacher,
        str(data),
        rows,
        Asked([Keep.parse(keep) for keep in keeps], [Strategy(STUDENT_LAYERS)]),
        device=device,
        task="sst2",
        max_length=128,
        batch_tokens=options.batch_tokens,
        precision=options.precision,
    )


def batches_of(ready: Prepared) -> Iterator[tuple[torch.Tensor, ...]]:
    """Every batch of the pass, padded."""
    pass_ = next(iter(ready.plans.values())).pass_
    for rows in ready.rows.values():
        for _, batches in block_batches(rows.n_tokens, pass_.block_rows, pass_.batch_tokens):
            for batch in batches:
                yield padded(rows.take(batch), ready.teacher.tokenizer.pad_token_id)


def bare(ready: Prepared, batches: list[tuple[torch.Tensor, ...]], streams: int) -> float:
    """Seconds of the forward pass alone."""
    model, device = ready.teacher.model, ready.teacher.device
    model.set_attn_implementation("sdpa")
    cpu = device.type == "cpu"
    threads = torch.get_num_threads()

    def forward(batch: tuple[torch.Tensor, ...]) -> None:
        ids, types, mask = (tensor.to(device) for tensor in batch)
        with torch.no_grad():
            model(input_ids=ids, token_type_ids=types, attention_mask=mask.long())

    def begin_thread() -> None:
        if cpu and streams > 1:
            torch.set_num_threads(1)
        ready.teacher.autocast().__enter__()  # once for all batches, so that a weight is cast once

    with ThreadPoolExecutor(streams, initializer=begin_thread) as pool:
        began = time.monotonic()
        for _ in pool.map(forward, batches):
            pass
        if not cpu:
            torch.cuda.synchronize()
        seconds = time.monotonic() - began
    torch.set_num_threads(threads)
    model.set_attn_implementation(hskstore.models.observe.SEAM)
    return seconds


def extraction(ready: Prepared, out: Path) -> float:
    """Seconds from the first batch to the seal; codebooks, if there are any, were learnt before."""
    shutil.rmtree(out, ignore_errors=True)
    stores = [(Objects(out / name), plan) for name, plan in ready.plans.items()]
    for objects, plan in stores:
        begin(objects, plan, {"teacher.json": b"{}"})
        lay_codebooks(objects, plan, ready.teacher, ready.rows["train"])
    began = time.monotonic()
    jobs = list(make_jobs([plan for _, plan in stores]))
    run_inline(jobs, lambda told: UnitWorker(stores, ready.rows, ready.teacher, told), lambda rows: None)
    for objects, plan in stores:
        seal(objects, plan)
    return time.monotonic() - began


def plain(ready: Prepared, rows: int, folder: Path) -> float:
    """Seconds of the plain way."""
    folder.mkdir()
    model, device = ready.teacher.model, ready.teacher.device
    model.set_attn_implementation("eager")
    taken = ready.rows["train"].take(np.arange(rows))
    began = time.monotonic()
    for start in range(0, rows, PLAIN_BATCH):
        batch = padded(taken.take(np.arange(start, min(start + PLAIN_BATCH, rows))), 0)
        ids, types, mask = (torch.nn.functional.pad(part, (0, PLAIN_LENGTH - part.shape[1])).to(device) for part in batch)
        with torch.no_grad(), ready.teacher.autocast():
            output = model(
                input_ids=ids,
                token_type_ids=types,
                attention_mask=mask.long(),
                output_hidden_states=True,
                output_attentions=True,
            )
        kept = {
            "hidden_states": torch.stack(output.hidden_states).cpu(),
            "cls_attention": torch.stack([layer[:, :, 0].mean(dim=1) for layer in output.attentions]).cpu(),
            "logits": output.logits.cpu(),
        }
        torch.save(kept, folder / f"{start}.pt")
    seconds = time.monotonic() - began
    model.set_attn_implementation(hskstore.models.observe.SEAM)
    return seconds


PARTS = {
    "forward pass": (hskstore.stage_one.teacher.Teacher, "forward"),
    "of which: [CLS] rows of the attention": (hskstore.models.observe, "_first_row"),
    "ranks, masks, packing": (hskstore.stage_one.teacher_pass, "captured"),
    "padding batches": (hskstore.stage_one.teacher_pass, "padded"),
    "laying rows into units": (UnitWorker, "_place"),
    "encoding, decoding back": (hskstore.stage_one.worker, "encode_unit"),
    "hashing": (hskstore.stage_one.worker, "unit_fingerprints"),
    "putting": (hskstore.stage_one.worker, "commit_unit"),
}


@contextmanager
def thread_seconds() -> Iterator[dict[str, float]]:
    """CPU seconds of the threads that ran each part; on a GPU the host's alone."""
    spent: Counter[str] = Counter()
    lock = Lock()
    originals = {name: getattr(owner, function) for name, (owner, function) in PARTS.items()}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                with lock:
                    spent[name] += time.thread_time() - began

        return run

    for name, (owner, function) in PARTS.items():
        setattr(owner, function, timed(name, originals[name]))
    began = time.process_time()
    try:
        yield spent
    finally:
        for name, (owner, function) in PARTS.items():
            setattr(owner, function, originals[name])
        spent["everything"] = time.process_time() - began


def bert_base(vocab: str, folder: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(vocab)
    set_seed(0)
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def first_rows(data: Path, rows: int, scratch: Path) -> Path:
    (scratch / "data").mkdir()
    for split, most in (("train", rows), ("dev", 64)):
        lines = (data / f"{split}.tsv").read_text().split("\n")
        (scratch / "data" / f"{split}.tsv").write_text("\n".join(lines[: most + 1]) + "\n")
    return scratch / "data"


def made_up(teacher: str, rows: int, scratch: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    words = np.array([word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and word.islower()])
    rng = np.random.default_rng(0)
    (scratch / "data").mkdir()
    for split, count in (("train", rows), ("dev", 64)):
        lengths = np.exp(rng.normal(np.log(MNLI_MEDIAN), MNLI_SIGMA, count)).round().clip(6, 128).astype(int)
        with (scratch / "data" / f"{split}.tsv").open("w") as file:
            file.write("sentence\tlabel\n")
            for length in lengths:
                file.write(" ".join(words[rng.integers(0, len(words), length - 2)]) + f"\t{length % 2}\n")
    return scratch / "data"


def processor() -> str:
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return f"{model.partition(': ')[2] or platform.machine()}, {torch.get_num_threads()} cores"


def report(options: argparse.Namespace, rounds: list[dict[str, float]], parts: dict[str, float], facts: dict[str, Any]) -> str:
    best = [min(found["bare, as torch runs it"], found["bare, side by side"]) for found in rounds]
    lines = ["# Extraction beside the bare forward pass", "", f"`python {' '.join(sys.argv)}`", ""]
    lines += [
        f"{facts['device']}; torch {torch.__version__}, Python {platform.python_version()}; {options.precision}.",
        f"Teacher: {facts['layers']} layers, {facts['hidden']} wide. {facts['rows']:,} rows of {facts['tokens']:,} tokens,"
        f" {facts['batches']} batches of at most {options.batch_tokens} tokens, {100 * facts['padding'] - 100:.0f} % padding;"
        f" {facts['streams']} batches side by side.",
        f"Loading, tokenising and planning before it: {facts['planning']:.1f} s.",
        "",
        f"Medians of {len(rounds)} rounds; a ratio is of one round, to the better bare pass of that round.",
        "",
        "| | seconds | rows/s | of the bare rate | lowest to highest |",
        "|---|---|---|---|---|",
    ]
    for name in ("bare, as torch runs it", "bare, side by side", "one configuration", "three configurations"):
        seconds = statistics.median(found[name] for found in rounds)
        ratios = [bare / found[name] for bare, found in zip(best, rounds, strict=True)]
        keeps = {"one configuration": f" ({ONE[0]})", "three configurations": f" ({' '.join(THREE)})"}.get(name, "")
        lines.append(
            f"| {name}{keeps} | {seconds:.1f} | {facts['rows'] / seconds:,.0f} | {100 * statistics.median(ratios):.1f} % |"
            f" {100 * min(ratios):.1f} to {100 * max(ratios):.1f} % |"
        )
    if "plain" in rounds[0]:
        plain_rate = options.plain / rounds[0]["plain"]
        rate = facts["rows"] / statistics.median(found["one configuration"] for found in rounds)
        lines += [
            "",
            f"The plain way: {plain_rate:.1f} rows/s over {options.plain} rows;"
            f" extraction is {rate / plain_rate:.1f} times that.",
        ]
    lines += ["", "CPU seconds of one extraction (timers around each part, one run; on a GPU the host's alone):", ""]
    lines += ["| part | CPU s | of all |", "|---|---|---|"]
    everything = parts["everything"]
    named = sum(seconds for name, seconds in parts.items() if name != "everything" and not name.startswith("of which"))
    table = {name: parts[name] for name in PARTS} | {"anything else": everything - named}
    lines += [f"| {name} | {seconds:.2f} | {100 * seconds / everything:.1f} % |" for name, seconds in table.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
