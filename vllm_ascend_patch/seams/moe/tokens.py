# SPDX-License-Identifier: Apache-2.0
"""Carries what the ranks agreed on for a forward step from vLLM's forward context to the MoE layers.

vLLM asks the platform for additional fields on every forward, real or dummy, once the token counts of all data-parallel
ranks are known (see ``tokens_before_0_14.py`` for releases that do not). Everything here is host side and the same on every
rank, except how many of this rank's rows are real.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_ascend_patch.core import trace
from vllm_ascend_patch.core.dp import current as dp
from vllm_ascend_patch.core.moe.active_mask import ActiveMask
from vllm_ascend_patch.core.moe.selection import MethodSelector
from vllm_ascend_patch.core.moe.step import MoEStep

from .facts import largest_graph, selectors

if TYPE_CHECKING:
    import torch

FIELD = "vllm_ascend_patch_step"

_active_mask: ActiveMask | None = None  # one per process: graphs keep its address


@dataclass(frozen=True)
class ForwardTokens:
    """The token counts of one forward.

    Attributes:
        per_dp_rank: rows that each data-parallel rank runs, padding included.
        active: rows of this rank that belong to requests; they come first.
        captured: whether the MoE layers of this forward run inside a captured graph.
        mask: bool, True for the active rows, in memory that a captured graph reads at every replay; None when eager.
    """

    per_dp_rank: tuple[int, ...]
    active: int
    captured: bool
    mask: torch.Tensor | None = None
    _steps: dict[int, MoEStep] = field(default_factory=dict, repr=False, compare=False)

    def step(self, selector: MethodSelector) -> MoEStep:
        """The step for layers with ``selector``; chosen once per forward, however many layers ask."""
        step = self._steps.get(id(selector))
        if step is None:
            choice = selector.choose(max(self.per_dp_rank), self.captured)
            distributed = selector.facts.ep_size > 1 or selector.facts.dp_size > 1
            mask = self.mask if distributed else None  # rows that stay on their rank need none
            step = MoEStep(self.per_dp_rank, self.active, choice.method, self.captured, mask)
            if trace.enabled():
                trace.instant(
                    "moe",
                    {
                        "method": choice.method,
                        "reason": choice.reason,
                        "max_tokens": max(self.per_dp_rank),
                        "captured": self.captured,
                    },
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
    active = _own_tokens(context) if agreement is None else agreement.active_tokens[_dp_rank(context)]
    graph_mode = context.get("cudagraph_runtime_mode")
    if graph_mode is None or graph_mode.name == "NONE":
        return {FIELD: ForwardTokens(per_dp_rank, active, captured=False), **fields}
    tokens = ForwardTokens(per_dp_rank, active, captured=True, mask=_mask(context, active, int(num_tokens)))
    for selector in selectors():  # a replay runs no layer's Python, which would ask otherwise
        tokens.step(selector)
    return {FIELD: tokens, **fields}


def _mask(context: dict[str, Any], active: int, rows: int) -> torch.Tensor | None:
    """The rows of this forward in the mask that all graphs share, brought up to date on the current stream."""
    global _active_mask
    if not any(selector.facts.ep_size > 1 or selector.facts.dp_size > 1 for selector in selectors()):
        return None
    if _active_mask is None:
        _active_mask = ActiveMask(largest_graph(context["vllm_config"].compilation_config), "npu")
    _active_mask.set(active)
    return _active_mask.first(rows)


def _own_tokens(context: dict[str, Any]) -> int:
    """Tokens of requests in this forward, without data parallelism; attention knows them when a graph has padded."""
    metadata = context.get("attn_metadata")
    first = next(iter(metadata.values()), None) if isinstance(metadata, dict) else None
    return min(int(context["num_tokens"]), getattr(first, "num_tokens", int(context["num_tokens"])))


def _dp_rank(context: dict[str, Any]) -> int:
    rank = context.get("dp_rank")
    return context["vllm_config"].parallel_config.data_parallel_rank if rank is None else rank


def current_tokens(rows: int) -> ForwardTokens:
    """The token counts of the forward that is running; ``rows`` are those of the asking layer's input."""
    from vllm.forward_context import get_forward_context

    context = get_forward_context()
    fields = getattr(context, "additional_kwargs", None)
    if fields is None:
        from .tokens_before_0_14 import forward_tokens

        return forward_tokens(context, rows)
    tokens = fields.get(FIELD)
    if tokens is None:
        raise RuntimeError(
            "an MoE layer ran without the step's token counts: the forward context was not made through the NPU platform"
        )
    return tokens
