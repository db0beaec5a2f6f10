# SPDX-License-Identifier: Apache-2.0
"""The functions of vLLM by which the watchdog tells a worker that is busy from one that nobody calls. Names only: one that a
release does not have is never met."""

from __future__ import annotations

from vllm_ascend_patch.core.dp.activity import Landmarks

WORKER = Landmarks(
    calls=frozenset(
        {
            # a worker process of its own
            "WorkerProc.worker_busy_loop",
            "WorkerProc._execute_worker_rpc",
            # a worker inside its engine's process
            "EngineCoreProc.run_busy_loop",
            "DPEngineCoreProc.run_busy_loop",
            "EngineCoreProc._handle_client_request",
            "run_method",
        }
    ),
    waits=frozenset(
        {
            "MessageQueue.dequeue",
            "EngineCoreProc._process_input_queue",
            "DPEngineCoreProc._has_global_unfinished_reqs",
        }
    ),
)
