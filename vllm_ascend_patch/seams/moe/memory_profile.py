# SPDX-License-Identifier: Apache-2.0
"""The memory profiling seam: the KV cache is sized after a pass with every communication method that serving will use.

Upstream profiles the largest batch only. A smaller one that takes another method, MC2 at its capacity for one, can need more
memory; so one more dummy pass runs at the largest size of each other method, on every rank alike.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm_ascend_patch.core.moe.selection import regimes
from vllm_ascend_patch.seams import serving


def profile_run(original: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Run upstream's profiling, then the passes that it leaves out."""
    serving.entering(runner)
    result = original(runner, *args, **kwargs)
    for tokens in extra_passes(runner.max_num_tokens):
        runner._dummy_run(tokens, is_profile=True)
        runner._sync_device()
    return result


def profile_run_v2(original: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    """The same on model runner V2, whose dummy steps prepare attention unless they are told not to."""
    serving.entering(runner)
    result = original(runner, *args, **kwargs)
    for tokens in extra_passes(runner.max_num_tokens):
        runner._dummy_run(tokens, skip_attn=True, is_profile=True)
        torch.accelerator.synchronize()
    return result


def extra_passes(max_num_tokens: int) -> list[int]:
    """Token counts to profile besides ``max_num_tokens``: the most that each method is used for which that batch leaves out.

    Depends on configuration only, so that all ranks run the same passes.
    """
    passes = set()
    for selector in serving.current().moe.selectors.values():
        found = regimes(selector.facts, selector.capacity, max_num_tokens, captured=False, forced=selector.forced)
        largest = {regime.choice.method: regime.last for regime in found}
        passes |= {tokens for tokens in largest.values() if tokens < max_num_tokens}
    return sorted(passes)
