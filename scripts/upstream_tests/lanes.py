# SPDX-License-Identifier: Apache-2.0
"""Which of upstream's tests are run, in lanes, with the environment and the time that each file gets. A table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

RELEASE = "0.32.0"
"""The release whose tests are run: that of the default line."""


@dataclass(frozen=True)
class Run:
    """A file of tests, run once.

    Attributes:
        name: its key in the result file.
        file: below ``tests/``.
        seconds: time limit of the whole file.
        select: pytest's ``-k``.
        environment: added to that of every run.
        torchrun: processes that ``torchrun`` starts on it, for files that are scripts and not pytest's.
    """

    name: str
    file: str
    seconds: float = 300
    select: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    torchrun: int = 0


_SERVER = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "300"}
"""A server closes a connection that was idle for 5 s. Where requests take seconds, a client of these tests, which asks once,
meets the moment at which one is closed: with bursts of 200 requests on two cores some do."""

LANES: dict[str, tuple[Run, ...]] = {
    "short": (
        Run("fused top-k", "kernels/moe/test_fused_topk.py"),
        Run("rejection sampler", "v1/sample/test_rejection_sampler.py"),
        Run("routing simulator", "kernels/moe/test_routing_simulator.py"),
    ),
    "kernels": (
        Run("routing", "kernels/moe/test_routing.py", 600),
        Run("grouped top-k", "kernels/moe/test_grouped_topk.py", 600, select="single_group or kimi"),
        Run("weight loading", "kernels/moe/test_moe_weight_loading_padded.py"),
        Run("sampler", "v1/sample/test_sampler.py"),
    ),
    "eplb": (
        Run("algorithm", "distributed/test_eplb_algo.py"),
        Run("events", "distributed/test_eplb_events.py"),
        Run("migration", "distributed/test_eplb_migration_scheduler.py"),
        Run("utilities", "distributed/test_eplb_utils.py"),
        Run("placement", "distributed/test_expert_placement.py"),
        Run("execute", "distributed/test_eplb_execute.py", 1500),
        Run("layer", "distributed/test_eplb_fused_moe_layer.py", 900),
    ),
    "torchrun": tuple(
        Run(name, "distributed/test_torchrun_example_moe.py", 600, environment={**sizes, "ENABLE_EP": "1"}, torchrun=4)
        for name, sizes in (
            ("DP 4", {"DP_SIZE": "4"}),
            ("TP 4", {"TP_SIZE": "4"}),
            ("TP 2 x DP 2", {"TP_SIZE": "2", "DP_SIZE": "2"}),
        )
    ),
    "external": tuple(
        Run(f"external, {case}", "v1/distributed/test_external_lb_dp.py", 900, select=case, environment=_SERVER)
        for case in ("api-1-standard", "api-4-standard", "api-1-ep-enabled")
    ),
    "hybrid": tuple(
        Run(f"hybrid, API servers: {count}", "v1/distributed/test_hybrid_lb_dp.py", 900, f"[{count}", _SERVER)
        for count in (1, 4)
    ),
    "internal": tuple(
        Run(name, "v1/distributed/test_internal_lb_dp.py", 900, select=select, environment=_SERVER)
        for name, select in (
            ("internal, two launches", "multinode and not api_only"),
            ("internal, no engine beside", "api_only"),
        )
    ),
    "async": (
        Run("dense DP", "v1/distributed/test_dense_dp_world_size.py", 600),
        Run("load", "v1/distributed/test_async_llm_dp.py", 900, select="test_load"),
        Run("pause", "v1/distributed/test_async_llm_dp.py", 1500, select="not test_load"),
        Run("PP x DP", "v1/distributed/test_pp_dp_v2.py", 600),
    ),
}

NO_LANE = {
    "kernels/moe/test_moe_layer.py": "its reference is a Triton kernel, and its processes make layers without a worker, "
    "which is what puts this port's MoE methods in place",
    "kernels/moe/test_zero_expert_moe.py": "experts without weights are refused",
    "v1/distributed/test_dbo.py": "micro-batching is refused",
    "v1/distributed/test_eagle_dp.py": "its drafter is `eagle`, and its tokens those of a batch-invariant mode; of drafters "
    "ngram, mtp and eagle3 are served, and that mode is refused",
    "distributed/test_eplb_fused_moe_layer_dep_nvfp4.py": "FP4 checkpoints are refused",
    "distributed/test_eplb_quant_scale_consistency.py": "FP4 checkpoints are refused",
    "distributed/test_eplb_spec_decode.py": "asks how well real checkpoints of many billions of parameters answer",
}
"""Files of the same subjects that are in no lane, and why."""
