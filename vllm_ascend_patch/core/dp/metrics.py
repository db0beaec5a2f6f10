# SPDX-License-Identifier: Apache-2.0
"""Counters of the step sync: to vLLM's Prometheus endpoint where this process can reach it, else to the log.

Counting only. A worker reaches the endpoint when prometheus_client runs in multi-process mode (PROMETHEUS_MULTIPROC_DIR,
which vLLM sets when it starts more than one API server, and which an operator may set): then files in that directory are
what the endpoint serves. Otherwise one log line per interval carries the same numbers.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections import Counter
from typing import Any

from .agreement import StepAgreement

logger = logging.getLogger(__name__)

_PREFIX = "vllm_ascend_patch_dp"


class StepCounters:
    """Counts what one rank's steps cost.

    Args:
        rank: data-parallel rank, the label of every counter.
        interval: seconds between log lines where the endpoint is out of reach; 0 switches the log off.
    """

    def __init__(self, rank: int, interval: float = 60.0) -> None:
        self.rank, self.interval = rank, interval
        self.steps = self.idle_steps = self.exchanges = self.reused = 0
        self.padding_tokens = self.tokens = 0
        self.wait_seconds = self.hidden_seconds = 0.0
        self.moe_steps: Counter[str] = Counter()
        self._since = time.monotonic()
        self._prometheus = _prometheus_counters(rank) if os.environ.get("PROMETHEUS_MULTIPROC_DIR") else None

    def count(self, agreement: StepAgreement, wait_seconds: float, hidden_seconds: float) -> None:
        """One forward whose agreement took a vector of its own: a collective, or a round through shared memory.

        Args:
            wait_seconds: host time blocked in ``wait``.
            hidden_seconds: host time between post and wait, during which the collective cost nothing.
        """
        own, padded = agreement.active_tokens[self.rank], agreement.padded_tokens[self.rank]
        idle = agreement.idle[self.rank]
        self.exchanges += 1
        self.steps += 1
        self.idle_steps += idle
        self.tokens += own
        self.padding_tokens += padded - own
        self.wait_seconds += wait_seconds
        self.hidden_seconds += hidden_seconds
        if self._prometheus is not None:
            self._prometheus["steps"].inc()
            self._prometheus["exchanges"].inc()
            self._prometheus["idle_steps"].inc(int(idle))
            self._prometheus["padding_tokens"].inc(padded - own)
            self._prometheus["wait_seconds"].inc(wait_seconds)
        elif self.interval:
            self._log_if_due()

    def count_reuse(self) -> None:
        """One forward that needed no vector, because the step's agreement covered it."""
        self.reused += 1
        if self._prometheus is not None:
            self._prometheus["reused"].inc()

    def count_moe_step(self, method: str) -> None:
        """One forward of one kind of MoE layers, by the method that it communicates by."""
        self.moe_steps[method] += 1
        if self._prometheus is not None:
            self._prometheus["moe_steps"].labels(str(self.rank), method).inc()

    def summary(self) -> str:
        mean = self.wait_seconds / self.exchanges * 1e6 if self.exchanges else 0.0
        return (
            f"DP rank {self.rank}: {self.steps} steps ({self.idle_steps} idle), {self.exchanges} exchanges, "
            f"{self.reused} saved, mean wait {mean:.0f} us, {self.padding_tokens} padding of "
            f"{self.tokens + self.padding_tokens} tokens"
            + "".join(f", {count} by {method}" for method, count in sorted(self.moe_steps.items()))
        )

    def _log_if_due(self) -> None:
        now = time.monotonic()
        if now - self._since >= self.interval:
            self._since = now
            logger.info("%s", self.summary())


def _prometheus_counters(rank: int) -> dict[str, Any] | None:
    if importlib.util.find_spec("prometheus_client") is None:
        return None
    texts = {
        "steps": "Forwards that took a data-parallel step sync",
        "exchanges": "Step-sync exchanges: all-reduces, or rounds through shared memory",
        "idle_steps": "Dummy steps of this rank",
        "reused": "Forwards that re-used the step's agreement",
        "padding_tokens": "Rows that ran as padding",
        "wait_seconds": "Host seconds blocked on other ranks' vectors",
    }
    counters = {key: _counter(key, text, "dp_rank").labels(str(rank)) for key, text in texts.items()}
    counters["moe_steps"] = _counter("moe_steps", "Forwards by the method of their MoE layers", "dp_rank", "method")
    return counters


def _counter(key: str, text: str, *labels: str) -> Any:
    import prometheus_client

    name = f"{_PREFIX}_{key}"
    try:
        return prometheus_client.Counter(name, text, labels)
    except ValueError:  # already registered in this process (an engine built twice)
        return prometheus_client.REGISTRY._names_to_collectors[name]
