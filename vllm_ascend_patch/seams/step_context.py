# SPDX-License-Identifier: Apache-2.0
"""Carries what the ranks agreed on for a forward step from vLLM's forward context to the MoE layers.

vLLM asks the platform for additional fields on every forward, real or dummy, once the token counts of all data-parallel
ranks are known. Everything here is host side and the same on every rank, except how many of this rank's rows are real.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm_ascend_patch.core import trace
from vllm_ascend_patch.core.dp import current as dp
from vllm_ascend_patch.core.moe.selection import MethodSelector
from vllm_ascend_patch.core.moe.step import MoEStep

FIELD = "vllm_ascend_patch_step"


@dataclass(frozen=True)
class ForwardTokens:
    """The token counts of one forward.

    Attributes:
        per_dp_rank: rows that each data-parallel rank runs, padding included.
        active: rows of this rank that belong to requests; they come first.
        captured: whether the MoE layers of this forward run inside a captured graph.
    """

    per_dp_rank: tuple[int, ...]
    active: int
    captured: bool
    _steps: dict[int, MoEStep] = field(default_factory=dict, repr=False, compare=False)

    def step(self, selector: MethodSelector) -> MoEStep:
        """The step for layers with ``selector``; chosen once per forward, however many layers ask."""
        step = self._steps.get(id(selector))
        if step is None:
            choice = selector.choose(max(self.per_dp_rank), self.captured)
            step = MoEStep(self.per_dp_rank, self.active, choice.method, self.captured)
            if trace.enabled():
                trace.instant(
                    "moe", {"method": choice.method, "reason": choice.reason, "max_tokens": max(self.per_dp_rank)}
                )
            self._steps[id(selector)] = step
        return step


def forward_context_fields(**context: Any) -> dict[str, Any]:
    """Fields for ``ForwardContext.additional_kwargs``; ``context`` is what vLLM passes to the platform hook."""
    num_tokens = context.get("num_tokens")
    if num_tokens is None:
        return {}
    across_dp = context.get("num_tokens_across_dp")
    per_dp_rank = (int(num_tokens),) if across_dp is None else tuple(across_dp.tolist())
    microbatched = context.get("ubatch_slices") is not None
    fields = dp.forward_context_fields(per_dp_rank if len(per_dp_rank) > 1 and not microbatched else None)
    agreement = fields[dp.AGREEMENT_FIELD]
    active = int(num_tokens) if agreement is None else agreement.active_tokens[_dp_rank(context)]
    graph_mode = context.get("cudagraph_runtime_mode")
    captured = graph_mode is not None and graph_mode.name != "NONE"
    return {FIELD: ForwardTokens(per_dp_rank, active, captured), **fields}


def _dp_rank(context: dict[str, Any]) -> int:
    rank = context.get("dp_rank")
    return context["vllm_config"].parallel_config.data_parallel_rank if rank is None else rank


def current_tokens(rows: int) -> ForwardTokens:
    """The token counts of the forward that is running; ``rows`` are those of the asking layer's input."""
    from vllm.forward_context import get_forward_context

    context = get_forward_context()
    fields = getattr(context, "additional_kwargs", None)
    if fields is None:
        from vllm_ascend_patch.seams.step_metadata import forward_tokens

        return forward_tokens(context, rows)
    tokens = fields.get(FIELD)
    if tokens is None:
        raise RuntimeError(
            "an MoE layer ran without the step's token counts: the forward context was not made through the NPU platform"
        )
    return tokens
