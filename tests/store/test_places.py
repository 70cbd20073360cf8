"""Two names are two places, whatever characters they have; and a place that cannot keep writers apart is refused at once."""

import errno
import os
from pathlib import Path
from typing import Any

import obstore
import pytest

from hskstore.errors import StoreError
from hskstore.stage_one.extract import extract
from hskstore.store.commit import begin
from hskstore.store.copy import copy_store
from hskstore.store.objects import Objects
from hskstore.store.places import is_store, place_of
from hskstore.store.verify import verify
from tests.store.conftest import FILES, make_plan

NAMES = [
    "run #1",
    "run #2",
    "run ",
    "run",
    "what?x=1",
    "what",
    "100%",
    "é ü",
    "日本",
    " a b ",
    "a+b&c=d",
    "[x]*{y}~'\"<>^`|",
    "a\\b",
    "#/?/%",
    "v#7",
]


def test_names_in_a_bucket_are_keys_as_they_are_written_and_never_meet(bucket: str) -> None:
    import boto3

    for name in NAMES:
        assert Objects(f"{bucket}/{name}").put("d/k.json", name.encode(), create=True), name
    found = boto3.client("s3", region_name="us-east-1").list_objects_v2(Bucket=bucket.removeprefix("s3://"))["Contents"]
    assert {each["Key"] for each in found} == {f"{name}/d/k.json" for name in NAMES}
    for name in NAMES:
        objects = Objects(f"{bucket}/{name}/")
        assert objects.get("d/k.json") == name.encode() and not objects.put("d/k.json", b"", create=True)
        assert objects.sizes("d") == {"d/k.json": len(name.encode())} and objects.folders() == ["d"]
        assert objects.replace("d/k.json", name.encode(), b"new") and objects.ranges("d/k.json", [range(1, 3)]) == [b"ew"]


@pytest.mark.parametrize("name", [*NAMES, "a%20b", "x/s3://b", "up/../run", "double//slash", "n\nl"])
def test_a_folder_may_be_called_anything(sealed: Path, name: str, tmp_path: Path) -> None:
    place = f"{tmp_path}/{name}"
    assert copy_store(str(sealed), place).digest == verify(place, deep=True).digest
    assert Path(place, "manifest.json").is_file() and is_store(place)


URLS = {
    "{}://bucket/a%20b": "percent-encoded",
    "{}://bucket/a%2F..": "percent-encoded",
    "{}://bucket/a/../b": "no \\.\\.",
    "{}://bucket/./b": "no \\.",
    "{}://bucket/..": "no \\.\\.",
    "{}://bucket/a//b": "empty parts",
    "{}://bucket/a\nb": "printed",
    "{}://bucket/a\tb": "printed",
    "{}://bucket#1/b": "no bucket",
    "{}://bucket?x/b": "no bucket",
    "{}://buck et/b": "no bucket",
    "{}://büro/b": "no bucket",
    "{}://": "name a bucket",
    "{}:///b": "name a bucket",
}


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "s3a", "abfss"])
@pytest.mark.parametrize("url", URLS)
def test_a_url_that_could_be_two_places_or_none_is_refused(url: str, scheme: str) -> None:
    with pytest.raises(StoreError, match=URLS[url]):
        Objects(url.format(scheme))


@pytest.mark.parametrize(
    "url",
    ["hf://datasets/me/store/a%20b", "hf://datasets/me/store/a//b", "hf://datasets/me/store/../b", "hf://datasets/m/s/a\nb"],
)
def test_so_is_one_of_the_hub(url: str) -> None:
    with pytest.raises(StoreError):
        place_of(url)


@pytest.mark.parametrize("url", ["https://host/a?sig=1", "http://host/a#b", "file://host/a", "file:///a%20b", "file:///a#1"])
def test_and_one_that_says_more_than_is_read_of_it(url: str) -> None:
    with pytest.raises(StoreError):
        place_of(url)


def test_a_file_url_is_the_folder_that_it_names(tmp_path: Path) -> None:
    Objects(f"file://{tmp_path}/a b").put("k", b"1")
    assert (tmp_path / "a b" / "k").read_bytes() == b"1"


@pytest.mark.parametrize("out", ["{}/", "{}"])
def test_stores_lie_below_a_bucket_named_with_or_without_a_slash_behind(
    out: str, bucket: str, teacher_folder: str, data_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Planned(Exception):
        pass

    def stop(stores: Any) -> None:
        raise Planned([store.objects.root for store in stores])

    from hskstore.config import Keep, Strategy

    with pytest.raises(Planned, match=f"{bucket}/d1-l4-w0.25'"):
        extract(
            teacher_folder,
            data_folder,
            out=out.format(bucket),
            keeps=[Keep(1, 4, 0.25)],
            strategies=[Strategy(2)],
            task="sst2",
            on_plan=stop,
        )


NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EACCES, errno.EMLINK)


def refuse_links(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As a disk without hard links: neither here nor in obstore, which links what it creates."""
    put = obstore.put

    def link(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    def put_unless_created(store: Any, key: str, data: bytes, *, mode: Any = "overwrite") -> Any:
        assert mode == "overwrite", "no link is tried once it is known that there are none"
        return put(store, key, data, mode=mode)

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(obstore, "put", put_unless_created)


@pytest.mark.parametrize("number", NO_LINKS)
@pytest.mark.parametrize("inside", [".", "new/folder"])
def test_a_disk_without_hard_links_is_refused_before_anything_is_written(
    number: int, inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_links(monkeypatch, number)
    with pytest.raises(StoreError, match=r"no hard links \(.*hsk push"):
        begin(Objects(tmp_path / inside), make_plan(), FILES)
    assert list(tmp_path.iterdir()) == []


def test_and_before_the_teacher_runs(
    teacher_folder: str, data_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hskstore.config import Keep, Strategy

    refuse_links(monkeypatch, errno.EPERM)
    monkeypatch.setattr("hskstore.stage_one.extract._run", lambda *_: pytest.fail("the teacher ran"))
    with pytest.raises(StoreError, match="no hard links"):
        extract(
            teacher_folder,
            data_folder,
            out=tmp_path / "out",
            keeps=[Keep(1, 4, 0.25)],
            strategies=[Strategy(2)],
            task="sst2",
        )
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_brought_to_such_a_disk_as_the_message_says(
    sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_links(monkeypatch, errno.EPERM)
    copied = copy_store(str(sealed), str(tmp_path / "copy"))
    assert verify(str(tmp_path / "copy"), deep=True).digest == copied.digest


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_not_taken_for_one_without_links(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_links(monkeypatch, number)
    with pytest.raises(StoreError, match="the disk is full"):
        begin(Objects(tmp_path / "store"), make_plan(), FILES)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_disk_that_keeps_no_folders_to_flush_is_written_all_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def fsync(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112
            raise OSError(number, os.strerror(number))
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    objects = Objects(tmp_path / "a" / "b")
    assert objects.put("c/d", b"1", create=True) and objects.get("c/d") == b"1"
    objects.delete("c/d")
    assert objects.sizes() == {}
