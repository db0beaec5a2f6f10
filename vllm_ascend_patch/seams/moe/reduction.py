# SPDX-License-Identifier: Apache-2.0
"""Who adds up the experts' results over tensor-parallel ranks: every method of ``core/moe`` returns complete sums.

New releases ask the layer's runner whether that is done (``output_is_reduced``). Older ones decide in model
code, per model, and add shared experts' partial sums in the same all-reduce; there the complete sums go in once.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm_ascend_patch.core.moe.topology import Topology


def output_is_reduced(original: Any, runner: Any) -> bool:
    """True for our methods: each returns complete sums, so upstream must not reduce them again."""
    method = runner._quant_method if hasattr(runner, "_quant_method") else runner.quant_method
    return getattr(method, "returns_complete_sums", False) or original(runner)


def upstream_adds_up(layout: Topology) -> bool:
    """Whether upstream sums the result over the tensor-parallel ranks of ``layout`` whatever the method returns. Asked
    once per layer, when its weights are loaded."""
    if layout.tp.size == 1 or layout.sequence_parallel:
        return False
    try:
        from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
    except ImportError:
        return True
    return not hasattr(MoERunner, "_fused_output_is_reduced")


def share(complete: torch.Tensor, layout: Topology) -> torch.Tensor:
    """This rank's summand of ``complete``: all of it on tensor-parallel rank 0, zeros elsewhere. Exact in any dtype."""
    return complete if layout.tp.rank == 0 else torch.zeros_like(complete)
