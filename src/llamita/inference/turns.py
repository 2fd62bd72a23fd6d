"""Requests that take turns: first come, first served, by a fixed number of threads."""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol

from llamita.errors import UserError


class Job(Protocol):
    """Something to do once; `run` sees to its own errors, and ends soon when `cancelled` is set."""

    cancelled: bool

    def run(self) -> None: ...


class Turns:
    """Runs up to `slots` jobs at a time, those that wait in the order in which they came.

    What is cancelled while it waits is run at once, out of turn, to say so to whoever asked: for
    that there is one thread more than slots.

    Args:
        name: of the threads.
    """

    def __init__(self, slots: int, name: str) -> None:
        self._slots = slots
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._cancelled: deque[Job] = deque()
        self._running: list[Job] = []
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name} {number}", daemon=True)
            for number in range(slots + 1)
        ]
        for thread in self._threads:
            thread.start()

    def add(self, job: Job) -> None:
        """Put it at the end of the queue.

        Raises:
            UserError: `close` was called.
        """
        with self._changed:
            if self._closed:
                raise UserError("the engine is closed: open it again")
            self._queue.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Set its `cancelled`; if it waits, it waits no longer."""
        with self._changed:
            job.cancelled = True
            if job in self._queue:
                self._queue.remove(job)
                self._cancelled.append(job)
                self._changed.notify()

    def waiting(self) -> tuple[int, int]:
        """Jobs that run, and that wait."""
        with self._changed:
            return len(self._running), len(self._queue)

    def close(self) -> None:
        """Cancel everything and wait for the threads' end. May be called twice."""
        with self._changed:
            self._closed = True
            for job in (*self._running, *self._queue):
                job.cancelled = True
            self._cancelled.extend(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for thread in self._threads:
            # A job may close what it runs in, and no thread can wait for itself.
            if thread is not threading.current_thread():
                thread.join()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.run()
            finally:
                self._done(job)
                del job  # else a thread that waits would keep what its last job holds

    def _next(self) -> Job | None:
        with self._changed:
            while True:
                if self._cancelled:
                    return self._cancelled.popleft()
                if self._closed:
                    return None
                if self._queue and len(self._running) < self._slots:
                    self._running.append(self._queue.popleft())
                    return self._running[-1]
                self._changed.wait()

    def _done(self, job: Job) -> None:
        with self._changed:
            if job in self._running:
                self._running.remove(job)
                self._changed.notify()
