# SPDX-License-Identifier: Apache-2.0
"""vLLM's configuration and contexts, read alike in every release. Reads only; nothing is kept."""

from __future__ import annotations

import os
from typing import Any

import torch

from vllm_ascend_patch.releases import guard


def has_graphs(compilation: Any) -> bool:
    """Whether graphs are captured; the oldest release has no mode for them."""
    mode = getattr(compilation, "cudagraph_mode", None)
    return mode is not None and mode.name != "NONE"


def largest_graph(compilation: Any) -> int:
    """Tokens of the largest graph that is captured, 0 without any."""
    return max(compilation.cudagraph_capture_sizes or (0,))


def uses_runner_v2(config: Any) -> bool:
    """Whether model runner V2 serves; a release that has only one of the two has no such question."""
    return bool(getattr(config, "use_v2_model_runner", not guard.has_runner_v1()))


def num_nodes(parallel: Any) -> int:
    """Machines that the ranks span: as configured, or from how many data-parallel ranks are local."""
    local = parallel.data_parallel_size_local or parallel.data_parallel_size
    return max(getattr(parallel, "nnodes", 1), -(-parallel.data_parallel_size // max(local, 1)))


def int8_experts(vllm_config: Any) -> bool | None:
    """Whether routed experts are int8, where the quantisation itself knows; None where ``config.json`` has to tell."""
    return getattr(vllm_config.quant_config, "int8_experts", None)


def hccl_buffsize() -> int | None:
    """``HCCL_BUFFSIZE`` in MiB, None when not set. ``ValueError`` for what is no number of MiB."""
    text = os.environ.get("HCCL_BUFFSIZE", "").strip()
    if not text:
        return None
    if not text.isdigit() or int(text) == 0:
        raise ValueError(f"HCCL_BUFFSIZE={text!r} is not valid: use a whole number of MiB above 0, or unset it")
    return int(text)


def tokens_across_dp(metadata: Any) -> torch.Tensor | None:
    """int32 ``[dp size]`` on the CPU, from vLLM's ``DPMetadata``; the oldest releases keep running sums."""
    if metadata is None:
        return None
    counts = getattr(metadata, "num_tokens_across_dp_cpu", None)
    if counts is None:
        sums = metadata.cu_tokens_across_dp_cpu
        counts = torch.diff(sums, prepend=sums.new_zeros(1))
    return counts


def dp_rank() -> int:
    """This process's rank in the data-parallel group that runs now."""
    from vllm.distributed.parallel_state import get_dp_group

    return get_dp_group().rank_in_group
