"""An object store that fails: every outcome is success or one clear message, and the same run again ends with the same bytes.

A real S3 server on the loopback, behind a proxy that fails in six ways.
"""

import http.client
import logging
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from hskstore.config import Keep
from hskstore.errors import StoreError
from hskstore.store import objects, open_store
from hskstore.store.copy import copy_store
from hskstore.store.derive import derive
from hskstore.store.verify import verify
from tests.conftest import write_tsv
from tests.faults.conftest import Campaign
from tests.faults.runs import PLAN, Child, Extraction, make_store, sealed_bytes
from tests.store.conftest import whole

SEED = 3
STORM = 5
"""Faults in a row of requests, of which about half suffer one. The client tries twice, so that many steps fail."""

CALM = 60
"""Requests, at most, that a storm is put off."""

TIMEOUT = 0.6
FAULTS = ("500", "503", "time-out", "lost acknowledgement", "cut body", "lost request")
SAID = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
ANSWERS = {
    "500": SAID.format("InternalError", "We encountered an internal error. Please try again."),
    "503": SAID.format("SlowDown", "Please reduce your request rate."),
}
FoundT = TypeVar("FoundT")


class Weather:
    """Which requests fail, and how: the kind that happened least so far, among those that the request can suffer."""

    def __init__(self) -> None:
        self.injected: Counter[str] = Counter()
        self._rng = np.random.default_rng(SEED)
        self._lock = threading.Lock()
        self._calm, self._left = 0, 0

    def storm(self) -> None:
        """Let a few requests fail, one after the other or nearly so, some time from now."""
        with self._lock:
            self._calm, self._left = int(self._rng.integers(CALM)), STORM

    def clear(self) -> None:
        with self._lock:
            self._left = 0

    def fault(self, method: str) -> str | None:
        with self._lock:
            self._calm -= 1
            if self._calm >= 0 or not self._left or self._rng.random() < 0.5:
                return None
            possible = [kind for kind in FAULTS if kind != "cut body" or method == "GET"]
            kind = min(possible, key=lambda kind: (self.injected[kind], self._rng.random()))
            self.injected[kind] += 1
            self._left -= 1
            return kind


class Proxy(BaseHTTPRequestHandler):
    """Hands requests on to the server behind it, unless the weather is against it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    behind: tuple[str, int]
    weather: Weather

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.weather.fault(self.command)
        if fault == "lost request":
            return self.drop()
        if fault == "time-out":
            time.sleep(1.5 * TIMEOUT)
            return self.drop()
        if fault in ANSWERS:
            return self.answer(int(fault), {"Content-Type": "application/xml"}, ANSWERS[fault].encode())
        server = http.client.HTTPConnection(*self.behind)
        server.request(self.command, self.path, body, dict(self.headers))
        found = server.getresponse()
        data = found.read()
        server.close()
        if fault == "lost acknowledgement":
            return self.drop()
        return self.answer(found.status, dict(found.headers), data, cut=fault == "cut body")

    do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = handle_any

    def answer(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.drop()

    def drop(self) -> None:
        """Close the connection as one that breaks: with a reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that gave up waiting."""


@pytest.fixture
def weather(monkeypatch: pytest.MonkeyPatch) -> Iterator[Weather]:
    """An S3 server with the bucket s3://bucket, by the environment alone, and the weather on the way to it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    found = Weather()
    behind = s3.get_host_and_port()
    handler = type("Handler", (Proxy,), {"behind": behind, "weather": found})
    proxy = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    bucket = http.client.HTTPConnection(*behind)
    bucket.request("PUT", "/bucket")
    assert bucket.getresponse().status == 200
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_address[1]}")
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(objects, "CLIENT", {**objects.CLIENT, "timeout": f"{TIMEOUT}s"})
    quick = {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=20), "base": 2}
    monkeypatch.setattr(objects, "RETRY", {**objects.RETRY, "max_retries": 1, "backoff": quick})
    yield found
    proxy.shutdown()
    s3.stop()


def through_a_storm(weather: Weather, step: Callable[[], FoundT], refusals: list[str], where: str) -> FoundT:
    """Run again after every StoreError; anything else that is raised fails the test."""
    weather.storm()
    for _ in range(3 * STORM):
        try:
            return step()
        except StoreError as refused:
            refusals.append(str(refused))
    raise AssertionError(f"{where}: still refused when the storm was over: {refusals[-1]}")


def assert_clear(refusal: str) -> None:
    """One line that names the place and the object, and nothing of a library's insides."""
    assert re.match(
        r"s3://bucket/\d+/(tiny|pushed|cut) could not be (listed|(read|written|changed) \([\w./-]+\)): \w", refusal
    ), refusal
    assert "\n" not in refusal and "{" not in refusal and "<" not in refusal, refusal


def read_everything(root: str, truth: dict[str, np.ndarray]) -> None:
    store = open_store(root)
    for path, spec in store.plan.arrays.items():
        np.testing.assert_array_equal(store.read_all(path), truth[path], err_msg=path)
        if spec.layered:
            np.testing.assert_array_equal(store.read(path, 0, [1]), truth[path][: spec.shard, [1]], err_msg=path)


def test_a_failing_object_store_costs_tries_and_never_a_wrong_byte(
    teacher_folder: str, weather: Weather, campaign: Campaign, tmp_path: Path
) -> None:
    began = time.monotonic()
    wanted = campaign.tries(25, 200)
    truth = {path: whole(PLAN, path) for path in PLAN.arrays}
    write_tsv(tmp_path / "train.tsv", 100, seed=1)
    write_tsv(tmp_path / "dev.tsv", 20, seed=2)
    extraction = Extraction(teacher_folder, str(tmp_path), ("all,4,0.5",))
    (extracted,) = Child(extraction.into, tmp_path / "stores").result()
    (source,) = extraction.roots(tmp_path / "stores")
    keep = Keep.parse("1,2,0.25")
    digests = {
        "tiny": make_store(tmp_path / "tiny"),
        "pushed": extracted,
        "cut": derive(source, tmp_path / "cut", keep=keep).digest,
    }
    refusals: list[str] = []
    rounds = 0
    while weather.injected.total() < wanted or min(weather.injected[kind] for kind in FAULTS) < wanted // 8:
        tiny, pushed, cut = (f"s3://bucket/{rounds}/{name}" for name in digests)
        pulled = tmp_path / f"pulled-{rounds}"
        where = f"seed {SEED}, round {rounds}"
        steps: dict[str, tuple[Callable[[], Any], Any]] = {
            "make": (partial(make_store, tiny), digests["tiny"]),
            "read": (partial(read_everything, tiny, truth), None),
            "verify": (lambda: verify(tiny, deep=True).problems, ()),  # noqa: B023
            "push": (lambda: copy_store(str(source), pushed).digest, extracted),  # noqa: B023
            "pull": (lambda: copy_store(pushed, str(pulled)).digest, extracted),  # noqa: B023
            "derive": (lambda: derive(pushed, cut, keep=keep).digest, digests["cut"]),  # noqa: B023
        }
        for name, (step, expected) in steps.items():
            assert through_a_storm(weather, step, refusals, f"{where}, {name}") == expected, f"{where}, {name}"
        weather.clear()
        assert sealed_bytes(pulled) == sealed_bytes(source), where
        for root, digest in zip((tiny, pushed, cut), digests.values(), strict=True):
            checked = verify(root, deep=True)
            assert (checked.problems, checked.digest) == ((), digest), (where, root)
        rounds += 1
    for refusal in refusals:
        assert_clear(refusal)
    kinds = ", ".join(f"{count} {kind}" for kind, count in weather.injected.items())
    outcome = (
        f"{len(refusals)} steps ended in one clear message and succeeded when they were tried again, the others succeeded; stores"
        f" made, read, verified, pushed, pulled and derived had the right digest and no damage. Injected: {kinds}"
    )
    fault = "S3 answering 500 or 503, timing out, cutting a body, losing a request or an acknowledgement"
    campaign.record(fault, weather.injected.total(), outcome, began)
