# SPDX-License-Identifier: Apache-2.0
"""What a vLLM worker counts for the tests: collectives, as the dispatcher sees them, and forwards of the model.

vLLM imports this in each worker (`worker_extension_cls`) before it joins any process group; counting starts there.
"""

from __future__ import annotations

from typing import Any

from .collectives import CollectiveCounter

COUNTER = CollectiveCounter()
COUNTER.__enter__()  # for the life of the worker's main thread
FORWARDS: dict[str, int] = {"model": 0}


class CountingWorker:
    """Methods that `collective_rpc` reaches."""

    model_runner: Any

    def count_forwards(self) -> None:
        """Count forwards of the model from now on."""

        def count(module: Any, args: Any) -> None:
            FORWARDS["model"] += 1

        self.model_runner.get_model().register_forward_pre_hook(count)

    def read_counts(self) -> dict[str, Any]:
        """Collectives since the process began, forwards since `count_forwards`, vectors sent."""
        from vllm_ascend_patch.core.dp.current import current_session

        session = current_session()
        return {
            "collectives": [[*key, count] for key, count in sorted(COUNTER.calls.items())],
            "forwards": FORWARDS["model"],
            "posted": session.channel.posted if session is not None else None,
            "reused": session.channel.counters.reused if session is not None else None,
        }
