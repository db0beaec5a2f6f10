# SPDX-License-Identifier: Apache-2.0
"""What each worker of a matrix run tells about itself: its patches, its forwards and collectives, counted independently.

vLLM mixes ``MatrixWorker`` into its worker class (``worker_extension_cls``); the engine script calls it over
``collective_rpc``. Every worker writes a file of its own, because an engine with data parallelism returns one rank's answer.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.support.collectives import CollectiveCounter
from tests.support.counted_forwards import FORWARDS, ForwardsWorker

COUNTER = CollectiveCounter()
REPLAYS: Counter[str] = Counter()


class MatrixWorker(ForwardsWorker):
    """Methods that ``collective_rpc`` reaches."""

    vllm_config: Any

    def matrix_begin(self) -> None:
        """Count from here on. Start-up is over: torch up to 2.8 compiles nothing while something watches its operators."""
        self.count_forwards()
        COUNTER.__enter__()  # for the life of the worker's main thread
        _count_replays()

    def matrix_posted(self) -> int:
        """Step vectors sent so far."""
        from vllm_ascend_patch.seams import serving

        session = serving.current().session
        return session.channel.posted if session is not None else 0

    def matrix_force(self, method: str) -> None:
        """From the next step on, one MoE communication method, checked against the limits as at start-up."""
        from vllm_ascend_patch.core.moe.selection import MethodSelector
        from vllm_ascend_patch.seams import serving
        from vllm_ascend_patch.seams.moe.facts import scheduler_facts

        for selector in serving.current().moe.selectors.values():
            forced = MethodSelector(selector.facts, scheduler_facts(self.vllm_config), method)
            vars(selector).update(vars(forced))

    def matrix_report(self, folder: str) -> None:
        """Write what happened in this process since ``matrix_begin``, and end its trace: some releases kill workers."""
        from vllm_ascend_patch.core import trace
        from vllm_ascend_patch.seams import serving

        trace.stop()

        session = serving.current().session
        transport = session.channel.transport if session is not None else None
        report = {
            "forwards": FORWARDS["model"],
            "replays": REPLAYS["graph"],
            "whole_steps": FORWARDS["whole steps"],
            "vector": (transport.name, transport.payload_bytes) if transport is not None else None,
            "all_reduces": [
                {"ranks": ranks, "device": device, "bytes": size, "count": count}
                for (operator, ranks, device, size), count in sorted(COUNTER.calls.items())
                if operator == "allreduce_" and count
            ],
            "patches": _patches(),
        }
        Path(folder, f"worker-{os.getpid()}.json").write_text(json.dumps(report))


def _count_replays() -> None:
    """Count the replays of graphs from now on, whoever asks for them."""
    import torch_npu

    replay = torch_npu.npu.NPUGraph.replay

    def counted(graph: Any) -> Any:
        REPLAYS["graph"] += 1
        return replay(graph)

    torch_npu.npu.NPUGraph.replay = counted


def _patches() -> dict[str, str]:
    """The state of every patch in this process. Those of modules that serving did not need are applied by importing
    them, which is when the patch would take effect."""
    import vllm_ascend_patch

    waiting = [row.patch for row in vllm_ascend_patch.status() if str(row.state) == "armed"]
    for patch in waiting:
        try:
            import_module(patch.target.partition(":")[0])
        except ImportError:
            continue  # stays armed, and is reported so
    unused = {patch.id for patch in waiting}
    return {
        row.patch.id: "applied on import" if row.patch.id in unused and str(row.state) == "applied" else str(row.state)
        for row in vllm_ascend_patch.status()
    }
