"""Bytes at rest: one sealed Zarr v3 hierarchy per configuration.

NumPy, Zarr and obstore alone, and the hub's own library where a store lies there; never torch.
"""

from hskstore.store.plan import Plan
from hskstore.store.reader import Store, open_store

__all__ = ["Plan", "Store", "open_store"]
