# SPDX-License-Identifier: Apache-2.0
"""Reads from vLLM's configuration what the choice of an MoE communication method depends on.

One selector per process and set of facts, so that the choice is logged once per change and counted in one place.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from vllm_ascend_patch import envs
from vllm_ascend_patch.core.moe.capacity import SchedulerFacts
from vllm_ascend_patch.core.moe.limits import MoEFacts
from vllm_ascend_patch.core.moe.selection import MethodSelector
from vllm_ascend_patch.core.moe.soc import detect_soc, dispatch_operator_version
from vllm_ascend_patch.core.moe.topology import Topology

_selectors: list[MethodSelector] = []
_worker_config: Any = None


def selector_of(layer: Any, layout: Topology, quantized: bool) -> MethodSelector:
    """The selector for a layer; raises ``MoELimitError`` when a forced method or ``HCCL_BUFFSIZE`` cannot work."""
    config = _config()
    moe = layer.moe_config
    facts = MoEFacts(
        soc=detect_soc(),
        operator_version=dispatch_operator_version(),
        tp_size=layout.tp.size,
        dp_size=layout.dp.size,
        ep_size=layout.ep.size,
        num_experts=layer.global_num_experts,
        hidden_size=moe.hidden_dim,
        top_k=moe.experts_per_token,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        num_nodes=num_nodes(config.parallel_config),
        hccl_buffsize_mib=hccl_buffsize(),
        quantized=quantized,
    )
    return _selector(facts, scheduler_facts(config), envs.VLLM_ASCEND_PATCH_MOE_COMM)


def remember_config(config: Any) -> None:
    """The worker's configuration, for releases that load weights outside of any current one."""
    global _worker_config
    _worker_config = config


def worker_config() -> Any:
    """The configuration of the model that this process serves."""
    return _worker_config


def _config() -> Any:
    import vllm.config

    # Releases without this function make a default configuration where there is no current one.
    current = getattr(vllm.config, "get_current_vllm_config_or_none", lambda: None)()
    return current if current is not None and current.model_config is not None else _worker_config


@cache
def _selector(facts: MoEFacts, scheduler: SchedulerFacts, forced: str) -> MethodSelector:
    selector = MethodSelector(facts, scheduler, forced)
    _selectors.append(selector)
    return selector


def selectors() -> tuple[MethodSelector, ...]:
    """Every selector of this process: one for each kind of MoE layer that was loaded."""
    return tuple(_selectors)


def scheduler_facts(config: Any) -> SchedulerFacts:
    """What bounds the tokens of a step, from vLLM's configuration."""
    scheduler, compilation = config.scheduler_config, config.compilation_config
    speculative = config.speculative_config
    drafts = (speculative.num_speculative_tokens or 0) if speculative is not None else 0
    graph_mode = getattr(compilation, "cudagraph_mode", None)  # the oldest releases have none
    graphs = graph_mode is not None and graph_mode.name != "NONE"
    return SchedulerFacts(
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_num_seqs=scheduler.max_num_seqs,
        tokens_per_decode=1 + drafts,
        max_captured_tokens=largest_graph(compilation) if graphs else 0,
    )


def largest_graph(compilation: Any) -> int:
    """Tokens of the largest graph that is captured, 0 without any."""
    return max(compilation.cudagraph_capture_sizes or (0,))


def num_nodes(parallel: Any) -> int:
    """Machines that the ranks span: as configured, or from how many data-parallel ranks are local."""
    local = parallel.data_parallel_size_local or parallel.data_parallel_size
    return max(getattr(parallel, "nnodes", 1), -(-parallel.data_parallel_size // max(local, 1)))


def hccl_buffsize() -> int | None:
    """``HCCL_BUFFSIZE`` in MiB, None when not set."""
    text = os.environ.get("HCCL_BUFFSIZE", "").strip()
    if not text:
        return None
    if not text.isdigit() or int(text) == 0:
        raise ValueError(f"HCCL_BUFFSIZE={text!r} is not valid: use a whole number of MiB above 0, or unset it")
    return int(text)
