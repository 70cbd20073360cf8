"""A store whose arrays stay in memory once they were read, so that runs which follow each other read them once."""

from collections.abc import Sequence
from threading import Lock

import numpy as np
from jaxtyping import Shaped

from hskstore.store import Store


class Held(Store):
    """Another store, or a view of one. At most `most` bytes are held; what is beyond them is read anew each time."""

    def __init__(self, inner: Store, most: int) -> None:
        super().__init__(inner.place, inner.plan, inner.manifest)
        self._inner = inner
        self._left = most
        self._found: dict[tuple[str, int, tuple[int, ...] | None], np.ndarray] = {}
        self._turn = Lock()

    @property
    def identity(self) -> str:
        return self._inner.identity

    def read(self, path: str, unit: int, layers: Sequence[int] | None = None) -> Shaped[np.ndarray, "row ..."]:
        """As `Store.read`; nobody may write to what it returns."""
        key = path, unit, None if layers is None else tuple(layers)
        with self._turn:
            held = self._found.get(key)
        if held is not None:
            return held
        array = self._inner.read(path, unit, layers)
        with self._turn:
            if array.nbytes <= self._left and key not in self._found:
                self._left -= array.nbytes
                array.flags.writeable = False
                self._found[key] = array
        return array
