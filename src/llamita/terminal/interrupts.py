"""Ctrl-C while an answer is written, and a keyboard that is silent meanwhile."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


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
