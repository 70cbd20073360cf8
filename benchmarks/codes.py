r"""What codes leave over: error against bytes and seconds, beside faiss's quantisers; what they cost extraction and the loader.

    pip install faiss-cpu
    python benchmarks/codes.py ../shared/models/minilm-l6-sst2 ../shared/data/sst2_small --task sst2 \
        --out benchmarks/results/codes_cpu_DATE.md

Error: of `--layers` of the teacher, 16,384 of the vectors of the first rows are learnt from and 4,096 others encoded, all on one
thread; what is left over is a share of their variance. Codes that lose coordinates first keep the leading principal axes alone.
faiss's quantisers have their defaults. Extraction: in every round the bare forward over the very batches of the pass, as torch
runs it and with as many batches side by side as extraction has, the better of the two, and extraction of `states` of the layers
from the first batch to the seal, codebooks learnt before. Loader: batches of 32 rows of that store, as a method reads them.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as hsk sets it; torch reads it once

import numpy as np
import torch
from extract_throughput import bare, batches_of, bert_base, extraction, first_rows, made_up, processor
from features import Reading

from hskstore.config import Strategy
from hskstore.features import STATES, Want
from hskstore.features.codes import Codebooks, decode_codes, encode_codes, learn_words
from hskstore.features.pack import quantise
from hskstore.layers import LayerPair
from hskstore.stage_one.asked import Asked
from hskstore.stage_one.codebooks import lay_codebooks
from hskstore.stage_one.planning import Prepared, prepare
from hskstore.stage_one.teacher_pass import padded, probe, sight_of
from hskstore.stage_two.rows import rows_from_store
from hskstore.store import open_store
from hskstore.store.commit import begin
from hskstore.store.objects import Objects

try:
    import faiss
except ImportError:
    faiss = None

LEARNT_FROM, ENCODED = 16_384, 4_096
LOADED = 3_200
"""Rows that batches are made of, at least; the fastest of three rounds counts."""
MOST_STAGES = 32
CPU = torch.device("cpu")
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="a fine-tuned classifier's folder, or bert-base: of that shape, with made-up weights")
    parser.add_argument("data", type=Path, help="a folder with train.tsv and dev.tsv, or of bert-base made-up rows: anything")
    parser.add_argument("--task", required=True)
    parser.add_argument("--vocab-from", help="for bert-base: a folder with BERT's tokenizer")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2, 4, 6])
    parser.add_argument(
        "--parts", nargs="+", choices=["error", "extraction", "loader"], default=["error", "extraction", "loader"]
    )
    parser.add_argument("--values", default="rq8", help="of the extraction")
    parser.add_argument("--rows", type=int, default=2048, help="of the extraction")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of it")
    parser.add_argument("--slow", action="store_true", help="with faiss's local search, which learns for minutes")
    parser.add_argument("--out", type=Path, help="the result as Markdown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        lines = ["# Codes", "", f"`python {' '.join(sys.argv)}`", ""]
        lines += [f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}.", ""]
        ready = prepared(options, scratch)
        if "error" in options.parts:
            lines += errors(ready, options)
        if "extraction" in options.parts:
            lines += [speed(ready, options, scratch), ""]
        if "loader" in options.parts:
            lines += [loading(ready, options, scratch), ""]
    text = "\n".join(lines)
    print(text)
    if options.out is not None:
        options.out.write_text(text)


def prepared(options: argparse.Namespace, scratch: Path) -> Prepared:
    made = options.teacher == "bert-base"
    teacher = bert_base(options.vocab_from, scratch / "teacher") if made else options.teacher
    data = made_up(teacher, options.rows, scratch) if made else first_rows(options.data, options.rows, scratch)
    rows = scratch / "rows"
    rows.mkdir()
    asked = Asked([], [Strategy(3, values=options.values)], [Reading("states", (STATES,), tuple(options.layers))])
    ready = prepare(teacher, str(data), rows, asked, device=CPU, task=options.task)
    probe(ready.teacher, sight_of(ready.plans.values()), ready.rows["train"])
    return ready


# --- error


def errors(ready: Prepared, options: argparse.Namespace) -> list[str]:
    """A table by quantiser: bytes of a vector, what is left over of each layer, seconds."""
    torch.set_num_threads(1)
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for layer, vectors in states(ready, options.layers).items():
        learnt, others = vectors[:LEARNT_FROM], vectors[LEARNT_FROM : LEARNT_FROM + ENCODED]
        variance = float((others - learnt.mean(dim=0)).square().sum())
        for name, size, again, learning, encoding in quantisers(learnt, others, slow=options.slow):
            share = float((others - again).square().sum()) / variance
            found.setdefault(name, []).append((size, share, learning, encoding))
            print(f"layer {layer}, {name}: {share:.4f}, learnt in {learning:.1f} s", file=sys.stderr, flush=True)
    layers = " | ".join(f"layer {layer}" for layer in options.layers)
    lines = [f"| quantiser | bytes | {layers} | learning, s a layer | encoding, µs a vector |"]
    lines += ["|---" * (4 + len(options.layers)) + "|"]
    for name, each in found.items():
        shares = " | ".join(f"{share:.4f}" for _, share, _, _ in each)
        learning, encoding = (statistics.mean(one[part] for one in each) for part in (2, 3))
        lines.append(f"| {name} | {each[0][0]:g} | {shares} | {learning:.1f} | {1e6 * encoding / ENCODED:.1f} |")
    return [*lines, ""]


def states(ready: Prepared, layers: list[int]) -> dict[int, torch.Tensor]:
    """Enough real tokens' states of each layer, in random order."""
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    rows, count = ready.rows["train"], 0
    with torch.inference_mode():
        for start in range(0, len(rows), 64):
            ids, types, mask = padded(rows.slice(start, min(start + 64, len(rows))), ready.teacher.tokenizer.pad_token_id)
            seen = ready.teacher.model.base_model(
                ids, token_type_ids=types, attention_mask=mask.long(), output_hidden_states=True
            )
            for layer in layers:
                found[layer].append(seen.hidden_states[layer][mask].half().float())
            count += int(mask.sum())
            if count >= LEARNT_FROM + ENCODED:
                break
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: LEARNT_FROM + ENCODED]
    return {layer: torch.cat(own)[order].clone() for layer, own in found.items()}


Made = tuple[str, float, torch.Tensor, float, float]
"""A quantiser's name, bytes of a vector, vectors encoded and decoded again, seconds of learning and of encoding."""


def quantisers(learnt: torch.Tensor, others: torch.Tensor, *, slow: bool) -> Iterator[Made]:
    integers, seconds = timed(lambda: quantise(others, 7))
    yield "q4", others.shape[1] / 2 + 2, integers[0].float() * integers[1].float()[:, None], 0.0, seconds
    yield from ours("rq", learnt, others, None)
    for kept in (64, 128, 192):
        yield from ours(f"{kept} leading axes, rq", learnt, others, kept)
    if faiss is None:
        return
    faiss.omp_set_num_threads(1)
    width = others.shape[1]
    for size in (4, 8, 16):
        yield theirs(f"faiss residual, {size}", faiss.ResidualQuantizer(width, size, 8), size, learnt, others)
        yield theirs(
            f"faiss product of 2 residual, {size}", faiss.ProductResidualQuantizer(width, 2, size // 2, 8), size, learnt, others
        )
        if slow:
            yield theirs(f"faiss local search, {size}", faiss.LocalSearchQuantizer(width, size, 8), size, learnt, others)


def ours(name: str, learnt: torch.Tensor, others: torch.Tensor, axes: int | None) -> Iterator[Made]:
    """Of 4, 8, 16 and 32 bytes, which are the first of the last; `axes` principal axes alone are coded."""
    mean = learnt.mean(dim=0)
    basis = torch.eye(learnt.shape[1])
    if axes is not None:
        basis = torch.linalg.eigh((learnt - mean).T @ (learnt - mean))[1][:, -axes:]
    short, turned = ((vectors - mean) @ basis if axes else vectors for vectors in (learnt, others))
    words, learning = timed(lambda: learn_words(short, MOST_STAGES, 0))
    for size in (4, 8, 16, MOST_STAGES):
        books = Codebooks.of(words[:size][None].numpy(), CPU)
        codes, seconds = timed(lambda: encode_codes(((others - mean) @ basis if axes else turned)[:, None], books))  # noqa: B023
        again = decode_codes(codes.numpy(), books.words)[0]
        yield f"{name}{size}", size, again @ basis.T + mean if axes else again, learning * size / MOST_STAGES, seconds


def theirs(name: str, quantiser: "faiss.Quantizer", size: int, learnt: torch.Tensor, others: torch.Tensor) -> Made:
    _, learning = timed(lambda: quantiser.train(learnt.numpy()))
    codes, encoding = timed(lambda: quantiser.compute_codes(others.numpy()))
    return name, size, torch.from_numpy(quantiser.decode(codes)), learning, encoding


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """CPU seconds."""
    began = time.process_time()
    found = run()
    return found, time.process_time() - began


# --- speed


def speed(ready: Prepared, options: argparse.Namespace, scratch: Path) -> str:
    """Rows a second of an extraction beside those of the bare forward."""
    batches = list(batches_of(ready))
    streams = torch.get_num_threads()
    bare(ready, batches[: 2 * streams], 1)  # the first kernels of a process are slow
    shares = []
    for number in range(options.repeats):
        fastest = min(bare(ready, batches, 1), bare(ready, batches, streams))
        seconds = extraction(ready, scratch / "store")
        shares.append(100 * fastest / seconds)
        print(f"round {number + 1}: bare {fastest:.1f} s, codes {seconds:.1f} s", file=sys.stderr, flush=True)
    return (
        f"Extraction of states of layers {', '.join(map(str, options.layers))} in {options.values}:"
        f" {statistics.median(shares):.1f} % of the bare forward ({min(shares):.1f} to {max(shares):.1f} %;"
        f" {options.rows:,} rows, {options.repeats} rounds)."
    )


def loading(ready: Prepared, options: argparse.Namespace, scratch: Path) -> str:
    """Seconds of learning its codebooks, and rows a second of a store's batches in memory, beside those in f16."""
    store = open_store(next(iter((scratch / "store").iterdir())))
    ((name, plan),) = ready.plans.items()
    fresh = Objects(scratch / "fresh" / name)
    begin(fresh, plan, {"teacher.json": b"{}"})
    began = time.monotonic()
    lay_codebooks(fresh, plan, ready.teacher, ready.rows["train"])
    learning = time.monotonic() - began
    places = tuple(range(len(options.layers)))
    rows = rows_from_store(store, "train", places={"states": places})
    want = Want(STATES, tuple(LayerPair(0, layer) for layer in options.layers))
    order = np.random.default_rng(0).permutation(len(rows))
    batches = [order[start : start + 32] for start in range(0, len(order), 32)]
    torch.set_num_threads(1)
    rounds = -(-LOADED // len(rows))
    seconds = min(timed(lambda: [rows.batch(batch, [want]) for batch in batches * rounds])[1] for _ in range(3)) / rounds
    return (
        f"Codebooks of {len(options.layers)} layers in {options.values}: learnt in {learning:.1f} s, with the teacher's run over"
        f" their rows. Batches of 32 rows: {len(rows) / seconds:,.0f} rows a second of one core"
        f" ({rows.n_tokens.mean():.1f} tokens a row, {len(options.layers)} layers)."
    )


if __name__ == "__main__":
    main()
