"""`llamita serve` under load: many clients that stream at once, or a soak of mixed ones.

    python benchmarks/serve_load.py MODEL                  64 clients: p50 and p99 of what they wait
    python benchmarks/serve_load.py MODEL --soak 10        ten minutes of clients, some of which
                                                           hang up: memory, slots, errors

The server is a process of its own. Clients are coroutines of this process with sockets of their
own, on the same machine, and so take some of its time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

QUESTIONS = (
    "Why is the sky blue?",
    "Write a short story about a llama that learns to count.",
    "What is the difference between a list and a tuple in Python?",
    "Name three rivers, and a city on each.",
)
# A soak's clients: what they do, and how many of a hundred do it.
ACTIONS = {"stream": 40, "whole": 20, "leave": 20, "leave at once": 10, "wrong": 10}
EVERY = 5.0
"""Seconds between two looks at the server's memory."""
_WITHOUT_CACHE = """
from llamita import cli
from llamita.inference import llama_cpp_server
llama_cpp_server._CACHE_MIB = 0
cli.main()
"""
FLAT = 0.05
"""Share by which memory may grow from a soak's second quarter to its last."""


@dataclass
class Found:
    """What clients saw. Seconds."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    pieces: int = 0
    tokens: int = 0
    done: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Server:
    host: str
    port: int
    model: str
    pid: int


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=128, help="in all, without --soak")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="without llama.cpp's cache of conversations that rest, which grows to 512 MiB",
    )
    parser.add_argument("--json", type=Path, help="write what was found here as well")
    return parser.parse_args()


@asynccontextmanager
async def server(settings: argparse.Namespace) -> AsyncIterator[Server]:
    """`llamita serve`, on a port that is free."""
    options = {
        "--engine": settings.engine,
        "--slots": settings.slots,
        "--context": settings.context,
        "--max-waiting": 4 * settings.clients,
        "--port": 0,
        "--name": "model",
    }
    written = [str(part) for pair in options.items() for part in pair]
    program = ["-c", _WITHOUT_CACHE] if settings.no_cache else ["-m", "llamita"]
    command = [sys.executable, *program, "serve", settings.model, *written]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"  {line}", end="")
            if line.startswith("model at "):
                url = urlsplit(line.split()[2])
            if line.startswith("Ctrl-C"):
                break
        else:
            raise SystemExit("the server did not start")
        assert url.hostname is not None
        assert url.port is not None
        yield Server(url.hostname, url.port, "model", process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    if process.returncode != 0:
        raise SystemExit(f"the server ended with {process.returncode}")


async def ask(
    at: Server, body: dict[str, Any]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(at.host, at.port, limit=1 << 22)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    await writer.drain()
    return reader, writer


async def get(at: Server, path: str) -> str:
    reader, writer = await asyncio.open_connection(at.host, at.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    return text


async def stream(at: Server, body: dict[str, Any], found: Found, leave_after: int | None) -> None:
    """One streamed answer; `leave_after` so many pieces the client hangs up."""
    began = last = time.perf_counter()
    reader, writer = await ask(
        at, {**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    pieces, ended = 0, False
    try:
        status = await reader.readline()
        if b" 200 " not in status:
            raise OSError(status.decode())
        async for line in reader:
            if not line.startswith(b"data: {"):
                ended = ended or line.startswith(b"data: [DONE]")
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise OSError(event["error"]["message"])
            if event["usage"]:
                found.tokens += event["usage"]["completion_tokens"]
            if not event["choices"] or not event["choices"][0]["delta"].get("content"):
                continue
            now = time.perf_counter()
            (found.between if pieces else found.first).append(now - last)
            last = now
            pieces += 1
            if pieces == leave_after:
                return
        if not ended:
            raise OSError("the stream broke off")
        found.whole.append(time.perf_counter() - began)
    finally:
        found.pieces += pieces
        writer.close()


async def whole(at: Server, body: dict[str, Any], found: Found) -> None:
    reader, writer = await ask(at, body)
    head, _, text = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise OSError(head.decode().splitlines()[0])
    found.tokens += json.loads(text)["usage"]["completion_tokens"]


async def wrong(at: Server, body: dict[str, Any]) -> None:
    reader, writer = await ask(at, {**body, "temperature": "hot"})
    status = await reader.readline()
    writer.close()
    if b" 400 " not in status:
        raise OSError(f"a wrong request was answered {status!r}")


async def act(at: Server, body: dict[str, Any], found: Found, dice: random.Random) -> None:
    (action,) = dice.choices(list(ACTIONS), list(ACTIONS.values()))
    try:
        if action == "stream":
            await stream(at, body, found, None)
        elif action == "whole":
            await whole(at, body, found)
        elif action == "leave":
            await stream(at, body, found, dice.randint(1, 8))
        elif action == "leave at once":
            _, writer = await ask(at, body)
            await asyncio.sleep(dice.random())
            writer.close()
        else:
            await wrong(at, body)
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        found.errors.append(f"{action}: {error!r}")
    found.done[action] += 1


def body_of(settings: argparse.Namespace, dice: random.Random) -> dict[str, Any]:
    return {
        "model": "model",
        "messages": [{"role": "user", "content": dice.choice(QUESTIONS)}],
        "max_tokens": settings.max_tokens,
        "temperature": 0.7,
        "top_k": 50,
    }


async def load(at: Server, settings: argparse.Namespace) -> Found:
    """All clients at once, each with its share of the requests, one after the other."""
    found, dice = Found(), random.Random(settings.seed)
    bodies = [body_of(settings, dice) for _ in range(settings.requests)]

    async def client() -> None:
        while bodies:
            try:
                await stream(at, bodies.pop(), found, None)
            except (OSError, ValueError) as error:
                found.errors.append(repr(error))

    await asyncio.gather(*(client() for _ in range(settings.clients)))
    return found


async def soak(at: Server, settings: argparse.Namespace) -> tuple[Found, list[int]]:
    """What clients saw, and the server's resident bytes, every EVERY seconds."""
    found, memory = Found(), []
    end = time.monotonic() + 60 * settings.soak

    async def client(number: int) -> None:
        dice = random.Random(f"{settings.seed} {number}")
        while time.monotonic() < end:
            await act(at, body_of(settings, dice), found, dice)

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append(resident(at.pid))
            await asyncio.sleep(EVERY)

    await asyncio.gather(watch(), *(client(number) for number in range(settings.clients)))
    return found, memory


def resident(pid: int) -> int:
    """Bytes of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    own = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return 1024 * own + sum(resident(int(child)) for child in children)


async def slots_back(at: Server, slots: int, seconds: float = 30) -> bool:
    """Whether nothing runs or waits any more, and as many as ever are answered at once."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        text = await get(at, "/metrics")
        if "\nllamita_running 0.0" in text and "\nllamita_waiting 0.0" in text:
            break
        await asyncio.sleep(0.2)
    else:
        return False
    found = Found()
    body = {"model": "model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    await asyncio.gather(*(whole(at, body, found) for _ in range(slots)))
    return True


def percentiles(values: Sequence[float]) -> str:
    if not values:
        return "none"
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"p50 {median(ordered) * 1000:,.0f} ms, p99 {p99 * 1000:,.0f} ms ({len(ordered):,})"


def show(found: Found, seconds: float) -> None:
    print(f"time to first token   {percentiles(found.first)}")
    print(f"time between tokens   {percentiles(found.between)}")
    print(f"a whole stream        {percentiles(found.whole)}")
    print(f"tokens of whole answers  {found.tokens:,} in {seconds:.1f} s: "
          f"{found.tokens / seconds:,.1f} a second")  # fmt: skip
    print(f"errors                {len(found.errors)}")
    for error in found.errors[:5]:
        print(f"  {error}")


def show_soak(found: Found, memory: Sequence[int], free: bool) -> bool:
    quarter = max(1, len(memory) // 4)
    early, late = median(memory[quarter : 2 * quarter] or memory), median(memory[-quarter:])
    flat = late <= early * (1 + FLAT)
    print("clients               " + ", ".join(f"{n} {name}" for name, n in found.done.items()))
    print(f"memory                {early / 2**20:,.0f} MiB, at the end {late / 2**20:,.0f} MiB: "
          f"{'flat' if flat else 'GROWS'}")  # fmt: skip
    print(f"slots                 {'all free again' if free else 'LOST'}")
    return flat and free


async def main() -> int:
    settings = parse()
    fine = True
    async with server(settings) as at:
        began = time.monotonic()
        if settings.soak is None:
            found, memory = await load(at, settings), [resident(at.pid)]
        else:
            found, memory = await soak(at, settings)
        seconds = time.monotonic() - began
        free = await slots_back(at, settings.slots)
        show(found, seconds)
        fine = show_soak(found, memory, free) if settings.soak is not None else free
    if settings.json is not None:
        record = {**vars(settings), "json": None, "seconds": seconds, "memory": memory}
        record.update(first=found.first, between=found.between, whole=found.whole)
        record.update(done=found.done, errors=found.errors, tokens=found.tokens)
        settings.json.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return 0 if fine and not found.errors else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
