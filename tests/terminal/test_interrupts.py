"""Ctrl-C while something waits, heard wherever it strikes."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from llamita.terminal.interrupts import raising, stopping


@pytest.fixture(autouse=True)
def default_interrupt() -> Iterator[None]:
    """Python's own, also where the tests are a background job that ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    """Python acts at once."""
    signal.raise_signal(signal.SIGINT)


def press_unheard(after: float) -> threading.Thread:
    """Python notes the signal, and no system call of the main thread is interrupted: what a
    signal does that comes just before the call."""

    def on_this_thread() -> None:
        time.sleep(after)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    thread = threading.Thread(target=on_this_thread)
    thread.start()
    return thread


def test_one_that_no_call_hears_is_heard() -> None:
    reader, writer = os.pipe()
    began = time.monotonic()
    thread = press_unheard(0.2)
    with pytest.raises(KeyboardInterrupt), raising():
        select.select([reader], [], [], 20.0)
    assert time.monotonic() - began < 10.0
    thread.join()
    os.close(reader)
    os.close(writer)


def test_once_however_often_it_strikes() -> None:
    def work() -> None:
        try:
            press()
        finally:
            press()

    with pytest.raises(KeyboardInterrupt), raising():
        work()


def test_all_is_put_back() -> None:
    handler, threads = signal.getsignal(signal.SIGINT), threading.active_count()
    free = os.dup(0)  # the lowest number that no open file has
    os.close(free)
    with raising():
        assert signal.getsignal(signal.SIGINT) is not handler
    with pytest.raises(KeyboardInterrupt), raising():
        press()
    with pytest.raises(ValueError, match="own"), raising():
        raise ValueError("its own")
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads
    again = os.dup(0)
    os.close(again)
    assert again == free


def test_between_two_prompts_it_counts_at_the_next() -> None:
    with stopping() as missed:
        with raising(missed):
            pass
        press()
        with pytest.raises(KeyboardInterrupt), raising(missed):
            pass
        with raising(missed):
            pass
        with stopping() as stopper:  # an answer
            press()
        assert stopper.pressed
        assert not missed.pressed
        with pytest.raises(KeyboardInterrupt), raising(missed):
            press()
        assert not missed.pressed


def test_another_thread_leaves_signals_alone() -> None:
    handlers = []

    def work() -> None:
        with raising():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]
