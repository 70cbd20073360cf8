"""The whole batch on every process, for losses that relate rows to each other."""

from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.distributed import all_gather, all_reduce, get_rank, get_world_size, is_initialized


def whole_batch(own: Shaped[Tensor, "row ..."]) -> Shaped[Tensor, "batch ..."]:
    """The rows of all processes that share a batch, those of the first one first, with gradients; of one process `own` itself.

    Every process calls it, in the same order. Numbers of rows may differ, also be zero; the other axes may not.

    A gradient is that of the sum over the processes, each of which goes on alone from what it got. A term that all of them
    work out from the whole batch is therefore added as often as there are processes, in its total and in its count: its
    value and its gradients come out as those of one process.
    """
    if not is_initialized() or get_world_size() == 1:
        return own
    whole: Tensor = _WholeBatch.apply(own)  # type: ignore[no-untyped-call]
    return whole


class _WholeBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        counts = torch.zeros(get_world_size(), dtype=torch.long, device=own.device)
        counts[get_rank()] = len(own)
        all_reduce(counts)
        rows: list[int] = counts.tolist()
        ctx.rows = rows
        padded = own.new_zeros((max(rows), *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in rows]
        all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].clone(memory_format=torch.contiguous_format)
        all_reduce(whole)
        return torch.split(whole, ctx.rows)[get_rank()]
