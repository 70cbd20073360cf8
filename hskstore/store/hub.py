"""A dataset repository on the Hugging Face hub as a place for a store: hf://datasets/OWNER/NAME[/FOLDER]."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from hskstore.errors import StoreError
from hskstore.store.objects import fetch_ranges, most_bytes
from hskstore.store.urls import check_url

TIMEOUT_SECONDS = 60
"""Of a connection that brings nothing. The library has none, and would wait for ever."""

PAUSES_SECONDS = (1, 4, 16)
"""Before a request is tried again that the library itself does not repeat: a commit, an object whose connection broke."""

PASSING = (408, 429, 500, 502, 503, 504)
"""Answers that may be better a moment later."""


class Repository:
    """Named byte strings in a dataset repository. Every `put_all` is one commit; the first makes the repository, private."""

    local = False

    def __init__(self, root: str) -> None:
        parts = root.removeprefix("hf://").removeprefix("datasets/").strip("/").split("/")
        if len(parts) < 2 or not all(parts) or {".", ".."} & set(parts):
            raise StoreError(f"{root}: expected hf://datasets/OWNER/NAME, with a folder behind it if you like")
        check_url(root)
        self.name = "/".join(parts[:2])
        self.root = "/".join(["hf://datasets", *parts])
        self._folder = "/".join(parts[2:])
        self._api = HfApi()
        self._made = False

    def get(self, key: str) -> bytes | None:
        """One object's bytes; None where there is none. Raises StoreError for one that no store can have."""
        with self._explained(f"read ({key})"):
            try:
                return self._fetch(key, {}, most_bytes(key))
            except (EntryNotFoundError, RepositoryNotFoundError):
                return None

    def ranges(self, key: str, ranges: Sequence[range]) -> list[bytes]:
        """Some stretches of one object's bytes."""

        def fetch(part: range) -> bytes:
            return self._fetch(key, {"Range": f"bytes={part.start}-{part.stop - 1}"}, len(part))

        with self._explained(f"read ({key})"):
            return fetch_ranges(ranges, fetch)

    def put_all(self, objects: Mapping[str, bytes]) -> None:
        """Write several objects in one commit."""
        if not objects:
            return
        operations = [CommitOperationAdd(self._inside(key), data) for key, data in objects.items()]
        with self._explained("written"):
            if not self._made:
                self._api.create_repo(self.name, repo_type="dataset", private=True, exist_ok=True)
                self._made = True
            self._commit(operations, f"hsk: {len(objects)} objects")

    def delete(self, key: str) -> None:
        """Remove one object; it may be gone already."""
        path = self._inside(key)
        with self._explained(f"changed ({key})"):
            if self._api.file_exists(self.name, path, repo_type="dataset"):
                self._commit([CommitOperationDelete(path)], f"hsk: without {key}")

    def sizes(self, prefix: str | None = None) -> dict[str, int]:
        """Every object below `prefix` with its size in bytes."""
        folder = self._inside(prefix) if prefix else self._folder or None
        skip = len(self._folder) + 1 if self._folder else 0
        with self._explained("listed"):
            try:
                found = list(self._api.list_repo_tree(self.name, folder, recursive=True, repo_type="dataset"))
            except (EntryNotFoundError, RepositoryNotFoundError):
                return {}
        return {entry.path[skip:]: entry.size for entry in found if isinstance(entry, RepoFile)}

    def folders(self) -> list[str]:
        """The names directly below the root that have objects below them."""
        return sorted({key.partition("/")[0] for key in self.sizes() if "/" in key})

    def exists(self) -> bool:
        """Whether the repository is there, and the token's to see. Another reads as an empty one."""
        with self._explained("read"):
            return bool(self._api.repo_exists(self.name, repo_type="dataset"))

    def _inside(self, key: str) -> str:
        return f"{self._folder}/{key}" if self._folder else key

    def _fetch(self, key: str, headers: Mapping[str, str], most: int) -> bytes:
        url = hf_hub_url(self.name, self._inside(key), repo_type="dataset")
        sent = {**build_hf_headers(), "Accept-Encoding": "identity", **headers}
        for pause in (*PAUSES_SECONDS, None):
            with http_stream_backoff("GET", url, headers=sent, timeout=TIMEOUT_SECONDS) as response:
                hf_raise_for_status(response)
                data = bytearray()
                # An error of the connection must not leave this block: the library would ask again, and then break.
                try:
                    for part in response.iter_bytes():
                        data += part
                        if len(data) > most:
                            raise StoreError(f"{self.root}/{key} is longer than the {most} bytes that were asked for")
                    return bytes(data)
                except HTTPError as error:
                    broken = error
            if pause is not None:
                time.sleep(pause)
        raise broken

    def _commit(self, operations: Sequence[CommitOperationAdd | CommitOperationDelete], message: str) -> None:
        for pause in (*PAUSES_SECONDS, None):
            try:
                self._api.create_commit(self.name, operations, repo_type="dataset", commit_message=message)
                return
            except HTTPError as error:
                passing = not isinstance(error, HfHubHTTPError) or error.response.status_code in PASSING
                if pause is None or not passing:
                    raise
            time.sleep(pause)

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except RepositoryNotFoundError:
            raise StoreError(f"{self.root}: there is no such dataset repository, or your token does not see it") from None
        except (HTTPError, OSError, ValueError) as error:
            cause = str(error).strip().partition("\n")[0]
            if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
                cause += ". Set HF_TOKEN, or run hf auth login, with a token that may do that"
            raise StoreError(f"{self.root} could not be {verb}: {cause}") from error
