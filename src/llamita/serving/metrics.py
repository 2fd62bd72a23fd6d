"""What /metrics shows. Each application has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from llamita.inference.engine import Engine, Finish

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """Counters, gauges and histograms, all of names that begin with `llamita_`."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter(
            "requests", "Requests answered, by path and status.", ("endpoint", "status")
        )
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts that were answered.")
        self._cached = self._counter("cached_tokens", "Those of them not computed again.")
        self._written = self._counter("completion_tokens", "Tokens written.")
        self._gone = self._counter("client_disconnects", "Clients that left before their answer.")
        self._first = self._histogram(
            "time_to_first_token_seconds", "From a request to its first token.", _SECONDS
        )
        self._between = self._histogram(
            "time_between_tokens_seconds", "From a token to the next of its answer.", _BETWEEN
        )
        self._duration = Histogram(
            "llamita_request_seconds",
            "From a request to the end of its answer.",
            ("endpoint",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._gauge("running", "Answers that the engine works on.", lambda: engine.waiting()[0])
        self._gauge("waiting", "Answers that wait for a slot.", lambda: engine.waiting()[1])
        self._gauge("slots", "Answers that the engine works on at most.", lambda: engine.slots)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        self._requests.labels(endpoint, str(status)).inc()
        self._duration.labels(endpoint).observe(seconds)

    def client_gone(self) -> None:
        self._gone.inc()

    def token_came(self, now: float, began: float, last: float | None, count: int) -> None:
        """`count` tokens in one piece; the first of all counts by the wait for it alone."""
        if last is None:
            self._first.observe(now - began)
        else:
            for _ in range(count):
                self._between.observe((now - last) / count)

    def finished(self, finish: Finish) -> None:
        self._prompt.inc(finish.prompt_tokens)
        self._cached.inc(finish.cached_tokens)
        self._written.inc(finish.completion_tokens)

    def _counter(self, name: str, about: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"llamita_{name}", about, labels, registry=self._registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"llamita_{name}", about, buckets=buckets, registry=self._registry)

    def _gauge(self, name: str, about: str, value: Callable[[], int]) -> None:
        Gauge(f"llamita_{name}", about, registry=self._registry).set_function(value)
