"""Worker processes that encode blocks, each a fresh interpreter fed over pipes.

Plain subprocesses rather than multiprocessing: nothing is forked from a process that has threads,
the caller's `__main__` is not imported again (it may import torch), and workers end by themselves
when the parent dies, because their input ends.
"""

from __future__ import annotations

import os
import pickle
import queue
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

from llamita.data.blocks import Block
from llamita.data.encode import BlockEncoder, EncodedBlock, EncodeSettings

_FRAME = struct.Struct("<Q")
_START = "import sys; sys.path[:] = {path!r}; from llamita.data.workers import serve; serve()"


def encode_blocks(
    blocks: Iterable[Block], settings: EncodeSettings, num_workers: int
) -> Generator[EncodedBlock, None, None]:
    """Encode blocks in order; with `num_workers` 0 in this process.

    At most 2·num_workers + 1 blocks are under way at once, so that memory stays flat.
    """
    if num_workers == 0:
        encoder = BlockEncoder(settings)
        for block in blocks:
            yield encoder(block)
        return
    pool = _Pool(settings, num_workers)
    try:
        waiting: deque[Future[EncodedBlock]] = deque()
        for block in blocks:
            waiting.append(pool.submit(block))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.close()


def serve() -> None:
    """A worker's life: settings first, then blocks in and encoded blocks out until input ends."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not enter the frames
    encoder = BlockEncoder(_receive(source))
    while (block := _receive(source)) is not None:
        try:
            answer: Any = encoder(block)
        except Exception as error:
            # It crosses the pipe whole and is raised in the parent.
            answer = error
        try:
            _send(sink, answer)
        except BrokenPipeError:
            return


class _Pool:
    def __init__(self, settings: EncodeSettings, num_workers: int) -> None:
        # Each worker is one core's; threads inside it would only contend with the others.
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        self._workers = [
            subprocess.Popen(
                [sys.executable, "-c", _START.format(path=sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C goes to the parent, which closes the pipes
            )
            for _ in range(num_workers)
        ]
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._settings = settings
        self._started: set[int] = set()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="llamita-data")

    def submit(self, block: Block) -> Future[EncodedBlock]:
        return self._threads.submit(self._run, block)

    def _run(self, block: Block) -> EncodedBlock:
        worker = self._idle.get()
        try:
            answer = self._exchange(worker, block)
        finally:
            # a dead one too, or the next thread would wait for it for ever
            self._idle.put(worker)
        if answer is None:
            raise RuntimeError(
                f"a worker process ended with status {worker.wait()} while encoding "
                f"{block.parts[0].name if block.parts else 'a block'}; a negative status is a "
                "signal, -9 usually means that memory ran out (use fewer workers)."
            )
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, EncodedBlock)
        return answer

    def _exchange(self, worker: subprocess.Popen[bytes], block: Block) -> Any:
        """The worker's answer, `None` if it is dead."""
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            if worker.pid not in self._started:
                _send(worker.stdin, self._settings)
                self._started.add(worker.pid)
            _send(worker.stdin, block)
            return _receive(worker.stdout)
        except BrokenPipeError:
            return None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait()
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            for stream in (worker.stdin, worker.stdout):
                if stream is not None:
                    try:
                        stream.close()
                    except BrokenPipeError:
                        continue  # a frame for a killed worker was still buffered


def _send(stream: IO[bytes], value: object) -> None:
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_FRAME.pack(len(data)))
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    """The next value, `None` at the end of the stream."""
    head = stream.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    size = _FRAME.unpack(head)[0]
    data = stream.read(size)
    return pickle.loads(data) if len(data) == size else None
