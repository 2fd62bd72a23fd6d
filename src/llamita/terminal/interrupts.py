"""Ctrl-C at the prompt and while an answer is written, and a keyboard that is silent meanwhile."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_UNHEARD_SECONDS = 0.02


class Stopper:
    """Ctrl-C calls what was attached, once, and raises nothing: an exception could strike
    anywhere, in the middle of a line that is being drawn too."""

    def __init__(self) -> None:
        self.pressed = False
        self._cancel: Callable[[], None] | None = None

    def attach(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        if self.pressed:
            cancel()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        # The flag first: a second Ctrl-C while `cancel` holds the engine's lock must not wait
        # for it.
        first, self.pressed = not self.pressed, True
        if first and self._cancel is not None:
            self._cancel()


@contextmanager
def stopping() -> Iterator[Stopper]:
    """Within it, Ctrl-C stops the answer and not the program."""
    stopper = Stopper()
    if threading.current_thread() is not threading.main_thread():
        yield stopper  # signals are not this thread's
        return
    before = signal.signal(signal.SIGINT, stopper._interrupt)
    try:
        yield stopper
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def raising(missed: Stopper | None = None) -> Iterator[None]:
    """Within it, Ctrl-C raises KeyboardInterrupt, once. So does one that `missed` took before.

    Python hears a signal when a system call that waits is interrupted by it. One that comes just
    before the call waits, as when a prompt was drawn and readline does not listen yet, would be
    heard with the next key. So a thread interrupts the call again until it was heard.
    """
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield  # signals are not this thread's; Windows wakes who waits by itself
        return
    heard = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if not heard:
            heard = True
            raise KeyboardInterrupt

    def insist() -> None:
        # What it sends is written into the pipe as well: it goes on until it was heard.
        while signals := os.read(reader, 64):
            time.sleep(_UNHEARD_SECONDS)
            if signal.SIGINT in signals and not heard:
                signal.pthread_kill(waiting, signal.SIGINT)

    waiting = threading.get_ident()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # set_wakeup_fd wants it
    thread = threading.Thread(target=insist, name="ctrl-c", daemon=True)
    thread.start()
    pipe_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        if missed is not None and missed.pressed:
            missed.pressed = False
            raise KeyboardInterrupt
        yield
    finally:
        heard = True
        signal.set_wakeup_fd(pipe_before)
        os.close(writer)
        thread.join()
        os.close(reader)
        signal.signal(signal.SIGINT, before)


@contextmanager
def silent_keyboard() -> Iterator[None]:
    """What is typed does not show, where it would tear what is drawn; it is there for the next
    prompt."""
    try:
        import termios
    except ImportError:  # not a Unix
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = termios.tcgetattr(descriptor)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
