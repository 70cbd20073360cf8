"""The device to compute on, and the precisions that it computes in itself."""

import torch

from hskstore.config import Precision
from hskstore.errors import OptionError
from hskstore.models import pruned_bert as pruned_bert  # registered with the Auto classes by being imported


def choose_device(text: str | None) -> torch.device:
    """The device of that name; None: a GPU if there is one. Raises OptionError for one that is not here."""
    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    here = device is not None and (
        device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count())
    )
    if device is None or not here:
        raise OptionError(f"--device {text}: not here; choose cpu" + (" or cuda" if torch.cuda.is_available() else ""))
    return device


def computes_in(precision: Precision, device: torch.device) -> bool:
    """Whether a device computes in a precision itself, and does not emulate it slowly."""
    if precision == "fp32":
        return True
    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16":  # what mkldnn calls supported may be emulated: any AVX-512 is enough
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
