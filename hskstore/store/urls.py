"""URLs of places in object stores: a scheme, a bucket and a key, and which of them could be read in two ways."""

import re

from hskstore.errors import StoreError

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)(.*)", re.DOTALL)
"""A scheme, the bucket, and what lies in it; a path that merely has :// somewhere is none."""

BUCKET = re.compile(r"[A-Za-z0-9._~@:\[\]-]*")


def check_url(root: str) -> None:
    """Raise StoreError for a URL that could be read in two ways, or names no place. Of a local path every character is its own.

    What stands behind the bucket is a key as it is, with its blanks, # and ?.
    """
    url = URL.fullmatch(root)
    if url is None:
        return
    scheme, bucket, path = url.groups()
    parts = path.strip("/").split("/") if path.strip("/") else []
    wrong = None
    if scheme == "file":
        if bucket or "%" in path or "?" in path or "#" in path:
            wrong = "give the folder itself, without file://"
    elif not BUCKET.fullmatch(bucket) or (not bucket and scheme != "memory"):
        wrong = f"{bucket!r} can be no bucket" if bucket else "name a bucket behind ://"
    elif "" in parts or {".", ".."} & set(parts):
        wrong = "a place in a bucket has no empty parts, no . and no .. between its slashes"
    elif not path.isprintable():
        wrong = f"it has a character that cannot be printed, {path!a}"
    elif re.search("%[0-9A-Fa-f]{2}", path):
        wrong = "it looks percent-encoded, which would name another place: write blanks and all others as they are"
    elif scheme in ("http", "https") and ("?" in path or "#" in path):
        wrong = "of a web address nothing behind ? or # is read: give it without them"
    if wrong is not None:
        raise StoreError(f"{root}: {wrong}")
