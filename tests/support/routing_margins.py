# SPDX-License-Identifier: Apache-2.0
"""How clearly routers choose: those of DeepSeek-V3's kind in transformers (sigmoid scores, a bias for selection, groups) and
Mixtral's (logits).

A token whose experts are a matter of rounding is another token in the engine, whatever its logits are by: where there are
groups, all its experts change at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.mixtral import modeling_mixtral

# From transformers 5 on; before, Mixtral's router is a linear layer like others, and is not looked at.
_MIXTRAL: tuple[type, ...] = (found,) if (found := getattr(modeling_mixtral, "MixtralTopKRouter", None)) else ()


class RoutingMargins:
    """While entered, notes by how much a token's experts, or their groups, are ahead of the next.

    Attributes:
        smallest: ``[T]``, over the layers, in units of the scores or logits; infinite for a model without such routers.
    """

    smallest: torch.Tensor

    def __init__(self, model: nn.Module) -> None:
        self.routers = [module for module in model.modules() if _chooses(module)]

    def __enter__(self) -> RoutingMargins:
        self.smallest = torch.full((1,), torch.inf)
        self.hooks = [router.register_forward_hook(self._note) for router in self.routers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _note(self, router: Any, _: Any, output: tuple[torch.Tensor, ...]) -> None:
        if isinstance(router, _MIXTRAL):
            self._keep(output[0], int(router.top_k))  # type: ignore[attr-defined]
            return
        scores = (output[0].sigmoid() + router.e_score_correction_bias).unflatten(1, (router.num_group, -1))
        groups = scores.topk(2, dim=-1).values.sum(dim=-1)
        chosen = torch.zeros_like(groups, dtype=torch.bool).scatter(1, groups.topk(router.topk_group).indices, True)
        experts = scores.masked_fill(~chosen.unsqueeze(-1), -torch.inf).flatten(1)
        self._keep(groups, router.topk_group)
        self._keep(experts, router.top_k)

    def _keep(self, ranked: torch.Tensor, count: int) -> None:
        if count < ranked.shape[1]:
            last, following = ranked.topk(count + 1).values[:, -2:].unbind(1)
            self.smallest = self.smallest.minimum(last - following)


def _chooses(module: nn.Module) -> bool:
    return hasattr(module, "e_score_correction_bias") or isinstance(module, _MIXTRAL)
