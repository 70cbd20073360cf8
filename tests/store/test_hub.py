"""Stores on the Hugging Face hub, as `hsk` sees it: a server on the loopback speaks the parts of its API that are called."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from hskstore.errors import StoreError
from hskstore.store import open_store
from hskstore.store.hub import Repository
from tests.conftest import hsk as hsk_offline
from tests.store.conftest import flipped, tree

ALL, SMALL = "dall-lall-wall", "d1-l4-w0.25"
TRAIN = "train/hidden/values/c/1/0/0/0"
STORE = "hf://datasets/me/store"
TOKEN = "hf_of_the_tests"
PAGE = 20
"""Entries of a page of a listing."""


@dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)
    """The paths that each commit touched."""


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    authorised: bool
    status: int = 0
    sent: int = 0


@dataclass
class Hub:
    """What the server holds, what it was asked, and the faults it is to have: each is tried on every request."""

    endpoint: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: list[Callable[[Request], int | str | None]] = field(default_factory=list)
    """A status to answer with; "drop" to break off in the middle of the body; "whole" to know of no ranges."""

    elsewhere: str = ""
    """The endpoint of a second server."""

    cdn: str | None = None
    """Where objects are redirected to, if they are."""

    @property
    def store(self) -> Repo:
        return self.repos["me/store"]

    def fault(self, request: Request) -> int | str | None:
        return next((found for fault in self.faults if (found := fault(request)) is not None), None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def is_cdn(self) -> bool:
        return self.hub.cdn == f"http://{self.headers['Host']}"

    def answer(self, status: int, body: object = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.request_.status, self.request_.sent = status, len(data)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.fault == "drop":
            data = data[: len(data) // 2]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, code: str) -> None:
        self.answer(404, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def do_GET(self) -> None:
        self.handle_one()

    def do_HEAD(self) -> None:
        self.handle_one()

    def do_POST(self) -> None:
        self.handle_one()

    def handle_one(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.request_ = Request(
            self.command, path, self.headers.get("Range"), self.headers.get("Authorization") == f"Bearer {TOKEN}"
        )
        self.hub.requests.append(self.request_)
        self.fault = self.hub.fault(self.request_)
        if isinstance(self.fault, int):
            self.answer(self.fault, {"error": "the hub has hiccups"})
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif match := re.fullmatch(r"/(?:api/)?datasets/([^/]+/[^/]+)(?:/(\w+)/main(?:/(.*))?)?", path):
            name, action, rest = match.groups()
            repo = self.hub.repos.get(name)
            if repo is None or (
                repo.private and not self.request_.authorised and self.hub.cdn != f"http://{self.headers['Host']}"
            ):
                self.refuse("RepoNotFound")
            elif action in (None, "revision"):
                self.answer(200, {"id": name, "sha": "0" * 40})
            elif action == "preupload":
                self.preupload(repo, json.loads(body))
            elif action == "commit":
                self.commit(repo, name, body)
            elif action == "tree":
                self.tree(repo, (rest or "").rstrip("/"), query)
            elif action == "resolve":
                self.resolve(repo, rest)
            else:
                self.answer(404)
        else:
            self.answer(404)

    def create(self, wanted: dict[str, Any]) -> None:
        assert wanted["type"] == "dataset"
        name = f"{wanted['organization']}/{wanted['name']}"
        if not self.request_.authorised:
            self.answer(401, {"error": "Invalid username or password."})
            return
        exists = name in self.hub.repos
        if not exists:
            self.hub.repos[name] = Repo(wanted.get("visibility") == "private", {".gitattributes": b"*.bin filter=lfs\n"})
        self.answer(409 if exists else 200, {"url": f"{self.hub.endpoint}/datasets/{name}", "name": name})

    def preupload(self, repo: Repo, wanted: dict[str, Any]) -> None:
        found = [
            {
                "path": file["path"],
                "uploadMode": "regular",
                "shouldIgnore": False,
                "oid": git_oid(repo.files[file["path"]]) if file["path"] in repo.files else None,
            }
            for file in wanted["files"]
        ]
        self.answer(200, {"files": found})

    def commit(self, repo: Repo, name: str, body: bytes) -> None:
        header, *operations = [json.loads(line) for line in body.splitlines()]
        assert header["key"] == "header" and header["value"]["summary"].startswith("hsk: ")
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "deletedFile":
                del repo.files[value["path"]]
            else:
                assert (operation["key"], value["encoding"]) == ("file", "base64")
                repo.files[value["path"]] = base64.b64decode(value["content"])
        repo.commits.append([operation["value"]["path"] for operation in operations])
        oid = f"{len(repo.commits):040x}"
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/datasets/{name}/commit/{oid}"})

    def tree(self, repo: Repo, folder: str, query: dict[str, list[str]]) -> None:
        assert query["recursive"] == ["true"]
        inside = sorted(path for path in repo.files if not folder or path.startswith(folder + "/"))
        if not inside:
            self.refuse("EntryNotFound")
            return
        folders = sorted({path.rpartition("/")[0] for path in inside} - {""})
        entries = [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]
        entries += [
            {"type": "file", "path": path, "oid": git_oid(repo.files[path]), "size": len(repo.files[path])} for path in inside
        ]
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE < len(entries):
            here = f"{self.hub.endpoint}{urlsplit(self.path).path}"
            headers["Link"] = f'<{here}?recursive=true&expand=false&cursor={start + PAGE}>; rel="next"'
        self.answer(200, entries[start : start + PAGE], **headers)

    def resolve(self, repo: Repo, path: str) -> None:
        data = repo.files.get(path)
        if data is None:
            self.refuse("EntryNotFound")
        elif self.hub.cdn is not None and not self.is_cdn:
            self.answer(302, Location=f"{self.hub.cdn}{self.path}")
        elif self.request_.range is None or self.fault == "whole":
            self.answer(200, data, ETag=f'"{git_oid(data)}"', X_Repo_Commit="0" * 40)
        else:
            first, last = map(int, self.request_.range.removeprefix("bytes=").split("-"))
            self.answer(206, data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(data)}")


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    found = Hub()
    handler = type("HubHandler", (Handler,), {"hub": found})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    found.endpoint, found.elsewhere = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    yield found
    for server in servers:
        server.shutdown()
        server.server_close()


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Hsk = Callable[..., Ran]
CODE = """
import time
from hskstore.cli import main
from hskstore.store import copy
copy.BATCH_BYTES = 1
time.sleep = lambda seconds: None
main()
"""
"""hsk, but every unit is a commit of its own, and nothing waits before it tries again."""


@pytest.fixture
def hsk(hub: Hub, tmp_path: Path) -> Hsk:
    """Run a command as a process of its own, for which the hub is our server."""

    def run(*words: object, token: str | None = TOKEN) -> Ran:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), "NO_COLOR": "1"}
        if token is not None:
            environment["HF_TOKEN"] = token
        command = [sys.executable, "-c", CODE, *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert "Traceback" not in done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


def upload(hub: Hub, folder: Path, inside: str = "") -> None:
    """Lay a store into the repository without `hsk`."""
    repo = hub.repos.setdefault("me/store", Repo(private=True))
    repo.files |= {f"{inside}{path}": data for path, data in tree(folder).items()}


def digest(store: Path) -> str:
    return open_store(store).digest


def test_pushed_and_pulled_it_is_the_same_to_the_byte(hub: Hub, hsk: Hsk, stores: Path, tmp_path: Path) -> None:
    pushed = hsk("push", stores / SMALL, STORE, "--json")
    assert pushed.code == 0, pushed.err
    assert pushed.json["digest"] == digest(stores / SMALL) and pushed.json["sent"] == pushed.json["objects"]
    assert hub.store.private
    assert hub.store.commits[0] == ["plan.json"] and hub.store.commits[-1] == ["manifest.json"]
    assert pushed_files(hub) == tree(stores / SMALL)
    pulled = hsk("pull", STORE, tmp_path / "back")
    assert pulled.code == 0 and f"digest {digest(stores / SMALL)}" in pulled.out
    assert tree(tmp_path / "back") == tree(stores / SMALL)
    commits = len(hub.store.commits)
    again = hsk("push", stores / SMALL, STORE)
    assert again.code == 0 and f"copied 0 of {pushed.json['objects']} objects" in again.out
    assert len(hub.store.commits) == commits


def test_a_repository_may_hold_several_stores_in_folders(hub: Hub, hsk: Hsk, stores: Path, tmp_path: Path) -> None:
    assert hsk("push", stores / SMALL, f"{STORE}/one").code == 0
    upload(hub, stores / ALL, "two/")
    shown = hsk("show", STORE)
    assert shown.code == 2 and "it holds the stores one, two: name one of them" in shown.err
    assert hsk("pull", f"{STORE}/one", tmp_path / "back").code == 0
    assert tree(tmp_path / "back") == tree(stores / SMALL)


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(hub: Hub, hsk: Hsk, stores: Path, tmp_path: Path) -> None:
    upload(hub, stores / SMALL)
    hub.cdn = hub.elsewhere
    assert hsk("pull", STORE, tmp_path / "back").code == 0
    assert tree(tmp_path / "back") == tree(stores / SMALL)
    fetched = [request for request in hub.requests if request.status == 200 and "/resolve/" in request.path]
    redirected = [request for request in hub.requests if request.status == 302]
    assert len(fetched) == len(redirected) >= len(tree(stores / SMALL))
    assert all(request.authorised for request in redirected) and not any(request.authorised for request in fetched)


@pytest.mark.parametrize("fails", [0, 3, 10])
def test_stopped_it_goes_on_with_what_is_missing(fails: int, hub: Hub, hsk: Hsk, stores: Path) -> None:
    """The plan and what it decides are commits 0 and 1; then a unit's objects are one commit, its receipt the next."""

    def refuse(request: Request) -> int | None:
        return 403 if "/commit/" in request.path and len(hub.store.commits) == fails else None

    hub.faults = [refuse]
    stopped = hsk("push", stores / SMALL, STORE)
    assert stopped.code == 2 and stopped.err.count("\n") == 1 and "could not be written: 403 Forbidden" in stopped.err
    assert "manifest.json" not in hub.store.files and len(hub.store.commits) == fails
    hub.faults = []
    before = set(hub.store.files)
    done = hsk("push", stores / SMALL, STORE, "--json")
    missing = [key for key in open_store(stores / SMALL).manifest.objects if not {key, receipt_of(key)} <= before]
    assert done.json["sent"] == len(missing)
    assert pushed_files(hub) == tree(stores / SMALL)


def receipt_of(key: str) -> str:
    """The receipt without which an object is sent again; what the plan decides has none and needs none."""
    if key == "plan.json" or key.endswith("zarr.json"):
        return key
    split, _, rest = key.partition("/")
    return (
        f"units/{split}-{int(rest.partition('c/')[2].partition('/')[0]):06d}.json" if "/c/" in key else "units/files-000000.json"
    )


def pushed_files(hub: Hub) -> dict[str, bytes]:
    return {path: data for path, data in hub.store.files.items() if path != ".gitattributes"}


def test_of_a_smaller_keep_its_layers_alone_travel(hub: Hub, hsk: Hsk, stores: Path, tmp_path: Path) -> None:
    upload(hub, stores / ALL)
    pulled = hsk("pull", STORE, tmp_path / "small", "--keep", "1,4,0.25")
    assert pulled.code == 0, pulled.err
    assert digest(tmp_path / "small") == digest(stores / SMALL)
    sizes = open_store(stores / ALL).sizes()
    values = [key for key in sizes if key.startswith("train/hidden/values/c/")]
    for key in values:
        asked = [request for request in hub.requests if request.path.endswith(f"/resolve/main/{key}")]
        assert asked and all(request.status == 206 for request in asked)
        assert sum(request.sent for request in asked) < 0.5 * sizes[key], "one layer of three"


def test_show_and_verify_take_the_hubs_urls(hub: Hub, hsk: Hsk, stores: Path) -> None:
    upload(hub, stores / SMALL)
    shown = hsk("show", STORE)
    assert shown.code == 0 and "sealed" in shown.out and digest(stores / SMALL)[:16] in shown.out
    verified = hsk("verify", STORE, "--deep")
    assert verified.code == 0 and f"digest {digest(stores / SMALL)}" in verified.out
    assert not hub.store.commits


def test_what_is_damaged_or_gone_is_condemned_and_repaired_by_a_push(hub: Hub, hsk: Hsk, stores: Path) -> None:
    upload(hub, stores / SMALL)
    hub.store.files[TRAIN] = flipped(hub.store.files[TRAIN], 8 * 40)
    for gone in ("units/validation-000000.json", "tokenizer/tokenizer.json", "train/logits/zarr.json"):
        del hub.store.files[gone]
    found = hsk("verify", STORE, "--deep", "--condemn")
    assert found.code == 2 and TRAIN in found.out, found.err
    assert "manifest.json" not in hub.store.files and "condemned.json" in hub.store.files
    assert hsk("push", stores / SMALL, STORE).code == 0
    assert pushed_files(hub) == tree(stores / SMALL)


def test_another_store_in_the_repository_is_refused_and_left_alone(hub: Hub, hsk: Hsk, stores: Path) -> None:
    upload(hub, stores / SMALL)
    before = dict(hub.store.files)
    refused = hsk("push", stores / ALL, STORE)
    assert refused.code == 2 and "holds another sealed store" in refused.err
    assert hub.store.files == before and not hub.store.commits


MISSING = "hf://datasets/me/nothing"


@pytest.mark.parametrize(
    ("words", "url", "token"),
    [
        (["show"], MISSING, TOKEN),
        (["pull", "{new}", "--keep", "1,1,1"], MISSING, TOKEN),
        (["pull", "{new}"], STORE, None),
    ],
)
def test_a_repository_that_is_not_there_or_not_seen_is_one_message_and_exit_code_2(
    words: list[str], url: str, token: str | None, hub: Hub, hsk: Hsk, stores: Path, tmp_path: Path
) -> None:
    upload(hub, stores / SMALL)
    ran = hsk(words[0], url, *(word.format(new=tmp_path / "new") for word in words[1:]), token=token)
    assert ran.code == 2
    assert ran.err == f"hsk: {url} is not a store: there is no such repository, or your token does not see it\n"
    assert not (tmp_path / "new").exists()


def test_a_push_without_a_token_is_one_message_and_exit_code_2(hub: Hub, hsk: Hsk, stores: Path) -> None:
    ran = hsk("push", stores / SMALL, STORE, token=None)
    assert ran.code == 2 and ran.err.startswith(f"hsk: {STORE} could not be written: ") and ran.err.count("\n") == 1
    assert "401" in ran.err and "Set HF_TOKEN" in ran.err and not hub.repos


def now_and_then(answer: int | str, where: str, every: int) -> Callable[[Request], int | str | None]:
    """Every so many requests of one kind get a fault, the first of them too."""
    asked = 0

    def fault(request: Request) -> int | str | None:
        nonlocal asked
        if where not in request.path:
            return None
        asked += 1
        return answer if asked % every == 1 else None

    return fault


@pytest.mark.parametrize("answer", [503, "drop"])
def test_what_fails_now_and_then_is_asked_again(answer: int | str, hub: Hub, hsk: Hsk, stores: Path, tmp_path: Path) -> None:
    upload(hub, stores / SMALL)
    hub.faults = [now_and_then(answer, "/resolve/", 7), now_and_then(503, "/tree/", 3)]
    pulled = hsk("pull", STORE, tmp_path / "back")
    assert pulled.code == 0, pulled.err
    assert tree(tmp_path / "back") == tree(stores / SMALL)


def test_a_commit_that_fails_now_and_then_is_sent_again(hub: Hub, hsk: Hsk, stores: Path) -> None:
    hub.faults = [now_and_then(503, "/commit/", 3), now_and_then(503, "/preupload/", 4)]
    pushed = hsk("push", stores / SMALL, STORE)
    assert pushed.code == 0, pushed.err
    assert pushed_files(hub) == tree(stores / SMALL)


def test_what_keeps_failing_is_one_message_and_exit_code_2(hub: Hub, hsk: Hsk, stores: Path, tmp_path: Path) -> None:
    upload(hub, stores / SMALL)
    hub.faults = [lambda request: "drop" if request.path.endswith(TRAIN) else None]
    ran = hsk("pull", STORE, tmp_path / "back")
    assert ran.code == 2 and f"hsk: {STORE} could not be read ({TRAIN}): peer closed connection" in ran.err
    assert not (tmp_path / "back" / "manifest.json").exists()


def test_a_server_that_sends_more_than_was_asked_for_is_not_believed(hub: Hub, hsk: Hsk, stores: Path, tmp_path: Path) -> None:
    """Such as one that knows no ranges."""
    upload(hub, stores / ALL)
    hub.faults = [lambda request: "whole" if request.range is not None else None]
    ran = hsk("pull", STORE, tmp_path / "back", "--keep", "1,4,0.25")
    assert ran.code == 2 and re.search(r"is longer than the \d+ bytes that were asked for", ran.err)
    assert not (tmp_path / "back" / "manifest.json").exists()


@pytest.mark.parametrize("url", ["hf://", "hf://datasets/me", "hf://datasets/me/../store", "hf://datasets//store"])
def test_a_url_that_names_no_repository_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="expected hf://datasets/OWNER/NAME"):
        Repository(url)


def test_offline_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    """The tests run offline; the hub's library says so itself."""
    assert hsk_offline("show", STORE) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"hsk: {STORE} could not be read (plan.json): ") and err.count("\n") == 1


def test_a_store_is_not_made_on_the_hub_but_brought_there(stores: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hsk_offline("derive", stores / ALL, "--keep", "1,4,0.25", "--out", STORE) == 2
    assert capsys.readouterr().err.endswith("hsk push brings it to the hub\n")
