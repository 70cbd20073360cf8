"""Signals that come while threads are at work: a run ends between two of its steps, and never amid a lock's code."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hskstore.interrupts as interrupts_module
from hskstore.interrupts import in_threads, interrupts


def test_a_signal_is_held_back_until_it_is_asked_for_and_then_does_what_it_would_have_done() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with interrupts() as held:
            signal.raise_signal(signal.SIGTERM)
            assert held.seen == signal.SIGTERM and got == []
            signal.raise_signal(signal.SIGINT)  # as a launcher sends it on
            assert got == []
            with pytest.raises(KeyboardInterrupt):
                held.deliver()
            assert got == [signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert len(got) == 2, "afterwards all is as before"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_ctrl_c_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts_module, "SAME_SIGNAL_SECONDS", -1.0)
    with interrupts() as held:
        signal.raise_signal(signal.SIGINT)
        assert held.seen == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_sigterm_is_left_alone_where_nobody_handles_it() -> None:
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with interrupts():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_whoever_held_signals_first_decides_when_they_are_delivered() -> None:
    with interrupts() as held:
        signal.raise_signal(signal.SIGINT)
        assert in_threads(2, abs, [-1, -2]) == [1, 2]
        with interrupts() as inner:
            assert inner.seen is None
        assert held.seen == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            held.check()


def test_a_signal_that_nobody_asked_for_is_delivered_at_the_end() -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), interrupts():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done == [1]


def test_a_second_ctrl_c_ends_what_the_first_one_cleans_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts_module, "SAME_SIGNAL_SECONDS", -1.0)
    cleaned: list[int] = []
    with pytest.raises(KeyboardInterrupt), interrupts() as held:
        signal.raise_signal(signal.SIGINT)
        try:
            held.check()
        finally:
            signal.raise_signal(signal.SIGINT)
            cleaned.append(1)
    assert cleaned == []


def test_a_program_whose_handler_lets_it_go_on_goes_on() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with interrupts() as held:
            for _ in range(2):
                signal.raise_signal(signal.SIGTERM)
                held.check()
                held.check()
        assert got == [signal.SIGTERM, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_is_not_lost_where_the_work_fails() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("the work's")


def test_a_hold_that_is_over_swallows_nothing() -> None:
    """Even where a handler that raised came between the two that were to be put back."""
    with interrupts() as over:
        pass
    before = signal.signal(signal.SIGINT, over.note)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), interrupts() as held:
            signal.raise_signal(signal.SIGINT)
            assert held.seen == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) == before, "it is put back after all"
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_does_not_wait_for_what_takes_long_nor_begins_more() -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.0 if number == 0 else 0.05)

    with pytest.raises(KeyboardInterrupt):
        in_threads(2, work, range(1000))
    assert len(begun) < 15


def test_a_signal_ends_what_many_threads_do_after_the_part_that_is_done() -> None:
    asked: list[int] = []

    def work(number: int) -> int:
        asked.append(number)
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.001)
        return number

    with pytest.raises(KeyboardInterrupt):
        in_threads(1, work, range(10_000))
    assert 3 in asked and len(asked) < 10_000


CAUGHT = 2000
STORM = f"""
import faulthandler, os, signal
from hskstore.engines.inline import run_inline
from hskstore.interrupts import in_threads

class Stop(KeyboardInterrupt): ...

def stop(number, frame):
    global came
    before, came = came, True
    # Raised in a callback of a weak reference it would be lost, and what the callback was to do undone.
    if not before and not (frame and "weakref" in frame.f_code.co_filename):
        raise Stop

class Worker:
    depth = 2
    stopped = False
    def __enter__(self): return self
    def __exit__(self, *failure): ...
    def stop(self): self.stopped = True
    def run(self, job):
        if self.stopped: raise RuntimeError("stopped")

faulthandler.dump_traceback_later(60, exit=True)
came = True
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
for turn in range({CAUGHT}):
    try:
        came = False
        while not came:
            if turn % 2:
                run_inline(range(30), lambda on_rows: Worker(), lambda rows: None)
            else:
                in_threads(2, abs, range(30))
    except Stop:
        pass
os._exit(0)  # signals come until it is gone
"""


def test_a_signal_at_any_moment_leaves_no_thread_waiting_for_ever(tmp_path: Path) -> None:
    said = tmp_path / "said"  # a pipe would fill up: Python tells of each signal that came in a weak reference's callback
    command = [sys.executable, "-c", STORM]
    with said.open("w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as program:
        assert program.stdout is not None and program.stdout.readline() == "ready\n"
        moments = random.Random(0)
        while program.poll() is None:
            time.sleep(moments.uniform(0, 0.004))
            program.send_signal(signal.SIGTERM)
    assert program.returncode == 0, said.read_text()[-4000:]
