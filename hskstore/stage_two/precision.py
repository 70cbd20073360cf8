"""The precision that a student is trained in."""

import logging
import os
from typing import Literal

import torch
from torch import nn

from hskstore.config import TrainPrecision
from hskstore.errors import ModelError
from hskstore.models.device import choose_device, computes_in
from hskstore.models.run import Inputs, put_back, run_model

log = logging.getLogger(__name__)


def resolve_precision(precision: TrainPrecision, device: torch.device) -> Literal["fp32", "bf16"]:
    """For "auto" bf16 where the device computes in it itself, which is 2 to 3 times faster, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if computes_in("bf16", device) else "fp32"


def precision_for(
    model: nn.Module,
    name: str,
    batch: Inputs,
    *,
    wanted: TrainPrecision,
    device: str | None,
    hidden: bool = False,
) -> Literal["fp32", "bf16"]:
    """The precision to train a model in, after a look at whether it runs `batch` in it, as `run_model` takes one.

    Some models cast by themselves and fail under autocast, such as DeBERTa's first version: "auto" is fp32 for them, with a
    warning. Raises ModelError where "bf16" was asked for.
    """
    place = choose_device(device)
    if place.type == "cuda" and "LOCAL_RANK" in os.environ:  # one process of several, each with a GPU
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    precision = resolve_precision(wanted, place)
    if precision == "fp32":
        return precision
    try:
        with put_back(model), torch.no_grad(), torch.autocast(place.type, dtype=torch.bfloat16):
            run_model(model.to(place).eval(), *batch, hidden=hidden)
    except (RuntimeError, TypeError, ValueError) as error:
        said = f"{name} cannot run in bf16 ({str(error).strip().partition(chr(10))[0]})"
        if wanted != "auto":
            raise ModelError(f"{said}: choose --precision fp32") from None
        log.warning("%s: it is trained in fp32", said)
        return "fp32"
    return precision
