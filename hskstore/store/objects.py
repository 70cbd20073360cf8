"""Where a store's bytes lie: a local folder or an object-store prefix, behind obstore."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from hskstore.errors import StoreError


class Objects:
    """Named byte strings under one root. Writes are whole and, on a local disk, durable when `put` returns."""

    def __init__(self, root: str | Path) -> None:
        """Nothing is made or touched here; a local folder comes into being with the first `put`."""
        self.root = str(root).removeprefix("file://").rstrip("/") or "/"
        self._folder: Path | None = None if "://" in self.root else Path(self.root).absolute()

    def put(self, key: str, data: bytes, *, create: bool = False) -> bool:
        """Write one object whole. With `create`, never over another: False says that one already stood there."""
        with self._explained(f"written ({key})"):
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            try:
                obstore.put(self._store, key, data, mode="create" if create else "overwrite")
            except AlreadyExistsError:
                return False
            self._sync(key)
        return True

    def get(self, key: str) -> bytes | None:
        """One object's bytes; None where there is none."""
        if not self.exists():
            return None
        with self._explained(f"read ({key})"):
            try:
                return obstore.get(self._store, key).bytes().to_bytes()
            except FileNotFoundError:
                return None

    def delete(self, key: str) -> None:
        with self._explained(f"changed ({key})"):
            obstore.delete(self._store, key)

    def sizes(self, prefix: str | None = None) -> dict[str, int]:
        """Every object below `prefix` with its size in bytes. Symbolic links are refused: they lead out of the store."""
        if not self.exists():
            return {}
        if self._folder is not None:
            self._refuse_links()
        with self._explained("listed"):
            return {found["path"]: found["size"] for batch in obstore.list(self._store, prefix) for found in batch}

    def folders(self) -> list[str]:
        """The names directly below the root that have objects below them."""
        with self._explained("listed"):
            found = obstore.list_with_delimiter(self._store)["common_prefixes"]
        return sorted(str(prefix) for prefix in found)

    def exists(self) -> bool:
        """Whether the local folder is there; an object store's prefix always is."""
        return self._folder is None or self._folder.is_dir()

    @cached_property
    def _store(self) -> ObjectStore:
        return from_url(self.root) if self._folder is None else LocalStore(self._folder)

    def _refuse_links(self) -> None:
        assert self._folder is not None
        for parent, folders, files in os.walk(self._folder):
            for name in (*folders, *files):
                path = Path(parent, name)
                if path.is_symlink():
                    raise StoreError(f"{path} is a symbolic link; a store has none: copy the store instead of linking parts")

    def _sync(self, key: str) -> None:
        """Make a local object and its name outlive a power cut; obstore has no option for it."""
        if self._folder is None:
            return
        path = self._folder / key
        for target in (path, path.parent):
            handle = os.open(target, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            cause = str(error).partition("\n")[0]
            if "No space left" in str(error) or "Disk quota" in str(error):
                raise StoreError(
                    f"{self.root}: the disk is full. What was finished is kept: make room and run the same command again"
                ) from error
            raise StoreError(f"{self.root} could not be {verb}: {cause}") from error
