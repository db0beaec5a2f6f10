# SPDX-License-Identifier: Apache-2.0
"""Whether int8 experts multiply, apply SwiGLU and quantise in one operator, with weights in FRACTAL_NZ: a rule on facts.

The operator (``npu_grouped_matmul_swiglu_quant``) takes weights in that format only, and whoever writes to parts of the
weights in place cannot have it.
"""

from __future__ import annotations

from typing import NamedTuple

from vllm_ascend_patch.core.operator_limits import (
    FUSED_MATMUL_ALIGNMENT,
    FUSED_MATMUL_MAX_INNER,
    FUSED_MATMUL_MAX_OUTER,
)


class FusedFacts(NamedTuple):
    """What the choice depends on.

    Attributes:
        hidden_size: H.
        intermediate_size: I on this rank.
        activation: vLLM's name.
        plain_swiglu: whether it is SwiGLU without limits, gates first.
        balanced: whether load balancing moves experts while the model runs.
        gives_nz: whether the device has the format.
    """

    hidden_size: int
    intermediate_size: int
    activation: str
    plain_swiglu: bool
    balanced: bool
    gives_nz: bool


class FusedChoice(NamedTuple):
    """``reason`` is a phrase for the log."""

    fused: bool
    reason: str


def choose(facts: FusedFacts) -> FusedChoice:
    """The choice, the same on every rank of a layer and whenever it is asked for."""
    columns = 2 * facts.intermediate_size
    sizes = f"hidden size {facts.hidden_size}, intermediate size {facts.intermediate_size} per rank"
    if facts.balanced:
        return FusedChoice(False, "load balancing moves an expert's part of the weights in place")
    if not facts.plain_swiglu:
        return FusedChoice(False, f"the activation is {facts.activation}, the operator's is SwiGLU without limits")
    if facts.hidden_size > FUSED_MATMUL_MAX_INNER or columns > FUSED_MATMUL_MAX_OUTER:
        most = f"at most {FUSED_MATMUL_MAX_INNER} and {FUSED_MATMUL_MAX_OUTER // 2}"
        return FusedChoice(False, f"{sizes}, the operator takes {most}")
    if facts.hidden_size % FUSED_MATMUL_ALIGNMENT or facts.intermediate_size % FUSED_MATMUL_ALIGNMENT:
        return FusedChoice(False, f"{sizes}, which are not whole tiles of {FUSED_MATMUL_ALIGNMENT}")
    if not facts.gives_nz:
        return FusedChoice(False, "this device and torch_npu have no FRACTAL_NZ")
    return FusedChoice(True, sizes)
