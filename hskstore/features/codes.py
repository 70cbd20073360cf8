"""Vectors as codes, on the teacher's device and in the loader: the torch half of `store.vectors.Codes`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Float32, Int, UInt8
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from hskstore.store.vectors import WORDS

ITERATIONS = 3
"""Of Lloyd's algorithm, for each number of leading coordinates."""

PRINCIPAL = 0.9
"""Of the variance of a layer's words, what its principal directions hold."""

VECTORS_AT_ONCE = 2048
"""That are encoded together on a CPU, so that they stay in its caches. A GPU takes them all: small kernels leave it idle."""


@dataclass(frozen=True)
class Codebooks:
    """A feature's codebooks where they are used: the words, and half the square of each one's length, both float32."""

    words: Float[Tensor, "*place stage word width"]
    half_squares: Float[Tensor, "*place stage word"]

    @classmethod
    def of(cls, words: Float16[np.ndarray, "*place stage word width"], device: torch.device) -> "Codebooks":
        found = torch.from_numpy(words).to(device, torch.float32)
        return cls(found, _half_squares(found))


def encode_codes(vectors: Float[Tensor, "batch layer *rest width"], books: Codebooks) -> UInt8[Tensor, "batch layer *rest stage"]:
    """The word of each stage that is nearest to what the words before left over; of equals the first."""
    shape = books.words.shape
    codes = torch.empty((*vectors.shape[:-1], shape[-3]), dtype=torch.uint8, device=vectors.device)
    at_once = VECTORS_AT_ONCE if vectors.device.type == "cpu" else max(1, vectors.numel() // shape[-1])
    for place in np.ndindex(shape[:-3]):
        at = (slice(None), *place)
        found = [
            _encode(some, books.words[place], books.half_squares[place])
            for some in torch.split(vectors[at].reshape(-1, shape[-1]), at_once)
        ]
        codes[at] = torch.cat(found).view(codes[at].shape)
    return codes


def _encode(
    vectors: Float[Tensor, "row width"], words: Float[Tensor, "stage word width"], half_squares: Float[Tensor, "stage word"]
) -> UInt8[Tensor, "row stage"]:
    left = vectors.to(torch.float32, copy=True)
    codes = torch.empty(len(left), len(words), dtype=torch.uint8, device=left.device)
    for stage, (own, half) in enumerate(zip(words, half_squares, strict=True)):
        codes[:, stage] = _take_off(left, own, half)
    return codes


def _take_off(
    left: Float[Tensor, "row width"], words: Float[Tensor, "word width"], half_squares: Float[Tensor, " word"]
) -> Int[Tensor, " row"]:
    """Of each vector the nearest word, which is subtracted from it where it lies."""
    nearest = nearest_words(left, words, half_squares)
    left -= words[nearest]
    return nearest


def _half_squares(words: Float[Tensor, "*place word width"]) -> Float[Tensor, "*place word"]:
    return words.square().sum(dim=-1) / 2


def nearest_words(
    vectors: Float[Tensor, "row width"], words: Float[Tensor, "word width"], half_squares: Float[Tensor, " word"]
) -> Int[Tensor, " row"]:
    """Of each vector the word at the least distance; of equals the first."""
    closeness = torch.addmm(half_squares, vectors, words.T, alpha=-1)
    if closeness.device.type == "cpu":  # where NumPy takes a sixth of torch's time
        return torch.from_numpy(closeness.numpy().argmin(axis=1))
    return closeness.argmin(dim=1)


def decode_codes(
    codes: UInt8[np.ndarray, "batch layer *rest stage"],
    words: Float[Tensor, "*place stage word width"],
    *,
    layers: Sequence[int] | None = None,
    is_there: Bool[np.ndarray, "..."] | None = None,
) -> Float[Tensor, "layer batch *rest width"]:
    """As `store.vectors.Codes.decode` does, to the last bit, in a tenth of its time; but layers stand first.

    `layers` are those of `words` that the codes are of, where they are not all of them. Where there is no vector, by `is_there`
    (it broadcasts to [layer, batch, *rest]), nothing is summed: zeros.
    """
    *places, stages, _, width = words.shape
    by_layer = codes.swapaxes(0, 1)
    shape = by_layer.shape[:-1]
    found = np.broadcast_to(True if is_there is None else is_there, shape)
    first = stages * WORDS * np.arange(math.prod(places)).reshape(places)[slice(None) if layers is None else layers]
    behind = len(shape) - 1 - len(places)
    own = np.broadcast_to(first.reshape(len(first), 1, *places[1:], *[1] * behind), shape)[found]
    summands = by_layer[found].astype(np.int64) + own[:, None] + np.arange(0, stages * WORDS, WORDS)
    sizes = stages * found.reshape(-1)
    bags = np.cumsum(sizes) - sizes  # that of no vector is empty
    table = words.reshape(-1, width)
    return embedding_bag(torch.from_numpy(summands.reshape(-1)), table, torch.from_numpy(bags), mode="sum").view(*shape, width)


def principal_directions(words: Float[Tensor, "layer stage word width"]) -> Float[Tensor, "layer width direction"]:
    """Orthogonal directions of each layer: as few as hold PRINCIPAL of the variance of its words, each about the mean of its
    stage, and that of the mean of all vectors, which codes know too, as far as it lies in none of these. Zeros fill up where
    another layer has more. What codes leave over lies for the most part in other directions."""
    means = words.mean(dim=2, keepdim=True)
    centred = (words - means).flatten(1, 2)
    variance, axes = torch.linalg.eigh(centred.transpose(1, 2) @ centred)  # the smallest first
    variance, axes = variance.flip(-1).clamp(min=0), axes.flip(-1)
    held = variance.cumsum(dim=-1) - variance < PRINCIPAL * variance.sum(dim=-1, keepdim=True)
    axes = axes * held[:, None]
    mean = means.sum(dim=(1, 2))
    beside = mean - (axes @ (axes.transpose(1, 2) @ mean[..., None]))[..., 0]
    length, spread = beside.norm(dim=-1), variance.sum(dim=-1).div(words.shape[2]).sqrt()
    counts = length > torch.finfo(mean.dtype).eps ** 0.5 * (mean.norm(dim=-1) + spread)  # more than rounding
    beside = torch.where(counts, 1 / length, 0)[:, None] * beside
    found = torch.cat([beside[..., None], axes], dim=-1)
    return found[..., found.any(dim=(0, 1))]


# --- learning


def learn_words(vectors: Float[Tensor, "row width"], stages: int, seed: int) -> Float16[Tensor, "stage word width"]:
    """The codebooks of some vectors, each learnt from what the ones before it leave over (Gersho and Gray, 1992, section 12.11),
    so that fewer stages are the first of more."""
    generator = torch.Generator().manual_seed(seed)
    left, found = vectors.to(torch.float32, copy=True), []
    for _ in range(stages):
        words = _cluster(left, generator).half()
        found.append(words)
        _take_off(left, words.float(), _half_squares(words.float()))
    return torch.stack(found)


def left_over(vectors: Float[Tensor, "row width"], words: Float16[Tensor, "stage word width"]) -> Float32[Tensor, " stage"]:
    """What of the variance of some vectors their codes leave over after each stage; 0 where they do not vary
    and nothing is left."""
    variance = (vectors - vectors.mean(dim=0)).square().sum()
    rest, found = vectors.clone(), []
    for own in words.float():
        _take_off(rest, own, _half_squares(own))
        found.append(rest.square().sum())
    left = torch.stack(found)
    return torch.where((left == 0) & (variance == 0), 0.0, left / variance)


def _cluster(vectors: Float[Tensor, "row width"], generator: torch.Generator) -> Float[Tensor, "word width"]:
    """The centres of 256 clusters: k-means along the first principal axis, then along twice as many axes as before, up to all of
    them, each time from where it stood. Begun in all dimensions it leaves 2 to 8 % more over (pipelines/LOG.md)."""
    width = vectors.shape[1]
    mean = vectors.mean(dim=0)
    centred = vectors - mean
    _, axes = torch.linalg.eigh(centred.T @ centred)
    axes = axes.flip(1)  # the largest variance first
    turned = centred @ axes
    words = turned[torch.randint(len(turned), (WORDS,), generator=generator), :1]
    for halvings in range(width.bit_length() - 1, -1, -1):
        leading = turned[:, : width >> halvings].contiguous()
        words = pad(words, (0, leading.shape[1] - words.shape[1]))
        for _ in range(ITERATIONS):
            words = _moved(leading, words)
    found: Tensor = _shrunk(turned, words) @ axes.T + mean
    return found


def _shrunk(vectors: Float[Tensor, "row width"], words: Float[Tensor, "word width"]) -> Float[Tensor, "word width"]:
    """Each word in the middle of the vectors that it is nearest to, but drawn to zero, which is the mean of all, along the axes
    where words differ little more than such middles do by chance (empirical Bayes: Efron and Morris, 1975)."""
    sizes, sums = _gathered(vectors, words)
    middles = sums / sizes.clamp(min=1)
    between = (sizes * middles.square()).sum(dim=0)
    within = (vectors.square().sum(dim=0) - between).clamp(min=0) / max(1, len(vectors) - WORDS)
    spread = (between - WORDS * within).clamp(min=0) / len(vectors)
    found: Tensor = middles * (spread / (spread + within / sizes.clamp(min=1))).nan_to_num(0)
    return found


def _gathered(
    vectors: Float[Tensor, "row width"], words: Float[Tensor, "word width"]
) -> tuple[Float[Tensor, "word 1"], Float[Tensor, "word width"]]:
    """How many vectors each word is nearest to, and their sum."""
    nearest = nearest_words(vectors, words, _half_squares(words))
    sums = torch.zeros_like(words).index_add_(0, nearest, vectors)
    return torch.bincount(nearest, minlength=WORDS).to(sums.dtype)[:, None], sums


def _moved(vectors: Float[Tensor, "row width"], words: Float[Tensor, "word width"]) -> Float[Tensor, "word width"]:
    """Each word in the middle of the vectors that it is nearest to; one that has none halves the vectors of another, the largest
    ones first."""
    sizes, sums = _gathered(vectors, words)
    found: Tensor = sums / sizes.clamp(min=1)
    empty = (sizes == 0).nonzero()[:, 0]
    if len(empty):
        largest = sizes[:, 0].argsort(descending=True, stable=True)[: len(empty)]
        empty = empty[: len(largest)]
        apart = vectors.std(correction=0) * 1e-3
        found[empty] = found[largest] + apart
        found[largest] -= apart
    return found
