# SPDX-License-Identifier: Apache-2.0
"""The functions of vLLM by which the watchdog tells a worker that is busy from one that nobody calls. Names only: one that a
release does not have is never met."""

from __future__ import annotations

from vllm_ascend_patch.core.dp.activity import Landmarks

WORKER = Landmarks(
    calls=frozenset(
        {
            # a worker process of its own
            "worker_busy_loop",
            "_execute_worker_rpc",
            # a worker inside its engine's process
            "run_busy_loop",
            "_handle_client_request",
            "run_method",
        }
    ),
    waits=frozenset({"dequeue", "_process_input_queue", "_has_global_unfinished_reqs"}),
)
