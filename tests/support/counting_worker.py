# SPDX-License-Identifier: Apache-2.0
"""What a vLLM worker counts for the tests: collectives, as the dispatcher sees them, and forwards of the model.

vLLM imports this in each worker (``worker_extension_cls``) before it joins any process group; counting starts there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .collectives import CollectiveCounter
from .counted_forwards import FORWARDS, ForwardsWorker

COUNTER = CollectiveCounter()
COUNTER.__enter__()  # for the life of the worker's main thread


class CountingWorker(ForwardsWorker):
    """Methods that ``collective_rpc`` reaches."""

    parallel_config: Any

    def write_counts(self, folder: str) -> None:
        """Collectives since the process began, forwards since ``count_forwards``, vectors sent: into this rank's file, since
        vLLM hands back the answer of one engine only."""
        from vllm_ascend_patch.seams import serving

        session = serving.current().session
        counters = session.channel.counters if session is not None else None
        counts = {
            "collectives": [[*key, count] for key, count in sorted(COUNTER.calls.items())],
            "forwards": FORWARDS["model"],
            "drafter forwards": FORWARDS["drafter"],
            "posted": session.channel.posted if session is not None else None,
            "reused": counters.reused if counters is not None else None,
        }
        Path(folder, f"counts.rank{self.parallel_config.data_parallel_rank}.json").write_text(json.dumps(counts))
