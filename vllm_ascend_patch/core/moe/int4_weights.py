# SPDX-License-Identifier: Apache-2.0
"""W4A8 experts' weights as ``npu_grouped_matmul`` takes them, int4 per output channel. The MLP is ``experts.py``'s.

Checkpoints have two neighbouring outputs in a byte, ``[N / 2, K]``; the operator wants eight in an int32, ``[K, N / 8]``.
These are the same bytes transposed: parameters are views of transposed memory, and a loader that copies lays them out.
"""

from __future__ import annotations

import torch

from vllm_ascend_patch.core.int8_scales import of_bits
from vllm_ascend_patch.core.operator_limits import int4_sizes_problem

from .activations import Activation
from .errors import MoEConfigError
from .experts import ExpertWeights


def check_int4_activation(activation: Activation) -> None:
    """Raise ``MoEConfigError`` for an activation that the operators around int4 weights do not have."""
    if not activation.plain_swiglu:
        raise MoEConfigError(
            f"experts with activation {activation.name!r} and int4 weights are not supported; supported with them: silu"
        )


def empty_int4(experts: int, outputs: int, inputs: int) -> torch.Tensor:
    """int8 ``[E, N / 2, K]`` for a checkpoint's bytes, a view of ``[E, K, N / 2]`` in memory."""
    return torch.empty(experts, inputs, outputs // 2, dtype=torch.int8).transpose(1, 2)


def pack_outputs(integers: torch.Tensor) -> torch.Tensor:
    """int8 ``[N / 2, K]`` of integers ``[N, K]`` from -8 to 7: of two neighbouring outputs the first in the lower half."""
    return (integers[0::2] & 15) | (integers[1::2] * 16)


def scale_bias(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """float32 ``[N, 1]``: 8 times the sum over the inputs of weight times scale, of one expert's part on this rank.

    Args:
        packed: int8 ``[N / 2, K]`` of ``pack_outputs``.
        scale: int64 ``[N, 1]``, the bits of float32s.
    """
    low = packed & 15
    # A byte is 16 times its upper half and its lower half as it stands, without a sign.
    upper = (packed.sum(-1, dtype=torch.int32) - low.sum(-1, dtype=torch.int32)) // 16
    lower = ((low ^ 8) - 8).sum(-1, dtype=torch.int32)
    sums = torch.stack([lower, upper], dim=1).view(-1, 1)
    return 8 * sums.float() * of_bits(scale)


def int4_weights(
    w13: torch.Tensor,
    w2: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    w13_scale_bias: torch.Tensor,
    w2_scale_bias: torch.Tensor,
    *,
    output_dtype: torch.dtype,
) -> ExpertWeights:
    """Views of a layer's parameters in the operator's shapes; nothing is copied.

    Args:
        w13: int8 ``[E, I, H]`` of ``empty_int4``: gate rows, then up rows, two outputs in each.
        w2: int8 ``[E, H / 2, I]``, likewise.
        w13_scale: int64 ``[E, 2I, 1]``, the bits of float32s.
        w2_scale: int64 ``[E, H, 1]``.
        w13_scale_bias: float32 ``[E, 2I, 1]``: 8 times the sum over the inputs of weight times scale.
        w2_scale_bias: float32 ``[E, H, 1]``, over this rank's inputs.
        output_dtype: bfloat16 or float16.
    """
    return ExpertWeights(
        w13.transpose(1, 2).view(torch.int32),
        w2.transpose(1, 2).view(torch.int32),
        output_dtype,
        w13_scale=w13_scale.view(w13_scale.shape[0], 1, -1),
        w2_scale=w2_scale.view(w2_scale.shape[0], 1, -1),
        w13_scale_bias=w13_scale_bias.view(w13_scale_bias.shape[0], -1),
        w2_scale_bias=w2_scale_bias.view(w2_scale_bias.shape[0], -1),
    )


def check_int4_sizes(hidden_size: int, intermediate_size: int) -> None:
    """``MoEConfigError`` unless the operator takes int4 weights of these sizes, ``I`` being this rank's."""
    problem = int4_sizes_problem(hidden_size, intermediate_size)
    if problem is not None:
        raise MoEConfigError(problem)


def scale_bias_of_rank(name: str, parts: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
    """``[N, 1]``: the sum over the inputs of one of ``ranks``, of sums ``[N, P]`` over as large a part of all inputs each.

    ``MoEConfigError`` by the tensor's ``name`` where ranks do not hold whole parts.
    """
    if parts.shape[1] % ranks:
        raise MoEConfigError(
            f"{name} has {parts.shape[1]} partial sums, which {ranks} tensor parallel ranks cannot share: use a number of "
            "ranks that divides it, or --enable-expert-parallel"
        )
    return parts.chunk(ranks, dim=1)[rank].sum(dim=1, keepdim=True)
