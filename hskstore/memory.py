"""This machine's memory: what may be taken of it, and how freed memory is given back."""

import ctypes
import sys

import psutil

from hskstore.errors import StoreError

MOST_OF_FREE = 0.8
"""Of the free memory, what rows may take at most."""

SHARE_FOR_ROWS = 0.4
"""Of the free memory, what rows take without being asked to: the student needs some too."""


def rows_fit(needed: int, processes: int = 1) -> bool:
    """Whether `needed` bytes of rows in each of some processes leave enough to a student."""
    return bool(needed * processes <= SHARE_FOR_ROWS * psutil.virtual_memory().available)


def check_memory(root: str, needed: int) -> None:
    """Raise StoreError where `needed` bytes of a store's rows are more than this machine has free."""
    free = psutil.virtual_memory().available
    if needed > MOST_OF_FREE * free:
        raise StoreError(
            f"{root}: its rows take {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free:"
            " hsk distill --loader blocks reads them piece by piece; or extract a smaller configuration, such as --keep 1,9,0.1"
        )


def give_back_memory() -> None:
    """Let the C library return freed memory to the system, where it can be told to.

    Arrays of ever other sizes leave holes that glibc keeps: hundreds of megabytes after some thousand batches.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
