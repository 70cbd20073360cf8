"""Where a store lies: in a folder or an object store (`objects`), or on the hub (`hub`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from hskstore.store.objects import Objects
from hskstore.store.urls import URL


class Place(Protocol):
    """Where the objects of a store lie: a folder, an object store, the hub."""

    @property
    def local(self) -> bool: ...

    root: str

    def get(self, key: str) -> bytes | None: ...
    def ranges(self, key: str, ranges: Sequence[range]) -> list[bytes]: ...
    def sizes(self, prefix: str | None = None) -> dict[str, int]: ...
    def folders(self) -> list[str]: ...
    def exists(self) -> bool: ...
    def put_all(self, objects: Mapping[str, bytes]) -> None: ...
    def delete(self, key: str) -> None: ...


def place_of(root: str | Path) -> Place:
    """A place to read a store from: a folder, an object-store URL, or hf://datasets/OWNER/NAME."""
    if not str(root).startswith("hf://"):
        return Objects(root)
    from hskstore.store.hub import Repository  # with the hub's library, which nothing else needs

    return Repository(str(root))


def is_store(source: str) -> bool:
    """Whether a source names a store rather than a data set: a URL, or a folder with a plan."""
    return URL.fullmatch(source) is not None or (Path(source) / "plan.json").exists()


def holds_stores(source: str) -> bool:
    """Whether a source is a folder of stores, which is neither a store nor a data set."""
    return Path(source).is_dir() and any(Path(source).glob("*/plan.json"))
