"""Vectors as they are stored, packed on the teacher's device: the torch half of store/vectors.py.

Rounding comes first, then the mask, then integers, so that a smaller configuration is a cut of a bigger one.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from hskstore.config import Values
from hskstore.features.codes import Codebooks, encode_codes
from hskstore.store.vectors import ENCODINGS, Codes

SMALLEST_SCALE = 2.0**-14
"""The smallest normal f16: below it a scale would lose its own digits, and no encoder's states are that small."""


def round_values(vectors: Float[Tensor, "*rows width"], values: Values) -> Float[Tensor, "*rows width"]:
    """In the precision that masks are made on: f32 for f32 stores, f16 for all others."""
    return vectors.to(rounded_dtype(values))


def rounded_dtype(values: Values) -> torch.dtype:
    """That of `round_values`."""
    return torch.float32 if values == "f32" else torch.float16


def blank_padding(rounded: Float[Tensor, "*rows width"], padding: Bool[Tensor, "*#rows 1"]) -> None:
    """Zeros where there is padding, whatever stood there; of bits as integers, which takes a CPU a tenth of the time of
    `masked_fill_`."""
    bits = rounded.view(torch.int32 if rounded.element_size() == 4 else torch.int16)
    bits.mul_(~padding)


def are_finite(rounded: Float[Tensor, "batch layer *rows width"]) -> Bool[Tensor, "batch layer"]:
    """Whether all of a row's vectors of a layer are; by their largest, which takes an eighth of the time of `isfinite` on f16."""
    return rounded.abs().flatten(2).amax(dim=2).isfinite()


def encode(
    rounded: Float[Tensor, "*rows width"], values: Values, books: Codebooks | None = None
) -> dict[str, Shaped[Tensor, "_ ..."]]:
    """Rounded vectors as the arrays of their encoding: `values` [..., stored], and `scale` [...] where they are integers. Codes
    are in the codebooks `books`, and their vectors stand in [batch, layer, ..., width]."""
    encoding = ENCODINGS[values]
    if isinstance(encoding, Codes):
        assert books is not None
        return {"values": encode_codes(rounded, books)}
    if encoding.largest is None:
        return {"values": rounded}
    integers, scale = quantise(rounded, encoding.largest)
    return {"values": pack_nibbles(integers) if encoding.packed > 1 else integers, "scale": scale}


def blank_beside(arrays: dict[str, Shaped[Tensor, "_ ..."]], padding: Bool[Tensor, "*#rows"]) -> None:
    """What `encode` made of zeros where there is padding: no scale, and codes of zeros, which name words none the less."""
    if "scale" in arrays:
        arrays["scale"] = arrays["scale"].masked_fill(padding, 0)
    elif arrays["values"].dtype == torch.uint8:
        arrays["values"].mul_(~padding[..., None])


def kept_values(
    rounded: Float[Tensor, "*rows width"], kept: Bool[Tensor, "*rows width"], *, width: int
) -> Float[Tensor, "*rows kept"]:
    """The kept coordinates of each vector, in their order; `kept` has exactly `width` True in every vector."""
    if rounded.device.type == "cpu":  # which a count of what is kept costs nothing
        return rounded[kept].view(*rounded.shape[:-1], width)
    return kept_on_device(rounded, kept, width)


def kept_on_device(
    rounded: Float[Tensor, "*rows width"], kept: Bool[Tensor, "*rows width"], width: int
) -> Float[Tensor, "*rows kept"]:
    """`kept_values` in kernels alone: nothing waits for a number."""
    # Each kept coordinate to the place that its mask counts, the others to one behind the last: the shapes are known without
    # asking the device.
    place = torch.where(kept, kept.cumsum(dim=-1) - 1, width)
    return rounded.new_empty((*rounded.shape[:-1], width + 1)).scatter_(-1, place, rounded)[..., :width].contiguous()


def quantise(values: Float[Tensor, "*rows kept"], largest: int) -> tuple[Int[Tensor, "*rows kept"], Float[Tensor, "*rows"]]:
    """Integers in [-largest, largest] (int8) and one f16 scale per vector: value = integer x scale, within half a scale."""
    wide = values.float()
    scale = (wide.abs().amax(dim=-1) / largest).clamp(min=SMALLEST_SCALE).half()
    integers = (wide / scale.float()[..., None]).round().clamp(-largest, largest)
    return integers.to(torch.int8), scale


def pack_nibbles(integers: Int[Tensor, "*rows kept"]) -> UInt8[Tensor, "*rows pair"]:
    """Two 4-bit two's complement values a byte, the first in the low half; an odd last one is paired with 0."""
    if integers.shape[-1] % 2:
        integers = torch.nn.functional.pad(integers, (0, 1))
    low, high = (integers[..., half::2].to(torch.uint8) & 0xF for half in (0, 1))
    return low | (high << 4)


def pack_bits(kept: Bool[Tensor, "*rows width"]) -> UInt8[Tensor, "*rows octet"]:
    """Bits, most significant first, as `numpy.packbits` has them; the last byte is filled with zeros."""
    if kept.device.type == "cpu":
        return torch.from_numpy(np.packbits(kept.numpy(), axis=-1))
    return bits_on_device(kept)


def bits_on_device(kept: Bool[Tensor, "*rows width"]) -> UInt8[Tensor, "*rows octet"]:
    """`pack_bits` in kernels alone."""
    padded = torch.nn.functional.pad(kept, (0, -kept.shape[-1] % 8)).view(*kept.shape[:-1], -1, 8)
    weight = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=kept.device)
    return (padded * weight).sum(dim=-1, dtype=torch.uint8)
