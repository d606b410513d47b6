"""What a server counts: for Prometheus, and for a line of the log now and then."""

from __future__ import annotations

import logging
import time
from collections import deque

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from assent.serve.queue import Queue

log = logging.getLogger(__name__)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
RECENT = 10_000
"""Requests from which the log's quantiles are."""


class Metrics:
    """The counters of one server."""

    def __init__(self, queue: Queue, log_every: int) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "assent_requests", "Requests by path and HTTP status.", ["path", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "assent_request_seconds", "From a request to its answer.", ["path"], buckets=SECONDS, registry=self.registry
        )
        self._texts = Counter("assent_texts", "Texts that were scored.", ["path"], registry=self.registry)
        self._tokens = Counter("assent_tokens", "Tokens of these texts.", ["path"], registry=self.registry)
        for name, what, value in (
            ("assent_requests_under_way", "Requests being read, waiting, or in the model.", lambda: queue.requests),
            ("assent_tokens_under_way", "Tokens that wait or are in the model.", lambda: queue.tokens),
            ("assent_forward_passes", "Forward passes so far.", lambda: queue.passes),
        ):
            Gauge(name, what, registry=self.registry).set_function(value)
        self._log_every = log_every
        self._recent: deque[float] = deque(maxlen=min(log_every, RECENT) or 1)
        self._since = time.monotonic()
        self._counts = {"requests": 0, "refused": 0, "texts": 0, "tokens": 0}

    def scored(self, path: str, texts: int, tokens: int) -> None:
        self._texts.labels(path).inc(texts)
        self._tokens.labels(path).inc(tokens)
        self._counts["texts"] += texts
        self._counts["tokens"] += tokens

    def answered(self, path: str, status: int, seconds: float) -> None:
        """`path` is one of ours, or a word for all others."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)
        self._counts["requests"] += 1
        self._counts["refused"] += status >= 400
        self._recent.append(seconds)
        if self._log_every and self._counts["requests"] >= self._log_every:
            self._say()

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)

    def _say(self) -> None:
        now, counts, times = time.monotonic(), self._counts, sorted(self._recent)
        log.info(
            "%s requests (%s refused), %s texts, %s tokens/s, half of them within %.0f ms, 99 %% within %.0f ms",
            f"{counts['requests']:,}",
            f"{counts['refused']:,}",
            f"{counts['texts']:,}",
            f"{counts['tokens'] / max(now - self._since, 1e-6):,.0f}",
            1e3 * times[len(times) // 2],
            1e3 * times[min(len(times) - 1, int(0.99 * len(times)))],
        )
        self._since = now
        self._counts = dict.fromkeys(counts, 0)
