# SPDX-License-Identifier: Apache-2.0
"""MC2: one fused operator sends every token to its experts' ranks, another brings the weighted sums back.

For small token counts; ``limits`` holds what the operators accept. Fixed sizes and no host read, so graphs can capture
it. Every rank calls with the same number of rows, the rows without a token being masked: of the two batching modes that
the vendor documents (equal rows with a mask, unequal rows without), only the first lets idle ranks take part.

Communication per layer:
    dispatch(EP, dedicated communicator) -> combine(EP, same communicator)
    -> all-gather(TP) unless sequence parallel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from vllm_ascend_patch.core.moe.constants import first_rows
from vllm_ascend_patch.core.moe.errors import MoEConfigError
from vllm_ascend_patch.core.moe.soc import Soc, detect_soc, dispatch_operator_version
from vllm_ascend_patch.core.moe.step import MoEStep, pad_rows
from vllm_ascend_patch.core.moe.topology import ExpertPlacement, Topology

from .base import DispatchedRows, MoECommMethod, MoEInput
from .padding import clean_rows
from .token_split import TokenShare, restore_all, take_share


@dataclass(frozen=True)
class Mc2Operators:
    """Which operators are called, and with which generation's argument rules.

    Attributes:
        soc: A2 wants the router weights at dispatch and returns ``expand_scales`` for combine; A3 must not get them.
        version: 1 or 2. Version 1 has no token mask: rows without a token are sent as zeros with weight zero.
    """

    soc: Soc
    version: int

    @classmethod
    def detect(cls) -> Mc2Operators:
        """What the device and the installed torch_npu have."""
        return cls(detect_soc(), dispatch_operator_version())

    @property
    def comm_alg(self) -> str:
        """A2: full mesh, the algorithm that accepts a mask. A3: the default, its full mesh."""
        return "fullmesh" if self.soc is Soc.A2 else ""


@dataclass(frozen=True, eq=False)
class Mc2Tokens:
    """This rank's share with its padding, B = ceil(max tokens / TP) rows, at least 1, equal on all ranks.

    Attributes:
        inputs: ``[B, ...]``, rows without a token cleaned.
        mask: bool ``[B]``, True for real tokens, all True before any False.
        share: how to get back to T rows.
    """

    inputs: MoEInput
    mask: torch.Tensor
    share: TokenShare


@dataclass(frozen=True, eq=False)
class Mc2Dispatch(DispatchedRows):
    """Rows of the local experts, A = B * EP * min(L, K), and what combine has to be given unchanged."""

    tokens: Mc2Tokens
    assist_info: torch.Tensor
    recv_counts: torch.Tensor
    expand_scales: torch.Tensor | None


class Mc2Method(MoECommMethod[Mc2Tokens, Mc2Dispatch]):
    """See the module docstring.

    Args:
        topology: needs ``mc2``, the dedicated communicator.
        placement: has to be even.
        operators: what to call; detected when not given.
    """

    name = "mc2"

    def __init__(self, topology: Topology, placement: ExpertPlacement, operators: Mc2Operators | None = None) -> None:
        super().__init__(topology, placement)
        if not topology.expert_parallel or topology.mc2 is None:
            raise MoEConfigError("MC2 needs expert parallelism over at least 2 ranks and a dedicated communicator")
        if not placement.is_even:
            raise MoEConfigError(
                f"MC2 needs the same number of experts on every rank, found {placement.counts}; add redundant experts "
                "up to a multiple of the expert parallel size"
            )
        self.communicator = topology.mc2
        self.operators = operators or Mc2Operators.detect()

    def prepare(self, inputs: MoEInput, step: MoEStep) -> Mc2Tokens:
        """``[T, H]`` -> this rank's share, padded to the agreed maximum: ``[B, H]``. No communication."""
        share = take_share(inputs, step, self.topology, max(step.max_tokens, 1))
        rows = share.chunk
        cleaned = clean_rows(share.inputs, self.placement.num_experts, rows, share.active, share.mask)
        if share.mask is not None:
            mask = pad_rows(share.mask, rows)
        else:
            mask = first_rows(rows, share.active, cleaned.hidden_states.device)
        return Mc2Tokens(cleaned, mask, share)

    def dispatch(self, prepared: Mc2Tokens) -> Mc2Dispatch:
        """``[B, H]`` -> dispatch(EP), quantising on the way when the experts are -> ``[A, H]``."""
        import torch_npu

        inputs = prepared.inputs
        arguments: dict[str, Any] = {
            "x": inputs.hidden_states,
            "expert_ids": inputs.topk_ids,
            **self._group,
            "quant_mode": 2 if inputs.quantize else 0,
            "global_bs": 0,
            "expert_token_nums_type": 0 if inputs.sums else 1,
        }
        if self.operators.soc is Soc.A2:
            arguments["expert_scales"] = inputs.topk_weights
        if self.operators.version == 2:
            arguments |= {"x_active_mask": prepared.mask, "comm_alg": self.operators.comm_alg}
            outputs = torch_npu.npu_moe_distribute_dispatch_v2(**arguments)
        else:
            outputs = torch_npu.npu_moe_distribute_dispatch(**arguments)
        rows, row_scales, assist_info, counts, recv_counts, _, expand_scales = outputs
        return Mc2Dispatch(
            rows,
            counts,
            row_scales if inputs.quantize else None,
            prepared,
            assist_info,
            recv_counts,
            expand_scales if self.operators.soc is Soc.A2 else None,
            sums=inputs.sums,
        )

    def combine(self, dispatched: Mc2Dispatch, expert_output: torch.Tensor) -> torch.Tensor:
        """``[A, H]`` -> combine(EP), weighting and summing on the way -> ``[B, H]``, zero in masked rows."""
        import torch_npu

        tokens = dispatched.tokens
        arguments: dict[str, Any] = {
            "expand_x": expert_output,
            "expert_ids": tokens.inputs.topk_ids,
            "ep_send_counts": dispatched.recv_counts,
            "expert_scales": tokens.inputs.topk_weights,
            **self._group,
            "expand_scales": dispatched.expand_scales,
            "global_bs": 0,
        }
        if self.operators.version == 2:
            arguments |= {
                "assist_info_for_combine": dispatched.assist_info,
                "x_active_mask": tokens.mask,
                "comm_alg": self.operators.comm_alg if self.operators.soc is Soc.A2 else "",
            }
            combined = torch_npu.npu_moe_distribute_combine_v2(**arguments)
        else:
            combined = torch_npu.npu_moe_distribute_combine(expand_idx=dispatched.assist_info, **arguments)
        # What the operator leaves in masked rows is not documented.
        if tokens.share.mask is not None:
            return combined.masked_fill_(~tokens.mask.unsqueeze(1), 0)
        if tokens.share.active < combined.shape[0]:
            combined[tokens.share.active :].zero_()
        return combined

    def finalize(self, prepared: Mc2Tokens, combined: torch.Tensor) -> torch.Tensor:
        """``[B, H]`` -> all-gather(TP) unless sequence parallel -> ``[T, H]``."""
        return restore_all(prepared.share, combined, self.topology)

    @cached_property
    def _group(self) -> dict[str, Any]:
        """Arguments of every call; the communicator is opened when they are first needed."""
        return {
            "group_ep": self.communicator.name,
            "ep_world_size": self.topology.ep.size,
            "ep_rank_id": self.topology.ep.rank,
            "moe_expert_num": self.placement.num_experts,
        }
