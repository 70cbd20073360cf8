"""Stores in a bucket: every command takes their URL, and a copy there is as good as one in a folder."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

import moto.settings
import numpy as np
import obstore
import pytest
from moto.moto_server.werkzeug_app import MotoRequestHandler

from hskstore.errors import StoreError
from hskstore.store import open_store
from hskstore.store.copy import copy_store
from hskstore.store.objects import Objects
from hskstore.store.verify import verify
from tests.conftest import hsk
from tests.store.conftest import flipped, tree

ALL, SMALL = "dall-lall-wall", "d1-l4-w0.25"
TRAIN = "train/hidden/values/c/1/0/0/0"


@pytest.fixture
def remote(stores: Path, bucket: str) -> str:
    """The store of less, pushed."""
    copy_store(str(stores / SMALL), f"{bucket}/stores/{SMALL}")
    return f"{bucket}/stores/{SMALL}"


def digest(store: Path | str) -> str:
    return open_store(store).digest


def test_pushed_and_pulled_it_is_the_same_to_the_byte(
    stores: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hsk("push", stores / SMALL, f"{bucket}/a/b", "--json") == 0
    pushed = json.loads(capsys.readouterr().out)
    assert pushed["digest"] == digest(stores / SMALL) == digest(f"{bucket}/a/b")
    assert pushed["sent"] == pushed["objects"] and pushed["root"] == f"{bucket}/a/b"
    assert hsk("pull", f"{bucket}/a/b", tmp_path / "back") == 0
    assert f"sealed, digest {pushed['digest']}" in capsys.readouterr().out
    assert tree(tmp_path / "back") == tree(stores / SMALL)
    assert hsk("push", stores / SMALL, f"{bucket}/a/b") == 0
    assert f"copied 0 of {pushed['objects']} objects" in capsys.readouterr().out


def test_a_store_may_be_a_whole_bucket(stores: Path, bucket: str, tmp_path: Path) -> None:
    assert hsk("push", stores / SMALL, bucket) == 0
    assert hsk("pull", bucket, tmp_path / "back") == 0
    assert tree(tmp_path / "back") == tree(stores / SMALL)


def test_an_object_in_a_bucket_is_replaced_only_while_it_is_what_it_was_found_to_be(bucket: str) -> None:
    objects = Objects(f"{bucket}/a")
    assert not objects.replace("b", b"torn", b"ours")
    assert objects.get("b") is None
    objects.put("b", b"torn")
    assert objects.replace("b", b"torn", b"ours")
    assert not objects.replace("b", b"torn", b"theirs")
    assert objects.get("b") == b"ours"


def test_an_object_that_changes_while_it_is_being_replaced_stays_as_it_then_is(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, put = Objects(f"{bucket}/a"), obstore.put
    objects.put("b", b"torn")

    def overtaken(store: Any, key: str, data: bytes, **options: Any) -> Any:
        put(store, key, b"theirs")
        return put(store, key, data, **options)

    monkeypatch.setattr(obstore, "put", overtaken)
    assert not objects.replace("b", b"torn", b"ours")
    assert objects.get("b") == b"theirs"


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_stopped_it_goes_on_with_what_is_missing(
    direction: str, stores: Path, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket's objects are believed once their unit has a receipt; a folder's are hashed, one by one."""
    monkeypatch.setattr("hskstore.store.copy.BATCH_BYTES", 1)
    source, target = (str(stores / SMALL), f"{remote}-two") if direction == "push" else (remote, str(tmp_path / "back"))
    put, puts = Objects.put, list[str]()

    def stopping(self: Objects, key: str, data: bytes, **options: Any) -> bool:
        if key.startswith("train/logits/c/1"):
            raise KeyboardInterrupt
        puts.append(key)
        return put(self, key, data, **options)

    monkeypatch.setattr(Objects, "put", stopping)
    with pytest.raises(KeyboardInterrupt):
        copy_store(source, target)
    monkeypatch.setattr(Objects, "put", put)
    with pytest.raises(StoreError, match="is not sealed: 1 of 3 units"):
        open_store(target)
    sealed = set(open_store(source).manifest.objects)
    unit = {key for key in sealed if key.startswith("train/") and "/c/1" in key}
    made = copy_store(source, target)
    missing = sealed - set(puts)
    assert unit - missing, "some of the unit had arrived"
    assert made.sent == len(missing | unit if direction == "push" else missing)
    assert digest(target) == made.digest == digest(stores / SMALL)


def test_a_smaller_keep_is_pulled_by_its_layers_alone(
    stores: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_store(str(stores / ALL), f"{bucket}/{ALL}")
    get, ranges = Objects.get, Objects.ranges
    fetched = dict[str, int]()

    def note(self: Objects, key: str, found: list[bytes]) -> None:
        if not self.local:
            fetched[key] = fetched.get(key, 0) + sum(map(len, found))

    def noting_get(self: Objects, key: str) -> bytes | None:
        found = get(self, key)
        note(self, key, [found or b""])
        return found

    def noting_ranges(self: Objects, key: str, wanted: Sequence[range]) -> list[bytes]:
        found = ranges(self, key, wanted)
        note(self, key, found)
        return found

    monkeypatch.setattr(Objects, "get", noting_get)
    monkeypatch.setattr(Objects, "ranges", noting_ranges)
    assert hsk("pull", f"{bucket}/{ALL}", tmp_path / "small", "--keep", "1,4,0.25") == 0
    assert digest(tmp_path / "small") == digest(stores / SMALL)
    sizes = open_store(stores / ALL).sizes()
    values = [key for key in sizes if key.startswith("train/hidden/values/c/")]
    assert len(values) == 2 and all(0 < fetched[key] < 0.5 * sizes[key] for key in values), "one layer of three"


def test_what_lies_between_the_layers_does_not_travel(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted on the wire: three layers whose chunks of 300 kB alternate, as in a shard of the usual size."""
    data = np.random.default_rng(0).bytes(12 * 300_000)
    Objects(bucket).put("shard", data)
    send, sent = MotoRequestHandler.send_header, list[int]()

    def noting(self: MotoRequestHandler, name: str, value: str) -> None:
        if name.lower() == "content-length":
            sent.append(int(value))
        send(self, name, value)

    monkeypatch.setattr(MotoRequestHandler, "send_header", noting)
    layer = [range(start, start + 300_000) for start in range(300_000, len(data), 900_000)]
    assert Objects(bucket).ranges("shard", layer) == [data[part.start : part.stop] for part in layer]
    assert sent == [300_000] * 4
    near = [range(7), range(100, 200), range(150, 1_000)]
    assert Objects(bucket).ranges("shard", near) == [data[part.start : part.stop] for part in near]
    assert sent[4:] == [1_000], "what is near comes in one request"


def test_show_verify_and_eval_take_urls(
    remote: str, stores: Path, teacher_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hsk("show", remote) == 0
    assert "sealed" in capsys.readouterr().out
    assert hsk("show", remote, "--row", 3, "--json") == 0
    assert json.loads(capsys.readouterr().out)["tokens"][0] == "[CLS]"
    assert hsk("verify", remote, "--deep") == 0
    assert f"digest {digest(stores / SMALL)}" in capsys.readouterr().out
    assert hsk("verify", remote, "--replay", 16, "--teacher", teacher_folder) == 0
    assert "equal to the last bit" in capsys.readouterr().out
    assert hsk("eval", teacher_folder, remote, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 60


def test_a_store_is_derived_from_bucket_to_bucket(stores: Path, bucket: str) -> None:
    copy_store(str(stores / ALL), f"{bucket}/{ALL}")
    assert hsk("derive", f"{bucket}/{ALL}", "--keep", "1,4,0.25", "--out", f"{bucket}/small") == 0
    assert digest(f"{bucket}/small") == digest(stores / SMALL)
    assert not verify(f"{bucket}/small", deep=True).problems


def test_a_student_learns_from_a_bucket_what_it_learns_from_a_folder(
    remote: str, stores: Path, student_folder: str, tmp_path: Path
) -> None:
    words = ["--student", student_folder, "--max-steps", 4]
    assert hsk("distill", remote, *words, "--out", tmp_path / "remote") == 0
    assert hsk("distill", stores / SMALL, *words, "--out", tmp_path / "local") == 0
    assert (tmp_path / "remote/model.safetensors").read_bytes() == (tmp_path / "local/model.safetensors").read_bytes()


def test_an_extraction_writes_to_a_bucket_and_goes_on_there(
    stores: Path, bucket: str, teacher_folder: str, data_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["extract", teacher_folder, data_folder, "--task", "sst2", "--student-layers", 2, "--keep", "1,4,0.25"]
    assert hsk(*words, "--out", f"{bucket}/x") == 0
    assert digest(f"{bucket}/x/{SMALL}") == digest(stores / SMALL)
    Objects(f"{bucket}/x/{SMALL}").delete("units/train-000001.json")
    Objects(f"{bucket}/x/{SMALL}").delete("manifest.json")
    assert hsk("show", f"{bucket}/x/{SMALL}") == 0
    assert "not sealed; 2 of 3 units done" in capsys.readouterr().out
    assert hsk(*words, "--out", f"{bucket}/x") == 0
    assert digest(f"{bucket}/x/{SMALL}") == digest(stores / SMALL)
    assert hsk("show", f"{bucket}/x") == 2
    assert f"it holds the stores {SMALL}: name one of them" in capsys.readouterr().err


@pytest.mark.parametrize("key", [TRAIN, "tokenizer/tokenizer.json", "units/train-000000.json"])
def test_a_bit_that_flips_in_a_bucket_is_found_condemned_and_repaired_by_a_push(
    key: str, stores: Path, remote: str, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = Objects(remote)
    objects.put(key, flipped(objects.get(key) or b"", 8 * 40))
    assert hsk("verify", remote, "--deep", "--condemn") == 2
    assert key in capsys.readouterr().out and objects.get("manifest.json") is None
    assert hsk("push", stores / SMALL, remote) == 0
    assert not verify(remote, deep=True).problems and digest(remote) == digest(stores / SMALL)
    assert objects.get("condemned.json") is None


def test_a_shard_that_flipped_in_a_bucket_is_never_read(remote: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = Objects(remote)
    objects.put(TRAIN, flipped(objects.get(TRAIN) or b"", 8 * 40))
    assert hsk("pull", remote, tmp_path / "back") == 2
    assert f"{TRAIN} is damaged" in capsys.readouterr().err
    assert not (tmp_path / "back" / "manifest.json").exists() and not (tmp_path / "back" / TRAIN).exists()


def test_another_store_in_the_bucket_is_refused_and_left_alone(
    stores: Path, remote: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hsk("push", stores / ALL, remote) == 2
    assert "holds another sealed store" in capsys.readouterr().err
    assert not verify(remote, deep=True).problems and digest(remote) == digest(stores / SMALL)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hskstore.store.objects.RETRY", {"max_retries": 1, "retry_timeout": timedelta(seconds=1)})


COMMANDS = [["push", "{store}", "{url}"], ["pull", "{url}", "{new}"], ["show", "{url}"], ["verify", "{url}"]]


@pytest.mark.parametrize("words", COMMANDS, ids=[words[0] for words in COMMANDS])
@pytest.mark.parametrize("wrong", ["bucket", "key", "no key", "endpoint"])
def test_what_cannot_be_reached_is_one_message_and_exit_code_2(
    wrong: str,
    words: list[str],
    stores: Path,
    bucket: str,
    impatient: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = "s3://no-such-bucket/a" if wrong == "bucket" else f"{bucket}/a"
    if wrong == "key":
        monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    if wrong == "endpoint":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    if wrong == "no key":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    assert hsk(*(word.format(store=stores / SMALL, url=url, new=tmp_path / "new") for word in words)) == 2
    err = capsys.readouterr().err
    said = {
        "bucket": f"hsk: {url}: there is no such bucket\n",
        "key": "403 Forbidden: The AWS Access Key Id you provided does not exist in our records.\n",
        "no key": "no credentials were found",
        "endpoint": "error sending request",
    }
    assert said[wrong] in err and err.startswith(f"hsk: {url}") and err.count("\n") == 1
    assert not (tmp_path / "new").exists()


# --- odd servers


class OddServer(BaseHTTPRequestHandler):
    """Hands requests on to the server behind it: without their conditions, or it refuses those that have any, or all."""

    protocol_version = "HTTP/1.1"
    behind: str
    kind: str

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        conditional = any(name.lower().startswith("if-") for name in self.headers)
        if self.kind == "elsewhere":
            return self.answer(301, error("PermanentRedirect", "It must be addressed using the specified endpoint."))
        if self.kind == "malformed":
            said = "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-west-1'"
            return self.answer(400, error("AuthorizationHeaderMalformed", said))
        if self.kind == "knows none" and conditional:
            return self.answer(501, error("NotImplemented", "A header you provided implies what is not implemented."))
        server = http.client.HTTPConnection(self.behind.removeprefix("http://"))
        kept = {name: value for name, value in self.headers.items() if not name.lower().startswith("if-")}
        server.request(self.command, self.path, body, kept)
        found = server.getresponse()
        return self.answer(found.status, found.read(), dict(found.headers))

    do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = handle_any

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def error(code: str, message: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


@pytest.fixture
def odd(bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """The URL of an empty bucket behind a server of an odd kind."""
    servers = []

    def start(kind: str) -> str:
        handler = type("Handler", (OddServer,), {"behind": s3_endpoint, "kind": kind})
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{servers[-1].server_address[1]}")
        return bucket

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("kind", "said"), [("knows none", "knows no"), ("passes over", "passes over")])
def test_a_server_without_conditional_writes_is_told_of_once_and_serves_one_writer(
    kind: str, said: str, odd: Callable[[str], str], stores: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote = f"{odd(kind)}/store"
    copy_store(str(stores / SMALL), remote)
    copy_store(remote, str(tmp_path / "back"))
    assert tree(tmp_path / "back") == tree(stores / SMALL)
    objects = Objects(remote)
    assert not objects.put("plan.json", b"another", create=True) and objects.get("plan.json") != b"another"
    assert objects.put("new", b"one", create=True) and not objects.replace("new", b"two", b"three")
    assert objects.replace("new", b"one", b"two") and objects.get("new") == b"two"
    (told,) = [record.getMessage() for record in caplog.records if "conditional writes" in record.getMessage()]
    assert f"this server {said} conditional writes" in told and "let one process alone write there" in told


def test_of_a_server_with_conditional_writes_nothing_is_told(bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    assert [Objects(f"{bucket}/a").put(key, b"one", create=True) for key in ("b", "b", "c")] == [True, False, True]
    assert not caplog.records


@pytest.mark.parametrize(("kind", "region"), [("elsewhere", "that of the bucket"), ("malformed", "eu-west-1")])
def test_a_bucket_in_another_region_is_said_to_be_there(
    kind: str, region: str, odd: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    remote = f"{odd(kind)}/store"
    assert hsk("show", remote) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"the bucket lies in another region than us-east-1: set AWS_REGION to {region}" in said
