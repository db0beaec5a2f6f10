# SPDX-License-Identifier: Apache-2.0
"""The memory profiling seam: the KV cache is sized after a pass with every communication method that serving will use.

Upstream profiles the largest batch only. Where that batch takes another method than smaller ones do, MC2 at its capacity
can need more memory than the largest batch; then one more dummy pass runs at that size, on every rank alike.
"""

from __future__ import annotations

from typing import Any

from vllm_ascend_patch.core.moe.selection import MC2, MethodSelector, select
from vllm_ascend_patch.seams import serving


def profile_run(original: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Run upstream's profiling, then the passes that it leaves out."""
    serving.entering(runner)
    result = original(runner, *args, **kwargs)
    for tokens in extra_passes(runner.max_num_tokens):
        runner._dummy_run(tokens, is_profile=True)
        runner._sync_device()
    return result


def extra_passes(max_num_tokens: int) -> list[int]:
    """Token counts to profile besides ``max_num_tokens``: MC2's capacities, where the largest batch takes another method.

    Depends on configuration only, so that all ranks run the same passes.
    """
    capacities = set()
    for selector in serving.current().moe.selectors.values():
        capacity = selector.capacity.tokens
        largest = _method(selector, max_num_tokens)
        if 0 < capacity < max_num_tokens and largest != MC2 and _method(selector, capacity) == MC2:
            capacities.add(capacity)
    return sorted(capacities)


def _method(selector: MethodSelector, tokens: int) -> str:
    return select(selector.facts, selector.capacity, tokens, captured=False, forced=selector.forced).method
