"""A store's bytes in a local folder or below an object-store prefix, behind obstore."""

import errno
import fcntl
import logging
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError
from obstore.store import LocalStore, ObjectStore, from_url

from hskstore.errors import StoreError
from hskstore.interrupts import in_threads
from hskstore.store.schema import MAX_SHARD_BYTES
from hskstore.store.urls import URL, check_url

if TYPE_CHECKING:  # types alone, which obstore has not got when it runs
    from obstore import UpdateVersion
    from obstore.store import ClientConfig, RetryConfig

log = logging.getLogger(__name__)

MAX_OBJECT_BYTES = MAX_SHARD_BYTES
MAX_DOCUMENT_BYTES = 64 * 2**20
"""Bigger objects, or JSON documents, are not read: no store has them."""

PARALLEL = 8
"""Objects that are moved or hashed at once."""

NEAR_BYTES = 2**16
"""Stretches of one object that lie nearer than this are fetched together."""

CLIENT: "ClientConfig" = {"allow_http": True, "connect_timeout": "10s", "timeout": "5m"}
"""`allow_http`: whoever names an http endpoint means it. A whole object must pass within `timeout`."""

RETRY: "RetryConfig" = {"max_retries": 8, "retry_timeout": timedelta(minutes=3)}
"""For answers that may be better a moment later (500, 503, a lost connection), with growing pauses between."""

STRANDED = re.compile(r"#\d+$")
"""The temporary files that obstore leaves in a folder when it is killed; its own listing hides them."""

INSTANCE_METADATA = ("/latest/api/token", "/latest/meta-data/", "/computeMetadata/", "/metadata/identity/")
"""Where S3, GCS and Azure are asked for credentials when the environment has none: a machine of theirs answers there."""

NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
"""What a disk answers that keeps no folders to flush, as network and FUSE mounts do."""

ELSEWHERE = ("redirect without LOCATION", "PermanentRedirect", "AuthorizationHeaderMalformed")
"""What is said of a bucket of S3 that lies in another region than the request was for."""

EXPECTED_REGION = re.compile(r"expecting '([a-z0-9-]+)'")

UNKNOWN = re.compile(r"status code: 501|NotImplemented")
"""What a server answers that knows no conditional writes."""

MANY_WRITERS, ONE_WRITER = set[str](), set[str]()
"""Buckets whose server keeps writers apart by conditional writes, and those where none does, as this process found."""

RETRY_SETTINGS = re.compile(r", max_retries: \d+, retry_timeout: \w+ *(?=-)")
SAID = re.compile(r"<Message>([^<]*)</Message>")


class Objects:
    """Named byte strings under one root. Writes are whole and, on a local disk, durable when `put` returns."""

    def __init__(self, root: str | Path) -> None:
        """Nothing is made or touched here; a local folder comes into being with the first `put`."""
        check_url(str(root))
        self.root = str(root).removeprefix("file://").rstrip("/") or "/"
        if self.root.startswith("hf://"):
            raise StoreError(f"{self.root}: a store is made in a folder or an object store; hsk push brings it to the hub")
        self._folder: Path | None = None if URL.fullmatch(self.root) else Path(self.root).absolute()

    @property
    def local(self) -> bool:
        return self._folder is not None

    def put(self, key: str, data: bytes, *, create: bool = False) -> bool:
        """Write one object whole. With `create`, never over another: False says that one already stood there."""
        # Trying twice: a sweep by another process may take our temporary file, and an object store's answer may get lost;
        # the second try writes the same bytes. On an object store one with `create` would find its own first: its caller
        # reads back what stands there.
        tries = 1 if create and not self.local else 2
        with self._explained(f"written ({key})"):
            if self._folder is not None:
                self._check(key)
                _make_folder((self._folder / key).parent)
            elif create and self._bucket not in MANY_WRITERS:
                created = self._created_first(key, data)
                if created is not None:
                    return created
                create = self._bucket not in ONE_WRITER
            for left in reversed(range(tries)):
                try:
                    obstore.put(self._store, key, data, mode="create" if create else "overwrite")
                    break
                except AlreadyExistsError:
                    return False
                except (FileNotFoundError, GenericError):
                    if not left:
                        raise
            if self._folder is not None:
                # A local object shall outlive a power cut, and so shall its name; obstore has no option for it.
                _fsync(self._folder / key)
                _fsync_folder((self._folder / key).parent)
        return True

    def check_exclusive(self) -> None:
        """Raise StoreError where `put` cannot create: a local disk without hard links. Nothing stays written.

        A link is how a whole object gets a name that no other has, in one step; a renamed one would take the place of another's.
        """
        if self._folder is None:
            return
        above = next(path for path in (self._folder, *self._folder.parents) if path.is_dir())
        with self._explained("written"), tempfile.TemporaryDirectory(prefix=".hsk-", dir=above) as folder:
            whole = Path(folder, "object")
            whole.touch()
            try:
                os.link(whole, Path(folder, "name"))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                    raise
                raise StoreError(
                    f"{self.root}: this disk has no hard links ({error.strerror}), which keep one process from writing over"
                    " another's work; so it is with Google Drive, gcsfuse, exFAT and some network shares. Make the store on a"
                    " local disk and bring it here with hsk push, which needs no links; or name a bucket by its URL"
                    " (gs://..., s3://...)"
                ) from None

    def _created_first(self, key: str, data: bytes) -> bool | None:
        """`put` with `create` in a bucket where nothing was created yet, or where one process alone shall write; None: nothing
        was written, and nothing stands there.

        The server may know no conditional writes, or pass over the condition: the first object is created once more, with the
        same bytes, which must fail. Neither is tried again for minutes, as the client would.
        """
        if self.get(key) is not None:
            return False
        if self._bucket in ONE_WRITER:
            return None
        created, once = False, self._client({"max_retries": 0})
        try:
            obstore.put(once, key, data, mode="create")
            created = True
            obstore.put(once, key, data, mode="create")
            self._tell_one_writer("passes over conditional writes (If-None-Match)")
        except AlreadyExistsError:
            MANY_WRITERS.add(self._bucket)
        except BaseError as error:
            if not created and UNKNOWN.search(str(error)):
                self._tell_one_writer("knows no conditional writes (If-None-Match)")
        return created or None

    def _tell_one_writer(self, why: str) -> None:
        ONE_WRITER.add(self._bucket)
        log.warning(
            "%s: this server %s, which keep one process from writing over another's work: let one process alone write there",
            self._bucket,
            why,
        )

    def replace(self, key: str, over: bytes, data: bytes) -> bool:
        """Write one object in the place of one that still has the bytes `over`; False says that it has others, or is gone."""
        with self._explained(f"written ({key})"):
            self._check(key)
            try:
                if self._folder is not None:
                    with _held(self._folder / key) as standing:
                        return standing == over and self.put(key, data)
                found = obstore.get(self._store, key)
                version = {name: found.meta.get(name) for name in ("e_tag", "version") if found.meta.get(name) is not None}
                if bytes(found.bytes().to_bytes()) != over:
                    return False
                alone = self._bucket in ONE_WRITER
                obstore.put(self._store, key, data, mode="overwrite" if alone else cast("UpdateVersion", version))
            except (FileNotFoundError, PreconditionError):
                return False
        return True

    def put_all(self, objects: Mapping[str, bytes]) -> None:
        """Write several objects, in no order."""
        in_threads(PARALLEL, self.put, objects.keys(), objects.values())

    def get(self, key: str) -> bytes | None:
        """One object's bytes; None where there is none. Raises StoreError for one that no store can have."""
        if not self.exists():
            return None
        with self._explained(f"read ({key})"):
            self._check(key)
            try:
                found = obstore.get(self._store, key)
                if found.meta["size"] > most_bytes(key):
                    raise StoreError(f"{self.root}/{key} has {found.meta['size']} bytes; no store has such objects")
                return bytes(found.bytes().to_bytes())
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None

    def ranges(self, key: str, ranges: Sequence[range]) -> list[bytes]:
        """Some stretches of one object's bytes."""
        with self._explained(f"read ({key})"):
            self._check(key)
            # `obstore.get_ranges` joins what lies within a megabyte: of a shard with three layers all would travel for one.
            return fetch_ranges(
                ranges, lambda part: bytes(obstore.get_range(self._store, key, start=part.start, end=part.stop).to_bytes())
            )

    def delete(self, key: str) -> None:
        """Remove one object; it may be gone already."""
        with self._explained(f"changed ({key})"):
            self._check(key)
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                return
            if self._folder is not None:
                _fsync_folder((self._folder / key).parent)

    def sizes(self, prefix: str | None = None) -> dict[str, int]:
        """Every object below `prefix` with its size in bytes. Symbolic links are refused: they lead out of the store."""
        if not self.exists():
            return {}
        for path in self._files():
            if path.is_symlink():
                raise StoreError(f"{path} is a symbolic link; a store has none: copy the store instead of linking parts")
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

    def stranded(self) -> list[tuple[str, Path]]:
        """Temporary files that no listing shows, as killed writers leave them in a local folder, and the keys they were for."""
        found = [path for path in self._files() if STRANDED.search(path.name) and not path.is_dir()]
        return [(STRANDED.sub("", path.relative_to(self._folder).as_posix()), path) for path in found if self._folder]

    @cached_property
    def _store(self) -> ObjectStore:
        if self._folder is not None:
            return LocalStore(self._folder)
        return self._client(RETRY)

    def _client(self, retry: "RetryConfig") -> ObjectStore:
        """Of an object store."""
        # Every character of a path is the key's: what is not quoted here, a URL would end at (#, ?), or drop.
        path = self.root.removeprefix(self._bucket)
        return from_url(f"{self._bucket}{quote(path)}", client_options=CLIENT, retry_config=retry)

    @property
    def _bucket(self) -> str:
        """The scheme and bucket of a URL."""
        scheme, bucket, _ = URL.fullmatch(self.root).groups()  # type: ignore[union-attr]
        return f"{scheme}://{bucket}"

    def _files(self) -> Iterator[Path]:
        """Everything in a local folder; nothing elsewhere."""
        if self._folder is not None:
            for parent, folders, files in os.walk(self._folder):
                yield from (Path(parent, name) for name in (*folders, *files))

    def _check(self, key: str) -> None:
        """Refuse what would lead out of a local folder, or never end: a symbolic link on the way, a pipe, a device."""
        if self._folder is None:
            return
        path = self._folder
        for part in key.split("/"):
            path = path / part
            try:
                mode = path.lstat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                return
            if stat.S_ISLNK(mode):
                raise StoreError(f"{path} is a symbolic link; a store has none: copy the store instead of linking parts")
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise StoreError(f"{path} is no file; a store has files alone")

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            if "NoSuchBucket" in str(error):
                raise StoreError(f"{self.root}: there is no such bucket") from None
            if any(said in str(error) for said in ELSEWHERE):
                region = EXPECTED_REGION.search(str(error))
                asked = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1, the default"
                raise StoreError(
                    f"{self.root} could not be {verb}: the bucket lies in another region than {asked}: set AWS_REGION to"
                    f" {'that of the bucket' if region is None else region[1]}"
                ) from error
            if any(path in str(error) for path in INSTANCE_METADATA):
                raise StoreError(
                    f"{self.root} could not be {verb}: no credentials were found. Set them in the environment; for S3"
                    " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket"
                ) from error
            if "No space left" in str(error) or "Disk quota" in str(error):
                raise StoreError(
                    f"{self.root}: the disk is full. What was finished is kept: make room and run the same command again"
                ) from error
            raise StoreError(f"{self.root} could not be {verb}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """The first line of what went wrong, without the client's settings, and what an object store says of it in XML."""
    line = RETRY_SETTINGS.sub(" ", str(error).partition("\n")[0])
    if "error sending request" in line:
        line += ": the endpoint does not answer. Run the same command again when it does"
    said = SAID.search(str(error))
    return line if said is None else f"{line.partition('<?xml')[0].rstrip(': ')}: {said[1]}"


def fetch_ranges(ranges: Sequence[range], fetch: Callable[[range], bytes]) -> list[bytes]:
    """Stretches of one object's bytes, by a function that fetches one; those nearer than NEAR_BYTES are fetched as one."""
    merged: list[range] = []
    for part in sorted(ranges, key=lambda part: part.start):
        if merged and part.start <= merged[-1].stop + NEAR_BYTES:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, part.stop))
        else:
            merged.append(part)
    blobs = in_threads(PARALLEL, fetch, merged)
    found: list[bytes] = []
    for part in ranges:
        whole, blob = next(pair for pair in zip(merged, blobs, strict=True) if pair[0].start <= part.start < pair[0].stop)
        found.append(blob[part.start - whole.start : part.stop - whole.start])
    return found


def most_bytes(key: str) -> int:
    """The most that an object may have to be read."""
    return MAX_DOCUMENT_BYTES if key.endswith(".json") else MAX_OBJECT_BYTES


@contextmanager
def _held(path: Path) -> Iterator[bytes]:
    """The bytes of a file that nobody else who holds it replaces meanwhile. Raises FileNotFoundError where it was replaced."""
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise FileNotFoundError(path)
        yield file.read()


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, all of them durable."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.is_dir()]):
        missing.mkdir(exist_ok=True)
        _fsync_folder(missing.parent)


def _fsync_folder(path: Path) -> None:
    try:
        _fsync(path)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
