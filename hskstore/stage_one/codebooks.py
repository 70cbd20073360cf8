"""The codebooks of a store, learnt from the first rows of a pass before anything is written in them."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import torch
from jaxtyping import Float16, Float32, Shaped

from hskstore.features.codes import learn_words, left_over
from hskstore.interrupts import interrupts
from hskstore.stage_one.teacher import Teacher
from hskstore.stage_one.teacher_pass import TeacherPass, block_batches
from hskstore.store.codebooks import BOOKS, CODEBOOKS, Words, coded
from hskstore.store.commit import read_receipt, receipt_key
from hskstore.store.features import LayerVectors
from hskstore.store.hidden import Hidden
from hskstore.store.layout import Columns
from hskstore.store.objects import Objects
from hskstore.store.plan import Plan, planned_anew
from hskstore.store.vectors import WORDS, Codes
from hskstore.store.words import put_codebooks
from hskstore.text.rows import Rows
from hskstore.watch import Watch, unwatched

LEARNT_FROM, HELD_OUT = 16_384, 2_048
"""Vectors of a layer that its codebooks are learnt from, and others on which is measured what they leave over."""

FEWEST_HELD_OUT = 100
"""Of fewer their own variance says little."""

MOST_ROWS = 4_608
"""That are run to find so many, which of a vector a row there are not."""

ROWS_AT_ONCE = 256

LEARNING_SECONDS = 1.2e-7
"""Of one core, for each vector that codebooks are learnt from, each coordinate of it and each codebook."""


def lay_codebooks(objects: Objects, plan: Plan, teacher: Teacher, rows: Rows, *, watch: Watch = unwatched) -> None:
    """Learn the codebooks of a planned store from the train split `rows`, and put them, unless they stand there; those that
    another process put first are as good.

    Raises ModelError as an extraction would, and StoreError where units are there that were written in others.
    """
    if not coded(plan.features) or read_receipt(objects, receipt_key(*BOOKS)) is not None:
        return
    learnt = learn_codebooks(plan, _sample(plan, teacher, rows), watch)
    made = {"device": str(teacher.device), "finished": datetime.now(UTC).isoformat(timespec="milliseconds")}
    put_codebooks(objects, plan, learnt, made)


def stand_in_words(plan: Plan) -> Words:
    """Words of the right shapes, to see how long it takes to write in them."""
    found: dict[str, np.ndarray] = {}
    for name in coded(plan.features):
        *places, stages, words, width = plan.arrays[f"{CODEBOOKS}/{name}/words"].shape
        one = np.random.default_rng(0).standard_normal((words, width), dtype=np.float32).astype(np.float16)
        found[name] = np.tile(one, (*places, stages, 1, 1))
    return found


def learning_seconds(plan: Plan) -> float:
    """About how long one core learns a store's codebooks; 0 where its vectors are numbers."""
    found = 0.0
    for name, feature in coded(plan.features).items():
        vectors = min(LEARNT_FROM, _there_are(plan, feature))
        found += LEARNING_SECONDS * vectors * math.prod(plan.arrays[f"{CODEBOOKS}/{name}/words"].shape) / WORDS
    return found


def sample_bytes(plan: Plan) -> int:
    """About the most memory that learning takes: of vectors that codebooks are made of, and of those that they are drawn from, as
    many and a block more."""
    train, found = plan.splits["train"], 0
    for name, feature in coded(plan.features).items():
        *places, _, _, width = plan.arrays[f"{CODEBOOKS}/{name}/words"].shape
        there, enough = _there_are(plan, feature), LEARNT_FROM + HELD_OUT
        vectors = min(there, enough) + min(there, enough + ROWS_AT_ONCE * there // min(train.rows, there))
        found += vectors * math.prod(places) * width * np.dtype(np.float16).itemsize
    return found


def _there_are(plan: Plan, feature: Hidden | LayerVectors) -> int:
    """Vectors of a layer that codebooks can be learnt from."""
    train = plan.splits["train"]
    of_rows = isinstance(feature, LayerVectors) and "token" not in feature.axes
    return min(train.rows, MOST_ROWS) if of_rows else train.tokens


# --- a sample


def _sample(plan: Plan, teacher: Teacher, rows: Rows) -> dict[str, Float16[np.ndarray, "vector *place width"]]:
    """The vectors of some of the first rows, which are in random order, as they are before they are codes: by feature, of every
    layer, and of attention of every part."""
    wanted = coded(plan.features)
    plain = planned_anew(plan, [_as_numbers(feature, plan.splits["train"].longest) for feature in wanted.values()])
    some = rows.slice(0, min(len(rows), MOST_ROWS))
    found: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    with TeacherPass([plain], teacher) as passed:
        for _, batches in block_batches(some.n_tokens, ROWS_AT_ONCE, plan.pass_.batch_tokens):
            # Of each feature by itself, so that its words do not follow what else is kept.
            lacking = [name for name, own in found.items() if not are_enough(own)]
            if not lacking:
                break
            for (columns,) in passed.run("train", (rows.take(batch) for batch in batches)):
                for name in lacking:
                    found[name].append(vectors_of(wanted[name], columns))
    return {name: drawn(own, plan.pass_.seed) for name, own in found.items()}


def are_enough(parts: Sequence[Shaped[np.ndarray, "_vector ..."]]) -> bool:
    """Whether there are as many vectors as codebooks are made of."""
    return sum(map(len, parts)) >= LEARNT_FROM + HELD_OUT


def drawn(parts: Sequence[Shaped[np.ndarray, "_vector ..."]], seed: int) -> Shaped[np.ndarray, "vector ..."]:
    """As many as codebooks are made of, or all, in random order: these alone are copied."""
    ends = np.cumsum([len(part) for part in parts])
    chosen = np.random.default_rng(seed).permutation(ends[-1])[: LEARNT_FROM + HELD_OUT]
    found = np.empty((len(chosen), *parts[0].shape[1:]), parts[0].dtype)
    of_part = np.searchsorted(ends, chosen, side="right")
    for index, part in enumerate(parts):
        own = of_part == index
        found[own] = part[chosen[own] - ends[index]]  # from its end
    return found


def _as_numbers(feature: Hidden | LayerVectors, longest: int) -> Hidden | LayerVectors:
    """The feature before its vectors are codes; of `hidden` every token that a rank chooses among, so that the words are the same
    whatever its length."""
    plain = as_f16(feature)
    return replace(plain, keep=replace(plain.keep, length="all"), length=longest) if isinstance(plain, Hidden) else plain


def as_f16(feature: Hidden | LayerVectors) -> Hidden | LayerVectors:
    """The same vectors as numbers."""
    if not isinstance(feature, Hidden):
        return replace(feature, values="f16")
    return replace(feature, strategy=replace(feature.strategy, values="f16"))


def vectors_of(feature: Hidden | LayerVectors, columns: Columns) -> Shaped[np.ndarray, "vector layer ..."]:
    """The vectors of a batch [vector, layer, ..., width], those of padding and of empty slots left out."""
    values = columns[f"train/{feature.name}/values"]
    if isinstance(feature, LayerVectors) and "token" not in feature.axes:
        return values
    counts = columns["train/n_tokens"] if isinstance(feature, LayerVectors) else columns["train/hidden/n_kept"][:, 0]
    by_token = np.moveaxis(values, -2, 1)
    found: np.ndarray = by_token[np.arange(by_token.shape[1]) < counts[:, None]]
    return found


# --- learning


def learn_codebooks(plan: Plan, sample: Mapping[str, Float16[np.ndarray, "vector *place width"]], watch: Watch) -> Columns:
    """The arrays of the codebooks of a sample of each feature: those of each layer on a thread of its own, so that their bytes do
    not follow the cores."""
    places = [(name, place) for name, vectors in sample.items() for place in np.ndindex(vectors.shape[1:-1])]
    columns: dict[str, np.ndarray] = {}
    for name in sample:
        for array in ("words", "error"):
            spec = plan.arrays[f"{CODEBOOKS}/{name}/{array}"]
            columns[f"{CODEBOOKS}/{name}/{array}"] = np.empty(spec.shape, spec.dtype)
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "hsk-codebooks", initializer=torch.set_num_threads, initargs=(1,))
    with interrupts() as held:
        try:
            jobs = [pool.submit(_learn_one, plan, name, sample[name][:, *place]) for name, place in places]
            done, total = 0, sum(len(sample[name]) for name, _ in places)
            for (name, place), job in zip(places, jobs, strict=True):
                columns[f"{CODEBOOKS}/{name}/words"][place], columns[f"{CODEBOOKS}/{name}/error"][place] = held.result_of(job)
                done += len(sample[name])
                watch("codebooks", done, total)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
    return columns


def _learn_one(plan: Plan, name: str, vectors: np.ndarray) -> tuple[Float16[np.ndarray, "..."], Float32[np.ndarray, " stage"]]:
    """The words of one layer, and what they leave of the variance of the vectors that they were not learnt from; where these are
    few, or all the same, of all."""
    encoding = plan.said[name].encoding
    assert isinstance(encoding, Codes)
    held_out = len(vectors) * HELD_OUT // (LEARNT_FROM + HELD_OUT)
    every = torch.from_numpy(np.ascontiguousarray(vectors)).float()
    learnt, others = every.tensor_split([len(vectors) - held_out])
    words = learn_words(learnt, encoding.stages, plan.pass_.seed)
    tells = held_out >= FEWEST_HELD_OUT and bool((others != others[0]).any())
    return words.numpy(), left_over(others if tells else every, words).numpy()
