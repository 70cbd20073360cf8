"""One process or several that train one student together, as `accelerate launch` and `torchrun` start them."""

import atexit
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.distributed import ReduceOp, all_reduce, broadcast, destroy_process_group, is_initialized

Found = TypeVar("Found")


def start(device: torch.device, *, bf16: bool) -> Accelerator:
    """This process's device, precision and neighbours, whatever was trained in it before."""
    if device.type == "cuda" and "LOCAL_RANK" not in os.environ:
        torch.cuda.set_device(device)
    # One process may train twice with different precisions; accelerate keeps the first one in a global.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=device.type == "cpu")
    if accelerator.num_processes > 1:
        atexit.unregister(_leave)
        atexit.register(_leave)
    return accelerator


def _leave() -> None:
    """Leave the group before the interpreter ends: threads of it that are still there then end the process by a signal."""
    if is_initialized():
        destroy_process_group()


def is_main() -> bool:
    """Whether this process is the one that writes: the only one, or the first of several."""
    return bool(PartialState().is_main_process)


def same_weights(learner: nn.Module, accelerator: Accelerator) -> None:
    """Every process takes the first one's weights."""
    if accelerator.num_processes > 1:
        for tensor in learner.state_dict().values():
            broadcast(tensor, src=0)


def from_first(find: Callable[[], Found]) -> Found:
    """What the first process finds, on every process; the others wait for it."""
    here = PartialState()
    found = [find()] if here.is_main_process else [None]
    if here.num_processes > 1:
        broadcast_object_list(found)
    return cast(Found, found[0])


def first_ones(own: Shaped[Tensor, "..."], accelerator: Accelerator) -> Shaped[Tensor, "..."]:
    """The first process's tensor, on every process; the device is not waited for."""
    if accelerator.num_processes > 1:
        broadcast(own, src=0)
    return own


def added_up(parts: Sequence[Shaped[Tensor, "..."]], accelerator: Accelerator) -> list[Shaped[Tensor, "..."]]:
    """Each of some small tensors summed over all processes, in one message.

    A sum's gradient goes to this process's part of it alone: those of the weights are to be added up by `add_gradients`.
    """
    if accelerator.num_processes == 1:
        return list(parts)
    together: Tensor = _AddedUp.apply(torch.cat([part.double().flatten() for part in parts]))  # type: ignore[no-untyped-call]
    sums = torch.split(together, [part.numel() for part in parts])
    return [total.view_as(part).to(part.dtype) for total, part in zip(sums, parts, strict=True)]


class _AddedUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def in_batch_order(gathered: Shaped[Tensor, "batch ..."], accelerator: Accelerator) -> Shaped[Tensor, "batch ..."]:
    """The rows of a whole batch, those of the first process first, in the order that they have in one process: every process has
    each so manieth row."""
    of = accelerator.num_processes
    if of == 1:
        return gathered
    places = torch.cat([torch.arange(rank, len(gathered), of) for rank in range(of)])
    return gathered[places.argsort().to(gathered.device)]


def add_gradients(learner: nn.Module, accelerator: Accelerator) -> None:
    """Every process's gradients become the sum over all processes, in one message.

    Torch's own DistributedDataParallel wants every output to take part in the loss; of a student that learns hidden states
    the logits do not.
    """
    if accelerator.num_processes == 1:
        return
    gradients = [parameter.grad for parameter in learner.parameters() if parameter.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    all_reduce(together)
    parts = torch.split(together, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def greatest(values: Sequence[float], accelerator: Accelerator) -> list[float]:
    """Each value's maximum over all processes, so that they decide alike."""
    if accelerator.num_processes == 1:
        return list(values)
    together = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    all_reduce(together, op=ReduceOp.MAX)
    found: list[float] = together.tolist()
    return found
